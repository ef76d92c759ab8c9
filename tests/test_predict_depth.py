"""How deep the network is below the command: a stranger who reads downwards must get there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest
from datasets import tiny_image, write_tiny
from models import write_work
from torch import Tensor

from segpipe.cli.main import run
from segpipe.networks.unet import UNet

MAX_FRAMES = 8  # functions of segpipe below the command, down to the one that calls the network


def frames_above(frame: FrameType | None) -> list[str]:
    """Functions of segpipe that wait for a call, the outermost first."""
    found = []
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "segpipe" in file.parts and "tests" not in file.parts:
            found.append(f"{file.parent.name}/{file.name}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize("more", [[], ["--save-probabilities", "--save-uncertainty"]])
def test_the_network_is_called_at_most_eight_functions_below_the_command(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    forward = UNet.forward

    def watched(self: UNet, x: Tensor) -> list[Tensor]:
        stacks.append(frames_above(sys._getframe(1)))
        return forward(self, x)

    monkeypatch.setattr(UNet, "forward", watched)
    work = write_work(tmp_path / "work")
    write_tiny(tmp_path / "in" / "t.nii.gz", tiny_image(1))
    given = ["predict", "-m", str(work), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert run([*given, *more]) == 0
    below = [
        stack[stack.index("cli/predict.py:command") + 1 :] for stack in stacks if "cli/predict.py:command" in stack
    ]
    predicting = [stack for stack in below if stack[-1].startswith("predict/sliding_window.py")]
    assert predicting, "no call of the network was seen"
    assert max(map(len, predicting)) <= MAX_FRAMES, "\n".join(max(predicting, key=len))
