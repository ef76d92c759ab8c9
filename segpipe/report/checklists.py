"""The flow of cases, and the items of reporting checklists that a work folder can answer; the others are left blank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segpipe.core.figures import figure_bytes, new_figure
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.data.faults import KINDS
from segpipe.data.splits import leaks
from segpipe.evaluate.ledger import Looks, Scoring, looks_at
from segpipe.evaluate.metrics import METRICS, number_text
from segpipe.evaluate.summary import failure_text
from segpipe.report.methods_text import work_methods
from segpipe.report.page import Cell, Picture, Table
from segpipe.report.work_contents import Scored, WorkFolder

CHECKLIST_FILE = "checklist.json"
_FIGURE_INCHES = 7.5
_BOX_INCHES = 0.62


class FoldFlow(Record):
    """Cases of one fold; `n_scored` of its validation cases have scores."""

    fold: int
    n_train: int
    n_validation: int
    n_scored: int


class CaseFlow(Record):
    """The way of the cases from the dataset to the scores.

    Args:
        n_found: Cases in the dataset; None if the folder does not say.
        n_patients: Patients of the cases that are used.
        left_out: Why cases are not used, and how many.
        n_used: Cases that are planned for.
        n_faulty: Of these, with a warning of the data check; None without a check.
        folds: One entry for each.
        n_scored: Validation cases with scores.
        n_test: Cases of test sets that were scored, by the ledger.
        n_test_scorings: How often they were.
    """

    n_found: int | None
    n_patients: int | None
    left_out: dict[str, int]
    n_used: int | None
    n_faulty: int | None
    folds: tuple[FoldFlow, ...]
    n_scored: int
    n_test: int
    n_test_scorings: int


class ChecklistItem(Record):
    """An item of a checklist: its number there, its subject in our words, and the answer; empty if a person has to."""

    checklist: str
    number: str
    subject: str
    answer: str


class Checklists(Record):
    """The content of checklist.json: what the page shows."""

    flow: CaseFlow
    items: tuple[ChecklistItem, ...]


def fill_checklists(work: WorkFolder, best: Scored | None) -> Checklists:
    """Answer what the folder can answer.

    Args:
        work: The folder.
        best: The configuration that is reported; None if none is scored.
    """
    scorings = work.ledger.scorings if work.ledger else ()
    flow = case_flow(work, best, scorings)
    known = _Known(work, best, flow, _paragraphs(work, best), looks_at(scorings, "test set"))
    items = (
        ChecklistItem(checklist=name, number=row.number, subject=row.subject, answer=row.answer(known))
        for name, rows in CHECKLISTS.items()
        for row in rows
    )
    return Checklists(flow=flow, items=tuple(items))


def _paragraphs(work: WorkFolder, best: Scored | None) -> dict[str, str]:
    if best is None or best.table is None:
        return {}
    return dict(
        work_methods(work, best.run, best.table, [name for name in best.table.metrics if name in METRICS]).paragraphs
    )


def case_flow(work: WorkFolder, best: Scored | None, scorings: Sequence[Scoring]) -> CaseFlow:
    """Count the cases; see `CaseFlow`."""
    used = [] if work.dataset is None else list(work.dataset.by_id)
    faults = () if work.checked is None else work.checked.faults
    outside = {one.case_id: one.kind for one in faults if one.case_id and one.case_id not in used}
    left_out = Counter(KINDS[kind].title for kind in outside.values())
    folds = work.splits.folds if work.splits else ()
    in_folds = {case_id for fold in folds for case_id in (*fold.train, *fold.validation)}
    if folds and (n_without := sum(case_id not in in_folds for case_id in used)):
        left_out["In no fold"] = n_without
    scored = set() if best is None or best.table is None else set(best.table.case_ids)
    tests = {case for one in scorings if one.event == "test set" for case in one.cases}
    return CaseFlow(
        n_found=len(used) + len(outside) if work.dataset else None,
        n_patients=len({case.patient_id for case in work.dataset.cases}) if work.dataset else None,
        left_out=dict(left_out),
        n_used=len(used) - left_out["In no fold"] if work.dataset else None,
        n_faulty=None if work.checked is None else len({one.case_id for one in faults} & set(used)),
        folds=tuple(
            FoldFlow(
                fold=number,
                n_train=len(fold.train),
                n_validation=len(fold.validation),
                n_scored=len(set(fold.validation) & scored),
            )
            for number, fold in enumerate(folds)
        ),
        n_scored=len(scored),
        n_test=len(tests),
        n_test_scorings=looks_at(scorings, "test set").n_scorings,
    )


def flow_picture(flow: CaseFlow) -> Picture | None:
    """Boxes from the cases that were found down to those that were scored; None without a dataset."""
    if flow.n_found is None or flow.n_used is None:
        return None
    faulty = "" if flow.n_faulty is None else f", {flow.n_faulty} with a warning"
    folds = [f"fold {f.fold}: {f.n_train} trained, {f.n_validation} validated, {f.n_scored} scored" for f in flow.folds]
    boxes = [
        f"{count(flow.n_found, 'case')} found",
        f"{flow.n_used} used, {count(flow.n_patients or 0, 'patient')}{faulty}",
    ]
    boxes += ["\n".join(folds)] if folds else []
    boxes.append(f"{flow.n_scored} scored out of fold")
    if flow.n_test:
        boxes.append(f"{count(flow.n_test, 'test case')} scored {count(flow.n_test_scorings, 'time')}")
    out = [f"{n} left out: {reason}" for reason, n in flow.left_out.items()] or ["none left out"]
    heights = [1 + 0.35 * box.count("\n") for box in boxes]
    places = [sum(heights[:n]) + height / 2 for n, height in enumerate(heights)]
    figure = new_figure(_FIGURE_INCHES, _BOX_INCHES * sum(heights))
    panel = figure.subplots()
    panel.axis("off")
    panel.set(xlim=(0, 10), ylim=(sum(heights), 0))
    style = {"boxstyle": "round,pad=0.4", "facecolor": "#f4f7fa", "edgecolor": "#5b6b7b"}
    arrow = {"arrowstyle": "->", "color": "#5b6b7b"}
    for place, height, text in zip(places, heights, boxes, strict=True):
        if place > places[0]:
            panel.annotate("", (3, place - height / 2 + 0.2), (3, place - height / 2 - 0.2), arrowprops=arrow)
        panel.text(3, place, text, ha="center", va="center", fontsize=9, bbox=style)
    panel.annotate("", (6.2, places[0]), (4.6, places[0]), arrowprops=arrow)
    panel.text(6.4, places[0], "\n".join(out), ha="left", va="center", fontsize=9, bbox=style)
    caption = "Flow of cases: found, left out and why, in the folds, scored. checklist.json has all numbers."
    return Picture(
        "svg", figure_bytes(figure, "svg"), f"Flow of cases: {'; '.join([*boxes, *out])}.".replace("\n", "; "), caption
    )


def checklist_tables(filled: Checklists) -> tuple[tuple[str, Table], ...]:
    """A table for each checklist: number, subject, answer; blanks are marked."""
    result = []
    for name in dict.fromkeys(item.checklist for item in filled.items):
        own = [item for item in filled.items if item.checklist == name]
        rows = tuple(
            (
                Cell(item.number),
                Cell(item.subject),
                Cell(item.answer or "blank: to be filled in", is_bad=not item.answer),
            )
            for item in own
        )
        n_filled = sum(bool(item.answer) for item in own)
        caption = f"{n_filled} of {count(len(own), 'item')} answered from this folder. Check every answer."
        result.append((name, Table(("item", "subject", "answer"), rows, caption)))
    return tuple(result)


@dataclass(frozen=True)
class _Known:
    """Sources of the answers."""

    work: WorkFolder
    best: Scored | None
    flow: CaseFlow
    paragraphs: Mapping[str, str]
    tests: Looks


@dataclass(frozen=True)
class _Row:
    """An item and the function that answers it."""

    number: str
    subject: str
    answer: Callable[[_Known], str]


def _blank(_: _Known) -> str:
    return ""


def _paragraph(name: str) -> Callable[[_Known], str]:
    return lambda known: known.paragraphs.get(name, "")


def _sites(known: _Known) -> str:
    if known.work.dataset is None:
        return ""
    sites = Counter(case.site for case in known.work.dataset.cases if case.site)
    return ", ".join(f"{site}: {count(n, 'case')}" for site, n in sorted(sites.items()))


def _preparation(known: _Known) -> str:
    plan = known.work.plan
    schemes = [row.get("scheme") for row in plan.get("normalisation") or () if isinstance(row, Mapping)]
    if not schemes:
        return ""
    names = (f"{channel} {scheme}" for channel, scheme in zip(plan.get("channels") or (), schemes, strict=False))
    spacing = next((one.get("spacing_mm") for one in _configuration(known)), None)
    edges = ""
    if isinstance(spacing, list):
        sizes = " × ".join("any" if mm is None else f"{mm:.3g}" for mm in spacing)
        edges = f" Voxels of {sizes} mm (Z×Y×X)."
    return f"Orientation {plan.get('orientation')}; intensities by channel: {', '.join(names)}.{edges}"


def _configuration(known: _Known) -> list[Mapping[str, object]]:
    configurations = known.work.plan.get("configurations")
    if known.best is None or not isinstance(configurations, Mapping):
        return []
    own = configurations.get(known.best.run.configuration)
    return [own] if isinstance(own, Mapping) else []


def _partitions(known: _Known) -> str:
    splits = known.work.splits
    return "" if splits is None else f"{splits.source[0].upper()}{splits.source[1:]}."


def _disjoint(known: _Known) -> str:
    work = known.work
    if work.splits is None or work.dataset is None:
        return ""
    mixed = leaks(work.splits.folds, work.dataset)
    return "NOT DISJOINT: patients are on both sides of a fold." if mixed else "Disjoint by patient in every fold."


def _flow(known: _Known) -> str:
    flow = known.flow
    if flow.n_found is None:
        return ""
    out = ", ".join(f"{n} ({reason})" for reason, n in flow.left_out.items()) or "none"
    return f"{flow.n_found} found, left out: {out}; {flow.n_used} used; {flow.n_scored} scored out of fold."


def _missing_data(known: _Known) -> str:
    if known.work.checked is None:
        return ""
    n_faulty = known.flow.n_faulty or 0
    return f"Every file was read: {count(n_faulty, 'used case has', 'used cases have')} a warning. {_flow(known)}"


def _size(known: _Known) -> str:
    flow = known.flow
    return "" if flow.n_used is None else f"{count(flow.n_used, 'case')} of {count(flow.n_patients or 0, 'patient')}."


def _performance(known: _Known) -> str:
    row = known.best.dice if known.best else None
    if row is None or row.mean is None:
        return ""
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f", 95 % interval {number_text(row.low, row.unit)} to {number_text(row.high, row.unit)}"
    return f"Mean Dice {number_text(row.mean, row.unit)}{interval}, out of fold."


def _failures(known: _Known) -> str:
    row = known.best.dice if known.best else None
    return "" if row is None else f"{failure_text(row).capitalize()}. The table of all cases lists the worst first."


def _tests(known: _Known) -> str:
    if not known.tests.n_scorings:
        return ""
    return f"{count(known.flow.n_test, 'test case')}, scored {known.tests.text}, by the ledger."


def _empties(known: _Known) -> str:
    row = known.best.dice if known.best else None
    if row is None:
        return ""
    return f"{row.n_both_empty + row.n_spurious} of all pairs of case and label have an empty reference."


CHECKLISTS: dict[str, tuple[_Row, ...]] = {
    # Tejani et al. 2024, Radiology: Artificial Intelligence 6(4); numbers as there, subjects in our words
    "CLAIM 2024": (
        _Row("7", "Sources of the data", _sites),
        _Row("8", "Who was included and who not", _blank),
        _Row("9", "Steps before the network", _preparation),
        _Row("12", "Missing or faulty data", _missing_data),
        _Row("13", "Protocol of image acquisition", _blank),
        _Row("14", "What the reference is", _blank),
        _Row("16", "Who drew the references", _blank),
        _Row("18", "Agreement of raters", _blank),
        _Row("19", "How cases came into the parts", _partitions),
        _Row("20", "What the parts do not share", _disjoint),
        _Row("21", "Planned number of cases", _blank),
        _Row("22", "Network", _paragraph("Training")),
        _Row("23", "Software", _paragraph("Software")),
        _Row("25", "Training", _paragraph("Training")),
        _Row("28", "Metrics", _paragraph("Metrics")),
        _Row("29", "Uncertainty", _paragraph("Statistics")),
        _Row("33", "Test on other data", _tests),
        _Row("35", "Flow of cases", _flow),
        _Row("36", "Patients in each part", _blank),
        _Row("37", "Results with their uncertainty", _performance),
        _Row("39", "Analysis of failures", _failures),
        _Row("40", "Limits of the study", _blank),
        _Row("44", "Funding", _blank),
    ),
    # Collins et al. 2024, BMJ 385:e078378
    "TRIPOD+AI": (
        _Row("5a", "Sources of the data", _sites),
        _Row("5b", "Dates", _blank),
        _Row("6b", "Who was included", _blank),
        _Row("7", "Preparation of the data", _preparation),
        _Row("10", "Number of cases", _size),
        _Row("11", "Missing data", _missing_data),
        _Row("12a", "Use of the data in development and evaluation", _partitions),
        _Row("12c", "Model and how it was made", _paragraph("Training")),
        _Row("12e", "Measures of performance", _paragraph("Metrics")),
        _Row("16", "Differences of training and evaluation data", _blank),
        _Row("17", "Ethics", _blank),
        _Row("18a", "Funding", _blank),
        _Row("20a", "Flow of participants", _flow),
        _Row("20b", "Participants", _blank),
        _Row("23a", "Performance with intervals", _performance),
        _Row("26", "Limits of the study", _blank),
    ),
    # Maier-Hein et al. 2024, Nature Methods 21: 195; subjects without its codes
    "Metrics Reloaded": (
        _Row("–", "Chosen metrics", _paragraph("Metrics")),
        _Row("–", "Empty references", _empties),
        _Row("–", "Aggregation and uncertainty", _paragraph("Statistics")),
        _Row("–", "Importance of boundaries, volumes or centres", _blank),
        _Row("–", "Agreement of raters", _blank),
    ),
}
