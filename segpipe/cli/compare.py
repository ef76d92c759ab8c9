"""`segpipe compare`: which of several methods is better, and how certain that is."""

from __future__ import annotations

from pathlib import Path

import click

from segpipe.cli.options import Command, seed, shared
from segpipe.cli.printing import echo


@click.command("compare", cls=Command, old={"-m": "--margin", "--metric": "--margin", "--device": "", "-j": ""})
@click.argument("results", nargs=-1, required=True, metavar="RESULT...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON, CSV and text to this folder.")
@click.option(
    "--margin",
    "margins",
    multiple=True,
    metavar="METRIC[=MARGIN]",
    help="Metric to compare and its equivalence margin, e.g. dice=0.01 or hd95=1 (mm); repeatable.  "
    "[default: dice=0.005]",
)
@click.option(
    "--worst-loss",
    "worst_losses",
    multiple=True,
    metavar="METRIC=LOSS",
    help="Most that a failure can cost, e.g. dice=0.3 or hd95=50 (mm); repeatable.  [default: 1, or the diagonal]",
)
@click.option("-l", "--labels", help="Labels to compare, e.g. liver,tumour. Default: all.")
@click.option("--declare", help="Pre-specified (confirmatory) labels, e.g. tumour. Default: the mean over labels.")
@click.option("--policy", default="mr", show_default=True, help="How empty masks count: mr, nnunet, brats or omit.")
@click.option("--cases", type=click.Path(path_type=Path), help="CSV with case_id, patient_id, and columns for --by.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Also compare each group of cases, e.g. site; repeatable.")
@click.option(
    "--allow-missing", is_flag=True, help="Compare the cases that all methods have, even if some lack others."
)
@click.option("--report/--no-report", "with_report", default=True, help="With -o: also write a page with pictures.")
@seed
@shared
def command(
    results: tuple[str, ...],
    output: Path | None,
    margins: tuple[str, ...],
    worst_losses: tuple[str, ...],
    labels: str | None,
    declare: str | None,
    policy: str,
    cases: Path | None,
    by: tuple[str, ...],
    allow_missing: bool,
    with_report: bool,
    as_json: bool,
    seed: int,
) -> None:
    """Compare methods on the same cases: better, worse, equivalent, or too little data to tell.

    RESULT is a table of scores (scores.csv, nnU-Net's summary.json, a CSV file with columns case_id, label and one for
    each metric) or a folder with one table for all folds or for each. The first is the baseline. NAME=RESULT names a
    method; NAME:SEED=RESULT, repeated, gives its seeds, which verdicts on methods need.
    """
    from segpipe.cli.printing import print_json
    from segpipe.compare.comparison import Question, compare, parse_losses, parse_margins
    from segpipe.compare.comparison_text import comparison_text, save
    from segpipe.compare.declaration import with_standing
    from segpipe.compare.results import Source, read_methods
    from segpipe.core.errors import UsageError
    from segpipe.evaluate.groups import CaseTable, read_cases
    from segpipe.evaluate.summary import check_policy

    check_policy(policy)
    if by and cases is None:
        raise UsageError("--by: needs the table that says which case belongs to which group. Give it with --cases.")
    question = Question(
        margins=parse_margins(margins or ("dice",)),
        worst_losses=parse_losses(worst_losses),
        declared=_names(declare),
        labels=_names(labels),
        policy=policy,
        allow_missing=allow_missing,
        cases=read_cases(cases, by) if cases is not None else CaseTable(None, {}),
        seed=seed,
    )
    sources = [Source.parse(text) for text in results]
    methods = read_methods(sources, allow_missing=allow_missing)
    comparison = with_standing(compare(methods, question), [source.path for source in sources], methods, question)
    page: Path | None = None
    if output is not None:
        save(comparison, output)
        if with_report:
            from segpipe.report.compare_page import write_compare_page

            page = write_compare_page(comparison, methods, question, output)
    if as_json:
        paths = {"output": output and str(output), "report": page and str(page)}
        print_json(comparison.model_dump(mode="json") | paths)
        return
    echo(comparison_text(comparison))
    if output is not None:
        echo(f"Written to {output}{f', page {page.name}' if page else ''}.")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else ()
