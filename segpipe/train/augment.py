"""What augmentation does to a batch: strengths, and the numbers drawn from them. `transforms` applies them.

Source: nnU-Net's list of transforms and probabilities (batchgeneratorsv2). Ours draws one gamma, contrast and
brightness for each channel of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from segpipe.core.grid import ZYX

_FLAT_RATIO = 3  # a patch this much flatter than long is turned in-plane only
_ROOM = 0.85  # the region is larger by this, so that scaling down finds voxels


@dataclass(frozen=True)
class Strength:
    """Probabilities (p_, of a sample) and ranges of a set of augmentations.

    Args:
        rotation_degrees: Largest angle about each axis; in-plane patches: 180.
        scale: Smallest and largest magnification.
        noise_std: Largest standard deviation, in units of the normalised image.
        blur_vox: Smallest and largest standard deviation.
        brightness, contrast, gamma, lowres_zoom: Smallest and largest factor.
    """

    p_rotation: float = 0.2
    p_scale: float = 0.2
    p_noise: float = 0.1
    p_blur: float = 0.2
    p_brightness: float = 0.15
    p_contrast: float = 0.15
    p_lowres: float = 0.25
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3
    p_mirror: float = 0.5
    rotation_degrees: float = 30.0
    scale: tuple[float, float] = (0.7, 1.4)
    noise_std: float = 0.1
    blur_vox: tuple[float, float] = (0.5, 1.0)
    brightness: tuple[float, float] = (0.75, 1.25)
    contrast: tuple[float, float] = (0.75, 1.25)
    gamma: tuple[float, float] = (0.7, 1.5)
    lowres_zoom: tuple[float, float] = (0.5, 1.0)


_NNUNET = Strength()
STRENGTHS: dict[str, Strength | None] = {
    "none": None,
    "light": replace(
        _NNUNET, rotation_degrees=15.0, scale=(0.85, 1.2), p_blur=0.0, p_lowres=0.0, p_gamma_inverted=0.0, p_gamma=0.15
    ),
    "nnunet": _NNUNET,
}


@dataclass(frozen=True, eq=False)
class Draws:
    """The numbers of one batch, as numpy arrays.

    Args:
        turns: (B, 3, 3) from output to input offsets in voxels; identity where nothing turns.
        is_turned: (B,) bool.
        mirrored: (B, 3) bool.
        noise_std: (B,) 0 where none.
        blur_vox, brightness, contrast, gamma, gamma_inverted, lowres_zoom: (B, C); 0 (blur) or 1 where none.
        noise_seed: Of the noise field.
    """

    turns: NDArray[np.float32]
    is_turned: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    noise_std: NDArray[np.float32]
    blur_vox: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    gamma: NDArray[np.float32]
    gamma_inverted: NDArray[np.float32]
    lowres_zoom: NDArray[np.float32]
    noise_seed: int


def is_flat(patch_zyx: ZYX) -> bool:
    """Whether a patch is turned in-plane only."""
    return max(patch_zyx) / patch_zyx[0] > _FLAT_RATIO


def region_for(patch_zyx: ZYX, strength: Strength | None) -> ZYX:
    """Voxels to cut so that a turned patch finds image in its corners."""
    if strength is None:
        return patch_zyx
    z, y, x = patch_zyx
    if is_flat(patch_zyx):
        diagonal = float(np.hypot(y, x))
        return (z, _ceil(min(diagonal, 1.5 * y) / _ROOM), _ceil(min(diagonal, 1.5 * x) / _ROOM))
    angle = np.deg2rad(strength.rotation_degrees)
    corners = np.array([(i, j, k) for i in (-z, z) for j in (-y, y) for k in (-x, x)], np.float64)
    reach = np.array([z, y, x], np.float64)
    for axis in range(3):
        for sign in (-1, 1):
            reach = np.maximum(reach, np.abs(corners @ _rotation(axis, sign * angle).T).max(axis=0))
    edges = [_ceil(r / _ROOM) for r in reach]
    return (edges[0], edges[1], edges[2])


def _ceil(value: float) -> int:
    return int(np.ceil(value))


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """About one of the axes z, y, x (0, 1, 2)."""
    matrix = np.eye(3)
    first, second = (a for a in range(3) if a != axis)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix[[first, first, second, second], [first, second, first, second]] = (cos, -sin, sin, cos)
    return matrix


def draw(
    strength: Strength,
    shape: tuple[int, int],
    patch_zyx: ZYX,
    mirror_axes: Sequence[int],
    generator: np.random.Generator,
) -> Draws:
    """Draw the numbers for a batch.

    Args:
        strength: Probabilities and ranges.
        shape: Samples and channels (B, C).
        patch_zyx: Of the result; a flat one is turned and scaled in-plane only.
        mirror_axes: Axes that may be mirrored.
        generator: Source of all randomness.
    """
    n_batch, _ = shape
    rotates, scales = (generator.random(n_batch) < p for p in (strength.p_rotation, strength.p_scale))
    flat = is_flat(patch_zyx)
    turns = np.stack(
        [
            _turn(strength, generator, flat=flat, rotate=bool(r), scale=bool(s))
            for r, s in zip(rotates, scales, strict=True)
        ]
    )
    mirrored = np.zeros((n_batch, 3), np.bool_)
    mirrored[:, list(mirror_axes)] = generator.random((n_batch, len(mirror_axes))) < strength.p_mirror
    noisy = generator.random(n_batch) < strength.p_noise
    return Draws(
        turns=turns.astype(np.float32),
        is_turned=rotates | scales,
        mirrored=mirrored,
        noise_std=np.where(noisy, generator.uniform(0, strength.noise_std, n_batch), 0).astype(np.float32),
        blur_vox=_factors(generator, shape, strength.p_blur, strength.blur_vox, 0, half=True),
        brightness=_factors(generator, shape, strength.p_brightness, strength.brightness, 1),
        contrast=_factors(generator, shape, strength.p_contrast, strength.contrast, 1),
        gamma=_factors(generator, shape, strength.p_gamma, strength.gamma, 1),
        gamma_inverted=_factors(generator, shape, strength.p_gamma_inverted, strength.gamma, 1),
        lowres_zoom=_factors(generator, shape, strength.p_lowres, strength.lowres_zoom, 1, half=True),
        noise_seed=int(generator.integers(2**31)),
    )


def _turn(
    strength: Strength, generator: np.random.Generator, *, flat: bool, rotate: bool, scale: bool
) -> NDArray[np.float64]:
    matrix = np.eye(3)
    limit = 180.0 if flat else strength.rotation_degrees
    for axis in (0,) if flat else (0, 1, 2):
        angle = np.deg2rad(generator.uniform(-limit, limit))
        matrix = matrix @ (_rotation(axis, angle) if rotate else np.eye(3))
    low, high = strength.scale
    # as likely to shrink as to grow, whatever the range
    factor = generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high)
    edges = np.array([1 if flat else factor, factor, factor]) if scale else np.ones(3)
    return matrix @ np.diag(1 / edges)


def _factors(
    generator: np.random.Generator,
    shape: tuple[int, int],
    probability: float,
    limits: tuple[float, float],
    neutral: float,
    *,
    half: bool = False,
) -> NDArray[np.float32]:
    """(B, C): drawn where the sample is chosen (and, with `half`, every second channel), `neutral` elsewhere."""
    chosen = np.repeat(generator.random(shape[0]) < probability, shape[1]).reshape(shape)
    channels = generator.random(shape) < 0.5
    values = generator.uniform(*limits, shape)
    return np.where(chosen & channels if half else chosen, values, neutral).astype(np.float32)
