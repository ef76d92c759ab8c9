"""core/labels.py: outside values, inside indices, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segpipe.core.errors import DataError
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet, _suggested_painting, painting_contradiction

HEART = LabelSet(labels=(Label(name="cavity", values=(7,)), Label(name="wall", values=(-2,))), background_value=500)
TUMOUR = LabelSet(  # regions, each inside the one before
    labels=(
        Label(name="whole", values=(1, 2, 4)),
        Label(name="core", values=(1, 4)),
        Label(name="enhancing", values=(4,)),
    ),
    ignore_value=9,
    paint_values=(2, 1, 4),
)
INTEGERS = st.integers(-(2**31) + 1, 2**31 - 1)


def test_labels_become_outputs_in_their_order_and_return() -> None:
    values = np.array([[500, 7], [-2, 7]], np.int32)
    inside = HEART.encode(values, "case a")
    assert inside.tolist() == [[0, 1], [2, 1]] and inside.dtype == np.int16
    back = HEART.decode(inside)
    assert back.tolist() == values.tolist() and back.dtype == np.int16
    assert HEART.n_outputs == 3 and HEART.names == ("cavity", "wall")


def test_each_label_has_the_inside_value_of_its_output() -> None:
    assert [HEART.indices_of(label) for label in HEART.labels] == [(1,), (2,)]


@given(st.lists(INTEGERS, min_size=2, max_size=9, unique=True), st.data())
def test_encode_then_decode_returns_any_integers(values: list[int], data: st.DataObject) -> None:
    background, *rest = values
    labels = LabelSet(
        labels=tuple(Label(name=f"label {v}", values=(v,)) for v in rest),
        background_value=background,
    )
    picks = data.draw(st.lists(st.sampled_from(values), max_size=20))
    array = np.array(picks, np.int32)
    assert labels.decode(labels.encode(array, "x")).tolist() == picks


def test_regions_are_painted_in_order() -> None:
    values = np.array([0, 1, 2, 4], np.int32)
    masks = TUMOUR.masks_of(values)
    assert masks["whole"].tolist() == [False, True, True, True]
    assert masks["core"].tolist() == [False, True, False, True]
    assert masks["enhancing"].tolist() == [False, False, False, True]
    assert TUMOUR.n_outputs == 3  # one sigmoid each, no background
    assert TUMOUR.decode(np.stack(list(masks.values()))).tolist() == [0, 1, 2, 4]


@given(st.lists(st.sampled_from([0, 1, 2, 4]), max_size=30))
def test_nested_regions_return_what_they_were_made_of(picks: list[int]) -> None:
    values = np.array(picks, np.int32)
    assert TUMOUR.decode(np.stack(list(TUMOUR.masks_of(values).values()))).tolist() == picks


BRATS = {"whole": [1, 2, 3, 4], "core": [1, 2, 3], "enhancing": [1]}


@pytest.mark.parametrize(
    ("regions", "order", "message"),
    [
        # 1 is in all three regions: "whole tumour only" cannot be said
        (BRATS, [1, 2, 3], r"whole is painted with 1, which is also a value of core, enhancing.*Use \[4, 2, 1\]"),
        (BRATS, [4, 1, 1], "core is painted with 1, which is also a value of enhancing"),
        (BRATS, [4, 2, 3], "enhancing is painted with 3, which is none of its values"),
        (
            {"core": [2], "whole": [1, 2]},
            [2, 1],
            "value 2 .core, whole. is painted as 1 .whole. in the end.*whole, core",
        ),
        ({"a": [1, 2], "b": [2, 3]}, [1, 3], "value 2 .a, b. is painted as 3 .b. in the end. No order"),
        ({"both": [1, 2], "left": [1], "right": [2]}, [1, 1, 2], "both is painted with 1.*No order"),
    ],
)
def test_a_painting_that_cannot_hold_its_regions_is_refused(
    regions: dict[str, list[int]], order: list[int], message: str
) -> None:
    labels = tuple(Label(name=name, values=tuple(values)) for name, values in regions.items())
    with pytest.raises(ValidationError, match=message):
        LabelSet(labels=labels, paint_values=tuple(order))


@pytest.mark.parametrize(
    ("regions", "order"),
    [
        (BRATS, [4, 2, 1]),
        (BRATS, [4, 3, 1]),
        ({"kidney_and_mass": [1, 2, 3], "mass": [2, 3], "tumour": [2]}, [1, 3, 2]),  # KiTS 2023
        ({"core": [3], "edge": [4], "organ": [1, 2], "part": [2]}, [3, 4, 1, 2]),
        ({"a": [1, 2], "b": [2, 3], "both": [2]}, [1, 3, 2]),
    ],
)
def test_a_painting_that_holds_its_regions_is_taken(regions: dict[str, list[int]], order: list[int]) -> None:
    labels = tuple(Label(name=name, values=tuple(values)) for name, values in regions.items())
    assert LabelSet(labels=labels, paint_values=tuple(order)).paint_values == tuple(order)


REGIONS = st.lists(st.sets(st.integers(1, 4), min_size=1).map(sorted), min_size=1, max_size=4)


@given(REGIONS, st.data())
def test_masks_of_every_accepted_order_decode_to_their_regions(regions: list[list[int]], data: st.DataObject) -> None:
    labels = tuple(Label(name=f"r{place}", values=tuple(values)) for place, values in enumerate(regions))
    order = [data.draw(st.sampled_from(values)) for values in regions]
    refused = painting_contradiction(labels, order)
    if refused:  # another order that it names must be taken
        suggested = _suggested_painting(labels)
        assert (suggested is None) == ("No order" in refused)
        if suggested is None:
            return
        labels, order = tuple(labels[place] for place in suggested), list(suggested.values())
        assert not painting_contradiction(labels, order)
    if not any(len(label.values) > 1 for label in labels):
        return
    painted = LabelSet(labels=labels, paint_values=tuple(order))
    values = np.array([0, *painted.values])
    masks = painted.masks_of(values)
    again = painted.masks_of(painted.decode(np.stack(list(masks.values()))))
    assert {name: mask.tolist() for name, mask in masks.items()} == {n: mask.tolist() for n, mask in again.items()}
    for place, region in enumerate(labels):  # a network that finds a region and all that contain it, no other
        outputs = np.array([[set(region.values) <= set(other.values)] for other in labels])
        found = painted.masks_of(painted.decode(outputs))
        assert [bool(mask[0]) for mask in found.values()] == outputs[:, 0].tolist(), place


def test_regions_name_the_inside_values_they_join() -> None:
    assert TUMOUR.values == (1, 2, 4)
    assert [TUMOUR.indices_of(label) for label in TUMOUR.labels] == [(1, 2, 3), (1, 3), (3,)]


def test_ignored_voxels_have_their_own_inside_value_and_are_in_no_mask() -> None:
    values = np.array([9, 4], np.int32)
    assert TUMOUR.encode(values, "x").tolist() == [IGNORE_INDEX, 3]
    assert not any(mask[0] for mask in TUMOUR.masks_of(values).values())


def test_an_unknown_value_is_named_with_its_place() -> None:
    with pytest.raises(DataError, match=r"case_7: label values \[3\] are not in .*\[0, 1, 2, 4, 9\]"):
        TUMOUR.encode(np.array([0, 3, 4]), "case_7")


def test_an_empty_array_stays_empty() -> None:
    assert HEART.encode(np.zeros((0, 4), np.int32), "x").shape == (0, 4)


@pytest.mark.parametrize(
    ("value", "dtype"), [(255, np.uint8), (256, np.int16), (-1, np.int16), (2**15, np.int32), (2**31, np.int64)]
)
def test_masks_take_the_smallest_type_that_holds_every_value(value: int, dtype: type) -> None:
    assert LabelSet(labels=(Label(name="a", values=(value,)),)).mask_dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ()}, "at least one label"),
        ({"labels": (Label(name="a", values=(1,)), Label(name="a", values=(2,)))}, "each name once"),
        ({"labels": (Label(name="a", values=(1,)), Label(name="b", values=(1,)))}, "the same value"),
        ({"labels": (Label(name="a", values=(0,)),)}, "background or ignore"),
        ({"labels": (Label(name="a", values=(3,)),), "ignore_value": 3}, "background or ignore"),
        ({"labels": (Label(name="a", values=(1, 2)),)}, "regions_class_order"),
        ({"labels": (Label(name="a", values=(1, 2)),), "paint_values": (3,)}, "regions_class_order"),
    ],
)
def test_a_contradictory_set_cannot_be_made(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelSet(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [(), (1, 1)])
def test_a_label_has_distinct_values(values: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="at least one value, each once"):
        Label(name="a", values=values)
