"""The installed nnunetv2 plans a fingerprint: the second opinion on our plans."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

PLANNERS = {
    "nnunet": ("default_experiment_planner", "ExperimentPlanner"),
    "resenc_m": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncM"),
    "resenc_l": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncL"),
    "resenc_xl": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncXL"),
}


def nnunet_plans(
    folder: Path,
    fingerprint: Mapping[str, Any],
    dataset: Mapping[str, Any],
    preset: str,
    gpu_memory_gb: float | None,
    device: str = "meta",
) -> dict[str, Any]:
    """What nnunetv2 writes as plans.json.

    Its networks are made on the meta device, where they take no memory and no time to fill; their own counters of
    feature maps are asked as always. On `cpu` it works as when it is called by itself.
    """
    import importlib

    import torch

    raw, preprocessed = folder / "raw" / "Dataset001_X", folder / "preprocessed" / "Dataset001_X"
    for place in (raw, preprocessed):
        place.mkdir(parents=True, exist_ok=True)
    described = {
        **dataset,
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"a": {"images": ["a"], "label": "a"}},
    }
    (raw / "dataset.json").write_text(json.dumps(described))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    for old in preprocessed.glob("nnUNet*Plans.json"):
        old.unlink()
    module, name = PLANNERS[preset]
    home = "nnunetv2.experiment_planning.experiment_planners."
    settings = {"nnUNet_raw": str(raw.parent), "nnUNet_preprocessed": str(preprocessed.parent)}
    with mock.patch.dict(os.environ, settings), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about memory targets other than the preset's
        base = importlib.import_module(home + PLANNERS["nnunet"][0])
        planner = getattr(importlib.import_module(home + module), name)
        with mock.patch.multiple(base, **settings), torch.device(device):
            memory = {} if gpu_memory_gb is None else {"gpu_memory_target_in_gb": gpu_memory_gb}
            planner("Dataset001_X", **memory).plan_experiment()
    written = next(preprocessed.glob("nnUNet*Plans.json"))
    plans: dict[str, Any] = json.loads(written.read_text("utf-8"))
    return plans
