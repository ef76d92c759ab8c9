"""Results from whoever made them."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import pytest

from segpipe.compare.foreign import long_table, nnunet_table
from segpipe.compare.results import Source, read_methods, read_table
from segpipe.core.errors import DataError, UsageError
from segpipe.evaluate.scores import Score, ScoreTable


def table(run="", n_cases=3, fold=None, seed=None, value=0.8):
    rows = [Score(run, f"c{i}", f"c{i}", fold, seed, "organ", "dice", value, "1", "ok", 10, 10) for i in range(n_cases)]
    return ScoreTable(tuple(rows))


def summary(path: Path, cases: dict[str, dict[str, tuple[float, int, int]]]):
    """nnU-Net v2's file, of Dice, reference and prediction voxels by case and label."""
    listed = [
        {
            "metrics": {
                label: {"Dice": dice, "IoU": dice / (2 - dice), "n_ref": ref, "n_pred": pred, "TP": 1, "FP": 0}
                for label, (dice, ref, pred) in of.items()
            },
            "prediction_file": f"/data/{case}.nii.gz",
            "reference_file": f"/labels/{case}.nii.gz",
        }
        for case, of in cases.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metric_per_case": listed, "mean": {}, "foreground_mean": {}}))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_scores_of_two_runs(tmp_path):
    table("plain").save(tmp_path / "a.csv")
    table("residual", value=0.9).save(tmp_path / "b.csv")
    found = read_methods([Source.parse(str(tmp_path / name)) for name in ("a.csv", "b.csv")])
    assert [method.name for method in found] == ["plain", "residual"]
    assert found[1].table.rows[0].value == 0.9


def test_runs_of_one_name_are_called_by_what_differs_in_their_paths(tmp_path):
    for work in ("first", "second"):
        table("3d_fullres").save(tmp_path / work / "runs" / "3d_fullres" / "scores.csv")
    found = read_methods([Source.parse(str(tmp_path / work / "runs" / "3d_fullres")) for work in ("first", "second")])
    assert [method.name for method in found] == ["first", "second"]


def test_seeds_of_one_method_are_joined(tmp_path):
    table().save(tmp_path / "one.csv")
    table().save(tmp_path / "two.csv")
    texts = ["base:1=one.csv", "base:2=two.csv", "new=one.csv"]
    sources = [replace(Source.parse(text), path=tmp_path / Source.parse(text).path) for text in texts]
    base, new = read_methods(sources)
    assert (base.name, new.name) == ("base", "new")
    assert {row.seed for row in base.table.rows} == {1, 2}
    with pytest.raises(DataError, match=r"method base: two scores of case c0 \(fold None, seed None.*NAME:SEED=PATH"):
        read_methods([replace(source, seed=None) for source in sources])


def test_a_path_with_an_equals_sign_is_a_path(tmp_path):
    table().save(tmp_path / "a=b.csv")
    assert Source.parse(str(tmp_path / "a=b.csv")).name is None
    assert Source.parse("a:b=c.csv") == Source(Path("c.csv"), "a:b")
    assert Source.parse("a:3=c=d.csv") == Source(Path("c=d.csv"), "a", 3)
    for text in ("=c.csv", "a="):
        with pytest.raises(UsageError, match="expected PATH, NAME=PATH or NAME:SEED=PATH"):
            Source.parse(text)


def test_one_file_given_twice_counts_once(tmp_path, capsys):
    for name in ("a", "b"):
        table(value=len(name) / 2).save(tmp_path / f"{name}.csv")
    given = [Source(tmp_path / "a.csv", "a", 0), Source(tmp_path / "." / "a.csv", "a", 1), Source(tmp_path / "b.csv")]
    found = read_methods(given)
    assert [len(method.table.rows) for method in found] == [3, 3]
    assert "a.csv: given twice for a, counted once" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"1 method .*expected two or more"):
        read_methods(given[:2])


def test_one_method_is_not_enough(tmp_path):
    table("plain").save(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"1 method \(plain\), expected two or more"):
        read_methods([Source(tmp_path / "a.csv")])


