"""Work and memory that predicting an image takes, known from headers, and memory that there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch

from segpipe.core.errors import DataError, ResourceError
from segpipe.core.grid import Grid
from segpipe.core.machine import free_bytes
from segpipe.core.text import size_text
from segpipe.core.volume import read_header
from segpipe.data.dataset import Case
from segpipe.networks.cost import CPU, CUDA
from segpipe.networks.device import resolve_precision
from segpipe.networks.memory_trace import Workload, trace_inference
from segpipe.plan.geometry import resampled_shape
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import slab_bytes
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
    text = f"at most {n_windows:,} window{'s' * (n_windows != 1)} over all networks and mirrored copies"
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


_GIB = 2**30
_FREE_SHARE = 0.9  # of what is free: other programs take some meanwhile
_FLOAT_BYTES, _READ_BYTES = 4, 8  # of a voxel: float32; as a library hands it over at worst, float64
_SHARE_BYTES = 2  # of a probability, float16
_SLICES_VOX = 2**15  # at once on the CPU: slices of 56 × 40 take half the time 14 at a time, of 256 × 224 the same
_MAX_WINDOWS_VOX = 2 * 128**3  # at once on a GPU: with as many it is busy, and more only takes memory
_MAX_WINDOWS = 32
_SLABS_HELD = 4  # of all outputs: mean, one member's, their entropy, one in between


@dataclass(frozen=True)
class Budget:
    """Memory that a prediction may take.

    Args:
        host_bytes: On the host, for cases; None if the system does not say what is free.
        device_bytes: On the GPU; None on the CPU.
        is_limit: Whether it is a limit of the user (`--max-memory`); else it is what is free.
    """

    host_bytes: int | None
    device_bytes: int | None
    is_limit: bool

    def require(self, case_id: str, need_bytes: int) -> None:
        """Refuse a case before it is read.

        Raises:
            ResourceError: If it would take more than the host may give.
        """
        if self.host_bytes is not None and need_bytes > self.host_bytes:
            there = f"{size_text(self.host_bytes)} are free"
            if self.is_limit:
                there = f"--max-memory leaves {size_text(self.host_bytes)} after the program's own "
                there += size_text(CPU.context_bytes)
            raise ResourceError(
                f"{case_id}: needs about {size_text(need_bytes)} of memory, according to its header; {there}. Allow "
                "more, crop the image, or use a larger machine."
            )

    def holds(self, need_bytes: int) -> bool:
        """True if this much fits on the host."""
        return self.host_bytes is None or need_bytes <= self.host_bytes


def budget_for(device: torch.device, max_memory_gib: float | None) -> Budget:
    """Memory that is free, or allowed, on the host and on a GPU each. torch itself enforces the limit of a GPU.

    What Python and torch take by themselves is subtracted from the host's limit.
    """
    on_device = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        on_device = int(free * _FREE_SHARE)
        if max_memory_gib is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, max_memory_gib * _GIB / total), device)
            on_device = min(on_device, int(max_memory_gib * _GIB) - CUDA.context_bytes)
    if max_memory_gib is not None:
        return Budget(max(0, int(max_memory_gib * _GIB) - CPU.context_bytes), on_device, is_limit=True)
    return Budget(int(free_bytes() * _FREE_SHARE) or None, on_device, is_limit=False)


def window_bytes(model: Model, n_windows: int) -> int:
    """The most that a pass of one network over some windows takes where the networks are, their weights included."""
    device = model.device
    on_cuda = device.type == "cuda"
    work = Workload(
        n_channels=model.plan.n_inputs(model.configuration),
        patch_zyx=model.configuration.patch_zyx,
        batch_size=n_windows,
        dtype=resolve_precision(model.plan.training.precision, device),
        on_cuda=on_cuda,
    )
    return trace_inference(model.networks[0], work, (CUDA if on_cuda else CPU).scratch_share)


def windows_at_once(model: Model, budget: Budget) -> int:
    """Windows in one pass: 1 on the CPU, but several small slices; on a GPU as many as fit and are of use."""
    window_vox = math.prod(model.configuration.patch_zyx)
    if budget.device_bytes is None:
        return max(1, min(_SLICES_VOX // window_vox, _MAX_WINDOWS)) if model.configuration.patch_zyx[0] == 1 else 1
    one, two = window_bytes(model, 1), window_bytes(model, 2)
    n_fit = 1 + max(0, budget.device_bytes - one) // max(1, two - one)
    return max(1, min(n_fit, _MAX_WINDOWS_VOX // window_vox, _MAX_WINDOWS))


def prediction_bytes(
    grid: Grid, ensemble: Ensemble, options: PredictOptions, *, windows_bytes: int = 0, spools: bool = False
) -> int:
    """Host memory that a case takes at most at any moment, by its grid alone.

    Args:
        grid: Of the image; how much cropping will leave is not known, so nothing is counted as cropped.
        ensemble: Gives channels, outputs, voxel edges and patches. Every member holds its prepared image and its rows.
        options: With probabilities they are held for the whole image; with uncertainty every network holds its rows.
        windows_bytes: What windows take on the host; they are not computed while the image is read and resampled.
        spools: Whether probabilities go over the disk instead: only one output is in memory, when the file is written.
    """
    labels, n_channels = ensemble.plan.labels, len(ensemble.plan.channels)
    n_file = math.prod(grid.shape_zyx)
    n_slab = min(n_file, slab_bytes(ensemble.device) // (labels.n_outputs * _FLOAT_BYTES))
    image = rows = resampling = slab = 0
    for member in ensemble.models:
        depth, height, width = shape = prepared_shape(grid, member)
        patch_z, patch_y, patch_x = member.configuration.patch_zyx
        held = len(member.networks) if options.uncertainty else 1
        n_guides = 0 if member.guide is None else n_channels + 2  # a second array with one channel more, and masks
        image += depth * height * width * (n_channels + n_guides) * _FLOAT_BYTES
        rows += held * min(depth, patch_z) * max(height, patch_y) * max(width, patch_x) * labels.n_outputs
        turned = turn_for(grid, member.plan).permute(grid.shape_zyx)
        wider = height * width / (turned[1] * turned[2])
        # one output of a slab: its rows, between the axes, on the image
        slab = max(slab, round(n_slab * (1 + wider + wider * (shape != turned))))
        own = depth * height * width * n_channels if shape != turned else 0  # else the normalised image is the prepared
        resampling = max(resampling, _resampling_voxels(turned, shape) + own)
    stored = n_file * n_channels * _FLOAT_BYTES
    of_voxel = 2 * labels.mask_dtype.itemsize + 2 * options.uncertainty
    of_voxel += _SHARE_BYTES * options.probabilities * (1 if spools else labels.n_outputs)
    together = len(ensemble.members) > 1 or options.uncertainty
    slabs = _SLABS_HELD * n_slab * labels.n_outputs if together else slab
    prepared_before = image * (len(ensemble.models) > 1)  # of other members, at most
    moments = (
        stored + n_file * n_channels * _READ_BYTES,
        2 * stored + resampling * _FLOAT_BYTES + prepared_before,
        image + (rows + slabs) * _FLOAT_BYTES + n_file * of_voxel + windows_bytes,
    )
    return max(moments)


def _resampling_voxels(shape_zyx: Sequence[int], target_zyx: Sequence[int]) -> int:
    """Voxels of one channel that are held between the axes that `resample` goes along, the one that shrinks most first.

    Two arrays at a time: those before and after an axis, and in the end the result and what is clipped of it.
    """
    if tuple(shape_zyx) == tuple(target_zyx):
        return 0
    pairs = sorted(zip(target_zyx, shape_zyx, strict=True), key=lambda pair: pair[0] / pair[1])
    sizes = [0, *(math.prod(t for t, _ in pairs[:n]) * math.prod(s for _, s in pairs[n:]) for n in (1, 2, 3))]
    return max(*(before + after for before, after in pairwise(sizes)), 2 * sizes[-1])
