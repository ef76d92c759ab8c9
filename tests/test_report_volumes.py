"""Bias and limits of agreement of volumes, and their picture."""

from __future__ import annotations

from math import inf, nan, sqrt

import pytest

from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.report.charts import distributions, volume_picture, volume_table
from segpipe.report.volume_agreement import VolumeAgreement, VolumeEstimate, volume_agreements

VOXEL_MM3 = 2.0


def score(case: str, n_reference_vox: int, n_prediction_vox: int, label: str = "organ", patient: str = "") -> Score:
    statuses = {(True, True): "ok", (True, False): "missed", (False, True): "spurious", (False, False): "both_empty"}
    status = statuses[n_reference_vox > 0, n_prediction_vox > 0]
    value = VOXEL_MM3 * (n_prediction_vox - n_reference_vox)
    return Score(
        "run", case, patient or case, 0, 0, label, "volume_difference", value, "mm3",
        status, n_reference_vox, n_prediction_vox,
    )  # fmt: skip


def test_bias_limits_and_their_intervals_by_hand():
    # differences -10, 0 and 40 mm³: mean 10, SD² (400 + 100 + 900) / 2 = 700
    (found,) = volume_agreements(ScoreTable((score("a", 10, 5), score("b", 7, 7), score("c", 20, 40))))
    sd = sqrt(700)
    assert (found.n_scores, found.n_patients, found.n_both_empty, found.n_unplaced) == (3, 3, 0, 1)
    assert found.means_mm3 == (15, 60)  # b has equal counts, so that its voxels could have any size
    assert found.differences_mm3 == (-10, 40)
    assert found.bias.value == pytest.approx(10)
    assert found.bias.high - 10 == pytest.approx(4.3027 * sd / sqrt(3), rel=1e-4)  # t with 2 degrees of freedom
    assert found.upper.value == pytest.approx(10 + 1.96 * sd)
    # factors for 3 values and 1.96 SD: 0.7127 and 12.816 (the noncentral t's quantiles over the root of 3)
    assert found.upper.low == pytest.approx(10 + 0.71267 * sd, rel=1e-4)
    assert found.upper.high == pytest.approx(10 + 12.81641 * sd, rel=1e-4)
    assert found.lower.low - 10 == pytest.approx(10 - found.upper.high)  # symmetric
    assert found.lower.high - 10 == pytest.approx(10 - found.upper.low)


def test_the_voxel_of_a_case_is_known_from_another_label():
    rows = (score("a", 7, 7), score("a", 3, 4, "node"), score("b", 5, 8))
    organ = volume_agreements(ScoreTable(rows))[0]
    assert organ.means_mm3 == (14, 13)
    assert organ.n_unplaced == 0


def test_a_structure_that_both_lack_does_not_count_and_a_missed_one_does():
    rows = (score("a", 0, 0), score("b", 6, 0), score("c", 0, 4), score("d", 5, 5, "node"), score("a", 0, 0, "never"))
    organ, node = volume_agreements(ScoreTable(rows))
    assert (organ.n_scores, organ.n_both_empty, organ.differences_mm3) == (2, 1, (-12, 8))
    assert (node.label, node.bias, node.lower, node.upper) == ("node", VolumeEstimate(0, None, None), None, None)


def test_several_cases_of_one_patient_count_as_one_unit():
    values = [(10, 12), (10, 15), (10, 9), (10, 11)]
    apart = ScoreTable(tuple(score(str(i), *v) for i, v in enumerate(values)))
    pairs = ScoreTable(tuple(score(str(i), *v, patient=f"p{i // 2}") for i, v in enumerate(values)))
    alone = ScoreTable(tuple(score(str(i), *v, patient="p") for i, v in enumerate(values)))
    (four,), (two,), (one,) = (volume_agreements(table) for table in (apart, pairs, alone))
    assert four.bias.value == two.bias.value == one.bias.value
    assert two.bias.high > four.bias.high and two.upper.high > four.upper.high
    assert one.bias.low is None and one.upper.high is None and one.upper.value == four.upper.value


def test_intervals_of_limits_hold_the_truth_as_often_as_they_say():
    import numpy as np

    random, n_hits, n_trials = np.random.default_rng(0), 0, 400
    for _ in range(n_trials):
        sizes = np.maximum(1, np.round(random.normal(10_000, 1_000, 15))).astype(int)
        rows = tuple(score(str(i), 10_000, int(size)) for i, size in enumerate(sizes))
        (found,) = volume_agreements(ScoreTable(rows))
        n_hits += found.upper.low <= 1.96 * 1_000 * VOXEL_MM3 <= found.upper.high
    assert n_hits / n_trials == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / n_trials))


def agreement(label: str, n: int, half_mm3: float) -> VolumeAgreement:
    limits = [VolumeEstimate(sign * half_mm3, None, None) for sign in (0, -1, 1)]
    return VolumeAgreement(label, (1000.0,) * n, (0.0,) * n, n, n, 0, 0, limits[0], limits[1], limits[2])


def test_of_many_labels_those_with_wide_limits_are_drawn_and_all_are_listed():
    found = [agreement(f"l{i}", 3, float(i)) for i in range(30)]
    picture, table = volume_picture(found, {}), volume_table(found)
    assert "12 of 30 labels are drawn" in picture.caption
    assert "l29 +0.00 mL" in picture.alt and "l17 " not in picture.alt and "l18 " in picture.alt
    assert [row[0].text for row in table.rows] == [one.label for one in found]


def test_volumes_below_a_millilitre_are_shown_in_cubic_millimetres():
    (found,) = volume_agreements(ScoreTable((score("a", 10, 5), score("c", 20, 40))))
    assert "organ +15 mm³" in volume_picture([found], {}).alt
    assert volume_table([found]).rows[0][1].text.startswith("+15\n[")
    assert volume_picture([], {}) is None and volume_table([]) is None
    (undrawn,) = volume_agreements(ScoreTable((score("d", 5, 5),)))
    assert volume_picture([undrawn], {}) is None and "1 not drawn" in volume_table([undrawn]).rows[0][4].text


def test_a_distribution_names_what_has_no_value():
    rows = [
        Score("run", f"c{i}", f"c{i}", 0, 0, "organ", "hd95", v, "mm", status, 0, 0)
        for i, (v, status) in enumerate([(1.0, "ok"), (3.0, "ok"), (inf, "missed"), (nan, "both_empty")])
    ]
    (picture,) = distributions(ScoreTable(tuple(rows)), ["hd95", "assd"], {})
    assert "Without a value: organ in c2 (missed), organ in c3 (both empty)." in picture.caption
    assert "Medians: organ 2.00." in picture.alt
    only_missed = ScoreTable(tuple(row for row in rows if row.status != "ok"))
    assert "Medians: none." in distributions(only_missed, ["hd95"], {})[0].alt
