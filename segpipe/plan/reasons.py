"""The reason for each decision of a plan, in a sentence or two with its numbers, and what to be warned of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.geometry import PlannerInput, spacings_and_shapes, target_spacing, uses_fine_tenth
from segpipe.plan.laterality import ORIENTATION
from segpipe.plan.presets import Preset
from segpipe.plan.schema import SCHEMES, Configuration, Normalisation, Plan

_N_NAMED = 4
_SAME = 1.01  # times the voxel edge that still counts as equal


def reasons_for(
    preset: Preset,
    fingerprint: Fingerprint,
    measured: PlannerInput,
    configurations: Mapping[str, Configuration],
    normalisation: Sequence[Normalisation],
    sided: Sequence[str],
) -> dict[str, str]:
    """Return sentences by decision, with the numbers that led to it."""
    return {
        "preset": preset.why,
        "orientation": _orientation(fingerprint),
        "axis_order": "The axis with the longest voxels comes first: the rules for anisotropic data apply to axis 0.",
        "spacing": _spacing(fingerprint, measured) + _coarsening(configurations, preset, measured),
        "normalisation": _normalisation(fingerprint, normalisation),
        "mirror_axes": _mirroring(preset, sided),
        **{name: _configuration(name, c, configurations, preset, measured) for name, c in configurations.items()},
        "training": _training(preset),
    }


def _orientation(fingerprint: Fingerprint) -> str:
    if all(case.shape_zyx is None for case in fingerprint.cases):  # nnU-Net's file
        return f"All cases are turned to {ORIENTATION}. nnU-Net's files do not state how they are stored."
    counts = fingerprint.orientations
    n_same, n_cases = counts.get(fingerprint.orientation, 0), len(fingerprint.cases)
    if n_same == n_cases:
        stored = f"All {n_cases} are stored in {fingerprint.orientation}."
    else:
        stored = f"{fingerprint.orientation} is the most frequent of {len(counts)} ({n_same} of {n_cases})."
    return f"All cases are turned to {ORIENTATION}, as nnU-Net's reorienting reader does. {stored}"


def _spacing(fingerprint: Fingerprint, measured: PlannerInput) -> str:
    edges = _times(measured.spacing_mm.tolist())
    if uses_fine_tenth(*spacings_and_shapes(fingerprint)):
        return (
            f"{edges} mm is the median voxel, except along the coarse axis. That axis has few slices, so the finest "
            "tenth of the cases decides: the median would discard detail that they show."
        )
    return f"{edges} mm is the median voxel."


def _coarsening(configurations: Mapping[str, Configuration], preset: Preset, measured: PlannerInput) -> str:
    full = configurations.get("3d_fullres")
    if full is None or not preset.view or list(full.spacing_mm) == measured.spacing_mm.tolist():
        return ""
    edges = _times([edge for edge in full.spacing_mm if edge is not None])
    return f" 3d_fullres takes {edges} mm: a patch covers half of the image, with voxel edges doubled at most."


def _normalisation(fingerprint: Fingerprint, normalisation: Sequence[Normalisation]) -> str:
    parts = [
        f"{channel} is {', as '.join(filter(None, (SCHEMES[n.scheme].does, SCHEMES[n.scheme].why)))}"
        for channel, n in zip(fingerprint.channels, normalisation, strict=True)
    ]
    kept = fingerprint.median_relative_size_after_cropping
    masked = any(n.within_nonzero for n in normalisation)
    zeros = "Zero voxels are left out" if masked else "Zero voxels are included"
    return f"{'; '.join(parts)}. {zeros}: cropping to the nonzero voxels keeps {kept:.0%} of the median case."


def _mirroring(preset: Preset, sided: Sequence[str]) -> str:
    if not preset.mirrors:
        return (
            "Off: all cases are turned to one orientation, and in a short training mirrored anatomy would waste steps."
        )
    if preset.is_exact:
        return "All axes, as in nnU-Net. Remove an axis if labels differ only by side."
    if sided:
        more = f" and {len(sided) - _N_NAMED} more" if len(sided) > _N_NAMED else ""
        are = "is" if len(sided) == 1 else "are"
        names = ", ".join(sided[:_N_NAMED])
        return f"Not from left to right: {names}{more} {are} side-specific, so mirrored images would be mislabelled."
    return "All axes: no label names a side of the body."


def _configuration(
    name: str, own: Configuration, all_of_them: Mapping[str, Configuration], preset: Preset, measured: PlannerInput
) -> str:
    if own.previous is not None:
        return f"As {own.inherits}, with the labels predicted by {own.previous} as extra input channels."
    n_axes = own.network.n_axes
    edges = own.median_shape_zyx[-n_axes:]
    share = min(1.0, math.prod(own.patch_zyx) / math.prod(edges))
    patch, median = _times(own.patch_zyx[-n_axes:]), _times(edges)
    what = "slice" if n_axes == 2 else "image"
    batch = _batch(own, preset, measured)
    text = f"A patch of {patch} voxels covers {share:.0%} of the median {what} ({median}); {batch}."
    full = all_of_them.get("3d_fullres")
    if name == "3d_lowres" and full is not None:
        fraction = math.prod(full.patch_zyx) / math.prod(full.median_shape_zyx)
        text += f" Planned because a patch of 3d_fullres covers only {fraction:.0%} of the image, less than a quarter."
    return text


def _batch(own: Configuration, preset: Preset, measured: PlannerInput) -> str:
    n_axes = own.network.n_axes
    voxels = math.prod(own.patch_zyx) * (own.batch_size + 1)
    if own.batch_size == 2:
        why = "the smallest allowed"
    elif preset.max_batch and own.batch_size == preset.max_batch[n_axes]:
        why = "the largest allowed: larger ones made training slower but no better"
    elif voxels > measured.voxels * preset.coverage:
        why = f"limited to {preset.coverage:.0%} of the dataset's voxels"
    else:
        why = "as many as fit in memory"
    return f"a batch of {own.batch_size}, {why}"


def _training(preset: Preset) -> str:
    recipe = preset.training
    length = f"{recipe.epochs} epochs of {recipe.iterations_per_epoch} steps, or as long as a time budget allows"
    return f"{recipe.optimizer} with learning rate {recipe.learning_rate:g}, {recipe.schedule} schedule; {length}."


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{v:.3g}" if isinstance(v, float) and v < 100 else f"{v:g}" for v in values)


_LITTLE = 0.05  # share of the median image in a patch, below which a warning says so


def plan_warnings(plan: Plan, fingerprint: Fingerprint) -> list[str]:
    """Return what a person should know before training: little context, or voxels that are not the dataset's."""
    own_mm = target_spacing(*spacings_and_shapes(fingerprint))[list(plan.axes_of(fingerprint.orientation))]
    found = []
    for name, configuration in plan.configurations.items():
        if configuration.network.n_axes != 3 or configuration.previous is not None:
            continue
        share = math.prod(configuration.patch_zyx) / math.prod(configuration.median_shape_zyx)
        if share < _LITTLE:
            found.append(f"{name}: a patch covers {share:.1%} of the median image: little context. {_more(plan, name)}")
        pairs = list(zip(configuration.spacing_mm, own_mm, strict=True))
        if name == "3d_fullres" and any(mm is not None and mm > _SAME * own for mm, own in pairs):
            edges = _times([own if mm is None else mm for mm, own in pairs])
            found.append(
                f"{name} is not full resolution: its voxels are {edges} mm, the dataset's "
                f"{_times(own_mm.tolist())} mm. Small structures suffer. Without a time budget, or with more time, "
                "`auto` keeps the dataset's voxels."
            )
    return found


def _more(plan: Plan, name: str) -> str:
    coarse = plan.configurations.get("3d_lowres")
    if coarse is not None and name != "3d_lowres":
        share = math.prod(coarse.patch_zyx) / math.prod(coarse.median_shape_zyx)
        return f"3d_lowres covers {share:.0%}: train it too (-c 3d_lowres), or the cascade (-c 3d_cascade)."
    return f"Give more memory ({'--gpu-memory' if plan.is_for_gpu else '--max-memory'})."
