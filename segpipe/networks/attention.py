"""Self-attention between all voxels of the deepest map, with relative positions and a mask by distance; 2D and 3D."""

# B batch, H heads, N voxels of a map in raster order, D channels of a head. Maps are (B, C, Z, Y, X) or (B, C, Y, X).
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import Layers
from segpipe.networks.parts import BOTTLENECK_ATTENTIONS, BOTTLENECK_MASKS, Parts

_TINY_VARIANCE = 1e-5  # the authors': a Gaussian of width 0 stays finite
_WIDTH_MEAN, _WIDTH_SD, _WEIGHT_SD = 10.0, 10.0, 2.0  # of new masks, the authors'


class AttentionBlock(nn.Module):
    """1×1×1 unit, attention, norm, activation, 1×1×1 convolution and norm; added to the input.

    Begins as the identity. Differs from the authors' block of a ResNet: it keeps all channels, since a U-Net's deepest
    stage has few, and has no activation behind the addition, which would change what the stage above has trained for.

    Source:
        Srinivas et al. 2021, Bottleneck Transformers for Visual Recognition.
    """

    def __init__(self, make: Layers, n_features: int) -> None:
        super().__init__()
        self.reduce = make.unit(n_features, n_features, (1,) * make.n_axes)
        self.attention = MAKE_ATTENTION[str(make.parts.bottleneck_attention)](n_features, make.parts)
        self.norm = make.norm(n_features)
        self.nonlin = make.activation()
        self.project = make.linear_unit(n_features, n_features, 1, bias=False)
        for values in self.project[1].parameters():
            nn.init.zeros_(values)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.nonlin(self.norm(self.attention(self.reduce(x)))))


class SelfAttention(nn.Module):
    """Each voxel becomes a mean of all voxels' values, weighted by the softmax of its logits.

    Args:
        n_features: Channels, a multiple of the number of heads.
        n_heads: Heads.
        positions: Logits of relative positions, from queries; None for none.
        scales_positions: Whether these queries are divided by √D too.
        mask: Changes the logits before the softmax; None for none.

    Source:
        Vaswani et al. 2017; with `positions` equal to timm's BottleneckAttn in 2D. The softmax is float32 under
        autocast on every device.
    """

    def __init__(
        self,
        n_features: int,
        n_heads: int,
        positions: RelativePositions | None = None,
        *,
        scales_positions: bool = False,
        mask: GaussianMixtureMask | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.scale = n_heads, (n_features // n_heads) ** -0.5
        self.qkv = nn.Linear(n_features, 3 * n_features, bias=False)
        nn.init.trunc_normal_(self.qkv.weight, std=n_features**-0.5)
        self.positions, self.scales_positions, self.mask = positions, scales_positions, mask

    def forward(self, x: Tensor) -> Tensor:
        edges = x.shape[2:]
        parts = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, self.n_heads, -1))
        queries_BHND, keys_BHND, values_BHND = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights_BHNN = self.logits(queries_BHND, keys_BHND, edges).float().softmax(-1)
        seen_BHND = weights_BHNN.to(values_BHND.dtype) @ values_BHND
        return seen_BHND.transpose(2, 3).flatten(1, 2).unflatten(2, edges)

    def logits(self, queries_BHND: Tensor, keys_BHND: Tensor, edges: Sequence[int]) -> Tensor:
        """Logits (B, H, N, N): of each voxel, a row."""
        scaled_BHND = queries_BHND * self.scale
        logits_BHNN = scaled_BHND @ keys_BHND.transpose(2, 3)
        if self.positions is not None:
            asking = scaled_BHND if self.scales_positions else queries_BHND
            logits_BHNN = logits_BHNN + self.positions(asking, edges)
        return logits_BHNN if self.mask is None else self.mask(logits_BHNN, edges)


class RelativePositions(nn.Module):
    """Logits from queries and the distance along each axis in voxels: query · Σ over axes of table[distance].

    Args:
        map_size: Edges of the map for which the tables are made: 2 · edge - 1 rows each, shared by all heads.
        n_head_features: Channels of a head.

    Source:
        Shaw et al. 2018 and Ramachandran et al. 2019 as in BoTNet, here with three axes. Ours: another map interpolates
        the tables linearly, so that the greatest distances keep their rows.
    """

    def __init__(self, map_size: Sequence[int], n_head_features: int) -> None:
        super().__init__()
        std = n_head_features**-0.5
        self.tables = nn.ParameterList(torch.randn(2 * edge - 1, n_head_features) * std for edge in map_size)

    def forward(self, queries_BHND: Tensor, edges: Sequence[int]) -> Tensor:
        """Logits (B, H, N, N) for a map with these edges."""
        n_axes, total = len(edges), None
        queries = queries_BHND.reshape(*queries_BHND.shape[:2], *edges, -1)
        for axis, table in enumerate(self.tables):
            rows = toeplitz(resized_table(table, edges[axis]).T, (edges[axis],))  # (D, from, to)
            along = torch.einsum("...id,dij->...ij", queries.movedim(2 + axis, -2), rows).movedim(-2, 2 + axis)
            along = along.reshape(*along.shape[:-1], *(edge if a == axis else 1 for a, edge in enumerate(edges)))
            total = along if total is None else total + along
        assert total is not None
        return total.flatten(2 + n_axes).flatten(2, 1 + n_axes)


