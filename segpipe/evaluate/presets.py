"""Choices of metrics that belong together, for `segpipe evaluate --preset`."""

from __future__ import annotations

from dataclasses import dataclass

from segpipe.core.errors import UsageError
from segpipe.core.records import did_you_mean
from segpipe.evaluate.metrics import DEFAULT_METRICS, METRICS, parse_metrics
from segpipe.evaluate.summary import DEFAULT_POLICY


@dataclass(frozen=True)
class Preset:
    """Metrics in the order in which they are shown, and what empty masks count with them."""

    metrics: tuple[str, ...]
    policy: str = DEFAULT_POLICY


def _brats(rule: str) -> Preset:
    shown = [f"lesion_{name}_{rule}" for name in ("dice", "hd95", "sensitivity", "precision")]
    return Preset((*shown, "dice", "hd95"), policy="brats")


_LESION = tuple(f"lesion_{name}" for name in ("f1", "sensitivity", "precision", "dice", "hd95"))
_QUALITY = tuple(f"lesion_{name}_iou50" for name in ("f1", "sq", "pq"))  # f1 is the recognition quality
PRESETS: dict[str, Preset] = {
    "brats": _brats("brats"),
    "brats_men": _brats("brats_men"),
    "brats_met": _brats("brats_met"),
    "lesions": Preset(("dice", *_LESION, *_QUALITY)),
    "tubes": Preset(("cldice", "cldice_sensitivity", "cldice_precision", "dice", "nsd", "hd95")),
    "calibration": Preset(("dice", *(name for name, metric in METRICS.items() if metric.group == "calibration"))),
}


def chosen_metrics(metrics: str | None, preset: str | None) -> tuple[tuple[str, ...], str]:
    """The metrics that two options name together, and the policy that goes with them.

    Args:
        metrics: Names as `parse_metrics` reads them; None if not given.
        preset: A name of `PRESETS`; None if not given.

    Raises:
        UsageError: If a name is unknown.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"preset {preset!r} is unknown.{did_you_mean(preset, list(PRESETS))}")
    named = () if metrics is None else parse_metrics(metrics)
    if preset is None:
        return named or DEFAULT_METRICS, DEFAULT_POLICY
    return tuple(dict.fromkeys((*PRESETS[preset].metrics, *named))), PRESETS[preset].policy
