"""Blocks that mix the voxels of the deepest map without attention: state spaces and ConvMixer, in 2D and 3D."""

# B batch, C features, P complex states, L steps of a sequence; tensors are (B, C, Z, Y, X) or (B, C, Y, X).
from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional

from segpipe.core.choices import functions_for
from segpipe.networks.attention import AttentionBlock
from segpipe.networks.blocks import BlockStage, ChannelNorm, DropPath, Layers
from segpipe.networks.parts import BOTTLENECK_MIXERS

_SHORTEST_STEP, _LONGEST_STEP = 1e-3, 1e-1  # of new state spaces, the authors'


class ConvMixerBlock(nn.Module):
    """Depthwise convolution, GELU, norm, added to the input; then 1×1×1 convolution, GELU, norm.

    Args:
        make: Makes layers.
        n_features: Channels.
        kernel: Of the depthwise convolution, one entry for each axis, odd.
        drop_path_fraction: In training, share of samples without the depthwise branch.

    Source:
        Trockman and Kolter 2022, Patches Are All You Need?, with the spec's norm instead of batch norm.
    """

    def __init__(self, make: Layers, n_features: int, kernel: tuple[int, ...], drop_path_fraction: float = 0.0) -> None:
        super().__init__()
        self.depthwise = make.convolution(n_features, n_features, kernel, groups=n_features, bias=True)
        self.depthwise_norm = make.norm(n_features)
        self.gate = make.attention(n_features, "block")
        self.drop_path = DropPath(drop_path_fraction)
        self.add = make.addition(n_features)
        self.gate_of_sum = make.attention(n_features, "after_add")
        self.pointwise = make.convolution(n_features, n_features, bias=True)
        self.pointwise_norm = make.norm(n_features)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.drop_path(self.gate(self.depthwise_norm(functional.gelu(self.depthwise(x)))))
        x = self.gate_of_sum(self.add(x, branch))
        return self.pointwise_norm(functional.gelu(self.pointwise(x)))


class ComplexPair(NamedTuple):
    """Complex numbers as two float32 tensors: torch.compile and safetensors know those everywhere."""

    real: Tensor
    imaginary: Tensor

    def times(self, other: ComplexPair) -> ComplexPair:
        """The product."""
        return ComplexPair(
            self.real * other.real - self.imaginary * other.imaginary,
            self.real * other.imaginary + self.imaginary * other.real,
        )


class StateSpaceBlock(nn.Module):
    """Layer norm, state space, GELU, gated linear unit; added to the input.

    Source:
        Smith et al. 2023, S5, with its full gated linear unit; no dropout.
    """

    def __init__(self, n_features: int, n_states: int, resets: str) -> None:
        super().__init__()
        self.norm = ChannelNorm(n_features)
        self.space = StateSpace(n_features, n_states, resets)
        self.value = nn.Linear(n_features, n_features)
        self.gate = nn.Linear(n_features, n_features)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.space(self.norm(x))).movedim(1, -1)
        return x + (self.value(hidden) * self.gate(hidden).sigmoid()).movedim(-1, 1)


class StateSpace(nn.Module):
    """A linear state space along every axis of a map: x' = Λx + Bu, y = 2 Re(Cx) + Du, forwards and backwards.

    The map is read in raster order once for each axis, with that axis fastest; states of all orders and both directions
    are averaged over the orders. Weights are shared by the orders, Λ and B by the directions. All is float32, also
    under autocast: powers of numbers near 1 need it. Re Λ is kept as a logarithm, so that states always decay.

    Args:
        n_features: Channels.
        n_states: Complex states; their conjugates are left out.
        resets: row, slice or volume, at whose ends states are reset.

    Source:
        Smith et al. 2023, S5: diagonal Λ of the normal part of HiPPO-LegS, held input (zero-order hold), a step for
        each state. Resets: Lu et al. 2023, arXiv 2303.03982. Ours: several axes.
    """

    def __init__(self, n_features: int, n_states: int, resets: str) -> None:
        super().__init__()
        eigenvalues, vectors = hippo_eigenvalues(n_states)
        basis = torch.tensor(vectors, dtype=torch.complex64)
        steps = torch.empty(n_states).uniform_(math.log(_SHORTEST_STEP), math.log(_LONGEST_STEP))
        inward = basis.mH @ torch.randn(2 * n_states, n_features).div(n_features**0.5).to(basis.dtype)
        both = [torch.randn(n_features, 2 * n_states, dtype=basis.dtype) / n_states**0.5 @ basis for _ in range(2)]
        outward = torch.cat(both, 1)
        self.log_decay = nn.Parameter(torch.tensor(-eigenvalues.real, dtype=torch.float32).log())
        self.frequency = nn.Parameter(torch.tensor(eigenvalues.imag, dtype=torch.float32))
        self.log_step = nn.Parameter(steps)
        self.inward = nn.Parameter(torch.stack([inward.real, inward.imag]))
        # (2, C, P of both directions): with an axis for directions, torch would take it for a kernel of 2D
        self.outward = nn.Parameter(torch.stack([outward.real, outward.imag]))
        self.direct = nn.Parameter(torch.randn(n_features))
        self.resets = resets

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type if is_autocast_available(x.device.type) else "cpu"  # meta has none
        with torch.autocast(device, enabled=False):
            result = self._respond(x.float().movedim(1, -1))
        return result.movedim(-1, 1).to(x.dtype)

    def discrete(self) -> tuple[ComplexPair, ComplexPair]:
        """exp(Λ dt) and (exp(Λ dt) - 1) / Λ, (P,) each."""
        step, decay = self.log_step.exp(), self.log_decay.exp()
        shrink, angle = torch.expm1(-decay * step), self.frequency * step
        power = ComplexPair((shrink + 1) * angle.cos(), (shrink + 1) * angle.sin())
        below_one = shrink * angle.cos() - 2 * (angle / 2).sin().square()  # Re(power) - 1 without cancellation
        size = decay.square() + self.frequency.square()
        inverse = ComplexPair(-decay / size, -self.frequency / size)
        return power, ComplexPair(below_one, power.imaginary).times(inverse)

    def _respond(self, u: Tensor) -> Tensor:
        """The outputs to inputs (B, [Z,] Y, X, C)."""
        power, held = self.discrete()
        held = ComplexPair(held.real[:, None], held.imaginary[:, None])
        inward = held.times(ComplexPair(*self.inward))
        driven = ComplexPair(u @ inward.real.T, u @ inward.imaginary.T)
        states = [self._along(axis, driven, power) for axis in range(u.ndim - 2)]
        mean = ComplexPair(*(torch.stack(parts).mean(0) for parts in zip(*states, strict=True)))
        real, imaginary = self.outward
        return self.direct * u + 2 * (mean.real @ real.T - mean.imaginary @ imaginary.T)

    def _along(self, axis: int, driven: ComplexPair, power: ComplexPair) -> ComplexPair:
        """States of each voxel forwards and backwards, (B, [Z,] Y, X, 2P), with this axis fastest.

        The other axes precede it in a cycle, so that each plane is the slices of one order.
        """
        n_axes = driven.real.ndim - 2
        order = [0, *(1 + (axis + step) % n_axes for step in range(1, 1 + n_axes)), 1 + n_axes]
        moved = [part.permute(order) for part in driven]
        shape = moved[0].shape[1:-1]
        length = {"row": shape[-1], "slice": math.prod(shape[-2:]), "volume": math.prod(shape)}[self.resets]
        sequences = [torch.cat([part, part.flip(1)]) for part in (part.flatten(1, -2) for part in moved)]
        starts_L = torch.arange(sequences[0].shape[1], device=power.real.device) % length == 0
        found = scan(ComplexPair(*sequences), power, starts_L, length)
        halves = (part.chunk(2) for part in found)
        states = (torch.cat([forward, backward.flip(1)], 2) for forward, backward in halves)
        back = [order.index(place) for place in range(len(order))]
        return ComplexPair(*(part.unflatten(1, shape).permute(back) for part in states))  # type: ignore[no-untyped-call]


