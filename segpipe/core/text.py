"""Numbers as people read them: counts with their noun, sizes in GiB, durations; names in one Unicode form."""

from __future__ import annotations

import csv
import io
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from math import isnan
from typing import TypeVar

MOST_ROWS, N_ENDS = 25, 10  # labels that are listed; of more so many at both ends
T = TypeVar("T")

# What a spreadsheet takes for a formula, also behind apostrophes, so that each cell can be read back.
_FORMULA = re.compile(r"'*([=+@\t\r]|-(?!(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|inf$))")
_MAX_NAMED = 12  # of a list of names in a sentence
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def count(n: int, noun: str, plural: str = "") -> str:
    """A number and its noun, in agreement.

    Args:
        n: How many.
        noun: The singular; it may bring its verb.
        plural: The plural where it is not `noun` with an s.

    Example:
        >>> count(1, "image"), count(2, "mask"), count(0, "fold")
        ('1 image', '2 masks', '0 folds')
        >>> count(1, "case is missing", "cases are missing"), count(3, "axis", "axes")
        ('1 case is missing', '3 axes')
    """
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def fold_middle(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """First and last `N_ENDS` of more than `MOST_ROWS` sorted items; else all of them, and none.

    Example:
        >>> [len(part) for part in fold_middle(range(188))], fold_middle("ab")
        ([10, 10], (['a', 'b'], []))
    """
    if len(items) <= MOST_ROWS:
        return list(items), []
    return list(items[:N_ENDS]), list(items[-N_ENDS:])


def command_text(*words: str) -> str:
    """A command to paste into a shell; words with spaces and the like are quoted.

    Example:
        >>> command_text("segpipe", "train", "my runs/a")
        "segpipe train 'my runs/a'"
    """
    return shlex.join(words)


def nfc(name: str) -> str:
    """A name in Unicode's composed form. Macs write ü as u and two dots, which looks the same and is not equal."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """Text that does nothing to a terminal: control characters and those that turn text round become `\\x1b` and so on.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a\\\\x1b[2Jb'
    """
    return escape_control(text)


def escape_control(text: str, *, as_json: bool = False) -> str:
    """Do as `printable`; in JSON, whose strings know no `\\x1b`, as `\\u001b`."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}" if as_json else ascii(found[0])[1:-1], text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV. Text that spreadsheets would compute (`=1+1`, `@x`, `-x`) gets an apostrophe; None is empty.

    Example:
        >>> print(csv_text([["=1+1", "-x", -0.5, None, "a, b"], ["-inf", "-2+3", "'=", "'"]]), end="")
        '=1+1,'-x,-0.5,,"a, b"
        -inf,'-2+3,''=,'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_inert, row) for row in rows)
    return text.getvalue()


def csv_cells(cells: Iterable[str]) -> list[str]:
    """The texts that `csv_text` wrote as these cells.

    Example:
        >>> csv_cells(["'=1+1", "'-x", "-0.5", "''=", "'", "'a"])
        ['=1+1', '-x', '-0.5', "'=", "'", "'a"]
    """
    return [cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell for cell in cells]


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def size_text(n_bytes: float) -> str:
    """Memory or disk space in binary units, to three digits or so; less than 1 KiB is rounded up to it.

    Example:
        >>> size_text(700), size_text(3 * 2**20), size_text(1003 * 2**20), size_text(3.8 * 2**30)
        ('1 KiB', '3.0 MiB', '1003 MiB', '3.8 GiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= unit - unit / 2**11:  # what would be rounded to 1024 MiB is 1 GiB
            return f"{n_bytes / unit:.{0 if n_bytes >= 99.95 * unit else 1}f} {name}"
    return f"{-int(-n_bytes // 2**10)} KiB"


def duration_text(seconds: float) -> str:
    """A duration in the unit that suits it; `?` for NaN.

    Example:
        >>> duration_text(59.7), duration_text(3599), duration_text(7500), duration_text(400_000)
        ('60 s', '60 min', '2 h 05 min', '4 d 15 h')
    """
    if isnan(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def list_names(names: Iterable[str]) -> str:
    """Join names with commas; of very many the first ones and how many more."""
    every = list(names)
    more = f" and {len(every) - _MAX_NAMED} more" if len(every) > _MAX_NAMED else ""
    return ", ".join(every[:_MAX_NAMED]) + more


def exact_text(value: float) -> str:
    """A number for an option, short if that is the same number: `60`, `0.1`, `8.123456789`."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
