"""cli/main.py: help at once, one exit code for each kind of fault."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from segpipe import __version__
from segpipe.cli.main import COMMANDS, EXAMPLES, root, run
from segpipe.cli.options import shared
from segpipe.core.errors import DataError, GeometryError, Interrupted, PlanError, ResourceError, SetupError

HEAVY = (
    "torch",
    "numpy",
    "nibabel",
    "SimpleITK",
    "scipy",
    "pydantic",
    "yaml",
    "matplotlib",
    "monai",
    "nnunetv2",
    "rich",
)


def segpipe(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "segpipe", *args], capture_output=True, text=True)


def test_alone_it_prints_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([flag]) == 0
    assert "Usage: segpipe" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from segpipe.cli.main import run; code = run(['-h'])\n"
        f"print('imported:', sorted(set({HEAVY!r}) & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "imported: [] 0\n"


def test_the_module_runs_as_the_command() -> None:
    done = segpipe("--version")
    assert (done.returncode, done.stdout) == (0, f"segpipe, version {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "-h"]) == 0
    assert f"Usage: segpipe {name}" in capsys.readouterr().out


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trian"]) == 2
    assert "no command 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--frobnicate"]) == 2
    assert "--frobnicate" in capsys.readouterr().err


FAULTS = [  # what a command raises, exit code, first words
    (PlanError("p"), 2, "Error: p"),
    (DataError("d"), 3, "Data error: d"),
    (GeometryError("g"), 3, "Data error: g"),
    (SetupError("s"), 4, "Setup error: s"),
    (ResourceError("r"), 5, "Memory or disk error: r"),
    (MemoryError(), 5, "Memory or disk error: ran out of memory"),
    (
        ImportError("x.so: failed to map segment: Cannot allocate memory"),
        5,
        "Memory or disk error: ran out of memory (x",
    ),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 5, "Memory or disk error: ran out of memory ("),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 5, "Memory or disk error: ran out of memory ("),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        5,
        "Memory or disk error: ran out of memory (",
    ),
    (OSError(12, "Cannot allocate memory", "/x"), 5, "Memory or disk error: ran out of memory ("),
    (DataError("label \x1b[2J of \u202ecase"), 3, "Data error: label \\x1b[2J of \\u202ecase"),
    (Interrupted("i"), 75, "Interrupted: i"),
    (KeyboardInterrupt(), 130, "Stopped. Rerun the same command to resume."),
    (PermissionError(13, "Permission denied", "/x"), 4, "Setup error: /x: permission denied. Change"),
    (OSError(28, "No space left on device", "/x"), 5, "Memory or disk error: /x: the disk is full"),
    (FileNotFoundError(2, "No such file or directory", "/x"), 2, "Error: /x: no such file or folder."),
    (IsADirectoryError(21, "Is a directory", "/x"), 2, "Error: /x: is a folder, expected a file."),
    (OSError(5, "Input/output error"), 4, "Setup error: the system refused a file (Input/output error)."),
]


def failing_with(fault: BaseException) -> click.Command:
    """A command with the shared options that meets a fault."""

    @click.command()
    @shared
    def failing(**_: object) -> None:
        raise fault

    return failing


@pytest.mark.parametrize(("fault", "code", "words"), FAULTS, ids=lambda v: type(v).__name__)
def test_each_kind_of_fault_has_its_exit_code(
    fault: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], failing_with(fault)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.strip().startswith(words)


JSON_FAULTS = [
    (DataError("case 3: no label."), '{"error": "DataError", "message": "case 3: no label.", "exit_code": 3}\n'),
    (
        KeyboardInterrupt(),
        '{"error": "Interrupted", "message": "Stopped. Rerun the same command to resume.", "exit_code": 130}\n',
    ),
    (click.UsageError("-f or -g"), '{"error": "UsageError", "message": "-f or -g", "exit_code": 2}\n'),
]


@pytest.mark.parametrize(("fault", "line"), JSON_FAULTS, ids=lambda v: type(v).__name__)
def test_with_json_a_fault_is_machine_readable_too(
    fault: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["--json"], failing_with(fault))
    assert capsys.readouterr().out == line


def test_an_error_of_the_program_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        run([], failing_with(ZeroDivisionError()))


BROKEN = """
import sys
from segpipe.cli import main
@main.click.command()
@main.click.option("--debug", is_flag=True)
def broken(debug):
    return 1 / 0
