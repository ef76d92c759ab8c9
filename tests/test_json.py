"""`--json`: what each command prints is what its records say, and docs/json.md is made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import write_nnunet
from make_json import documented_arguments, page, type_text
from stages import plan_data, train

from segpipe.cli.json_output import OUTPUTS
from segpipe.cli.main import COMMANDS, run
from segpipe.pipeline.requests import Machine
from segpipe.predict.outputs import LabelSize

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "training.epochs=1",
    "training.iterations_per_epoch=2",
    "training.validation_iterations=1",
    "training.snapshots=3",
)
SETS = "--set training.epochs=1 --set training.iterations_per_epoch=1 --set training.validation_iterations=1"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a work folder with both folds trained and one model packed."""
    here = tmp_path_factory.mktemp("json")
    write_nnunet(here / "data", ["p0", "p1", "p2"])
    plan_data(here / "data", here / "work", Machine("cpu", 1), n_folds=2, edits=QUICK)
    train(here / "work", "3d_fullres", None, Machine("cpu", 1))
    arms = "{a: {}, b: {set: {training.learning_rate: 0.02}}}"
    text = f"name: s\nquestion: q\ndata: data\narms: {arms}\nfolds: [0]\nseeds: [0]\nsteps: 2\n"
    (here / "study.yaml").write_text(text)
    return here


RUNS = [  # key of OUTPUTS, command
    ("check", "check data"),
    ("check", "check data --fix copy"),
    ("plan", "plan data -o planned --device cpu --no-report"),
    ("prepare", "prepare work"),
    ("prepare", "prepare work -c 2d --dry-run"),
    ("pretrain", "pretrain data -o pre --for work --device cpu --iterations 1"),
    ("pretrain --dry-run", "pretrain data -o none --for work --device cpu --dry-run"),
    ("train", "train work -f 0 --device cpu"),
    ("train --dry-run", "train work --dry-run --device cpu"),
    ("train --profile", f"train work --profile --device cpu {SETS}"),
    ("select", "select work --device cpu"),
    ("select --dry-run", "select work --dry-run"),
    ("predict", "predict -m work -i data/imagesTr -o masks --save-probabilities --device cpu"),
    ("predict --dry-run", "predict -m work -i data/imagesTr -o none --dry-run"),
    ("predict", "predict -m work -i data/imagesTr -o more -f 0 --save-probabilities --device cpu"),
    ("ensemble", "ensemble masks more -o mean"),
    ("pack", "pack work -o m.segpipe.zip"),
    ("export", "export work --to nnunet-plans plans.json"),
    ("evaluate", "evaluate -r data/labelsTr -p work/runs/3d_fullres/fold_0/validation --allow-missing -o s.csv"),
    ("evaluate --dry-run", "evaluate -r data/labelsTr -p data/labelsTr --dry-run"),
    ("compare", "compare a=work/runs/3d_fullres b=work/runs/3d_fullres"),
    ("study --dry-run", "study study.yaml -o study --dry-run"),
    ("size", "size work/runs/3d_fullres --half-width 0.05"),
    ("prune", "prune work -o small --ratio 0.5 -f 0 --candidates 1 --trial-iterations 1 --device cpu"),
    ("prune --dry-run", "prune work -o none --ratio 0.5 --device cpu --dry-run"),
    ("analyse trajectory", "analyse trajectory work -f 0"),
    ("analyse pruning", "analyse pruning work --combinations 2 --trial-iterations 1 --device cpu"),
    ("analyse pruning --dry-run", "analyse pruning work --device cpu --dry-run"),
    ("report", "report work"),
    ("info", "info work"),
    ("doctor", "doctor work"),
    ("run", f"run data -o whole -f 0 --device cpu {SETS}"),
    ("run --dry-run", "run data -o other --dry-run --device cpu"),
    ("any, on failure", "train none"),
]
NOT_RUN = {  # key: why
    "demo": "prints what `run` prints, by the same function, after minutes",
    "analyse sites": "needs cases of two sites; tests/test_sites.py",
    "analyse variance": "needs a network with batch norm; tests/test_variance.py",
    "import": "needs a model of nnU-Net; tests/test_nnunet_model.py",
    "study": "prints what `compare` prints and where it was written, after the trainings of a study",
    "view": "serves until it is stopped; tests of the viewer",
}


def require_parts(values: dict[str, object], key: str) -> None:
    """The keys are those of the records together, and each record takes its own."""
    left = dict(values)
    for kind in OUTPUTS[key]:
        own = {name: left.pop(name) for name in kind.model_fields if name in left}
        kind.parse(own, key)  # type: ignore[attr-defined]
    assert not left, f"{key}: not documented: {', '.join(left)}"


@pytest.mark.parametrize(("key", "command"), RUNS, ids=[command.replace(SETS, "…") for _, command in RUNS])
def test_what_is_printed_is_what_the_records_say(here, key, command, monkeypatch, capsys):
    monkeypatch.chdir(here)
    code = run([*command.split(), "--json"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1, "more than one line on stdout"
    require_parts(json.loads(out), key)
    assert code == (2 if key == "any, on failure" else 0)


def test_a_key_that_no_record_has_is_found():
    with pytest.raises(AssertionError, match="not documented: extra"):
        require_parts({"written": "x", "extra": 1}, "export")


def test_every_command_is_documented_and_run_or_says_why_not():
    assert {key.split()[0] for key in OUTPUTS} - {"any,"} == set(COMMANDS) - {"completion"}
    assert {key for key, _ in RUNS} | set(NOT_RUN) == set(OUTPUTS)


def test_the_page_is_made_of_the_records():
    """If not: python docs/make_json.py"""
    assert (ROOT / "docs" / "json.md").read_text(encoding="utf-8") == page()


def test_types_and_meanings_are_put_as_json_has_them():
    @dataclass
    class Example:
        """First.

        Args:
            a, b: Both.
            c: One,
                on two lines.
        """

    assert documented_arguments(Example.__doc__.replace("\n        ", "\n")) == {
        "a": "Both.",
        "b": "Both.",
        "c": "One, on two lines.",
    }
    assert type_text(tuple[str, ...] | None) == "`array[string, ...] \\| null`"
    assert type_text(dict[str, float]) == "`object[string, float]`"
    assert type_text(LabelSize) == "`LabelSize`"
