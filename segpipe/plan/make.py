"""Fingerprint to plan: a pure function, the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segpipe.core.errors import PlanError
from segpipe.core.labels import LabelSet
from segpipe.fingerprint import Fingerprint
from segpipe.plan.presets import Preset, preset_named
from segpipe.plan.schema import Configuration, Normalisation, Plan
from segpipe.plan.spacing import Floats, axis_order, resampled_shape, spacings_and_shapes, target_spacing
from segpipe.plan.topology import fit

_MASKED_BELOW = 0.75  # share of voxels that cropping keeps
_LOWRES_BELOW = 0.25  # share of the median image that a patch covers
_LOWRES_STEP = 1.03
_LOWRES_MIN_GAIN = 2.0
_SCHEMES = {"ct": "ct", "nonorm": "none", "rescale_to_0_1": "rescale_0_1", "rgb_to_0_1": "rgb_0_1"}


@dataclass(frozen=True)
class _Measured:
    """The dataset as the rules see it, axes in the plan's order."""

    spacing_mm: Floats
    median_shape: Floats
    n_cases: int
    n_label_entries: int

    @property
    def voxels(self) -> float:
        return float(np.prod(self.median_shape) * self.n_cases)


def make_plan(fingerprint: Fingerprint, labels: LabelSet, dataset: str, preset_name: str, device: str) -> Plan:
    """Decide everything.

    Args:
        fingerprint: The measured dataset.
        labels: Its structures.
        dataset: Its name.
        preset_name: A row of `PRESETS`, or `auto`.
        device: `cpu`, `cuda`…: what `auto` plans for.

    Raises:
        PlanError: If the preset is unknown or the images are too small for any network.
    """
    name, preset = preset_named(preset_name, device)
    spacings, shapes = spacings_and_shapes(fingerprint)
    target = target_spacing(spacings, shapes)
    order = axis_order(np.where(np.median(shapes, axis=0) == 1, np.inf, target))  # a lone slice is the coarsest
    resampled = [
        resampled_shape(n, s, target.tolist())
        for n, s in zip(shapes.astype(int).tolist(), spacings.tolist(), strict=True)
    ]
    median_shape = np.median(resampled, axis=0)[list(order)]
    n_entries = len(labels.labels) + 1 + (labels.ignore_value is not None)
    measured = _Measured(target[list(order)], median_shape, len(fingerprint.cases), n_entries)
    configurations = _configurations(preset, measured)
    return Plan(
        preset=name,
        dataset=dataset,
        fingerprint=fingerprint.digest(),
        channels=fingerprint.channels,
        labels=labels,
        orientation=fingerprint.orientation,
        axis_order=order,
        normalisation=_normalisation(fingerprint),
        mirror_axes=(0, 1, 2) if preset.mirrors else (),
        configurations=configurations,
        training=preset.training,
        reasons=_reasons(preset, fingerprint, measured, configurations),
    )


def _configurations(preset: Preset, measured: _Measured) -> dict[str, Configuration]:
    """Every configuration that the rules ask for and the images are large enough for."""
    found = {
        "2d": _configuration(preset, measured.spacing_mm[1:], measured.median_shape[1:], measured, batch_dice=True)
    }
    if measured.median_shape[0] != 1:
        lowres = _lowres(preset, measured)
        batch_dice = lowres is not None
        found["3d_lowres"] = lowres
        found["3d_fullres"] = _configuration(
            preset, measured.spacing_mm, measured.median_shape, measured, batch_dice=batch_dice
        )
    possible = {name: configuration for name, configuration in found.items() if configuration is not None}
    if not possible:
        edges = " × ".join(f"{m:g}" for m in measured.median_shape)
        spacing = " × ".join(f"{s:.3g}" for s in measured.spacing_mm)
        raise PlanError(
            f"the images are too small for a U-Net: median {edges} voxels at {spacing} mm, expected at least two edges "
            "of 8, or one of 12. Give larger images."
        )
    return possible


