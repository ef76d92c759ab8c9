"""The report of a work folder: made of real files of every stage, complete and not."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from segpipe.cli.main import run
from segpipe.core.errors import DataError, UsageError
from segpipe.core.history import History
from segpipe.core.volume import read_labels, write_mask
from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.data.phantom import make_phantom
from segpipe.data.splits import Splits, make_splits, read_nnunet_splits
from segpipe.evaluate.scores import Origin, ScoreTable
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.evaluate.summary import summarise
from segpipe.fingerprint.measure import measure
from segpipe.plan.edit import edit_plan
from segpipe.plan.make import make_plan
from segpipe.plan.schema import Plan
from segpipe.report.page import Cell, DataCheck, Page, Section, Table, VerdictBox, render
from segpipe.report.work_contents import read_work
from segpipe.report.work_report import build_report

CONFIGURATION = "3d_fullres"
MISSED = "phantom_001"  # the case whose node the prediction misses


def worsened(values: NDArray[np.int32], case_number: int) -> NDArray[np.uint8]:
    """A prediction: later cases are shifted further, the first lacks its node, even ones have an eroded organ."""
    guess = np.roll(values, case_number // 2, axis=2).astype(np.uint8)
    if case_number % 2 == 0:
        organ = guess == 1
        guess[organ & ~binary_erosion(guess > 0)] = 0
    if case_number == 0:
        guess[guess == 3] = 0
    return guess


def write_history(path: Path, fold: int, n_epochs: int) -> None:
    lines = [
        "epoch,iteration,seconds,learning_rate,train_loss,validation_loss,mean_patch_dice,dice_organ,dice_core,dice_node"
    ]
    for epoch in range(n_epochs):
        left = np.exp(-epoch / 5)
        dice = 0.9 - 0.8 * left - 0.02 * fold
        lines.append(
            f"{epoch},{10 * epoch},{6.0 * epoch},0.01,{left},{left + 0.1},{dice - 0.05},{dice},{dice - 0.1},nan"
        )
    path.write_text("\n".join(lines) + "\n")


def write_fold(work: Path, dataset: Dataset, splits: Splits, fold: int) -> ScoreTable:
    """Masks, history and scores of one fold, as training leaves them."""
    folder = work / "runs" / CONFIGURATION / f"fold_{fold}"
    pairs = []
    for case_id in splits.folds[fold].validation:
        case = dataset.by_id[case_id]
        assert case.label is not None
        number = [c.case_id for c in dataset.cases].index(case_id)
        mask = folder / "validation" / f"{case_id}.nii.gz"
        write_mask(mask, worsened(read_labels(Path(case.label))[0], number), case.image_paths[0])
        origin = Origin(case_id, case.patient_id, CONFIGURATION, fold, 0)
        pairs.append(MaskPair(Path(case.label), mask, origin))
    table = score_folder(pairs, dataset.labels, 1)
    table.save(folder / "scores.csv")
    write_history(folder / "history.csv", fold, 20)
    return table


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which everything is done."""
    root = tmp_path_factory.mktemp("report")
    dataset = load_dataset(make_phantom(root / "phantom", 6, seed=0))
    work = root / "work"
    work.mkdir()
    dataset.save(work / "dataset.json")
    fingerprint = measure(dataset, 1)
    make_plan(fingerprint, dataset.labels, dataset.name, "nnunet", "cpu").save(work / "plan.yaml")
    splits = make_splits(dataset, {case.case_id: frozenset() for case in dataset.cases}, seed=0, k=3)
    splits.save(work / "splits.json")
    tables = [write_fold(work, dataset, splits, fold) for fold in range(3)]
    ScoreTable.join(tables, work).save(work / "runs" / CONFIGURATION / "scores.csv")
    return work


@pytest.fixture(scope="module")
def page_file(finished: Path) -> Path:
    return build_report(finished)


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy to break, without masks, whose pictures would take most of the time."""
    return Path(shutil.copytree(finished, tmp_path / "work", ignore=shutil.ignore_patterns("validation")))


class Elements(HTMLParser):
    """All start tags with attributes, the text of headings, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1][0] in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


def report_of(work: Path) -> Elements:
    return Elements(build_report(work).read_text(encoding="utf-8"))


