"""The random numbers of augmentation, drawn on the CPU; `apply` applies them, on the images' device.

Source: nnU-Net's list of transforms and their distributions (batchgeneratorsv2 0.3.6). The elastic deformation is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX
from segpipe.core.labels import IGNORE_INDEX
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.laterality import sideways_axis, swapped_indices
from segpipe.plan.schema import Configuration, Plan
from segpipe.train.augmentation.local import LocalChange, draw_local
from segpipe.train.cascade import Change, draw_changes

Array = NDArray[np.float32]

_FLAT_RATIO = 3  # a patch this much flatter than long is turned in-plane only
_LONG_RATIO = 1.5  # a slice this much longer than wide is turned little
_ROOM = 0.85  # the region is larger by this, so that a patch that sees more than its extent finds voxels
_CHANNEL_SHARE = 0.5  # of the channels of a chosen sample that are blurred, or made coarse
_CONTROL_CELLS = 4  # of the elastic deformation along an axis
_SPLINE_MARGIN = 3  # control points of a cubic spline beyond its cells


@dataclass(frozen=True)
class Scope:
    """The part of augmentation that a plan fixes for every batch.

    Args:
        augmentation: Probabilities and ranges.
        patch_zyx: Voxels of the result.
        mirror_axes: Axes that may be mirrored.
        side_axis: The axis from one side of the body to the other.
        swapped: What each inside label 0, 1, … becomes when that axis is mirrored.
        masked_channels: Channels that are 0 outside the body and stay so.
        values: Inside labels that may occur besides background, in ascending order.
        n_guides: Labels that guide a cascade; 0 outside of one.
    """

    augmentation: Augmentation
    patch_zyx: ZYX
    mirror_axes: tuple[int, ...]
    side_axis: int
    swapped: tuple[int, ...]
    masked_channels: tuple[int, ...]
    values: tuple[int, ...]
    n_guides: int = 0

    @cached_property
    def region_zyx(self) -> ZYX:
        """Voxels that a moved patch may see, see `region_for`."""
        return region_for(self.patch_zyx, self.augmentation)

    @property
    def is_flat(self) -> bool:
        """Return whether patches are turned, scaled and made coarse in-plane only."""
        return is_flat(self.patch_zyx)


def scope_of(plan: Plan, configuration: Configuration) -> Scope:
    """Return what a plan fixes for the augmentation of a configuration."""
    swapped = swapped_indices(plan.labels, plan.mirror_swaps)
    ignored = () if plan.labels.ignore_value is None else (IGNORE_INDEX,)
    return Scope(
        augmentation=plan.training.augmentation,
        patch_zyx=configuration.patch_zyx,
        mirror_axes=tuple(a for a in plan.mirror_axes if configuration.patch_zyx[a] > 1),  # a slice has no other side
        side_axis=sideways_axis(plan.orientation, plan.axis_order),
        swapped=swapped,
        masked_channels=tuple(c for c, scheme in enumerate(plan.normalisation) if scheme.within_nonzero),
        values=(*ignored, *range(1, len(swapped))),
        n_guides=plan.n_inputs(configuration) - len(plan.channels),
    )


@dataclass(frozen=True, eq=False)
class Draws:
    """The numbers of one batch, as numpy arrays.

    Args:
        turns: (B, 3, 3) from output to input offsets in voxels; identity where nothing turns.
        controls: (B, 3, M, M, M) displacements of control points in voxels, before the turn; None if no sample has any.
            M is 1 along Z if the displacement is the same in every plane.
        is_moved: (B,) bool: turned, scaled or deformed.
        mirrored: (B, 3) bool.
        noise_std: (B,) 0 where none.
        blur_vox: (B, C, 3) 0 where none.
        brightness, contrast, gamma, gamma_inverted, lowres_zoom: (B, C) 1 where none.
        noise_seeds: (B,) of each sample's noise field, which differs between kinds of device.
        guide_changes: Of each sample; empty outside a cascade.
        local_changes: Of each sample; empty if the plan has none.
    """

    turns: Array
    controls: Array | None
    is_moved: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    noise_std: Array
    blur_vox: Array
    brightness: Array
    contrast: Array
    lowres_zoom: Array
    gamma_inverted: Array
    gamma: Array
    noise_seeds: NDArray[np.int64]
    guide_changes: tuple[tuple[Change, ...], ...] = ()
    local_changes: tuple[tuple[LocalChange, ...], ...] = ()

    def part(self, number: int, n_parts: int) -> Draws:
        """Every `n_parts`-th sample from `number` on."""

        def choose(rows: Any) -> Any:
            return None if rows is None else rows[number::n_parts]

        return Draws(**{field.name: choose(getattr(self, field.name)) for field in fields(self)})


def is_flat(patch_zyx: ZYX) -> bool:
    """Return whether a patch is turned in-plane only."""
    return patch_zyx[0] == 1 or max(patch_zyx) / patch_zyx[0] > _FLAT_RATIO


def largest_angle(augmentation: Augmentation, patch_zyx: ZYX) -> float:
    """Return the largest angle in degrees, about each axis that a patch is turned about."""
    if not is_flat(patch_zyx):
        return augmentation.rotation_degrees
    if patch_zyx[0] == 1 and max(patch_zyx) / min(patch_zyx[1:]) > _LONG_RATIO:
        return augmentation.rotation_long_degrees
    return augmentation.rotation_flat_degrees


def region_for(patch_zyx: ZYX, augmentation: Augmentation) -> ZYX:
    """Voxels that a patch may see, so that a moved one finds image in its corners.

    Every edge holds the patch turned by the largest angle (90° if that is more) about any one axis, and room for
    scaling. What a patch sees beyond is 0, and background.

    Source:
        nnU-Net's get_patch_size, which turns in one direction only.
    """
    if not augmentation.moves:
        return patch_zyx
    z, y, x = patch_zyx
    flat = is_flat(patch_zyx)
    angle = np.deg2rad(min(largest_angle(augmentation, patch_zyx), 90))
    corners = np.array([(i, j, k) for i in (-z, z) for j in (-y, y) for k in (-x, x)], np.float64)
    turned = [corners @ _rotation(axis, sign * angle).T for axis in _turn_axes(flat) for sign in (-1, 1)]
    reach = np.abs(np.concatenate([corners, *turned])).max(axis=0) / _ROOM
    edges = np.ceil(np.round(reach, 6)).astype(int).tolist()
    return (z if flat else edges[0], edges[1], edges[2])


def edges_to_cut(draws: Draws, scope: Scope) -> list[ZYX]:
    """Return what must be cut of each sample, about the middle of its patch: the patch, or what a moved one looks up.

    Returns:
        Edges in voxels: `scope.region_zyx` or less by an even number, so that both have the same middle.
    """
    far = np.repeat([np.array(scope.patch_zyx) / 2], len(draws.turns), 0)
    if draws.controls is not None:
        far = far + np.abs(draws.controls).max(axis=(2, 3, 4))
    seen = np.einsum("nij,nj->ni", np.abs(draws.turns), far)
    needed = np.ceil(2 * seen).astype(int) + 2  # the voxels on either side
    region = np.array(scope.region_zyx)
    edges = region - 2 * np.maximum((region - needed) // 2, 0)
    if scope.is_flat:
        edges[:, 0] = scope.patch_zyx[0]
    edges[~draws.is_moved] = scope.patch_zyx
    return [(z, y, x) for z, y, x in edges.tolist()]


def draw(scope: Scope, n_samples: int, n_channels: int, generator: np.random.Generator) -> Draws:
    """Draw the numbers for a batch; `generator` is the source of all randomness."""
    chances, shape = scope.augmentation, (n_samples, n_channels)
    rotates, scales, deforms, noisy = (
        generator.random(n_samples) < p
        for p in (chances.p_rotation, chances.p_scale, chances.p_elastic, chances.p_noise)
    )
    turns = [
        _draw_rotation(scope, generator, is_drawn=bool(r)) @ np.diag(_draw_scales(scope, generator, is_drawn=bool(s)))
        for r, s in zip(rotates, scales, strict=True)
    ]
    quarters = np.zeros(n_samples, np.bool_)
    if chances.p_quarter_turn and (axes := _square_axes(scope)):
        quarters = generator.random(n_samples) < chances.p_quarter_turn
        turns = [t @ _quarter_turn(axes, generator) if q else t for t, q in zip(turns, quarters, strict=True)]
    mirrored = np.zeros((n_samples, 3), np.bool_)
    mirrored[:, list(scope.mirror_axes)] = generator.random((n_samples, len(scope.mirror_axes))) < chances.p_mirror
    blurs = _draw_channels(generator, chances.p_blur, shape, _CHANNEL_SHARE)[..., None]
    coarse = _draw_channels(generator, chances.p_lowres, shape, _CHANNEL_SHARE)
    return Draws(
        turns=np.stack(turns).astype(np.float32),
        controls=_draw_controls(scope, deforms, generator) if deforms.any() else None,
        is_moved=rotates | scales | deforms | quarters,
        mirrored=mirrored,
        noise_std=np.where(noisy, generator.uniform(0, chances.noise_std, n_samples), 0).astype(np.float32),
        blur_vox=np.where(blurs, generator.uniform(*chances.blur_vox, (*shape, 3)), 0).astype(np.float32),
        brightness=_draw_factors(generator, chances.p_brightness, chances.brightness, shape),
        contrast=_draw_factors(generator, chances.p_contrast, chances.contrast, shape),
        lowres_zoom=np.where(coarse, generator.uniform(*chances.lowres_zoom, shape), 1).astype(np.float32),
        gamma_inverted=_draw_factors(generator, chances.p_gamma_inverted, chances.gamma, shape),
        gamma=_draw_factors(generator, chances.p_gamma, chances.gamma, shape),
        noise_seeds=generator.integers(2**31, size=n_samples),
        guide_changes=draw_changes(chances, n_samples, scope.n_guides, generator) if scope.n_guides else (),
        local_changes=draw_local(chances, scope.patch_zyx, shape, generator) if chances.alters_locally else (),
    )


def _turn_axes(flat: bool) -> tuple[int, ...]:
    return (0,) if flat else (0, 1, 2)


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """Make the matrix of a rotation about one of the axes Z, Y, X (0, 1, 2)."""
    matrix = np.eye(3)
    first, second = (a for a in range(3) if a != axis)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[[first, first, second, second], [first, second, first, second]] = (cos, -sin, sin, cos)
    return matrix


def _square_axes(scope: Scope) -> tuple[int, ...]:
    """The axes along which the patch has as many voxels as along another one, of those that it is turned in."""
    patch, axes = scope.patch_zyx, range(1 if scope.is_flat else 0, 3)
    return tuple(a for a in axes if any(a != other and patch[a] == patch[other] for other in axes))


def _quarter_turn(axes: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    """One, two or three of them in the plane of two of the axes."""
    first, second = sorted(generator.choice(axes, 2, replace=False).tolist())
    return np.round(_rotation(3 - first - second, np.pi / 2 * int(generator.integers(1, 4))))


def _draw_rotation(scope: Scope, generator: np.random.Generator, *, is_drawn: bool) -> NDArray[np.float64]:
    matrix, limit = np.eye(3), largest_angle(scope.augmentation, scope.patch_zyx)
    for axis in _turn_axes(scope.is_flat):
        angle, turns = np.deg2rad(generator.uniform(-limit, limit)), generator.random()
        if is_drawn and turns < scope.augmentation.p_rotation_axis:
            matrix = _rotation(axis, angle) @ matrix
    return matrix


def _draw_scales(scope: Scope, generator: np.random.Generator, *, is_drawn: bool) -> NDArray[np.float64]:
    scales = generator.uniform(*scope.augmentation.scale, 3)
    if generator.random() >= scope.augmentation.p_scale_apart:
        scales[:] = scales[0]
    if scope.is_flat:
        scales[0] = 1
    return scales if is_drawn else np.ones(3)


def _draw_controls(scope: Scope, deforms: NDArray[np.bool_], generator: np.random.Generator) -> Array:
    """Displacements of control points, evenly within a share of the distance between them.

    A cubic B-spline of points that move by less than 0.4 of their distance does not fold (Choi and Lee 2000).
    """
    n_points = _CONTROL_CELLS + _SPLINE_MARGIN
    planes = 1 if scope.is_flat else n_points
    share = np.where(deforms, generator.uniform(*scope.augmentation.elastic, deforms.size), 0)
    distance = np.array(scope.patch_zyx) / _CONTROL_CELLS
    if scope.is_flat:
        distance[0] = 0
    reach = share[:, None] * distance
    points = generator.uniform(-1, 1, (deforms.size, 3, planes, n_points, n_points))
    return (points * reach[..., None, None, None]).astype(np.float32)


def _draw_channels(
    generator: np.random.Generator, probability: float, shape: tuple[int, int], channel_share: float = 1.0
) -> NDArray[np.bool_]:
    """(B, C): a share of the channels of the samples that are chosen."""
    return (generator.random((shape[0], 1)) < probability) & (generator.random(shape) < channel_share)


def _draw_factors(
    generator: np.random.Generator, probability: float, limits: tuple[float, float], shape: tuple[int, int]
) -> Array:
    """(B, C): in chosen samples as often below 1 as above it, if both are within the limits; 1 elsewhere."""
    low, high = limits
    is_low = generator.random(shape) < (0.5 if low < 1 < high else float(high <= 1))
    below = generator.uniform(min(low, 1), min(high, 1), shape)
    values = np.where(is_low, below, generator.uniform(max(low, 1), max(high, 1), shape))
    return np.where(_draw_channels(generator, probability, shape), values, 1).astype(np.float32)
