"""Scores by group of cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from segpipe.cli.main import run
from segpipe.cli.tables import groups_text
from segpipe.core.errors import UsageError
from segpipe.evaluate.groups import CaseTable, compare_groups, gap_test, read_cases, refuse_bad_groups
from segpipe.evaluate.scores import Score, ScoreTable
from tests.test_scoring import folders  # noqa: F401 (a fixture)


def table_of(values, n_of_patient=1, label="organ"):
    return ScoreTable(
        tuple(
            Score("r", f"c{i}", f"p{i // n_of_patient}", None, None, label, "dice", float(value), "1", "ok", 9, 9)
            for i, value in enumerate(values)
        )
    )


def sites(names):
    return CaseTable(None, {"site": {f"c{i}": name for i, name in enumerate(names)}})


def test_groups_by_hand():
    rows, (gap,) = compare_groups(table_of([0.9] * 5 + [0.7] * 5 + [0.1]), sites("AAAAABBBBB"), "mr")
    assert [(row.group, row.n_patients, round(row.mean, 6)) for row in rows if row.label == "organ"] == [
        ("A", 5, 0.9), ("B", 5, 0.7), ("(unknown)", 1, 0.1),
    ]  # fmt: skip
    assert (gap.gap, gap.lowest, gap.highest) == (pytest.approx(0.2), "B", "A")
    # of 10! / (5! 5!) = 252 divisions, two are as far apart: 1 / 126
    assert gap.p_value == pytest.approx(1 / 126, abs=0.003)
    assert gap.note == "1 patient without a group or in a group below 5 left out"


def test_scipy_agrees_on_three_groups():
    random = np.random.default_rng(1)
    values, groups = random.normal(size=24), np.repeat(np.arange(3), 8)
    values[16:] += 1

    def gap(shuffled):
        means = [shuffled[groups == g].mean() for g in range(3)]
        return max(means) - min(means)

    theirs = stats.permutation_test((values,), gap, permutation_type="pairings", n_resamples=9999,
                                    alternative="greater", rng=random)  # fmt: skip
    ours = gap_test(values[:, None], np.ones((24, 1)), groups, np.random.default_rng(0))
    assert ours.p_values[0] == pytest.approx(theirs.pvalue, abs=0.015)


def test_labels_share_one_error_rate():
    random = np.random.default_rng(0)
    values = random.normal(size=(20, 8))
    groups = np.repeat([0, 1], 10)
    values[:10, 3] += 1.2
    together = gap_test(values, np.ones_like(values), groups, np.random.default_rng(1)).p_values[3]
    alone = gap_test(values[:, [3]], np.ones((20, 1)), groups, np.random.default_rng(1)).p_values[0]
    assert alone < together < 8 * alone + 0.02  # never more careful than Bonferroni


def test_patients_in_several_groups_are_not_tested():
    _, (gap,) = compare_groups(table_of(np.linspace(0.5, 0.9, 20), 2), sites("AB" * 10), "mr")
    assert (gap.gap, gap.p_value) == (None, None)
    assert gap.note == "10 patients have cases in several groups, so patients cannot be exchanged"


def test_groups_below_five_patients_are_shown_but_not_tested():
    rows, (gap,) = compare_groups(table_of(np.linspace(0.5, 0.9, 8)), sites("AAAAAABB"), "mr")
    assert {row.group for row in rows} == {"A", "B"}
    assert gap.note == "1 group has 5 patients or more, expected two"
    text = groups_text(rows, (gap,))
    assert "Largest gap, Dice: none" in text and max(map(len, text.splitlines())) <= 80


def test_one_patient_in_two_groups_is_enough_not_to_test():
    _, (gap,) = compare_groups(table_of(np.linspace(0.5, 0.9, 22), 2), sites("A" * 10 + "B" * 10 + "AB"), "mr")
    assert gap.gap is None and gap.note.startswith("1 patient has cases in several groups")


def test_cases_without_a_group_are_not_a_group_however_many():
    rows, (gap,) = compare_groups(table_of([0.9] * 5 + [0.7] * 5 + [0.1] * 6), sites("AAAAABBBBB"), "mr")
    assert (gap.lowest, gap.highest, gap.n_groups, gap.n_patients) == ("B", "A", 2, 10)
    assert gap.note.startswith("6 patients without a group")
    assert "Largest gap, Dice of organ: 0.200 from B to A, p 0.0" in groups_text(rows, (gap,))


def test_the_smallest_p_is_one_of_all_permutations_and_the_one_that_was_seen():
    values = np.repeat([[0.0], [1.0]], 20, axis=0)  # of 40! / (20! 20!) divisions two are as far apart: none is drawn
    found = gap_test(values, np.ones((40, 1)), np.repeat([0, 1], 20), np.random.default_rng(0), 999)
    assert found.p_values.tolist() == [0.001, 0.001]


def test_equal_scores_have_no_p():
    _, (gap,) = compare_groups(table_of([0.5] * 12), sites("A" * 6 + "B" * 6), "mr")
    assert (gap.gap, gap.p_value) == (0.0, None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("AAAA", "the one value 'A' for 4 cases, expected two groups or more"),
        ("", "no value for 4 cases"),
        ("ABCD", "each of 4 cases has a value of its own"),
    ],
)
def test_a_column_that_does_not_divide_the_cases_is_refused(names, said):
    with pytest.raises(UsageError, match=f"--by site: .*{said}"):
        refuse_bad_groups(sites(names), [f"c{i}" for i in range(4)])


def test_a_manifest_may_have_semicolons(tmp_path):
    (tmp_path / "m.csv").write_text("case_id;patient_id;site\nx;p; 1\ny;;2\n")
    assert read_cases(tmp_path / "m.csv", ["site"]) == CaseTable({"x": "p", "y": "y"}, {"site": {"x": "1", "y": "2"}})


def test_command_scores_groups(folders, capsys):  # noqa: F811
    (folders / "cases.csv").write_text(
        "case_id,scanner\n" + "".join(f"sub-{p}_ses-{s},{s}\n" for p in "01" for s in "01")
    )
    command = ["evaluate", "-r", f"{folders}/data", "-p", f"{folders}/predictions", "-j", "1", "--metrics", "dice"]
    assert run([*command, "--by", "scanner", "--cases", str(folders / "cases.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"0", "1"} <= {row["group"] for row in found["groups"]}
    assert found["gaps"][0]["note"] == "1 patient has cases in several groups, so patients cannot be exchanged"
    assert run([*command, "--by", "scaner", "--cases", str(folders / "cases.csv")]) == 2
    assert "Did you mean 'scanner'?" in capsys.readouterr().err
    assert run([*command, "--by", "scanner"]) == 2
    assert "Name a CSV file with --cases" in capsys.readouterr().err