def test_a_finished_work_folder_gives_one_page_with_everything_in_order(finished: Path, page_file: Path):
    assert page_file == finished / "report" / "index.html"
    text = page_file.read_text(encoding="utf-8")
    page = Elements(text)
    assert page.headings == [
        "Phantom: segmentation report",
        CONFIGURATION,
        "Scores of each label",
        "Worst, median and best case",
        "All cases",
        "Distribution over cases",
        "Agreement of volumes",
        "Learning curves",
        "Methods paragraph",
        "The plan and its reasons",
        "The data",
        "For a paper",
        "How to reproduce this",
        "Computed with",
    ]
    assert "This report is incomplete" not in text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + 14 + 1 + 4 + 1  # curves, a distribution for each metric, volumes, cases, flow
    assert all(len(image["alt"] or "") > 30 for image in images)


def test_the_page_needs_nothing_else_and_is_small(page_file: Path):
    text = page_file.read_text(encoding="utf-8")
    for tag, attributes in Elements(text).tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in text
    assert page_file.stat().st_size < 2_000_000  # pictures do not grow with the number of cases


def test_the_headline_is_the_summary_of_the_scores(finished: Path, page_file: Path):
    table = ScoreTable.load(finished / "runs" / CONFIGURATION / "scores.csv")
    page = Elements(page_file.read_text(encoding="utf-8")).text
    for metric, digits, unit in (("dice", 3, ""), ("hd95", 2, " mm")):
        row = next(r for r in summarise(table) if (r.label, r.metric) == ("(mean)", metric))
        assert row.low is not None and row.high is not None
        assert f"{row.mean:.{digits}f}{unit}" in page
        assert f"[{row.low:.{digits}f}, {row.high:.{digits}f}]" in page
    assert "6 cases of 5 patients, 3 labels" in page
    assert "Failures in " in page and " of 5 patients (95 % interval " in page
    assert "patients with\na failure" in page  # the rate beside every mean


def test_groups_by_a_column_of_the_manifest(work: Path, tmp_path: Path):
    dataset = Dataset.load(work / "dataset.json")
    lines = [f"{case.case_id},x.nii.gz,{'ab'[number % 2]}" for number, case in enumerate(dataset.cases)]
    (tmp_path / "manifest.csv").write_text("\n".join(["case_id,image_T1,scanner", *lines]))
    dataset.model_copy(update={"root": str(tmp_path)}).save(work / "dataset.json")
    page = Elements(build_report(work, ["scanner"]).read_text(encoding="utf-8"))
    assert "Groups of cases" in page.headings
    assert "scanner: a" in page.text and "scanner: b" in page.text
    with pytest.raises(UsageError, match="has no column 'scaner'"):
        build_report(work, ["scaner"])


def test_a_missed_structure_stands_out(page_file: Path):
    page = Elements(page_file.read_text(encoding="utf-8"))
    assert "missed" in page.text and f"node in {MISSED} (missed)" in page.text
    assert any(tag == "td" and "bad" in (attributes.get("class") or "") for tag, attributes in page.tags)


def test_equal_folders_give_equal_bytes(finished: Path, page_file: Path):
    first = page_file.read_bytes()
    assert build_report(finished).read_bytes() == first


def test_without_training_the_plan_is_shown_and_the_next_command(work: Path):
    shutil.rmtree(work / "runs")
    page = report_of(work).text
    assert "This report is incomplete" in page
    assert f"segpipe train {work}" in page
    assert Plan.load(work / "plan.yaml").reasons["orientation"] in page


def test_what_is_missing_is_named(work: Path):
    run_folder = work / "runs" / CONFIGURATION
    fold_2_cases = Splits.load(work / "splits.json").folds[2].validation
    shutil.rmtree(run_folder / "fold_1")
    (run_folder / "scores.csv").unlink()
    (run_folder / "fold_2" / "scores.csv").unlink()
    (run_folder / "fold_0" / "history.csv").unlink()
    page = report_of(work).text
    assert f"{CONFIGURATION}: 1 of 3 folds are not trained: 1." in page
    assert f"{CONFIGURATION}: fold 2: scores.csv is missing." in page
    assert f"{len(fold_2_cases)} validation cases of trained folds without scores: {', '.join(fold_2_cases)}." in page
    assert f"{CONFIGURATION}: fold 0: history.csv is missing." in page


