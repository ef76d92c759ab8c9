"""The installed nnunetv2 plans a fingerprint: the second opinion on our plans."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
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

    Its networks are made on the meta device, where they take no memory, and without initial values; one that is asked
    for again is not made again. Their own counters of feature maps are asked as always. On `cpu` it works as when it is
    called by itself.
    """
    import importlib

    import torch
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

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
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.multiple(base, **settings))
            patches.enter_context(torch.device(device))
            if device == "meta":
                for module_class in (_ConvNd, _NormBase):
                    patches.enter_context(mock.patch.object(module_class, "reset_parameters", lambda _: None))
                remembered = _remembering(base.get_network_from_plans)
                patches.enter_context(mock.patch.object(base, "get_network_from_plans", remembered))
            memory = {} if gpu_memory_gb is None else {"gpu_memory_target_in_gb": gpu_memory_gb}
            planner("Dataset001_X", **memory).plan_experiment()
    written = next(preprocessed.glob("nnUNet*Plans.json"))
    plans: dict[str, Any] = json.loads(written.read_text("utf-8"))
    return plans


def _remembering(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make networks of the same arguments once."""
    made: dict[str, Any] = {}

    def remembered(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, sorted(options.items())))
        if key not in made:
            made[key] = make(*arguments, **options)
        return made[key]

    return remembered
