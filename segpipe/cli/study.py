"""`segpipe study`: several methods, trained and compared under one budget."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import shared


@click.command("study")
@click.argument("study", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, instead of the one that the study names.")
@click.option("--dry-run", is_flag=True, help="Print arms, trainings and time; do nothing.")
@shared
def command(
    study: Path,
    output: Path,
    data: Path | None,
    dry_run: bool,
    as_json: bool,
    device: str,
    n_workers: int,
    seed: int,
) -> None:
    """Train every arm of STUDY.yaml on the same folds and seeds with the same budget, then compare them.

    A killed study goes on with the same command; what is finished is not done again.
    """
    from segpipe.cli.main import print_json
    from segpipe.compare.comparison_text import comparison_text
    from segpipe.compare.study_file import described, read_study
    from segpipe.core.errors import UsageError
    from segpipe.pipeline.machine import Machine
    from segpipe.pipeline.study import is_finished, run_study

    if seed:
        raise click.UsageError("--seed: the study names its seeds.")
    wanted = read_study(study)
    if dry_run:
        n_done = sum(is_finished(wanted, output, training) for training in wanted.trainings)
        if as_json:
            print_json(wanted.model_dump(mode="json") | {"n_trainings": len(wanted.trainings), "n_finished": n_done})
            return
        click.echo("\n".join([*described(wanted), f"{n_done} of them are finished in {output}."]))
        return
    if data is None and wanted.data is None:
        raise UsageError(f"{study}: names no data. Add `data:` to it, or use --data.")
    comparison = run_study(wanted, data or Path(wanted.data or ""), output, Machine(device, n_workers))
    if as_json:
        print_json(comparison.model_dump(mode="json") | {"output": str(output)})
        return
    click.echo(comparison_text(comparison))
    click.echo(f"Written to {output}.")
