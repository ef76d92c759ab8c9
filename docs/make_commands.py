"""docs/commands.md, made of the commands themselves: `python docs/make_commands.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from segpipe.cli.main import EXAMPLES, GROUPS, root

PAGE = Path(__file__).with_name("commands.md")
_SHARED = ("as_json", "device", "n_workers", "seed", "debug")
_MARKS = {char: f"\\{char}" for char in "*_[]|"} | {"<": "&lt;"}  # what Markdown would take for itself
_HEAD = """# Commands

`segpipe` alone lists the commands, `segpipe COMMAND -h` explains one. This page is made of the same text:
`python docs/make_commands.py`.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 2 | the command or the plan is wrong |
| 3 | images, labels or their description are wrong |
| 4 | the machine is not ready: a package, a device, a folder that cannot be written |
| 5 | memory or disk ran out |
| 75 | stopped on request (SIGTERM, SIGUSR1, SIGUSR2, SIGHUP), state saved: rerun the same command to resume |
| 130 | Ctrl-C, state saved likewise |
| 1 | a fault of segpipe itself: the log that is named says more, `--debug` shows it |
"""


def page() -> str:
    """The page: shared options, then a section for each group of commands."""
    context = click.Context(root, info_name="segpipe", **root.context_settings)
    demo = root.get_command(context, "demo")
    assert demo is not None
    parts = [_HEAD.rstrip(), "## Options of most commands", _options([p for p in demo.params if p.name in _SHARED])]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        for name in names:
            command = root.get_command(context, name)
            assert command is not None
            parts.append(_section(command, click.Context(command, context, info_name=name), name))
    return "\n\n".join(parts) + "\n"


def _section(command: click.Command, context: click.Context, name: str) -> str:
    usage = " ".join(["segpipe", name, *command.collect_usage_pieces(context)])
    own = [p for p in command.params if isinstance(p, click.Option) and p.name not in _SHARED]
    shared = [f"`{p.opts[0]}`" for p in command.params if isinstance(p, click.Option) and p.name in _SHARED]
    parts = [f"### {name}", _code(usage), _text(inspect.cleandoc(command.help or ""))]
    parts += [_options(own)] if own else []
    parts += [f"And {', '.join(shared)}."] if shared else []
    for inner, one in command.commands.items() if isinstance(command, click.Group) else ():
        section = _section(one, click.Context(one, context, info_name=inner), f"{name} {inner}")
        parts.append(f"#{section}")
    parts += ["Examples:", _code("\n".join(EXAMPLES[name]))] if name in EXAMPLES else []
    return "\n\n".join(parts)


def _options(options: list[click.Parameter]) -> str:
    context = click.Context(click.Command("any"))
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = [f"| {', '.join(f'`{part}`' for part in names.split(', '))} | {_text(text)} |" for names, text in records]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _text(text: str) -> str:
    """Paragraphs of help, each on one line; what stands in backticks stays as it is."""
    lines = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    spans = re.split(r"(`[^`]*`)", "\n\n".join(lines))
    return "".join(span if span.startswith("`") else span.translate(str.maketrans(_MARKS)) for span in spans)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
