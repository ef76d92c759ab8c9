"""What a reader should know first: how good the segmentation is, whether that can be trusted, where to look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segpipe.data.check import CheckReport
from segpipe.evaluate.intervals import ENOUGH_PATIENTS
from segpipe.evaluate.metrics import number_text
from segpipe.evaluate.scores import Score
from segpipe.evaluate.summary import SummaryRow
from segpipe.report.case_pictures import case_dice
from segpipe.report.distributions import volume_text
from segpipe.report.page import Point, VerdictBox
from segpipe.report.work_contents import Scored, WorkFolder

_MAX_NAMED = 3
_FAR_BELOW = 0.2  # of Dice below the median: a case that something went wrong with


def make_verdict(work: WorkFolder, scored: Sequence[Scored], alarms: Sequence[str]) -> VerdictBox:
    """Of the configuration with the highest mean Dice, among those with the most scored cases.

    Args:
        work: The folder.
        scored: Every configuration.
        alarms: Why scores must not be trusted; empty if nothing is known against them.
    """
    with_dice = [one for one in scored if one.dice is not None and one.dice.mean is not None]
    if not with_dice:
        return VerdictBox("Nothing is scored yet: there is no verdict on a segmentation.", _data(work.checked))
    best = max(with_dice, key=lambda one: (_n_cases(one), _mean_dice(one)))
    points = (
        *_trust(work, best, alarms),
        *_choice(best, with_dice),
        *_labels(best),
        *_empty(best),
        *_cases(best),
        *_volumes(best),
        *_data(work.checked),
    )
    name = f"{best.run.configuration}: " if len(scored) > 1 else ""
    return VerdictBox(name + _sentence(best, has_alarm=bool(alarms)), points)


def _mean_dice(one: Scored) -> float:
    assert one.dice is not None and one.dice.mean is not None
    return one.dice.mean


def _n_cases(one: Scored) -> int:
    assert one.table is not None
    return len(one.table.case_ids)


def _sentence(best: Scored, *, has_alarm: bool) -> str:
    dice = best.dice
    assert dice is not None
    if has_alarm:
        return "Do not trust these scores: cases of one patient were trained on and validated with."
    interval = _interval(dice)
    words = f"Mean Dice {_mean_dice(best):.3f}{f', 95 % interval {interval}' if interval else ''}, over {_count(best)}"
    return f"{words}, each segmented by a model that was not trained on it."


def _interval(row: SummaryRow) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{number_text(row.low, row.unit)} to {number_text(row.high, row.unit)}"


def _count(best: Scored) -> str:
    assert best.table is not None and best.dice is not None
    n_patients, n_labels = best.dice.n_patients, len(best.table.labels)
    return f"{_many(_n_cases(best), 'case')} of {_many(n_patients, 'patient')} and {_many(n_labels, 'label')}"


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _trust(work: WorkFolder, best: Scored, alarms: Sequence[str]) -> list[Point]:
    """Whether the numbers are what they seem to be."""
    assert best.dice is not None and best.table is not None
    points = []
    if alarms:
        points.append(Point("bad", "Scores", "Patients are on both sides of a fold: make new splits and train again."))
    elif work.splits is None or work.dataset is None:
        points.append(Point("look", "Scores", "Whether folds share patients is not known; see the notes below."))
    else:
        wanted = {case_id for fold in work.splits.folds for case_id in fold.validation}
        n_scored = len(wanted & set(best.table.case_ids))
        apart = "no patient is on both sides of a fold"
        if n_scored < len(wanted):
            text = f"{n_scored} of {len(wanted)} cases are scored so far; {apart}."
            points.append(Point("look", "Scores", text))
        else:
            points.append(Point("good", "Scores", f"All {len(wanted)} cases are scored; {apart}."))
    if best.dice.n_patients < ENOUGH_PATIENTS:
        few = f"{_many(best.dice.n_patients, 'patient')}, fewer than {ENOUGH_PATIENTS}"
        text = f"{few}: the true mean lies outside such an interval in more than 5 % of studies."
        points.append(Point("look", "Precision", text))
    return points


def _choice(best: Scored, scored: Sequence[Scored]) -> list[Point]:
    if len(scored) < 2:
        return []
    others = sorted((one for one in scored if one is not best), key=_mean_dice, reverse=True)
    fewer = {id(one): f" of {_many(_n_cases(one), 'case')}" for one in others if _n_cases(one) < _n_cases(best)}
    names = ", ".join(f"{one.run.configuration} {_mean_dice(one):.3f}{fewer.get(id(one), '')}" for one in others)
    among = " among those with the most scored cases" if fewer else ""
    text = f"{best.run.configuration} has the highest mean Dice{among} ({names}). Choosing the highest makes it look "
    return [Point("look", "Configuration", f"{text}better than it is; segpipe select scores the choice itself.")]


def _labels(best: Scored) -> list[Point]:
    rows = sorted((row.mean, row.label, _interval(row)) for row in best.dice_of_labels if row.mean is not None)
    if len(rows) < 2:
        return []
    (low, weakest, interval), (high, strongest, _) = rows[0], rows[-1]
    text = f"{weakest} is the weakest with a Dice of {low:.3f}{f' ({interval})' if interval else ''}"
    return [Point("note", "Labels", f"{text}; {strongest} the strongest with {high:.3f}.")]


def _empty(best: Scored) -> list[Point]:
    """Structures that one mask has and the other has not."""
    assert best.table is not None
    rows = [row for row in best.table.rows if row.metric == "dice"]
    n_there = sum(row.status in ("ok", "missed") for row in rows)
    words_of = {"missed": f"of {n_there} structures missed", "spurious": "predicted where there is none"}
    texts = [
        f"{len(found)} {words}: {_named(found)}"
        for status, words in words_of.items()
        if (found := [row for row in rows if row.status == status])
    ]
    if texts:
        return [Point("bad", "Structures", f"{'; '.join(texts)}.")]
    return [Point("good", "Structures", f"Each of {n_there} structures was found, and none where there is none.")]


def _named(rows: Sequence[Score]) -> str:
    more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
    return ", ".join(f"{row.label} in {row.case_id}" for row in rows[:_MAX_NAMED]) + more


def _cases(best: Scored) -> list[Point]:
    assert best.table is not None
    dice_of = case_dice(best.table)
    if len(dice_of) < 2:
        return []
    median = float(np.median(list(dice_of.values())))
    (worst, lowest), *_ = dice_of.items()
    n_far = sum(value < median - _FAR_BELOW for value in dice_of.values())
    text = f"{worst[1]} is the worst with a mean Dice of {lowest:.3f}; the median is {median:.3f}."
    if n_far:
        text += f" {_many(n_far, 'case')} lie{'s' * (n_far == 1)} more than {_FAR_BELOW} below it."
    return [Point("look" if n_far else "note", "Cases", text)]


def _volumes(best: Scored) -> list[Point]:
    """Labels that are too large or too small on average, beyond chance."""
    off = [
        one for one in best.volumes
        if one.bias.low is not None and one.bias.high is not None and one.bias.low * one.bias.high > 0
    ]  # fmt: skip
    if not best.volumes or all(one.bias.low is None for one in best.volumes):
        return []
    if not off:
        return [Point("good", "Volumes", "No label's volume is wrong on average by more than chance explains.")]
    texts = [f"{one.label} {volume_text(one.bias.value)}" for one in off[:_MAX_NAMED]]
    more = f" and {len(off) - _MAX_NAMED} more labels" if len(off) > _MAX_NAMED else ""
    return [Point("look", "Volumes", f"Predicted larger (+) or smaller (−) on average: {', '.join(texts)}{more}.")]


def _data(checked: CheckReport | None) -> tuple[Point, ...]:
    if checked is None:
        return (Point("look", "Data", "Not checked, or not that this folder knows of; see below."),)
    n_fatal = sum(one.severity == "fatal" for one in checked.faults)
    counts = ((n_fatal, "fatal fault"), (len(checked.faults) - n_fatal, "warning"))
    counted = f"{', '.join(_many(n, noun) for n, noun in counts if n)}; see below."
    if checked.faults:
        return (Point("bad" if n_fatal else "look", "Data", counted),)
    return (Point("good", "Data", "No fault was found in any file."),)
