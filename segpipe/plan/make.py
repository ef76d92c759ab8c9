"""From fingerprint to plan: a pure function, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segpipe.core.errors import PlanError
from segpipe.core.labels import LabelSet
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.geometry import Floats, PlannerInput, planner_input
from segpipe.plan.laterality import ORIENTATION, order_in, sided_labels, sideways_axis
from segpipe.plan.patch import CountedVoxels, PatchBudget, PredictMemory, fit, patch_budget
from segpipe.plan.presets import MAX_BATCH, PRESETS, Preset, find_preset
from segpipe.plan.reasons import reasons_for
from segpipe.plan.schema import SCHEMES, Configuration, Normalisation, Plan

MASKED_BELOW = 0.75  # share of voxels that cropping keeps; below it zeros would dominate the statistics
_LOWRES_BELOW = 0.25  # share of the median image that a patch covers; below it context is missing
_LOWRES_STEP = 1.03  # nnU-Net's: voxels grow in steps of 3 %
_LOWRES_MIN_GAIN = 2.0  # times fewer voxels; with less gain a second configuration is not worth training
_MOST_COARSENED = 2.0  # times the dataset's voxel edge, where a preset sees more with coarser voxels
_SCHEME_OF_CHANNEL = {row.channel: name for name, row in SCHEMES.items() if row.channel}


@dataclass(frozen=True, eq=False)
class _Fitting:
    """The preset, budget and dataset that every configuration is fitted with."""

    preset: Preset
    budget: PatchBudget
    measured: PlannerInput


@dataclass(frozen=True)
class CpuMemory:
    """Memory of a CPU for training, GiB; `is_limit` if a person asked for it, else it is what there is."""

    gib: float
    is_limit: bool


def make_plan(
    fingerprint: Fingerprint,
    labels: LabelSet,
    dataset: str,
    preset_name: str,
    device: str,
    gpu_memory_gib: float | None = None,
    predict: PredictMemory | None = None,
    fold_seconds: float | None = None,
    cpu_memory: CpuMemory | None = None,
) -> Plan:
    """Decide everything.

    Args:
        fingerprint: The measured dataset.
        labels: Its structures.
        dataset: Its name.
        preset_name: A row of `PRESETS`, or `auto`.
        device: `cpu`, or the kind of a GPU: what `auto` plans for where no memory is given.
        gpu_memory_gib: Memory to plan for; None: what the preset stands for.
        predict: Predicts the memory of training; asked for presets that have no count of nnU-Net's.
        fold_seconds: Time to train one fold, for `auto`; None: enough.
        cpu_memory: Memory for training on a CPU; None: what the preset stands for.

    Raises:
        PlanError: If the preset is unknown or the images are too small for any network.
    """
    is_auto = preset_name == "auto"
    named = None if is_auto else find_preset(preset_name).for_memory(gpu_memory_gib)
    measured = planner_input(fingerprint, labels, exact=named is not None and named.is_exact)
    preset = named or auto_preset(measured, device, gpu_memory_gib, fold_seconds)
    if cpu_memory is not None and preset.reference_gib is None:
        preset = _fit_to_cpu(preset, measured, cpu_memory)
    configurations = _configurations(_Fitting(preset, patch_budget(preset, measured, predict), measured))
    normalisation = _normalisation(fingerprint)
    sided = () if preset.is_exact else sided_labels(labels.names)
    order = order_in(ORIENTATION, fingerprint.orientation, measured.axis_order)
    sideways = sideways_axis(ORIENTATION, order)
    return Plan(
        preset=preset_name,
        dataset=dataset,
        fingerprint=fingerprint.content_digest(),
        channels=fingerprint.channels,
        labels=labels,
        orientation=ORIENTATION,
        axis_order=order,
        normalisation=normalisation,
        mirror_axes=tuple(axis for axis in (0, 1, 2) if preset.mirrors and not (sided and axis == sideways)),
        configurations=configurations,
        training=preset.training,
        reasons=reasons_for(preset, fingerprint, measured, configurations, normalisation, sided),
        gpu_memory_gib=gpu_memory_gib if preset.reference_gib is not None else None,
        is_for_gpu=preset.reference_gib is not None,
    )


def _configurations(fitting: _Fitting) -> dict[str, Configuration]:
    """Return every configuration that the rules ask for and the images are large enough for."""
    measured = fitting.measured
    found = {"2d": _configuration(fitting, measured.spacing_mm[1:], measured.median_shape[1:], batch_dice=True)}
    if measured.median_shape[0] != 1:
        lowres = None if fitting.preset.view else _lowres(fitting)
        found["3d_lowres"] = lowres
        found["3d_fullres"] = _fullres(fitting, batch_dice=lowres is not None)
        if lowres is not None and (full := found["3d_fullres"]) is not None:
            found["3d_cascade"] = full.model_copy(update={"inherits": "3d_fullres", "previous": "3d_lowres"})
    possible = {name: configuration for name, configuration in found.items() if configuration is not None}
    if not possible:
        edges = " × ".join(f"{m:g}" for m in measured.median_shape)
        spacing = " × ".join(f"{s:.3g}" for s in measured.spacing_mm)
        raise PlanError(
            f"the images are too small for a U-Net: their median is {edges} voxels at {spacing} mm, expected at least "
            "two edges of 8 voxels or one of 12. Use larger images."
        )
    return possible


def _configuration(
    fitting: _Fitting,
    spacing_mm: Sequence[float] | Floats,
    median_shape: Sequence[float] | Floats,
    *,
    batch_dice: bool,
    voxels: float | None = None,
) -> Configuration | None:
    """Return one configuration; None if the images are too small for two stages."""
    spacing, measured = [float(s) for s in spacing_mm], fitting.measured
    fitted = fit(fitting.preset, fitting.budget, spacing, list(median_shape), voxels or measured.voxels)
    if fitted is None:
        return None
    flat = len(spacing) == 2
    z, y, x = (1, *fitted.patch) if flat else fitted.patch
    median_z, median_y, median_x = (float(n) for n in (measured.median_shape if flat else median_shape))
    return Configuration(
        spacing_mm=(None if flat else spacing[0], spacing[-2], spacing[-1]),
        median_shape_zyx=(median_z, median_y, median_x),
        patch_zyx=(z, y, x),
        batch_size=fitted.batch_size,
        batch_dice=batch_dice,
        network=fitted.network,
    )


def _fullres(fitting: _Fitting, *, batch_dice: bool) -> Configuration | None:
    """Plan at the dataset's voxels, or at coarser ones if the preset wants a patch to cover more of an image."""
    measured, preset = fitting.measured, fitting.preset
    spacing, shape = measured.spacing_mm, measured.median_shape
    while True:
        found = _configuration(fitting, spacing, shape, batch_dice=batch_dice)
        if found is None or np.prod(found.patch_zyx) >= preset.view * np.prod(shape):
            return found
        coarser = _coarser(spacing)
        if (coarser > _MOST_COARSENED * measured.spacing_mm).any():
            return found
        spacing, shape = coarser, np.round(measured.spacing_mm / coarser * measured.median_shape)