def resized_table(table: Tensor, edge: int) -> Tensor:
    """Rows (2 · edge - 1, D) of a table made for another edge, interpolated; its middle row stays in the middle."""
    n_rows, middle = 2 * edge - 1, len(table) // 2
    if len(table) == n_rows:
        return table
    if edge == 1:
        return table[middle : middle + 1]
    return functional.interpolate(table.T[None], n_rows, mode="linear", align_corners=True)[0].T


def toeplitz(of_distance: Tensor, edges: Sequence[int]) -> Tensor:
    """Values by pair of voxels from values by distance.

    Args:
        of_distance: (K, 2 · edge - 1 for each axis); distance 0 is in the middle.
        edges: Of the map.

    Returns:
        (K, N, N): entry [k, i, j] has the distance j - i along each axis.
    """
    n_axes, windows = len(edges), of_distance
    for axis, edge in enumerate(edges, 1):
        windows = windows.unfold(axis, edge, 1)
    return windows.flip(tuple(range(1, 1 + n_axes))).flatten(1 + n_axes).flatten(1, n_axes)


class GaussianMixtureMask(nn.Module):
    """Changes logits by M = Σ over k of weight · exp(-d² / 2(σ² + 1e-5)), with weights and widths σ for each head.

    d is the distance in mm divided by the voxel's shortest edge, which is the unit of σ: with equal edges those are the
    authors' voxels. multiply gives logits · M; log_add gives logits + log M, whose weights are kept as logarithms.

    Args:
        n_heads: Heads.
        n_components: Gaussians of each head.
        spacing_mm: Edges of a voxel of the map.
        form: multiply or log_add.

    Source:
        Li and Zhang 2024, RetNet viewed through convolution, arXiv 2309.05375. Its code takes powers of exp(-d²), which
        is 0 in float32 beyond 10 voxels for every σ; here the exponent is computed as a whole. log_add is ours.
    """

    def __init__(self, n_heads: int, n_components: int, spacing_mm: Sequence[float], form: str) -> None:
        super().__init__()
        self.squares = tuple((edge / min(spacing_mm)) ** 2 for edge in spacing_mm)
        self.form = form
        self.width = nn.Parameter(_WIDTH_MEAN + _WIDTH_SD * torch.randn(n_heads, n_components))
        new = _WEIGHT_SD * torch.randn(n_heads, n_components)
        self.weight = nn.Parameter(new if form == "multiply" else torch.full_like(new, -math.log(n_components)))

    def forward(self, logits_BHNN: Tensor, edges: Sequence[int]) -> Tensor:
        mask_HNN = toeplitz(self.of_distance(edges), edges)
        return logits_BHNN.float() * mask_HNN if self.form == "multiply" else logits_BHNN.float() + mask_HNN

    def of_distance(self, edges: Sequence[int]) -> Tensor:
        """M, or its logarithm for log_add, (H, 2 · edge - 1 for each axis), float32."""
        n_axes, distances = len(edges), self.width.new_zeros(())
        for axis, (edge, square) in enumerate(zip(edges, self.squares, strict=True)):
            steps = torch.arange(1 - edge, edge, device=self.width.device, dtype=self.width.dtype)
            distances = distances + square * steps.square().reshape(-1, *(1,) * (n_axes - 1 - axis))
        shape = (*self.width.shape, *(1,) * n_axes)
        exponents = -distances / (2 * (self.width.square() + _TINY_VARIANCE)).reshape(shape)
        weights = self.weight.reshape(shape)
        if self.form == "multiply":
            return (weights * exponents.exp()).sum(1)
        return torch.logsumexp(weights + exponents, 1)


def _mask(n_heads: int, parts: Parts) -> GaussianMixtureMask | None:
    return MAKE_MASK[parts.bottleneck_mask](n_heads, parts) if parts.bottleneck_mask else None


def _gaussian_mixture(n_heads: int, parts: Parts) -> GaussianMixtureMask:
    assert parts.bottleneck_spacing_mm is not None  # the spec's validator
    return GaussianMixtureMask(
        n_heads, parts.bottleneck_mask_components, parts.bottleneck_spacing_mm, parts.bottleneck_mask_form
    )


def _botnet(n_features: int, parts: Parts) -> SelfAttention:
    assert parts.bottleneck_map_zyx is not None  # the spec's validator
    n_heads = parts.bottleneck_heads
    return SelfAttention(
        n_features,
        n_heads,
        RelativePositions(parts.bottleneck_map_zyx, n_features // n_heads),
        scales_positions=parts.bottleneck_position_scaling == "scaled",
        mask=_mask(n_heads, parts),
    )


def _content(n_features: int, parts: Parts) -> SelfAttention:
    return SelfAttention(n_features, parts.bottleneck_heads, mask=_mask(parts.bottleneck_heads, parts))


_MASK_MAKERS: dict[str, Callable[[int, Parts], GaussianMixtureMask]] = {"gaussian_mixture": _gaussian_mixture}
MAKE_MASK = functions_for(BOTTLENECK_MASKS, _MASK_MAKERS, "BOTTLENECK_MASKS of networks/parts.py")
_ATTENTION_MAKERS: dict[str, Callable[[int, Parts], SelfAttention]] = {"botnet": _botnet, "content": _content}
MAKE_ATTENTION = functions_for(BOTTLENECK_ATTENTIONS, _ATTENTION_MAKERS, "BOTTLENECK_ATTENTIONS of networks/parts.py")
