"""`segpipe info`: describe a work folder or a model."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.cli.options import NO_MACHINE, Command, shared
from segpipe.cli.printing import echo
from segpipe.core.text import count, duration_text, size_text

if TYPE_CHECKING:
    from segpipe.pipeline.info import ConfigurationInfo, FoldInfo, Info, LedgerInfo
    from segpipe.predict.package import PackedScore

_WIDTH = 80
_SHOWN_SHARE = 0.01  # of the disk space; smaller parts are not named


@click.command("info", cls=Command, old=NO_MACHINE)
@click.argument("path", type=click.Path(path_type=Path), metavar="MODEL|WORK")
@click.option("--ledger", "with_ledger", is_flag=True, help="List every scoring and verify the chain.")
@shared
def command(path: Path, with_ledger: bool, as_json: bool) -> None:
    """Describe a work folder, one of its runs, or a file of `segpipe pack`.

    Prints dataset, plan, folds with epochs, time and scores, hashes of the weights, and sizes on disk. The parts of a
    packed model are compared with their hashes. Nothing is changed.
    """
    from segpipe.cli.printing import print_json
    from segpipe.core.errors import DataError
    from segpipe.pipeline.info import info, ledger_info

    if with_ledger:
        ledger = ledger_info(path)
        if as_json:
            print_json(ledger.model_dump(mode="json"))
        else:
            click.echo(ledger_text(ledger))
        if ledger.faults or ledger.not_in_ledger:
            raise DataError(
                f"{ledger.path}: does not match; {'; '.join((*ledger.faults, *ledger.not_in_ledger)[:3])}. Restore the "
                "file from a copy, or say in the report why it differs."
            )
        return
    found = info(path)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    echo(info_text(found))


def ledger_text(found: LedgerInfo) -> str:
    """A line for each scoring, then what was counted and what is wrong."""
    lines = [f"{found.path}: {count(len(found.lines), 'line')}"]
    for line in found.lines:
        cases = f", {count(len(line.scoring.cases), 'case')}" if line.scoring.cases else ""
        model = f", model {line.scoring.model}" if line.scoring.model else ""
        lines.append(f"  {line.number} {line.time} {line.scoring.event}: {line.scoring.name}{cases}{model}")
    lines += [f"  {sentence}" for sentence in found.sentences]
    lines += [f"  fault: {fault}" for fault in found.faults]
    if found.is_torn:
        lines.append("  The last line is incomplete: its run was killed. The next scoring removes it.")
    lines += [f"  fault: {name} is not in the ledger" for name in found.not_in_ledger]
    if not (found.faults or found.not_in_ledger):
        lines.append("  The chain is whole.")
    return "\n".join(lines)


def info_text(found: Info) -> str:
    """For people, at most 80 columns wide but for paths."""
    lines = [f"{found.path}: {'a packed model' if found.kind == 'package' else f'a {found.kind} folder'}"]
    lines += _wrap(f"dataset {found.dataset}: {_cases(found)}")
    lines += _wrap(f"channels {', '.join(found.channels)}; labels {', '.join(found.labels)}")
    lines.append(f"  plan {found.preset}")
    lines += [piece for own in found.configurations for piece in _wrap(_configuration(own), "    ")]
    if found.chosen:
        lines += _wrap(f"chosen by `segpipe select`: {' + '.join(found.chosen)}")
    lines += _fold_table(found)
    if found.package is not None:
        facts = found.package.model
        lines += _wrap(f"packed by segpipe {facts.segpipe}, licence {facts.licence or 'not stated'}")
        lines += [piece for score in facts.scores if score.metric == "dice" for piece in _wrap(_score(score))]
        lines += _wrap(f"{count(len(found.package.parts), 'part')}, all matching their SHA-256")
    total = sum(found.size_bytes.values())
    sizes = [f"{name} {size_text(n)}" for name, n in found.size_bytes.items() if n >= _SHOWN_SHARE * total]
    return "\n".join([*lines, *_wrap(f"on disk {size_text(total)}: {', '.join(sizes)}")])


def _cases(found: Info) -> str:
    if found.n_cases is None:
        return "without its cases"
    patients, folds = count(found.n_patients or 0, "patient"), count(found.n_folds or 0, "fold")
    return f"{count(found.n_cases, 'case')} of {patients}, {folds}"


def _configuration(own: ConfigurationInfo) -> str:
    spacing = " × ".join("as it is" if mm is None else f"{mm:.3g}" for mm in own.spacing_mm)
    patch = " × ".join(map(str, own.patch_zyx))
    return f"{own.name}: {spacing} mm, patch {patch}, batch {own.batch_size}, {own.network} of {own.n_stages} stages"


def _score(score: PackedScore) -> str:
    mean = "–" if score.mean is None else f"{score.mean:.3f}"
    interval = "" if score.low is None or score.high is None else f" ({score.low:.3f} – {score.high:.3f})"
    return f"cross-validated Dice of {score.configuration}, {score.label}: {mean}{interval}"


def _fold_table(found: Info) -> list[str]:
    if not found.folds:
        return ["  no trained folds yet"]
    width = max(len("configuration"), *(len(fold.configuration) for fold in found.folds))
    head = f"  {'configuration':<{width}} {'fold':>4} {'state':<10} {'epochs':>6} {'time':>9} {'Dice':>5} {'cases':>5}"
    return [f"{head} weights", *(_fold_line(fold, width) for fold in found.folds)]


def _fold_line(fold: FoldInfo, width: int) -> str:
    epochs = "–" if fold.epochs is None else str(fold.epochs)
    seconds = "–" if fold.seconds is None else duration_text(fold.seconds)
    dice = "–" if fold.dice is None else f"{fold.dice:.3f}"
    return (
        f"  {fold.configuration:<{width}} {fold.fold:>4} {fold.state:<10} {epochs:>6} {seconds:>9} "
        f"{dice:>5} {fold.n_scored or '–':>5} {fold.sha256 or '–'}"
    )


def _wrap(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
