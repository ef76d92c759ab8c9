"""docs/json.md, made of the records: `python docs/make_json.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from segpipe.cli.json_output import OUTPUTS

PAGE = Path(__file__).with_name("json.md")
_HEAD = """# What `--json` prints

One JSON object on one line of stdout; progress and warnings go to stderr. NaN is `null`. A command that fails prints an
object with `error`, `message` and `exit_code` instead, and ends with that exit code. Keys may be added; none is renamed
or removed within a major version. This page is made of the code: `python docs/make_json.py`.
"""


def page() -> str:
    """The page: a section for each command, then the records that they hold."""
    commands = [f"### {name}\n\n{_links(parts)}" for name, parts in OUTPUTS.items()]
    records = [_record(kind) for kind in _all_records()]
    return "\n\n".join([_HEAD.rstrip(), "## Commands", *commands, "## Records", *records]) + "\n"


def _links(parts: tuple[type[BaseModel], ...]) -> str:
    return "The keys of " + " and of ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in parts) + "."


def _all_records() -> list[type]:
    """Those of the commands and all inside them, by name."""
    found: dict[str, type] = {}
    waiting: list[type] = [kind for parts in OUTPUTS.values() for kind in parts]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ not in found:
            found[kind.__name__] = kind
            waiting += [inner for _, annotation in _fields(kind) for inner in _records_in(annotation)]
    return [found[name] for name in sorted(found)]


def _fields(kind: type) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseModel):
        yield from ((name, field.annotation) for name, field in kind.model_fields.items())
    elif is_dataclass(kind):
        yield from get_type_hints(kind).items()


def _records_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _records_in(part)]


def _record(kind: type) -> str:
    about = inspect.getdoc(kind) or ""
    first, said = _summary(about), documented_arguments(about)
    for name, field in kind.model_fields.items() if issubclass(kind, BaseModel) else ():
        said.setdefault(name, field.description or "")
    rows = [f"| `{name}` | {type_text(annotation)} | {said.get(name, '')} |" for name, annotation in _fields(kind)]
    return "\n".join([f"### {kind.__name__}", "", first, "", "| key | type | meaning |", "| --- | --- | --- |", *rows])


def _summary(about: str) -> str:
    """The paragraph before the arguments."""
    return " ".join(about.split("\n\n")[0].split())


def documented_arguments(about: str) -> dict[str, str]:
    """What a docstring says of each argument; several that share a line share the text."""
    _, _, section = about.partition("Args:\n")
    said: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE):
        said |= dict.fromkeys((name.strip() for name in names.split(",")), " ".join(text.split()).replace("|", "\\|"))
    return said


def type_text(annotation: Any) -> str:
    """JSON's types, and names of records."""
    text = str(annotation) if get_args(annotation) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"Annotated\[(\w+)[^\]]*\](?:\)\])?", r"\1", re.sub(r"\b[\w]+\.(?=\w)", "", text))
    text = re.sub(r"Optional\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1 | null", text)
    for python, json_name in (("tuple", "array"), ("dict", "object"), ("str", "string"), ("None", "null")):
        text = re.sub(rf"\b{python}(Type)?\b", json_name, text)
    return f"`{text}`".replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
