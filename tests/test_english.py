"""Texts for people are plain English: words that once made them hard to read do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "segpipe"
WORDS = {  # what must not come back: what to write
    r"anew": "again, from scratch",
    r"stands? (in|there)": "is in, is there",
    r"l(ie|ies|ying) (in|at)": "is in, is at",
    r"(is|are|was|were) (told|said)": "is reported",
    r"whatever": "any",
    r"unasked": "silently",
    r"(goes|go) on with": "resume",
    r"same (command|call)( then)? goes on": "rerun the same command to resume",
    r"nobody": "no one, or the passive",
    r"at hand": "available",
    r"of no label": "not a known label",
    r"(?<!size, )side by side": "in parallel; pictures may be",
    r"\w+\(s\)": "segpipe.core.text.count",
}
_OFFENCE = re.compile(r"(?i)\b(" + "|".join(f"(?:{word})" for word in WORDS) + r")(?!\w)")
_PAGES = ("README.md", "data_readme.md", "docs/**/*.md")
_HISTORY = ("docs/decisions.md",)  # quotes the texts of its time
_FOREIGN = ("niivue.umd.js",)
_STILL_TO_DO = {  # parts and pages whose texts are being edited
    "pipeline",
    "train",
    "docs/errors.md",
    "docs/prediction.md",
}


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string in a Python source that may reach a person.

    That is all but docstrings; the docstring of a command is its help.
    """
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            is_command = isinstance(node, ast.FunctionDef) and any(
                "command" in ast.dump(d) for d in node.decorator_list
            )
            first = node.body[0]
            if not is_command and isinstance(first, ast.Expr):
                docstrings.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.lineno, node.value


def offences(text: str) -> list[str]:
    """The words of a text that must not come back."""
    return [match[0] for match in _OFFENCE.finditer(" ".join(text.split()))]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_words_that_must_not_come_back_are_found():
    source = (
        'def f():\n    """Whatever lies in a docstring."""\n    raise E(f"{x}: plan it anew, whatever {y} holds")\n'
    )
    assert [(line, offences(text)) for line, text in texts_of(source) if offences(text)] == [(3, ["anew", "whatever"])]
    command = '@cli.command()\ndef f():\n    """Train anew."""\n'
    assert [offences(text) for _, text in texts_of(command)] == [["anew"]]
    assert offences("2 file(s) lie in it; the same\n  command goes on") == ["file(s)", "lie in", "same command goes on"]
    assert not offences("the standing order of renewed lies about hands")


@pytest.mark.parametrize("part", sorted({part_of(path) for path in PACKAGE.rglob("*.py")}))
def test_strings_of_the_package(part: str):
    if part in _STILL_TO_DO:
        pytest.skip("its texts are being edited")
    found = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(words)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if part_of(path) == part
        for line, text in texts_of(path.read_text(encoding="utf-8"))
        if (words := offences(text))
    ]
    assert found == []


def pages() -> list[str]:
    """The pages of the documentation and the templates, relative to the repository."""
    documents = {path for pattern in _PAGES for path in ROOT.glob(pattern)} - {ROOT / name for name in _HISTORY}
    templates = {path for ending in ("html", "js", "jinja") for path in PACKAGE.rglob(f"*.{ending}")}
    return sorted(str(path.relative_to(ROOT)) for path in documents | templates if path.name not in _FOREIGN)


def test_pages_and_templates_are_found():
    assert {"README.md", "docs/errors.md", "docs/journeys/one_ct.md", "segpipe/view/page.html"} <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_pages_and_templates(page: str):
    if page in _STILL_TO_DO:
        pytest.skip("its texts are being edited")
    assert offences((ROOT / page).read_text(encoding="utf-8")) == []
