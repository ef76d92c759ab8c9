"""The layouts in which a dataset may be stored on disk: one table, `LAYOUTS`.

A layout is one file in this folder and one row in the table. The file holds a reader, a function of one path:

    def read_pairs(path: Path) -> DatasetFiles | None:
        if not (path / "pairs.txt").is_file():
            return None                  # another layout: the next row is tried
        ...
        return DatasetFiles(
            name=path.name, root=path, channels=("CT",), labels=None,
            cases=(CaseFiles("p01", (path / "p01_ct.nii.gz",), path / "p01_seg.nii.gz"),),
        )

`path` is absolute and exists; it is a folder or a file. `labels=None` takes every value in the label maps for a label.
What is wrong with single files goes into `faults` (`segpipe.data.faults.fault`); a `DataError` is for a dataset that is
clearly meant as this layout but cannot be understood. `segpipe.data.layouts.scan` has the helpers that readers share.

The row is a `Layout`; its key is the name that `dataset.json` of a work folder keeps:

    "pairs": Layout("two files per case (pairs.txt)", "a file pairs.txt", read_pairs),

Rows are tried in order; the first reader that returns something wins. `check`, `plan`, `predict`, `evaluate` and the
message for an unknown folder follow from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segpipe.data.layouts.bids import read_bids
from segpipe.data.layouts.dataset_json import read_msd, read_nnunet
from segpipe.data.layouts.folders import read_folders
from segpipe.data.layouts.manifest import read_manifest
from segpipe.data.layouts.scan import DatasetFiles


@dataclass(frozen=True)
class Layout:
    """One way to store a dataset.

    Args:
        title: For people, one line; `check` prints it.
        remedy: What a folder must hold to be recognised, for the message about an unknown one.
        read: Returns the files of a dataset in this layout, None for anything else. Raises DataError if the layout is
            recognised but its description is wrong.
    """

    title: str
    remedy: str
    read: Callable[[Path], DatasetFiles | None]


LAYOUTS: dict[str, Layout] = {
    "nnunet": Layout("nnU-Net v2 (dataset.json)", "dataset.json of nnU-Net v2", read_nnunet),
    "msd": Layout(
        "Medical Segmentation Decathlon (dataset.json)",
        "dataset.json of the Medical Segmentation Decathlon",
        read_msd,
    ),
    "csv": Layout("CSV manifest", "a CSV manifest with case_id and image_<channel>", read_manifest),
    "folders": Layout("two folders, images and labels", "the folders images/ and labels/", read_folders),
    "bids": Layout("BIDS (sub-…/anat, derivatives)", "BIDS (sub-…/anat and derivatives/)", read_bids),
}
