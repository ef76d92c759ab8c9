"""Does the loss just after pruning say which pruned network becomes best?

Source:
    Is Oracle Pruning the True Oracle?, 2024, arXiv 2412.00143. The threshold of 0.2 is theirs; the interval is that
    of Fieller, Hartley and Pearson 1957, Tests for rank correlation coefficients, Biometrika 44.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from scipy.stats import kendalltau, norm

from segpipe.core.records import Record, finite_or_none
from segpipe.core.seeds import seed_for
from segpipe.networks.pruning import ChannelGroup, choose_dropped

WEAK_TAU = 0.2  # the authors call the loss before retraining invalid as a criterion up to this |τ|
_FIELLER = (0.437, 4)  # variance of atanh τ is the first over n minus the second
_MOST_REPEATS = 100


class RankCorrelation(Record):
    """Kendall's τ-b.

    Args:
        tau: −1 to 1; null if one of the two is the same in all pairs.
        low, high: 95 % interval; null for fewer than 5 pairs.
        p: Of no association; null if τ is.
        n: Number of pairs.
    """

    tau: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Correlate two measurements of the same things by their order.

    Args:
        first, second: As long as each other, finite.

    Returns:
        τ, and its interval by Fieller's normal approximation of atanh τ, which is exact for neither small numbers of
        pairs nor ties; at τ = ±1 it has no width.
    """
    n = len(first)
    found = kendalltau(first, second) if n > 1 else None
    tau = None if found is None else finite_or_none(float(found.statistic))
    if found is None or tau is None:
        return RankCorrelation(tau=None, low=None, high=None, p=None, n=n)
    low = high = None
    if n > _FIELLER[1]:
        half = float(norm.ppf(0.975)) * math.sqrt(_FIELLER[0] / (n - _FIELLER[1]))
        centre = math.atanh(max(-1.0, min(1.0, tau))) if abs(tau) < 1 else math.copysign(math.inf, tau)
        low, high = math.tanh(centre - half), math.tanh(centre + half)
    return RankCorrelation(tau=tau, low=low, high=high, p=finite_or_none(float(found.pvalue)), n=n)


def verdict(found: RankCorrelation) -> str:
    """Say what a correlation of order by loss before and score after retraining means."""
    if found.tau is None:
        return "No correlation: all losses or all scores are equal, or fewer than 2 combinations are measured."
    interval = "" if found.low is None else f" (95 % interval {found.low:.2f} to {found.high:.2f})"
    text = f"Kendall's τ between low loss as pruned and score after retraining is {found.tau:.2f}{interval}. "
    if abs(found.tau) <= WEAK_TAU:
        return text + (
            "At |τ| ≤ 0.2 the loss just after pruning does not tell which channels to remove: choose by retraining."
        )
    if found.tau < 0:
        return text + "The channels that look best just after pruning end worse: choose by retraining."
    if found.low is None or found.low <= WEAK_TAU:
        return text + "The interval reaches values of 0.2 and less: measure more combinations before trusting the loss."
    return text + "Here the loss just after pruning tells something about the end; it may not elsewhere."


def sample_combinations(
    groups: Sequence[ChannelGroup], ratios: Sequence[float], n_combinations: int, seed: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Draw different sets of channels to remove, each as likely.

    Args:
        groups: Of `networks.pruning.channel_groups`.
        ratios: Share of channels that goes, for each stage.
        n_combinations: Most sets; there are fewer if a network is so small that they repeat.
        seed: Set k is a function of the seed and the sets before it.
    """
    seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
    for place in range(n_combinations + _MOST_REPEATS):
        dropped = choose_dropped(groups, {}, ratios, "random", seed_for(seed, place))
        key = tuple(dropped.items())
        if key not in seen:
            seen.add(key)
            yield dropped
        if len(seen) == n_combinations:
            return
