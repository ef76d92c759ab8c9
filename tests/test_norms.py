"""Order in memory: the same values and gradients, whichever way the channels lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segpipe.networks.convolutions import InstanceNorm2d, InstanceNorm3d, memory_format

CPU = torch.device("cpu")
CASES = [
    (InstanceNorm3d, nn.InstanceNorm3d, (3, 5, 4, 6, 7), torch.channels_last_3d),
    (InstanceNorm2d, nn.InstanceNorm2d, (2, 4, 8, 9), torch.channels_last),
]


@pytest.mark.parametrize(("ours", "theirs", "shape", "order"), CASES, ids=["3d", "2d"])
def test_values_and_gradients_are_torchs_in_either_order(ours, theirs, shape, order):
    torch.manual_seed(0)
    x, incoming = 3 * torch.randn(shape) + 10, torch.randn(shape)
    first, second = ours(shape[1], affine=True), theirs(shape[1], affine=True)
    with torch.no_grad():
        for norm in (first, second):
            norm.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
    last = x.contiguous(memory_format=order).requires_grad_()
    usual = x.clone().requires_grad_()
    found, expected = first(last), second(usual)
    assert found.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward(incoming)
    expected.backward(incoming)
    for own, reference in ((last, usual), (first.weight, second.weight), (first.bias, second.bias)):
        torch.testing.assert_close(own.grad, reference.grad, atol=1e-4, rtol=1e-4)


def test_the_usual_order_is_torchs_own_to_the_bit():
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(InstanceNorm3d(3, affine=True)(x), nn.InstanceNorm3d(3, affine=True)(x))


def test_gradients_are_those_of_differences():
    norm = InstanceNorm3d(2, affine=True).double()
    x = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_one_voxel_of_a_channel_is_refused_as_by_torch():
    x = torch.randn(2, 3, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNorm3d(3, affine=True).train()(x)


@pytest.mark.parametrize(
    ("kind", "trains", "wanted", "is_last"),
    [
        ("plain", True, None, True),
        ("convnext", True, None, False),
        ("convnext", False, None, True),
        ("convnext", True, True, True),
        ("plain", True, False, False),
    ],
)
def test_channels_are_last_where_that_was_faster(kind, trains, wanted, is_last):
    order = memory_format(kind, 3, CPU, trains=trains, wanted=wanted)
    assert order == (torch.channels_last_3d if is_last else torch.contiguous_format)


def test_on_a_gpu_nothing_is_assumed():
    assert memory_format("plain", 3, torch.device("cuda"), trains=False) == torch.contiguous_format
