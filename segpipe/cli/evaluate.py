"""`segpipe evaluate`: score masks against references."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.cli.options import Command, dry_run, seed, shared, workers
from segpipe.cli.printing import echo

if TYPE_CHECKING:
    from segpipe.evaluate.evaluation import Evaluation


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
            self.fail(f"{value!r} is not a tolerance in mm; expected 1.5 or liver=2,tumour=1.", param, ctx)
        return by_label[""] if set(by_label) == {""} else by_label


def _complete_metrics(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """Offer names of metrics, also after a comma."""
    from segpipe.evaluate.metrics import METRICS

    before, comma, begun = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ("all", *METRICS) if name.startswith(begun)]


@click.command("evaluate", cls=Command, old={"--preset": "--metric-preset", "--device": ""})
@click.option("-r", "--reference", type=click.Path(path_type=Path), required=True, help="Folder, file or dataset.")
@click.option("-p", "--predictions", type=click.Path(path_type=Path), required=True, help="Folder or file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table of scores here (CSV).")
@click.option("-l", "--labels", help="1,2 or organ,tumour or a=1,region=1+2 or a .json. Default: as REFERENCE says.")
@click.option(
    "--metrics",
    shell_complete=_complete_metrics,
    help="all, or names such as dice,hd95,lesion_f1. Default: those of whole masks.",
)
@click.option("--metric-preset", help="brats, brats_men, brats_met, lesions, tubes or calibration.")
@click.option("--policy", help="How empty masks count: mr (default), nnunet, brats or omit.")
@click.option("--nsd-tolerance", type=Tolerance(), metavar="MM", help="Also NSD: 1.5, or liver=2,tumour=1.")
@click.option("--allow-missing", is_flag=True, help="Score what exists, even if references lack a prediction.")
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="WORK",
    help="Note this scoring in WORK/ledger.jsonl.  [default: the work folder that contains PREDICTIONS]",
)
@click.option("--by", multiple=True, metavar="COLUMN", help="Also score each group of cases, e.g. site; repeatable.")
@click.option(
    "--cases",
    type=click.Path(path_type=Path),
    help="CSV with case_id, patient_id where known, and the columns of --by.",
)
@dry_run
@workers
@seed
@shared
def command(
    reference: Path,
    predictions: Path,
    output: Path | None,
    labels: str | None,
    metrics: str | None,
    metric_preset: str | None,
    policy: str | None,
    nsd_tolerance: Any,
    allow_missing: bool,
    ledger: Path | None,
    by: tuple[str, ...],
    cases: Path | None,
    dry_run: bool,
    as_json: bool,
    n_workers: int,
    seed: int,
) -> None:
    """Score masks against references and print means with 95 % intervals.

    REFERENCE and PREDICTIONS are folders of masks with the same names, in any format, or two files. REFERENCE may be a
    dataset (a folder, a CSV manifest): then masks are named like its cases. Masks may come from any program.

    With -o, lesion metrics also write a table of all lesions next to the scores: scores.csv, lesions.csv. Calibration
    reads the files that `segpipe predict --save-probabilities` writes next to the masks.
    """
    from segpipe.cli.printing import print_estimate, print_json
    from segpipe.cli.tables import SHOWN, groups_text, summary_record, summary_text
    from segpipe.core.files import require_place
    from segpipe.core.text import count
    from segpipe.evaluate import evaluation

    if output is not None:
        require_place(output)
    request = evaluation.EvaluateRequest(
        reference=reference,
        predictions=predictions,
        n_workers=n_workers,
        seed=seed,
        labels=labels,
        metrics=metrics,
        preset=metric_preset,
        policy=policy,
        nsd_tolerance_mm=nsd_tolerance,
        allow_missing=allow_missing,
        ledger=ledger,
        by=by,
        cases=cases,
    )
    job = evaluation.resolve(request)
    if dry_run:
        print_estimate(evaluation.estimate(job), as_json=as_json)
        return
    found = evaluation.run(job)
    files = _save(found, output)
    if as_json:
        parts = {name: [one.model_dump() for one in getattr(found, name)] for name in ("groups", "gaps")}
        print_json(summary_record(found.summary, found.policy) | {"n_cases": found.n_cases} | files | parts)
        return
    shown = SHOWN if metrics == "all" or (metrics, metric_preset) == (None, None) else found.metrics
    echo(summary_text(found.summary, shown))
    if by:
        echo(groups_text(found.groups, found.gaps, shown))
    written = "".join(f" {what.capitalize()}: {path}" for what, path in files.items() if path)
    echo(f"{count(found.n_cases, 'case')}, policy {found.policy}.{written}")


def _save(found: Evaluation, output: Path | None) -> dict[str, str | None]:
    """Write the tables; return their paths."""
    from segpipe.evaluate.lesions import lesions_path, save_lesions
    from segpipe.evaluate.metrics import METRICS

    if output is None:
        return {"scores": None, "lesions": None}
    found.scores.table.save(output)
    if not any(METRICS[name].group == "lesions" for name in found.metrics):
        return {"scores": str(output), "lesions": None}
    save_lesions(found.scores.details, lesions_path(output))
    return {"scores": str(output), "lesions": str(lesions_path(output))}