def test_a_fold_trained_with_another_plan_and_a_fold_of_all_cases_are_told(work: Path):
    run_folder = work / "runs" / CONFIGURATION
    text = (work / "plan.yaml").read_text("utf-8")
    for fold, epochs in enumerate((1000, 50, 50)):
        changed = text.replace("epochs: 1000", f"epochs: {epochs}").replace("most frequent", "usual")
        (run_folder / f"fold_{fold}" / "plan.yaml").write_text(changed)
    (run_folder / "fold_all").mkdir()
    write_history(run_folder / "fold_all" / "history.csv", 3, 5)
    assert [fold.name for fold in read_work(work).runs[0].folds] == ["0", "1", "2", "all"]
    page = report_of(work)
    assert "Folds 1, 2 trained with 50 epochs (plan.yaml: 1000)." in page.text
    assert any(
        "fold all: 5 epochs in 24 s, training loss ends at" in (attributes.get("alt") or "")
        for _, attributes in page.tags
    )


def test_cases_without_masks_leave_the_rest(work: Path):
    page = report_of(work)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 1 + 14 + 1 + 1
    assert "no mask validation/" in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", "{}"),
        ("dataset.json", "not json"),
        ("plan.yaml", "a: [1"),
        ("plan.yaml", "reasons: 3\nconfigurations: [1]\ntraining: x\n"),
        ("splits.json", '{"k": 2}'),
        (f"runs/{CONFIGURATION}/scores.csv", "a,b\n1,2\n"),
        (f"runs/{CONFIGURATION}/scores.csv", ""),
        (f"runs/{CONFIGURATION}/fold_1/scores.csv", '"' + "1" * 300_000),
        (f"runs/{CONFIGURATION}/fold_0/history.csv", ""),
        (f"runs/{CONFIGURATION}/fold_0/history.csv", "epoch,train_loss\n0,abc\n"),
        (f"runs/{CONFIGURATION}/fold_0/history.csv", "epoch\n"),
        (f"runs/{CONFIGURATION}/fold_0/history.csv", 'epoch\n1\n"2'),
    ],
)
def test_a_broken_file_is_named_and_never_a_traceback(work: Path, name: str, content: str):
    (work / name).write_text(content)
    page = report_of(work).text
    if "reasons: 3" not in content and content != "epoch\n":
        assert f"{Path(name).name} cannot be read: " in page


def test_a_ledger_that_cannot_be_read_is_named(work: Path):
    (work / "ledger.jsonl").mkdir()
    assert "ledger.jsonl cannot be read: " in report_of(work).text


def test_a_half_written_last_line_of_the_history_counts_what_it_has(tmp_path: Path):
    (tmp_path / "history.csv").write_text("epoch,train_loss\n0,0.5\n1,\n2")
    columns = History.load(tmp_path / "history.csv").columns
    assert columns["epoch"] == (0, 1, 2)
    np.testing.assert_equal(columns["train_loss"], (0.5, np.nan, np.nan))
    for line, message in (("0,x", "'x'"), (",0.5", "a line has no epoch")):
        (tmp_path / "history.csv").write_text(f"epoch,train_loss\n{line}\n")
        with pytest.raises(DataError, match=message):
            History.load(tmp_path / "history.csv")


