"""Compiled loops: kept on disk, and who waits for them is told."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import numpy as np
from segpipe.core.compiled import count_ones, first_use_text, kernel, leading_zeros, say_first_use, trailing_zeros

@kernel
def bits(word):
    return trailing_zeros(word), leading_zeros(word), count_ones(word)

@kernel
def same_bits(word):
    return word

print(first_use_text(bits))
say_first_use(bits)
say_first_use(same_bits)
assert bits(np.uint64(0b1010)) == (1, 60, 2)
assert bits(np.uint64(0)) == (64, 64, 0)
print(first_use_text(bits))
"""


def test_the_first_use_is_said_and_only_the_first(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    runs = [
        subprocess.run(
            [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    said = [run.stderr.splitlines() for run in runs]
    assert [len(lines) for lines in said] == [1, 1]  # one line for two kernels; the second is not on disk yet
    outputs = [run.stdout.splitlines() for run in runs]
    assert outputs[0][0].startswith("compiling the metrics, once on this machine: up to")
    assert outputs[0][1] == outputs[1][0] == outputs[1][1] == "None"