def _configuration(
    preset: Preset,
    spacing_mm: Sequence[float] | Floats,
    median_shape: Sequence[float] | Floats,
    measured: _Measured,
    *,
    batch_dice: bool,
    voxels: float | None = None,
) -> Configuration | None:
    """One configuration; None if the images are too small for two stages."""
    spacing = [float(s) for s in spacing_mm]
    fitted = fit(preset, spacing, list(median_shape), voxels or measured.voxels, measured.n_label_entries)
    if fitted is None:
        return None
    flat = len(spacing) == 2
    z, y, x = (1, *fitted.patch) if flat else fitted.patch
    edges_zyx = [max(1, round(float(m))) for m in (measured.median_shape if flat else median_shape)]
    return Configuration(
        spacing_mm=(None if flat else spacing[0], spacing[-2], spacing[-1]),
        median_shape_zyx=(edges_zyx[0], edges_zyx[1], edges_zyx[2]),
        patch_zyx=(z, y, x),
        batch_size=fitted.batch_size,
        batch_dice=batch_dice,
        network=fitted.network,
    )


def _lowres(preset: Preset, measured: _Measured) -> Configuration | None:
    """A coarser configuration whose patch covers a quarter of the median image; None if the full one does already."""
    full = _configuration(preset, measured.spacing_mm, measured.median_shape, measured, batch_dice=True)
    if full is None:
        return None
    found, spacing = None, measured.spacing_mm.copy()
    patch_voxels, image_voxels = np.prod(full.patch_zyx), float(np.prod(measured.median_shape))
    while patch_voxels / image_voxels < _LOWRES_BELOW:
        finer = spacing.max() / spacing > 2
        spacing[finer if finer.any() else slice(None)] *= _LOWRES_STEP
        shape = measured.spacing_mm / spacing * measured.median_shape
        image_voxels = float(np.prod(shape))
        found = _configuration(
            preset,
            spacing,
            [round(float(n)) for n in shape],
            measured,
            batch_dice=False,
            voxels=image_voxels * measured.n_cases,
        )
        if found is None:
            return None
        patch_voxels = np.prod(found.patch_zyx)
    gain = float(np.prod(measured.median_shape)) / image_voxels
    return found if gain >= _LOWRES_MIN_GAIN else None


def _normalisation(fingerprint: Fingerprint) -> tuple[Normalisation, ...]:
    masked = fingerprint.median_relative_size_after_cropping < _MASKED_BELOW
    result = []
    for channel, seen in zip(fingerprint.channels, fingerprint.intensities, strict=True):
        scheme = _SCHEMES.get(channel.casefold(), "zscore")
        if scheme == "ct":
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


def _reasons(
    preset: Preset, fingerprint: Fingerprint, measured: _Measured, configurations: dict[str, Configuration]
) -> dict[str, str]:
    kept = fingerprint.median_relative_size_after_cropping
    edges = " × ".join(f"{s:.3g}" for s in measured.spacing_mm)
    reasons = {
        "preset": preset.why,
        "orientation": f"{fingerprint.orientation} is the most frequent orientation of the {measured.n_cases} cases.",
        "axis_order": "The axis with the longest voxels comes first, so that anisotropic rules apply to axis 0.",
        "spacing": f"{edges} mm is the median voxel (a coarse axis with few slices: its 10th percentile).",
        "normalisation": f"By channel name; cropping keeps {kept:.0%} of the median case, so zeros are "
        + ("left out." if kept < _MASKED_BELOW else "counted."),
        "mirror_axes": "All axes, as nnU-Net; remove an axis if labels differ only by side."
        if preset.mirrors
        else "None: all cases are turned to one orientation, and few steps are not spent on anatomy that never occurs.",
    }
    for name, c in configurations.items():
        patch, median = (" × ".join(map(str, v)) for v in (c.patch_zyx, c.median_shape_zyx))
        reasons[name] = (
            f"A patch of {patch} of a median image of {median} voxels, {c.batch_size} in a batch, is what fits the "
            f"preset's budget with {len(c.network.features)} stages."
        )
    return reasons
