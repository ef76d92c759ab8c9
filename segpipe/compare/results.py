"""Results to compare, from whoever made them: segpipe's scores.csv, nnU-Net's summary.json, long CSV tables.

Each becomes a `ScoreTable` under the name of its method, so that the statistics know one form only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.compare.foreign import long_table, nnunet_table, with_patients
from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import resolve_links
from segpipe.core.progress import say
from segpipe.evaluate.scores import COLUMNS, Score, ScoreTable

SUMMARY_FILE = "summary.json"
SCORES_FILE = "scores.csv"
_FOLD = re.compile(r"fold_(\d+)")


@dataclass(frozen=True)
class Method:
    """A method and all its scores: every case, fold and seed.

    Args:
        name: As in tables and sentences.
        table: Its rows; `run` is the name.
    """

    name: str
    table: ScoreTable


@dataclass(frozen=True)
class Source:
    """One argument of the command: `PATH`, `NAME=PATH` or `NAME:SEED=PATH`.

    Args:
        path: A file or a folder.
        name: Of the method; None takes it from the file or the path.
        seed: Of the training; None leaves what the file says.
    """

    path: Path
    name: str | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read an argument; a path that exists is a path, whatever characters it has."""
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text))
        name, colon, seed = name.rpartition(":") if re.search(r":\d+$", name) else (name, "", "")
        if not name or not path:
            raise UsageError(
                f"{text!r}: expected PATH, NAME=PATH or NAME:SEED=PATH, e.g. base:1=runs/base_1/scores.csv."
            )
        return cls(Path(path), name, int(seed) if colon else None)


def read_methods(sources: Sequence[Source], *, allow_missing: bool = False) -> tuple[Method, ...]:
    """All methods of all sources, in their order; sources of one name are joined, e.g. the seeds of a method.

    Args:
        sources: What to read.
        allow_missing: As in `long_table`.

    Raises:
        UsageError: If there are not at least two methods.
        DataError: If a source cannot be read, or two rows are of the same case, fold, seed, label and metric.
    """
    sources = _without_repeats(sources)
    read = [(source, read_table(source.path, allow_missing=allow_missing)) for source in sources]
    rows: dict[str, list[Score]] = {}
    for (source, table), fallback in zip(read, _short_names([source.path for source in sources]), strict=True):
        for run in table.runs:
            name = source.name or _name_of(run, table, [other for _, other in read], fallback)
            if source.name and len(table.runs) > 1:
                name = f"{source.name} {run}"
            own = (row for row in table.rows if row.run == run)
            seeded = own if source.seed is None else (replace(row, seed=source.seed) for row in own)
            rows.setdefault(name, []).extend(replace(row, run=name) for row in seeded)
    _refuse_twice(rows)
    if len(rows) < 2:
        raise UsageError(
            f"{', '.join(str(s.path) for s in sources)}: {len(rows)} method ({', '.join(rows)}), expected two or more. "
            "Give a second table of scores, or different names for equal ones: NAME=PATH."
        )
    return tuple(Method(name, ScoreTable(tuple(of))) for name, of in rows.items())


def _without_repeats(sources: Sequence[Source]) -> list[Source]:
    """The sources, each file or folder once for a name; what is left out is printed."""
    kept: dict[tuple[Path, str | None], Source] = {}
    for source in sources:
        first = kept.setdefault((resolve_links(source.path), source.name), source)
        if first is not source:
            say(f"{source.path}: given twice{f' for {source.name}' if source.name else ''}, counted once")
    return list(kept.values())


def read_table(path: Path, *, allow_missing: bool = False) -> ScoreTable:
    """Scores in a file, or in a folder: its scores.csv, its summary.json, or those of its folds.

    Args:
        path: The file or folder.
        allow_missing: As in `long_table`.

    Raises:
        DataError: If there is nothing that can be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Check the path.")
    files = _files_in(path) if path.is_dir() else [path]
    table = ScoreTable.join((_read_file(file, allow_missing=allow_missing) for file in files), path)
    if not table.labels:
        raise DataError(f"{path}: no scores of any structure. Score the masks again.")
    return table if _is_ours(files[0]) else with_patients(table, files[0].parent)


def _read_file(path: Path, *, allow_missing: bool) -> ScoreTable:
    if path.suffix == ".json":
        fold = next((int(m[1]) for part in path.parts[::-1] if (m := _FOLD.fullmatch(part))), None)
        return nnunet_table(path, fold)
    if path.suffix != ".csv":
        raise DataError(f"{path}: expected a .csv table, nnU-Net's {SUMMARY_FILE} or a folder with either.")
    return ScoreTable.load(path) if _is_ours(path) else long_table(path, allow_missing=allow_missing)


def _is_ours(path: Path) -> bool:
    """True if a file is a scores.csv."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip() == ",".join(COLUMNS)
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: cannot be read as a table ({fault}).") from None


def _files_in(folder: Path) -> list[Path]:
    """The files to read for a folder: one file of all cases, else one for each fold."""
    for pattern in (SCORES_FILE, f"fold_*/{SCORES_FILE}", f"fold_*/validation/{SUMMARY_FILE}",
                    f"fold_*/{SUMMARY_FILE}", SUMMARY_FILE):  # fmt: skip
        if files := sorted(folder.glob(pattern)):
            return files
    raise DataError(
        f"{folder}: neither {SCORES_FILE} nor {SUMMARY_FILE}, nor folders fold_0, fold_1 … with either. "
        "Name a file, or a folder such as runs/3d_fullres or nnU-Net's trainer folder."
    )


def _name_of(run: str, table: ScoreTable, others: Iterable[ScoreTable], fallback: str) -> str:
    """The run's own name, unless it has none or another table uses it too."""
    is_shared = sum(run in other.runs for other in others) > 1
    if run and not is_shared:
        return run
    return f"{fallback} {run}" if run and len(table.runs) > 1 else fallback


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The parts of paths that tell them apart, without what all share at the beginning and the end."""
    parts = [resolve_links(path).parts for path in paths]
    if len(set(parts)) == 1:
        return [str(path) for path in paths]
    n_first = n_last = 0
    shortest = min(map(len, parts))
    while n_first < shortest and len({p[n_first] for p in parts}) == 1:
        n_first += 1
    while n_last < shortest - n_first - 1 and len({p[-1 - n_last] for p in parts}) == 1:
        n_last += 1
    return ["/".join(p[n_first : len(p) - n_last]) for p in parts]


def _refuse_twice(rows: dict[str, list[Score]]) -> None:
    for name, of in rows.items():
        seen = set()
        for row in of:
            key = (*row.case_key, row.label, row.metric)
            if key in seen:
                place = f"fold {row.fold}, seed {row.seed}, label {row.label}, {row.metric}"
                raise DataError(
                    f"method {name}: two scores of case {row.case_id} ({place}), expected one. "
                    "Remove one; different methods need different names (NAME=PATH), trainings of one method "
                    "different seeds (NAME:SEED=PATH)."
                )
            seen.add(key)
