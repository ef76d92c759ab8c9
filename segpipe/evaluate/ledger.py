"""The ledger of a work folder: every scoring of a fold or a test set, one JSON line each, chained by hashes.

Scores that are looked at often are chosen among, so a report has to say how often. A line that is changed, removed or
inserted breaks the chain. Lines that are cut off at the end do not: what they scored is then missing in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from segpipe.core.errors import DataError, SegpipeError
from segpipe.core.files import disk_fault, make_folder
from segpipe.core.progress import say
from segpipe.core.records import Record, read_mapping
from segpipe.core.text import count
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.scoring import MaskPair

LEDGER_FILE = "ledger.jsonl"
_ABOUT_MASKS = "prediction.json"  # beside masks of `segpipe predict`: names their model
_START = "0" * 64  # in place of the hash before the first line
_DIGITS = 12
_LOCK_SECONDS = 60
_MAX_LEVELS = 6  # from a table of scores up to its work folder
_MAX_NAMED = 5

Event = Literal["fold", "test set", "selection", "declaration"]


class Scoring(Record):
    """The subject of a line of the ledger.

    Args:
        event: `fold`: the validation cases of a fold; `test set`: any other masks; `selection`: choosing among models
            by the scores of all folds; `declaration`: what a study will be judged by, which scores nothing.
        name: Of what was scored, e.g. `3d_fullres fold 0`.
        model: Digest of the weights, or of the declaration; empty if unknown.
        plan: Digest of the plan; empty if unknown.
        cases: Digest of the reference of each case.
        masks: Digest of all masks: the same masks scored again tell nothing new.
        scores: Digest of the table.
    """

    event: Event
    name: str
    model: str = ""
    plan: str = ""
    cases: dict[str, str] = Field(default_factory=dict)
    masks: str = ""
    scores: str = ""


class LedgerLine(Record):
    """One line.

    Args:
        number: From 1.
        time: UTC, ISO 8601.
        scoring: What happened.
        previous: Hash of the line before.
        hash: SHA-256 of all the rest.
    """

    number: int
    time: str
    scoring: Scoring
    previous: str
    hash: str

    @classmethod
    def after(cls, previous: str, number: int, scoring: Scoring) -> LedgerLine:
        """The line that follows the one with the hash `previous`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = cls(number=number, time=now, scoring=scoring, previous=previous, hash="")
        return line.model_copy(update={"hash": line.content_hash})

    @property
    def content_hash(self) -> str:
        """The hash that the line must have."""
        return hashlib.sha256(_text(self.model_copy(update={"hash": ""})).encode()).hexdigest()


@dataclass(frozen=True)
class LedgerState:
    """A ledger as it stands in its file.

    Args:
        path: The file.
        lines: All that can be read, in order.
        faults: What breaks the chain, one sentence each, beginning with the line.
        last_hash: What the next line has to name.
        n_lines, n_bytes: Of the whole lines.
        torn: The incomplete last line of a killed run; empty if there is none.
    """

    path: Path
    lines: tuple[LedgerLine, ...]
    faults: tuple[str, ...]
    last_hash: str
    n_lines: int
    n_bytes: int
    torn: bytes

    @property
    def scorings(self) -> tuple[Scoring, ...]:
        """The subjects of all lines."""
        return tuple(line.scoring for line in self.lines)


