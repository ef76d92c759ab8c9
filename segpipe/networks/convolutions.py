"""torch's convolutions and instance norm, same parameters and values, kept clear of what is wrong or slow on CPUs.

With AMX, oneDNN's convolutions in 16 bits have two faults (oneDNN 3.12 and older and newer ones; docs/decisions.md):

- The weights' gradient of a 3D convolution writes past its buffer as soon as a slice is too large for it: the buffer
  holds one block of rows, rows are counted from the slice's first. Training crashes, or goes on with wrong gradients.
  2D convolutions count from the block, so a 3D kernel's gradient is computed by 2D ones, plane by plane of the kernel.
- Results may be made of memory that was never written where an axis has a single voxel, or a transposed convolution
  pads its output. Such maps are small or not used by any network: they are computed in float32.

Both hold on every processor: no machine has to be recognised, and what is computed does not depend on it.
"""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segpipe.networks.spec import KINDS

_SHORT = (torch.bfloat16, torch.float16)


class _Form(NamedTuple):
    """The moves of a kernel over an image, in the order of torch.convolution; one number for each axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    is_transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Conv2d(nn.Conv2d):
    """torch's, with the same values to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x, super().forward)


class Conv3d(nn.Conv3d):
    """torch's, with the same values to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, x, super().forward)


class ConvTranspose3d(nn.ConvTranspose3d):
    """torch's, with the same values to rounding."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None, "nothing asks for it"
        return _convolve(self, x, super().forward)


_Layer = Conv2d | Conv3d | ConvTranspose3d
_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose3d: ConvTranspose3d,
}


def guard_convolutions(network: nn.Module) -> nn.Module:
    """Make every convolution of a network one of those above, whoever built it; it is changed in place and returned."""
    for module in network.modules():
        module.__class__ = _OURS.get(type(module), type(module))
    return network


def _convolve(layer: _Layer, x: Tensor, torchs: Callable[[Tensor], Tensor]) -> Tensor:
    """The layer's result: torch's way, unless that is wrong or slow for this image."""
    if type(x) is not Tensor or x.device.type != "cpu":  # tensors that only trace memory take torch's way everywhere
        return torchs(x)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    form = _form(layer) if x.dim() == 2 + len(layer.kernel_size) else None
    if dtype in _SHORT:
        if form is None or any(form.output_padding) or _has_single_voxel(layer.kernel_size, form, x.shape[2:]):
            return _in_float32(layer, x, dtype)
        if x.dim() == 5 and torch.is_grad_enabled() and layer.weight.requires_grad:
            bias = None if layer.bias is None else layer.bias.to(dtype)
            result: Tensor = _Convolution3d.apply(x.to(dtype), layer.weight.to(dtype), bias, form)
            return result
    elif form and _mixes_channels(layer, form, x, dtype):
        mixed = nn.functional.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias)
        return mixed.movedim(-1, 1)
    elif form and _may_leave_torch(layer, x, dtype):
        how = (form.padding, form.stride, form.dilation, form.groups)
        return torch.mkldnn_convolution(x, layer.weight, layer.bias, *how)
    return torchs(x)


def _mixes_channels(layer: _Layer, form: _Form, x: Tensor, dtype: torch.dtype) -> bool:
    """True for a 1×1×1 kernel in float32 on an image whose channels are last, in training: a product of two matrices.

    torch has a loop of its own there; a forward and a backward pass took 2 to 10 times as long (torch 2.14).
    """
    is_pointwise = (
        not layer.transposed and {*layer.kernel_size, *form.stride, form.groups} == {1} and not any(form.padding)
    )
    is_last = x.dim() == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)
    return is_pointwise and is_last and dtype == layer.weight.dtype == torch.float32 and torch.is_grad_enabled()


def _may_leave_torch(layer: _Layer, x: Tensor, dtype: torch.dtype) -> bool:
    """True if oneDNN is called without torch, which in float32 leaves it for a loop of its own for some images.

    It does for a batch of one whose channels × depth × height are at most 20480, and unfolds the image: 7 to 13 times
    slower for windows of anisotropic images, and in hundreds of MiB more.
    """
    is_float32 = dtype == layer.weight.dtype == torch.float32
    predicts = x.dim() == 5 and not layer.transposed and not torch.is_grad_enabled()
    predicts = predicts and not torch.compiler.is_compiling()  # compiled code never takes that loop
    return is_float32 and predicts and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _form(layer: _Layer) -> _Form | None:
    """The moves of the layer's kernel; None if its padding is not a number of zeros."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    output_padding = tuple(layer.output_padding)
    return _Form(layer.stride, layer.padding, layer.dilation, layer.transposed, output_padding, layer.groups)


def _has_single_voxel(kernel: Sequence[int], form: _Form, edges: Sequence[int]) -> bool:
    """True if an axis of the image or of the result has one voxel, and the kernel or its stride more."""
    for size, width, stride, padding, spread in zip(
        edges, kernel, form.stride, form.padding, form.dilation, strict=True
    ):
        n_reached = size + 2 * padding - spread * (width - 1)  # places of the kernel, were the stride 1
        is_single = size == 1 or (n_reached <= stride and not form.is_transposed)
        if is_single and max(width, stride) > 1:
            return True
    return False


def _in_float32(layer: _Layer, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        wide = {name: parameter.float() for name, parameter in layer.named_parameters()}
        result: Tensor = torch.func.functional_call(layer, wide, (x.float(),))
    return result.to(dtype)


class _Convolution3d(torch.autograd.Function):
    """torch.convolution whose weights get their gradient from 2D convolutions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = form
        return torch.convolution(x, weight, bias, *form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x = of_weight = None
        if needs_x:
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *ctx.form, (True, False, False))[0]
        if needs_weight:  # of a transposed convolution: that of the convolution which leads back
            large, small = (gradient, x) if ctx.form.is_transposed else (x, gradient)
            form = ctx.form
            of_weight = _kernel_gradient(large, small, weight, form.stride, form.padding, form.dilation, form.groups)
        return of_x, of_weight, gradient.sum((0, 2, 3, 4)) if needs_bias else None, None