def scan(driven_BLP: ComplexPair, power_P: ComplexPair, starts_L: Tensor, longest: int) -> ComplexPair:
    """States s[t] = power · s[t - 1] + driven[t], where s[t - 1] is 0 at the start of a sequence.

    Args:
        driven_BLP: What enters each state at each step.
        power_P: Factor of each state at a step.
        starts_L: bool, True where a sequence starts: its own input is kept, what was before is not.
        longest: Steps of the longest sequence, or more; the work grows with its logarithm.

    Source:
        Hillis and Steele 1986: spans double. Equal to the associative scan with resets of Lu et al. 2023.
    """
    states, sequence_L = driven_BLP, starts_L.cumsum(0)
    span, n_steps = 1, len(starts_L)
    while span < min(longest, n_steps):
        is_same = (sequence_L[span:] == sequence_L[:-span]).to(states.real.dtype)[:, None]
        earlier = (functional.pad(part[:, :-span] * is_same, (0, 0, span, 0)) for part in states)
        carried = power_P.times(ComplexPair(*earlier))
        states = ComplexPair(states.real + carried.real, states.imaginary + carried.imaginary)
        power_P, span = power_P.times(power_P), 2 * span
    return states


def hippo_eigenvalues(n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues with positive imaginary part of the normal part of HiPPO-LegS with 2P states, and their vectors.

    Args:
        n_states: P.

    Returns:
        (P,) complex, all real parts -1/2, and (2P, P) complex of norm 1; the first entry of each vector is positive,
        which makes them the same with every library.

    Source:
        Gu et al. 2022, S4D, normal plus low rank form: A + ppᵀ with p[n] = √(n + 1/2).
    """
    index = np.arange(2 * n_states)
    root = np.sqrt(2 * index + 1.0)
    legs = np.diag(index.astype(float)) - np.tril(np.outer(root, root))
    normal = legs + np.outer(root, root) / 2
    values, vectors = np.linalg.eigh(-1j * normal)  # the normal part is -1/2 and what is skew-symmetric
    values, vectors = values[n_states:], vectors[:, n_states:]
    return -0.5 + 1j * values, vectors * (np.abs(vectors[0]) / vectors[0])


def _state_spaces(make: Layers, n_features: int) -> nn.Module:
    return StateSpaceBlock(n_features, make.parts.mixer_states, make.parts.mixer_resets)


def _convmixer(make: Layers, n_features: int) -> nn.Module:
    return ConvMixerBlock(make, n_features, (make.parts.mixer_kernel,) * make.n_axes)


_MIXER_MAKERS: dict[str, Callable[[Layers, int], nn.Module]] = {"s5": _state_spaces, "convmixer": _convmixer}
MAKE_MIXER = functions_for(BOTTLENECK_MIXERS, _MIXER_MAKERS, "BOTTLENECK_MIXERS of networks/parts.py")


def bottleneck_mixing(make: Layers, n_features: int) -> BlockStage:
    """The spec's attention and then its mixer; nothing if it has neither."""
    parts, blocks = make.parts, nn.ModuleList()
    if parts.bottleneck_attention is not None:
        blocks += [AttentionBlock(make, n_features) for _ in range(parts.bottleneck_attention_blocks)]
    if parts.bottleneck_mixer is not None:
        blocks += [MAKE_MIXER[parts.bottleneck_mixer](make, n_features) for _ in range(parts.mixer_blocks)]
    return BlockStage(blocks, checkpointing=parts.checkpointing)
