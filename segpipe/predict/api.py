"""Prediction from Python: an array in, a mask on the same voxels out; no files are written, no process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from segpipe.core.errors import DataError, GeometryError
from segpipe.core.grid import ZYX, Grid, check_grid
from segpipe.core.volume import SHARE_STEPS, Volume, read_header
from segpipe.data.inputs import list_inputs
from segpipe.networks.device import resolve_device
from segpipe.plan.laterality import AS_STORED, ORIENTATION
from segpipe.plan.schema import Plan
from segpipe.predict.folds import find_members, postprocessing_for, temperature_for
from segpipe.predict.input_warnings import warnings_of
from segpipe.predict.memory import budget_for, prediction_bytes, require_usual_size, window_bytes, windows_at_once
from segpipe.predict.model import Ensemble, load_model
from segpipe.predict.options import PredictOptions
from segpipe.predict.outputs import label_sizes
from segpipe.predict.package import open_model
from segpipe.predict.postprocess import Postprocessing, postprocess
from segpipe.predict.segment import Batching, prepare_for, segment
from segpipe.prepare.case import read_case_image, require_finite

_ARRAY = "array"  # its name in messages
_SAME_EDGE = 1e-2  # relative; as for the two statements of a file's header


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of a prediction.

    Args:
        mask: (Z, Y, X) on the voxels of the image; the dataset's label values, of a type that the labels fix.
        labels: The values of each structure in the mask, by name; of a region those of all it joins.
        probabilities: (outputs, Z, Y, X) float16, background and then the labels, or one for each region; None unless
            requested. Postprocessing does not change them.
        uncertainty: Maps (Z, Y, X) float32 by name, 0 (sure) to 1: `entropy`, and with several networks
            `disagreement`. Empty unless requested by `segpipe.load(…, uncertainty=True)`.
        volumes_ml: Of each structure, by name.
        warnings: How the image differs from the training images.
    """

    mask: NDArray[Any]
    labels: Mapping[str, tuple[int, ...]]
    probabilities: NDArray[np.float16] | None
    uncertainty: Mapping[str, NDArray[np.float32]]
    volumes_ml: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A loaded model, as `segpipe.load` gives it. Several threads may use one; each prediction takes its own memory.

    Args:
        ensemble: What predicts.
        postprocessing: Steps for the masks.
        options: As given to `segpipe.load`.
        window_bytes: What a window takes on the host; 0 if the networks are on a GPU.
        n_windows: In one forward pass.
        notes: Lines that the command prints while it loads the model: what `segpipe select` chose, and warnings.
    """

    ensemble: Ensemble
    postprocessing: Postprocessing
    options: PredictOptions
    window_bytes: int
    n_windows: int
    notes: tuple[str, ...] = ()

    def predict(
        self,
        array: ArrayLike,
        *,
        spacing_mm: Sequence[float] | None = None,
        affine: ArrayLike | None = None,
        probabilities: bool = False,
    ) -> Prediction:
        """Segment an image that is in memory. The mask is the one that `segpipe predict` writes for the same image.

        Args:
            array: (Z, Y, X), or (C, Z, Y, X) for several channels, of any type of real numbers; it is not changed.
                SimpleITK's `GetArrayFromImage` gives this order, nibabel's arrays are its transpose.
            spacing_mm: Voxel edges along Z, Y, X. Given alone, the axes are assumed to run as those of the training
                images, or as in the plan if these differ among them, and a warning says so: for an image with other
                axes, left and right may be swapped.
            affine: (4, 4), from the index (x, y, z, 1) to RAS mm: nibabel's `image.affine`.
            probabilities: Keep them too, which takes memory for outputs × volume.

        Raises:
            DataError: If the array has another number of axes or channels, no voxels, or values that are not finite,
                or is far larger than the images trained on (`any_size`).
            GeometryError: If the voxels are not placed in space, or contradictorily, or the grid is sheared.
            ResourceError: If memory is not enough.

        Example:
            model = segpipe.load("liver.segpipe.zip")
            image = nibabel.load("scan.nii.gz")
            found = model.predict(image.get_fdata().T, affine=image.affine)
        """
        plan = self.ensemble.plan
        voxels = _channels(np.asarray(array), plan)
        depth, height, width = voxels.shape[1:]
        orientation = _assumed_orientation(self.ensemble)
        grid = _grid((depth, height, width), spacing_mm, affine, orientation)
        note = (
            f"no affine was given: x, y, z are assumed to run to {', '.join(orientation)}; for an image with other "
            "axes, left and right may be swapped"
        )
        options = self._options(probabilities)
        self._require(grid, _ARRAY, options)
        return self._predict(Volume(voxels, grid), _ARRAY, () if affine is not None else (note,), options)

    def predict_file(self, path: str | os.PathLike[str], *, probabilities: bool = False) -> Prediction:
        """Segment one image: a file, a folder with a DICOM series, or a folder with a file for each channel.

        Raises:
            DataError: If it cannot be read or does not fit the model, there are several images, or it is far larger
                than the images trained on (`any_size`).
            ResourceError: If memory is not enough.
        """
        cases = list_inputs(Path(path), self.ensemble.plan.channels)
        if len(cases) != 1:
            raise DataError(f"{path}: {len(cases)} images, expected one. For many use `segpipe predict`.")
        options = self._options(probabilities)
        self._require(read_header(cases[0].image_paths[0]).grid, cases[0].case_id, options)
        volume = read_case_image(cases[0], self.ensemble.plan)
        return self._predict(volume, cases[0].case_id, (), options)

    def _options(self, probabilities: bool) -> PredictOptions:
        return replace(self.options, probabilities=probabilities or self.options.probabilities)

    def _require(self, grid: Grid, where: str, options: PredictOptions) -> None:
        """Refuse an image that would take very long, or more memory than there is."""
        if not options.any_size:
            require_usual_size(where, grid, self.ensemble)
        budget = budget_for(self.ensemble.device, options.max_memory_gib)
        budget.require(where, prediction_bytes(grid, self.ensemble, options, windows_bytes=self.window_bytes))

    def _predict(self, volume: Volume, where: str, notes: tuple[str, ...], options: PredictOptions) -> Prediction:
        ensemble, grid, labels = self.ensemble, volume.grid, self.ensemble.plan.labels
        prepared = [prepare_for(member, volume) for member in ensemble.members]
        first = ensemble.members[0]
        warnings = (*notes, *warnings_of(volume, prepared[0].trace, first.plan, first.trained_on))
        shortages = list[str]()
        found, _ = segment(ensemble, prepared, options, where, Batching(self.n_windows), note=shortages.append)
        voxel_mm3 = float(np.prod(grid.spacing_mm))
        mask = postprocess(found.mask_zyx, voxel_mm3, labels, self.postprocessing)
        sizes = label_sizes(mask, grid, labels)
        return Prediction(
            mask=mask,
            labels={label.name: label.values for label in labels.labels},
            probabilities=found.probabilities_ozyx,
            uncertainty={
                name: steps.astype(np.float32) / np.float32(SHARE_STEPS) for name, steps in found.uncertainty.items()
            },
            volumes_ml={name: size.volume_ml for name, size in sizes.items()},
            warnings=(*warnings, *shortages),
        )


def load_predictor(model: str | os.PathLike[str], options: PredictOptions, device: str = "auto") -> Predictor:
    """Load a model, as `segpipe.load` documents it."""
    on, notes = resolve_device(device), list[str]()
    with open_model(Path(model)) as folder, torch.random.fork_rng(devices=[]):  # building a network draws its weights
        members = find_members(folder, options.configurations, options.fold_names, notes.append)
        temperature = temperature_for(options, members, notes.append)
        ensemble = Ensemble(tuple(load_model(folders, on, note=notes.append) for folders in members), temperature)
        postprocessing = postprocessing_for(options, members, ensemble.plan.labels, notes.append)
        notes = [text.replace(str(folder), str(model)) for text in notes]  # a package is unpacked to a private folder
    budget = budget_for(on, options.max_memory_gib)
    return Predictor(
        ensemble=ensemble,
        postprocessing=postprocessing,
        options=options,
        # predicted now: it runs the networks on fake weights, which no other thread may use
        window_bytes=max(window_bytes(own, 1) for own in ensemble.models) if on.type == "cpu" else 0,
        n_windows=min(windows_at_once(own, budget) for own in ensemble.models),
        notes=tuple(notes),
    )


def _channels(array: NDArray[Any], plan: Plan) -> NDArray[np.float32]:
    """(C, Z, Y, X) float32, finite and as many channels as the plan has."""
    n_channels, names = len(plan.channels), ", ".join(plan.channels)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{_ARRAY}: of type {array.dtype}, expected real numbers. Convert it.")
    if array.ndim == 3 and n_channels == 1:
        array = array[None]
    if array.ndim != 4 or len(array) != n_channels:
        wanted = "(Z, Y, X)" if n_channels == 1 else f"({n_channels}, Z, Y, X)"
        raise DataError(
            f"{_ARRAY}: shape {array.shape}, expected {wanted} for the channels {names}. Stack channels along the "
            "first axis; give a single slice as (1, Y, X)."
        )
    if 0 in array.shape:
        raise DataError(f"{_ARRAY}: shape {array.shape} has no voxels, expected at least one along each axis.")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, which is found
        voxels = np.ascontiguousarray(array, dtype=np.float32)
    require_finite(voxels, _ARRAY)
    return voxels


def _assumed_orientation(ensemble: Ensemble) -> str:
    """Orientation of an array without an affine: that of the training images, if all are stored in one way."""
    trained_on, planned = ensemble.members[0].trained_on, ensemble.plan.orientation
    stored = () if trained_on is None else trained_on.orientations
    return stored[0] if len(stored) == 1 else ORIENTATION if planned == AS_STORED else planned


def _grid(shape_zyx: ZYX, spacing_mm: Sequence[float] | None, affine: ArrayLike | None, orientation: str) -> Grid:
    """The grid of an array; without an affine its axes run as `orientation` says."""
    edges = None if spacing_mm is None else _numbers(spacing_mm, (3,), "spacing_mm")
    if edges is not None and (edges <= 0).any():
        raise GeometryError(f"spacing_mm: {edges.tolist()}, expected three edges above 0 mm along Z, Y, X.")
    if affine is None:
        if edges is None:
            raise GeometryError(f"{_ARRAY}: its voxels have no size. Give `affine`, or `spacing_mm` along Z, Y, X.")
        return Grid(shape_zyx, _plain_affine(edges, orientation))
    matrix = _numbers(affine, (4, 4), "affine")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise GeometryError(
            f"affine: last row {matrix[3].tolist()}, expected 0, 0, 0, 1. Look whether it is transposed."
        )
    grid = Grid(shape_zyx, matrix)
    check_grid(grid, _ARRAY)
    if edges is not None and not np.allclose(edges, grid.spacing_mm, rtol=_SAME_EDGE, atol=0):
        raise GeometryError(
            f"spacing_mm says voxels of {edges.tolist()} mm along Z, Y, X, affine {list(grid.spacing_mm)}. Give one of "
            "them; mind that affines are for the index (x, y, z)."
        )
    return grid


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """A copy of some finite numbers."""
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError):
        numbers = np.full((), np.nan)
    if numbers.shape != shape or not np.isfinite(numbers).all():
        wanted = " × ".join(map(str, shape))
        raise GeometryError(f"{name}: found {str(values)[:80]!r}, expected {wanted} finite numbers.")
    return numbers


def _plain_affine(edges_zyx_mm: NDArray[np.float64], orientation: str) -> NDArray[np.float64]:
    """Axes x, y, z along the world's, in the directions of an orientation such as `LPS`."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, (letter, edge_mm) in enumerate(zip(orientation, edges_zyx_mm[::-1], strict=True)):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[row, column] = edge_mm if letter in "RAS" else -edge_mm
    return affine
