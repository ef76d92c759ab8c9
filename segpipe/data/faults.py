"""Faults of a dataset: one table of all kinds, the record of one of them, and groups of them for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from segpipe.core.errors import DataError
from segpipe.core.header import PICTURE_ADVICE, stem_of
from segpipe.core.records import Record
from segpipe.core.text import count

Severity = Literal["fatal", "warning"]
_MAX_NAMED = 3  # places in a group of faults
_MAX_LISTED = 20  # faults in one error message; `segpipe check` shows them all


class Kind(NamedTuple):
    """One kind of fault: its severity, what is expected, and what to do."""

    severity: Severity
    title: str
    expected: str
    remedy: str


_NOT_FINITE = (
    "`segpipe check DATA --fix OUT` replaces NaN outside the body in a copy. Otherwise export the image again, or "
    "replace them deliberately."
)
KINDS: dict[str, Kind] = {
    # files
    "description": Kind("fatal", "Dataset not understood", "a layout of data_readme.md", "Correct the description."),
    "empty": Kind("fatal", "No images", "at least one image file", "Check the path and the names of the folders."),
    "no_labels": Kind(
        "warning",
        "No labels: for prediction",
        "a label map for each image to train on",
        "To predict, nothing is missing. To train, add labels in one of the layouts of data_readme.md.",
    ),
    "file_missing": Kind("fatal", "File missing", "every listed file", "Add it, or remove the case from the list."),
    "label_missing": Kind(
        "fatal", "Label map missing", "every listed label map", "Add it, or remove the case from the list."
    ),
    "image_without_label": Kind(
        "fatal", "Image without label", "a label map for each case", "Add the label map, or move the image away."
    ),
    "unlabelled": Kind(
        "warning",
        "Scan without label map",
        "a label map for each scan to train on",
        "Nothing, if the derivative covers only some scans: the others are left out of training.",
    ),
    "label_without_image": Kind(
        "fatal", "Label without image", "an image for each label map", "Add the image, or move the label map away."
    ),
    "missing_channel": Kind(
        "fatal", "Channel missing", "every channel for every case", "Add the file, or move the case away."
    ),
    "extra_channel": Kind(
        "fatal", "More channels than listed", "the channels of the dataset", "List the channel, or move the file away."
    ),
    "case_twice": Kind("fatal", "Case occurs twice", "one case for each name", "Rename or remove one of the files."),
    "row": Kind("fatal", "CSV line with another number of cells", "one cell for each column", "Correct the line."),
    "column": Kind("fatal", "CSV column", "the columns of data_readme.md", "Correct the first line of the CSV file."),
    "patient_unknown": Kind(
        "fatal", "Patient unknown", "a patient for every case", "Add the case or its patient to the list of patients."
    ),
    "unreadable": Kind(
        "fatal", "File cannot be read", "a whole image file", "Copy, export or convert it again, or move the case away."
    ),
    "no_permission": Kind(
        "fatal",
        "No permission to read a file",
        "a readable file",
        "Ask its owner, or run `chmod u+r` on it.",
    ),
    "too_large": Kind(
        "fatal",
        "Image does not fit into memory",
        "an image that fits into memory",
        "Correct the header if its shape is wrong. Otherwise use one worker (-j 1) or a machine with more memory.",
    ),
    "other_format": Kind(
        "warning",
        "Unsupported image format",
        "NIfTI, NRRD or MetaImage",
        "Convert it: `mri_convert` (.mgz), `fslchfiletype` (.hdr, .img), `dcm2niix` (DICOM).",
    ),
    "pictures": Kind(
        "warning",
        "Pictures, which segpipe does not read",
        "NIfTI, NRRD or MetaImage, with the voxel size",
        PICTURE_ADVICE,
    ),
    # geometry
    "grid_unusable": Kind(
        "fatal", "Header without a usable grid", "a finite, invertible affine", "Repair the header or export it again."
    ),
    "several_volumes": Kind(
        "fatal",
        "Several volumes in a DICOM folder",
        "one volume",
        "Move the files of each volume into a folder of its own. `segpipe predict --series` chooses a series.",
    ),
    "header_contradiction": Kind(
        "fatal",
        "sform and pixdim disagree",
        "the same voxel edges in both",
        "`segpipe check DATA --fix OUT` writes a repaired copy. Look at one of its cases.",
    ),
    "unit": Kind(
        "fatal",
        "Lengths not in mm",
        "a header in mm",
        "`segpipe check DATA --fix OUT` writes a copy in mm. Look at one of its cases.",
    ),
    "two_places": Kind(
        "warning",
        "sform and qform disagree",
        "one position for each voxel",
        "segpipe reads the sform, other programs may read the qform. `--fix OUT` writes a copy without the qform.",
    ),
    "sheared": Kind(
        "fatal", "Sheared grid", "axes at right angles", "Resample image and label map to a rectangular grid."
    ),
    "shape_mismatch": Kind(
        "fatal", "Shapes differ in a case", "the shape of the first channel", "Resample one file onto the other's grid."
    ),
    "place_mismatch": Kind(
        "fatal",
        "Files of a case are misaligned",
        "corner voxels at the same position, to a tenth of a voxel",
        "Find out which header is right and copy it, or resample.",
    ),
    "label_turned": Kind(
        "fatal",
        "Label map has other axes than its image",
        "the image's order and direction of axes",
        "`segpipe check DATA --fix OUT` reorients it in a copy; voxels keep their position in space.",
    ),
    "label_shifted": Kind(
        "fatal",
        "Label map shifted against its image",
        "the position of the image",
        "If their voxels correspond, `--fix OUT` writes a copy with the image's header. Look at one of its cases.",
    ),
    "label_cropped": Kind(
        "fatal",
        "Label map covers part of its image",
        "the shape of the image",
        "`segpipe check DATA --fix OUT` pads it with background in a copy.",
    ),
    "channel_count": Kind(
        "fatal",
        "Wrong number of channels",
        "the dataset's number of channels",
        "Split time series into cases, and give every case the same channels.",
    ),
    "label_channels": Kind(
        "fatal",
        "Label map with a fourth axis",
        "one integer per voxel",
        "Merge one-hot channels into one map. Of a .seg.nrrd, export the segmentation as a labelmap in 3D Slicer; "
        "segments that overlap need regions.",
    ),
    "no_orientation": Kind(
        "warning",
        "No orientation in the header",
        "a sform or qform code above 0",
        "Left and right are unknown. If that matters, export the image again with its orientation.",
    ),
    "orientation_differs": Kind(
        "warning",
        "Orientation differs between cases",
        "one orientation",
        "Nothing: cases are turned to RAS, and masks are turned back.",
    ),
    # voxels
    "not_finite": Kind("fatal", "NaN or infinite voxels", "finite numbers", _NOT_FINITE),
    "like_labels": Kind(
        "warning",
        "Image that looks like a label map",
        "intensities of a scan",
        "Check that images and label maps are not swapped, and that the folder is the one of the images.",
    ),
    "constant_channel": Kind(
        "warning",
        "Constant channel beside others",
        "a channel with contrast",
        "Nothing, if the channel was not acquired and is filled up on purpose. Otherwise export it again.",
    ),
    "constant": Kind("fatal", "Constant image", "an image with contrast", "Export it again, or move the case away."),
    "label_not_integer": Kind(
        "fatal",
        "Label values are not integers",
        "whole numbers",
        "The label map was probably interpolated: export it again with nearest neighbour.",
    ),
    "label_scaled": Kind(
        "fatal",
        "Mask of two values with another value than the label's",
        "0 and the value of the label",
        "`segpipe check DATA --fix OUT` stores the label's value in a copy.",
    ),
    "label_float": Kind(
        "warning",
        "Label map stored as floats or scaled",
        "whole numbers",
        "Nothing: values are rounded. `--fix OUT` stores them as integers.",
    ),
    "label_unknown": Kind(
        "fatal",
        "Label value not in the list",
        "values of the dataset's list",
        "Add it to the list or correct the file.",
    ),
    "label_empty": Kind(
        "warning",
        "Empty label map",
        "at least one labelled voxel",
        "Check that the case really shows none of the structures.",
    ),
    # the dataset as a whole
    "nothing_labelled": Kind(
        "fatal",
        "No voxel is labelled in any case",
        "labelled voxels in some case",
        "Check that the label maps are the right files, and that background has the value of the list.",
    ),
    "label_unused": Kind(
        "fatal",
        "Label occurs in no case",
        "every label in some case",
        "Remove it from the list: it cannot be learned.",
    ),
    "duplicate_patients": Kind(
        "fatal",
        "Same image, different patients",
        "every scan once",
        "Remove one, or give both the same patient. Otherwise one could train and the other validate.",
    ),
    "same_scan_patients": Kind(
        "fatal",
        "Nearly the same image, different patients",
        "every scan once",
        "Remove the copy, or give both the same patient: a line `one patient?` above has what to write.",
    ),
    "alike_patients": Kind(
        "warning",
        "Images of one patient?",
        "one patient for all scans of a person",
        "Look at both. If they show one person, give both the same patient: a line `one patient?` above has what to "
        "write. Nothing otherwise.",
    ),
    "duplicate": Kind("warning", "Same image twice", "every scan once", "Remove one of them."),
    "one_patient": Kind(
        "fatal", "Too few patients to split", "at least 2 patients, better 50", "Add cases of other patients."
    ),
    "too_small": Kind(
        "fatal",
        "Images too small for a U-Net",
        "at least two edges of 8 voxels or one of 12",
        "Use larger images, or crop them less.",
    ),
    "few_patients": Kind(
        "warning", "Fewer than 5 patients", "at least 5 patients", "Nothing: there will be as many folds as patients."
    ),
    "column_unused": Kind(
        "warning", "CSV column not used", "the columns of data_readme.md", "Nothing, if that is intended."
    ),
}


class Fault(Record):
    """One fault of one case, or of the whole dataset.

    Args:
        severity: `fatal` (training would fail or mislead) or `warning`.
        kind: Key of `KINDS`.
        case_id: The case; None if the fault concerns none, or several.
        file: The file; None if the fault concerns none, or several.
        found: The finding, with values and units.
        expected: The expected state.
        remedy: What to do.
    """

    severity: Severity
    kind: str
    case_id: str | None
    file: str | None
    found: str
    expected: str
    remedy: str

    @property
    def text(self) -> str:
        """The fault as one sentence of four parts."""
        where = ": ".join(part for part in (self.case_id, self.file) if part)
        found = self.found.rstrip(".")
        return f"{where + ': ' if where else ''}{found}; expected {self.expected}. {self.remedy}"


def fault(
    kind: str, found: str, case_id: str | None = None, file: Path | None = None, expected: str | None = None
) -> Fault:
    """Make a fault of a kind in `KINDS`; `expected` if it is more exact than in the table."""
    entry = KINDS[kind]
    return Fault(
        severity=entry.severity,
        kind=kind,
        case_id=case_id,
        file=None if file is None else str(file),
        found=found,
        expected=entry.expected if expected is None else expected,
        remedy=entry.remedy,
    )


def refuse(faults: Iterable[Fault], where: Path) -> None:
    """Raise if any fault is fatal.

    Raises:
        DataError: With the fatal faults, one per line, up to a readable number.
    """
    lines = [one.text for one in faults if one.severity == "fatal"]
    if len(lines) == 1:
        raise DataError(lines[0] if str(where) in lines[0] else f"{where}: {lines[0]}")
    if lines:
        more = [f"… and {len(lines) - _MAX_LISTED} more; `segpipe check` lists them all."]
        shown = lines[:_MAX_LISTED] + (more if len(lines) > _MAX_LISTED else [])
        raise DataError(f"{where}: {count(len(lines), 'fault')}.\n  " + "\n  ".join(shown))


@dataclass(frozen=True)
class FaultGroup:
    """Every fault of one kind.

    Args:
        severity: The severity of all of them.
        title: The title of their kind.
        n_faults: Their number.
        details: The first cases or files, then what was found and expected in the first of them.
        remedy: What to do.
    """

    severity: Severity
    title: str
    n_faults: int
    details: tuple[str, ...]
    remedy: str


def fault_groups(faults: Sequence[Fault]) -> list[FaultGroup]:
    """Group faults by kind, fatal kinds first, in the order of `KINDS`."""
    by_kind = {kind: [one for one in faults if one.kind == kind] for kind in KINDS}
    groups = [
        FaultGroup(own[0].severity, KINDS[kind].title, len(own), tuple(_details(own)), own[0].remedy)
        for kind, own in by_kind.items()
        if own
    ]
    return sorted(groups, key=lambda group: group.severity)


def _details(own: list[Fault]) -> list[str]:
    first = own[0]
    if first.kind == "description":
        return [one.found for one in own]
    places = list(dict.fromkeys(_place(one) for one in own if _place(one)))
    if not places:  # none concerns a case: list the findings
        return [_first([one.found for one in own]), f"expected {first.expected}"]
    return [_first(places), f"{first.found}; expected {first.expected}"]


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:_MAX_NAMED]) + (f", … ({len(texts)})" if len(texts) > _MAX_NAMED else "")


def _place(one: Fault) -> str:
    name = Path(one.file).name if one.file else ""
    if one.case_id is None:
        return name
    is_known = not name or name.startswith(one.case_id) or stem_of(Path(name)) in one.case_id
    return one.case_id if is_known else f"{one.case_id} ({name})"