def _coarser(spacing_mm: Floats) -> Floats:
    """Return voxels one step coarser, along every axis or only along those much finer than the coarsest."""
    finer = spacing_mm.max() / spacing_mm > 2
    return np.where(finer if finer.any() else True, spacing_mm * _LOWRES_STEP, spacing_mm)


def _lowres(fitting: _Fitting) -> Configuration | None:
    """Plan coarser voxels so that a patch covers a quarter of the median image; None if it does already."""
    measured = fitting.measured
    full = _configuration(fitting, measured.spacing_mm, measured.median_shape, batch_dice=True)
    if full is None:
        return None
    found, spacing = None, measured.spacing_mm
    patch_voxels, image_voxels = np.prod(full.patch_zyx), float(np.prod(measured.median_shape))
    while patch_voxels / image_voxels < _LOWRES_BELOW:
        spacing = _coarser(spacing)
        shape = measured.spacing_mm / spacing * measured.median_shape
        image_voxels = float(np.prod(shape))
        found = _configuration(
            fitting,
            spacing,
            [round(float(n)) for n in shape],
            batch_dice=False,
            voxels=image_voxels * measured.n_cases,
        )
        if found is None:
            return None
        patch_voxels = np.prod(found.patch_zyx)
    gain = float(np.prod(measured.median_shape)) / image_voxels
    return found if gain >= _LOWRES_MIN_GAIN else None


