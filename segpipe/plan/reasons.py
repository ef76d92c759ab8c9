"""One sentence for each decision of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.presets import Preset
from segpipe.plan.schema import Configuration, Normalisation
from segpipe.plan.spacing import PlannerInput, spacings_and_shapes, uses_fine_tenth

_N_NAMED = 4
_SCHEME_SENTENCES = {
    "ct": "clipped to the dataset's foreground and scaled by it, since its values are a unit",
    "zscore": "by each case's own mean and SD, since its values are not a unit",
    "rescale_0_1": "by each case's own minimum and maximum",
    "rgb_0_1": "divided by 255",
    "none": "left as they are",
}


def reasons_for(
    preset: Preset,
    fingerprint: Fingerprint,
    measured: PlannerInput,
    configurations: Mapping[str, Configuration],
    normalisation: Sequence[Normalisation],
    sided: Sequence[str],
) -> dict[str, str]:
    """Sentences by decision, with the numbers that led to it."""
    return {
        "preset": preset.why,
        "orientation": _orientation(fingerprint),
        "axis_order": "The axis with the longest voxels comes first, so that anisotropic rules apply to axis 0.",
        "spacing": _spacing(fingerprint, measured) + _coarsening(configurations, preset, measured),
        "normalisation": _normalisation(fingerprint, normalisation),
        "mirror_axes": _mirroring(preset, sided),
        **{name: _configuration(name, c, configurations, preset, measured) for name, c in configurations.items()},
        "training": _training(preset),
    }


def _orientation(fingerprint: Fingerprint) -> str:
    if all(case.shape_zyx is None for case in fingerprint.cases):  # nnU-Net's file
        return f"{fingerprint.orientation} is assumed: nnU-Net's files do not tell, since it turns no image."
    counts = fingerprint.orientations
    n_same, n_cases = counts.get(fingerprint.orientation, 0), len(fingerprint.cases)
    if n_same == n_cases:
        return f"All {n_cases} cases are stored in {fingerprint.orientation}."
    return f"{fingerprint.orientation} is the most frequent of {len(counts)} orientations ({n_same} of {n_cases})."


def _spacing(fingerprint: Fingerprint, measured: PlannerInput) -> str:
    edges = _times(measured.spacing_mm.tolist())
    if uses_fine_tenth(*spacings_and_shapes(fingerprint)):
        return (
            f"{edges} mm: the median voxel, but the coarse axis has few slices, so that its finest tenth of the cases "
            "decides; the median would throw away what they show."
        )
    return f"{edges} mm is the median voxel."


def _coarsening(configurations: Mapping[str, Configuration], preset: Preset, measured: PlannerInput) -> str:
    full = configurations.get("3d_fullres")
    if full is None or not preset.view or list(full.spacing_mm) == measured.spacing_mm.tolist():
        return ""
    edges = _times([edge for edge in full.spacing_mm if edge is not None])
    return f" 3d_fullres takes {edges} mm, so that a patch sees half of the image, or twice the edge at most."


def _normalisation(fingerprint: Fingerprint, normalisation: Sequence[Normalisation]) -> str:
    parts = [
        f"{channel} {_SCHEME_SENTENCES[n.scheme]}"
        for channel, n in zip(fingerprint.channels, normalisation, strict=True)
    ]
    kept = fingerprint.median_relative_size_after_cropping
    masked = any(n.within_nonzero for n in normalisation)
    zeros = "zeros are left out" if masked else "zeros are counted"
    return f"{'; '.join(parts)}. Cropping to what is not 0 keeps {kept:.0%} of the median case: {zeros}."


def _mirroring(preset: Preset, sided: Sequence[str]) -> str:
    if not preset.mirrors:
        return "None: all cases are turned to one orientation, and few steps are not spent on anatomy never seen."
    if preset.is_exact:
        return "All axes, as nnU-Net; remove an axis if labels differ only by side."
    if sided:
        more = f" and {len(sided) - _N_NAMED} more" if len(sided) > _N_NAMED else ""
        return f"Not from left to right: {', '.join(sided[:_N_NAMED])}{more} say a side; a mirror image contradicts it."
    return "All axes: no label names a side of the body."


def _configuration(
    name: str, own: Configuration, all_of_them: Mapping[str, Configuration], preset: Preset, measured: PlannerInput
) -> str:
    if own.previous is not None:
        return f"Like {own.inherits}, with the labels that {own.previous} predicts as further channels."
    n_axes = own.network.n_axes
    edges = own.median_shape_zyx[-n_axes:]
    share = min(1.0, math.prod(own.patch_zyx) / math.prod(edges))
    patch, median = _times(own.patch_zyx[-n_axes:]), _times(edges)
    what = "slice" if n_axes == 2 else "image"
    batch = _batch(own, preset, measured)
    text = f"A patch of {patch} covers {share:.0%} of the median {what} of {median} voxels; {batch}."
    full = all_of_them.get("3d_fullres")
    if name == "3d_lowres" and full is not None:
        fraction = math.prod(full.patch_zyx) / math.prod(full.median_shape_zyx)
        text += f" Made since a patch of 3d_fullres sees {fraction:.0%} of the image, less than a quarter."
    return text


def _batch(own: Configuration, preset: Preset, measured: PlannerInput) -> str:
    n_axes = own.network.n_axes
    voxels = math.prod(own.patch_zyx) * (own.batch_size + 1)
    if own.batch_size == 2:
        why = "the smallest batch allowed"
    elif preset.max_batch and own.batch_size == preset.max_batch[n_axes]:
        why = "the largest batch allowed: larger ones made training slower and no better"
    elif voxels > measured.voxels * preset.coverage:
        why = f"{preset.coverage:.0%} of the dataset's voxels at most"
    else:
        why = "what fits the memory"
    return f"a batch of {own.batch_size} is {why}"


def _training(preset: Preset) -> str:
    recipe = preset.training
    length = f"{recipe.epochs} epochs of {recipe.iterations_per_epoch} steps, or laid over a time budget"
    return f"{recipe.optimizer} at {recipe.learning_rate:g}, {recipe.schedule} schedule, {length}."


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{v:.3g}" if isinstance(v, float) and v < 100 else f"{v:g}" for v in values)
