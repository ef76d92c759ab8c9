"""Score a folder of masks against a folder of references: `segpipe evaluate` and `segpipe.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.foreseen import Foreseen, free_disk_bytes
from segpipe.core.labels import LabelSet
from segpipe.core.machine import free_bytes
from segpipe.core.progress import say
from segpipe.core.records import did_you_mean
from segpipe.core.text import count
from segpipe.data.layouts.manifest import manifest_in
from segpipe.data.load import find_layout
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.groups import SITE, CaseTable, GroupGap, GroupRow, compare_groups, read_cases, refuse_bad_groups
from segpipe.evaluate.ledger import (
    LEDGER_FILE,
    append_scoring,
    event_of,
    find_ledger,
    ledger_sentences,
    read_ledger,
    scoring_of,
)
from segpipe.evaluate.metrics import DEFAULT_METRICS, METRICS, parse_metrics
from segpipe.evaluate.pairs import find_pairs, labels_of, refuse_missing, with_probabilities
from segpipe.evaluate.scoring import FolderScores, MaskPair, score_pairs
from segpipe.evaluate.summary import DEFAULT_POLICY, SummaryRow, check_policy, summarise

_ROW_BYTES = 100  # of a table of scores


@dataclass(frozen=True)
class EvaluateRequest:
    """Masks to score.

    Args:
        reference: Folder of masks, a dataset, or one file.
        predictions: Folder of masks with the same names, in any format, or one file.
        n_workers: Number of parallel workers.
        seed: Seed of the bootstrap.
        labels: `1,2`, `organ,tumour`, `a=1,region=1+2` or a .json file; None: those of the references.
        metrics: `all`, or names such as `dice,hd95`; None: those of the preset, or of whole masks.
        preset: A name of `METRIC_SETS`.
        policy: How empty masks count; None: the policy of the preset.
        nsd_tolerance_mm: One for all labels, or by name; None: no NSD.
        allow_missing: Score the other cases where references lack a prediction.
        ledger: Work folder whose ledger notes this scoring; None: the one that the masks lie in, if any.
        by: Columns to group cases by: of the manifest, of `cases`, or `site` of a dataset.
        cases: CSV with `case_id`, these columns, and `patient_id` where known, which then says whose cases are one
            patient's; None for the manifest of the references.

    Raises:
        UsageError: If a metric, preset or policy is unknown, or there would be no worker.
    """

    reference: Path
    predictions: Path
    n_workers: int
    seed: int = 0
    labels: str | None = None
    metrics: str | None = None
    preset: str | None = None
    policy: str | None = None
    nsd_tolerance_mm: float | Mapping[str, float] | None = None
    allow_missing: bool = False
    ledger: Path | None = None
    by: tuple[str, ...] = ()
    cases: Path | None = None

    def __post_init__(self) -> None:
        if self.n_workers < 1:
            raise UsageError(f"-j {self.n_workers}: expected 1 worker or more.")
        check_policy(self.chosen_policy)

    @property
    def chosen_policy(self) -> str:
        """The policy for empty masks."""
        return self.policy or chosen_metrics(self.metrics, self.preset)[1]


@dataclass(frozen=True)
class EvaluateJob:
    """An evaluation that was checked.

    Args:
        request: As it was asked.
        pairs: Masks with their references.
        labels: What is scored in each.
        settings: The metrics and what they need.
        cases: Groups of the cases.
    """

    request: EvaluateRequest
    pairs: tuple[MaskPair, ...]
    labels: LabelSet
    settings: ScoreSettings
    cases: CaseTable


@dataclass(frozen=True)
class Evaluation:
    """Scores of masks and their means.

    Args:
        scores: A row for each case, label and metric; and of lesion metrics one for each lesion.
        summary: Means over cases with 95 % intervals over patients.
        policy: What empty masks counted.
        metrics: Requested names; calibration among `all` is left out where there are no probabilities.
        n_cases: Pairs of masks.
        groups: Means of each group of cases.
        gaps: The largest differences between groups.
        notes: Lines for the user, e.g. from where the labels are; empty where they were printed.
    """

    scores: FolderScores
    summary: tuple[SummaryRow, ...]
    policy: str
    metrics: tuple[str, ...]
    n_cases: int
    groups: tuple[GroupRow, ...] = ()
    gaps: tuple[GroupGap, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(request: EvaluateRequest) -> EvaluateJob:
    """Pair masks with references and find their labels.

    Raises:
        UsageError: If a label or the ledger's folder is unknown, or masks fit no reference.
        DataError: If masks are missing, or a file with labels cannot be read.
    """
    names, _ = chosen_metrics(request.metrics, request.preset)
    if request.ledger is not None and not request.ledger.is_dir():
        raise UsageError(f"--ledger {request.ledger}: no such folder. Give the work folder of the model.")
    folder = request.predictions.resolve()
    pairing = find_pairs(request.reference, request.predictions, (folder if folder.is_dir() else folder.parent).name)
    refuse_missing(pairing, request.allow_missing)
    cases = cases_of(request.reference, request.by, request.cases)
    if request.cases is not None and cases.patients is not None:
        pairing = pairing.with_patients(cases.patients, request.cases)
    refuse_bad_groups(cases, [pair.origin.case_id for pair in pairing.pairs])
    labels, labels_from = labels_of(request.labels, pairing, request.n_workers)
    say(f"labels: {', '.join(labels.names[:8])}{', …' * (len(labels.names) > 8)} (from {labels_from})")
    say(f"patients: {pairing.patients_from}")
    _check_tolerance(request.nsd_tolerance_mm, labels.names)
    settings = ScoreSettings(names, request.nsd_tolerance_mm, only_known_values=request.labels is None)
    pairs, settings = with_probabilities(pairing.pairs, settings, is_required=request.metrics != "all")
    return EvaluateJob(request, tuple(pairs), labels, settings, cases)


def run(job: EvaluateJob) -> Evaluation:
    """Score masks against references.

    Raises:
        DataError: If masks cannot be read, or do not lie on the grid of their reference.
    """
    request, pairs = job.request, job.pairs
    names, _ = chosen_metrics(request.metrics, request.preset)
    scores = score_pairs(pairs, job.labels, request.n_workers, job.settings)
    if (work := request.ledger or find_ledger(request.predictions)) is not None:
        append_scoring(work, scoring_of(event_of(request.predictions), str(request.predictions), pairs, scores.table))
        say(" ".join(ledger_sentences(read_ledger(work / LEDGER_FILE), scores.table.case_ids)))
    policy, seed = request.chosen_policy, request.seed
    groups, gaps = compare_groups(scores.table, job.cases, policy, seed)
    return Evaluation(scores, summarise(scores.table, policy, seed), policy, names, len(pairs), groups, gaps)


def estimate(job: EvaluateJob) -> Foreseen:
    """Count what will be scored; masks are not read, so time and memory are not known."""
    labels, metrics = count(len(job.labels.names), "label"), count(len(job.settings.metrics), "metric")
    n_rows = len(job.pairs) * len(job.labels.names) * len(job.settings.metrics)
    return Foreseen(
        command="evaluate",
        todo=f"{count(len(job.pairs), 'case')}, {labels}, {metrics}, policy {job.request.chosen_policy}",
        seconds=None,
        seconds_from="it depends on the size of the masks, which are not read here",
        disk_bytes=n_rows * _ROW_BYTES,
        free_disk_bytes=free_disk_bytes(Path()),
        memory_bytes=0,
        free_memory_bytes=free_bytes(),
        memory_of="CPU",
    )


def cases_of(reference: Path, columns: Sequence[str], table: Path | None) -> CaseTable:
    """Groups of cases from a table, from the manifest of a dataset, or by site from any dataset.

    Raises:
        UsageError: If no table has such a column.
        DataError: If the table cannot be read.
    """
    if not columns and table is None:
        return CaseTable(None, {})
    table = table or manifest_in(reference)
    if table is not None:
        return read_cases(table, columns)
    found = find_layout(reference) if tuple(columns) == (SITE,) else None
    if found is None:
        raise UsageError(f"--by {columns[0]}: {reference} has no manifest with columns. Name a CSV file with --cases.")
    return CaseTable(None, {SITE: {case.case_id: case.site or "" for case in found.cases}})


def _check_tolerance(tolerance: float | Mapping[str, float] | None, names: Sequence[str]) -> None:
    unknown = sorted(set(tolerance) - set(names)) if isinstance(tolerance, Mapping) else []
    if unknown:
        raise UsageError(f"--nsd-tolerance: {unknown[0]!r} is not a label.{did_you_mean(unknown[0], list(names))}")


@dataclass(frozen=True)
class MetricSet:
    """Metrics in display order, and the policy for empty masks that goes with them."""

    metrics: tuple[str, ...]
    policy: str = DEFAULT_POLICY


def _brats(rule: str) -> MetricSet:
    shown = [f"lesion_{name}_{rule}" for name in ("dice", "hd95", "sensitivity", "precision")]
    return MetricSet((*shown, "dice", "hd95"), policy="brats")


_LESION = tuple(f"lesion_{name}" for name in ("f1", "sensitivity", "precision", "dice", "hd95"))
_QUALITY = tuple(f"lesion_{name}_iou50" for name in ("f1", "sq", "pq"))  # f1 is the recognition quality
METRIC_SETS: dict[str, MetricSet] = {
    "brats": _brats("brats"),
    "brats_men": _brats("brats_men"),
    "brats_met": _brats("brats_met"),
    "lesions": MetricSet(("dice", *_LESION, *_QUALITY)),
    "tubes": MetricSet(("cldice", "cldice_sensitivity", "cldice_precision", "dice", "nsd", "hd95")),
    "calibration": MetricSet(("dice", *(name for name, metric in METRICS.items() if metric.group == "calibration"))),
}


def chosen_metrics(metrics: str | None, preset: str | None) -> tuple[tuple[str, ...], str]:
    """The metrics that two options select together, and the policy that goes with them.

    Args:
        metrics: Names as `parse_metrics` reads them; None if not given.
        preset: A name of `METRIC_SETS`; None if not given.

    Raises:
        UsageError: If a name is unknown.
    """
    if preset is not None and preset not in METRIC_SETS:
        raise UsageError(f"preset {preset!r} is unknown.{did_you_mean(preset, list(METRIC_SETS))}")
    named = () if metrics is None else parse_metrics(metrics)
    if preset is None:
        return named or DEFAULT_METRICS, DEFAULT_POLICY
    return tuple(dict.fromkeys((*METRIC_SETS[preset].metrics, *named))), METRIC_SETS[preset].policy
