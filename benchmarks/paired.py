"""Two tables of scores of the same cases, case by case.

    python benchmarks/paired.py A/scores.csv B/scores.csv [METRIC]

Prints, for each label, the mean of A minus B with its 95 % interval (BCa bootstrap over patients) and Wilcoxon's p. It
is a statement on these two trained models, not on the methods: that needs several seeds and folds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from segpipe.evaluate.intervals import mean_with_interval
from segpipe.evaluate.scores import ScoreTable


def values_of(file: Path, metric: str) -> dict[tuple[str, str], tuple[str, float]]:
    """Patient and value by case and label."""
    rows = ScoreTable.load(file).rows
    return {(r.case_id, r.label): (r.patient_id, r.value) for r in rows if r.metric == metric}


def main(first: Path, second: Path, metric: str = "dice") -> None:
    """Print the comparison."""
    a, b = values_of(first, metric), values_of(second, metric)
    if a.keys() != b.keys():
        sys.exit(
            f"not the same cases and labels: {len(a.keys() - b.keys())} only in A, {len(b.keys() - a.keys())} only in B"
        )
    for label in sorted({label for _, label in a}):
        keys = [key for key in a if key[1] == label]
        difference = np.array([a[key][1] - b[key][1] for key in keys])
        finite = np.isfinite(difference)
        patients = np.unique([a[key][0] for key in keys], return_inverse=True)[1]
        found = mean_with_interval(np.where(finite, difference, np.nan)[:, None], patients)
        means = [np.mean([table[key][1] for key in keys]) for table in (a, b)]
        print(
            f"{metric} {label}: A {means[0]:.4f}, B {means[1]:.4f}, A - B {found.mean:+.4f} "
            f"[{found.low:+.4f}, {found.high:+.4f}], Wilcoxon p {wilcoxon(difference[finite]).pvalue:.1e}, "
            f"{int(finite.sum())} of {len(keys)} cases"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
