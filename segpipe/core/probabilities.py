"""Files of probabilities beside masks, as segpipe and nnU-Net write them; and the temperature that corrects them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from segpipe.core.errors import DataError
from segpipe.core.header import beside
from segpipe.core.labels import LabelSet
from segpipe.core.records import Record

TEMPERATURE_RANGE = (0.25, 8.0)  # what is searched: `TEMPERATURES` of evaluate/reliability.py
_MAX_SUM_GAP = 0.02  # of a softmax in float16 with many outputs


def probabilities_beside(mask: Path) -> Path:
    """Find the file of probabilities that belongs to a mask.

    Raises:
        DataError: If there is none.
    """
    places = [beside(mask, "_probabilities.npz"), beside(mask, ".npz")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(
            f"{mask}: no probabilities beside it, expected {places[0].name} (or {places[1].name} of nnU-Net). "
            "Write them with `segpipe predict --save-probabilities`."
        )
    return path


def read_outputs(path: Path, labels: LabelSet, shape_zyx: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the probabilities of each output, (Z, Y, X) floats of the type in the file; one is in memory at a time.

    Args:
        path: An `.npz` with `probabilities` (outputs, Z, Y, X), as segpipe and nnU-Net write it.
        labels: The structures of the model; its order is the order of the outputs, background first without regions.
        shape_zyx: Shape of the image.

    Raises:
        DataError: If the file cannot be read, holds another number of outputs, another shape, values that are not
            probabilities, or without regions ones that do not add up to 1.
    """
    total = np.zeros(shape_zyx, np.float32)
    for index, values in enumerate(_outputs(path, (labels.n_outputs, *shape_zyx))):
        if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
            raise DataError(f"{path}: output {index} holds values outside 0 to 1 or NaN, expected probabilities.")
        if not labels.has_regions:
            total += values
        yield values
    gap = 0.0 if labels.has_regions else float(np.abs(total - 1).max(initial=0))
    if gap > _MAX_SUM_GAP:
        raise DataError(f"{path}: the outputs of a voxel add up to 1 ± {gap:.2g}, expected 1. Are they a softmax?")


def _outputs(path: Path, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the arrays along the first axis of `probabilities`, read one after the other."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("a newer version of the format")
            stored, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if stored != shape or is_fortran or dtype.kind != "f":
                raise DataError(
                    f"{path}: holds probabilities {stored} {dtype}{' in Fortran order' * is_fortran}, expected floats "
                    f"{shape} (background and labels, or regions; Z; Y; X). They belong to another image or model."
                )
            n_values = int(np.prod(shape[1:]))
            for _ in range(shape[0]):
                yield np.frombuffer(stream.read(n_values * dtype.itemsize), dtype, n_values).reshape(shape[1:])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as fault:
        raise DataError(f"{path}: cannot be read as probabilities ({fault}). Predict the case again.") from None


Share = Annotated[float, Field(ge=0, le=1)]


class Reliability(Record):
    """Predicted probabilities of a label against how often the label is there. Every patient counts equally.

    Args:
        ece: Mean gap between probability and frequency over the bins. Chance alone makes it positive, the more so the
            fewer patients there are.
        ece_debiased: The same without what chance adds: 0 on average if the probabilities are right, and never above
            the true gap on average.
        low, high: 95 % interval of the true gap over patients; None if there is none.
        note: Why there is no interval; empty otherwise.
        share: Of the voxels, by bin.
        probability, frequency: Means by bin; None for a bin without voxels.
    """

    ece: Share
    ece_debiased: float
    low: Share | None
    high: Share | None
    note: str
    share: tuple[Share, ...]
    probability: tuple[Share | None, ...]
    frequency: tuple[Share | None, ...]


class LabelCalibration(Record):
    """Calibration of a label.

    Args:
        label: Name.
        n_patients: Patients with voxels to judge.
        before: Of the probabilities as the network gives them.
        after: With the temperature of each fold, fitted on the other folds; None with a single fold.
    """

    label: str
    n_patients: PositiveInt
    before: Reliability
    after: Reliability | None


class CalibrationReport(Record):
    """calibration.json: how well the out-of-fold probabilities of a configuration are calibrated.

    Args:
        temperature: Logits are divided by it. It is fitted on the validation cases of all folds: for new images.
        temperature_of_fold: For each fold, fitted on the validation cases of the other ones; empty with a single fold.
        n_cases, n_patients: What it was fitted on.
        weights: Digests of the folds' weights, by `<configuration>/<fold>`.
        labels: By label; those that no case has and no mask shows are left out.
    """

    temperature: PositiveFloat
    temperature_of_fold: dict[str, PositiveFloat]
    n_cases: NonNegativeInt
    n_patients: NonNegativeInt
    weights: dict[str, str]
    labels: tuple[LabelCalibration, ...]

    @property
    def temperature_text(self) -> str:
        """The temperature, and whether it is an end of the list that was searched: a better one may lie beyond."""
        smallest, largest = TEMPERATURE_RANGE
        end = {smallest: " (the smallest tried)", largest: " (the largest tried)"}.get(self.temperature, "")
        return f"{self.temperature:.2f}{end}"

    @property
    def makes_worse(self) -> bool:
        """True if the mean ECE of the labels is larger with the temperatures than without, on the folds left out."""
        gaps = [(one.before.ece, one.after.ece) for one in self.labels if one.after is not None]
        return sum(after - before for before, after in gaps) > 0
