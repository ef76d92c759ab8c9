"""From tests to a plain sentence."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
import pytest

from segpipe.compare.verdict_sentences import Evidence, p_text, quantity, unseen_failures, verdict
from segpipe.evaluate.metrics import METRICS

SURE = Evidence(
    baseline="old",
    method="new",
    label="(mean)",
    metric=METRICS["dice"],
    margin=0.005,
    about="methods",
    difference=0.02,
    low=0.01,
    high=0.03,
    p_value=0.001,
    p_adjusted=0.003,
    p_equivalence=0.9,
    p_equivalence_adjusted=0.95,
    detectable=0.012,
)


def test_four_answers():
    assert verdict(SURE).sentence == (
        "new is better than old (mean Dice +0.0200, 95 % interval +0.0100 to +0.0300, p 0.0010, corrected p 0.0030)."
    )
    assert verdict(replace(SURE, difference=-0.02)).answer == "worse"
    small = replace(SURE, difference=0.001, low=-0.001, high=0.003, p_adjusted=0.4, p_equivalence_adjusted=0.01)
    assert verdict(small).sentence.startswith("new and old differ by no more than 0.0050 (mean Dice +0.0010")
    unsure = verdict(replace(SURE, p_adjusted=0.2))
    assert unsure.answer == "cannot tell"
    assert unsure.sentence.startswith("This dataset cannot tell new from old (mean Dice +0.0200")
    assert unsure.sentence.endswith("it could detect 0.0120.")


def test_each_answer_shows_the_interval_of_its_own_test():
    equal = replace(
        SURE, difference=0.0022, low=-0.001, high=0.0051, p_adjusted=0.2, p_equivalence=0.03,
        p_equivalence_adjusted=0.03, equivalence_low=-0.0004, equivalence_high=0.0048,
    )  # fmt: skip
    assert verdict(equal).sentence == (
        "new and old differ by no more than 0.0050 (mean Dice +0.0022, 90 % interval -0.0004 to +0.0048, p 0.0300)."
    )
    assert (verdict(equal).equivalence_low, verdict(equal).high) == (-0.0004, 0.0051)


def test_claims_must_survive_failures_that_were_not_seen():
    few = replace(SURE, unseen=unseen_failures(np.full(50, 0.02), 1.0))  # up to 5.8 % of patients
    found = verdict(few)
    assert found.answer == "cannot tell"
    assert found.sentence.endswith(", corrected p 0.0030): 50 patients cannot exclude failures in up to 6 %.")
    assert verdict(replace(few, unseen=unseen_failures(np.full(50, 0.02), 0.3))).answer == "better"
    many = verdict(replace(SURE, unseen=unseen_failures(np.full(100, 0.02), 1.0)))
    assert many.answer == "better"
    assert many.sentence.endswith(" 100 patients cannot exclude failures in up to 3.0 %.")
    lost = np.where(np.arange(100) < 2, -0.38, 0.02)  # two may be 6.2 %: 4.2 % more cost 0.016
    found = verdict(replace(SURE, difference=0.012, unseen=unseen_failures(lost, 1.0)))
    assert found.answer == "cannot tell"
    assert found.sentence.endswith("2 of 100 patients lose up to 0.3800, and such losses may occur in up to 6.2 %.")


def test_of_distances_less_is_better():
    nearer = replace(SURE, metric=METRICS["hd95"], difference=-1.5, low=-2.0, high=-1.0, label="liver", margin=1.0)
    assert verdict(nearer).answer == "better"
    assert "HD95 of liver -1.50 mm, 95 % interval -2.00 mm to -1.00 mm" in verdict(nearer).sentence


def test_a_sure_difference_within_the_margin_is_none_that_matters():
    found = verdict(replace(SURE, difference=0.001, p_equivalence_adjusted=0.001))
    assert found.answer == "no difference"
    assert "a certain but smaller difference" in found.sentence


def test_trained_models_are_called_so():
    models = replace(SURE, about="models")
    assert verdict(models).sentence.startswith("The trained models of new are better than those of old")
    assert (
        "The trained models of new and old differ by no more"
        in verdict(replace(models, p_equivalence_adjusted=0.01)).sentence
    )
    assert "tell the trained models of new from those of old" in verdict(replace(models, p_adjusted=0.1)).sentence


def test_corrected_values_decide():
    assert verdict(replace(SURE, p_value=0.01, p_adjusted=0.06)).answer == "cannot tell"
    assert verdict(replace(SURE, p_equivalence=0.01, p_equivalence_adjusted=0.06)).answer == "better"


def test_nothing_known():
    empty = replace(SURE, **dict.fromkeys(("difference", "low", "high", "p_value", "p_adjusted", "detectable"), nan))
    found = verdict(replace(empty, p_equivalence=nan, p_equivalence_adjusted=nan))
    assert (found.answer, found.low, found.p_value) == ("cannot tell", None, None)
    assert found.sentence == "This dataset cannot tell new from old (mean Dice undefined)."


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.12345, "dice", "0.1235"), (1.234, "hd95", "1.23 mm"), (1230.0, "volume_difference", "1.230 mL")],
)
def test_quantities(value, metric, text):
    assert quantity(value, METRICS[metric]) == text


def test_p_values():
    assert [p_text(p) for p in (None, 1e-6, 0.00123, 0.0499, 1.0)] == [
        "p –",
        "p < 0.0001",
        "p 0.0012",
        "p 0.0499",
        "p 1.00",
    ]