def _normalisation(fingerprint: Fingerprint) -> tuple[Normalisation, ...]:
    masked = fingerprint.median_relative_size_after_cropping < MASKED_BELOW
    result = []
    known = fingerprint.intensities or (None,) * len(fingerprint.channels)
    for channel, seen in zip(fingerprint.channels, known, strict=True):
        scheme = _SCHEME_OF_CHANNEL.get(channel.casefold(), "zscore")
        if scheme == "ct" and seen is None:
            raise PlanError(
                f"channel {channel}: the fingerprint has no intensities, by which CT is clipped. Run `segpipe plan` on "
                "the images."
            )
        if scheme == "ct" and seen is not None:
            result.append(
                Normalisation(
                    scheme="ct",
                    low=seen.percentile_00_5,
                    high=seen.percentile_99_5,
                    mean=seen.mean,
                    std=max(seen.std, 1e-8),
                )
            )
        else:
            result.append(
                Normalisation.model_validate({"scheme": scheme, "within_nonzero": masked and scheme == "zscore"})
            )
    return tuple(result)


_MAX_GIB = 24.0  # 40 GiB gave +0.02 Dice on six datasets for twice the time (L 87.56, XL 87.58)
_FIXED_GIB, _VOXELS_PER_GIB = 2.6, 104e6  # of training, a line through M, L and XL: 9.1, 22.7, 36.6
_USED_SHARE = 0.95  # of the memory; the rest is the allocator's and the screen's
_LEAST_SHARE = 0.3  # of a small GPU's memory for feature maps, below which the line is not trusted
_ROOMY_BATCH = 8  # a residual network with room for this many whole patches is not short of capacity
_COVERAGE = 0.05
_SHORT_SECONDS = 3600.0  # measured at 600, where coarse voxels and half of the image were ahead; see benchmarks/LOG.md


def auto_preset(
    measured: PlannerInput, device: str, gpu_memory_gib: float | None, fold_seconds: float | None = None
) -> Preset:
    """The preset for a dataset and a machine.

    Args:
        measured: The dataset.
        device: `cpu`, or the kind of a GPU.
        gpu_memory_gib: Memory of the GPU; None: not known, then as much as is used at most.
        fold_seconds: Time to train one fold; None: enough.

    Source:
        Memory and sizes of networks: Isensee et al. 2024 (nnU-Net Revisited), table of presets; plain against
        residual on ten datasets: AutoNNUnet's full cross-validations of nnU-Net's presets. Differs from nnU-Net's
        residual presets: the batch is bounded, 2D patches shrink only until a batch of 2 fits, and the budget follows
        the memory that training was measured to take.
    """
    if device == "cpu" and gpu_memory_gib is None:
        is_short = fold_seconds is not None and fold_seconds <= _SHORT_SECONDS
        return PRESETS["cpu_short" if is_short else "cpu"]
    limit_gib = min(gpu_memory_gib or _MAX_GIB, _MAX_GIB)
    residual = _bound_budget(PRESETS["resenc_l"], limit_gib)
    axes = slice(1 if measured.median_shape[0] == 1 else 0, None)  # single slices: their 2D network decides
    found = fit(
        replace(residual, coverage=1.0, max_batch=None),
        CountedVoxels(residual, measured.n_label_entries),
        measured.spacing_mm[axes].tolist(),
        measured.median_shape[axes].tolist(),
        measured.voxels * 1e6,  # the batch by memory alone
    )
    memory = f"{limit_gib:g} GiB of GPU memory" + (
        " (more memory does not raise Dice)" if limit_gib == _MAX_GIB else ""
    )
    if found is not None and found.batch_size >= _ROOMY_BATCH:
        return replace(
            _bound_budget(PRESETS["nnunet"], limit_gib),
            why=f"A plain U-Net: the images are so small that {found.batch_size} patches of a residual U-Net would fit "
            f"in {memory}, and on such images deeper networks were slower but no better (hippocampus: Dice 89.0 plain, "
            "88.8 and 88.6 residual).",
        )
    return replace(
        residual,
        why=f"A residual encoder U-Net for {memory}: on large images it scored higher than the plain one (six "
        "datasets: Dice 87.6 against 86.8), elsewhere the same.",
    )


