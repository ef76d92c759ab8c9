"""Compiled loops: kept on disk, and who waits for them is told."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import numpy as np
from segpipe.evaluate.compiled import count_ones, first_use_text, kernel, leading_zeros, trailing_zeros

@kernel
def bits(word):
    return trailing_zeros(word), leading_zeros(word), count_ones(word)

print(first_use_text(bits))
assert bits(np.uint64(0b1010)) == (1, 60, 2)
assert bits(np.uint64(0)) == (64, 64, 0)
print(first_use_text(bits))
"""


def test_the_first_use_is_said_and_only_the_first(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    outputs = [
        subprocess.run(
            [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert outputs[0][0].startswith("compiling the surface metrics, once for this machine: up to")
    assert outputs[0][1] == outputs[1][0] == outputs[1][1] == "None"
