"""The demo's data: made-up scans that look like anatomy and need both channels to be segmented.

Anatomy is a set of implicit surfaces in patient space (RAS mm), drawn from one random stream per patient; a scan
samples it on a grid of its own, from a stream of its own. So two scans of a patient show the same anatomy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.errors import UsageError
from segpipe.core.files import whole_folder, write_text
from segpipe.core.grid import ZYX, Grid
from segpipe.core.seeds import generator_for
from segpipe.core.text import count
from segpipe.core.volume import write_image

Floats = NDArray[np.float64]
LABELS = {"background": 0, "organ": 1, "core": 2, "node": 3}
CHANNELS = ("T1", "T2")
_PATIENT_WITH_TWO_SCANS = 3
_PATIENT_WITHOUT_NODE = 2
_FINE = 2  # samples per voxel edge; their mean is the partial volume effect
_ORIENTATIONS = ("LPS", "LPS", "RAS", "LPS", "PSR", "LPS", "LAS")  # by scan, in turn; the first is the commonest
_OBLIQUE_EVERY = 3

# Brightness in T1 and T2, strength of texture, value in the label map. Later tissues cover earlier ones.
# Each twin shares the organ's or the core's brightness in one channel and the muscle's in the other.
_TISSUES = {
    "air": (0.01, 0.01, 0.0, 0),
    "fat": (0.92, 0.62, 0.25, 0),
    "muscle": (0.42, 0.32, 0.7, 0),
    "t1_twin": (0.63, 0.33, 0.9, 0),
    "t2_twin": (0.43, 0.57, 0.9, 0),
    "cyst": (0.17, 0.84, 0.2, 0),
    "vessel": (0.20, 0.12, 0.3, 0),
    "organ": (0.63, 0.57, 1.0, 1),
    "core": (0.41, 0.82, 1.2, 2),
    "node": (0.74, 0.80, 0.6, 3),
}


@dataclass(frozen=True, eq=False)
class _Waves:
    """A smooth random field: plane waves added up, SD about 0.7, at most the root of their number.

    Args:
        wave_vectors: (waves, 3), radians per mm.
        phases: (waves,), radians.
    """

    wave_vectors: Floats
    phases: Floats

    def at(self, points_ras_mm: Floats) -> Floats:
        """Values at points (3, *shape), shape `shape`."""
        total = np.zeros(points_ras_mm.shape[1:])
        for vector, phase in zip(self.wave_vectors, self.phases, strict=True):
            total += np.sin(np.tensordot(vector, points_ras_mm, 1) + phase)
        return total / np.sqrt(len(self.phases))


@dataclass(frozen=True, eq=False)
class _Blob:
    """An ellipsoid with a wavy surface, of one tissue."""

    tissue: str
    centre_ras_mm: Floats
    radii_ras_mm: Floats
    waves: _Waves
    waviness_fraction: float

    def contains(self, points_ras_mm: Floats) -> NDArray[np.bool_]:
        """True for each of the points (3, *shape) that is inside."""
        lead = (3, *(1,) * (points_ras_mm.ndim - 1))
        scaled = (points_ras_mm - self.centre_ras_mm.reshape(lead)) / self.radii_ras_mm.reshape(lead)
        radius = np.linalg.norm(scaled, axis=0)
        near = radius < 1 + self.waviness_fraction * np.sqrt(len(self.waves.phases))  # beyond, no wave reaches
        inside = np.zeros(radius.shape, bool)
        inside[near] = radius[near] < 1 + self.waviness_fraction * self.waves.at(points_ras_mm[:, near])
        return inside


@dataclass(frozen=True, eq=False)
class _Anatomy:
    """A patient: structures in the order in which they cover each other, and the texture inside them."""

    blobs: tuple[_Blob, ...]
    texture: _Waves


@dataclass(frozen=True, eq=False)
class _Scan:
    """One acquisition of a patient."""

    grid: Grid
    shading: tuple[_Waves, ...]
    gains: tuple[float, ...]
    noise_fraction: float
    rng: np.random.Generator


def make_phantom(folder: Path, n_cases: int, seed: int) -> Path:
    """Write a made-up dataset in nnU-Net v2 layout: two channels, three labels.

    From four cases on, two are scans of one patient (`phantom_003_scan1`, `phantom_003_scan2`); from two on, one has no
    `node`. Grids differ in shape, spacing, orientation and, every third, by an oblique turn.

    Args:
        folder: The output; a folder that already holds the same dataset is left unchanged.
        n_cases: 1 or more.
        seed: Equal seeds give equal bytes; with fewer cases, the first ones.

    Returns:
        The folder.

    Raises:
        UsageError: If `n_cases` is below 1, or `folder` holds something else.
        ResourceError, SetupError: If it cannot be written.
    """
    if n_cases < 1:
        raise UsageError(f"phantom: {n_cases} cases requested, expected 1 or more. Choose another number.")
    description = _description(n_cases, seed)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        existing = folder / "dataset.json"
        if existing.is_file() and existing.read_text(encoding="utf-8") == description:
            return folder
        raise UsageError(
            f"{folder}: holds something other than this phantom dataset (seed {seed}, {count(n_cases, 'case')}). "
            "Choose another folder, or delete this one."
        )
    with whole_folder(folder) as temporary:
        for number, (case_id, patient, scan) in enumerate(_names(n_cases)):
            anatomy = _draw_anatomy(generator_for(seed, patient, 0), has_node=patient != _PATIENT_WITHOUT_NODE)
            acquired = _draw_scan(generator_for(seed, patient, scan), number)
            image_czyx, labels_zyx = _acquire(anatomy, acquired)
            affine = acquired.grid.affine_ras_mm
            for channel, voxels_zyx in enumerate(image_czyx):
                write_image(temporary / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", voxels_zyx[None], affine)
            write_image(temporary / "labelsTr" / f"{case_id}.nii.gz", labels_zyx[None], affine)
        write_text(temporary / "dataset.json", description)
    return folder


def _description(n_cases: int, seed: int) -> str:
    values = {
        "name": "Phantom",
        "description": f"Made-up scans for trying segpipe; seed {seed}",
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS)},
        "labels": LABELS,
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }
    return json.dumps(values, indent=1) + "\n"


def _names(n_cases: int) -> list[tuple[str, int, int]]:
    """List case id, patient and scan number of each case; numbers count from 1."""
    names = []
    for patient in range(1, n_cases + 1):
        if patient == _PATIENT_WITH_TWO_SCANS:
            names += [(f"phantom_{patient:03d}_scan{scan}", patient, scan) for scan in (1, 2)]
        else:
            names.append((f"phantom_{patient:03d}", patient, 1))
    return names[:n_cases]


def _draw_waves(rng: np.random.Generator, n_waves: int, shortest_mm: float, longest_mm: float) -> _Waves:
    directions = rng.normal(size=(n_waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths_mm = rng.uniform(shortest_mm, longest_mm, (n_waves, 1))
    return _Waves(2 * np.pi * directions / lengths_mm, rng.uniform(0, 2 * np.pi, n_waves))


def _draw_blob(rng: np.random.Generator, tissue: str, centre: Floats, radius_mm: float, waviness: float) -> _Blob:
    radii = radius_mm * rng.uniform(0.85, 1.15, 3)
    waves = _draw_waves(rng, 5, 1.4 * radius_mm, 3.0 * radius_mm)
    return _Blob(tissue, centre, radii, waves, waviness)


def _draw_anatomy(rng: np.random.Generator, has_node: bool) -> _Anatomy:
    """Draw a patient. The organ is on the right and a little to the back, the node on its inner front side."""
    body = np.array([41.0, 35.0, 50.0]) * rng.uniform(0.95, 1.05, 3)
    skin = _draw_waves(rng, 4, 60, 120)
    fat_mm = rng.uniform(3.0, 6.0)
    organ_centre = np.array([12.0, -4.0, 0.0]) + rng.uniform(-4, 4, 3)
    organ_mm = float(rng.uniform(18, 21))
    core_centre = organ_centre + rng.uniform(-3.5, 3.5, 3)
    inward = np.array([-1.0, 0.7, 0.0]) + rng.uniform(-0.35, 0.35, 3)
    node_centre = organ_centre + inward / np.linalg.norm(inward) * (organ_mm + rng.uniform(8, 10))
    blobs = [
        _Blob("fat", np.zeros(3), body, skin, 0.03),
        _Blob("muscle", np.zeros(3), body - fat_mm, skin, 0.03),
        *_draw_distractors(rng, body - fat_mm, organ_centre, organ_mm),
        _draw_blob(rng, "organ", organ_centre, organ_mm, 0.16),
        _draw_blob(rng, "core", core_centre, organ_mm * float(rng.uniform(0.55, 0.65)), 0.12),
    ]
    if has_node:
        blobs.append(_draw_blob(rng, "node", node_centre, float(rng.uniform(8.0, 9.5)), 0.06))
    return _Anatomy(tuple(blobs), _draw_waves(rng, 24, 7, 16))


def _draw_distractors(rng: np.random.Generator, inner: Floats, organ: Floats, organ_mm: float) -> list[_Blob]:
    """Draw structures that look like a label in one channel only, anywhere but in the middle of the organ."""
    kinds = [("t1_twin", 8, 13)] * 5 + [("t2_twin", 8, 13)] * 5 + [("cyst", 4, 7)] * 3
    blobs = []
    for tissue, smallest_mm, largest_mm in kinds:
        radius_mm = float(rng.uniform(smallest_mm, largest_mm))
        centre = organ
        while np.linalg.norm(centre - organ) < organ_mm + 0.4 * radius_mm:
            direction = rng.normal(size=3)
            reach = 1 - radius_mm / inner * 0.9
            centre = direction / np.linalg.norm(direction) * rng.uniform(0.3, 1) * inner * reach
        blobs.append(_draw_blob(rng, tissue, centre, radius_mm, 0.1))
    for x_mm, y_mm in ((-7.0, -16.0), (-1.0, -19.0)):  # two great vessels along the body
        centre = np.array([x_mm, y_mm, 0.0]) + rng.uniform(-2, 2, 3)
        radius_mm = float(rng.uniform(2.5, 4.0))
        radii = np.array([radius_mm, radius_mm, 500.0])
        blobs.append(_Blob("vessel", centre, radii, _draw_waves(rng, 3, 40, 80), 0.25))
    return blobs


def _draw_scan(rng: np.random.Generator, number: int) -> _Scan:
    in_plane_mm, slice_mm = rng.uniform(1.75, 2.15), rng.uniform(2.6, 4.0)
    spacing_ras = np.array([in_plane_mm, in_plane_mm, slice_mm])
    extent_ras = np.array([rng.uniform(90, 98), rng.uniform(78, 86), rng.uniform(66, 84)])
    shape_ras = np.clip(np.rint(extent_ras / spacing_ras), [42, 40, 20], [52, 52, 28]).astype(int)
    turn = _rotation(rng.normal(size=3), np.deg2rad(rng.uniform(5, 12))) if number % _OBLIQUE_EVERY == 1 else np.eye(3)
    shift_ras_mm = rng.uniform(-2.5, 2.5, 3)
    return _Scan(
        grid=_place(shape_ras, spacing_ras, _ORIENTATIONS[number % len(_ORIENTATIONS)], turn, shift_ras_mm),
        shading=tuple(_draw_waves(rng, 3, 110, 260) for _ in CHANNELS),
        gains=tuple(float(rng.uniform(500, 1500)) for _ in CHANNELS),
        noise_fraction=float(rng.uniform(0.035, 0.06)),
        rng=rng,
    )


def _place(shape_ras: NDArray[np.int_], spacing_ras: Floats, orientation: str, turn: Floats, shift: Floats) -> Grid:
    """Make a grid whose axes x, y, z run as `orientation` says, then turned; its middle is at `shift` RAS mm."""
    axes = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in orientation]
    affine = np.eye(4)
    for column, (axis, letter) in enumerate(zip(axes, orientation, strict=True)):
        affine[:3, column] = turn[:, axis] * spacing_ras[axis] * (1 if letter in "RAS" else -1)
    shape_xyz = shape_ras[axes]
    affine[:3, 3] = shift - affine[:3, :3] @ ((shape_xyz - 1) / 2)
    x, y, z = map(int, shape_xyz)
    return Grid((z, y, x), affine)


def _rotation(axis: Floats, angle: float) -> Floats:
    """Rotation matrix about an axis, angle in radians (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _fine_points(grid: Grid) -> Floats:
    """RAS mm of `_FINE`³ points in every voxel, (3, Z, Y, X) of the finer grid."""
    z, y, x = ((np.arange(n * _FINE) + 0.5) / _FINE - 0.5 for n in grid.shape_zyx)
    zz, yy, xx = np.meshgrid(z, y, x, indexing="ij")
    affine = grid.affine_ras_mm
    return np.tensordot(affine[:3, :3], np.stack([xx, yy, zz]), 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def _coarsen(fine: Floats, shape_zyx: ZYX) -> Floats:
    """Mean over the fine points of each voxel."""
    z, y, x = shape_zyx
    return fine.reshape(z, _FINE, y, _FINE, x, _FINE).mean(axis=(1, 3, 5))


def _acquire(anatomy: _Anatomy, scan: _Scan) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Scan: image (C, Z, Y, X) int16 and label map (Z, Y, X) uint8; a voxel gets the label of most of its points."""
    from scipy.ndimage import gaussian_filter

    points, shape = _fine_points(scan.grid), scan.grid.shape_zyx
    names = list(_TISSUES)
    tissue = np.zeros(points.shape[1:], np.intp)
    for blob in anatomy.blobs:
        tissue[blob.contains(points)] = names.index(blob.tissue)
    table = np.array(list(_TISSUES.values()))
    texture = 0.045 * anatomy.texture.at(points) * table[tissue, 2]
    values = table[tissue, 3]
    shares = [_coarsen((values == value).astype(np.float64), shape) for value in LABELS.values()]
    channels = []
    for channel, (gain, shading) in enumerate(zip(scan.gains, scan.shading, strict=True)):
        clean = (table[tissue, channel] + (texture if channel == 0 else -texture)) * np.exp(0.16 * shading.at(points))
        blurred = gaussian_filter(_coarsen(clean, shape), 0.45)
        real, imaginary = scan.rng.normal(scale=scan.noise_fraction, size=(2, *shape))
        channels.append(np.rint(gain * np.hypot(blurred + real, imaginary)).astype(np.int16))
    return np.stack(channels), np.argmax(shares, axis=0).astype(np.uint8)
