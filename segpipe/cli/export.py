"""`segpipe export`: files that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import shared


@click.command("export")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--to", "kind", type=click.Choice(["nnunet-plans"]), required=True, help="What to write.")
@click.argument("output", type=click.Path(path_type=Path))
@shared
def command(work: Path, kind: str, output: Path, as_json: bool, device: str, n_workers: int, seed: int) -> None:  # noqa: ARG001 (shared)
    """Write what another tool reads: WORK's plan as nnU-Net's plans.json."""
    from segpipe.bridge.nnunet_plans import export_nnunet_plans
    from segpipe.cli.main import print_json

    export_nnunet_plans(work, output)
    if as_json:
        print_json({"written": str(output)})
        return
    click.echo(f"Written: {output}")
