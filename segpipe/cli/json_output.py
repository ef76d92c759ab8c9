"""The results that `--json` prints: the keys of each command as records. docs/json.md is made of them.

A result is one JSON object on one line of stdout; its keys are those of one or several records together. NaN, which
JSON has not, is null.
"""

from __future__ import annotations

from pydantic import BaseModel

from segpipe.compare.comparison_records import Comparison
from segpipe.compare.study_file import StudyEstimate
from segpipe.core.foreseen import Foreseen
from segpipe.core.machine import Finding
from segpipe.core.records import Record
from segpipe.data.check import CheckReport
from segpipe.data.fix import Repair
from segpipe.data.splits import FoldRow
from segpipe.evaluate.groups import GroupGap, GroupRow
from segpipe.evaluate.summary import SummaryRow
from segpipe.pipeline.info import Info
from segpipe.pipeline.prune import PruneReport
from segpipe.pipeline.pruning_oracle import PruningReport
from segpipe.pipeline.select import SelectionReport
from segpipe.pipeline.sites import SiteSimilarity
from segpipe.pipeline.size import SizeReport
from segpipe.pipeline.trajectory import TrajectoryReport
from segpipe.pipeline.variance import VarianceReport
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import Plan
from segpipe.predict.outputs import CaseRow
from segpipe.predict.package import Manifest
from segpipe.prepare.dataset import Needs
from segpipe.train.profile import Profile


class Failure(Record):
    """Instead of a result, where a command fails; what happened is on stderr too.

    Args:
        error: Class of the error, e.g. `DataError`.
        message: The message for people.
        exit_code: Of the process.
    """

    error: str
    message: str
    exit_code: int


class Checked(Record):
    """Beside the report of `check`.

    Args:
        is_fatal: Whether training must not start (of images without label maps: prediction); the exit code is 3 then.
        repairs: With `--fix`, what was done to each file.
    """

    is_fatal: bool
    repairs: tuple[Repair, ...] = ()


class PlanFiles(Record):
    """Beside the plan.

    Args:
        plan, report: Files that were written; the page is null if there is none.
        costs: What each configuration will take; empty with `--no-cost`.
        folds: Patients that each fold validates and trains on, by label and site; empty without images.
    """

    plan: str
    report: str | None
    costs: tuple[PlannedCost, ...]
    folds: tuple[FoldRow, ...]


class PreparedFolder(Record):
    """Folder of the prepared cases; null with `--dry-run`."""

    prepared: str | None


class PretrainedWeights(Record):
    """The weights that pre-training made.

    Args:
        weights: Their file, for `network.weights.source` of the plan.
        configuration: Name of the one whose network was trained.
        n_images: Images that they have seen.
        n_held_out: Of these, images that were only watched.
    """

    weights: str
    configuration: str
    n_images: int
    n_held_out: int


class Summary(Record):
    """Means of scores.

    Args:
        policy: What empty masks count.
        summary: For each metric a row for each label, then `(mean)`.
    """

    policy: str
    summary: tuple[SummaryRow, ...]


class Trained(Record):
    """The configuration that was trained."""

    configuration: str


class Reported(Record):
    """The page that was written."""

    report: str


class ReportSize(Record):
    """Size of the page."""

    size_bytes: int


class Evaluated(Record):
    """Beside the means.

    Args:
        n_cases: Scored.
        scores, lesions: Tables that were written; null if none was.
        groups: With `--by`, means of each group of cases.
        gaps: With `--by`, the largest difference between groups, for each metric and label.
    """

    n_cases: int
    scores: str | None
    lesions: str | None
    groups: tuple[GroupRow, ...]
    gaps: tuple[GroupGap, ...]


class FailedCase(Record):
    """A case that could not be predicted, and why."""

    case_id: str
    message: str


class Predicted(Record):
    """Results of the cases.

    Args:
        masks: Files, in the order of the cases.
        cases: Those whose masks are there.
        failed: The others.
    """

    masks: tuple[str, ...]
    cases: tuple[CaseRow, ...]
    failed: tuple[FailedCase, ...]


class Compared(Record):
    """Folder of the comparison; null if it was not written."""

    output: str | None


class ComparedPage(Record):
    """Its page; null if there is none."""

    report: str | None


class Written(Record):
    """The file or folder that was written."""

    written: str


class Imported(Record):
    """Folders of the folds that were made."""

    folds: tuple[str, ...]


class Examined(Record):
    """Findings of `doctor`; the exit code is 4 if there is a fault."""

    findings: tuple[Finding, ...]
    n_faults: int
    n_warnings: int


class Shown(Record):
    """Address of the page while the command runs."""

    url: str
    n_cases: int


Parts = tuple[type[BaseModel], ...]
OUTPUTS: dict[str, Parts] = {  # command and the option that changes its result: records whose keys it holds together
    "demo": (Summary, Trained, Reported),
    "run": (Summary, Trained, Reported),
    "run --dry-run": (Foreseen,),
    "check": (CheckReport, Checked),
    "plan": (PlanFiles, Plan),
    "prepare": (PreparedFolder, Needs),
    "pretrain": (PretrainedWeights,),
    "pretrain --dry-run": (Foreseen,),
    "train": (Summary, Trained),
    "train --dry-run": (Foreseen,),
    "train --profile": (Profile,),
    "select": (SelectionReport,),
    "select --dry-run": (Foreseen,),
    "predict": (Predicted,),
    "predict --dry-run": (Foreseen,),
    "ensemble": (Predicted,),
    "prune": (PruneReport,),
    "prune --dry-run": (Foreseen,),
    "pack": (Written, Manifest),
    "import": (Imported,),
    "export": (Written,),
    "evaluate": (Summary, Evaluated),
    "evaluate --dry-run": (Foreseen,),
    "compare": (Comparison, Compared, ComparedPage),
    "study": (Comparison, Compared),
    "study --dry-run": (StudyEstimate,),
    "size": (SizeReport,),
    "analyse trajectory": (TrajectoryReport,),
    "analyse variance": (VarianceReport,),
    "analyse sites": (SiteSimilarity,),
    "analyse pruning": (PruningReport,),
    "analyse pruning --dry-run": (Foreseen,),
    "report": (Reported, ReportSize),
    "view": (Shown,),
    "info": (Info,),
    "doctor": (Examined,),
    "any, on failure": (Failure,),
}
