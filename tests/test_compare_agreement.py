"""Bias and limits of agreement of volumes."""

from __future__ import annotations

import pytest

from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.report.volume_agreement import agreements


def table(*differences_mm3, label="organ"):
    rows = [
        Score("a", f"c{i}", f"c{i}", None, None, label, "volume_difference", v, "mm3", "ok", 5, 5)
        for i, v in enumerate(differences_mm3)
    ]
    return ScoreTable(tuple(rows))


def test_limits_by_hand():
    (found,) = agreements(table(-10.0, 0.0, 40.0))  # mean 10; SD² (400 + 100 + 900) / 2 = 700
    assert (found.run, found.label, found.n_cases, found.bias_mm3) == ("a", "organ", 3, 10)
    assert (found.low_mm3, found.high_mm3) == (pytest.approx(10 - 1.96 * 700**0.5), pytest.approx(10 + 1.96 * 700**0.5))


def test_one_case_has_no_limits_and_other_metrics_none_at_all():
    (found,) = agreements(table(3.0))
    assert (found.bias_mm3, found.low_mm3, found.high_mm3) == (3, None, None)
    assert agreements(ScoreTable(())) == ()
