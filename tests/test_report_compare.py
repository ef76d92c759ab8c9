"""The page of a comparison: the numbers behind its pictures, and the page itself with odd methods."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from segpipe.cli.main import run
from segpipe.compare.comparison import Question, compare, parse_margins
from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.results import Method
from segpipe.evaluate.scores import Score, ScoreTable
from segpipe.report.charts import aligned_scores, difference_of
from segpipe.report.compare_page import write_compare_page


def score(name: str, case: int, label: str, value: float, metric: str = "dice", seed: int = 0) -> Score:
    status = "ok" if np.isfinite(value) else "missed" if value == inf else "both_empty"
    counts = {"ok": (9, 9), "missed": (9, 0), "both_empty": (0, 0)}[status]
    unit = "1" if metric == "dice" else "mm"
    return Score(name, f"c{case}", f"p{case // 2}", case // 2 % 5, seed, label, metric, value, unit, status, *counts)


def method(name: str, gain: float, n_cases: int = 12, labels: tuple[str, ...] = ("organ",), n_seeds: int = 1) -> Method:
    random = np.random.default_rng([*name.encode()])
    rows = [
        score(name, case, label, min(1.0, 0.7 + gain + 0.1 * random.random()), seed=seed)
        for seed in range(n_seeds)
        for case in range(n_cases)
        for label in labels
    ]
    return Method(name, ScoreTable(tuple(rows)))


class Page(HTMLParser):
    """Tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def alts(self) -> list[str]:
        return [attributes["alt"] or "" for tag, attributes in self.tags if tag == "img"]


def page_of(methods: list[Method], folder: Path, metrics: tuple[str, ...] = ("dice",), **options: object) -> Page:
    question = Question(parse_margins(list(metrics)), n_permutations=200, **options)
    path = write_compare_page(compare(methods, question), methods, question, folder)
    assert path == folder / "index.html"
    assert path.stat().st_size < 10_000_000
    return Page(path)