@torch.library.custom_op("segpipe::kernel_gradient", mutates_args=())
def _kernel_gradient(
    large: Tensor,
    small: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Gradient of the kernel of a convolution from `large` to a map with the gradient `small`, of the kernel's shape.

    A plane of the kernel sees, of each slice of the result, one slice of the image, or padding: a 2D convolution whose
    batch are those pairs of slices. Where the kernel has one plane, and channels are last, nothing is copied for it.

    An operator of its own, since torch.compile is not to take it apart: its gradients were NaN then (torch 2.14).
    """
    step, pad, spread = stride[0], padding[0], dilation[0]
    result = torch.zeros_like(weight)
    for plane in range(weight.shape[2]):
        offset = plane * spread - pad
        first = max(0, -(offset // step))  # slices of the result whose slice of the image is none of padding
        end = min(small.shape[2], (large.shape[2] - 1 - offset) // step + 1)
        if first >= end:
            continue
        begin = first * step + offset
        seen = large[:, :, begin : begin + (end - first - 1) * step + 1 : step]
        result[:, :, plane] = torch.ops.aten.convolution_backward(
            _slices(small[:, :, first:end]),
            _slices(seen),
            weight[:, :, plane],
            None,
            stride[1:],
            padding[1:],
            dilation[1:],
            False,
            [0, 0],
            groups,
            (False, True, False),
        )[1]
    return result


@_kernel_gradient.register_fake
def _(large: Tensor, small: Tensor, weight: Tensor, *_: Any) -> Tensor:  # noqa: ARG001 (the operator's signature)
    return torch.zeros_like(weight)


def _slices(x_BCZYX: Tensor) -> Tensor:
    """All slices of all samples as one batch; a view of a whole batch whose channels are last."""
    last = x_BCZYX.contiguous(memory_format=torch.channels_last_3d)
    return last.transpose(1, 2).flatten(0, 1)


# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
# torch's own copies such maps into the usual order and its result back, which takes longer than the convolutions gain.

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions


def memory_format(kind: str, n_axes: int, device: torch.device, *, trains: bool, wanted: bool | None = None) -> Any:
    """Order in memory of a network's kernels, which the maps made with them follow.

    Args:
        kind: Of the network.
        n_axes: 2 or 3.
        device: Where it computes.
        trains: Whether gradients are needed.
        wanted: Channels last or not; None: where it was measured faster, see docs/decisions.md.
    """
    if wanted is None:
        wanted = device.type == "cpu" and (not trains or KINDS[kind].fast_channels_last)
    return _CHANNELS_LAST[n_axes + 2] if wanted else torch.contiguous_format


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's, with the same values to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_sample(self, x) if self.affine and _is_channels_last(x, 2) else super().forward(x)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's, with the same values to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return _by_sample(self, x) if self.affine and _is_channels_last(x, 3) else super().forward(x)


def _is_channels_last(x: Tensor, n_axes: int) -> bool:
    """Return whether a batch has its channels last, on a device where this was measured to be faster."""
    return (
        x.device.type == "cpu"
        and x.dim() == n_axes + 2
        and x.is_contiguous(memory_format=_CHANNELS_LAST[n_axes + 2])
        and not x.is_contiguous()  # with one channel both orders are the same
        and x[0, 0].numel() > 1  # torch refuses a single voxel
    )


def _by_sample(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor) -> Tensor:
    result: Tensor = _BatchNormOfEach.apply(x, norm.weight, norm.bias, norm.eps)
    return result


class _BatchNormOfEach(torch.autograd.Function):
    """Instance norm is batch norm of each sample alone, and torch's batch norm takes either order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result, statistics = torch.empty_like(x), []
        for sample, place in zip(torch.split(x, 1), torch.split(result, 1), strict=True):
            out, mean, inverse_std = torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, eps)
            place.copy_(out)
            statistics += [mean, inverse_std]
        ctx.save_for_backward(x, weight, *statistics)
        ctx.eps = eps
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, *statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
        of_x, of_weight, of_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        samples = zip(
            torch.split(gradient, 1),
            torch.split(x, 1),
            torch.split(of_x, 1),
            statistics[::2],
            statistics[1::2],
            strict=True,
        )
        for incoming, sample, place, mean, inverse_std in samples:
            own, scale, shift = torch.ops.aten.native_batch_norm_backward(
                incoming, sample, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
            )
            place.copy_(own)
            of_weight += scale
            of_bias += shift
        return of_x, of_weight, of_bias, None
