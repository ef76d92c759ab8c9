"""Check that the masks of a trained work folder have their images' headers, and that folds keep patients together.

    python benchmarks/verify_masks.py WORK

Compares every validation mask's header with its image's, field by field, and the patients of every fold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits

_FIELDS = (
    "sform_code",
    "qform_code",
    "srow_x",
    "srow_y",
    "srow_z",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "xyzt_units",
)


def differences(image_file: Path, mask_file: Path) -> list[str]:
    """Return the fields of the header in which mask and image differ."""
    image, mask = nib.load(image_file), nib.load(mask_file)
    found = [key for key in _FIELDS if not np.array_equal(image.header[key], mask.header[key])]
    if image.shape[:3] != mask.shape:
        found.append("shape")
    if not np.array_equal(image.header["pixdim"][:4], mask.header["pixdim"][:4]):
        found.append("pixdim")
    return found


def main(folder: Path) -> int:
    """Print what was compared; return 1 if anything differs."""
    work = Work(folder)
    dataset = Dataset.load(work.dataset)
    masks = sorted((folder / "runs").glob("*/fold_*/validation/*.nii.gz"))
    wrong = {}
    for mask in masks:
        case = dataset.by_id[mask.name.removesuffix(".nii.gz")]
        if found := differences(case.image_paths[0], mask):
            wrong[str(mask)] = found
    shared = []
    for index, fold in enumerate(Splits.load(work.splits).folds):
        sides = [{dataset.by_id[i].patient_id for i in side} for side in (fold.train, fold.validation)]
        shared += [f"fold {index}: {p}" for p in sorted(sides[0] & sides[1])]
    print(f"{len(masks)} masks; header differs from the image's in {len(wrong)}: {wrong or 'none'}")
    print(f"{len(Splits.load(work.splits).folds)} folds; patients in training and validation: {shared or 'none'}")
    return 1 if wrong or shared or not masks else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
