"""cli/options.py: an option means the same in every command, and old spellings still work, with a notice."""

from __future__ import annotations

import click
import pytest

from segpipe.cli.main import COMMANDS, root, run
from segpipe.cli.options import Command

SAME_IN_OTHER_WORDS = {  # options whose help differs, and why that is no other meaning
    "--labels": "evaluate may also define them",
    "--allow-missing": "of references, or of methods",
    "--report": "each names its page",
    "--no-report": "each names its page",
    "--output": "each says what it writes",
    "--postprocess": "predict also knows a default",
    "--configuration": "predict and pack take several, view shows one",
    "--policy": "evaluate's default is that of its preset",
    "--dry-run": "a study prints its arms",
    "--json": "view prints an address",
    "--time-budget": "demo has a default",
    "--max-memory": "of a plan, or of a prediction",
    "--folds": "a model may have fold_all",
    "--metric": "to choose by, or of a pilot's scores",
    "--ledger": "evaluate names a folder, info lists",
    "--by": "each names what it groups",
    "--cases": "compare reads patients there",
    "--worst-loss": "by metric, or of the one metric",
}


def command_of(name: str) -> click.Command:
    command = root.get_command(click.Context(root, **root.context_settings), name)
    assert command is not None
    return command


def options_of(name: str) -> list[click.Option]:
    return [parameter for parameter in command_of(name).params if isinstance(parameter, click.Option)]


def test_an_option_means_the_same_in_every_command():
    meanings: dict[str, set[tuple[str, str | None]]] = {}
    for name in COMMANDS:
        for option in options_of(name):
            for spelling in (*option.opts, *option.secondary_opts):
                meanings.setdefault(spelling, set()).add((type(option.type).__name__, option.help))
    different = {spelling for spelling, found in meanings.items() if len(found) > 1}
    assert {spelling for spelling in different if spelling.startswith("--")} == set(SAME_IN_OTHER_WORDS)


def test_a_short_option_stands_for_one_long_one():
    long: dict[str, set[str]] = {}
    for name in COMMANDS:
        for option in options_of(name):
            for spelling in option.opts:
                if not spelling.startswith("--"):
                    long.setdefault(spelling, set()).update(o for o in option.opts if o.startswith("--"))
    assert {short: names for short, names in long.items() if len(names) > 1} == {
        "-i": {"--input", "--images"},  # images in both
        "-r": {"--reference", "--references"},  # label maps in both
    }
    assert long["-m"] == {"--model"}


def test_an_option_stands_only_where_it_does_something():
    having = {
        option: {name for name in COMMANDS if any(option in found.opts for found in options_of(name))}
        for option in ("--seed", "--device", "-j")
    }
    assert having["--seed"] == {"demo", "run", "plan", "prune", "evaluate", "compare", "size"}
    assert having["--device"] == {"demo", "run", "plan", "train", "select", "predict", "prune", "pretrain", "study"}
    assert having["-j"] == having["--device"] | {"check", "prepare", "evaluate"}


@click.command(cls=Command, old={"--folds": "--n-folds", "-m": "--metric", "--seed": ""}, refused={"--epoch": "No."})
@click.option("--n-folds", type=int, default=5)
@click.option("--metric", multiple=True)
@click.argument("rest", nargs=-1)
def changed(n_folds: int, metric: tuple[str, ...], rest: tuple[str, ...]) -> None:
    click.echo(f"{n_folds} {metric} {rest}")


@pytest.mark.parametrize(
    ("words", "out", "notice"),
    [
        (["--n-folds", "3"], "3 () ()", ""),
        (["--folds", "3"], "3 () ()", "--folds is now --n-folds."),
        (["--folds=3"], "3 () ()", "--folds is now --n-folds."),
        (["-m", "dice", "-mhd95"], "5 ('dice', 'hd95') ()", "-m is now --metric.\n-m is now --metric."),
        (["--seed", "7", "x"], "5 () ('x',)", "--seed has no effect here and will be removed."),
        (["--seed=7"], "5 () ()", "--seed has no effect here and will be removed."),
        (["--", "--seed"], "5 () ('--seed',)", ""),
    ],
)
def test_an_old_spelling_works_and_says_the_new_one(words, out, notice, capsys):
    assert run(words, changed) == 0
    assert capsys.readouterr() == (f"{out}\n", f"{notice}\n" if notice else "")


def test_an_option_that_was_never_allowed_says_what_to_do(capsys):
    assert run(["--epoch", "3"], changed) == 2
    assert "--epoch: No." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("plan", "--folds", "--n-folds"),
        ("demo", "--cases", "--n-cases"),
        ("select", "-m", "--metric"),
        ("compare", "-m", "--margin"),
        ("compare", "--metric", "--margin"),
        ("evaluate", "--preset", "--metric-preset"),
    ],
)
def test_what_was_renamed(name, old, new):
    command = command_of(name)
    assert isinstance(command, Command) and command.old[old] == new
    assert any(new in option.opts for option in options_of(name))
    assert not any(old in option.opts for option in options_of(name))
