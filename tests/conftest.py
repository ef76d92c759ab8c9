"""What every test gets: the shared data or a reason to skip, one thread, no window."""

from __future__ import annotations

import locale
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small arrays: threads cost more than they give
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SEGPIPE_SELF_TEST", "off")  # a process for each network; tests/test_self_test.py has it on

import pytest
from hypothesis import settings
from published import PUBLISHED, SHARED_DATA

_CHARACTERS = locale.setlocale(locale.LC_CTYPE)
settings.register_profile("segpipe", deadline=None, print_blob=True)  # a loaded machine is no failure
settings.load_profile("segpipe")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of published data that is not part of the repository; skips where it is absent."""
    missing = [name for name in PUBLISHED if not (SHARED_DATA / name).is_dir()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {SHARED_DATA} (SEGPIPE_SHARED names another folder)")
    return SHARED_DATA


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` run where there is one and say so elsewhere.

    A library that some tests load sets the process's characters to ASCII; later tests would read files so.
    """
    locale.setlocale(locale.LC_CTYPE, _CHARACTERS)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, none was found")
