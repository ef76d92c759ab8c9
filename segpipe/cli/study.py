"""`segpipe study`: several methods, trained and compared under one budget."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Command, on_machine, shared
from segpipe.cli.printing import echo
from segpipe.pipeline.requests import Machine, StudyRequest


@click.command("study", cls=Command, refused={"--seed": "the study names its seeds."})
@click.argument("study", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--data", type=click.Path(path_type=Path), help="The dataset, instead of the one in the study.")
@click.option("--dry-run", is_flag=True, help="Print arms, trainings and time; do nothing.")
@on_machine
@shared
def command(study: Path, output: Path, data: Path | None, dry_run: bool, machine: Machine, as_json: bool) -> None:
    """Train every arm of STUDY.yaml on the same folds and seeds with the same budget, then compare them.

    Rerun the same command to resume; finished trainings are not repeated.
    """
    from segpipe.cli.printing import print_json
    from segpipe.compare.comparison_text import comparison_text
    from segpipe.core.errors import DataError
    from segpipe.core.text import count
    from segpipe.pipeline import study as studies

    job = studies.resolve(StudyRequest(study, output, machine, data))
    if dry_run:
        found = studies.estimate(job)
        print_json(found.model_dump(mode="json")) if as_json else echo(found.text())
        return
    result = studies.run(job)
    if as_json:
        paths = {"output": str(output), "report": str(result.page)}
        print_json(result.comparison.model_dump(mode="json") | paths)
    else:
        echo(comparison_text(result.comparison))
        echo(f"Written to {output}, page {result.page.name}.")
    if result.failures:
        raise DataError(f"{count(len(result.failures), 'arm')} failed. {' '.join(result.failures)}")
