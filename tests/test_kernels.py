"""networks/build.py"""

from __future__ import annotations

import pytest
from specs import SPECS
from torch import nn

from segpipe.networks.build import NETWORKS, build, inner_kernels

_LARGE = [f"b{size}" for size in range(1, 8)]  # EfficientNets differ in size alone


def names_of(network: nn.Module) -> list[str]:
    """Of its inner kernels."""
    inner = {id(kernel) for kernel in inner_kernels(network)}
    return [name for name, parameter in network.named_parameters() if id(parameter) in inner]


def test_a_plain_network_by_hand():
    found = names_of(build(SPECS["plain"]("3d"), 1, 3))
    stages = [name for name in found if name.startswith("encoder.")]
    assert len(stages) == 4  # 1 + 2 + 1 convolutions
    assert len([name for name in found if "transpconvs" in name]) == 2
    assert len(found) == 4 + 2 + 3  # and 1 + 2 convolutions of the decoder; neither norms nor heads


def test_depthwise_kernels_rows_and_biases_are_left_out():
    network = nn.Sequential(nn.Conv3d(4, 4, 3, groups=4), nn.Conv3d(4, 1, 3), nn.Conv3d(1, 4, 3), nn.Linear(4, 4))
    assert names_of(network) == ["2.weight", "3.weight"]


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind[-2:] not in _LARGE])
@pytest.mark.parametrize("view", ["2d", "3d"])
def test_no_kernel_of_any_family_makes_logits(kind, view):
    n_outputs = 11  # no family has as many features anywhere
    network = build(SPECS[kind](view), 1, n_outputs)
    heads = [name for name, p in network.named_parameters() if p.ndim > 1 and p.shape[0] == n_outputs]
    found = names_of(network)
    assert heads and found and not set(heads) & set(found)
