"""The report in a headless browser: nothing is asked for, tables sort, pictures load, it fits a phone and paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import complaints_of, launched
from playwright.sync_api import Browser, Page
from test_report import CONFIGURATION, finished, page_file  # noqa: F401 (fixtures)

from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import write_image
from segpipe.core.work import Work
from segpipe.data.dataset import Case, Dataset
from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.report.work_report import build_report

MAX_BYTES = 10_000_000
N_CASES = 50
SHAPE_ZYX = (12, 512, 512)  # in the plane as large as CT is
CASE_NAMES = "table.sortable tbody tr td:first-child"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture(params=[1280, 400])
def page(browser: Browser, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Page]:  # noqa: F811
    """The report of a finished work folder on a laptop and on a phone; whatever it complains of fails the test."""
    opened = browser.new_page(viewport={"width": request.param, "height": 800})
    complaints = complaints_of(opened)
    opened.goto(page_file.as_uri())
    yield opened
    opened.close()
    assert complaints == []


def test_pictures_load_and_speak_and_nothing_is_wider_than_the_screen(page: Page) -> None:
    pictures = page.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt.length > 30])")
    assert len(pictures) > 10 and all(is_there and speaks for is_there, speaks in pictures)
    for details in page.locator("details").all():
        details.evaluate("d => d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def sorted_cases(page: Page) -> list[str]:
    return page.locator(CASE_NAMES).all_inner_texts()[:6]


def test_a_table_is_sorted_by_click_and_by_keyboard(page: Page) -> None:
    from_worst = sorted_cases(page)
    head = page.locator("th", has_text="mean Dice").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and sorted_cases(page) == from_worst
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending" and sorted_cases(page) == from_worst[::-1]
    page.locator("th button", has_text="case").first.focus()
    page.keyboard.press("Enter")
    assert sorted_cases(page) == sorted(from_worst)
    assert page.locator("th[aria-sort]").count() == 1


def test_what_has_no_value_comes_last_in_either_order(page: Page) -> None:
    head = page.locator("th button", has_text="node\nHD95")
    for _ in range(2):
        head.click()
        values = page.locator("table.sortable").first.locator("tbody tr td:last-child").all_inner_texts()
        assert set(values[-2:]) == {"missed", "both empty"}


def test_the_verdict_is_on_the_first_screen(page: Page) -> None:
    sentence = page.locator(".verdict .sentence")
    assert "Mean Dice" in sentence.inner_text()
    assert (
        "All 6 cases are scored. No patient is in both training and validation of a fold."
        in page.locator(".points").inner_text()
    )
    box = sentence.bounding_box()
    assert box is not None and box["y"] + box["height"] < 800


def test_the_page_forbids_itself_to_ask_for_anything(browser: Browser, page_file: Path) -> None:  # noqa: F811
    page = browser.new_page()
    page.goto(page_file.as_uri())
    refused = page.evaluate(
        """new Promise(done => {
          document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
          new Image().src = "http://127.0.0.1:9/x.png";
        })"""
    )
    page.close()
    assert refused == "img-src"


def test_paper_gets_every_row_and_no_buttons(browser: Browser, page_file: Path) -> None:  # noqa: F811
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    table = page.locator(".tall")
    assert table.evaluate("e => e.scrollHeight <= e.clientHeight + 1")  # nothing is left to scroll to
    assert not page.locator("button.copy").first.is_visible()
    paper = page.pdf(format="A4")
    page.close()
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 3


def many_cases(work: Path) -> Dataset:
    """A work folder of 50 cases; images are there of those that are drawn."""
    random = np.random.default_rng(0)
    names = [f"case_{number:02d}" for number in range(N_CASES)]
    # mean Dice rises with the number: drawn are the three worst, the median and the best
    drawn = {*names[:3], names[(N_CASES - 1) // 2], names[-1]}
    reference = np.zeros(SHAPE_ZYX, np.uint8)
    reference[3:9, 60:450, 60:450] = 1
    for name in drawn:
        scan = random.normal(0, 200, SHAPE_ZYX).astype(np.float32)  # noise: no picture is larger
        write_image(work / "data" / f"{name}_0000.nii", scan[None], np.diag([0.8, 0.8, 5.0, 1]))
        write_image(work / "data" / f"{name}.nii.gz", reference[None], np.diag([0.8, 0.8, 5.0, 1]))
        mask = Work(work).fold(CONFIGURATION, "0").validation / f"{name}.nii.gz"
        write_image(mask, np.roll(reference, 7, axis=1)[None], np.diag([0.8, 0.8, 5.0, 1]))
    data = str(work / "data")
    cases = tuple(
        Case(case_id=name, patient_id=name, images=(f"{data}/{name}_0000.nii",), label=f"{data}/{name}.nii.gz")
        for name in names
    )
    labels = LabelSet(labels=(Label(name="organ", values=(1,)),))
    return Dataset(
        name="many", layout="nnunet", root=data, channels=("CT",), labels=labels, cases=cases, patients_from="names"
    )


def test_a_report_of_fifty_large_cases_stays_below_ten_megabytes(browser: Browser, tmp_path: Path) -> None:
    dataset = many_cases(tmp_path)
    dataset.save(Work(tmp_path).dataset)
    rows = tuple(
        Score(CONFIGURATION, case.case_id, case.patient_id, 0, 0, "organ", metric, value, unit, "ok", 9, 9)
        for number, case in enumerate(dataset.cases)
        for metric, value, unit in (("dice", 0.5 + number / 200, "1"), ("hd95", 9 - number / 10, "mm"))
    )
    ScoreTable(rows).save(Work(tmp_path).scores(CONFIGURATION))
    file = build_report(tmp_path)
    assert file.stat().st_size < MAX_BYTES / 3  # so that a report of three configurations is below it too
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.locator("figure.scan img").count() == 5
    cells = page.locator("table.folded").first.locator("td").all_inner_texts()
    assert "median" in "".join(cells) and max(len(line) for cell in cells for line in cell.split("\n")) < 18
    assert page.locator(".tall").first.locator("tbody tr").count() == N_CASES
    page.close()


def test_of_188_labels_ten_at_either_end_are_shown_and_the_others_found(browser: Browser, tmp_path: Path) -> None:
    names = [f"l{number:03d}" for number in range(188)]
    dataset = many_cases(tmp_path)
    labels = LabelSet(labels=tuple(Label(name=name, values=(n,)) for n, name in enumerate(names, 1)))
    dataset.model_copy(update={"labels": labels, "cases": dataset.cases[10:14]}).save(Work(tmp_path).dataset)
    rows = tuple(
        Score(CONFIGURATION, case.case_id, case.patient_id, 0, 0, name, "dice", number / 200, "1", "ok", 9, 9)
        for case in dataset.cases[10:14]
        for number, name in enumerate(names)
    )
    ScoreTable(rows).save(Work(tmp_path).scores(CONFIGURATION))
    page = browser.new_page()
    complaints = complaints_of(page)
    page.goto(build_report(tmp_path).as_uri())
    table = page.locator("table.folded").first

    def shown() -> list[str]:
        return [name for name in table.locator("tbody tr:visible td:first-child").all_inner_texts() if name in names]

    ends = [*names[:10], *names[-10:]]  # the worst first
    assert shown() == ends and table.locator("tfoot tr").inner_text().startswith("mean\t0.468")
    assert "168 more" in table.locator("tr.gap").inner_text()
    page.get_by_role("searchbox").first.fill("L07")
    assert shown() == names[70:80]
    page.get_by_role("searchbox").first.fill("")
    table.locator("th button", has_text="label").click()
    table.locator("th button", has_text="label").click()
    assert shown() == ends[::-1]
    page.get_by_role("button", name="Show all 188").first.click()
    assert shown() == names[::-1]
    page.close()
    assert complaints == []
