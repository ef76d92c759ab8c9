"""docs/: what is made of the code is equal to it, and what is written by hand says nothing that is not so."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import click
import pytest

from segpipe.cli.main import COMMANDS, root
from segpipe.evaluate.metrics import METRICS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name not in ("commands.md", "decisions.md", "json.md"))
COMMAND_LINE = re.compile(r"^(?:\$ )?(segpipe (?!COMMAND).*)$", re.MULTILINE)


def module_at(path: Path) -> ModuleType:
    """A file of Python that is in no package."""
    found = spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    sys.modules[path.stem] = module  # dataclasses look there
    found.loader.exec_module(module)
    return module


def commands_in(text: str) -> list[list[str]]:
    """The words of every line of a code block that calls segpipe, without comments and pipes."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in COMMAND_LINE.findall(block)]
    return [shlex.split(line.split(" | ")[0].split(" > ")[0], comments=True) for line in lines]


def mentions_in(text: str) -> list[list[str]]:
    """The words of every piece of a sentence in backticks that calls segpipe; it may leave arguments out."""
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()) for span in re.findall(r"`(segpipe [^`]*)`", prose))
    return [shlex.split(span) for span in spans if "…" not in span and "COMMAND" not in span]


def require_right(words: list[str], *, is_whole: bool = True) -> None:
    """Refuse a command, option, value or number of arguments that does not exist."""
    context = click.Context(root, info_name="segpipe", **root.context_settings)
    command = root.get_command(context, words[1]) if words[1:] else root
    assert command is not None, f"no command {words[1]}"
    if isinstance(command, click.Group) and words[2:]:
        assert words[2] in command.list_commands(context), f"no command {words[1]} {words[2]}"
        command, words = command.get_command(context, words[2]), words[1:]
        assert command is not None
    with click.Context(command, context, info_name=words[1] if words[1:] else None) as inside:
        given, left, _ = command.make_parser(inside).parse_args(words[2:])
        assert not left, words
        for parameter in command.params:
            value = given.get(parameter.name)
            is_given = parameter.name in given and not parameter.value_is_missing(value)
            assert is_given or not parameter.required or not is_whole, (words, parameter.name)
            if isinstance(value, str | list | tuple) and not isinstance(parameter.type, click.Path):
                parameter.type_cast_value(inside, value)


def test_the_page_of_commands_is_made_of_the_commands() -> None:
    maker = module_at(DOCS / "make_commands.py")
    page = maker.page()
    assert maker.PAGE.read_text(encoding="utf-8") == page, "run: python docs/make_commands.py"
    assert all(f"\n### {name}\n" in page for name in COMMANDS)


def test_the_tables_of_values_are_made_of_the_records() -> None:
    maker = module_at(DOCS / "make_tables.py")
    written = {path.name: path.read_text(encoding="utf-8") for path in maker.FOLDER.iterdir()}
    assert written == maker.tables(), "run: python docs/make_tables.py"
    assert "| `learning_rate` | `0.01` | At the start. |\n" in written["training.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for words in commands_in(page.read_text(encoding="utf-8")):
        require_right(words)
    for words in mentions_in(page.read_text(encoding="utf-8")):
        require_right(words, is_whole=False)


@pytest.mark.parametrize("line", ["segpipe trian W", "segpipe train", "segpipe train W --fold 0", "segpipe train W X"])
def test_a_wrong_command_is_found(line: str) -> None:
    (words,) = commands_in(f"text\n\n```\n{line}    # why\n```\n")
    with pytest.raises((AssertionError, click.UsageError)):
        require_right(words)


def test_the_pictures_are_those_of_the_metrics_and_their_captions_too() -> None:
    maker, page = module_at(DOCS / "make_pictures.py"), (DOCS / "evaluation.md").read_text(encoding="utf-8")
    pictures = maker.pictures()
    assert len(pictures) >= 10
    for name, picture in pictures.items():
        path = maker.FOLDER / f"{name}.svg"
        assert path.read_text(encoding="utf-8") == picture.svg, "run: python docs/make_pictures.py"
        assert path.stat().st_size < 40_000
        assert f"![{picture.alt}](pictures/{name}.svg)\n\n*{picture.caption}*\n" in page, picture.caption


def test_every_metric_is_explained() -> None:
    page = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    of_other_surfaces = re.compile(
        r"(hd|assd|masd|nsd)_(voxel|mc)|lesion_.*_(overlap50|iou\d\d|brats(_me[nt])?)|.*_image"
    )
    assert [name for name in METRICS if name not in named and not of_other_surfaces.fullmatch(name)] == []


def test_every_message_that_is_explained_is_one_of_the_code() -> None:
    said = messages_of_the_code()
    headings = re.findall(r"^### `(.*)`$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 10
    wrong = [h for h in headings if not any(all(part.strip() in text for part in h.split("…")) for text in said)]
    assert wrong == []
    assert not any("another process is at work on it" in text for text in said)


def messages_of_the_code() -> set[str]:
    """Every text in segpipe; what is put in between is left out."""
    said = set()
    for path in (DOCS.parent / "segpipe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                said.add("".join(str(v.value) for v in node.values if isinstance(v, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    return said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:benchmarks|docs|plans|tests|segpipe)/[\w./]+\.\w+)`", page.read_text(encoding="utf-8"))
    described = {"segpipe/networks/separable.py", "segpipe/data/layouts/case_folders.py"}  # the reader writes it
    assert [name for name in named if name not in described and not (DOCS.parent / name).is_file()] == []


def test_nothing_is_fetched_from_other_servers() -> None:
    settings = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "http" not in settings
    assert not [page.name for page in PAGES if re.search(r"!\[[^]]*\]\(http", page.read_text(encoding="utf-8"))]
