"""core/lock.py"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.core.errors import UsageError
from segpipe.core.lock import only_process

_HOLD = """
import sys
from pathlib import Path
from segpipe.core.lock import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_until_it_dies(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another process works on it now"), only_process(tmp_path):
        pass
    other.kill()
    other.communicate()
    with only_process(tmp_path):
        pass
