"""networks/spec.py and networks/parts.py: what is written, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import VIEWS, unet

from plans import small_plan, small_spec
from segpipe.core.errors import PlanError
from segpipe.networks.parts import InitialWeights, Parts, aspp_dilations
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.edit import edit_plan
from segpipe.plan.schema import Plan

WEIGHTS = InitialWeights(source="timm:efficientnet_b0", licence="Apache-2.0")


def test_a_plan_names_only_the_parts_that_are_not_nnunets(tmp_path):
    plan = edit_plan(small_plan(), ["configurations.3d_fullres.network.parts={attention: se, norm: group}"])
    plan.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text("utf-8")
    assert (
        "      decoder_convolutions: [1]\n      parts:\n        norm: group\n        attention: se\ntraining:" in text
    )
    assert Plan.load(tmp_path / "plan.yaml") == plan
    assert "parts" not in small_plan().to_yaml() and "weights" not in small_plan().to_yaml()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "parts",
    [
        Parts(),
        Parts(norm="layer", activation="gelu", bias=False, decoder="residual"),
        Parts(attention="cbam", attention_position="block", attention_reduction=4, residual_scale=0.2),
    ],
)
def test_what_is_written_is_read_again(parts, view):
    spec = unet("residual", view).model_copy(update={"parts": parts, "weights": WEIGHTS})
    assert NetworkSpec.model_validate_json(spec.to_json()) == spec


def test_a_configuration_that_inherits_can_go_back_to_a_default(tmp_path):
    base = edit_plan(small_plan(), ["configurations.3d_fullres.network.parts.attention=se"])
    change = "{inherits: 3d_fullres, network: {parts: {attention: null}}}"
    plan = edit_plan(base, [f"configurations.without={change}"])
    plan.save(tmp_path / "plan.yaml")
    again = Plan.load(tmp_path / "plan.yaml")
    assert again.configurations["without"].network.parts == Parts()
    assert again.configurations["3d_fullres"].network.parts == Parts(attention="se")


REFUSED = [  # change of a two-stage 3D network, and what is said
    ("kind=resdual", "did you mean 'residual'"),
    ("parts.atention=se", "Did you mean 'attention'"),
    ("parts={norm: batch, dropout_fraction: 0.1}", "take norm instance, group or layer, or uout or drop_path_fraction"),
    ("parts={norm: ccnorm, dropout_fraction: 0.1}", "before norm 'ccnorm' makes its stored variance wrong"),
    ("parts={uout: 0.1, dropout_fraction: 0.1}", "act at the same place; choose one"),
    ("parts.uout=0.6", "less than or equal to 0.5"),
    ("parts.bottleneck=aspp_simple", "needs one dilation for each dilated branch"),
    ("parts.dilations_zyx=[[1, 1, 1]]", "no pyramid needs none"),
    ("parts={bottleneck: aspp_simple, dilations_zyx: [[1, 1]]}", "all three \\(3D\\)"),
    ("parts={bottleneck: aspp_simple, dilations_zyx: [[1, 1, 1]], bottleneck_pooling: true}", "aspp_deeplab only"),
    ("parts.bottleneck_features=8", "belongs to a bottleneck"),
    ("parts.attention_position=block", "needs an attention"),
    ("parts={attention: se, attention_position: after_add}", "has no addition"),
    ("parts={attention: eca, attention_position: block, decoder: residual}", "just behind norm 'instance'"),
    ("parts.expansion=[2, 2]", "kind 'plain' does not use parts.expansion"),
    ("parts.drop_path_fraction=0.1", "kind 'plain' does not use parts.drop_path_fraction"),
    ("parts.residual_scale=0.1", "has no addition"),
    ("parts.decoder_features=[4, 8]", "decoder_features has 2 entries, expected 1"),
    ("parts.dropout_fraction=1.0", "less than 1"),
    ("strides_zyx=[[2, 2, 2], [2, 2, 2]]", "expected 1 on every axis"),
    ("kernels_zyx=[[3, 3, 3], [3, 2, 3]]", "must be odd"),
    ("kernels_zyx=[[3, 3, 3], [3, 3]]", "two entries \\(2D\\) or all three"),
    ("blocks=[1]", "blocks has 1 entries, expected 2"),
    ("features=[4]", "strides_zyx has 2 entries, expected 1"),
    ("kind=segresnet", "must be \\(4, 8, 16, 32\\)"),
    ("kind=swin_unetr", "must be \\(4, 4, 8, 16, 32, 64\\)"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(PlanError, match=message):
        edit_plan(small_plan(), [f"configurations.3d_fullres.network.{change}"])


def test_norms_that_keep_no_running_variance_go_with_dropout():
    for norm in ("instance", "group", "layer", "scnorm"):
        assert Parts(norm=norm, dropout_fraction=0.1)
    assert Parts(norm="batch", uout=0.1)


def test_norms_that_compare_a_sample_with_its_batch_need_two():
    for norm in ("pcnorm", "ccnorm"):
        with pytest.raises(PlanError, match="batch_size 1 makes it an instance norm"):
            edit_plan(
                small_plan(),
                [f"configurations.3d_fullres.network.parts.norm={norm}", "configurations.3d_fullres.batch_size=1"],
            )


def test_dilations_make_equal_steps_in_mm_by_hand():
    # the deepest voxel is 5 × 2 × 2 mm: three steps of 2 mm are 6 mm, 1.2 voxels along Z
    assert aspp_dilations((5.0, 2.0, 2.0), (8, 16, 16)) == ((1, 1, 1), (1, 2, 2), (1, 3, 3))
    # 3 × 2 × 2 mm: 4 mm are 1.33, 6 mm 2 voxels
    assert aspp_dilations((3.0, 2.0, 2.0), (8, 16, 16)) == ((1, 1, 1), (1, 2, 2), (2, 3, 3))
    # half of 4 voxels is 2
    assert aspp_dilations((1.0, 1.0), (4, 8), 4) == ((1, 1), (2, 2), (2, 3), (2, 4))
    assert aspp_dilations((1.0, 1.0), (1, 1)) == ((1, 1),) * 3


edges = st.lists(st.floats(0.1, 50), min_size=3, max_size=3)
sizes = st.lists(st.integers(1, 40), min_size=3, max_size=3)


@given(edges, sizes)
def test_dilations_keep_inside_the_map_and_ignore_the_unit(spacing_mm, size_vox):
    found = aspp_dilations(spacing_mm, size_vox)
    assert len(found) == 3
    for branch, dilations in enumerate(found, start=1):
        for dilation, size in zip(dilations, size_vox, strict=True):
            assert 1 <= dilation <= max(1, size // 2) and dilation <= branch
    doubled = aspp_dilations([2.0 * s for s in spacing_mm], size_vox)  # exact in floating point
    assert doubled == found


def test_the_planner_can_read_specs_without_torch():
    import subprocess
    import sys

    code = "import sys, segpipe.networks.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 0


def test_divisors_by_hand():
    assert unet("plain", "anisotropic").divisors_zyx == (2, 4, 4)
    assert small_spec("plain", 2).divisors_zyx == (2, 2)


@pytest.mark.parametrize(("change", "message"), [
    ({"features": (80_000, 160_000, 320_000)}, "features holds 320000, expected 16384 at most"),
    ({"blocks": (1, 1, 10**9)}, "blocks holds 1000000000, expected 256 at most"),
    ({"kernels_zyx": ((10**9 + 1,) * 3,) * 3}, "kernels_zyx holds 1000000001, expected 64 at most"),
    ({"parts": {"expansion": [2, 2, 10**6]}}, "expansion holds 1000000, expected 64 at most"),
])  # fmt: skip
def test_an_absurd_network_is_refused_before_it_is_built(change, message):
    values = unet("convnext" if "parts" in change else "plain", VIEWS[0]).model_dump(mode="json")
    with pytest.raises(PlanError, match=message):
        NetworkSpec.parse(values | change, "plan.yaml")