def test_a_folder_that_is_no_work_folder_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"has none of plan\.yaml"):
        build_report(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")  # a dataset: nothing is written into it
    with pytest.raises(UsageError, match=r"has none of plan\.yaml"):
        build_report(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        build_report(tmp_path / "nowhere")
    assert run(["report", str(tmp_path)]) == 2


def test_the_command_prints_the_path(work: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["report", str(work)]) == 0
    path = work / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert run(["report", str(work), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(path), "size_bytes": path.stat().st_size}


def test_text_from_files_is_escaped(work: Path):
    text = (work / "plan.yaml").read_text("utf-8")
    (work / "plan.yaml").write_text(text.replace("preset: nnunet", "preset: <script>alert(1)</script>"))
    text = build_report(work).read_text("utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_a_sortable_cell_without_a_finite_number_has_no_key():
    assert [Cell("a").sort_key, Cell("b", float("nan")).sort_key, Cell("c", float("inf")).sort_key] == ["", "", ""]
    assert Cell("d", 0.25).sort_key == "0.25"


def empty_page() -> Page:
    return Page("t", (), VerdictBox("v", ()), (), (), (), (), "", DataCheck("d", None), (), ())


def test_an_empty_page_can_be_rendered_and_a_table_keeps_its_sort_keys():
    assert "<h1>t</h1>" in render(empty_page())
    table = Table(("case", "Dice"), ((Cell("a & b"), Cell("0.50", 0.5)),), "c", is_sortable=True)
    section = Section("s", (), (), None, None, (), (), None, None, (), table, None)
    text = render(replace(empty_page(), sections=(section,)))
    assert '<td data-key="">a &amp; b</td><td data-key="0.5">0.50</td>' in text


def test_a_work_folder_reads_as_it_was_written(finished: Path, page_file: Path):
    found = read_work(finished)
    assert found.notes == ()
    assert found.dataset is not None and len(found.dataset.cases) == 6
    (only,) = found.runs
    assert [fold.name for fold in only.folds] == ["0", "1", "2"]
    assert only.scores is not None and set(only.scores.case_ids) == set(found.dataset.by_id)
    pictures = re.findall(r"data:image/(svg\+xml|png);base64,([A-Za-z0-9+/=]+)", page_file.read_text("utf-8"))
    starts = {kind: base64.b64decode(content)[:5] for kind, content in pictures}
    assert starts == {"png": b"\x89PNG\r", "svg+xml": b"<?xml"}


def commands_of(work: Path) -> list[str]:
    text = build_report(work).read_text(encoding="utf-8")
    pages = re.findall(r"<h2>How to reproduce this</h2>\s*<pre>(.*?)</pre>", text, re.DOTALL)
    return html.unescape(pages[0]).splitlines()


def test_the_commands_hold_the_folds_the_seed_and_what_each_training_changed(work: Path):
    run_folder, plan = work / "runs" / CONFIGURATION, (work / "plan.yaml").read_text("utf-8")
    budget = plan.replace("time_budget_seconds: null", "time_budget_seconds: 90.0")
    (run_folder / "fold_0" / "plan.yaml").write_text(budget)
    (run_folder / "fold_1" / "plan.yaml").write_text(plan.replace("optimizer: sgd", "optimizer: adamw"))
    (run_folder / "fold_2" / "plan.yaml").write_text(budget)
    root = Dataset.load(work / "dataset.json").root
    train = f"segpipe train {work} -c {CONFIGURATION} -f"
    assert commands_of(work) == [
        f"segpipe plan {root} -o {work} --preset nnunet --n-folds 3 --seed 0",
        f"# This plan does not say which options made it: copy the plan above to {work}/plan.yaml.",
        f"{train} 0,2 --set training.time_budget_seconds=90.0",
        f"{train} 1 --set training.optimizer=adamw",
        f"segpipe report {work}",
    ]


def test_a_changed_list_is_set_as_the_plan_reads_it(work: Path):
    plan = Plan.load(work / "plan.yaml")
    changed = edit_plan(plan, [f"configurations.{CONFIGURATION}.batch_size=7", "training.learning_rate=1e-05"])
    changed.save(work / "runs" / CONFIGURATION / "fold_0" / "plan.yaml")
    (command,) = (line for line in commands_of(work) if " --set " in line)
    words = shlex.split(command)
    assert edit_plan(plan, [word for before, word in pairwise(words) if before == "--set"]) == changed


def test_a_patient_on_both_sides_of_an_imported_fold_is_the_first_thing_one_reads(work: Path):
    dataset = Dataset.load(work / "dataset.json")
    first, *others = dataset.cases
    twin = next(case for case in others if case.case_id.startswith(first.case_id[:-1]))
    twins = (first, twin.model_copy(update={"patient_id": first.patient_id}))
    rest = tuple(case for case in others if case != twin)
    mixed = dataset.model_copy(update={"cases": tuple(sorted((*twins, *rest), key=lambda case: case.case_id))})
    mixed.save(work / "dataset.json")
    folds = [{"train": [first.case_id], "val": [twin.case_id]}, {"train": [twin.case_id], "val": [first.case_id]}]
    (work / "splits_final.json").write_text(json.dumps(folds))
    read_nnunet_splits(work / "splits_final.json", mixed).save(work / "splits.json")
    page = report_of(work)
    alarm = page.text.index("Do not trust these scores.")
    assert alarm < page.text.index("PATIENTS ON BOTH SIDES OF 2 OF 2 FOLDS.") < page.text.index("Mean Dice")
    assert f"fold 1: 1 patient on both sides ({first.patient_id})" in page.text
    assert f"2 folds imported from {work}/splits_final.json" in page.text and "folds by patient" not in page.text
    assert f" --splits {work}/splits_final.json --seed 0" in commands_of(work)[0]


def test_folds_by_patient_raise_no_alarm(page_file: Path):
    text = page_file.read_text(encoding="utf-8")
    assert "3 folds by patient" in text and "Do not trust" not in text
