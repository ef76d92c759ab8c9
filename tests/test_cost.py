"""networks/cost.py and networks/memory.py: bytes and multiplications of a step that nobody computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from plans import LABELS, small_spec
from segpipe.networks.build import build
from segpipe.networks.cost import CPU, CUDA, cost, fits, seconds_per_step
from segpipe.networks.spec import KINDS, NetworkSpec
from segpipe.train.losses import supervised_loss

LOSS = partial(supervised_loss, labels=LABELS, batch_dice=False)
NO_SCRATCH = CPU.model_copy(update={"scratch_share": 0.0})
PATCH = (4, 6, 8)  # 192 voxels


def full_size(kind: str = "plain") -> NetworkSpec:
    """nnU-Net's network for a cube of 128 voxels."""
    return NetworkSpec(
        kind=kind,
        features=(32, 64, 128, 256, 320, 320),
        strides_zyx=((1, 1, 1), *((2, 2, 2),) * 5),
        kernels_zyx=((3, 3, 3),) * 6,
        blocks=(2,) * 6 if kind == "plain" else (1, 3, 4, 6, 6, 6),
        decoder_convolutions=(2 if kind == "plain" else 1,) * 5,
    )


def test_cost_of_nnunets_network_for_a_cube_of_128():
    found = cost(full_size(), 1, 3, (128, 128, 128), 2, loss=LOSS)
    assert found.n_parameters == 31_196_399
    assert found.parameter_bytes == found.gradient_bytes == found.optimizer_bytes == 4 * 31_196_399
    assert found.batch_bytes == 2 * 128**3 * (4 + 8)  # float32 image, int64 labels
    assert 4 < found.training_bytes / 2**30 < 9  # nnU-Net plans it for 8 GB
    assert found.inference_bytes < found.training_bytes / 2
    assert fits(found, found.training_bytes) and not fits(found, found.training_bytes - 1)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.LeakyReLU(inplace=True), nn.Conv3d(2, 3, 1))


def test_two_layers_by_hand():
    found = cost(two_layers(), 1, 3, PATCH, 2, precision="fp32", calibration=NO_SCRATCH)
    n_voxels = 2 * 192
    assert found.n_parameters == 2 * 27 + 2 + 3 * 2 + 3
    # the first convolution saves the image, which belongs to the batch; the activation works in place, so its result
    # and the input of the second convolution are one storage
    assert found.kept_activation_bytes == n_voxels * 2 * 4
    assert found.n_macs_forward == n_voxels * (2 * 27 + 3 * 2)
    # backward: the weights of both, the operand of the second only, since the image needs no gradient
    assert found.n_macs_step == found.n_macs_forward + n_voxels * (2 * 27 + 2 * 3 * 2)


def test_two_layers_in_bf16_by_hand():
    found = cost(two_layers(), 1, 3, PATCH, 2, precision="bf16", calibration=NO_SCRATCH)
    n_voxels = 2 * 192
    # short copies of image and weights, and the activation
    assert found.kept_activation_bytes == 2 * (n_voxels + 2 * 27 + n_voxels * 2 + 3 * 2)


@pytest.mark.parametrize(("calibration", "bytes_of_norm_input"), [(CPU, 2), (CUDA, 4)])
def test_cuda_computes_group_norm_in_float32(calibration, bytes_of_norm_input):
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2), nn.Conv3d(2, 1, 1))
    found = cost(network, 1, 1, PATCH, 1, precision="bf16", calibration=calibration)
    # image and weights (2, 2) as bf16; input of the norm; its result as bf16; mean and inverse deviation of one group
    short = 2 * (192 + 2 + 2 + 2 * 192)
    statistics = found.kept_activation_bytes - short - bytes_of_norm_input * 2 * 192
    assert statistics in (4, 8)
