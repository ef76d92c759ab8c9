"""The verdict at the top of a report: how good the segmentation is, whether to trust that, where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from segpipe.core.text import count
from segpipe.data.check import CheckReport
from segpipe.evaluate.ledger import ledger_sentences, looks_at
from segpipe.evaluate.metrics import number_text
from segpipe.evaluate.scores import Score
from segpipe.evaluate.summary import FAILED_DICE, SummaryRow, failure_text
from segpipe.report.charts import bias_text
from segpipe.report.methods_text import training_length
from segpipe.report.overlay_pictures import case_dice
from segpipe.report.page import Point, VerdictBox
from segpipe.report.work_contents import Scored, WorkFolder

_MAX_NAMED = 3
_FEW_STEPS = 250  # one epoch of nnU-Net
_LOW_DICE = 0.5  # below, masks share less than a third of what they cover together
_FAIR_DICE = 0.7  # usual limit of a good overlap (Zijdenbos et al. 1994); small structures rarely reach it
_MANY_FAILED = 0.25  # of the structures
_FAR_BELOW = 0.2  # of Dice below the median: a case that something went wrong with


def make_verdict(work: WorkFolder, scored: Sequence[Scored], alarms: Sequence[str]) -> VerdictBox:
    """Judge the configuration with the highest mean Dice among those with the most scored cases.

    Args:
        work: The folder.
        scored: Every configuration.
        alarms: Why scores must not be trusted; empty if nothing is known against them.
    """
    with_dice = _with_dice(scored)
    best = best_of(scored)
    if best is None:
        return VerdictBox("No scores yet, so there is no verdict.", _data(work.checked))
    overlap = _overlap(best)
    points = (
        *_trust(work, best, alarms),
        *(() if alarms else (overlap,)),
        *_choice(best, with_dice),
        *_training(work, best),
        *_labels(best),
        *_structures(best),
        *_cases(best),
        *_volumes(best),
        *_ledger(work),
        *_data(work.checked),
    )
    if alarms or overlap.kind == "bad":  # nothing in the box may look like praise of such scores
        points = tuple(replace(point, kind="note") if point.kind == "good" else point for point in points)
    name = f"{best.run.configuration}: " if len(scored) > 1 else ""
    return VerdictBox(name + _sentence(best, has_alarm=bool(alarms), fails=overlap.kind == "bad"), points)


def best_of(scored: Sequence[Scored]) -> Scored | None:
    """The configuration that is reported: the highest mean Dice among those with the most scored cases."""
    return max(_with_dice(scored), key=lambda one: (_n_cases(one), _mean_dice(one)), default=None)


def _with_dice(scored: Sequence[Scored]) -> list[Scored]:
    return [one for one in scored if one.dice is not None and one.dice.mean is not None]


def _ledger(work: WorkFolder) -> list[Point]:
    """Say how often the folds and the test set were scored: scores that are looked at often are chosen among."""
    state = work.ledger
    if state is None:
        return []
    is_chosen = looks_at(state.scorings, "test set").n_masks > 1
    kind: Literal["bad", "look", "note"] = "bad" if state.faults else "look" if is_chosen else "note"
    sentences = ledger_sentences(state)
    return [Point(kind, "Ledger", " ".join(sentences))] if sentences else []


def _mean_dice(one: Scored) -> float:
    assert one.dice is not None and one.dice.mean is not None
    return one.dice.mean


def _n_cases(one: Scored) -> int:
    assert one.table is not None
    return len(one.table.case_ids)


def _overlap(best: Scored) -> Point:
    """Judge the mean Dice and the share of structures that were missed, invented or hardly overlap."""
    assert best.dice is not None
    dice, row = _mean_dice(best), best.dice
    n_all = row.n_ok + row.n_missed + row.n_spurious
    text = f"Mean Dice {dice:.3f}, {row.n_failures} of {count(n_all, 'structure')} failed."
    if dice < _LOW_DICE or row.n_failures > _MANY_FAILED * n_all:
        return Point("bad", "Overlap", f"{text} Train longer, or check images and labels.")
    if dice < _FAIR_DICE:
        return Point("look", "Overlap", f"{text} Compare with what two raters reach on these structures.")
    return Point("look" if row.n_failures else "good", "Overlap", text)


def _sentence(best: Scored, *, has_alarm: bool, fails: bool) -> str:
    dice = best.dice
    assert dice is not None
    if has_alarm:
        return "Do not trust these scores: some patients have cases in both training and validation."
    interval = _interval(dice)
    words = f"Mean Dice {_mean_dice(best):.3f}{f', 95 % interval {interval}' if interval else ''}, over {_count(best)}"
    words = f"This model fails: {words[0].lower()}{words[1:]}" if fails else words
    return f"{words}. Each case was segmented by a model that was not trained on it."


def _interval(row: SummaryRow) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{number_text(row.low, row.unit)} to {number_text(row.high, row.unit)}"


def _count(best: Scored) -> str:
    assert best.table is not None and best.dice is not None
    n_patients, n_labels = best.dice.n_patients, len(best.table.labels)
    return f"{count(_n_cases(best), 'case')} of {count(n_patients, 'patient')} and {count(n_labels, 'label')}"


def _trust(work: WorkFolder, best: Scored, alarms: Sequence[str]) -> list[Point]:
    """Say whether the numbers are what they seem to be."""
    assert best.dice is not None and best.table is not None
    points = []
    if alarms:
        points.append(
            Point(
                "bad", "Scores", "Some patients are in both training and validation. Make new splits and train again."
            )
        )
    elif work.splits is None or work.dataset is None:
        points.append(Point("look", "Scores", "Unknown whether folds share patients; see the notes below."))
    else:
        wanted = {case_id for fold in work.splits.folds for case_id in fold.validation}
        n_scored = len(wanted & set(best.table.case_ids))
        apart = "No patient is in both training and validation of a fold."
        if n_scored < len(wanted):
            text = f"{n_scored} of {count(len(wanted), 'case is', 'cases are')} scored so far. {apart}"
            points.append(Point("look", "Scores", text))
        else:
            points.append(Point("good", "Scores", f"All {count(len(wanted), 'case is', 'cases are')} scored. {apart}"))
    if best.dice.note:
        points.append(Point("look", "Precision", f"{best.dice.note[0].upper()}{best.dice.note[1:]}."))
    return points


def _choice(best: Scored, scored: Sequence[Scored]) -> list[Point]:
    if len(scored) < 2:
        return []
    others = sorted((one for one in scored if one is not best), key=_mean_dice, reverse=True)
    fewer = {id(one): f" of {count(_n_cases(one), 'case')}" for one in others if _n_cases(one) < _n_cases(best)}
    names = ", ".join(f"{one.run.configuration} {_mean_dice(one):.3f}{fewer.get(id(one), '')}" for one in others)
    among = " among those with the most scored cases" if fewer else ""
    text = f"{best.run.configuration} has the highest mean Dice{among} ({names}). Picking the highest score is "
    return [Point("look", "Configuration", f"{text}optimistic; `segpipe select` scores the choice itself.")]


def _labels(best: Scored) -> list[Point]:
    rows = sorted((row.mean, row.label, _interval(row)) for row in best.dice_of_labels if row.mean is not None)
    if len(rows) < 2:
        return []
    (low, weakest, interval), (high, strongest, _) = rows[0], rows[-1]
    text = f"Lowest Dice: {weakest}, {low:.3f}{f' ({interval})' if interval else ''}"
    return [Point("note", "Labels", f"{text}. Highest: {strongest}, {high:.3f}.")]


def _training(work: WorkFolder, best: Scored) -> list[Point]:
    """Say how many steps were taken; scores of folds that were hardly trained say little about the method."""
    steps = {fold.name: fold.n_steps for fold in best.run.folds if fold.n_steps and fold.name != "all"}
    if not steps:
        return []
    length = ", ".join(training_length(work, best.run))
    few = {name: n for name, n in steps.items() if n < _FEW_STEPS}
    if not few:
        return [Point("note", "Training", f"{length}.")]
    folds = "all folds" if len(few) == len(steps) > 1 else f"fold{'s' * (len(few) > 1)} {', '.join(few)}"
    text = f"{length}. Very short in {folds}: scores may improve a lot with longer training."
    return [Point("look", "Training", text)]


def _structures(best: Scored) -> list[Point]:
    """Name the structures that one mask has and the other lacks, and those that hardly overlap."""
    assert best.table is not None
    rows = [row for row in best.table.rows if row.metric == "dice"]
    n_there = sum(row.status in ("ok", "missed") for row in rows)
    missed, spurious = ([row for row in rows if row.status == status] for status in ("missed", "spurious"))
    poor = [row for row in rows if row.status == "ok" and row.value < FAILED_DICE]
    texts = []
    if missed:
        texts.append(f"{len(missed)} of {count(n_there, 'structure')} missed: {_names(missed)}")
    if poor:
        texts.append(f"{len(poor)} of {count(n_there, 'structure')} with a Dice below {FAILED_DICE}: {_names(poor)}")
    if spurious:
        texts.append(f"{count(len(spurious), 'false alarm')} where there is none: {_names(spurious)}")
    assert best.dice is not None
    rate = f"{failure_text(best.dice)}.".capitalize()
    if texts:
        return [Point("bad", "Structures", f"{'; '.join(texts)}. {rate}")]
    found = "The only structure was found" if n_there == 1 else f"All {n_there} structures were found"
    return [Point("good", "Structures", f"{found}, with no false alarm. {rate}")]


def _names(rows: Sequence[Score]) -> str:
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
    text = f"Lowest mean Dice: {worst[1]}, {lowest:.3f}; the median is {median:.3f}."
    if n_far:
        text += f" {count(n_far, 'case is', 'cases are')} more than {_FAR_BELOW} below it."
    return [Point("look" if n_far else "note", "Cases", text)]


def _volumes(best: Scored) -> list[Point]:
    """Name the labels that are too large or too small on average, beyond chance."""
    off = [
        one
        for one in best.volumes
        if one.bias.low is not None and one.bias.high is not None and one.bias.low * one.bias.high > 0
    ]
    if not best.volumes or all(one.bias.low is None for one in best.volumes):
        return []
    if not off:
        return [Point("good", "Volumes", "No label is larger or smaller on average beyond chance.")]
    texts = [f"{one.label} {bias_text(one, best.volumes)}" for one in off[:_MAX_NAMED]]
    more = f" and {len(off) - _MAX_NAMED} more labels" if len(off) > _MAX_NAMED else ""
    return [Point("look", "Volumes", f"Predicted larger (+) or smaller (−) on average: {', '.join(texts)}{more}.")]


def _data(checked: CheckReport | None) -> tuple[Point, ...]:
    if checked is None:
        return (Point("look", "Data", "Not checked in this folder; see below."),)
    n_fatal = sum(one.severity == "fatal" for one in checked.faults)
    counts = ((n_fatal, "fatal fault"), (len(checked.faults) - n_fatal, "warning"))
    counted = f"{', '.join(count(n, noun) for n, noun in counts if n)}; see below."
    if checked.faults:
        return (Point("bad" if n_fatal else "look", "Data", counted),)
    return (Point("good", "Data", "No faults found in any file."),)