def test_the_command_writes_the_page_unless_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for one in (method("old", 0, 240), method("new", 0.05, 240)):
        one.table.save(tmp_path / one.name / "scores.csv")
    paths = [str(tmp_path / name) for name in ("old", "new")]
    assert run(["compare", *paths, "-o", str(tmp_path / "a"), "--no-report"]) == 0
    assert not (tmp_path / "a" / "index.html").exists()
    capsys.readouterr()
    assert run(["compare", *paths, "-o", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(tmp_path / "b" / "index.html")
    page = Page(tmp_path / "b" / "index.html")
    assert "The trained models of new are better than those of old" in page.text
    assert len(page.alts) == 3 and all(len(alt) > 30 for alt in page.alts)  # differences, ranks, distribution


def test_differences_of_cases_and_their_mean_by_hand():
    values = {"a": [(0.5, 0.8), (0.7, nan)], "b": [(0.6, 0.7), (0.9, nan)]}  # both masks lack the node in case 1
    methods = [
        Method(name, ScoreTable(tuple(
            score(name, 2 * case, label, value)
            for case, pair in enumerate(of) for label, value in zip(("organ", "node"), pair, strict=True)
        )))
        for name, of in values.items()
    ]  # fmt: skip
    question = Question(parse_margins(["dice"]), policy="nnunet")
    rows = {row.label: row for row in compare(methods, question).metrics[0].rows}
    aligned = aligned_scores(methods, "dice", question)
    organ, node, mean = (difference_of(rows[label], aligned, label) for label in ("organ", "node", "(mean)"))
    assert organ.values == pytest.approx((0.1, 0.2)) and organ.mean == pytest.approx(0.15)
    assert node.values == pytest.approx((-0.1,))
    assert mean.values == pytest.approx((0.0, 0.2))  # case 0: (0.1 - 0.1) / 2, case 1: its organ alone
    assert mean.mean == pytest.approx((0.15 - 0.1) / 2)  # mean of labels' means
    assert node.models is None and organ.models is None  # of two patients there is no interval
    assert mean.methods is None


def test_the_mean_over_labels_leaves_out_what_does_not_count():
    np.testing.assert_array_equal(mean_of_numbers(np.array([[1.0, 3.0], [nan, 4.0], [nan, nan]]), 1), [2.0, 4.0, nan])


def test_missing_cases_are_told_once_and_not_drawn(capsys: pytest.CaptureFixture[str]):
    short = method("a", 0)
    methods = [Method("a", ScoreTable(short.table.rows[:-2])), method("b", 0.1)]
    question = Question(parse_margins(["dice"]), allow_missing=True, n_permutations=200)
    row = compare(methods, question).metrics[0].rows[0]
    said = capsys.readouterr().err
    difference = difference_of(row, aligned_scores(methods, "dice", question), "b")
    assert len(difference.values) == row.n_cases == 10
    assert "lacks 2 of 12" in said and capsys.readouterr().err == ""


def test_the_page_needs_nothing_else(tmp_path: Path):
    page = page_of([method("a", 0), method("<b>b", 0.1)], tmp_path)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "b b")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "<b>b against a" in page.text  # escaped in the file
    assert "http" not in page.text.replace("http-equiv", "")


def test_several_seeds_show_a_verdict_on_methods(tmp_path: Path):
    page = page_of([method("a", 0, 240, n_seeds=2), method("b", 0.2, 240, n_seeds=3)], tmp_path)
    assert "b is better than a" in page.text
    assert "Verdicts on methods rest on folds and seeds" in page.text


def test_one_case_and_methods_that_are_equal(tmp_path: Path):
    page = page_of([method("a", 0, n_cases=1), method("b", 0.1, n_cases=1)], tmp_path)
    assert "1 patient: too few for an interval of the difference" in page.text
    same = method("a", 0, 240)
    page = page_of([same, Method("b", same.table)], tmp_path)
    assert "differ by no more than 0.0050" in page.text


def test_a_label_absent_everywhere_and_distances_that_are_infinite(tmp_path: Path):
    methods = []
    for name in ("a", "b"):
        rows = [score(name, case, "organ", 3.0 + case if case % 3 else inf, "hd95") for case in range(9)]
        rows += [score(name, case, "never", nan, "hd95") for case in range(9)]
        rows += [
            Score(name, f"c{c}", f"p{c // 2}", c // 2 % 5, 0, "(image)", "image_diagonal", 300.0, "mm", "ok", 9, 9)
            for c in range(9)
        ]
        methods.append(Method(name, ScoreTable(tuple(rows))))
    omitted = page_of(methods, tmp_path, ("hd95=1",), policy="omit")
    assert "never –, cannot tell" in " ".join(omitted.alts)
    counted = page_of(methods, tmp_path, ("hd95=1",), worst_losses={"hd95": 1.0})
    assert "300.00" not in omitted.text and "never +0.00, no difference" in " ".join(counted.alts)


def test_of_twelve_methods_the_pairs_with_the_first_are_drawn_and_all_are_listed(tmp_path: Path):
    page = page_of([method(f"m{i}", 0.01 * i) for i in range(12)], tmp_path)
    n_rows = sum(tag == "tr" for tag, _ in page.tags)
    assert n_rows == 1 + 66 + 1 + 12  # comparisons and methods with their headings
    assert "11 of 66 verdicts are shown, on m0" in page.text
    assert page.alts[0].count("− m0") == 11 and "− m1 " not in page.alts[0]


def test_many_labels_with_strange_names_fit_a_picture(tmp_path: Path):
    labels = tuple(f"label ${i}_x$ & <i>" for i in range(24))
    page = page_of([method("a", 0, 4, labels), method("b", 0.1, 4, labels)], tmp_path)
    assert all(label in page.alts[1] for label in labels)