def read_ledger(path: Path) -> LedgerState:
    """Read a ledger and check its chain.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror or fault}), expected a ledger.") from None
    whole, newline, torn = content.rpartition(b"\n")
    raw = whole.split(b"\n") if newline else []
    lines: list[LedgerLine] = []
    faults: list[str] = []
    previous = _START
    for number, text in enumerate(raw, 1):
        try:
            line = LedgerLine.parse(json.loads(text), f"{path}, line {number}", DataError)
        except (SegpipeError, ValueError):
            faults.append(f"line {number}: is no line of a ledger; it was changed")
            previous = hashlib.sha256(text).hexdigest()
            continue
        if line.hash != line.content_hash:
            faults.append(f"line {number}: its content does not have its hash; it was changed")
        elif line.previous != previous or line.number != number:
            faults.append(f"line {number}: does not follow the line before it; a line was removed, inserted or moved")
        previous = line.hash
        lines.append(line)
    return LedgerState(path, tuple(lines), tuple(faults), previous, len(raw), len(whole) + len(newline), torn)


def append_scoring(folder: Path, scoring: Scoring) -> LedgerLine:
    """Add a line to a folder's ledger, and see it on the disk before returning; processes take turns.

    An incomplete last line, which a killed run left, is removed first.

    Raises:
        ResourceError, SetupError: If it cannot be written.
    """
    from filelock import FileLock  # late: it takes as long as everything else that `segpipe -h` imports

    path = (make_folder(folder) / LEDGER_FILE).resolve()  # the arms of a study share one
    try:
        with FileLock(path.with_name(f".{LEDGER_FILE}.lock"), timeout=_LOCK_SECONDS):
            path.touch()
            state = read_ledger(path)
            if state.torn:
                say(f"{path}: the last line is incomplete: its run was killed while writing it. Removed.")
            for fault in state.faults:
                say(f"warning: {path}, {fault}.")
            line = LedgerLine.after(state.last_hash, state.n_lines + 1, scoring)
            with path.open("r+b") as file:
                file.truncate(state.n_bytes)
                file.seek(state.n_bytes)
                file.write(_text(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
    except OSError as fault:
        raise disk_fault(fault, path) from fault
    return line


def _text(line: LedgerLine) -> str:
    return json.dumps(line.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))


def scoring_of(
    event: Event, name: str, pairs: Sequence[MaskPair], table: ScoreTable, *, model: str = "", plan: str = ""
) -> Scoring:
    """Describe a scoring by the content of its files.

    Args:
        event, name, plan: As in `Scoring`.
        pairs: References and masks.
        table: Their scores.
        model: Digest of the weights; empty to take what `segpipe predict` wrote beside the masks.

    Raises:
        DataError: If a file is gone.
    """
    cases = {pair.origin.case_id: file_digest(pair.reference) for pair in pairs}
    masks = hashlib.sha256("".join(file_digest(pair.prediction) for pair in pairs).encode()).hexdigest()[:_DIGITS]
    about = {pair.prediction.parent / _ABOUT_MASKS for pair in pairs}
    if not model and len(about) == 1 and (file := about.pop()).is_file():
        model = str(read_mapping(file, DataError).get("model", ""))
    return Scoring(event=event, name=name, model=model, plan=plan, cases=cases, masks=masks, scores=table.digest)


def file_digest(path: Path) -> str:
    """First digits of the SHA-256 of a file's content, or of all files of a folder.

    Raises:
        DataError: If it cannot be read.
    """
    found = hashlib.sha256()
    try:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            with part.open("rb") as file:  # in parts: weights may be large
                hashlib.file_digest(file, lambda: found)
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror or fault}). Score again.") from None
    return found.hexdigest()[:_DIGITS]


def event_of(masks: Path) -> Event:
    """`fold` for the folder in which training leaves the masks of a fold's validation cases, else `test set`."""
    is_fold = masks.name == "validation" and masks.resolve().parent.name.startswith("fold_")
    return "fold" if is_fold else "test set"


def find_ledger(path: Path) -> Path | None:
    """The work folder around a file or folder: the nearest one above it that has a ledger or a plan; None if none."""
    start = path.absolute()
    for folder in [start, *start.parents][:_MAX_LEVELS]:
        if (folder / LEDGER_FILE).is_file() or (
            (folder / "plan.yaml").is_file() and (folder / "splits.json").is_file()
        ):
            return folder
    return None


@dataclass(frozen=True)
class Looks:
    """Number of scorings of something: in all, and with how many different masks."""

    n_scorings: int
    n_masks: int

    @property
    def text(self) -> str:
        """For people: `3 times, 2 different sets of masks`."""
        if self.n_scorings == 1:
            return "once"
        masks = "the same masks" if self.n_masks == 1 else f"{count(self.n_masks, 'different set')} of masks"
        return f"{self.n_scorings} times, {masks}"


def looks_at(scorings: Iterable[Scoring], event: Event, cases: Iterable[str] | None = None) -> Looks:
    """Count the scorings that saw any of these cases (None: any case)."""
    wanted = None if cases is None else set(cases)
    seen = [s for s in scorings if s.event == event and (wanted is None or wanted & set(s.cases))]
    return Looks(len(seen), len({s.masks for s in seen}))


def ledger_sentences(state: LedgerState, cases: Iterable[str] | None = None) -> tuple[str, ...]:
    """Say how often a test set and the folds were scored, and what is wrong with the ledger; one sentence each."""
    wanted = None if cases is None else tuple(cases)
    said = []
    if (tests := looks_at(state.scorings, "test set", wanted)).n_scorings:
        said.append(f"Test set scored {tests.text}.")
    if (folds := looks_at(state.scorings, "fold", wanted)).n_scorings:
        again = "" if folds.n_scorings == folds.n_masks else f", in {folds.n_scorings} scorings"
        said.append(f"Masks of folds scored: {count(folds.n_masks, 'set')}{again}.")
    if (choices := looks_at(state.scorings, "selection", wanted)).n_scorings:
        said.append(f"{count(choices.n_scorings, 'selection')} among models by the scores of the folds.")
    if state.faults:
        more = f" and {len(state.faults) - _MAX_NAMED} more" if len(state.faults) > _MAX_NAMED else ""
        said.append(f"THE LEDGER WAS CHANGED: {'; '.join(state.faults[:_MAX_NAMED])}{more}.")
    return tuple(said)


def tables_outside(state: LedgerState, tables: Mapping[str, ScoreTable]) -> tuple[str, ...]:
    """Names of the tables of scores that no line of the ledger is about."""
    known = {scoring.scores for scoring in state.scorings}
    return tuple(name for name, table in tables.items() if table.digest not in known)
