"""networks/unet.py."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import SimpleASPP
from torch import nn

from segpipe.networks.blocks import Layers
from segpipe.networks.parts import Parts
from segpipe.networks.unet import DeepLabPyramid, SimplePyramid, pyramid


def isotropic(*rates: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((rate,) * 3 for rate in rates)


def make(kind: str, *rates: int, **parts: object) -> Layers:
    return Layers(3, Parts(bottleneck=kind, dilations_zyx=isotropic(*rates), bias=False, **parts))


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_numbers_of_parameters():
    assert n_parameters(SimplePyramid(make("aspp_simple", 2, 4, 6), 320, 320)) == 2_202_560
    pooled = make("aspp_deeplab", 1, 2, 3, bottleneck_pooling=True)
    assert n_parameters(DeepLabPyramid(pooled, 320, 256)) == 1_782_848


def test_no_bottleneck_changes_nothing():
    x = torch.randn(1, 4, 2, 2, 2)
    assert pyramid(Layers(3, Parts()), 4, 4)(x) is x


def test_the_simple_pyramid_equals_monais():
    torch.manual_seed(0)
    rates = ((1, 1, 1), (1, 2, 2), (1, 1, 1), (2, 3, 3))
    theirs = SimpleASPP(3, 8, 2, kernel_sizes=(1, 3, 3, 3), dilations=rates, norm_type="INSTANCE")
    parts = Parts(bottleneck="aspp_simple", dilations_zyx=rates[1:], bias=False)
    ours = SimplePyramid(Layers(3, parts), 8, 8)
    state = theirs.state_dict()
    ours.convs.load_state_dict({n.removeprefix("convs."): v for n, v in state.items() if n.startswith("convs.")})
    ours.project.conv.load_state_dict({"weight": state["conv_k1.conv.weight"]})
    x = torch.randn(2, 8, 5, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_branch_reaches_as_many_voxels_as_its_dilation_says_by_hand():
    parts = Parts(bottleneck="aspp_deeplab", dilations_zyx=((1, 2, 3),))
    branch = DeepLabPyramid(Layers(3, parts), 1, 4).branches[1].conv
    nn.init.ones_(branch.weight)
    nn.init.zeros_(branch.bias)
    x = torch.zeros(1, 1, 9, 9, 9)
    x[0, 0, 4, 4, 4] = 1
    reached = branch(x)[0, 0].nonzero()
    assert len(reached) == 27
    assert reached.amin(0).tolist() == [3, 2, 1] and reached.amax(0).tolist() == [5, 6, 7]


@pytest.mark.parametrize(("edge", "rate", "share"), [(4, 1, 0.579), (8, 2, 0.579), (8, 6, 0.125), (8, 8, 1 / 27)])
def test_wide_dilations_read_mostly_padding(edge, rate, share):
    """Why the planner caps them: the share of a kernel's taps that lie inside the map."""
    parts = Parts(bottleneck="aspp_deeplab", dilations_zyx=isotropic(rate), bias=False)
    branch = DeepLabPyramid(Layers(3, parts), 1, 4).branches[1].conv
    nn.init.ones_(branch.weight)
    taps = branch(torch.ones(1, 1, edge, edge, edge))[0, 0]
    assert taps.mean().item() / 27 == pytest.approx(share, abs=5e-4)


def test_the_pooled_branch_is_the_mean_everywhere():
    module = DeepLabPyramid(make("aspp_deeplab", 1, bottleneck_pooling=True), 2, 4)
    nn.init.zeros_(module.project.conv.weight)
    module.project.conv.weight.data[:, -1] = 1  # only the pooled branch is seen
    module.project.norm = nn.Identity()
    nn.init.constant_(module.pooled[0].weight, 1.0)
    nn.init.zeros_(module.pooled[0].bias)
    x = torch.rand(1, 2, 3, 4, 5)
    torch.testing.assert_close(module(x), x.mean((2, 3, 4)).sum().expand(1, 4, 3, 4, 5))


@pytest.mark.parametrize("n_out", [4, 5, 7])
def test_widths_that_do_not_divide_are_shared_out(n_out):
    assert SimplePyramid(make("aspp_simple", 1, 2), 6, n_out)(torch.randn(1, 6, 4, 4, 4)).shape == (1, n_out, 4, 4, 4)
