"""The memory format with the channels of a voxel next to each other, and an instance norm that is fast there too.

torch's own copies such maps into the usual order and its result back, which takes longer than the convolutions gain.
"""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segpipe.networks.spec import KINDS

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
