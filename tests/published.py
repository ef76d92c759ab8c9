"""Where published data lie that the repository does not hold."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("SEGPIPE_SHARED", REPOSITORY.parent / "shared" / "data"))
PUBLISHED = ("acdc", "hippocampus", "odd_nifti", "sts_multi")
PUBLISHED_PLANS = SHARED_DATA.parent / "nnunet_msd"
