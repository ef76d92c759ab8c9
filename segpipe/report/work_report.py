"""Write `report/index.html` of a work folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.core.errors import SegpipeError, UsageError
from segpipe.core.files import write_text
from segpipe.core.machine import environment_here
from segpipe.core.text import command_text
from segpipe.data.splits import leaks
from segpipe.evaluate.evaluation import cases_of
from segpipe.evaluate.groups import SITE, CaseTable, refuse_bad_groups
from segpipe.plan.schema import Plan
from segpipe.plan.training_commands import train_commands
from segpipe.report.checklists import (
    CHECKLIST_FILE,
    Checklists,
    checklist_tables,
    fill_checklists,
    flow_picture,
)
from segpipe.report.page import Decision, Page, Place, render
from segpipe.report.plan_page_tables import decision_texts
from segpipe.report.sections import data_check, make_section
from segpipe.report.verdict_box import best_of, make_verdict
from segpipe.report.work_contents import WorkFolder, read_scored, read_work

_BUDGET = "training.time_budget_seconds"
_SET = "--set="
_N_NAMED = 6


def build_report(work: Path, by: Sequence[str] = ()) -> Path:
    """Write the report of a work folder: one HTML file that needs nothing else, and checklist.json beside it.

    The top of the page lists what is missing or broken in the folder.

    Args:
        work: The work folder.
        by: Columns of the dataset's manifest to group cases by; empty for the site, if there are several.

    Returns:
        `work/report/index.html`.

    Raises:
        UsageError: If `work` is not a work folder, or there is no such column.
        ResourceError, SetupError: If the page cannot be written.
    """
    found = read_work(work)
    page, filled = _page(found, _cases(found, by))
    filled.save(found.folder.report.with_name(CHECKLIST_FILE))
    write_text(found.folder.report, render(page))
    return found.folder.report


def _cases(work: WorkFolder, by: Sequence[str]) -> CaseTable:
    """Groups of cases by columns, or by site if the dataset has several."""
    if by:
        if work.dataset is None:
            raise UsageError(f"--by {by[0]}: {work.folder.path} holds no dataset. Run `segpipe plan` first.")
        found = cases_of(Path(work.dataset.root), by, None)
        refuse_bad_groups(found, [case.case_id for case in work.dataset.cases])
        return found
    sites = {case.case_id: case.site or "" for case in work.dataset.cases} if work.dataset else {}
    return CaseTable(None, {SITE: sites} if len(set(sites.values()) - {""}) > 1 else {})


def _page(work: WorkFolder, cases: CaseTable) -> tuple[Page, Checklists]:
    notes = list(work.notes)
    scored = [read_scored(run, notes) for run in work.runs]
    filled = fill_checklists(work, best_of(scored))
    sections = tuple(make_section(work, one, cases, notes) for one in scored)
    alarms = leaks(work.splits.folds, work.dataset) if work.splits and work.dataset else ()
    name = work.dataset.name if work.dataset else str(work.plan.get("dataset", work.folder.path.resolve().name))
    page = Page(
        title=f"{name}: segmentation report",
        facts=_facts(work),
        verdict=make_verdict(work, scored, alarms),
        alarms=alarms,
        notes=tuple(notes),
        sections=sections,
        decisions=plan_decisions(work.plan),
        plan_text=work.folder.plan.read_text(encoding="utf-8") if work.plan else "",
        data=data_check(work),
        environments=environments(work),
        commands=reproducing_commands(work),
        flow=flow_picture(filled.flow),
        checklists=checklist_tables(filled),
    )
    return page, filled


def _facts(work: WorkFolder) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = []
    if work.dataset:
        cases = work.dataset.cases
        n_patients = len({case.patient_id for case in cases})
        facts += [
            ("Cases", str(len(cases))),
            ("Patients", str(n_patients)),
            ("Channels", ", ".join(work.dataset.channels)),
        ]
        labels = work.dataset.labels.names
        facts.append(("Labels", ", ".join(labels) if len(labels) <= 12 else f"{len(labels)}"))
    if work.splits:
        is_drawn = work.splits.seed is not None
        facts.append(("Cross-validation", f"{work.splits.k} folds {'by patient' if is_drawn else work.splits.source}"))
    if work.plan:
        facts.append(("Preset", str(work.plan.get("preset", "unknown"))))
    return tuple(facts)


def plan_decisions(plan: Mapping[str, Any]) -> tuple[Decision, ...]:
    """Decisions with their reasons in the order of the plan, then the training, which a person chose."""
    try:
        texts = decision_texts(Plan.parse(plan, "plan.yaml"))
    except SegpipeError:  # the raw values of a plan that this version cannot read are better than none
        texts = {}
    reasons = plan.get("reasons")
    configurations = plan.get("configurations")
    decisions = []
    for name, reason in (reasons if isinstance(reasons, dict) else {}).items():
        value = plan.get(name)
        if isinstance(configurations, dict) and value is None:
            parts = {n: c.get(name, c.get(f"{name}_mm")) for n, c in configurations.items() if isinstance(c, dict)}
            value = configurations.get(name) or parts
        why = " ".join(filter(None, (str(reason), _changed_text(plan, str(name)))))
        decisions.append(Decision(str(name), texts.get(str(name)) or _value_text(value), why))
    training = plan.get("training")
    if isinstance(training, dict) and "training" not in {d.name for d in decisions}:
        decisions.append(
            Decision("training", _value_text(training), "The recipe of the preset, with changes by --set.")
        )
    return tuple(decisions)


def _changed_text(plan: Mapping[str, Any], name: str) -> str:
    """Say which values of a decision `--set` changed after the rules that its reason tells of; empty if none."""
    command = plan.get("command")
    options = command.get("options") if isinstance(command, dict) else None
    set_keys = [
        str(option).removeprefix(_SET).partition("=")[0] for option in options or () if str(option).startswith(_SET)
    ]
    inside = {key.removeprefix("configurations.") for key in set_keys}
    own = sorted(key.removeprefix(f"{name}.") for key in inside if key == name or key.startswith(f"{name}."))
    more = f" and {len(own) - _N_NAMED} more" if len(own) > _N_NAMED else ""
    return f"Then changed by --set: {', '.join(own[:_N_NAMED])}{more}." if own else ""


def _value_text(value: Any) -> str:
    """A value of the plan on a line: `a: 1, b: 2`; parts that are unset or deeper than one level are left out."""
    if value is None:
        return ""
    if isinstance(value, dict):
        flat = {key: part for key, part in value.items() if part is not None and not isinstance(part, dict)}
        return "; ".join(f"{key} {_value_text(part)}" for key, part in flat.items())
    if isinstance(value, list):
        parts = ["any" if part is None else _value_text(part) for part in value]
        is_nested = any(isinstance(part, dict | list) for part in value)
        return (" | " if is_nested else ", ").join(parts)
    if isinstance(value, float):
        return f"{value:.6g}"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def environments(work: WorkFolder) -> tuple[Place, ...]:
    """Environments of the folds, equal ones together, and of this page."""
    folds_of: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in work.runs:
        for fold in run.folds:
            if fold.environment is not None:
                folds_of.setdefault(fold.environment.facts, []).append(f"{run.configuration} fold {fold.name}")
    trained = [Place(f"Trained: {', '.join(names)}", facts) for facts, names in folds_of.items()]
    return (*trained, Place("This report", environment_here().facts))


def reproducing_commands(work: WorkFolder) -> tuple[str, ...]:
    """Commands that lead to this work folder; a plan that no command makes is to be copied."""
    folder = str(work.folder.path)
    lines = []
    if work.dataset:
        plan = ["segpipe", "plan", work.dataset.root, "-o", folder]
        options, doubt = _plan_options(work)
        lines.append(command_text(*plan, *options))
        lines += [f"# {doubt}: copy the plan above to {folder}/plan.yaml."] if doubt else []
    for run in work.runs:
        lines += train_commands(work.folder, run.configuration, [fold.name for fold in run.folds if fold.name != "all"])
    return (*lines, command_text("segpipe", "report", folder))


def _plan_options(work: WorkFolder) -> tuple[Sequence[str], str]:
    """Options of `segpipe plan`, and why they may give another plan than the one that is there."""
    try:
        plan = Plan.parse(work.plan, "plan.yaml")
    except SegpipeError:
        plan = None
    if plan is not None and plan.command is not None:
        return plan.command.options, "This plan was edited after the command made it" if plan.is_edited else ""
    preset = ["--preset", str(work.plan["preset"])] if work.plan.get("preset") else []
    return [*preset, *_split_options(work)], "This plan does not say which options made it"


def _split_options(work: WorkFolder) -> list[str]:
    """`--seed`, and how the folds were made."""
    training = work.plan.get("training")
    seed = training.get("seed", 0) if isinstance(training, dict) else 0
    if work.splits is None:
        return ["--seed", str(seed)]
    if work.splits.seed is None:
        return ["--splits", work.splits.source.removeprefix("imported from "), "--seed", str(seed)]
    return ["--n-folds", str(work.splits.k), "--seed", str(work.splits.seed)]