def test_a_folder_of_nnunet(tmp_path):
    for fold in range(2):
        cases = {f"case_{fold}{i}": {"1": (0.5 + i / 10, 10, 12), "(1, 2)": (0.9, 20, 20)} for i in range(3)}
        summary(tmp_path / "trainer" / f"fold_{fold}" / "validation" / "summary.json", cases)
    found = read_table(tmp_path / "trainer")
    assert found.labels == ("1", "(1, 2)")
    assert found.metrics == ("dice", "iou")
    assert {row.fold for row in found.rows} == {0, 1}
    row = found.rows[0]
    assert (row.case_id, row.value, row.n_reference_vox, row.n_prediction_vox) == ("case_00", 0.5, 10, 12)


def test_nnunets_empty_masks_have_their_status(tmp_path):
    labels = {"1": (nan, 0, 0), "2": (0.0, 5, 0), "3": (0.0, 0, 5)}
    summary(tmp_path / "summary.json", {"patient001_frame01": labels})
    rows = nnunet_table(tmp_path / "summary.json", None).rows
    assert [row.status for row in rows if row.metric == "dice"] == ["both_empty", "missed", "spurious"]
    assert isnan(rows[0].value)


def test_patients_are_told_by_the_names_of_all_folds(tmp_path):
    for fold, frame in enumerate(("01", "12")):  # within a fold every case is a patient of its own
        cases = {f"patient{n:03}_frame{frame}": {"1": (0.5, 10, 10)} for n in range(2)}
        summary(tmp_path / f"fold_{fold}" / "summary.json", cases)
    assert {row.patient_id for row in read_table(tmp_path).rows} == {"patient000", "patient001"}


def test_labels_of_a_summary_are_named_by_the_dataset_beside_the_model(tmp_path):
    path = tmp_path / "trainer" / "fold_0" / "validation" / "summary.json"
    summary(path, {"p1": {"1": (0.8, 9, 9), "(1, 2)": (0.9, 9, 9), "7": (0.5, 9, 9)}})
    write(tmp_path / "dataset.json", '{"labels": {"of another model": 1}}')
    assert [row.label for row in nnunet_table(path, 0).rows[::2]] == ["1", "(1, 2)", "7"]
    write(tmp_path / "trainer" / "dataset.json", '{"labels": {"background": 0, "core": 1, "whole": [1, 2]}}')
    assert [row.label for row in nnunet_table(path, 0).rows[::2]] == ["core", "whole", "7"]


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}',
        "[]",
        '{"metric_per_case": [{"metrics": {}}]}',
        "no json",
        '{"metric_per_case": [{"prediction_file": "a.nii", "metrics": {"1": {"Dice": 1}}}]}',
    ],
)
def test_what_is_no_summary(tmp_path, content):
    with pytest.raises(DataError, match=r"summary\.json"):
        read_table(write(tmp_path / "summary.json", content))


def test_a_long_table_of_several_methods(tmp_path):
    file = write(
        tmp_path / "cv.csv",
        "method,fold,case_id,label,dice,n_reference_vox,n_prediction_vox,comment\n"
        "a,0,x,1,0.5,10,10,good\nb,0,x,1,,0,0,\na,0,y,1,0,10,0,\n",
    )
    found = long_table(file)
    assert found.runs == ("a", "b")
    assert [row.status for row in found.rows] == ["ok", "both_empty", "missed"]
    assert (found.rows[0].fold, found.rows[0].seed, found.rows[0].unit) == (0, None, "1")


