"""Requests to the stages: one frozen record for each verb, checked when it is made.

The command line, the Python API and a dry run build the same record. Each stage takes it through the same functions:
`resolve` finds everything that can be found without computing and raises every error that the stage would raise, `run`
does the work, `estimate` says what the work would take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from segpipe.core.errors import UsageError
from segpipe.core.text import exact_text
from segpipe.predict.options import PredictOptions

FoldsBy = Literal["patient", "site"]
SELECTION_METRICS = ("dice", "iou", "hd95", "assd")  # that have a value, and a better side, for every label of a case
_LENGTHS = {"epochs": "--epochs", "iterations": "--iterations", "time_budget_seconds": "--time-budget"}


@dataclass(frozen=True)
class Machine:
    """The machine to compute on.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        n_workers: Processors to use.

    Raises:
        UsageError: If there would be no worker.
    """

    device: str
    n_workers: int

    def __post_init__(self) -> None:
        if self.n_workers < 1:
            raise UsageError(f"-j {self.n_workers}: expected 1 worker or more.")


@dataclass(frozen=True)
class PlanRequest:
    """A dataset to plan, and how.

    Args:
        folder: Work folder for the plan.
        machine: What to compute on.
        data: The dataset; None to plan from nnU-Net's two files.
        preset: Name of a preset, or `auto`.
        gpu_memory_gib: GPU memory to plan for; None for that of the device.
        max_memory_gib: Memory to plan for on a CPU; None for that of the machine.
        edits: Values of the plan to change, as `--set` gives them.
        n_folds: Folds to split into, by patient.
        folds_by: `patient`, or `site` for one fold for each site, which it leaves out of training.
        splits_file: nnU-Net's splits_final.json to use instead.
        nnunet_plans: nnU-Net's plans.json to take the decisions from instead of a preset.
        nnunet_fingerprint, nnunet_dataset: nnU-Net's dataset_fingerprint.json and its dataset.json, to plan without
            images.
        seed: Seed of the splits and of training.
        predicts_costs: Whether to predict memory, time and disk, which takes torch a second or two. A plan that does
            not fit into memory is then refused.
        time_budget_seconds: Time to train all folds, which `auto` plans for; None for no limit.
        n_trained_folds: Folds that share this time; None for all.
        keeps_plan: Whether an existing plan for the same data and preset stays, edits by hand included.

    Raises:
        UsageError: If options contradict each other or a number is out of range.
    """

    folder: Path
    machine: Machine
    data: Path | None = None
    preset: str = "auto"
    gpu_memory_gib: float | None = None
    max_memory_gib: float | None = None
    edits: Sequence[str] = ()
    n_folds: int = 5
    folds_by: FoldsBy = "patient"
    splits_file: Path | None = None
    nnunet_plans: Path | None = None
    nnunet_fingerprint: Path | None = None
    nnunet_dataset: Path | None = None
    seed: int = 0
    predicts_costs: bool = True
    time_budget_seconds: float | None = None
    n_trained_folds: int | None = None
    keeps_plan: bool = False

    def __post_init__(self) -> None:
        has_files = (self.nnunet_fingerprint is not None, self.nnunet_dataset is not None)
        if has_files not in ((True, True), (False, False)) or (self.data is None) != all(has_files):
            raise UsageError("Give either DATA, or both --nnunet-fingerprint and --nnunet-dataset.")
        if self.nnunet_plans is not None and (self.preset != "auto" or self.gpu_memory_gib is not None):
            raise UsageError("--nnunet-plans takes all decisions from the file. Leave out --preset and --gpu-memory.")
        if self.n_folds < 2:
            raise UsageError(f"--n-folds {self.n_folds}: expected 2 or more.")
        _require_known_folds(self)
        _require_positive("--gpu-memory", self.gpu_memory_gib, "GiB")
        _require_positive("--max-memory", self.max_memory_gib, "GiB")
        _require_positive("--time-budget", self.time_budget_seconds, "s")

    def options(self, device: str, gpu_memory_gib: float | None, n_folds: int) -> tuple[str, ...]:
        """The options of `segpipe plan` that make this plan again from the same data.

        On any machine, but for a plan of `auto` on a CPU that follows the memory which it found: a found memory is not
        the same as a `--max-memory` that may be used up.

        Args:
            device: Kind of the device that was planned for.
            gpu_memory_gib: Its memory, asked for or found; None if it is not known.
            n_folds: Folds that were made, which share the time budget.
        """
        given: dict[str, object] = {}
        if self.nnunet_plans is None:
            given["--preset"] = self.preset
            given["--gpu-memory"] = None if gpu_memory_gib is None else exact_text(gpu_memory_gib)
            given["--device"] = device if self.preset == "auto" and gpu_memory_gib is None else None
        if self.max_memory_gib is not None:
            given["--max-memory"] = exact_text(self.max_memory_gib)
        if self.time_budget_seconds is not None:
            share = n_folds / (self.n_trained_folds or n_folds)  # `plan` knows of no folds that are not trained
            given["--time-budget"] = f"{exact_text(self.time_budget_seconds * share)}s"
        given |= {
            "--n-folds": None if self.splits_file or self.folds_by == "site" else self.n_folds,
            "--folds-by": "site" if self.folds_by == "site" else None,
            "--splits": self.splits_file and self.splits_file.absolute(),
            "--nnunet-fingerprint": self.nnunet_fingerprint and self.nnunet_fingerprint.absolute(),
            "--nnunet-dataset": self.nnunet_dataset and self.nnunet_dataset.absolute(),
            "--nnunet-plans": self.nnunet_plans and self.nnunet_plans.absolute(),
            "--seed": self.seed,
        }
        named = [f"{option}={value}" for option, value in given.items() if value is not None]
        costs = () if self.predicts_costs else ("--no-cost",)
        return (*named, *costs, *(f"--set={edit}" for edit in self.edits))


@dataclass(frozen=True)
class PrepareRequest:
    """Cases to prepare.

    Args:
        folder: A work folder with a plan.
        machine: What to compute on.
        configuration: Which; None for the default one.
    """

    folder: Path
    machine: Machine
    configuration: str | None = None


@dataclass(frozen=True)
class TrainRequest:
    """Folds to train.

    Args:
        folder: A work folder with a plan.
        machine: What to compute on.
        configuration: Which; None for the default one.
        folds: Which; empty for all.
        epochs, iterations, time_budget_seconds: Length of training instead of the plan's, at most one of them. The
            budget is wall-clock time of all training, shared evenly by the folds.
        edits: Values of the plan to change for this training alone, as `--set` gives them.
        tensorboard: Whether to write event files as well; None to write them if tensorboard is installed.
        devices: Several devices, as for `resolve_devices`; None for all CUDA devices if there are several folds and no
            device is named, else for one.
        restart: Whether to discard existing training and start over.

    Raises:
        UsageError: If more than one length is given, or a number is out of range.
    """

    folder: Path
    machine: Machine
    configuration: str | None = None
    folds: Sequence[int] = ()
    epochs: int | None = None
    iterations: int | None = None
    time_budget_seconds: float | None = None
    edits: Sequence[str] = ()
    tensorboard: bool | None = None
    devices: str | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        _require_one_length(self)

    @property
    def all_edits(self) -> tuple[str, ...]:
        """The edits of the plan, with those that `epochs` and `iterations` stand for."""
        return (*self.edits, *length_edits(self.epochs, self.iterations))


@dataclass(frozen=True)
class PretrainRequest:
    """A network to pre-train on images.

    Args:
        data: The images: whatever can be predicted, labelled or not.
        output: Folder for the weights and everything to resume from.
        plan_of: A work folder, whose plan says what network is trained, how images are prepared, and by what recipe.
        machine: What to compute on.
        configuration: Which of the plan's; None for the default one.
        epochs, iterations, time_budget_seconds: Length of training instead of the plan's, at most one of them.
        edits: Values of the plan to change for this training alone, as `--set` gives them.
        with_labels: Whether labels beside the images are learned from too, by the term supcon_voxel.
        restart: Whether to discard existing training and start over.

    Raises:
        UsageError: If more than one length is given, or a number is out of range.
    """

    data: Path
    output: Path
    plan_of: Path
    machine: Machine
    configuration: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    time_budget_seconds: float | None = None
    edits: Sequence[str] = ()
    with_labels: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        _require_one_length(self)

    @property
    def all_edits(self) -> tuple[str, ...]:
        """The edits of the plan, with those that the length stands for."""
        budget = self.time_budget_seconds
        timed = () if budget is None else (f"training.time_budget_seconds={budget}",)
        return (*self.edits, *length_edits(self.epochs, self.iterations), *timed)


@dataclass(frozen=True)
class RunRequest:
    """A dataset to plan, train, evaluate and report in one go.

    Args:
        data: The dataset.
        folder: Work folder for all results.
        machine: What to compute on.
        preset, gpu_memory_gib, max_memory_gib, edits, n_folds, folds_by, splits_file, seed: As for `PlanRequest`.
        configuration, folds, epochs, iterations, time_budget_seconds: As for `TrainRequest`.

    Raises:
        UsageError: If more than one length is given, or a number is out of range.
    """

    data: Path
    folder: Path
    machine: Machine
    preset: str = "auto"
    gpu_memory_gib: float | None = None
    max_memory_gib: float | None = None
    edits: Sequence[str] = ()
    n_folds: int = 5
    folds_by: FoldsBy = "patient"
    splits_file: Path | None = None
    seed: int = 0
    configuration: str | None = None
    folds: Sequence[int] = ()
    epochs: int | None = None
    iterations: int | None = None
    time_budget_seconds: float | None = None

    def __post_init__(self) -> None:
        _require_one_length(self)
        _ = self.planning  # which is checked when it is made

    @property
    def planning(self) -> PlanRequest:
        """The request to plan; an existing plan for the same data and preset stays."""
        return PlanRequest(
            folder=self.folder,
            machine=self.machine,
            data=self.data,
            preset=self.preset,
            gpu_memory_gib=self.gpu_memory_gib,
            max_memory_gib=self.max_memory_gib,
            edits=(*self.edits, *length_edits(self.epochs, self.iterations)),
            n_folds=self.n_folds,
            folds_by=self.folds_by,
            splits_file=self.splits_file,
            seed=self.seed,
            time_budget_seconds=self.time_budget_seconds,
            n_trained_folds=len(self.folds) or None,
            keeps_plan=True,
        )


@dataclass(frozen=True)
class SelectRequest:
    """A selection to make.

    Args:
        folder: A work folder with at least two folds trained and scored.
        machine: What to compute on.
        metric: One of `SELECTION_METRICS`.
        ensembles: Whether to predict the probabilities that ensembles need; otherwise only existing ones are used.

    Raises:
        UsageError: If models cannot be chosen by the metric.
    """

    folder: Path
    machine: Machine
    metric: str = "dice"
    ensembles: bool = False

    def __post_init__(self) -> None:
        if self.metric not in SELECTION_METRICS:
            raise UsageError(f"--metric {self.metric}: expected one of {', '.join(SELECTION_METRICS)}.")


@dataclass(frozen=True)
class PredictRequest:
    """Images to predict.

    Args:
        models: Work folders, folders of a configuration or of a fold, or files of `segpipe pack`. The probabilities of
            several are averaged.
        inputs: A file, a folder of images or a dataset.
        output: Folder for the masks.
        machine: What to compute on.
        options: Which configurations and folds, how, and what to write.
        series: Of folders with several DICOM series the one to read: a part of its description, or the end of its UID.
    """

    models: Sequence[Path]
    inputs: Path
    output: Path
    machine: Machine
    options: PredictOptions = field(default_factory=PredictOptions)
    series: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("-m: no model is given. Give a work folder or a file of `segpipe pack`.")
        if self.options.calibrated and not (self.options.probabilities or self.options.uncertainty):
            raise UsageError(
                "--calibrated changes probabilities, not masks. Add --save-probabilities or --save-uncertainty."
            )


@dataclass(frozen=True)
class StudyRequest:
    """A study to run.

    Args:
        study: The YAML file.
        output: Folder for everything.
        machine: What to compute on.
        data: The dataset; None for the one that the study names.
    """

    study: Path
    output: Path
    machine: Machine
    data: Path | None = None


@dataclass(frozen=True)
class SizeRequest:
    """A question about numbers of patients.

    Args:
        results: Scores of a pilot; of two methods for a difference; or the folder of a study for a learning curve. As
            `segpipe compare` takes them.
        metric: A name in `METRICS`.
        label: Structure; None for the mean over labels.
        policy: What empty masks count.
        half_width: Wanted half-width of the 95 % interval of the mean, in the metric's unit.
        difference: Mean difference to find, in the metric's unit.
        power: Probability of finding it, between 0 and 1.
        scans_of_patient: Planned cases of each patient.
        worst_loss: What a failure may cost; None for 1 of overlaps, and unknown of distances.
        n_more: Training patients to add to those of the study's largest arm.
        seed: Of the learning curve's interval.

    Raises:
        UsageError: If nothing is asked, or a number is out of range.
    """

    results: Sequence[str]
    metric: str = "dice"
    label: str | None = None
    policy: str = "mr"
    half_width: float | None = None
    difference: float | None = None
    power: float = 0.8
    scans_of_patient: int = 1
    worst_loss: float | None = None
    n_more: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.half_width is None and self.difference is None and self.n_more is None:
            raise UsageError("Give --half-width, --difference or --more: without a goal no number of patients follows.")
        if not 1 <= len(self.results) <= 2:
            raise UsageError(f"{len(self.results)} results, expected one, or two for --difference.")
        if self.difference is not None and len(self.results) != 2:
            raise UsageError("--difference: needs the scores of two methods on the same cases. Give a second RESULT.")
        if not 0 < self.power < 1:
            raise UsageError(f"--power {self.power:g}: expected a number between 0 and 1, e.g. 0.8.")
        for option in ("half_width", "difference", "worst_loss"):
            _require_positive(f"--{option.replace('_', '-')}", getattr(self, option), "")
        _require_positive("--scans", self.scans_of_patient, "")
        _require_positive("--more", self.n_more, "")


def length_edits(epochs: int | None, iterations: int | None) -> tuple[str, ...]:
    """The edits of a plan that a length of training stands for; the other limits of the plan end.

    Example:
        >>> length_edits(None, 100)
        ('training.iterations=100', 'training.time_budget_seconds=null')
    """
    limits: dict[str, object] = {}
    if epochs is not None:
        limits = {"epochs": epochs, "iterations": "null", "time_budget_seconds": "null"}
    elif iterations is not None:
        limits = {"iterations": iterations, "time_budget_seconds": "null"}
    return tuple(f"training.{name}={value}" for name, value in limits.items())


def _require_one_length(request: TrainRequest | RunRequest | PretrainRequest) -> None:
    given = [option for name, option in _LENGTHS.items() if getattr(request, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: each sets the length of training. Give one of them.")
    for name, option in _LENGTHS.items():
        _require_positive(option, getattr(request, name), "s" if name == "time_budget_seconds" else "")


def _require_known_folds(request: PlanRequest) -> None:
    if request.folds_by not in get_args(FoldsBy):
        raise UsageError(f"--folds-by {request.folds_by}: expected {' or '.join(get_args(FoldsBy))}.")
    if request.folds_by == "site":
        if request.splits_file is not None:
            raise UsageError("--folds-by site and --splits both choose the folds. Give one of them.")
        if request.n_folds != PlanRequest.n_folds:
            raise UsageError("--folds-by site makes one fold for each site. Leave out --n-folds.")
        if request.data is None:
            raise UsageError("--folds-by site needs DATA, since nnU-Net's two files name no sites.")


def _require_positive(option: str, value: float | None, unit: str) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{option} {value:g}: expected a number above 0{f' ({unit})' if unit else ''}.")
