"""Plans against those that nnunetv2 2.8.1 wrote, from its two files to its plans.json by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunet_files import exported, plan_files, with_intensities
from published import PUBLISHED_PLANS, REPOSITORY

from segpipe.plan.geometry import feature_voxels
from segpipe.plan.schema import Plan

GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "nnunet_plans.json").read_text("utf-8"))
PRESETS = {
    "default_8": ("--preset", "nnunet"),
    "default_24": ("--preset", "nnunet", "--gpu-memory", "24"),
    "resM": ("--preset", "resenc_m"),
    "resL": ("--preset", "resenc_l"),
}
SAME_NAMES = {"patch_size": "patch_size", "batch_size": "batch_size", "spacing": "spacing", "batch_dice": "batch_dice"}
SAME_NAMES |= {"median": "median_image_size_in_voxels", "normalization": "normalization_schemes"}
SAME_NAMES |= {"use_mask": "use_mask_for_norm"}
STAGES = {"strides": "strides", "kernels": "kernel_sizes", "features": "features_per_stage"}


def golden_fingerprint(golden: dict[str, Any]) -> dict[str, Any]:
    repeat = golden.get("fingerprint_repeat")
    if repeat:
        golden = {
            "fingerprint": {
                "spacings": [repeat["spacing"]] * repeat["n"],
                "shapes_after_crop": [repeat["shape"]] * repeat["n"],
                "median_relative_size_after_cropping": repeat["rel"],
            },
            "dataset_json": golden["dataset_json"],
        }
    return with_intensities(golden["fingerprint"], len(golden["dataset_json"]["channel_names"]))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", GOLDEN)
def test_made_up_fingerprints_give_nnunets_plans(case: str, preset: str, tmp_path: Path) -> None:
    golden = GOLDEN[case]
    work = plan_files(tmp_path, golden_fingerprint(golden), golden["dataset_json"], *PRESETS[preset])
    found, expected = exported(work), golden["plans"][preset]
    assert found["transpose_forward"] == expected["transpose_forward"]
    assert sorted(found["configurations"]) == sorted(expected["configurations"])
    plan = Plan.load(work / "plan.yaml")
    n_entries = len(golden["dataset_json"]["labels"])
    for name, theirs in expected["configurations"].items():
        ours = found["configurations"][name]
        if "inherits_from" in theirs:
            assert ours == theirs
            continue
        stages = ours["architecture"]["arch_kwargs"]
        assert {key: ours[name] for key, name in SAME_NAMES.items()} == {key: theirs[key] for key in SAME_NAMES}
        assert {key: stages[name] for key, name in STAGES.items()} == {key: theirs[key] for key in STAGES}
        assert stages.get("n_conv_per_stage", stages.get("n_blocks_per_stage")) == theirs["blocks"]
        voxels = feature_voxels(plan.configurations[name].network, ours["patch_size"], n_entries)
        assert voxels == theirs["feature_map_voxels"]


MSD = {"default": "nnunet", "resenc_m": "resenc_m", "resenc_l": "resenc_l"}
NAMED_BY_ITS_AUTHORS = {"dataset_name", "plans_name", "data_identifier", "experiment_planner_used"}


def without_names(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: without_names(value) for key, value in values.items() if key not in NAMED_BY_ITS_AUTHORS}


@pytest.mark.parametrize("planner", MSD)
@pytest.mark.parametrize(
    "task", ["002_Heart", "003_Liver", "004_Hippocampus", "007_Pancreas", "009_Spleen", "010_Colon"]
)
def test_published_fingerprints_give_nnunets_whole_files(task: str, planner: str, tmp_path: Path) -> None:
    folder = PUBLISHED_PLANS / f"Dataset{task}"
    if not folder.exists():
        pytest.skip(f"no published plans of nnunetv2 at {PUBLISHED_PLANS}")
    files = (json.loads((folder / name).read_text("utf-8")) for name in ("dataset_fingerprint.json", "dataset.json"))
    found = exported(plan_files(tmp_path, *files, "--preset", MSD[planner]))
    assert without_names(found) == without_names(json.loads((folder / f"plans_{planner}.json").read_text("utf-8")))
    if planner != "default":  # the residual planners use the plain one's data where they can
        assert found["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_3d_fullres"
