"""Seconds from a fingerprint to a plan, compared with nnunetv2's planner on the same fingerprints in the same run.

    python benchmarks/bench_planner.py [CASE…]

The fingerprints are those of tests/golden/nnunet_plans.json. Reading files and importing modules does not count.
segpipe's time is the median of five calls of `make_plan`; nnunetv2's is one call, since it takes seconds to minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY)]

from nnunet_oracle import nnunet_plans  # noqa: E402
from test_plan_golden import GOLDEN, golden_fingerprint  # noqa: E402

from segpipe.bridge.nnunet_fingerprint import read_nnunet_dataset, read_nnunet_fingerprint  # noqa: E402
from segpipe.plan.make import make_plan  # noqa: E402

_PRESETS = ("nnunet", "resenc_l")
_N_CALLS = 5


def _ours(folder: Path, preset: str) -> float:
    dataset = read_nnunet_dataset(folder / "dataset.json")
    fingerprint = read_nnunet_fingerprint(folder / "dataset_fingerprint.json", dataset)
    seconds = []
    for _ in range(_N_CALLS):
        started = time.perf_counter()
        make_plan(fingerprint, dataset.labels, dataset.name, preset, "cuda")
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def main(names: list[str]) -> None:
    """Print a table."""
    print(f"{'fingerprint':<32}{'preset':<10}{'segpipe':>10}{'nnunetv2':>10}{'ratio':>8}")
    for name in names or list(GOLDEN):
        golden = GOLDEN[name]
        fingerprint, dataset = golden_fingerprint(golden), golden["dataset_json"]
        for preset in _PRESETS:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
                (folder / "dataset.json").write_text(json.dumps(dataset))
                ours = _ours(folder, preset)
                started = time.perf_counter()
                nnunet_plans(folder, fingerprint, dataset, preset, None, "cpu")
                theirs = time.perf_counter() - started
            print(f"{name:<32}{preset:<10}{ours:>8.3f} s{theirs:>8.2f} s{theirs / ours:>8.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
