"""Plans of fingerprints that nobody chose against the installed nnunetv2's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nnunet_files import exported, plan_files, with_intensities
from nnunet_oracle import PLANNERS, nnunet_plans

CHANNELS = ("CT", "ct", "T1", "noNorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")
LISTS = st.sampled_from(["labels", "regions", "ignore"])
SHAPES = {  # kinds of volumes: edges along z, y, x
    "thin": ((2, 20), (64, 700), (64, 700)),
    "huge": ((200, 1500), (300, 900), (300, 900)),
    "tiny": ((8, 40), (8, 60), (8, 60)),
    "any": ((8, 500), (8, 700), (8, 700)),
    "flat": ((1, 1), (16, 3000), (16, 3000)),
}


@st.composite
def fingerprints(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """nnU-Net's two files."""
    kind = draw(st.sampled_from(sorted(SHAPES)))
    n_cases = draw(st.integers(1, 5))
    edges = [draw(st.floats(0.2, 8.0)) for _ in range(3)]
    turned = 0 if kind == "flat" else draw(st.integers(0, 2))  # which axis of the arrays is the short one
    spacings, shapes = [], []
    for _ in range(n_cases):
        spacing = [edge * draw(st.sampled_from([1.0, 1.0, 0.5, 1.3, 2.0])) for edge in edges]
        shape = [draw(st.integers(low, high)) for low, high in SHAPES[kind]]
        if kind == "flat":
            spacing[0] = 999.0
        spacings.append(spacing[-turned:] + spacing[:-turned])
        shapes.append(shape[-turned:] + shape[:-turned])
    names = draw(st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=5))
    n_labels = draw(st.integers(1, 120))
    labels: dict[str, Any] = {"background": 0} | {f"l{v}": v for v in range(1, n_labels + 1)}
    dataset: dict[str, Any] = {"channel_names": {str(i): name for i, name in enumerate(names)}, "labels": labels}
    extra = draw(LISTS)
    if extra == "ignore":
        labels["ignore"] = n_labels + 1
    if extra == "regions":
        labels |= {"l1": [1, 2], "l2": 2}
        dataset["regions_class_order"] = list(range(1, max(n_labels, 2) + 1))
    dataset |= {"numTraining": draw(st.integers(1, 800)), "file_ending": ".nii.gz"}
    kept = draw(st.floats(0.05, 1.0))
    fingerprint = {"spacings": spacings, "shapes_after_crop": shapes, "median_relative_size_after_cropping": kept}
    return with_intensities(fingerprint, len(names)), dataset


_NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # nnU-Net takes a second for each attempt


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=_NO_SHRINKING)
@pytest.mark.parametrize("preset", PLANNERS)
@given(files=fingerprints(), gpu_memory_gb=st.one_of(st.none(), st.floats(2.0, 60.0)))
def test_every_fingerprint_gives_nnunets_plan(
    preset: str, files: tuple[dict[str, Any], dict[str, Any]], gpu_memory_gb: float | None
) -> None:
    fingerprint, dataset = files
    options = [] if gpu_memory_gb is None else ["--gpu-memory", repr(gpu_memory_gb)]
    with tempfile.TemporaryDirectory() as folder:
        expected = nnunet_plans(Path(folder), fingerprint, dataset, preset, gpu_memory_gb)
        found = exported(plan_files(Path(folder) / "ours", fingerprint, dataset, "--preset", preset, *options))
    assert {**found, "dataset_name": ""} == {**expected, "dataset_name": ""}


@pytest.mark.parametrize("preset", PLANNERS)
@pytest.mark.parametrize("shape", [(3, 3, 3), (8, 8, 4), (11, 11, 1)])  # of 3D, 2D or both, one stage is all there is
def test_images_too_small_for_two_stages_give_nnunets_plan(
    shape: tuple[int, int, int], preset: str, tmp_path: Path
) -> None:
    lists = {"spacings": [[1.0, 1.0, 1.0]] * 20, "shapes_after_crop": [list(shape)] * 20}
    fingerprint = with_intensities({**lists, "median_relative_size_after_cropping": 1.0}, 1)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 20}
    expected = nnunet_plans(tmp_path, fingerprint, {**dataset, "file_ending": ".nii.gz"}, preset, None)
    found = exported(plan_files(tmp_path / "ours", fingerprint, dataset, "--preset", preset))
    assert {**found, "dataset_name": ""} == {**expected, "dataset_name": ""}
