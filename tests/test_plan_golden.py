"""Plans against those that nnunetv2 2.8.1 writes (not part of the repository)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from published import GOLDEN_PLANS

from segpipe.core.labels import Label, LabelSet
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, Intensities
from segpipe.plan.make import make_plan
from segpipe.plan.schema import Plan
from segpipe.plan.topology import feature_voxels

PRESETS = {"default_8": "nnunet", "resM": "resenc_m", "resL": "resenc_l"}
NAMES = {"ct": "CTNormalization", "zscore": "ZScoreNormalization", "none": "NoNormalization"}
NAMES |= {"rescale_0_1": "RescaleTo01Normalization", "rgb_0_1": "RGBTo01Normalization"}


def _intensities(fingerprint: dict[str, Any], channel: str) -> Intensities:
    """One channel's; the decisions of channels that are not CT do not depend on them."""
    known = fingerprint.get("foreground_intensity_properties_per_channel", {}).get(channel)
    return Intensities(**(known or dict.fromkeys(set(Intensities.model_fields) - {"histogram"}, 1.0)))


def from_nnunet(fingerprint: dict[str, Any], dataset: dict[str, Any]) -> tuple[Fingerprint, LabelSet]:
    """nnU-Net's two files as ours."""
    cases = tuple(
        CaseFingerprint(
            case_id=str(i),
            site=None,
            orientation="LPS",
            spacing_mm=tuple(spacing),
            shape_zyx=None,
            cropped_shape_zyx=tuple(int(n) for n in shape),
            labels={},
            content="",
            signature="",
        )
        for i, (spacing, shape) in enumerate(
            zip(fingerprint["spacings"], fingerprint["shapes_after_crop"], strict=True)
        )
    )
    channels = tuple((dataset.get("channel_names") or dataset["modality"]).values())
    n_channels = len(channels)
    intensities = tuple(_intensities(fingerprint, str(i)) for i in range(n_channels))
    names = [name for name in dataset["labels"] if name not in ("background", "ignore")]
    ignore = dataset["labels"].get("ignore")
    labels = LabelSet(
        labels=tuple(Label(name=name, values=(i + 1,)) for i, name in enumerate(names)),
        ignore_value=None if ignore is None else 10_000,
    )
    found = Fingerprint(
        orientation="LPS",
        channels=channels,
        cases=cases,
        intensities=intensities,
        median_relative_size_after_cropping=fingerprint["median_relative_size_after_cropping"],
    )
    return found, labels


def assert_same_decisions(plan: Plan, golden: dict[str, Any], n_entries: int) -> None:
    assert list(plan.axis_order) == golden["transpose_forward"]
    assert [n for n in golden["configurations"] if "cascade" not in n] == list(plan.configurations)
    for name, ours in plan.configurations.items():
        theirs = golden["configurations"][name]
        n_axes = ours.network.n_axes
        assert list(ours.patch_zyx[-n_axes:]) == list(theirs["patch_size"]), name
        assert ours.batch_size == theirs["batch_size"], name
        assert list(ours.spacing_mm[-n_axes:]) == pytest.approx(theirs["spacing"]), name
        assert ours.batch_dice == theirs["batch_dice"], name
        assert list(ours.network.features) == theirs["features"], name
        assert [list(s) for s in ours.network.strides_zyx] == theirs["strides"], name
        assert [list(k) for k in ours.network.kernels_zyx] == theirs["kernels"], name
        assert list(ours.network.blocks) == theirs["blocks"], name
        assert [NAMES[n.scheme] for n in plan.normalisation] == theirs["normalization"]
        assert [n.within_nonzero for n in plan.normalisation] == theirs["use_mask"]
        voxels = feature_voxels(ours.network, ours.patch_zyx[-n_axes:], n_entries)
        assert voxels == theirs["feature_map_voxels"], name


def synthetic() -> list[tuple[str, str]]:
    if not GOLDEN_PLANS.exists():
        return []
    return [(c, p) for c in json.loads(GOLDEN_PLANS.read_text()) for p in PRESETS]


@pytest.mark.parametrize(("case", "preset"), synthetic() or [("", "")])
def test_synthetic_fingerprints_give_nnunets_plans(case: str, preset: str) -> None:
    if not case:
        pytest.skip(f"no plans of nnunetv2 at {GOLDEN_PLANS}")
    golden = json.loads(GOLDEN_PLANS.read_text())[case]
    fingerprint = golden["fingerprint"]
    if golden.get("fingerprint_repeat"):
        repeat = golden["fingerprint_repeat"]
        fingerprint = fingerprint or {}
        fingerprint |= {
            "spacings": [repeat["spacing"]] * repeat["n"],
            "shapes_after_crop": [repeat["shape"]] * repeat["n"],
        }
        fingerprint.setdefault("median_relative_size_after_cropping", repeat["rel"])
    plan = make_plan(*from_nnunet(fingerprint, golden["dataset_json"]), case, PRESETS[preset], "cuda")
    assert_same_decisions(plan, golden["plans"][preset], len(golden["dataset_json"]["labels"]))