def test_a_long_table_of_metric_and_value(tmp_path):
    file = write(
        tmp_path / "t.csv", "Case,Label,Metric,Value,Status\nx,1,Dice,0.5,\nx,1,hd95,3,\ny,1,dice,nan,both_empty\n"
    )
    found = long_table(file)
    assert [(row.metric, row.unit, row.status) for row in found.rows] == [
        ("dice", "1", "ok"),
        ("hd95", "mm", "ok"),
        ("dice", "1", "both_empty"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,label\nx,1\n", "line 1: columns are case_id, label; expected case_id, label and a column"),
        ("label,dice\n1,0.5\n", "line 1"),
        ("case_id,label,dice\n", "has no rows"),
        ("", "has no rows"),
        ("case_id,label,dice,dice\nx,1,1,1\n", "a column twice"),
        ("case_id,label,dice\nx,1\n", "line 2: 2 cells, expected 3"),
        ("case_id,label,dice\nx,1,good\n", "line 2: dice is 'good', expected a number"),
        ("case_id,label,dice\nx,1,0.5\nx,1,0.6\n", r"line 3: the same .* \(x, 1, dice\) as line 2"),
        ("case_id,label,hd95\nx,1,inf\n", r"line 2: hd95 of case x is inf, expected a number.* n_reference_vox and"),
        ("case_id,label,dice\nx,1,\n", r"t\.csv, line 2: dice of case x is blank.*--allow-missing"),
        ("case_id,label,dice\nx,1,nan\n", r"line 2: dice of case x is nan, expected a number"),
        ("case_id,label,dice,n_reference_vox,n_prediction_vox\nx,1,,,\n", "dice of case x is blank"),
        ("case_id,label,dice,n_reference_vox,n_prediction_vox\nx,1,,9,9\n", "dice of case x is blank"),
        ("case_id,label,dice,status\nx,1,,ok\n", "dice of case x is blank"),
        ("case_id,label,dice\nx,1,NA\n", "line 2: dice of case x is 'NA', expected a number.*--allow-missing"),
        ("case_id;label;dice\nx;1;-\n", "line 2: dice of case x is '-', expected a number.*--allow-missing"),
        (
            'case_id,label,dice\nx,1,"0,85"\n',
            "dice is '0,85', expected a number. It has a decimal comma: write a point",
        ),
        ("case_id;label;dice\nx;1;0,85\n", "dice is '0,85', expected a number. It has a decimal comma"),
        ("case_id,label,dice\nx,1,85 %\n", "dice is '85 %', expected a number. It is in percent: divide by 100"),
        ("case_id,label,dice\nx,1,84.1\n", r"line 2: dice is 84\.1, expected 0 to 1\. Is it in percent\?"),
        ("case_id,label,dice\nx,1,-0.1\n", r"line 2: dice is -0\.1, expected 0 to 1\. Correct the line"),
        ("case_id,label,hd95\nx,1,-3\n", "line 2: hd95 is -3, expected 0 or more"),
        ("case_id,label,metric,value\nx,1,dise,1\n", "metric 'dise' is unknown"),
        ("case_id,label,dice\n,1,0.5\n", "line 2: case_id is empty"),
    ],
)
def test_faults_of_a_long_table(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        long_table(write(tmp_path / "t.csv", text))


def test_a_case_without_a_score_is_missing_for_its_metric_in_all_labels(tmp_path):
    """A blank in one label must not leave the case in the means of the other: methods are paired by cases."""
    text = "case_id,label,dice,hd95\nx,1,0.5,1\nx,2,,2\ny,1,0.6,3\ny,2,0.7,nan\n"
    found = long_table(write(tmp_path / "t.csv", text), allow_missing=True)
    assert [(row.case_id, row.label, row.metric) for row in found.rows] == [
        ("x", "1", "hd95"), ("x", "2", "hd95"), ("y", "1", "dice"), ("y", "2", "dice"),
    ]  # fmt: skip


def test_a_score_of_nnunet_that_is_no_number_names_its_case(tmp_path):
    summary(tmp_path / "summary.json", {"p1": {"1": (nan, 5, 5)}})
    with pytest.raises(DataError, match=r"summary\.json: case p1, label 1: value is nan with status ok"):
        nnunet_table(tmp_path / "summary.json", None)
    summary(tmp_path / "summary.json", {"p1": {"1": (84.0, 5, 5)}})
    with pytest.raises(DataError, match=r"case p1, label 1: dice is 84, expected 0 to 1\. Is it in percent\?"):
        nnunet_table(tmp_path / "summary.json", None)


def test_what_cannot_be_found(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"neither scores\.csv nor summary\.json"):
        read_table(tmp_path)
    with pytest.raises(DataError, match=r"expected a \.csv table"):
        read_table(write(tmp_path / "scores.txt", ""))
    with pytest.raises(DataError, match="no scores of any structure"):
        ScoreTable(()).save(tmp_path / "empty.csv")
        read_table(tmp_path / "empty.csv")
    for fold in ("fold_0", "fold_1"):
        table().save(tmp_path / fold / "scores.csv")
    with pytest.raises(DataError, match="two rows for case c0"):
        read_table(tmp_path)
