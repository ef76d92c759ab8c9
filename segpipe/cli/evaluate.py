"""`segpipe evaluate`: score masks against references."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import shared


@click.command("evaluate")
@click.option("-r", "--reference", type=click.Path(path_type=Path), required=True)
@click.option("-p", "--predictions", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table of scores here (CSV).")
@click.option("-l", "--labels", help="1,2,3 or name=1,region=1+2 or a dataset.json. Default: found beside REFERENCE.")
@click.option("--policy", default="mr", show_default=True, help="What empty masks count: mr, nnunet, brats or omit.")
@click.option("--nsd-tolerance", type=click.FloatRange(min=0), metavar="MM", help="Also the surface Dice (NSD).")
@click.option("--allow-missing", is_flag=True, help="Score what there is, though references lack a prediction.")
@shared
def command(
    reference: Path,
    predictions: Path,
    output: Path | None,
    labels: str | None,
    policy: str,
    nsd_tolerance: float | None,
    allow_missing: bool,
    as_json: bool,
    device: str,  # noqa: ARG001 (an option of every command)
    n_workers: int,
    seed: int,
) -> None:
    """Score masks against references and print means with 95 % intervals.

    REFERENCE and PREDICTIONS are folders of masks with the same file names, or two files. REFERENCE may be a dataset
    (a folder, a CSV manifest): then masks are called as its cases. Masks may come from any program.
    """
    from segpipe.cli.main import print_json
    from segpipe.cli.tables import summary_record, summary_text
    from segpipe.core.progress import say
    from segpipe.evaluate.case import ScoreSettings
    from segpipe.evaluate.pairs import find_pairs, labels_of, refuse_missing
    from segpipe.evaluate.run import score_folder
    from segpipe.evaluate.summary import check_policy, summarise

    check_policy(policy)
    run = predictions.resolve().name if predictions.is_dir() else predictions.resolve().parent.name
    pairing = find_pairs(reference, predictions, run)
    refuse_missing(pairing, allow_missing)
    label_set, labels_from = labels_of(labels, pairing, n_workers)
    say(f"labels: {', '.join(label_set.names[:8])}{', …' * (len(label_set.names) > 8)} (from {labels_from})")
    say(f"patients: {pairing.patients_from}")
    table = score_folder(pairing.pairs, label_set, n_workers, ScoreSettings(nsd_tolerance_mm=nsd_tolerance))
    if output is not None:
        table.save(output)
    rows = summarise(table, policy, seed)
    if as_json:
        print_json(summary_record(rows, policy) | {"n_cases": len(pairing.pairs), "scores": output and str(output)})
        return
    click.echo(summary_text(rows))
    click.echo(f"{len(pairing.pairs)} cases, policy {policy}." + (f" Scores: {output}" if output else ""))
