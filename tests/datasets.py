"""Tiny datasets for tests: 12×10×8 voxels (x, y, z), oblique, with unequal edges, so that swapped axes show."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.core.volume import write_image

SHAPE_ZYX = (8, 10, 12)
SPACING_XYZ_MM = (1.0, 1.5, 2.5)


def oblique_affine(angle: float = 0.3) -> NDArray[np.float64]:
    """Turned by `angle` about z, edges of 1, 1.5 and 2.5 mm along x, y, z, an origin off zero."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING_XYZ_MM
    affine[:3, 3] = (-5.0, 7.0, 11.0)
    return affine


def tiny_image(seed: int) -> NDArray[np.float32]:
    """Noise, (Z, Y, X)."""
    return np.random.default_rng(seed).normal(100, 20, SHAPE_ZYX).astype(np.float32)


def tiny_labels(values: Sequence[int] = (1, 2)) -> NDArray[np.uint8]:
    """A block of 24 voxels for each value, one behind the other along x, in background; (Z, Y, X)."""
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    for place, value in enumerate(values):
        labels[2:4, 2:6, 1 + 3 * place : 4 + 3 * place] = value
    return labels


def write_tiny(path: Path, voxels_zyx: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    """Write one volume on the oblique grid, or on another."""
    write_image(path, voxels_zyx[None], oblique_affine() if affine is None else affine)
    return path


def write_cases(
    folder: Path,
    case_ids: Sequence[str],
    n_channels: int = 1,
    subfolders: tuple[str, str] = ("imagesTr", "labelsTr"),
    values: Sequence[int] = (1, 2),
) -> None:
    """Write `case_0000.nii.gz`, … and `case.nii.gz` into two folders; every image is different."""
    for case_index, case_id in enumerate(case_ids):
        for channel in range(n_channels):
            name = f"{case_id}_{channel:04d}.nii.gz"
            write_tiny(folder / subfolders[0] / name, tiny_image(100 * case_index + channel))
        write_tiny(folder / subfolders[1] / f"{case_id}.nii.gz", tiny_labels(values))


def write_nnunet(folder: Path, case_ids: Sequence[str], n_channels: int = 1, **description: object) -> Path:
    """A dataset in the layout of nnU-Net v2 with labels a = 1 and b = 2; `description` replaces keys."""
    write_cases(folder, case_ids, n_channels)
    values = {
        "name": "tiny",
        "channel_names": {str(channel): f"MR{channel}" for channel in range(n_channels)},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": len(case_ids),
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", values | description)
    return folder


def write_json(path: Path, values: object) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    """Write a table, the head of its columns first."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def file_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path."""
    return [Path(path).name for path in paths]
