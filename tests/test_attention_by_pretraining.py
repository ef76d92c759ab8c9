"""The protocol of attention by pretraining, both stages at a tiny size on phantom scans, to a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from published import REPOSITORY

from plans import TINY
from segpipe.cli.main import run
from segpipe.data.phantom import make_phantom

STUDIES = REPOSITORY / "plans" / "studies"


def shrunk(name: str, folder: Path, **changed: object) -> Path:
    """The stored study with small networks and two steps in place of minutes."""
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text("utf-8"))
    study["base"]["set"] |= TINY
    del study["minutes"]
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({**study, "n_folds": 2, "folds": [0], "seeds": [0], "steps": 2, **changed}, sort_keys=False),
        "utf-8",
    )
    return path


def test_both_stages_run_to_a_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_phantom(tmp_path / "other", 2, 1)
    make_phantom(tmp_path / "data", 2, 0)
    for name, data, output in (
        ("attention_by_pretraining_first", "other", "first"),
        ("attention_by_pretraining", "data", "second"),
    ):
        path = shrunk(name, tmp_path)
        command = ["study", str(path), "-o", output, "--data", data, "--device", "cpu", "-j", "1", "--json"]
        assert run(command) == 0
        captured = capsys.readouterr()
    comparison = json.loads(captured.out)
    assert comparison["methods"] == ["plain", "se", "plain_pretrained", "se_pretrained"]
    rows = comparison["metrics"][0]["rows"]
    declared = {(row["baseline"], row["method"]) for row in rows if row["is_declared"]}
    assert declared == {("plain", "se"), ("plain", "plain_pretrained"), ("plain", "se_pretrained")}
    for arm in ("plain_pretrained", "se_pretrained"):
        assert f"starts from first/arms/{arm.removesuffix('_pretrained')}/seed_0" in captured.err
