"""A network in a canonical frame: its image is turned, scaled or shifted first, and its logits are put back."""

# B batch, C channels, F features, K transforms, N axes of the image (Y X or Z Y X), P points of an axis.
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import Layers
from segpipe.networks.canonical_transforms import TRANSFORMS, Coordinates, canonical_coordinates
from segpipe.networks.spec import NetworkSpec

_POINTS = 32  # along each coordinate: 11° of a circle
_KERNEL, _STRIDE = 5, 2
_FEATURES = 16
_LEAST_RADIUS, _LARGEST_RADIUS = 0.1, math.sqrt(2)  # of the shorter half edge; √2 reaches the corners of a square
_HALF_RANGE = {  # of a coordinate, in the unit of its transform: radians, logarithm of a factor, half edges
    "angle": math.pi,
    "log_radius": math.log(_LARGEST_RADIUS / _LEAST_RADIUS) / 2,
    "log": math.log(1 / _LEAST_RADIUS) / 2,
    "linear": 1.0,
}


class Canonicalised(nn.Module):
    """A network that sees its image in a canonical frame; its logits are in the image's own.

    A small network predicts from the image in canonical coordinates where the transforms of `spec.parts.canonicalise`
    have taken it. The image is resampled so that this is undone, and all logits are resampled back. Both are about the
    centre of the patch. What leaves the frame is cut off, and its logits are those at the border.

    Args:
        network: Gives logits for (B, C, [Z,] Y, X).
        spec: Its own.
        n_channels: Channels of the image.

    Source:
        Tai et al. 2019, Equivariant Transformer Networks. There chains of transforms, in 2D, for classification; here
        one set that commutes, in 2D and 3D, and the result is put back.
    """

    def __init__(self, network: nn.Module, spec: NetworkSpec, n_channels: int) -> None:
        super().__init__()
        self.network = network
        self.names = spec.parts.canonicalise
        self.coordinates = canonical_coordinates(self.names, spec.n_axes)
        self.locate = Locator(Layers(spec.n_axes, spec.parts), self.coordinates, n_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits for each resolution, as the network gives them."""
        edges = edge_ratios(self.coordinates, x.shape[2:])
        amounts_BK = self.locate(canonical_image(x, self.coordinates))
        there, back = (transform_matrices(self.names, sign * amounts_BK, len(edges)) for sign in (1, -1))
        outputs = self.network(warp(x, there, edges).to(x.dtype))
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        return [warp(output, back, edges).to(output.dtype) for output in outputs]


class Locator(nn.Module):
    """Predicts how far an image lies along canonical coordinates, (B, K), in the unit of each transform.

    Convolutions that wrap around where a coordinate does move with the image; the maximum over the other coordinates
    leaves a profile, and the mean place under its softmax is the prediction. So an image that is transformed by some
    amount changes the prediction by that amount, to the step of the profile.
    """

    def __init__(self, make: Layers, coordinates: Coordinates, n_channels: int) -> None:
        super().__init__()
        self.entries = coordinates.entries
        n_in = n_channels * 2 ** sum(entry.kind == "log" for entry in self.entries)
        self.layers = nn.ModuleList(
            nn.Sequential(
                make.convolution(n_before, _FEATURES, (_KERNEL,) * make.n_axes, _STRIDE, is_padded=False),
                make.norm(_FEATURES),
                nn.LeakyReLU(0.1),
            )
            for n_before in (n_in, _FEATURES)
        )
        self.moved = [place for place, entry in enumerate(self.entries) if entry.transform is not None]
        self.profiles = nn.ModuleList(nn.Conv1d(_FEATURES, 1, _KERNEL) for _ in self.moved)
        self.offset = nn.Parameter(torch.zeros(len(self.moved)))

    def forward(self, image: Tensor) -> Tensor:
        features = image
        for layer in self.layers:
            features = layer(self._pad(features, range(len(self.entries))))
        return torch.stack([self._amount(index, features.float()) for index in range(len(self.moved))], 1)

    def _amount(self, index: int, features: Tensor) -> Tensor:
        place = self.moved[index]
        kind = self.entries[place].kind
        others = tuple(axis + 2 for axis in range(len(self.entries)) if axis != place)
        profile_BFP = self._pad(features.amax(others) if others else features, [place])
        weights_BP = self.profiles[index](profile_BFP).squeeze(1).float().softmax(1)
        n = weights_BP.shape[1]
        centres_P = torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=weights_BP.device)
        offset = self.offset[index].tanh()
        if kind == "angle":
            sine, cosine = ((weights_BP * f(math.pi * centres_P)).sum(1) for f in (torch.sin, torch.cos))
            return torch.atan2(sine, cosine) + math.pi * offset
        return _HALF_RANGE[kind] * ((weights_BP * centres_P).sum(1) + offset)

    def _pad(self, x: Tensor, places: Sequence[int]) -> Tensor:
        """Two more values at each end of the axes, which are these coordinates: those of the other end, or zeros."""
        around, zeros = [], []
        for place in reversed(places):
            wraps = self.entries[place].kind == "angle"
            around += [_KERNEL // 2 if wraps else 0] * 2
            zeros += [0 if wraps else _KERNEL // 2] * 2
        x = functional.pad(x, around, mode="circular") if any(around) else x
        return functional.pad(x, zeros)


def canonical_image(x: Tensor, coordinates: Coordinates) -> Tensor:
    """The image at equal steps of canonical coordinates, (B, C', P, …), float32, 0 outside the patch.

    C' is C, or for coordinates along axes C for each side of the centre.
    """
    points_PN = _points(coordinates, x.device)
    ratios = torch.tensor(edge_ratios(coordinates, x.shape[2:]), device=x.device)
    sides = list(product(*((1.0, -1.0) if entry.kind == "log" else (1.0,) for entry in coordinates.entries)))
    images = []
    for signs in sides:
        grid = (points_PN * torch.tensor(signs, device=x.device) if len(sides) > 1 else points_PN) / ratios
        images.append(_sample(x.float(), grid.flip(-1).expand(len(x), *grid.shape), "zeros"))
    return torch.cat(images, 1)


def edge_ratios(coordinates: Coordinates, shape: Sequence[int]) -> list[float]:
    """Half edges of the patch as multiples of the unit of each axis.

    The unit is the axis's half edge; in the plane of a rotation, where both must be alike, the shorter of the two.
    """
    if coordinates.family == "axes":
        return [1.0] * len(shape)
    axis = coordinates.axis - (3 - len(shape))
    plane = [place for place in range(len(shape)) if place != axis]
    unit = min(shape[place] for place in plane)
    return [size / unit if place in plane else 1.0 for place, size in enumerate(shape)]


def transform_matrices(names: Sequence[str], amounts_BK: Tensor, n_axes: int) -> Tensor:
    """Matrices (B, N, N + 1) of the transforms together, for points (…, y, x) in the unit of each axis."""
    linear = amounts_BK.new_ones(n_axes).diag().expand(len(amounts_BK), -1, -1)
    logarithms, shifts = amounts_BK.new_zeros(2, len(names), n_axes)
    for k, name in enumerate(names):
        row, first = TRANSFORMS[name], 3 - n_axes
        for axis in row.scales:
            if axis >= first:
                logarithms[k, axis - first] = 1
        if row.shifts is not None:
            shifts[k, row.shifts - first] = 1
        if row.plane is not None:
            i, j = (axis - first for axis in row.plane)
            inside, turn = amounts_BK.new_zeros(2, n_axes, n_axes)
            inside[i, i] = inside[j, j] = turn[i, j] = 1
            turn[j, i] = -1
            angle = amounts_BK[:, k, None, None]
            linear = linear - inside + angle.cos() * inside + angle.sin() * turn
    factors_BN = (amounts_BK[:, :, None] * logarithms).sum(1).exp()
    moved_BN = (amounts_BK[:, :, None] * shifts).sum(1)
    return torch.cat([linear * factors_BN[:, None], moved_BN[..., None]], 2)


def warp(x: Tensor, matrices: Tensor, ratios: Sequence[float]) -> Tensor:
    """The map whose value at p is that of `x` at the transformed p, linearly interpolated, float32.

    Args:
        x: (B, C, [Z,] Y, X).
        matrices: Of `transform_matrices`.
        ratios: Of `edge_ratios`.
    """
    edges = torch.tensor(ratios, device=matrices.device, dtype=matrices.dtype)
    columns = torch.cat([edges, edges.new_ones(1)])
    own = matrices * columns / edges[:, None]
    middles = [torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=x.device) for n in x.shape[2:]]
    points = [m[None] for m in torch.meshgrid(*middles, indexing="ij")]
    rows = []
    for row_BN in own.float().unbind(1):  # sums and not a matrix product, which autocast would compute in 8 bits
        *factors, moved = (value.view(-1, *(1,) * len(points)) for value in row_BN.unbind(1))
        rows.append(sum((f * p for f, p in zip(factors, points, strict=True)), moved))
    return _sample(x.float(), torch.stack(rows[::-1], -1), "border")  # torch's points are (x, y, z)


def _sample(x: Tensor, grid: Tensor, outside: str) -> Tensor:
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def _points(coordinates: Coordinates, device: torch.device) -> Tensor:
    """Points (P, …, N) at equal steps of the coordinates, (…, y, x) in the unit of each axis."""
    steps = [_steps(entry.kind, device) for entry in coordinates.entries]
    mesh = torch.meshgrid(*steps, indexing="ij")
    if coordinates.family == "axes":
        kinds = [entry.kind for entry in coordinates.entries]
        return torch.stack([m.exp() if kind == "log" else m for m, kind in zip(mesh, kinds, strict=True)], -1)
    angle, radius = mesh[0], mesh[1].exp()
    if len(mesh) == 2:
        return torch.stack([radius * angle.sin(), radius * angle.cos()], -1)
    if coordinates.family == "sphere":
        along, radius = radius * mesh[2].cos(), radius * mesh[2].sin()
    else:
        along = mesh[2]
    in_plane = [radius * angle.sin(), radius * angle.cos()]
    in_plane.insert(coordinates.axis, along)
    return torch.stack(in_plane, -1)


def _steps(kind: str, device: torch.device) -> Tensor:
    """Values of a coordinate at the middle of equal steps."""
    ends = {
        "angle": (-math.pi, math.pi),
        "log_radius": (math.log(_LEAST_RADIUS), math.log(_LARGEST_RADIUS)),
        "polar": (0.0, math.pi),
        "log": (math.log(_LEAST_RADIUS), 0.0),
        "linear": (-1.0, 1.0),
    }
    low, high = ends[kind]
    half = (high - low) / (2 * _POINTS)
    return torch.linspace(low + half, high - half, _POINTS, device=device)
