"""What a coarser configuration predicts of a prepared case, stored on its grid: further input of a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.core.files import whole_folder
from segpipe.core.grid import ZYX
from segpipe.core.labels import LabelSet
from segpipe.core.records import Record
from segpipe.prepare.store import GUIDE, smallest_type, write_arrays

_ABOUT = "guide.json"


class StoredGuide(Record):
    """Beside the labels that guide a case: what they were made of.

    Args:
        case_id: Which.
        model: Digest of the weights that predicted them.
        content: Of the bytes of the case's files, as the fingerprint has it.
        seen_as: Name of the folder of what the coarser network saw of it.
    """

    case_id: str
    model: str
    content: str
    seen_as: str


def has_guide(guides: Path, about: StoredGuide) -> bool:
    """Whether the case has labels of just these weights and files."""
    beside = guides / about.case_id / _ABOUT
    return beside.is_file() and StoredGuide.load(beside) == about


def store_guide(guides: Path, about: StoredGuide, indices_zyx: NDArray[np.int16], labels: LabelSet, patch: ZYX) -> None:
    """Write them, whole or not at all, in chunks of the patch; older ones are replaced.

    Raises:
        ResourceError, SetupError: If they cannot be written.
    """
    with whole_folder(guides / about.case_id) as temporary:
        arrays: dict[str, NDArray[Any]] = {GUIDE: smallest_type(indices_zyx, labels)}
        write_arrays(temporary, arrays, patch)
        about.save(temporary / _ABOUT)