def _bound_budget(preset: Preset, limit_gib: float) -> Preset:
    voxels = _VOXELS_PER_GIB * max(_USED_SHARE * limit_gib - _FIXED_GIB, _LEAST_SHARE * limit_gib)
    preset = preset.scale(voxels / preset.reference_voxels[3])
    return replace(preset, coverage=_COVERAGE, max_batch=MAX_BATCH, batch_in_shrink=True, is_exact=False)


_CPU_FIXED_GIB, _CPU_VOXELS_PER_GIB = 0.87, 50e6  # of training, by the predicted memory of five datasets
_CPU_STEP, _CPU_LEAST = 1.25, 1 / 16  # of a budget
_CPU_COVERAGE = 0.05  # of the median image; ACDC's patch of 16 % is the one whose scores were measured
_CPU_MOST = 4.0  # times the budget unasked: a step takes as much longer, and the recipe's 12 500 already take hours


def _fit_to_cpu(preset: Preset, measured: PlannerInput, memory: CpuMemory) -> Preset:
    """Scale the budget of a preset for CPUs to the memory.

    More memory than the preset usually takes makes every step slower. So it is taken only while a patch covers less
    than a twentieth of the median image, and not where time is short. A limit that a person sets may be used up, until
    a patch covers a quarter.
    """
    fits = _CPU_VOXELS_PER_GIB * (memory.gib - _CPU_FIXED_GIB) / preset.reference_voxels[3]
    most = fits if memory.is_limit else min(fits, _CPU_MOST if not preset.view else 1.0)
    enough = _LOWRES_BELOW if memory.is_limit else _CPU_COVERAGE
    factor = 1.0
    while factor * _CPU_STEP <= most and _coverage(preset.scale(factor), measured) < enough:
        factor *= _CPU_STEP
    factor = min(factor, max(fits, _CPU_LEAST))
    if factor == 1:
        return preset
    why = (
        "so that a patch covers more of an image; every step takes as much longer"
        if factor > 1
        else f"to fit {memory.gib:.3g} GiB of memory"
    )
    scaled = preset.scale(factor)
    return replace(scaled, why=f"{preset.why} Feature maps may take {factor:.2g} times the usual memory, {why}.")


def _coverage(preset: Preset, measured: PlannerInput) -> float:
    """Share of the median image that the patch of a preset covers; 1 if there is no network."""
    axes = slice(1 if measured.median_shape[0] == 1 else 0, None)  # single slices: their 2D network decides
    budget = CountedVoxels(preset, measured.n_label_entries)
    shape = measured.median_shape[axes].tolist()
    found = fit(preset, budget, measured.spacing_mm[axes].tolist(), shape, measured.voxels)
    return 1.0 if found is None else float(np.prod(found.patch) / np.prod(shape))