main.run.__defaults__ = (broken,)
main.main()
"""  # a command that meets an error of the program, in a process of its own, as `sys.excepthook` works there


def broken(tmp_path: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), **more}
    return subprocess.run(
        [sys.executable, "-c", BROKEN, *args], capture_output=True, text=True, env=environment, check=False
    )


def test_an_error_of_the_program_is_one_line_and_a_log(tmp_path: Path) -> None:
    done = broken(tmp_path)
    (log,) = (tmp_path / "segpipe").glob("error-*.log")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"Internal error of segpipe (ZeroDivisionError: division by zero). The traceback is in {log}; please report it "
        "with that text (it names your folders). --debug shows it here.\n"
    )
    text = log.read_text("utf-8")
    assert text.startswith(f"segpipe {__version__}, Python 3.") and text.endswith(
        "ZeroDivisionError: division by zero\n"
    )


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = broken(tmp_path, "--debug")
    assert "Traceback" in done.stderr and not list(tmp_path.iterdir())


def test_where_no_log_can_be_written_the_traceback_is_shown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    no_folder = str(tmp_path / "file")
    code = BROKEN.replace("main.main()", f"import tempfile; tempfile.tempdir = {no_folder!r}; main.main()")
    environment = {**os.environ, "XDG_STATE_HOME": no_folder}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "The traceback is above" in done.stderr


@pytest.mark.parametrize(("number", "code", "said"), [
    ("SIGTERM", 75, "Interrupted: stopped by SIGTERM. Rerun the same command to resume.\n"),
    ("SIGHUP", 75, "Interrupted: stopped by SIGHUP. Rerun the same command to resume.\n"),
    ("SIGUSR2", 75, "Interrupted: stopped by SIGUSR2. Rerun the same command to resume.\n"),
    ("SIGINT", 130, "Stopped. Rerun the same command to resume.\n"),
])  # fmt: skip
def test_a_signal_in_a_library_that_turns_it_into_an_error_of_its_own(number: str, code: int, said: str) -> None:
    # pydantic does so where the signal arrives while a record's class is made
    turned = f"""import signal
    try:
        signal.raise_signal(signal.{number})
    except BaseException as fault:
        raise TypeError(f"in a class: {{fault}}") from None"""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
    command = [sys.executable, "-c", heard + BROKEN.replace("return 1 / 0", turned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_reader_who_has_enough_is_no_fault() -> None:
    line = f"{sys.executable} -m segpipe completion bash | head -c 1; exit ${{PIPESTATUS[0]}}"
    many = f"for i in 1 2 3; do {line}; done"
    done = subprocess.run(["bash", "-c", many], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141) and done.stderr == ""


def test_a_terminal_without_the_signs_shows_question_marks() -> None:
    code = BROKEN.replace("return 1 / 0", "print('3 × 3')")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 ? 3\n", "")


@pytest.mark.parametrize(("name", "example"), [(n, e) for n, examples in EXAMPLES.items() for e in examples])
def test_an_example_is_a_right_command(name: str, example: str) -> None:
    words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"').split(" | ")[0].split(" > ")[0])
    assert words[:2] == ["segpipe", name] and len(f"  {example}") <= 78
    context = click.Context(root, info_name="segpipe", **root.context_settings)
    command, own = root.get_command(context, name), words[2:]
    if isinstance(command, click.Group):
        command, own = command.commands[own[0]], own[1:]
    assert command is not None
    with click.Context(command, context, info_name=name) as inside:
        given, left, _ = command.make_parser(inside).parse_args(own)
        assert not left
        for parameter in command.params:
            value = given.get(parameter.name)
            is_given = parameter.name in given and not parameter.value_is_missing(value)
            assert is_given or not parameter.required, parameter.name
            if isinstance(value, str | list | tuple) and not isinstance(parameter.type, click.Path):
                parameter.type_cast_value(inside, value)


@pytest.mark.parametrize("example", ["segpipe train WORK --fold 0", "segpipe train WORK --epochs no", "segpipe train"])
def test_a_wrong_example_is_found(example: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        test_an_example_is_a_right_command("train", example)


def test_every_command_has_examples_and_no_other() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


QUICK = {  # commands without --dry-run: why
    "analyse sites": "runs the network once over validation cases",
    "analyse trajectory": "reads weights",
    "analyse variance": "runs the network over a few batches, which are counted by an option",
    "check": "writes nothing unless asked to repair copies",
    "compare": "reads scores",
    "completion": "prints a script",
    "demo": "is as long as its help says, or --time-budget",
    "doctor": "writes nothing",
    "ensemble": "reads probabilities; `predict` with several configurations, which has it, does the work",
    "export": "copies weights",
    "import": "copies weights",
    "info": "writes nothing",
    "pack": "copies weights",
    "plan": "is itself what says what the rest will cost",
    "report": "reads results",
    "size": "reads scores",
    "view": "shows what is there",
}


def flat_commands() -> dict[str, click.Command]:
    """Every command by what is typed, those of a group instead of the group."""
    found = {}
    for name in COMMANDS:
        command = root.get_command(click.Context(root), name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {one}": own for one, own in inner.items()} or {name: command}
    return found


def test_every_command_says_what_it_would_do_or_is_quick() -> None:
    with_it = {name for name, own in flat_commands().items() if any("--dry-run" in p.opts for p in own.params)}
    assert not with_it & set(QUICK)
    assert with_it | set(QUICK) == set(flat_commands())


def test_help_of_pre_training_does_not_speak_of_folds(capsys: pytest.CaptureFixture[str]) -> None:
    """It has none: `--time-budget` of training, which they share, is another option."""
    assert run(["pretrain", "-h"]) == 0
    assert "fold" not in capsys.readouterr().out.replace("folder", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_eighty_columns_and_ends_with_the_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-len(EXAMPLES[name]) :] == [f"    {example}" for example in EXAMPLES[name]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_SEGPIPE_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "expected"), [("segpipe tra", "train"), ("segpipe train --ep", "--epochs")])
def test_commands_and_options_are_completed(typed: str, expected: str) -> None:
    asked = {
        "_SEGPIPE_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "segpipe"], capture_output=True, text=True, env={**os.environ, **asked}, check=True
    )
    assert done.stdout == f"plain,{expected}\n"
