"""What a prediction is to make of each case, and whether it is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segpipe.core.progress import say
from segpipe.predict.claim import NO_POSTPROCESSING
from segpipe.predict.ensemble import Ensemble
from segpipe.predict.outputs import is_whole, mask_path, probabilities_path, uncertainty_paths
from segpipe.predict.postprocess import Postprocessing


@dataclass(frozen=True)
class Wanted:
    """What is to be made of each case.

    Args:
        mirror: Average over mirrored copies.
        probabilities: Also write `<case_id>_probabilities.npz` (`probabilities`: float16 (outputs, Z, Y, X)).
        postprocessing: What is done to the masks; probabilities stay as they are.
        max_memory_gb: The most memory to take, on the host and on a GPU each; None: what is free.
        uncertainty: Also write maps of it: `uncertainty/<case_id>_entropy.nii.gz`, and of several networks
            `uncertainty/<case_id>_disagreement.nii.gz`, and their means in the table.
        any_size: Predict images that are far larger than those trained on, see `require_usual_size`, as well.
    """

    mirror: bool = True
    probabilities: bool = False
    postprocessing: Postprocessing = NO_POSTPROCESSING
    max_memory_gb: float | None = None
    uncertainty: bool = False
    any_size: bool = True


def is_done(folder: Path, case_id: str, wanted: Wanted, ensemble: Ensemble) -> bool:
    """Whether all that is wanted of a case lies in the folder, whole; what is damaged is named."""
    files = [mask_path(folder, case_id)]
    files += [probabilities_path(folder, case_id)] if wanted.probabilities else []
    maps = uncertainty_paths(folder, case_id)
    files += [maps[name] for name in ensemble.uncertainty_names] if wanted.uncertainty else []
    whole = [is_whole(file) for file in files]
    if damaged := [file.name for file, is_good in zip(files, whole, strict=True) if file.is_file() and not is_good]:
        say(f"{folder}: {', '.join(damaged)}: damaged, cut short perhaps; made anew.")
    return all(whole)
