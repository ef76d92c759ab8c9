"""nnU-Net's two files for tests, and plans through the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe.cli.main import run

INTENSITIES = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")


def with_intensities(fingerprint: Mapping[str, Any], n_channels: int) -> dict[str, Any]:
    """A fingerprint with made-up intensities where it has none."""
    key = "foreground_intensity_properties_per_channel"
    made_up = {str(c): {name: float(i + c) for i, name in enumerate(INTENSITIES, 1)} for c in range(n_channels)}
    return {**fingerprint, key: fingerprint.get(key) or made_up}


def plan_files(folder: Path, fingerprint: Mapping[str, Any], dataset: Mapping[str, Any], *options: str) -> Path:
    """Write both files, plan from them by the command line; returns the work folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    files = ["--nnunet-fingerprint", str(folder / "dataset_fingerprint.json")]
    files += ["--nnunet-dataset", str(folder / "dataset.json")]
    assert run(["plan", "--no-cost", *files, "-o", str(folder / "work"), *options]) == 0
    return folder / "work"


def exported(work: Path) -> dict[str, Any]:
    """The work folder's plan as nnU-Net's plans.json."""
    output = work / "plans.json"
    assert run(["export", str(work), "--to", "nnunet-plans", str(output)]) == 0
    plans: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return plans
