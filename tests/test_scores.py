"""The table of scores: rows that cannot be wrong, and a file that is read strictly."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, nan

import pytest

from segpipe.core.errors import DataError
from segpipe.evaluate.scores import COLUMNS, Score, ScoreTable

ROW = Score("unet", "case_1", "anna", 0, 7, "organ", "dice", 0.875, "1", "ok", 12, 10)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    other = replace(ROW, case_id='odd, "case"', fold=None, seed=None, metric="hd95", value=0.1 + 0.2, unit="mm")
    table = ScoreTable((ROW, other))
    table.save(tmp_path / "scores.csv")
    text = (tmp_path / "scores.csv").read_text("utf-8")
    assert text.splitlines()[0] == (
        "run,case_id,patient_id,fold,seed,label,metric,value,unit,status,n_reference_vox,n_prediction_vox"
    )
    assert text.splitlines()[1] == "unet,case_1,anna,0,7,organ,dice,0.875,1,ok,12,10"
    assert ScoreTable.load(tmp_path / "scores.csv") == table


def test_undefined_values_come_back(tmp_path):
    missed = replace(ROW, metric="hd95", value=inf, unit="mm", status="missed", n_prediction_vox=0)
    empty = replace(ROW, value=nan, status="both_empty", n_reference_vox=0, n_prediction_vox=0)
    ScoreTable((missed, empty)).save(tmp_path / "a.csv")
    back = ScoreTable.load(tmp_path / "a.csv")
    assert back.rows[0].value == inf
    assert isnan(back.rows[1].value)
    back.save(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


GOOD = "unet,case_1,anna,0,7,organ,dice,0.875,1,ok,12,10"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace("0.875", "0,875"), "line 3: 13 cells, expected 12"),
        (GOOD.replace("0.875", "good"), "line 3: value is 'good', expected a number"),
        (GOOD.replace("anna,0", "anna,0.5"), "line 3: fold is '0.5', expected a whole number"),
        (GOOD.replace(",12,", ",,"), "line 3: n_reference_vox is '', expected a whole number"),
        (GOOD.replace(",12,", ",-1,"), "line 3: a number of voxels is negative"),
        (GOOD.replace("ok", "fine"), "line 3: status is 'fine', expected one of ok, both_empty, missed, spurious"),
        (GOOD.replace("0.875", "nan"), "line 3: value is nan with status ok"),
        (GOOD.replace("0.875", "87.5"), r"line 3: dice is 87\.5, expected 0 to 1\. Is it in percent\?"),
        (GOOD.replace("0.875", ""), "line 3: value is '', expected a number"),
        (GOOD.replace("0.875", "nan").replace("ok", "both_empty"), "line 3: status is both_empty with .* expected ok"),
        (GOOD.replace("organ", ""), "line 3: label is empty"),
        (
            GOOD.replace("case_1", "case_0"),
            r"line 3: the same case, label and metric \(case_0, organ, dice\) as line 2",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([",".join(COLUMNS), GOOD.replace("case_1", "case_0"), line]) + "\n")
    with pytest.raises(DataError, match=f"scores.csv, {message}"):
        ScoreTable.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (",".join(COLUMNS).replace("status", "state"), r"unknown \['state'\], missing \['status'\]"),
        (",".join(reversed(COLUMNS)), "another order"),
        ("", "missing"),
    ],
)
def test_wrong_columns_are_named(tmp_path, header, message):
    (tmp_path / "scores.csv").write_text(f"{header}\n{GOOD}\n")
    with pytest.raises(DataError, match=f"scores.csv, line 1: columns are wrong .*{message}"):
        ScoreTable.load(tmp_path / "scores.csv")


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        ScoreTable.load(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a table"):
        ScoreTable.load(tmp_path / "scores.csv")


def test_a_row_cannot_be_there_twice():
    with pytest.raises(ValueError, match="two rows for case case_1"):
        ScoreTable((ROW, replace(ROW, value=0.5)))
    assert len(ScoreTable.join([ScoreTable((ROW,)), ScoreTable((replace(ROW, fold=1),))], "run").rows) == 2


def test_tables_of_a_copied_fold_cannot_be_joined():
    with pytest.raises(DataError, match=r"runs/unet: two rows for case case_1, .*, fold 0 in .*a fold copied\?"):
        ScoreTable.join([ScoreTable((ROW,)), ScoreTable((replace(ROW, value=0.5),))], "runs/unet")


def test_what_a_table_holds():
    table = ScoreTable((ROW, replace(ROW, run="other"), replace(ROW, label="(image)", metric="image_diagonal")))
    assert (table.runs, table.labels, table.metrics, table.case_ids) == (
        ("unet", "other"), ("organ",), ("dice",), ("case_1",)
    )  # fmt: skip
    assert table.of_run("other").rows == (replace(ROW, run="other"),)
