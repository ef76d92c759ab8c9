"""networks/convolutions.py"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segpipe.networks.build import build, ready_to_predict
from segpipe.networks.convolutions import Conv3d, ConvTranspose3d, guard_convolutions
from tests.specs import SPECS, VIEWS

CPU = torch.device("cpu")
THIN = (1, 4, 3, 17, 19)  # a batch of one of which torch makes columns
ROUNDING = {torch.bfloat16: 2**-7, torch.float32: 1e-5}  # relative, of a sum as a whole


def guarded(layer: nn.Module) -> nn.Module:
    return guard_convolutions(copy.deepcopy(layer))


def gradients(layer: nn.Module, x: Tensor, of_result: Tensor, autocast: bool) -> list[Tensor]:
    """The result, and the gradients of image, kernel and bias."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(of_result.to(y.dtype))
    return [y.detach(), *(tensor.grad for tensor in (x, *layer.parameters()))]


@st.composite
def layers(draw):
    """A convolution of 2 or 3 axes, plain or transposed, with numbers that bfloat16 holds, and an image for it."""
    n_axes, is_transposed = draw(st.sampled_from([2, 3, 3])), draw(st.booleans())
    per_axis = lambda values: tuple(draw(st.sampled_from(values)) for _ in range(n_axes))  # noqa: E731
    kernel, stride, size = per_axis([1, 1, 2, 3, 5]), per_axis([1, 1, 2, 3]), per_axis([1, 2, 3, 6, 9])
    dilation = tuple(draw(st.sampled_from([1, 2])) if k > 1 else 1 for k in kernel)
    same = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    padding = draw(st.sampled_from([same, (0,) * n_axes])) if min(size) > 8 or is_transposed else same
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    n_in, n_out = 4 * draw(st.integers(1, 3)), 4 * draw(st.integers(1, 4))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if is_transposed:
        options["output_padding"] = tuple(draw(st.integers(0, s - 1)) if s > 1 else 0 for s in stride)
    else:
        kernel = tuple(k if z + 2 * p > d * (k - 1) else 1 for k, z, p, d in zip(kernel, size, padding, dilation))  # noqa: B905
    torch.manual_seed(draw(st.integers(0, 9)))
    kinds = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    layer = kinds[n_axes][is_transposed](n_in, n_out, kernel, **options)
    for values in layer.parameters():
        values.data = values.data.bfloat16().float()
    x = torch.randn(draw(st.integers(1, 3)), n_in, *size).bfloat16().float()
    if draw(st.booleans()):
        order = {2: torch.channels_last, 3: torch.channels_last_3d}[n_axes]
        layer, x = layer.to(memory_format=order), x.contiguous(memory_format=order)
    return layer, x


@settings(deadline=None, max_examples=150)
@given(layers(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_result_and_gradients_are_those_of_float64(made, dtype):
    layer, x = made
    of_result = torch.randn_like(layer(x).detach()).bfloat16().double()
    expected = gradients(copy.deepcopy(layer).double(), x.double(), of_result, autocast=False)
    found = gradients(guarded(layer), x, of_result, autocast=dtype == torch.bfloat16)
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert (mine.double() - right).norm() <= ROUNDING[dtype] * right.norm().clamp_min(1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": (1, 2, 2)},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": 1, "padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding_mode": "replicate"},
    ],
)
@pytest.mark.parametrize("n_batch", [1, 2])
def test_predictions_in_float32_are_torchs(options, n_batch):
    torch.manual_seed(0)
    layer = nn.Conv3d(4, 6, **{"kernel_size": 3, "padding": 1, **options})
    x = torch.randn(n_batch, *THIN[1:])
    with torch.inference_mode():
        assert torch.allclose(guarded(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def kernels_called(layer: nn.Module, x: Tensor) -> set[str]:
    with torch.inference_mode(), torch.profiler.profile() as profile:
        layer(x)
    return {event.key for event in profile.key_averages()}


def test_a_thin_window_goes_to_onednn():
    names = kernels_called(guarded(nn.Conv3d(4, 6, 3, padding=1)), torch.randn(THIN))
    assert "aten::mkldnn_convolution" in names and "aten::slow_conv3d" not in names


def test_training_in_float32_and_other_types_stay_torchs_bit_for_bit():
    layer = nn.Conv3d(4, 6, 3, padding=1)
    own, x = guarded(layer), torch.randn(THIN)
    assert torch.equal(own(x), layer(x)) and own(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(own.double()(x.double()), layer.double()(x.double()))


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding_mode": "replicate", "padding": 1}])
def test_forms_that_no_network_uses_are_right_in_short_types(options):
    layer, x = nn.Conv3d(4, 6, 3, **options), torch.randn(2, *THIN[1:])
    of_result = torch.randn_like(layer(x).detach())
    expected = gradients(layer, x, of_result, autocast=False)
    found = gradients(guarded(layer), x, of_result, autocast=True)
    for mine, right in zip(found, expected[: len(found)], strict=True):
        assert (mine.double() - right).norm() <= 0.02 * right.norm()


def test_a_frozen_kernel_gets_no_gradient_and_passes_one_on():
    layer = guarded(nn.Conv3d(2, 2, 3, padding=1)).requires_grad_(False)
    x = torch.randn(1, 2, 4, 5, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", SPECS)
def test_no_network_has_an_unguarded_convolution(kind, view):
    with torch.device("meta"):
        network = build(SPECS[kind](view), 2, 3)
    unguarded = {nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d}
    assert not [name for name, module in network.named_modules() if type(module) in unguarded]


def test_weights_and_their_names_stay():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose3d(2, 1, 2, 2), nn.Linear(1, 1))
    own = ready_to_predict(guarded(network), "plain", 3, CPU)
    assert [type(module) for module in own] == [Conv3d, ConvTranspose3d, nn.Linear]
    before, after = network.state_dict(), own.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
