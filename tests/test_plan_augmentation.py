"""plan/augmentation.py, and in plan/laterality.py which labels change places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import LABELS, small_plan
from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.plan.augmentation import AUGMENTATIONS, Augmentation
from segpipe.plan.edit import edit_plan
from segpipe.plan.laterality import swapped_indices, swapped_outputs
from segpipe.plan.schema import Plan


def labels(regions: bool = False, **values: int | tuple[int, ...]) -> LabelSet:
    """Labels by name, e.g. `labels(left=1, right=2)`."""
    of_name = {name: (v,) if isinstance(v, int) else v for name, v in values.items()}
    paint = tuple(v[0] for v in of_name.values()) if regions else ()
    return LabelSet(labels=tuple(Label(name=n, values=v) for n, v in of_name.items()), paint_values=paint)


@pytest.mark.parametrize(
    ("edit", "written"),
    [
        ("augmentation=none", "none"),
        ("augmentation=strong", "strong"),
        ("augmentation.p_rotation=0.4", {"p_rotation": 0.4}),
        ("augmentation={preset: strong, p_noise: 0}", {"preset": "strong", "p_noise": 0.0}),
        ("augmentation={preset: strong, p_rotation: 0.4}", "strong"),  # which it is anyhow
        ("augmentation.scale=[0.8, 1.1]", {"scale": [0.8, 1.1]}),
        ("augmentation.preset=light", "light"),
    ],
)
def test_the_shortest_form_is_written_and_reads_back_equal(edit, written):
    plan = edit_plan(small_plan(), [f"training.{edit}"])
    values = plan.model_dump(mode="json")
    assert values["training"]["augmentation"] == written
    assert Plan.parse(values, "plan") == plan


def test_what_was_chosen_before_stays_beside_an_edit_but_not_beside_a_new_name():
    plan = edit_plan(small_plan(), ["training.augmentation={preset: light, p_noise: 0.5}"])
    both = edit_plan(plan, ["training.augmentation.p_blur=0.1"])
    assert both.training.augmentation == Augmentation.from_name("light", p_noise=0.5, p_blur=0.1)
    assert edit_plan(plan, ["training.augmentation.preset=strong"]).training.augmentation == Augmentation.from_name(
        "strong"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("augmentation=ligth", "did you mean 'light'"),
        ("augmentation.p_rotatoin=0.4", "augmentation.p_rotatoin: unknown key. Did you mean 'p_rotation'?"),
        ("augmentation.p_noise=1.5", "less than or equal to 1"),
        ("augmentation.scale=[1.4, 0.7]", "expected the smaller number first, [0.7, 1.4]"),
        ("augmentation.elastic=[0, 0.4]", "less than 0.4"),
        ("augmentation.lowres_zoom=[0.5, 2]", "less than or equal to 1"),
        ("augmentation.rotation_degrees=200", "less than or equal to 180"),
    ],
)
def test_what_cannot_be_is_refused(edit, message):
    with pytest.raises(PlanError) as fault:
        edit_plan(small_plan(), [f"training.{edit}"])
    assert message in str(fault.value)


def test_every_name_is_another_augmentation():
    named = [Augmentation.from_name(name) for name in AUGMENTATIONS]
    assert len(set(map(str, named))) == len(AUGMENTATIONS) and Augmentation() == Augmentation.from_name("nnunet")


def test_labels_change_places_by_name():
    sides = labels(left=5, right=3, liver=1)
    assert swapped_outputs(sides, [("right", "left")]) == (0, 2, 1, 3)  # background stays
    assert swapped_indices(sides, [("right", "left")]) == (0, 2, 1, 3)
    assert swapped_outputs(sides, []) == (0, 1, 2, 3)


def test_regions_change_places_with_all_they_hold():
    # inside labels 1 … 4 of values 1 … 4; the tumours 2 and 4 lie in the kidneys
    sides = labels(True, left=(1, 2), right=(3, 4), left_tumour=2, right_tumour=4)
    pairs = [("left", "right"), ("left_tumour", "right_tumour")]
    assert swapped_outputs(sides, pairs) == (1, 0, 3, 2)
    assert swapped_indices(sides, pairs) == (0, 3, 4, 1, 2)


@pytest.mark.parametrize(
    ("sides", "swaps", "message"),
    [
        (LABELS, (("a", "c"),), "'c' must be one of a, b"),
        (LABELS, (("a", "a"),), "'a' must be one of a, b and appear only once"),
        (labels(True, left=(1, 2), right=(3,)), (("left", "right"),), "pair regions with equally many values"),
        (labels(True, left=(1, 2), right=(3, 4), part=(2,)), (("left", "right"),), "region 'part' are not those"),
    ],
)
def test_pairs_that_cannot_change_places_are_refused(sides, swaps, message):
    values = small_plan(sides).model_dump(mode="json")
    with pytest.raises(PlanError, match="mirror_swaps") as fault:
        Plan.parse({**values, "mirror_swaps": swaps}, "plan")
    assert message in str(fault.value)


def test_pairs_need_their_axis():
    values = small_plan().model_dump(mode="json") | {"mirror_axes": [0, 1], "mirror_swaps": [["a", "b"]]}
    with pytest.raises(PlanError, match="act on axis 2, from left to right"):
        Plan.parse(values, "plan")


def test_plans_without_pairs_do_not_mention_them():
    plan = small_plan()
    assert "mirror_swaps" not in plan.model_dump(mode="json")
    swapped = edit_plan(plan, ["mirror_swaps=[[a, b]]"])
    assert swapped.mirror_swaps == (("a", "b"),) and Plan.parse(swapped.model_dump(mode="json"), "plan") == swapped


@given(st.integers(2, 9), st.data())
def test_to_change_places_twice_changes_nothing(n_labels, data):
    names = [f"l{place}" for place in range(n_labels)]
    sides = labels(**{name: place + 1 for place, name in enumerate(names)})
    order = data.draw(st.permutations(names))
    pairs = list(zip(order[::2], order[1::2], strict=False))[: data.draw(st.integers(0, n_labels // 2))]
    found = swapped_outputs(sides, pairs)
    assert [found[place] for place in found] == list(range(n_labels + 1))
    assert sum(place != other for place, other in enumerate(found)) == 2 * len(pairs)
