"""`segpipe evaluate`: score masks against references."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli.options import shared
from segpipe.core.errors import UsageError
from segpipe.core.records import did_you_mean

if TYPE_CHECKING:
    from segpipe.evaluate.run import FolderScores


class Tolerance(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """Millimetres for every label (`1.5`), or by name of the label (`liver=2,tumour=1`)."""

    name = "tolerance"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        pairs = [part.rpartition("=") for part in str(value).split(",")]
        try:
            by_label = {name.strip(): float(number) for name, _, number in pairs}
        except ValueError:
            by_label = {}
        is_one_kind = set(by_label) == {""} or "" not in by_label
        if len(by_label) < len(pairs) or not is_one_kind or not all(0 <= mm < inf for mm in by_label.values()):
            self.fail(f"{value!r} is no tolerance in mm; expected 1.5 or liver=2,tumour=1.", param, ctx)
        return by_label[""] if set(by_label) == {""} else by_label


@click.command("evaluate")
@click.option("-r", "--reference", type=click.Path(path_type=Path), required=True)
@click.option("-p", "--predictions", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table of scores here (CSV).")
@click.option("-l", "--labels", help="1,2 or organ,tumour or a=1,region=1+2 or a .json. Default: found at REFERENCE.")
@click.option("--metrics", help="all, or names such as dice,hd95,lesion_f1. Default: those of whole masks.")
@click.option("--preset", help="brats, brats_men, brats_met, lesions, tubes or calibration.")
@click.option("--policy", help="What empty masks count: mr (default), nnunet, brats or omit.")
@click.option("--nsd-tolerance", type=Tolerance(), metavar="MM", help="Also NSD: 1.5, or liver=2,tumour=1.")
@click.option("--allow-missing", is_flag=True, help="Score what there is, though references lack a prediction.")
@shared
def command(
    reference: Path,
    predictions: Path,
    output: Path | None,
    labels: str | None,
    metrics: str | None,
    preset: str | None,
    policy: str | None,
    nsd_tolerance: Any,
    allow_missing: bool,
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command)
    n_workers: int,
    seed: int,
) -> None:
    """Score masks against references and print means with 95 % intervals.

    REFERENCE and PREDICTIONS are folders of masks with the same names, whatever their format, or two files. REFERENCE
    may be a dataset (a folder, a CSV manifest): then masks are called as its cases. Masks may come from any program.

    With -o, lesion metrics also write a table of all lesions beside the scores: scores.csv, lesions.csv. Calibration
    reads the files that `segpipe predict --save-probabilities` writes beside the masks.
    """
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import SHOWN, summary_record, summary_text
    from segpipe.core.progress import say
    from segpipe.evaluate.case import ScoreSettings
    from segpipe.evaluate.pairs import find_pairs, labels_of, refuse_missing, with_probabilities
    from segpipe.evaluate.presets import chosen_metrics
    from segpipe.evaluate.run import score_pairs
    from segpipe.evaluate.summary import check_policy, summarise

    names, policy_of_preset = chosen_metrics(metrics, preset)
    check_policy(policy := policy or policy_of_preset)
    run = predictions.resolve().name if predictions.is_dir() else predictions.resolve().parent.name
    pairing = find_pairs(reference, predictions, run)
    refuse_missing(pairing, allow_missing)
    label_set, labels_from = labels_of(labels, pairing, n_workers)
    say(f"labels: {', '.join(label_set.names[:8])}{', …' * (len(label_set.names) > 8)} (from {labels_from})")
    say(f"patients: {pairing.patients_from}")
    _check_tolerance(nsd_tolerance, label_set.names)
    settings = ScoreSettings(names, nsd_tolerance, only_known_values=labels is None)
    pairs, settings = with_probabilities(pairing.pairs, settings, is_required=metrics != "all")
    scores = score_pairs(pairs, label_set, n_workers, settings)
    rows = summarise(scores.table, policy, seed)
    files = _saved(scores, output, has_lesions="lesions" in settings.groups)
    if as_json:
        print_json(summary_record(rows, policy) | {"n_cases": len(pairs)} | files)
        return
    click.echo(summary_text(rows, SHOWN if metrics == "all" or (metrics, preset) == (None, None) else names))
    written = "".join(f" {what.capitalize()}: {path}" for what, path in files.items() if path)
    click.echo(f"{len(pairs)} cases, policy {policy}.{written}")


def _check_tolerance(tolerance: float | dict[str, float] | None, names: Sequence[str]) -> None:
    unknown = sorted(set(tolerance) - set(names)) if isinstance(tolerance, dict) else []
    if unknown:
        raise UsageError(f"--nsd-tolerance: {unknown[0]!r} is no label.{did_you_mean(unknown[0], list(names))}")


def _saved(scores: FolderScores, output: Path | None, has_lesions: bool) -> dict[str, str | None]:
    """Write the tables, and tell where they are."""
    from segpipe.evaluate.lesion_table import lesions_path, save_lesions

    if output is None:
        return {"scores": None, "lesions": None}
    scores.table.save(output)
    if not has_lesions:
        return {"scores": str(output), "lesions": None}
    save_lesions(scores.details, lesions_path(output))
    return {"scores": str(output), "lesions": str(lesions_path(output))}
