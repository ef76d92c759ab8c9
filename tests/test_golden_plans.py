"""plans/: what the planner writes now is what stands there; a change of the planner shows in their diff."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from published import PUBLISHED_PLANS, REPOSITORY, SHARED_DATA

from segpipe.cli.main import run

PLANS = REPOSITORY / "plans"
GPU = ("--gpu-memory", "24")
PRESETS = {"nnunet": ("--preset", "nnunet"), "auto": ("--preset", "auto", *GPU), "auto_cpu": ("--device", "cpu")}
TASKS = {
    "heart": "Dataset002_Heart",
    "liver": "Dataset003_Liver",
    "hippocampus": "Dataset004_Hippocampus",
    "pancreas": "Dataset007_Pancreas",
    "spleen": "Dataset009_Spleen",
    "colon": "Dataset010_Colon",
}
IMAGES = ("acdc", "hippocampus_220")  # measured from images, 220 of the 260 training cases


def written(name: str, preset: str, folder: Path) -> str:
    """The plan of a dataset as the command line writes it."""
    files = PUBLISHED_PLANS / TASKS[name] if name in TASKS else SHARED_DATA / name.removesuffix("_220")
    if not files.exists():
        pytest.skip(f"no published data at {files}")
    from_files = ["--nnunet-fingerprint", str(files / "dataset_fingerprint.json")]
    from_files += ["--nnunet-dataset", str(files / "dataset.json")]
    source = from_files if name in TASKS else [str(files), "--no-report"]
    assert run(["plan", *source, "-o", str(folder), "--no-cost", *PRESETS[preset]]) == 0
    decisions, _ = (folder / "plan.yaml").read_text("utf-8").split("command:\n")  # it names files of this machine
    return decisions


CASES = [(name, preset) for name in TASKS for preset in ("nnunet", "auto")]
CASES += [(name, preset) for name in IMAGES for preset in ("nnunet", "auto_cpu")]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_the_planner_still_writes_the_plan_in_the_folder(name: str, preset: str, tmp_path: Path) -> None:
    assert written(name, preset, tmp_path) == (PLANS / f"{name}_{preset}.yaml").read_text("utf-8")


def test_every_plan_in_the_folder_is_kept_by_a_test() -> None:
    assert {path.stem for path in PLANS.glob("*.yaml")} == {f"{name}_{preset}" for name, preset in CASES}


if __name__ == "__main__":  # python tests/test_golden_plans.py: write them anew
    for name, preset in CASES:
        work = Path(sys.argv[1]) / f"{name}_{preset}"
        (PLANS / f"{name}_{preset}.yaml").write_text(written(name, preset, work))
