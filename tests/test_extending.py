"""docs/extending.md: every example, typed into a copy of segpipe and used there from check to evaluate."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import tiny_image, tiny_labels, write_tiny

from segpipe.compare.study_file import Study

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
_BLOCK = re.compile(
    r"(?:New file `(?P<new>[^`]+)`|in\s+`(?P<file>[^`]+)`,\s+(?P<side>above|below)\s+`(?P<anchor>[^`]+)`)"
    r"[^`]*(?:`[^`]+`[^`]*)*?\n\n```python\n(?P<code>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Typed:
    """A block of code of the page and where it goes."""

    path: str
    side: str
    anchor: str
    code: str

    def into(self, root: Path) -> None:
        """Type it; the anchor must be the beginning of exactly one line."""
        file = root / self.path
        if self.side == "new":
            assert not file.exists(), self.path
            file.write_text(self.code, encoding="utf-8")
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.startswith(self.anchor)]
        assert len(places) == 1, f"{self.path}: {self.anchor!r} begins {len(places)} lines"
        lines.insert(places[0] + (self.side == "below"), self.code)
        file.write_text("".join(lines), encoding="utf-8")


def blocks() -> list[Typed]:
    found = []
    for match in _BLOCK.finditer(TEXT):
        path, anchor = match["new"] or match["file"], match["anchor"] or ""
        found.append(Typed(path, match["side"] or "new", anchor, match["code"]))
    return found


def test_every_block_of_the_page_says_where_it_goes() -> None:
    assert len(blocks()) == TEXT.count("```python\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every example of the page in it."""
    root = tmp_path_factory.mktemp("copy")
    copy_package(root)
    for block in blocks():
        block.into(root)
    return root


def copy_package(root: Path) -> None:
    """Copy segpipe with the kernels that numba keeps beside it, which take a minute to compile."""
    shutil.copytree(ROOT / "segpipe", root / "segpipe", ignore=shutil.ignore_patterns("*.pyc"))


def run_there(root: Path, program: str, folder: Path) -> str:
    """Run a program with the copy in place of segpipe."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, text=True, capture_output=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


FROM_CHECK_TO_EVALUATE = """
import segpipe
from segpipe.cli.main import run

assert segpipe.__file__.startswith({root!r})
kind = "configurations.3d_fullres.network.kind=separable"
for command in (
    ["check", "data"],
    ["plan", "data", "-o", "work", "--preset", "cpu", "--folds", "2", "--set", kind,
     "--set", "normalisation.0={{scheme: robust}}"],
    ["train", "work", "-f", "0", "-c", "3d_fullres", "--iterations", "2", "--set", "training.optimizer=nadam",
     "--set", "training.loss={{terms: {{dice: 1, gce: 2}}, gce_power: 0.5}}",
     "--set", "training.validation_iterations=1",
     "--set", "training.augmentation.p_negative=1.0"],
    ["export", "work", "--to", "itksnap-labels", "labels.txt"],
    ["predict", "-m", "work", "-i", "unseen/p9.nii.gz", "-o", "masks"],
    ["evaluate", "-r", "reference", "-p", "masks", "-o", "scores.csv", "--metrics", "dice,f2"],
):
    code = run(command)
    assert code == 0, (command, code)
"""


def test_the_examples_work_together_from_check_to_evaluate(copy: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_tiny(tmp_path / "data" / f"p{number}" / "image.nii.gz", tiny_image(number))
        write_tiny(tmp_path / "data" / f"p{number}" / "label.nii.gz", tiny_labels())
    write_tiny(tmp_path / "unseen" / "p9.nii.gz", tiny_image(9))
    write_tiny(tmp_path / "reference" / "p9.nii.gz", tiny_labels())
    said = run_there(copy, FROM_CHECK_TO_EVALUATE.format(root=str(copy)), tmp_path)
    assert "one folder per case" in said
    plan = (tmp_path / "work" / "plan.yaml").read_text(encoding="utf-8")
    assert "kind: separable" in plan and "scheme: robust" in plan
    assert '1 255 0 0 1 1 1 "' in (tmp_path / "labels.txt").read_text(encoding="utf-8")
    assert ",f2," in (tmp_path / "scores.csv").read_text(encoding="utf-8")


def test_the_names_of_the_page_are_complete_hinted_and_costed(copy: Path, tmp_path: Path) -> None:
    program = """
import json
from segpipe.core.errors import PlanError
from segpipe.plan.edit import completions
from segpipe.plan.training import OPTIMIZERS
from segpipe.plan.training import Training
try:
    Training.parse({"optimizer": "nadm"}, "plan")
except PlanError as fault:
    hint = str(fault)
print(json.dumps([hint, completions("training.optimizer=na"), OPTIMIZERS["nadam"].states]))
"""
    hint, completed, states = json.loads(run_there(copy, program, tmp_path).splitlines()[-1])
    assert "did you mean 'nadam'?" in hint
    assert completed[0] == ["training.optimizer=nadam", "AdamW with Nesterov momentum"] and states == [2, 2]


def test_the_new_kind_works_in_2d_and_3d_at_odd_sizes(copy: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
from specs import unet
from segpipe.networks.build import build
for view, patch in (("2d", (2, 17, 32)), ("anisotropic", (9, 16, 32))):
    network = build(unet("separable", view, attention="se"), 2, 3)
    outputs = network(torch.randn(1, 2, *patch))
    assert outputs[0].shape == (1, 3, *patch)
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
"""
    run_there(copy, program, tmp_path)


def test_a_row_without_its_function_is_a_sentence_at_import(tmp_path: Path) -> None:
    root = tmp_path / "copy"
    copy_package(root)
    (row,) = [block for block in blocks() if block.path.endswith("plan/training.py")]
    row.into(root)
    done = subprocess.run(
        [sys.executable, "-c", "import segpipe.train.optim"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
    )
    assert "OPTIMIZERS of plan/training.py: 'nadam' has a row and no function" in done.stderr


def test_the_study_of_the_page_can_be_read(tmp_path: Path) -> None:
    (study,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "study.yaml").write_text(study, encoding="utf-8")
    assert set(Study.load(tmp_path / "study.yaml").arms) == {"plain", "separable"}
