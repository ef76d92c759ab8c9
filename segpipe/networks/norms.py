"""Norms that change a channel's mean and its variations apart, in closed form, and the noise that fits running norms.

Their authors describe them by the amplitude and the phase of a Fourier transform. Of a real map, subtracting a number
changes one coefficient alone, that of frequency 0, which is the mean and whose phase is its sign; a scale changes no
phase. So means and variances say the same as the transforms, for any axes and sizes, and in less time.
"""

# B batch, C features, 1 axes of length 1 for those of the map. Tensors are (B, C, Z, Y, X), or (B, C, Y, X).
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BLEND_TEMPERATURE = 0.1  # the authors': their learning rate of 1e-3 moves the shares ten times as fast
_CHOICE_TEMPERATURE = 1e-6  # the authors': any difference chooses one of two


class PhaseNorm(_BatchNorm):
    """Batch norm in which every map keeps the phases that it had before: its mean keeps its sign.

    With m the mean of a map of one sample and channel, and μ, σ mean and standard deviation of the channel in the batch
    (running ones in evaluation): (x - m + sign(m - w μ) · |m - μ|) / σ, then scale and shift. w is 0 (PCNorm) or, if
    `centred`, the first share of `choice` (CCNorm); sign(0) is 1. In a batch of one sample m is μ, and what is left is
    an instance norm.

    Source:
        Lee et al. 2023, Decompose, Adjust, Compose: PCNorm and CCNorm. There CCNorm's choice is called a parameter, but
        the output is constant in it except for jumps: its gradient is 0, so it stays at w = ½. Here it is a buffer.
    """

    def __init__(self, n_features: int, *, centred: bool = False) -> None:
        super().__init__(n_features)
        self.choice: Tensor | None
        self.register_buffer("choice", torch.zeros(2) if centred else None)

    def forward(self, x: Tensor) -> Tensor:
        values, mean_BC1, varied = _apart(x)
        shape, means_C, variances_C = (-1, *(1,) * (x.ndim - 2)), self.running_mean, self.running_var
        if self.training:
            means_C = mean_BC1.mean(0).flatten()
            between_C = (mean_BC1 - means_C.view(shape)).square().mean(0).flatten()
            variances_C = varied.square().mean((0, *range(2, x.ndim))) + between_C
            self._take_in(means_C, variances_C, values.numel() // x.shape[1])
        assert means_C is not None and variances_C is not None  # running statistics are always there
        scale_C1 = (self.weight * (variances_C + self.eps).rsqrt()).view(shape)
        means_C1 = means_C.view(shape)
        compared = mean_BC1 if self.choice is None else mean_BC1 - self._share() * means_C1
        distance = (mean_BC1 - means_C1).abs()
        composed = torch.where(compared >= 0, distance, -distance)
        return torch.addcmul(composed * scale_C1 + self.bias.view(shape), varied, scale_C1).to(x.dtype)

    def _share(self) -> Tensor | float:
        return 0.0 if self.choice is None else torch.softmax(self.choice / _CHOICE_TEMPERATURE, 0)[0]

    @torch.no_grad()
    def _take_in(self, means_C: Tensor, variances_C: Tensor, n: int) -> None:
        """Let the running statistics follow a batch of `n` voxels, as torch's batch norm does."""
        if n < 2:
            raise ValueError("Expected more than 1 value per channel when training")
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(means_C.detach().to(self.running_mean.dtype), step)
        self.running_var.lerp_((variances_C.detach() * (n / (n - 1))).to(self.running_var.dtype), step)


class BlendNorm(nn.Module):
    """A learned blend of instance norm and identity, both of which keep the mean.

    With m and s mean and standard deviation of a map of one sample and channel: (w₀ / s + w₁) · (x - m) + w₁ · m, then
    scale and shift. The shares w₀ + w₁ = 1 begin as ½; (1, 0) is instance norm, (0, 1) the identity.

    Source:
        Lee et al. 2023, Decompose, Adjust, Compose: SCNorm. The authors raise squared amplitudes to 1e-5 at least,
        which changes the result by about 1e-5.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.blend = nn.Parameter(torch.zeros(2))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        _, mean_BC1, varied = _apart(x)
        shape = (-1, *(1,) * (x.ndim - 2))
        weight_C1, bias_C1 = self.weight.view(shape), self.bias.view(shape)
        variance_BC1 = varied.square().mean(tuple(range(2, x.ndim)), keepdim=True)
        normed, kept = torch.softmax(self.blend.to(varied.dtype) / _BLEND_TEMPERATURE, 0).unbind()
        scale_BC1 = weight_C1 * (normed * (variance_BC1 + self.eps).rsqrt() + kept)
        return torch.addcmul(weight_C1 * kept * mean_BC1 + bias_C1, varied, scale_BC1).to(x.dtype)


def _apart(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values in float32 at least, the mean of each sample's channels, and the difference from it."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_BC1 = values.mean(tuple(range(2, x.ndim)), keepdim=True)
    return values, mean_BC1, values - mean_BC1


class UniformNoise(nn.Module):
    """In training, each value times 1 + r with r uniform within ±`width`, drawn for every value.

    The variance grows by the factor 1 + width² / 3 where the mean is 0, so the statistics that a running norm stores
    behind it are wrong by 0.3 % for a width of 0.1. Dropout of one channel in ten makes them wrong by a tenth.

    Source:
        Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization: Uout.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.width:
            return x
        return torch.addcmul(x, x, torch.empty_like(x).uniform_(-self.width, self.width))
