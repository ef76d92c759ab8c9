"""Declarations: the rules of a study, written before its first training, and whether a comparison kept to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from segpipe.compare.comparison import Question
from segpipe.compare.comparison_records import Comparison
from segpipe.compare.results import Method
from segpipe.compare.study_file import Study
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.ledger import LEDGER_FILE, find_ledger, ledger_sentences, read_ledger
from segpipe.evaluate.summary import DEFAULT_POLICY

DECLARATION_FILE = "declaration.json"
_MAX_LEVELS = 6  # from a table of scores up to the study's folder
_DIGITS = 12


class Declaration(Record):
    """The rules that a study is judged by.

    Args:
        time: UTC, ISO 8601.
        arms: Methods, the baseline first.
        margins: Metrics, each with the largest difference that counts as none, in its unit.
        family: Labels whose comparisons with the baseline are corrected together; empty: the mean over labels.
        policy: What empty masks count.
        n_cases, n_patients: Validated in the study's folds.
        folds, seeds: Of trainings.
        stopping: When training ends, and when the comparison is made; a sentence.
        splits: Digest of all folds.
        validated: Digest of which case is validated in which of the study's folds.
    """

    time: str
    arms: tuple[str, ...]
    margins: dict[str, float]
    family: tuple[str, ...]
    policy: str
    n_cases: int
    n_patients: int
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    stopping: str
    splits: str
    validated: str

    @classmethod
    def of(cls, study: Study, dataset: Dataset, splits: Splits) -> Declaration:
        """The declaration of a study on a dataset, at this moment."""
        cases = [(fold, case_id) for fold in study.folds for case_id in splits.folds[fold].validation]
        by_id = dataset.by_id
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            arms=tuple(study.arms),
            margins=dict(study.margins),
            family=(),
            policy=DEFAULT_POLICY,
            n_cases=len(cases),
            n_patients=len({by_id[case_id].patient_id for _, case_id in cases}),
            folds=study.folds,
            seeds=study.seeds,
            stopping=f"Each training ends after {study.budget}. One comparison, after all of them.",
            splits=hashlib.sha256("".join(fold.to_json() for fold in splits.folds).encode()).hexdigest()[:_DIGITS],
            validated=_digest_of_cases(cases),
        )

    def changes(self, other: Declaration) -> tuple[str, ...]:
        """Differences to another one, but for its time: `margins: {'dice': 0.005}, now {'dice': 0.01}`."""
        pairs = (
            (name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields if name != "time"
        )
        return tuple(f"{name}: {before}, now {now}" for name, before, now in pairs if before != now)


def _digest_of_cases(cases: Iterable[tuple[int | None, str]]) -> str:
    text = "\n".join(sorted(f"{fold} {case_id}" for fold, case_id in cases))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


class Standing(Record):
    """Standing of a comparison: declared before the first training, or explored.

    Args:
        is_declared: Whether it was, and nothing differs.
        sentence: The same in words, with the reasons.
    """

    is_declared: bool
    sentence: str


def find_standing(paths: Sequence[Path], methods: Sequence[Method], question: Question) -> Standing:
    """Look for the declaration that results belong to, and compare it with what is asked of them.

    Args:
        paths: Where the results lie.
        methods: The results.
        question: What is asked.

    Raises:
        DataError: If a declaration or its ledger cannot be read.
    """
    files = {file for path in paths for file in [_find(path)] if file is not None}
    if len(files) != 1:
        where = "no declaration lies beside these results" if not files else "the results are of several studies"
        return Standing(is_declared=False, sentence=f"Explored: {where}.")
    (file,) = files
    found = Declaration.load(file)
    reasons = [*_order_faults(file, found), *_deviations(found, methods, question)]
    if reasons:
        return Standing(is_declared=False, sentence=f"Explored: {'; '.join(reasons)}.")
    margins = ", ".join(f"{metric} {margin:g}" for metric, margin in found.margins.items())
    n_patients = count(found.n_patients, "patient")
    told = f"Declared before the first training ({found.time}): margin {margins}, {n_patients}. {found.stopping}"
    return Standing(is_declared=True, sentence=told)


def _find(path: Path) -> Path | None:
    start = path.absolute()
    files = (folder / DECLARATION_FILE for folder in [start, *start.parents][:_MAX_LEVELS])
    return next((file for file in files if file.is_file()), None)


def _order_faults(file: Path, found: Declaration) -> list[str]:
    """Why the ledger does not show that the declaration came first."""
    ledger = file.with_name(LEDGER_FILE)
    if not ledger.is_file():
        return [f"{file.name} has no ledger beside it that says when it was written"]
    state = read_ledger(ledger)
    if state.faults:
        return [f"the ledger was changed ({state.faults[0]})"]
    events = [scoring.event for scoring in state.scorings]
    first = next((n for n, event in enumerate(events) if event != "declaration"), len(events))
    declared = [scoring.model for scoring in state.scorings[:first]]
    if not declared:
        return ["it was declared after the first scoring"]
    return [] if declared[-1] == found.digest() else [f"{file.name} was changed after it was declared"]


def _deviations(found: Declaration, methods: Sequence[Method], question: Question) -> list[str]:
    """Differences between the declaration and what is asked now."""
    reasons = []
    for metric, margin in question.margins.items():
        if metric not in found.margins:
            reasons.append(f"metric {metric} was not declared")
        elif margin != found.margins[metric]:
            reasons.append(f"margin of {metric} {margin:g}, declared {found.margins[metric]:g}")
    reasons += [
        f"metric {metric} was declared and is not compared"
        for metric in found.margins
        if metric not in question.margins
    ]
    if question.declared != found.family:
        reasons.append(f"family {', '.join(question.declared) or 'the mean over labels'}, which was not declared")
    if question.labels:
        reasons.append(f"only the labels {', '.join(question.labels)}")
    if question.policy != found.policy:
        reasons.append(f"policy {question.policy}, declared {found.policy}")
    names = tuple(method.name for method in methods)
    if names[0] != found.arms[0] or set(names) != set(found.arms):
        reasons.append(f"methods {', '.join(names)}, declared {', '.join(found.arms)} with {found.arms[0]} first")
    elif len(names) > 2 and not question.against_first:
        reasons.append("every pair of methods, declared only those with the first")
    if any(_digest_of_cases({(row.fold, row.case_id) for row in m.table.rows}) != found.validated for m in methods):
        reasons.append("other cases or folds than the declared ones")
    return reasons


def ledger_notes(paths: Sequence[Path], case_ids: Iterable[str]) -> tuple[str, ...]:
    """Say how often the compared cases were scored, by the ledgers of the folders that the results lie in.

    Raises:
        DataError: If a ledger cannot be read.
    """
    cases = tuple(case_ids)
    folders = dict.fromkeys(folder.resolve() for path in paths for folder in [find_ledger(path)] if folder is not None)
    ledgers = dict.fromkeys((folder / LEDGER_FILE).resolve() for folder in folders)
    states = [read_ledger(ledger) for ledger in ledgers if ledger.is_file()]
    return tuple(
        f"{state.path.parent.name}: {sentence}" if len(states) > 1 else sentence
        for state in states
        for sentence in ledger_sentences(state, cases)
    )


def with_standing(
    comparison: Comparison, paths: Sequence[Path], methods: Sequence[Method], question: Question, *notes: str
) -> Comparison:
    """The comparison with sentences on how it came about; `notes` come first.

    Raises:
        DataError: If a declaration or a ledger cannot be read.
    """
    standing = find_standing(paths, methods, question)
    cases = {row.case_id for method in methods for row in method.table.rows}
    found = (*notes, standing.sentence, *ledger_notes(paths, cases))
    return comparison.model_copy(update={"is_declared": standing.is_declared, "notes": found})
