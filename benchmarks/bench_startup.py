"""Seconds until `segpipe -h` answers: the median of five warm runs.

python benchmarks/bench_startup.py [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

_N_RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    script = shutil.which("segpipe", path=str(Path(sys.executable).parent))
    command = [script] if script else [sys.executable, "-m", "segpipe"]
    seconds_of(command)  # cold: files come from disk and are compiled
    runs = [seconds_of(command) for _ in range(_N_RUNS)]
    result = {"command": "segpipe -h", "median_seconds": round(statistics.median(runs), 3), "runs": len(runs)}
    result |= {"min_seconds": round(min(runs), 3), "max_seconds": round(max(runs), 3)}
    print(json.dumps(result) if as_json else f"segpipe -h: {result['median_seconds']} s (median of {len(runs)})")


def seconds_of(command: list[str]) -> float:
    """Measure the wall time of one `-h`."""
    started = time.perf_counter()
    subprocess.run([*command, "-h"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
