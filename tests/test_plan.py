"""plan/: schema, topology, spacing, make, edit."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import LABELS, small_plan
from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, Intensities
from segpipe.networks.spec import effnet
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.edit import edit_plan, warn_of_sides
from segpipe.plan.geometry import axis_order, feature_voxels, resampled_shape, target_spacing, topology
from segpipe.plan.make import make_plan
from segpipe.plan.presets import PRESETS, find_preset
from segpipe.plan.schema import Plan


def fingerprint(shapes, spacings, channel: str = "T1") -> Fingerprint:
    """Cases of given shapes and spacings."""
    cases = tuple(
        CaseFingerprint(
            case_id=str(i),
            site=None,
            orientation="RAS",
            spacing_mm=tuple(s),
            shape_zyx=tuple(n),
            cropped_shape_zyx=tuple(n),
            labels={},
            content="",
            signature="",
        )
        for i, (n, s) in enumerate(zip(shapes, spacings, strict=True))
    )
    values = dict.fromkeys(set(Intensities.model_fields) - {"histogram"}, 1.0)
    return Fingerprint(
        orientation="RAS",
        channels=(channel,),
        cases=cases,
        intensities=(Intensities(**values),),
        median_relative_size_after_cropping=1.0,
    )


def test_hippocampus_as_nnunet_plans_it():
    plan = make_plan(
        fingerprint([(36, 50, 35)] * 260, [(1.0, 1.0, 1.0)] * 260), LABELS, "hippocampus", "nnunet", "cuda"
    )
    full = plan.configurations["3d_fullres"]
    assert full.patch_zyx == (40, 56, 40) and full.batch_size == 9
    assert full.network.features == (32, 64, 128, 256)
    assert plan.configurations["2d"].batch_size == 366


def test_a_coarse_axis_takes_its_fine_tenth_and_comes_first():
    spacings = np.array([(1.5, 1.5, 10.0)] * 9 + [(1.5, 1.5, 5.0)])
    shapes = np.array([(256.0, 216.0, 10.0)] * 10)
    target = target_spacing(spacings, shapes)
    assert target == pytest.approx([1.5, 1.5, 9.5])  # the 10th percentile lies 0.9 of the way from 5 to 10
    assert axis_order(target) == (2, 0, 1)


def test_resampled_shape_by_hand():
    assert resampled_shape((10, 20, 30), (2, 1, 1), (1, 1.5, 100)) == (20, 13, 1)


def test_an_anisotropic_topology_by_hand():
    found = topology((5.0, 1.0, 1.0), (10, 64, 64))
    # in plane: 64, 32, 16, 8, 4; the coarse axis joins when its 5 mm are below twice 4 mm
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.patch == (10, 64, 64) and found.divisors == (2, 16, 16)


sizes = st.tuples(st.integers(12, 400), st.integers(12, 600), st.integers(12, 600))
edges = st.tuples(*(st.floats(0.3, 8.0),) * 3)


COUNTED = sorted(name for name, preset in PRESETS.items() if preset.reference_voxels)


@settings(max_examples=40)
@given(sizes, edges, st.sampled_from(COUNTED))
def test_every_plan_is_a_plan(shape, spacing, preset):
    """The schema refuses patches that do not fit the strides; the same input gives the same bytes."""
    first, second = (
        make_plan(fingerprint([shape] * 7, [spacing] * 7), LABELS, "x", preset, "cpu").to_yaml() for _ in range(2)
    )
    assert first == second
    plan = Plan.parse(yaml.safe_load(first), "x")
    assert all(c.batch_size >= 2 for c in plan.configurations.values())
    assert plan.preset == preset and set(plan.configurations) <= set(plan.reasons)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_lone_slice_is_the_coarsest_axis_however_thin_it_is(device):
    plan = make_plan(fingerprint([(1, 64, 80)] * 5, [(1.0, 1.5, 1.5)] * 5), LABELS, "x", "auto", device)
    assert plan.axis_order == (0, 1, 2) and list(plan.configurations) == ["2d"]
    turned = make_plan(fingerprint([(64, 80, 1)] * 5, [(1.5, 1.5, 1.0)] * 5), LABELS, "x", "auto", device)
    assert turned.axis_order == (2, 0, 1) and turned.configurations["2d"].patch_zyx == (1, 64, 80)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_images_too_small_for_any_network_are_refused(device):
    with pytest.raises(PlanError, match=r"too small for a U-Net: their median is 3 × 5 × 7 voxels"):
        make_plan(fingerprint([(3, 5, 7)] * 3, [(2.0, 2.0, 2.0)] * 3), LABELS, "x", "auto", device)


def test_small_flat_images_keep_two_stages_while_the_patch_shrinks():
    plan = make_plan(fingerprint([(12, 192, 33)] * 7, [(1.0, 3.0, 3.0)] * 7), LABELS, "x", "cpu", "cpu")
    assert all(len(c.network.features) >= 2 for c in plan.configurations.values())


def test_unknown_presets_are_explained():
    with pytest.raises(PlanError, match=r"preset 'nnunett' is unknown. Did you mean 'nnunet'"):
        find_preset("nnunett")


def test_ct_is_clipped_to_what_was_seen_and_other_channels_are_not():
    ct = make_plan(fingerprint([(40, 40, 40)] * 5, [(1.0, 1.0, 1.0)] * 5, "CT"), LABELS, "x", "nnunet", "cpu")
    assert ct.normalisation[0].scheme == "ct" and ct.normalisation[0].low == 1.0
    mr = make_plan(fingerprint([(40, 40, 40)] * 5, [(1.0, 1.0, 1.0)] * 5, "T2"), LABELS, "x", "nnunet", "cpu")
    assert mr.normalisation[0].scheme == "zscore"


def test_edits_change_one_value_and_nothing_else():
    plan = small_plan()
    new = edit_plan(plan, ["training.learning_rate=0.5", "configurations.3d_fullres.batch_size=7"])
    assert new.training.learning_rate == 0.5 and new.configurations["3d_fullres"].batch_size == 7
    assert plan.training.learning_rate == 0.01
    assert edit_plan(plan, ["training.learning_rate=1e-3"]).training.learning_rate == 0.001  # text to YAML 1.1
    assert edit_plan(plan, []) is plan


def test_the_network_of_a_preset_takes_the_place_of_the_plans():
    """Strides, kernels and patch stay; what differs from the name is set too, whatever comes first."""
    plan = small_plan()
    old, key = plan.configurations["3d_fullres"], "configurations.3d_fullres"
    edits = [f"{key}.network.parts.norm=batch", f"{key}.network.preset=effnet_b0", f"{key}.spacing_mm=[4, 1, 1]"]
    new = edit_plan(plan, edits).configurations["3d_fullres"]
    assert (new.patch_zyx, new.batch_size) == (old.patch_zyx, old.batch_size)
    expected = effnet("b0", old.network.strides_zyx, old.network.kernels_zyx, (4.0, 1.0, 1.0), old.patch_zyx)
    parts = expected.parts.model_copy(update={"norm": "batch"})
    assert new.network == expected.model_copy(update={"parts": parts})
    assert parts.dilations_zyx[1] == (1, 2, 2)  # by the voxels that the same edits made longer along Z


def test_the_network_of_a_preset_for_a_configuration_that_inherits():
    plan = edit_plan(small_plan(), ["configurations.mine={inherits: 3d_fullres}"])
    plan = edit_plan(plan, ["configurations.mine.network.preset=simplenet_310k"])
    mine, base = plan.configurations["mine"], plan.configurations["3d_fullres"]
    assert (mine.network.kind, mine.network.features) == ("simplenet_310k", (32, 64))
    assert mine.patch_zyx == base.patch_zyx
    assert base.network == small_plan().configurations["3d_fullres"].network


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("training.lerning_rate=1", "training.lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        ("trainin.epochs=1", "trainin: unknown key. Did you mean 'training'?"),
        ("configurations.3d_fullres.network.feature=[4, 8]", "network.feature: unknown key. Did you mean 'features'?"),
        ("configurations.3d_fullres.network.blocks=[1]", "blocks has 1 entries, expected 2"),
        ("configurations.mine={batch_size: 3}", "the plan has no 'mine'. Known: 3d_fullres"),
        ("configurations.mine={inherits: 3d_full}", "mine inherits from '3d_full', expected one of 3d_fullres"),
        ("configurations.mine={inherits: mine}", "mine → mine: configurations inherit from each other in a circle"),
        ("configurations.3d_fullres.previous=2d", "configurations.3d_fullres.previous is '2d', expected one of none"),
        (
            "configurations.mine={inherits: [1]}",
            "configurations.mine.inherits: found [1]; Input should be a valid string",
        ),
        ("orientation=LLS", "orientation 'LLS' must have one letter each of"),
        ("channels.0=x", "channels has no '0'; set the whole list, e.g. --set channels=[…]"),
        ("training.optimizer.lrr=1", "training.optimizer has no 'lrr'; set training.optimizer itself"),
        ("normalisation.0.shceme=ct", "normalisation.0.shceme: unknown key. Did you mean 'scheme'?"),
        ("normalisation.7={scheme: none}", "the plan has no '7'. Known: 0"),
        ("normalisation.first={scheme: none}", "normalisation has no 'first'"),
        ("training.loss.terms.dcie=1", "expected one of dice, tversky"),
        ("training.epochs=2.0", "training.epochs: found 2.0"),
        ("training.learning_rate", "expected KEY=VALUE"),
        ("configurations.3d_full.batch_size=2", "Did you mean '3d_fullres'"),
        ("configurations.3d_fullres.patch_zyx=[7,8,12]", "must be a multiple of the network's strides"),
        ("configurations.3d_fullres.patch_zyx=[2,2,2]", "leaves a single voxel in the coarsest stage"),
        ("training.optimizer=sdg", "training.optimizer: found 'sdg'"),
        ("configurations.3d_fullres.network.preset=simplnet", "expected one of nnunet, resenc_m"),
        ("configurations.3d_fullres.network.preset=[1]", "network.preset: found [1]"),
    ],
)
def test_wrong_edits_are_explained(edit, message):
    with pytest.raises(PlanError) as caught:
        edit_plan(small_plan(), [edit])
    assert message in str(caught.value)


def test_edits_that_contradict_each_other_are_refused():
    key = "configurations.3d_fullres.network.features"
    with pytest.raises(PlanError, match=r"training.epochs=4: contradicts --set training.epochs=3. Give one of them"):
        edit_plan(small_plan(), ["training.epochs=3", "training.epochs=4"])
    with pytest.raises(PlanError, match=r"contradicts --set configurations.3d_fullres.network.features="):
        edit_plan(small_plan(), [f"{key}=[4, 8]", "configurations.3d_fullres.network={kind: plain}"])
    assert edit_plan(small_plan(), ["training.epochs=3", "training.epochs=3"]).training.epochs == 3


def test_what_inherits_follows_its_base_until_it_says_otherwise(tmp_path):
    plan = edit_plan(small_plan(), ["configurations.mine={inherits: 3d_fullres, batch_size: 5}"])
    assert plan.configurations["mine"].patch_zyx == (8, 8, 12) and plan.configurations["mine"].batch_size == 5
    wider = edit_plan(
        plan, ["configurations.3d_fullres.network.features=[6, 12]", "configurations.mine.batch_dice=true"]
    )
    assert wider.configurations["mine"].network.features == (6, 12) and wider.configurations["mine"].batch_dice
    deeper = edit_plan(plan, ["configurations.mine.network.blocks=[2, 2]"])
    assert deeper.configurations["mine"].network.blocks == (2, 2)
    assert deeper.configurations["3d_fullres"].network.blocks == (1, 1)
    deeper.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text("utf-8")
    assert "  mine:\n    inherits: 3d_fullres\n    batch_size: 5\n    network:\n      blocks: [2, 2]\ntraining:" in text
    assert Plan.load(tmp_path / "plan.yaml") == deeper


def test_a_circle_of_inheritance_is_named(tmp_path):
    text = small_plan().to_yaml().replace("configurations:", "configurations:\n  a: {inherits: b}\n  b: {inherits: a}")
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError, match=r"a → b → a: configurations inherit from each other in a circle"):
        Plan.load(tmp_path / "plan.yaml")


def test_a_configuration_named_like_a_path_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text(small_plan().to_yaml().replace("  3d_fullres:", "  ../../outside:"))
    with pytest.raises(PlanError, match=r"configurations.../../outside: expected letters"):
        Plan.load(tmp_path / "plan.yaml")


def test_a_plan_with_a_misspelt_key_names_the_file_and_the_key(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(small_plan().to_yaml().replace("batch_size:", "batchsize:"))
    with pytest.raises(PlanError) as caught:
        Plan.load(file)
    assert str(file) in str(caught.value)
    assert "configurations.3d_fullres.batchsize: unknown key. Did you mean 'batch_size'?" in str(caught.value)


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    small_plan().save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == small_plan()


def test_a_network_of_one_stage_has_no_decoder_and_no_outputs_to_count():
    found = topology((1.9, 0.85, 1.9), (170, 8, 196))
    assert len(found.strides) == 1
    voxels = 170 * 8 * 196
    network = PRESETS["resenc_xl"].network(found)
    assert feature_voxels(network, found.patch, 84) == (32 + 2 * 32) * voxels  # stem, and two maps of its one block


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_optimizer_that_keeps_the_rate_of_another_kind_is_warned_of(optimizer, capsys):
    plan = edit_plan(small_plan(), [f"training.optimizer={optimizer}", "training.momentum=0.8"])
    said = capsys.readouterr().err
    assert f"optimizer={optimizer}: learning_rate 0.01, weight_decay 3e-05 were chosen for sgd" in said
    assert "--set training.learning_rate=0.001 --set training.weight_decay=0.01." in said
    edit_plan(plan, ["training.optimizer=sgd"])
    assert "--set training.momentum=0.99" in capsys.readouterr().err


def test_an_optimizer_with_its_rate_or_of_the_same_kind_is_not_warned_of(capsys):
    plan = edit_plan(small_plan(), ["training.optimizer=adamw", "training.learning_rate=0.001"])
    edit_plan(plan, ["training.optimizer=muon"])
    edit_plan(plan, ["training.epochs=3"])
    assert capsys.readouterr().err == ""


def test_what_differs_from_a_name_is_kept_in_either_order():
    edits = ["training.augmentation.p_rotation=0.9", "training.augmentation.preset=strong"]
    found = [edit_plan(small_plan(), order).training.augmentation for order in (edits, edits[::-1])]
    assert found[0] == found[1] == Augmentation.from_name("strong", p_rotation=0.9)
    with pytest.raises(PlanError, match=r"differs: --set training\.augmentation\.preset=strong\.$"):
        edit_plan(small_plan(), ["training.augmentation=strong", edits[0]])


def test_mirroring_labels_with_sides_by_hand_is_warned_of(capsys):
    sides = LabelSet(labels=tuple(Label(name=f"kidney {s}", values=(n,)) for n, s in enumerate(("left", "right"), 1)))
    plan = small_plan(sides).model_copy(update={"mirror_axes": (0, 1)})  # RAS: X runs from left to right
    edit_plan(plan, ["mirror_axes=[1]"])
    edit_plan(plan, ["mirror_axes=[0, 2]", "mirror_swaps=[[kidney left, kidney right]]"])
    edit_plan(small_plan(), ["mirror_axes=[2]"])  # labels without a side
    assert capsys.readouterr().err == ""
    mirrored = edit_plan(plan, ["mirror_axes=[1, 2]"])
    told = capsys.readouterr().err
    assert "warning: mirror_axes [1, 2]: axis 2 runs from left to right" in told and "kidney left, kidney right" in told
    assert "--set mirror_axes=[1])" in told
    edit_plan(mirrored, ["training.epochs=3"])  # it was told
    assert capsys.readouterr().err == ""
    warn_of_sides(mirrored)  # as a training does
    assert "mislabel kidney left" in capsys.readouterr().err
