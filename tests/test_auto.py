"""plan/make.py, plan/laterality.py: our own decisions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import fingerprint

from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.laterality import sided_labels, sideways_axis, words_of
from segpipe.plan.make import CpuMemory, make_plan
from segpipe.plan.patch import Memory
from segpipe.plan.presets import PRESETS
from segpipe.plan.reasons import plan_warnings
from segpipe.plan.schema import Plan

HIPPOCAMPUS = fingerprint([(36, 50, 35)] * 260, [(1.0, 1.0, 1.0)] * 260)
LIVER = fingerprint([(482, 512, 512)] * 131, [(1.0, 0.77, 0.77)] * 131)


def labels(*names: str) -> LabelSet:
    return LabelSet(labels=tuple(Label(name=name, values=(i,)) for i, name in enumerate(names, 1)))


def planned(dataset: Fingerprint, device: str = "cuda", gpu_memory_gib: float | None = None, *names: str) -> Plan:
    return make_plan(dataset, labels(*(names or ("a",))), "x", "auto", device, gpu_memory_gib)


def test_small_images_get_a_plain_network_and_a_bounded_batch():
    full = planned(HIPPOCAMPUS).configurations["3d_fullres"]
    assert (full.network.kind, full.patch_zyx, full.batch_size) == ("plain", (40, 56, 40), 8)  # residual L takes 178
    assert planned(HIPPOCAMPUS).configurations["2d"].batch_size == 48  # nnU-Net 366, its residual presets 1618, 4554
    assert "patches of a residual U-Net would fit" in planned(HIPPOCAMPUS).reasons["preset"]


def test_large_images_get_a_residual_network_and_the_memory_that_is_there():
    plans = {gb: planned(LIVER, "cuda", gb) for gb in (8.0, 24.0, 80.0)}
    edges = {gb: plan.configurations["3d_fullres"].patch_zyx for gb, plan in plans.items()}
    assert edges[24.0] == (192, 192, 192)  # as nnU-Net's residual preset for 24 GB plans the published dataset
    assert edges[8.0] == (112, 128, 128) and edges[80.0] == edges[24.0]
    assert all(plan.configurations["3d_fullres"].network.kind == "residual" for plan in plans.values())
    assert list(plans[8.0].configurations) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade"]


def test_two_dimensional_patches_shrink_no_further_than_memory_asks():
    plan = make_plan(fingerprint([(1, 3000, 4000)] * 50, [(999.0, 1.0, 1.0)] * 50), labels("a"), "x", "auto", "cuda", 8)
    theirs = make_plan(fingerprint([(1, 3000, 4000)] * 50, [(999.0, 1.0, 1.0)] * 50), labels("a"), "x", "resenc_m", "")
    assert theirs.configurations["2d"].patch_zyx == (1, 448, 576)  # the published defect
    assert plan.configurations["2d"].patch_zyx[1] >= 2 * 448 and plan.configurations["2d"].batch_size >= 2


def test_cases_are_counted_whatever_is_declared():
    declared = HIPPOCAMPUS.model_copy(update={"declared_cases": 10})
    theirs = make_plan(declared, labels("a"), "x", "nnunet", "cuda")
    assert theirs.configurations["3d_fullres"].batch_size == 2  # 5 % of ten cases
    assert planned(declared).configurations == planned(HIPPOCAMPUS).configurations


def test_no_gpu_means_the_plan_for_a_cpu_and_memory_that_is_named_means_a_gpu():
    cpu = planned(HIPPOCAMPUS, "cpu")
    assert cpu.training.optimizer == "muon" and cpu.configurations["3d_fullres"].network.features[0] == 16
    assert cpu.gpu_memory_gib is None and "No GPU" in cpu.reasons["preset"]
    assert planned(HIPPOCAMPUS, "cpu", 8.0).configurations == planned(HIPPOCAMPUS, "cuda", 8.0).configurations


def test_an_axis_is_not_mirrored_if_labels_name_its_sides():
    assert planned(LIVER, "cuda", 8.0, "liver", "spleen").mirror_axes == (0, 1, 2)
    plan = planned(LIVER, "cuda", 8.0, "kidney_left", "kidney_right")
    assert plan.mirror_axes == (0, 1)  # RAS: x runs from left to right and is the last axis
    assert "kidney_left, kidney_right are side-specific" in plan.reasons["mirror_axes"]
    exact = make_plan(LIVER, labels("kidney_left", "kidney_right"), "x", "nnunet", "cuda")
    assert exact.mirror_axes == (0, 1, 2)


def test_the_axis_of_the_sides_follows_orientation_and_order():
    assert sideways_axis("LPS", (0, 1, 2)) == 2 and sideways_axis("RAS", (2, 0, 1)) == 0
    assert sideways_axis("PIR", (0, 1, 2)) == 0  # z runs to the right: a sagittal stack
    assert sideways_axis("ARS", (1, 0, 2)) == 0


@pytest.mark.parametrize(
    ("names", "sided"),
    [
        (("Left-Hippocampus", "Right-Hippocampus", "Brain-Stem"), ("Left-Hippocampus", "Right-Hippocampus")),
        (("femur_l", "femur_r", "l"), ("femur_l", "femur_r")),
        (("LungUpperLeft", "LungUpperRight"), ("LungUpperLeft", "LungUpperRight")),
        (("LH amygdala", "RH amygdala"), ("LH amygdala", "RH amygdala")),
        (("left kidney", "liver"), ("left kidney",)),  # mirrored, the unlabelled right kidney looks like it
        (("left atrium",), ()),  # the chambers of the heart differ in shape
        (("heart_atrium_left", "heart_atrium_right", "heart_ventricle_left", "heart_ventricle_right"), ()),
        (("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"), ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle")),
        (("vertebra_L1", "vertebra L2", "RV", "LV", "MYO"), ()),
        (("upright", "leftover", "bright spot", "copyright"), ()),
        (("left", "right"), ()),  # words alone name no structure
        (("lobe_r", "lobe_x"), ()),  # one letter without its partner may be anything
    ],
)
def test_sides_by_hand(names, sided):
    assert sided_labels(names) == sided


@given(st.lists(st.text("abclr_ LR-1", min_size=1), unique=True, max_size=6))
def test_any_names_have_sides_or_not(names):
    found = sided_labels(names)
    assert set(found) <= set(names) and len(found) == len(set(found))
    assert all(words_of(name) for name in found)


def thousand_bytes_for_each_voxel(network, patch_zyx, batch_size) -> Memory:  # noqa: ARG001 (the form of a predictor)
    """A GiB, and 1000 bytes for each voxel of the batch."""
    z, y, x = patch_zyx
    return Memory(total_bytes=2**30 + 1000 * batch_size * z * y * x, fixed_bytes=2**30)


@pytest.mark.parametrize("preset", ["convnext_b", "effnet_b0"])
def test_other_families_are_planned_by_their_own_memory(preset):
    volumes = fingerprint([(300, 300, 300)] * 9, [(1.0, 1.0, 1.0)] * 9)
    plan = make_plan(volumes, labels("a"), "x", preset, "cuda", 8.0, thousand_bytes_for_each_voxel)
    full = plan.configurations["3d_fullres"]
    # 7 GiB over 1000 bytes hold 7.5 million voxels: two patches of up to 3.76 million, about 155 along an edge
    z, y, x = full.patch_zyx
    assert 3.0e6 < z * y * x <= 3.76e6 and full.batch_size == 2
    assert plan.gpu_memory_gib == 8.0 and plan.is_for_gpu
    small = make_plan(HIPPOCAMPUS, labels("a"), "x", preset, "cuda", 8.0, thousand_bytes_for_each_voxel)
    assert small.configurations["3d_fullres"].batch_size == 8  # the largest allowed, although 83 would fit


def test_too_little_memory_is_told():
    for preset in ("convnext_b", "effnet_b0"):
        with pytest.raises(PlanError, match=r"--gpu-memory: not even the smallest patch fits"):
            make_plan(LIVER, labels("a"), "x", preset, "cuda", 1.0, thousand_bytes_for_each_voxel)


def test_a_preset_of_predicted_memory_needs_a_predictor():
    with pytest.raises(ValueError, match="give `predict`"):
        make_plan(LIVER, labels("a"), "x", "convnext_s", "cuda")


def test_in_little_time_a_patch_on_a_cpu_sees_half_of_the_image_or_voxels_are_twice_as_long():
    heart = fingerprint([(12, 256, 200)] * 20, [(6.8, 1.5, 1.5)] * 20)
    long, short = (make_plan(heart, labels("a"), "x", "auto", "cpu", fold_seconds=s) for s in (None, 600.0))
    full, coarse = (plan.configurations["3d_fullres"] for plan in (long, short))
    assert full.spacing_mm == (6.8, 1.5, 1.5)
    assert coarse.spacing_mm[0] == 6.8
    assert 1.5 < coarse.spacing_mm[1] == coarse.spacing_mm[2] <= 3.0
    assert math.prod(coarse.patch_zyx) >= 0.5 * math.prod(coarse.median_shape_zyx)
    assert "half of the image" in short.reasons["spacing"]
    large = fingerprint([(500, 512, 512)] * 20, [(1.0, 1.0, 1.0)] * 20)
    body = make_plan(large, labels("a"), "x", "auto", "cpu", fold_seconds=600.0).configurations
    assert 1.9 < body["3d_fullres"].spacing_mm[0] <= 2.0
    assert set(body) == {"2d", "3d_fullres"}


@pytest.mark.parametrize("seconds", [None, 7200.0])
def test_images_that_a_patch_covers_and_long_trainings_keep_their_voxels(seconds):
    small = make_plan(HIPPOCAMPUS, labels("a"), "x", "auto", "cpu", fold_seconds=600.0)
    assert small.configurations["3d_fullres"].spacing_mm == (1.0, 1.0, 1.0)
    usual = make_plan(LIVER, labels("a"), "x", "auto", "cpu", fold_seconds=seconds)
    assert usual.reasons["preset"] == PRESETS["cpu"].why


def test_a_cpu_with_more_memory_gets_larger_patches_only_where_they_see_little():
    large, small = fingerprint([(180, 220, 180)] * 20, [(1.0, 1.0, 1.0)] * 20), HIPPOCAMPUS
    middle, huge = (fingerprint([shape] * 20, [(1.0, 1.0, 1.0)] * 20) for shape in ((100, 120, 100), (500, 500, 500)))

    def planned(data, gib, *, is_limit=False, preset="auto", seconds=None):
        memory = None if gib is None else CpuMemory(gib, is_limit=is_limit)
        return make_plan(data, labels("a"), "x", preset, "cpu", fold_seconds=seconds, cpu_memory=memory)

    def patch(*given, **more):
        return math.prod(planned(*given, **more).configurations["3d_fullres"].patch_zyx)

    usual = patch(large, None)
    assert patch(large, 1.0) < usual < patch(large, 8.0) < patch(large, 8.0, is_limit=True)
    assert patch(large, 64.0) == patch(large, 8.0) < 5 * usual  # a step takes as much longer
    assert patch(large, 8.0, preset="cpu") > usual and "times the usual memory" in planned(large, 8.0).reasons["preset"]
    assert planned(small, 64.0) == planned(small, None)  # a patch covers the image
    assert patch(middle, 64.0) == patch(middle, None) < patch(middle, 64.0, is_limit=True)  # it covers an eighth
    assert patch(huge, 64.0) < 5 * patch(huge, None) < patch(huge, 64.0, is_limit=True)  # still a 250th: time counts
    assert patch(large, 64.0, seconds=60.0) == patch(large, None, seconds=60.0)  # time is short


def test_a_plan_warns_of_little_context_and_of_coarse_voxels_called_fullres():
    large = fingerprint([(180, 220, 180)] * 20, [(1.0, 1.0, 1.0)] * 20)
    usual, short = (make_plan(large, labels("a"), "x", "auto", "cpu", fold_seconds=s) for s in (None, 60.0))
    (context,) = (text for text in plan_warnings(usual, large) if text.startswith("3d_fullres"))
    assert "little context" in context and "-c 3d_lowres" in context
    assert any("3d_fullres is not full resolution: its voxels are 1.9" in text for text in plan_warnings(short, large))
    middle = fingerprint([(100, 120, 100)] * 20, [(1.0, 1.0, 1.0)] * 20)  # of which a patch covers an eighth
    assert plan_warnings(make_plan(middle, labels("a"), "x", "auto", "cpu"), middle) == []
    for device in ("cpu", "cuda"):
        assert plan_warnings(make_plan(HIPPOCAMPUS, labels("a"), "x", "auto", device), HIPPOCAMPUS) == []
