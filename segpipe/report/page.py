"""The page: what stands on it, and how it becomes one file without anything from outside."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from typing import Literal

from segpipe.core.text import MOST_ROWS, N_ENDS
from segpipe.evaluate.summary import SummaryRow
from segpipe.report.methods_text import MethodsText

_CODE = re.compile("`([^`]+)`")
STATUS_TEXT = {"both_empty": "both empty", "missed": "missed", "spurious": "spurious"}


@dataclass(frozen=True)
class Picture:
    """An embedded picture, what it shows for those who cannot see it, and the line below it."""

    kind: Literal["png", "svg"]
    content: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        """The picture inside the page."""
        mime = "image/svg+xml" if self.kind == "svg" else "image/png"
        return f"data:{mime};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What is read.
        number: What it is sorted by; None: by the text.
        is_bad: Whether it deserves a look (a missed or invented structure).
    """

    text: str
    number: float | None = None
    is_bad: bool = False

    @property
    def sort_key(self) -> str:
        """Number for sorting; empty if there is none, such cells come last."""
        return repr(self.number) if self.number is not None and isfinite(self.number) else ""


def failure_rate_text(row: SummaryRow) -> str:
    """Patients with a failure and the 95 % interval of their rate, in two lines of a cell."""
    return f"{row.n_failed_patients} of {row.n_patients}\n[{100 * row.failure_low:.0f}, {100 * row.failure_high:.0f}] %"


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Args:
        columns: Headings.
        rows: From above.
        caption: What it holds.
        is_sortable: Whether a click on a heading sorts it.
        is_folded: Whether a browser shows of very many rows the first and the last ones, and searches the others.
        foot: A last row that stays in its place.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    is_sortable: bool = False
    is_folded: bool = False
    foot: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Point:
    """One thing to know: good, bad, worth a look, or a note."""

    kind: Literal["good", "note", "look", "bad"]
    about: str
    text: str


@dataclass(frozen=True)
class VerdictBox:
    """The sentence for who reads one, and what it rests on."""

    sentence: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Headline:
    """One number that matters, its interval and what it was taken over."""

    name: str
    value: str
    interval: str
    basis: str


@dataclass(frozen=True)
class Section:
    """Everything about one configuration."""

    title: str
    headlines: tuple[Headline, ...]
    warnings: tuple[str, ...]
    scores: Table | None
    curves: Picture | None
    distributions: tuple[Picture, ...]
    more_distributions: tuple[Picture, ...]
    volumes: Picture | None
    volume_table: Table | None
    overlays: tuple[Picture, ...]
    cases: Table | None
    methods: MethodsText | None
    calibration: Picture | None = None
    calibration_table: Table | None = None
    groups: Table | None = None


@dataclass(frozen=True)
class Decision:
    """A decision of the plan: its name, what was decided, why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class DataCheck:
    """The result of `segpipe check`: a sentence, and a table if there are faults."""

    text: str
    faults: Table | None


@dataclass(frozen=True)
class Place:
    """The environment of a computation: a title, and name and value of each fact."""

    title: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """The whole report; `alarms` say why its scores must not be trusted, `notes` what is missing."""

    title: str
    facts: tuple[tuple[str, str], ...]
    verdict: VerdictBox
    alarms: tuple[str, ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    decisions: tuple[Decision, ...]
    plan_text: str
    data: DataCheck
    environments: tuple[Place, ...]
    commands: tuple[str, ...]
    flow: Picture | None = None
    checklists: tuple[tuple[str, Table], ...] = ()


def render(page: object, template: str = "page.html.jinja") -> str:
    """One HTML document; every text is escaped, nothing is loaded from elsewhere.

    Args:
        page: What the template calls `page`.
        template: Name of a template beside this file.
    """
    import jinja2
    import markupsafe

    def with_code(text: str) -> markupsafe.Markup:
        """A text for people as HTML: what stands in backticks is code."""
        return markupsafe.Markup(_CODE.sub(r"<code>\1</code>", str(markupsafe.escape(text))))

    folder = resources.files("segpipe.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["with_code"] = with_code
    return environment.get_template(template).render(page=page, most_rows=MOST_ROWS, n_ends=N_ENDS)
