"""Numbers of patients, and learning curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from segpipe.cli.main import run
from segpipe.compare.comparison import Question, compare
from segpipe.compare.learning_curve import fit_curve
from segpipe.compare.results import Method
from segpipe.compare.sample_size import (
    half_width,
    patients_for_difference,
    patients_for_half_width,
    patients_for_verdict,
    spread_of,
)
from segpipe.compare.study_file import STUDY_FILE, Arm, Study, StudyFolder
from segpipe.core.errors import DataError
from segpipe.core.labels import Label, LabelSet
from segpipe.data.dataset import Case, Dataset
from segpipe.data.splits import make_splits, with_fewer_patients
from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.pipeline.learning_curves import learning_curves
from segpipe.report.compare_page import write_compare_page


def test_variance_components_by_hand():
    # patients {0, 2}, {4, 6}: means 1 and 5, within 2 + 2 squares over 2 = 2... (1+1+1+1)/2; between 2·(4+4)/1 = 16
    found = spread_of(np.array([0.0, 2.0, 4.0, 6.0]), np.array([0, 0, 1, 1]))
    assert found.sd_cases**2 == pytest.approx(2.0)
    assert found.sd_patients**2 == pytest.approx((16 - 2) / 2)
    assert found.icc == pytest.approx(7 / 9)
    assert found.variance(2) == pytest.approx(8.0)  # that of the two means 1 and 5
    # patients {0, 2}, {4}: within 2/1; between 2·(1-2)² + (4-2)² = 6; typical size 3 - (4 + 1)/3 = 4/3; 4 / (4/3) = 3
    assert spread_of(np.array([0.0, 2.0, 4.0]), np.array([0, 0, 1])).sd_patients ** 2 == pytest.approx(3.0)
    equal = spread_of(np.array([0.0, 2.0, 2.0, 0.0]), np.array([0, 0, 1, 1]))  # between 0, less than within
    assert (equal.sd_patients, equal.icc) == (0.0, 0.0)
    alone = spread_of(np.array([1.0, 2.0, np.nan, 3.0]), np.arange(4))
    assert (alone.sd_patients, alone.icc, alone.n_patients) == (pytest.approx(1.0), None, 3)


def test_patients_for_a_half_width_are_the_fewest():
    n = patients_for_half_width(0.01, 0.02)  # about (1.96 · 0.1 / 0.02)² = 96
    assert 96 < n < 102
    assert half_width(0.04, 5) == pytest.approx(2.7764 * (5 / 4) ** 0.5 * (0.04 / 5) ** 0.5, abs=1e-5)  # t of 4 df
    assert half_width(0.01, n) <= 0.02 < half_width(0.01, n - 1)
    assert patients_for_half_width(1e-9, 1.0) == 5


@pytest.mark.parametrize(("difference", "power"), [(0.01, 0.8), (0.02, 0.9), (0.005, 0.8)])
def test_statsmodels_agrees_on_the_power(difference, power):
    theirs = TTestPower().solve_power(effect_size=difference / 0.05, alpha=0.05, power=power)
    assert patients_for_difference(0.05**2, difference, power) == int(np.ceil(theirs))


def test_a_verdict_needs_patients_that_exclude_failures():
    assert patients_for_verdict(0.02, 1.0) == 99  # 1 - 0.05^(1/99) is below 3 %
    assert patients_for_verdict(0.2, 1.0) == 14  # 1 - 0.05^(1/14) = 0.193 < 0.2


def test_what_cannot_be_planned_is_said():
    with pytest.raises(DataError, match="1 patient with a score, expected 2 or more"):
        spread_of(np.array([0.5, 0.6]), np.array([3, 3]))
    with pytest.raises(DataError, match="all 3 values are equal"):
        spread_of(np.full(3, 0.5), np.arange(3))
    random = np.random.default_rng(0)
    with pytest.raises(DataError, match="2 sizes of the training set, expected 3"):
        fit_curve([10, 20], np.ones((5, 2)), random)
    with pytest.raises(DataError, match="2 folds, expected 3"):
        fit_curve([10, 20, 40], np.ones((2, 3)), random)


def test_a_curve_without_noise_is_found_again():
    sizes = np.array([20.0, 40.0, 60.0, 80.0])
    exponent = np.geomspace(0.1, 2, 25)[15]  # one that is tried
    errors = np.tile(0.1 + 0.8 * sizes**-exponent, (5, 1))
    curve = fit_curve(sizes, errors, np.random.default_rng(0))
    gain, low, high = curve.gain(80, 80)
    assert gain == pytest.approx(0.8 * (80**-exponent - 160**-exponent), rel=1e-6)
    assert (low, high) == (pytest.approx(gain), pytest.approx(gain))


def test_a_curve_spreads_as_the_mean_of_its_folds():
    """Folds that differ by a constant: the asymptote is distributed as their mean, so t of 2 df."""
    sizes = np.array([20.0, 40.0, 80.0])
    luck = np.array([[-0.01], [0.0], [0.01]])  # SD 0.01
    curve = fit_curve(sizes, 0.5 + 0.8 / sizes + luck, np.random.default_rng(0))
    low, high = np.quantile(curve.error(80) + curve.draws[:, 0] - curve.best[0], [0.025, 0.975]) - curve.error(80)
    assert (-low, high) == pytest.approx((4.303 * 0.01 / 3**0.5,) * 2, rel=0.2)


def test_no_curve_falls_below_zero_or_rises_above_the_highest_error():
    sizes = np.array([20.0, 40.0, 80.0])
    steep = fit_curve(
        sizes, np.tile([0.8, 0.1, 0.0125], (3, 1)), np.random.default_rng(0)
    )  # n⁻³, and 2 is tried at most
    assert steep.draws[:, :2].min() >= 0 and steep.error(1e9) >= 0
    wild = np.random.default_rng(1).normal(0.9, 0.4, (3, 3))
    draws = fit_curve(sizes, wild, np.random.default_rng(0), highest=1.0).draws
    assert draws[:, 0].max() <= 1 + 1e-9


def test_a_flat_curve_gains_nothing_and_intervals_hold_zero():
    errors = 0.2 + np.random.default_rng(1).normal(0, 0.01, (5, 4))
    gain, low, high = fit_curve([20, 40, 60, 80], errors, np.random.default_rng(0)).gain(80, 20)
    assert low == pytest.approx(0, abs=1e-6)
    assert 0 <= gain <= high < 0.05


def table_of(values, folds=None):
    return ScoreTable(
        tuple(
            Score("r", f"c{i}", f"p{i // 2}", folds and folds[f"c{i}"], 0, "organ", "dice", float(v), "1", "ok", 9, 9)
            for i, v in enumerate(values)
        )
    )


def study_folder(folder: Path, error_of) -> Path:
    """A study of four shares of the training patients on five folds, as `segpipe study` leaves it."""
    cases = tuple(Case(case_id=f"c{i}", patient_id=f"p{i // 2}", images=("x.nii",)) for i in range(200))
    labels = LabelSet(labels=(Label(name="organ", values=(1,)),))
    dataset = Dataset(
        name="d", layout="csv", root="/", channels=("MR",), labels=labels, cases=cases, patients_from="here"
    )
    presence = {case.case_id: frozenset({"organ"}) for case in cases}
    splits = make_splits(dataset, presence, 0)
    shares = {"quarter": 0.25, "half": 0.5, "most": 0.75, "whole": 1.0}
    study, out = StudyFolder(folder), np.random.default_rng(0)
    arms = {name: Arm(training_patients=share) for name, share in shares.items()}
    Study(name="s", question="q", arms=arms, folds=tuple(range(5)), seeds=(0,), steps=2).save(folder / "study.yaml")
    dataset.save(study.base.dataset)
    own = out.normal(0, 0.02, len(cases))
    folds = {case: number for number, fold in enumerate(splits.folds) for case in fold.validation}
    for name, share in shares.items():
        with_fewer_patients(splits, dataset, presence, share, 0).save(study.seed(name, 0).splits)
        luck = out.normal(0, 0.002, 5)[[folds[f"c{i}"] for i in range(len(cases))]]
        table_of(1 - error_of(80 * share) - own - luck, folds).save(study.scores(name))
    return folder


def test_command_reads_a_learning_curve_from_a_study(tmp_path, capsys):
    folder = study_folder(tmp_path / "study", lambda n: 0.1 + 0.4 * n**-0.5)
    assert run(["size", str(folder), "--more", "20", "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [point["n_patients"] for point in curve["points"]] == [20, 40, 60, 80]
    gain = 0.4 * (80**-0.5 - 100**-0.5)
    assert curve["low"] <= gain <= curve["high"] and curve["gain"] == pytest.approx(gain, rel=0.5)
    assert run(["size", str(folder), "--more", "20"]) == 0
    assert "20 more training patients would bring +0.00" in " ".join(capsys.readouterr().out.split())


def test_the_page_of_a_study_draws_its_learning_curve(tmp_path):
    folder = StudyFolder(study_folder(tmp_path / "study", lambda n: 0.1 + 0.4 * n**-0.5))
    study = Study.load(folder.path / STUDY_FILE)
    methods = [Method(name, ScoreTable.load(folder.scores(name))) for name in study.arms]
    question = Question(margins={"dice": 0.005})
    curves, notes = learning_curves(study, folder, methods, question)
    curve = curves["dice"]
    assert notes == [] and [len(point.of_folds) for point in curve.points] == [5] * 4
    assert (curve.fitted[0].n_patients, curve.fitted[-1].n_patients, curve.n_more) == (20, 160, 80)
    for point, n in ((curve.fitted[0], 20), (curve.fitted[-1], 160)):
        assert point.score == pytest.approx(1 - curve.asymptote - curve.scale * n**-curve.exponent)
        assert point.low < point.score < point.high
    page = write_compare_page(compare(methods, question), methods, question, tmp_path, curves).read_text("utf-8")
    assert "80 more training patients would bring +0.0" in page and "Dice by training patients: 20: 0." in page
    curves, notes = learning_curves(study, folder, methods[2:], question)
    assert not curves and notes[0].startswith("No learning curve of Dice: 2 sizes of the training set, expected 3")


def test_command_counts_patients_and_refuses_what_it_cannot_answer(tmp_path, capsys):
    random = np.random.default_rng(0)
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    scores = random.normal(0.8, 0.05, 40)
    table_of(scores).save(first)
    table_of(scores + random.normal(0, 0.03, 40)).save(second)
    assert run(["size", f"a={first}", f"b={second}", "--difference", "0.02", "--scans", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pilots"][0]["n_patients"] == 20
    assert found["needs"][0]["low"] < found["needs"][0]["n_patients"] < found["needs"][0]["high"]
    assert found["needs"][0]["n_for_verdict"] == 99
    for command, code, said in [
        ([str(first)], 2, "Give --half-width, --difference or --more"),
        ([str(first), "--difference", "0.1"], 2, "Give a second RESULT"),
        ([str(first), "--half-width", "-1"], 2, "expected a number above 0"),
        ([str(first), "--more", "5"], 2, "is not the folder of a study"),
        ([str(first), "--half-width", "0.1", "--label", "organs"], 2, "organ"),
        ([str(first), "--half-width", "0.1", "--metric", "dise"], 2, "Did you mean 'dice'?"),
        ([str(tmp_path / "none.csv"), "--half-width", "0.1"], 3, "no such file"),
    ]:
        assert run(["size", *command]) == code, command
        assert said in capsys.readouterr().err
