"""Means under a policy: what an empty mask counts."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from segpipe.core.errors import DataError, UsageError
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.scores import DIAGONAL, IMAGE_LABEL, Score, ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL, POLICIES, summarise

RAW = {  # raw values by status: overlap, distance, relative difference
    "both_empty": (nan, nan, nan),
    "missed": (0.0, inf, -1.0),
    "spurious": (0.0, inf, inf),
}
DIAGONAL_MM = 50.0


def table_of(*cases, label="organ"):
    """Rows of cases given as a status, or as (dice, hd95, relative_volume_difference) of an ok one."""
    rows = []
    for number, case in enumerate(cases):
        status, values = (case, RAW[case]) if isinstance(case, str) else ("ok", case)
        base = Score("", f"case_{number}", f"p{number}", None, None, label, "dice", 0.0, "1", status, 0, 0)
        names = ("dice", "hd95", "relative_volume_difference")
        rows += [replace(base, metric=n, value=v, unit=METRICS[n].unit) for n, v in zip(names, values, strict=True)]
        rows.append(replace(base, label=IMAGE_LABEL, metric=DIAGONAL, value=DIAGONAL_MM, unit="mm", status="ok"))
    return ScoreTable(tuple(rows))


def row(table, metric, policy="mr", label="organ"):
    return next(r for r in summarise(table, policy) if (r.metric, r.label) == (metric, label))


GOOD = (0.8, 2.0, 0.1)


def test_mean_of_good_cases():
    dice = row(table_of(GOOD, (0.6, 4.0, -0.1)), "dice")
    assert dice.mean == pytest.approx(0.7)
    assert (dice.n_ok, dice.n_both_empty, dice.n_missed, dice.n_spurious, dice.n_left_out) == (2, 0, 0, 0, 0)
    assert (dice.n_patients, dice.unit) == (2, "1")
    assert (dice.low, dice.high, dice.note) == (None, None, "2 patients: too few for an interval of the mean")


@pytest.mark.parametrize(
    ("policy", "status", "dice", "hd95", "n_left_out"),
    [
        ("mr", "both_empty", (0.8 + 1) / 2, (2 + 0) / 2, 0),
        ("mr", "missed", (0.8 + 0) / 2, (2 + 50) / 2, 0),
        ("mr", "spurious", (0.8 + 0) / 2, (2 + 50) / 2, 0),
        ("nnunet", "both_empty", 0.8, 2, 1),
        ("nnunet", "missed", 0.4, 26, 0),
        ("nnunet", "spurious", 0.4, 26, 0),
        ("brats", "both_empty", 0.9, 1, 0),
        ("brats", "missed", 0.4, (2 + 374) / 2, 0),
        ("brats", "spurious", 0.4, 188, 0),
        ("omit", "both_empty", 0.8, 2, 1),
        ("omit", "missed", 0.8, 2, 1),
        ("omit", "spurious", 0.8, 2, 1),
    ],
)
def test_what_an_empty_mask_counts(policy, status, dice, hd95, n_left_out):
    table = table_of(GOOD, status)
    for metric, mean in (("dice", dice), ("hd95", hd95)):
        found = row(table, metric, policy)
        assert found.mean == pytest.approx(mean)
        assert found.n_left_out == n_left_out
        assert getattr(found, f"n_{status}") == 1


@pytest.mark.parametrize("policy", ["mr", "nnunet", "brats"])
@pytest.mark.parametrize("status", ["missed", "spurious"])
def test_a_missed_structure_never_improves_a_mean(policy, status):
    """MONAI's HD95 of a missed and a perfect case is 0; here the worst case cannot vanish."""
    perfect = (1.0, 0.0, 0.0)
    with_fault, without = table_of(perfect, GOOD, status), table_of(perfect, GOOD)
    assert row(with_fault, "dice", policy).mean < row(without, "dice", policy).mean
    assert row(with_fault, "hd95", policy).mean > row(without, "hd95", policy).mean
    assert row(table_of(status, status), "hd95", policy).mean >= DIAGONAL_MM
    assert row(table_of(status, status), "dice", policy).mean == 0


def test_omit_says_how_many_it_omits():
    assert row(table_of("missed", "missed"), "dice", "omit").n_left_out == 2
    assert row(table_of("missed", "missed"), "dice", "omit").note == "no case counts"


def test_relative_volume_difference():
    assert row(table_of(GOOD, "missed"), "relative_volume_difference").mean == pytest.approx((0.1 - 1) / 2)
    spurious = row(table_of(GOOD, "spurious"), "relative_volume_difference")
    assert (spurious.mean, spurious.n_left_out) == (pytest.approx(0.1), 1)


