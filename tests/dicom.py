"""DICOM series for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray


def write_series(
    folder: Path,
    voxels_zyx: NDArray[np.int16],
    *,
    spacing_xyz_mm: tuple[float, float, float] = (1.0, 1.5, 2.5),
    angle: float = 0.3,
    tilt: float = 0.0,
    series: str = "1.2.826.0.1.3680043.2.1125.1",
    description: str = "axial",
    intercept: int = 0,
    prefix: str = "IM",
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """One file a slice, turned by `angle` about z; `tilt` mm along y between slices, as a tilted gantry has.

    `extra` are more tags, by `group|element`. Stored numbers are the voxels minus `intercept`. The names of the files
    say nothing about the slices' order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turn = [np.cos(angle), np.sin(angle), 0.0, -np.sin(angle), np.cos(angle), 0.0]
    for index, slice_yx in enumerate(voxels_zyx):
        image = sitk.GetImageFromArray(slice_yx[None])  # the writer subtracts the intercept
        image.SetSpacing(spacing_xyz_mm)
        place = (-5.0, 7.0 + tilt * index, 11.0 + spacing_xyz_mm[2] * index)
        keys = {
            "0008|0060": "CT",
            "0008|103e": description,
            "0020|000e": series,
            "0020|0013": str(index),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{v:.9f}" for v in turn),
            "0028|1052": str(intercept),
            "0028|1053": "1",
            **extra,
        }
        for key, value in keys.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{prefix}{(index * 5) % 97:04d}.dcm"))
        writer.Execute(image)
    return folder
