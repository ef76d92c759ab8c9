"""The work that an image needs, by its header: voxels after resampling, windows, passes through a network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import prod

from segpipe.core.errors import DataError
from segpipe.core.grid import Grid
from segpipe.core.volume import read_header
from segpipe.data.dataset import Case
from segpipe.plan.spacing import resampled_shape
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.sliding_window import mirrors_of, n_windows
from segpipe.prepare.case import Prepared, turn_for

MAX_TIMES_TRAINED = 50  # the largest training case; larger is a wrong header far more often than a larger body
_ALWAYS_WINDOWS = 1000  # this many are always computed: they take minutes, not days


def prepared_shape(grid: Grid, model: Model) -> tuple[int, ...]:
    """Voxels of an image as a model sees it, if cropping leaves all of it."""
    turn = turn_for(grid, model.plan)
    spacing_mm = turn.permute(grid.spacing_mm)
    pairs = zip(spacing_mm, model.configuration.spacing_mm, strict=True)
    target_mm = [own if target is None else target for own, target in pairs]
    return resampled_shape(turn.permute(grid.shape_zyx), spacing_mm, target_mm)


def windows_of(grid: Grid, model: Model) -> int:
    """Windows of an image for each network of a model and each mirrored copy."""
    return n_windows(prepared_shape(grid, model), model.configuration.patch_zyx)


def passes_of(grid: Grid, ensemble: Ensemble, *, mirror: bool) -> int:
    """Windows of an image, each counted for every network and mirrored copy: what takes the time."""
    total = 0
    for model in ensemble.models:
        axes = model.plan.mirror_axes if mirror else ()
        n_mirrors = len(mirrors_of(axes, model.configuration.patch_zyx))
        total += windows_of(grid, model) * len(model.networks) * n_mirrors
    return total


def readable_grids(cases: Sequence[Case]) -> dict[str, Grid]:
    """Grids by case, from headers alone; a header that cannot be read is skipped here and reported with the image."""
    grids = {}
    for case in cases:
        with suppress(DataError):
            grids[case.case_id] = read_header(case.image_paths[0]).grid
    return grids


def passes_text(n_passes: Sequence[int]) -> str:
    """Describe the work that some images are, in one line."""
    n_windows = sum(n_passes)
    text = (
        f"{n_windows:,} window{'s' * (n_windows != 1)} to compute at most, counted for every network and mirrored copy"
    )
    return f"{text}; the largest image has {max(n_passes):,}" if len(n_passes) > 1 else text


def steps_of(ensemble: Ensemble, prepared: Sequence[Prepared], options: PredictOptions) -> int:
    """Number of calls of `Batching.on_window` for a prepared case."""
    total = 0
    for member, own in zip(ensemble.members, prepared, strict=True):
        alone = len(member.networks) if options.uncertainty else 1
        total += alone * n_windows(own.image_czyx.shape[1:], member.configuration.patch_zyx)
        if member.guide is not None and own.coarse is not None:
            total += n_windows(own.coarse.image_czyx.shape[1:], member.guide.configuration.patch_zyx)
    return total


def require_usual_size(where: str, grid: Grid, ensemble: Ensemble) -> None:
    """Refuse an image that would take very long, because its header or the image is a mistake.

    Args:
        where: Which image, for the message.
        grid: Of the image.
        ensemble: What it is for; each member is asked.

    Raises:
        DataError: If it becomes more than `MAX_TIMES_TRAINED` times as many voxels as the largest training case has at
            most, and that is much work.
    """
    for model in ensemble.members:
        n_vox, largest = prod(prepared_shape(grid, model)), _largest_trained(model)
        if n_vox <= MAX_TIMES_TRAINED * largest or windows_of(grid, model) <= _ALWAYS_WINDOWS:
            continue
        shape, edges = (" × ".join(f"{v:.4g}" for v in values) for values in (grid.shape_zyx, grid.spacing_mm))
        raise DataError(
            f"{where}: {shape} voxels of {edges} mm (z, y, x) become {n_vox:.3g} for the network, "
            f"{n_vox / largest:.3g} times the largest training case, in {windows_of(grid, model):,} windows; expected "
            f"{MAX_TIMES_TRAINED} times at most. Correct the header if its voxel edges are wrong, or crop the image; "
            "--any-size (any_size=True in Python) predicts it as it is."
        )


def _largest_trained(model: Model) -> float:
    """Voxels that the largest training case has at most for the network; the median, if nothing else is known."""
    configuration, known = model.configuration, model.trained_on
    if known is None:
        return prod(configuration.median_shape_zyx)
    edges_mm = [
        span.low if target is None else target
        for target, span in zip(configuration.spacing_mm, known.spacing_mm, strict=True)
    ]
    return prod(max(1.0, span.high / mm) for span, mm in zip(known.extent_mm, edges_mm, strict=True))