def test_mean_over_labels_of_their_means():
    organ = table_of(GOOD, (0.6, 4.0, 0.0))
    tumour = ScoreTable(tuple(r for r in table_of("missed", label="tumour").rows if r.label != IMAGE_LABEL))
    table = ScoreTable.join([organ, tumour], "")
    assert row(table, "dice", label="tumour").mean == 0
    mean = row(table, "dice", label=MEAN_LABEL)
    assert mean.mean == pytest.approx((0.7 + 0) / 2)  # and not (0.8 + 0.6 + 0) / 3
    assert (mean.n_ok, mean.n_missed, mean.n_patients) == (2, 1, 2)


def test_labels_stay_in_order_and_the_mean_comes_last():
    organ, again = table_of(GOOD), table_of(GOOD, label="aorta")
    table = ScoreTable.join([organ, ScoreTable(tuple(r for r in again.rows if r.label != IMAGE_LABEL))], "")
    assert [r.label for r in summarise(table) if r.metric == "dice"] == ["organ", "aorta", MEAN_LABEL]


def test_faults():
    with pytest.raises(UsageError, match=r"policy 'nnunt' is unknown\. Did you mean 'nnunet'"):
        summarise(table_of(GOOD), "nnunt")
    table = table_of(GOOD)
    with pytest.raises(DataError, match="runs , other; means need a single run"):
        summarise(ScoreTable.join([table, ScoreTable(tuple(replace(r, run="other") for r in table.rows))], ""))
    with pytest.raises(DataError, match=r"metric 'dicee'\. Did you mean 'dice'"):
        summarise(ScoreTable((replace(table.rows[0], metric="dicee"),)))
    no_diagonal = ScoreTable(tuple(r for r in table_of("missed").rows if r.label != IMAGE_LABEL))
    with pytest.raises(DataError, match="case case_0, label organ: missed, and the table has no row image_diagonal"):
        summarise(no_diagonal)
    assert row(no_diagonal, "hd95", "brats").mean == 374


def test_an_empty_table():
    assert summarise(ScoreTable(())) == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_knows_every_metric(policy):
    base = table_of("missed").rows
    rows = [
        replace(base[0], metric=m.name, unit=m.unit, value=0.0 if m.kind == "overlap" else inf)
        for m in METRICS.values()
    ]
    assert {r.metric for r in summarise(ScoreTable((*rows, base[-1])), policy)} == set(METRICS)


def test_median_worst_twentieth_and_failures_by_hand():
    dice = [0.05] + [0.5 + i / 100 for i in range(20)]  # 21 cases: the 5th percentile is the second lowest, 0.50
    found = summarise(table_of(*[(d, 10 - 10 * d, -d) for d in dice], "missed"))
    by_metric = {r.metric: r for r in found if r.label == "organ"}
    # with the missed case 22 values 0, 0.05, 0.50 … 0.69: the 5th percentile lies at place 1.05, 0.05 + 0.05·0.45
    assert by_metric["dice"].worst_5_percent == pytest.approx(0.0725)
    assert by_metric["dice"].median == pytest.approx((0.58 + 0.59) / 2)
    assert by_metric["dice"].n_failures == 2  # the missed one and the one below 0.1
    # distances: 50 (diagonal), 9.5, 5.0 …: place 1.05 from above
    assert by_metric["hd95"].worst_5_percent == pytest.approx(9.5 - 0.05 * 4.5)
    assert by_metric["hd95"].n_failures == 2  # whether a structure was found does not depend on the metric
    assert (by_metric["dice"].n_failed_patients, by_metric["dice"].n_patients) == (2, 22)
    assert by_metric["dice"].failure_high == pytest.approx(0.2916, abs=1e-4)  # Clopper and Pearson, 2 of 22
    # 22 patients: P(X <= 5) = 0.0085, P(X <= 6) = 0.026: ranks 6 and 17 of 0, 0.05, 0.50 … are 0.53 and 0.64
    assert (by_metric["dice"].median_low, by_metric["dice"].median_high) == (0.53, 0.64)
    # differences by their size: 1, 0.69, 0.68 …
    assert by_metric["relative_volume_difference"].worst_5_percent == pytest.approx(0.69 - 0.05 * 0.01)


def test_nothing_counts():
    none = row(table_of("missed"), "dice", "omit")
    assert (none.mean, none.median, none.worst_5_percent) == (None, None, None)
    assert none.n_failures == 1
