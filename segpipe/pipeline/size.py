"""`segpipe size`: patients that a goal needs, from the scores of a pilot; what more training patients would bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from segpipe.compare.align import align
from segpipe.compare.learning_curve import LearningCurve, curve_lines, learning_curve
from segpipe.compare.paired import mean_of_numbers
from segpipe.compare.results import Method, Source, read_methods, read_table
from segpipe.compare.sample_size import (
    MOST_PATIENTS,
    VarianceComponents,
    half_width,
    limits_of_variance,
    patients_for_difference,
    patients_for_half_width,
    patients_for_verdict,
    spread_of,
)
from segpipe.compare.study_file import STUDY_FILE, Study, StudyFolder
from segpipe.compare.verdict_sentences import quantity
from segpipe.core.errors import DataError, UsageError
from segpipe.core.records import Record, did_you_mean
from segpipe.core.text import count
from segpipe.evaluate.metrics import METRICS, Metric
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.summary import MEAN_LABEL, check_policy
from segpipe.pipeline.learning_curves import training_sizes
from segpipe.pipeline.requests import SizeRequest


class Pilot(Record):
    """Spread of the scores that a number of patients is computed from.

    Args:
        of: `scores`, or `differences` of two methods.
        n_cases, n_patients: Of the pilot.
        sd_patients, sd_cases: SD between patients and of the cases of one, in the metric's unit.
        icc: Intraclass correlation, 0 to 1; None if every patient has one case.
        half_width: Expected half-width of the 95 % interval of the mean with the pilot's patients.
    """

    of: str
    n_cases: int
    n_patients: int
    sd_patients: float
    sd_cases: float
    icc: float | None
    half_width: float


class Need(Record):
    """Patients that a goal needs.

    Args:
        goal: `half-width` or `difference`.
        value: In the metric's unit.
        power: Of finding the difference; None for a half-width.
        n_patients: Needed.
        low, high: Needed if the pilot's SD is at the end of its 95 % interval.
        n_for_verdict: Patients without a failure that "better" needs besides; None for a half-width.
    """

    goal: str
    value: float
    power: float | None
    n_patients: int
    low: int
    high: int
    n_for_verdict: int | None


class SizeReport(Record):
    """Answers of `segpipe size`.

    Args:
        metric, label, unit: Of all numbers; `(mean)` is the mean over labels.
        scans_of_patient: Planned cases of each patient.
        pilots: One for each goal; none where only a learning curve was asked for.
        needs: One for each goal.
        curve: None without `--more`.
    """

    metric: str
    label: str
    unit: str
    scans_of_patient: int
    pilots: tuple[Pilot, ...]
    needs: tuple[Need, ...]
    curve: LearningCurve | None


@dataclass(frozen=True)
class SizeJob:
    """The scores that a question is answered from.

    Args:
        request: As it was asked.
        methods: Pilot, or the arms of a learning curve.
        sizes: For an arm and a fold, the patients to train on; empty without a study.
    """

    request: SizeRequest
    methods: tuple[Method, ...]
    sizes: dict[str, tuple[int, ...]]


def resolve(request: SizeRequest) -> SizeJob:
    """Read the scores.

    Raises:
        UsageError: If metric, policy or label is unknown, or a learning curve is asked of something else than a study.
        DataError: If scores cannot be read.
    """
    if request.metric not in METRICS:
        raise UsageError(f"--metric {request.metric}: unknown metric.{did_you_mean(request.metric, METRICS)}")
    check_policy(request.policy)
    folder = Path(request.results[0])
    if request.n_more is not None:
        if METRICS[request.metric].kind == "difference":
            raise UsageError(
                f"--more: {request.metric} can be too large or too small; choose an overlap or a distance."
            )
        if not (folder / STUDY_FILE).is_file():
            raise UsageError(
                f"--more: {folder} is not the folder of a study. Run `segpipe study` with arms of 0.25, 0.5, 0.75 and "
                "1 training_patients."
            )
        study, home = Study.load(folder / STUDY_FILE), StudyFolder(folder)
        sizes = training_sizes(study, home)
        if not sizes:
            raise UsageError(
                f"--more: no arm of {folder} has fewer training_patients. Add arms of 0.25, 0.5 and 0.75 to the study."
            )
        return SizeJob(request, tuple(Method(arm, ScoreTable.load(home.scores(arm))) for arm in sizes), sizes)
    sources = [Source.parse(text) for text in request.results]
    if len(sources) == 2:
        return SizeJob(request, read_methods(sources), {})
    table = read_table(sources[0].path)
    if len(table.runs) > 1:
        raise DataError(f"{sources[0].path}: holds the runs {', '.join(table.runs)}, expected one. Choose one of them.")
    return SizeJob(request, (Method(sources[0].name or str(sources[0].path), table),), {})


def run(job: SizeJob) -> SizeReport:
    """Compute the numbers.

    Raises:
        UsageError: If there is no such label.
        DataError: If there are too few patients, sizes or folds, or methods have other cases.
    """
    request = job.request
    labels = (request.label,) if request.label else ()
    aligned = align(job.methods, request.metric, request.policy, labels=labels)
    values = mean_of_numbers(aligned.model_values, 2)
    pilots, needs = [], []
    if request.half_width is not None:
        spread = spread_of(values[-1], aligned.patients)
        pilots.append(_pilot("scores", spread, request.scans_of_patient))
        needs.append(_need("half-width", request.half_width, spread, request))
    if request.difference is not None:
        spread = spread_of(values[1] - values[0], aligned.patients)
        pilots.append(_pilot("differences", spread, request.scans_of_patient))
        needs.append(_need("difference", request.difference, spread, request))
    return SizeReport(
        metric=request.metric,
        label=request.label or (MEAN_LABEL if len(aligned.labels) > 1 else aligned.labels[0]),
        unit=METRICS[request.metric].unit,
        scans_of_patient=request.scans_of_patient,
        pilots=tuple(pilots),
        needs=tuple(needs),
        curve=learning_curve(aligned, job.sizes, request.n_more, request.seed) if request.n_more is not None else None,
    )


def _pilot(of: str, spread: VarianceComponents, scans: int) -> Pilot:
    return Pilot(
        of=of,
        n_cases=spread.n_cases,
        n_patients=spread.n_patients,
        sd_patients=spread.sd_patients,
        sd_cases=spread.sd_cases,
        icc=spread.icc,
        half_width=half_width(spread.variance(scans), spread.n_patients),
    )


def _need(goal: str, value: float, spread: VarianceComponents, request: SizeRequest) -> Need:
    variance = spread.variance(request.scans_of_patient)
    is_width = goal == "half-width"

    def patients(of: float) -> int:
        return patients_for_half_width(of, value) if is_width else patients_for_difference(of, value, request.power)

    low, high = limits_of_variance(variance, spread.n_patients)
    loss = request.worst_loss or (1.0 if METRICS[request.metric].kind == "overlap" else inf)
    return Need(
        goal=goal,
        value=value,
        power=None if is_width else request.power,
        n_patients=patients(variance),
        low=patients(low),
        high=patients(high),
        n_for_verdict=None if is_width else patients_for_verdict(value, loss),
    )


def size_lines(found: SizeReport) -> Iterator[str]:
    """Describe the answers in sentences."""
    metric = METRICS[found.metric]
    what = metric.title + (" (mean over labels)" if found.label == MEAN_LABEL else f" of {found.label}")
    for pilot, need in zip(found.pilots, found.needs, strict=True):
        yield from _need_lines(what, pilot, need, metric, found.scans_of_patient)
    if found.curve is not None:
        yield from curve_lines(what, found.curve, metric)


def _need_lines(what: str, pilot: Pilot, need: Need, metric: Metric, scans: int) -> Iterator[str]:
    of = f"{count(pilot.n_cases, 'case')} of {count(pilot.n_patients, 'patient')}"
    icc = (
        ""
        if pilot.icc is None
        else f", SD of a patient's cases {quantity(pilot.sd_cases, metric)}, ICC {pilot.icc:.2f}"
    )
    yield f"Pilot: {pilot.of} of {what}, {of}; SD between patients {quantity(pilot.sd_patients, metric)}{icc}."
    each = f", {count(scans, 'scan')} each" if scans > 1 else ""
    goal = f"For a 95 % interval of ±{quantity(need.value, metric)}"
    if need.power is not None:
        goal = f"To find a difference of {quantity(need.value, metric)} with a power of {100 * need.power:.0f} %"
    yield f"{goal}: {_patients(need.n_patients)}{each} ({need.low} to {_most(need.high)} by the uncertainty of the SD)."
    if need.n_for_verdict is not None and need.n_for_verdict > need.n_patients:
        yield (
            f"A verdict also needs {_patients(need.n_for_verdict)} without a failure: fewer cannot exclude failures "
            "that outweigh the difference."
        )


def _patients(n: int) -> str:
    return f"{_most(n)} patients"


def _most(n: int) -> str:
    return f"{n}" if n < MOST_PATIENTS else f"{MOST_PATIENTS} or more"
