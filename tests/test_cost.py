"""networks/cost.py and networks/memory_trace.py: bytes and multiplications of a step that nobody computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from plans import LABELS, small_spec
from segpipe.networks.build import build
from segpipe.networks.cost import CPU, CUDA, cost, fits, seconds_per_step
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.training import OPTIMIZERS
from segpipe.train.losses import supervised_loss

LOSS = partial(supervised_loss, labels=LABELS, batch_dice=False)
TENSORS_ALONE = CPU.model_copy(update={"context_bytes": 0, "slack_fraction": 0.0})
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
    found = cost(two_layers(), 1, 3, PATCH, 2, precision="fp32", calibration=TENSORS_ALONE)
    n_voxels = 2 * 192
    assert found.n_parameters == 2 * 27 + 2 + 3 * 2 + 3
    # the first convolution saves the image, which belongs to the batch; the activation works in place, so its result
    # and the input of the second convolution are one storage
    assert found.kept_activation_bytes == n_voxels * 2 * 4
    assert found.n_macs_forward == n_voxels * (2 * 27 + 3 * 2)
    # backward: the weights of both, the operand of the second only, since the image needs no gradient
    assert found.n_macs_step == found.n_macs_forward + n_voxels * (2 * 27 + 2 * 3 * 2)


def test_two_layers_in_bf16_by_hand():
    found = cost(two_layers(), 1, 3, PATCH, 2, precision="bf16", calibration=TENSORS_ALONE)
    n_voxels = 2 * 192
    # short copies of image and weights, and the activation
    assert found.kept_activation_bytes == 2 * (n_voxels + 2 * 27 + n_voxels * 2 + 3 * 2)


@pytest.mark.parametrize(("calibration", "bytes_of_norm"), [(CPU, 2 * 384 + 2 * 2), (CUDA, 4 * 384 + 2 * 4)])
def test_cuda_computes_group_norm_in_float32(calibration, bytes_of_norm):
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2), nn.Conv3d(2, 1, 1))
    found = cost(network, 1, 1, PATCH, 1, precision="bf16", calibration=calibration)
    # image, first weights, second weights, second input as bf16; the norm's input, mean and inverse deviation
    assert found.kept_activation_bytes == 2 * (192 + 2 + 2 + 384) + bytes_of_norm


def test_optimizer_and_average_by_hand():
    found = {
        name: cost(
            two_layers(), 1, 3, PATCH, 1, optimizer_states=OPTIMIZERS[name].states, averages_weights=average
        ).optimizer_bytes
        for name, average in (("sgd", False), ("adamw", True), ("muon", False))
    }
    assert found == {"sgd": 4 * 65, "adamw": 3 * 4 * 65, "muon": 4 * (60 + 2 * 5)}  # two momenta for the biases


def test_many_weights_and_few_voxels_peak_in_the_optimizers_step():
    network = nn.Conv3d(64, 64, 3, padding=1)
    found = cost(network, 64, 64, (1, 1, 1), 1, precision="fp32", calibration=TENSORS_ALONE)
    # weights, gradients, momentum, a copy of the gradients, and the batch: 64 values and one label
    assert found.training_bytes == 4 * found.gradient_bytes + 64 * 4 + 8


def test_frozen_weights_need_no_gradient():
    network = two_layers()
    network[0].requires_grad_(False)
    found = cost(network, 1, 3, PATCH, 1)
    assert (found.n_parameters, found.gradient_bytes) == (65, 4 * 9)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_keeps_less_and_computes_forward_twice(precision):
    inner = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv3d(4, 4, 3, padding=1), nn.GELU())))
    whole, twice = (cost(network, 4, 4, PATCH, 2, precision=precision) for network in (inner, Checkpointed(inner)))
    assert twice.kept_activation_bytes == 0 < whole.kept_activation_bytes
    assert twice.training_bytes == whole.training_bytes  # a single block: in backward all of it is there again
    assert twice.n_macs_forward == whole.n_macs_forward
    # the last convolution's result is needed for its activation, so all four are computed again
    assert twice.n_macs_step == whole.n_macs_step + whole.n_macs_forward


SPECS = {
    **{kind: small_spec(kind) for kind in ("plain", "residual")},
    "flat": small_spec("plain", 2),
    "segresnet": NetworkSpec(
        kind="segresnet",
        features=(8, 16, 32, 64),
        strides_zyx=((1, 1, 1), *((2, 2, 2),) * 3),
        kernels_zyx=((3, 3, 3),) * 4,
        blocks=(1, 2, 2, 4),
        decoder_convolutions=(1, 1, 1),
    ),
}


def saved_by_autograd(network: nn.Module, images: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> int:
    """Bytes that autograd really keeps, computed on the CPU."""
    storages = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = network(images)
        loss = LOSS(outputs, indices)  # held, so that no storage is freed and its place taken by another
    assert loss.isfinite()
    given = [*network.parameters(), *network.buffers(), images, indices]
    return sum(n for place, n in storages.items() if place not in {t.untyped_storage().data_ptr() for t in given})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_kept_activations_are_those_of_a_real_step(name, precision):
    patch = (16, 16, 16)  # the deepest map has 2 voxels along each axis: one alone is computed in float32
    network = build(SPECS[name], 2, 3)
    found = cost(network, 2, 3, patch, 2, precision=precision, loss=LOSS, calibration=TENSORS_ALONE)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    images, indices = torch.randn(2, 2, *patch), torch.randint(0, 3, (2, *patch))
    assert found.kept_activation_bytes == pytest.approx(saved_by_autograd(network, images, indices, dtype), rel=0.01)


def test_a_module_is_taken_as_it_is_and_left_as_it_was():
    network = build(small_spec(), 2, 3).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert cost(network, 2, 3, (8, 8, 8), 2, loss=LOSS) == cost(small_spec(), 2, 3, (8, 8, 8), 2, loss=LOSS)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())


edges = st.integers(1, 6).map(lambda n: 4 * n)
PARTS = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "n_parameters")


@given(st.sampled_from(["plain", "residual"]), st.tuples(edges, edges, edges), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=15)
def test_a_larger_patch_or_batch_never_needs_less(kind, patch, axis, batch_size):
    longer = tuple(edge + 4 * (a == axis) for a, edge in enumerate(patch))
    here, larger, more = (
        cost(small_spec(kind), 1, 3, size, n, precision="fp32", loss=LOSS)
        for size, n in ((patch, batch_size), (longer, batch_size), (patch, 2 * batch_size))
    )
    for other in (larger, more):
        assert all(getattr(other, part) == getattr(here, part) for part in PARTS)
        assert other.training_bytes >= here.training_bytes
        assert other.kept_activation_bytes > here.kept_activation_bytes
    assert larger.inference_bytes >= here.inference_bytes == more.inference_bytes
    assert more.n_macs_step == 2 * here.n_macs_step
    assert more.kept_activation_bytes == pytest.approx(2 * here.kept_activation_bytes, abs=200)  # scalars of the loss


def test_seconds_follow_from_multiplications_at_a_measured_rate():
    small, large = (cost(two_layers(), 1, 3, PATCH, n, calibration=CPU) for n in (1, 3))
    seconds = [seconds_per_step(found, "cpu", "fp32") for found in (small, large)]
    assert seconds[1] == pytest.approx(3 * seconds[0])
    assert 1e6 < small.n_macs_step / seconds[0] < 1e14  # a second; no processor is slower, none is faster


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("edge", [64, 96])
def test_predicted_gpu_memory_is_within_15_percent(kind, edge):
    found = cost(full_size(kind), 1, 3, (edge,) * 3, 2, loss=LOSS)
    network = build(full_size(kind), 1, 3).cuda()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, nesterov=True, weight_decay=3e-5)
    for _ in range(2):
        images, indices = torch.randn(2, 1, *(edge,) * 3).cuda(), torch.zeros(2, *(edge,) * 3, dtype=torch.int64).cuda()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            outputs = network(images)
        loss = LOSS(outputs, indices)
        del outputs
        loss.backward()
        optimizer.step()
    measured = torch.cuda.max_memory_reserved()
    assert found.training_bytes - CUDA.context_bytes == pytest.approx(measured, rel=0.15)
