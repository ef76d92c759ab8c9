"""plan/loss.py and plan/loss.py: how a loss is named, written and edited."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import small_plan
from segpipe.core.errors import PlanError
from segpipe.core.labels import Label, LabelSet
from segpipe.core.records import parse_yaml
from segpipe.networks.parts import WRITE_DEFAULTS
from segpipe.plan.edit import edit_plan
from segpipe.plan.loss import LOSSES, TERMS, Loss
from segpipe.plan.schema import Plan
from segpipe.train import losses

PLAN = small_plan()


def loss_after(*edits: str) -> Loss:
    return edit_plan(PLAN, edits).training.loss


def test_the_default_is_nnunets_and_is_written_by_its_name():
    assert PLAN.training.loss == Loss(terms={"dice": 1.0, "ce": 1.0})
    assert "\n  loss: dice_ce\n" in PLAN.to_yaml()


def test_edits():
    assert loss_after("training.loss=dice_focal") == Loss(terms={"dice": 1.0, "focal": 1.0})
    assert loss_after("training.loss={terms: {dice: 1, focal: 1}}") == Loss(terms={"dice": 1.0, "focal": 1.0})
    assert loss_after("training.loss.label_smoothing=0.1") == Loss(label_smoothing=0.1)
    assert loss_after("training.loss.terms.cldice=0.5") == Loss(terms={"dice": 1.0, "ce": 1.0, "cldice": 0.5})
    assert loss_after("training.loss={preset: topk, topk_fraction: 0.2}") == Loss(terms={"topk": 1}, topk_fraction=0.2)
    again = edit_plan(edit_plan(PLAN, ["training.loss=dice_focal"]), ["training.loss.focal_gamma=3"])
    assert again.training.loss == Loss(terms={"dice": 1.0, "focal": 1.0}, focal_gamma=3.0)


@pytest.mark.parametrize(
    ("loss", "written"),
    [
        (Loss(), "dice_ce"),
        (Loss(terms={"focal": 1.0, "dice": 1.0}), "dice_focal"),
        (Loss(label_smoothing=0.1), {"label_smoothing": 0.1}),
        (Loss(terms={"ce": 1.0, "dice": 2.0}), {"terms": {"dice": 2.0, "ce": 1.0}}),
        (Loss(terms={"dice": 1.0, "focal": 1.0}, focal_gamma=3.0), {"preset": "dice_focal", "focal_gamma": 3.0}),
    ],
)
def test_the_shortest_form_is_written(loss, written):
    assert loss.model_dump(mode="json") == written


def test_a_plan_file_with_a_loss_reads_back_equal():
    plan = edit_plan(PLAN, ["training.loss={terms: {tversky: 1, ce: 0.5}, tversky_alpha: 0.2}"])
    assert Plan.parse(parse_yaml(plan.to_yaml()), "plan.yaml") == plan
    old = PLAN.model_dump(mode="json")
    del old["training"]["loss"]  # written before there was a choice
    assert Plan.parse(old, "plan.yaml") == PLAN


weights = st.floats(0.125, 4, width=16)


@given(
    st.one_of(
        st.sampled_from(list(LOSSES.values())), st.dictionaries(st.sampled_from(list(TERMS)), weights, min_size=1)
    ),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([2.0, 3.0]),
)
def test_what_is_written_reads_back_equal_and_equal_losses_write_equal_bytes(terms, smoothing, gamma):
    changes = {"label_smoothing": smoothing} if {"ce", "topk"} & set(terms) else {}
    changes |= {"focal_gamma": gamma} if "focal" in terms else {}
    loss, turned = Loss(terms=terms, **changes), Loss(terms=dict(reversed(terms.items())), **changes)
    for context in (None, WRITE_DEFAULTS):
        assert Loss.model_validate_json(json.dumps(loss.model_dump(mode="json", context=context))) == loss
    assert turned.model_dump_json() == loss.model_dump_json()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("training.loss=dice_focl", "training.loss: .*did you mean 'dice_focal'"),
        ("training.loss={preset: [1]}", "training.loss: .*expected one of dice_ce, "),
        ("training.loss={terms: {dic: 1}}", "training.loss.terms.dic"),
        ("training.loss={terms: {dice: 0}}", "training.loss.terms.dice: .*greater than 0"),
        ("training.loss={terms: {}}", "training.loss.terms: .*at least 1 item"),
        ("training.loss={smoothing: 0.1}", "training.loss.smoothing: unknown key. Did you mean 'label_smoothing'"),
        ("training.loss=7", "training.loss: found 7"),
        ("training.loss.focal_gamma=3", "training.loss: .*focal_gamma belongs to focal; terms are dice, ce"),
        ("training.loss.label_smoothing=1.0", "training.loss.label_smoothing: .*less than 1"),
    ],
)
def test_what_is_refused(edit, message):
    with pytest.raises(PlanError, match=message):
        edit_plan(PLAN, [edit])


def test_every_term_has_a_formula_and_every_formula_a_name():
    assert list(losses.TERM_FUNCTIONS) == [name for name, row in TERMS.items() if not row.reads_features]
    assert {term for terms in LOSSES.values() for term in terms} == set(TERMS)
    assert all(Loss.from_name(name).model_dump(mode="json") == name for name in LOSSES)


def test_cldice_is_for_few_labels_which_can_be_named():
    vessels = tuple(Label(name=f"vessel {n}", values=(n,)) for n in range(1, 101))
    plan = small_plan(LabelSet(labels=vessels))
    with pytest.raises(PlanError, match=r"found 100 labels, expected 16 or fewer; name the tubes.*skeleton_recall"):
        edit_plan(plan, ["training.loss=dice_ce_cldice"])
    edit_plan(plan, ["training.loss=dice_ce_skeleton_recall"])
    named = ["training.loss.preset=dice_ce_cldice", "training.loss.cldice_labels=[vessel 7, vessel 3]"]
    loss = edit_plan(plan, named).training.loss
    assert loss.labels_with_lines(plan.labels.names) == (6, 2)
    with pytest.raises(PlanError, match="'vein' must be one of vessel 1"):
        edit_plan(plan, [named[0], "training.loss.cldice_labels=[vein]"])
    with pytest.raises(PlanError, match="cldice_labels belongs to cldice"):
        edit_plan(plan, [named[1]])
