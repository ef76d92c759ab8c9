"""Checklists of a report: every number is that of the files, and that of checklist.json; blanks are marked."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

from test_report import CONFIGURATION, finished, work  # noqa: F401 (fixtures)

from segpipe.core.work import Work
from segpipe.data.check import check_dataset
from segpipe.data.dataset import Dataset
from segpipe.data.faults import fault
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import Scoring, append_scoring
from segpipe.evaluate.scores import ScoreTable
from segpipe.report.checklists import (
    CHECKLISTS,
    CaseFlow,
    Checklists,
    FoldFlow,
    case_flow,
    checklist_tables,
    flow_picture,
)
from segpipe.report.work_contents import read_work
from segpipe.report.work_report import build_report


def test_the_flow_counts_what_the_files_hold(work: Path):  # noqa: F811
    dataset, splits = Dataset.load(Work(work).dataset), Splits.load(Work(work).splits)
    checked = check_dataset(Path(dataset.root), 1)
    first = dataset.cases[0].case_id
    faults = (fault("unlabelled", "", "extra"), fault("label_empty", "background only", first))
    checked.model_copy(update={"faults": faults}).save(Work(work).data_check)
    for masks in ("m1", "m2"):
        append_scoring(work, Scoring(event="test set", name="t", cases={"t1": "0", "t2": "0", "t3": "0"}, masks=masks))
    append_scoring(work, Scoring(event="fold", name="f", cases={first: "0"}, masks="m3"))  # no test case
    scores = Work(work).scores(CONFIGURATION)
    lost = splits.folds[1].validation[0]
    ScoreTable(tuple(row for row in ScoreTable.load(scores).rows if row.case_id != lost)).save(scores)
    page = html.unescape(build_report(work).read_text("utf-8"))
    filled = Checklists.load(work / "report" / "checklist.json")
    assert filled.flow == CaseFlow(
        n_found=7, n_patients=5, left_out={"Scan without label map": 1}, n_used=6, n_faulty=1,
        folds=tuple(
            FoldFlow(
                fold=n, n_train=len(f.train), n_validation=len(f.validation), n_scored=len(f.validation) - (n == 1)
            )
            for n, f in enumerate(splits.folds)
        ),
        n_scored=5, n_test=3, n_test_scorings=2,
    )  # fmt: skip
    assert "Flow of cases: 7 cases found; 6 used, 5 patients, 1 with a warning; fold 0: " in page
    assert "5 scored out of fold; 3 test cases scored 2 times; 1 left out: Scan without label map." in page
    assert "Test set scored 2 times, 2 different sets of masks." in page  # in the verdict box


def test_a_case_in_no_fold_is_left_out(work: Path):  # noqa: F811
    found = read_work(work)
    assert found.splits is not None
    fold = found.splits.folds[0]  # all six cases but one
    folds = (fold.model_copy(update={"train": fold.train[1:]}),)
    flow = case_flow(replace(found, splits=found.splits.model_copy(update={"folds": folds})), None, ())
    assert (flow.n_found, flow.left_out, flow.n_used) == (6, {"In no fold": 1}, 5)


def test_every_answer_of_the_page_is_that_of_the_file(work: Path):  # noqa: F811
    page = html.unescape(build_report(work).read_text("utf-8"))
    filled = Checklists.load(work / "report" / "checklist.json")
    assert [item.checklist for item in filled.items] == [name for name, rows in CHECKLISTS.items() for _ in rows]
    cells = set(re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL))
    for item in filled.items:
        assert item.subject in cells and (item.answer or "blank: to be filled in") in cells
    answers = {(item.checklist, item.number): item.answer for item in filled.items}
    assert answers["CLAIM 2024", "44"] == ""
    mean = re.search(r"Mean Dice (\d\.\d+), 95 % interval", page)
    assert mean and answers["CLAIM 2024", "37"].startswith(f"Mean Dice {mean[1]}, 95 % interval ")
    assert answers["TRIPOD+AI", "10"] == "6 cases of 5 patients."
    for name, table in checklist_tables(filled):
        n_blank = sum(row[2].is_bad for row in table.rows)
        assert table.caption.startswith(f"{len(table.rows) - n_blank} of {len(table.rows)} items")
        assert 0 < n_blank < len(table.rows), name


def test_a_folder_without_data_and_scores_leaves_blanks(work: Path):  # noqa: F811
    for file in (Work(work).dataset, Work(work).splits, Work(work).scores(CONFIGURATION)):
        file.unlink()
    for fold in range(3):
        Work(work).fold(CONFIGURATION, str(fold)).scores.unlink()
    build_report(work)
    filled = Checklists.load(work / "report" / "checklist.json")
    assert filled.flow.n_found is None and flow_picture(filled.flow) is None
    assert not any(item.answer for item in filled.items if item.number in ("35", "20a", "37", "23a", "19", "20"))
