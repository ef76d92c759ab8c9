"""Run a study: every arm on the same folds and seeds under one budget, resumable, then the comparison."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.bridge.nnunet_raw import file_ending, nnunet_labels
from segpipe.bridge.nnunet_train import NnunetJob, train_nnunet
from segpipe.compare.comparison import Question, compare
from segpipe.compare.comparison_records import Comparison
from segpipe.compare.comparison_text import save
from segpipe.compare.declaration import DECLARATION_FILE, Declaration, with_standing
from segpipe.compare.results import Method
from segpipe.compare.study_file import (
    STUDY_FILE,
    Arm,
    StepCost,
    StepCosts,
    Study,
    StudyEstimate,
    StudyFolder,
    StudyTraining,
    read_study,
)
from segpipe.core.errors import DataError, Interrupted, PlanError, SegpipeError, UsageError
from segpipe.core.files import make_folder, only_process
from segpipe.core.progress import say
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Fold, Splits, with_fewer_patients
from segpipe.evaluate.ledger import LEDGER_FILE, Scoring, append_scoring, read_ledger, scoring_of
from segpipe.evaluate.pairs import find_pairs
from segpipe.evaluate.scores import ScoreTable
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.device import device_kind, resolve_device
from segpipe.pipeline import plan, train
from segpipe.pipeline.learning_curves import learning_curves
from segpipe.pipeline.plan import PlanJob, default_configuration
from segpipe.pipeline.requests import Machine, PlanRequest, StudyRequest, TrainRequest
from segpipe.plan.schema import Plan
from segpipe.report.compare_page import write_compare_page

_JOB_FILE = "job.json"
_MEASURED_TIMES = 3  # for each arm
_MASKS_FILE = "masks.json"  # beside the scores of masks that are there already


class _NnunetMasks(Record):
    """Settings and cases that masks of nnunetv2 were trained with."""

    job: NnunetJob
    split: Fold

    def is_of(self, other: _NnunetMasks) -> bool:
        """True if another one asks for these masks; processors may differ if a study resumes on another machine."""
        job = self.job.model_copy(update={"n_threads": other.job.n_threads})
        return (job, self.split) == (other.job, other.split)


class _GivenMasks(Record):
    """Digest of the files that the scores of an arm with masks are of."""

    files: str

    @classmethod
    def of(cls, pairs: Sequence[MaskPair], dataset: Dataset) -> _GivenMasks:
        """The state now, by size and time of each file: reading all of them takes as long as scoring."""
        parts = [dataset.labels.digest()]
        for pair in pairs:
            stats = [file.stat() for file in (pair.reference, pair.prediction)]
            files = (f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
            parts += [str(pair.prediction.resolve()), repr(pair.origin), *files]
        return cls(files=hashlib.sha256("\n".join(parts).encode()).hexdigest())


@dataclass(frozen=True)
class StudyJob:
    """A study that was read, and its dataset."""

    study: Study
    data: Path
    output: Path
    machine: Machine

    @property
    def folder(self) -> StudyFolder:
        """Paths in the study's folder."""
        return StudyFolder(self.output)

    def base_planning(self) -> PlanRequest:
        """The request to plan what all arms share."""
        return PlanRequest(
            folder=self.folder.base.path,
            machine=self.machine,
            data=self.data,
            preset=self.study.base.preset,
            n_folds=self.study.n_folds,
            seed=self.study.split_seed,
            predicts_costs=False,
        )

    def planning(self, name: str, seed: int, n_steps: int | None = None) -> PlanRequest:
        """The request to plan one seed of an arm; `n_steps` is what its processor time suffices for."""
        arm = self.study.arms[name]
        return replace(
            self.base_planning(),
            folder=self.folder.seed(name, seed).path,
            preset=arm.preset or self.study.base.preset,
            edits=self.study.assignments(arm, seed, n_steps),
            predicts_costs=seed == self.study.seeds[0],
        )


def resolve(request: StudyRequest) -> StudyJob:
    """Read a study and find its dataset.

    Raises:
        UsageError: If it names no dataset.
        PlanError: If the file is no study.
        DataError: If the dataset cannot be used.
        SetupError: If there is no such device.
    """
    study = read_study(request.study)
    data = request.data or (Path(study.data) if study.data else None)
    if data is None:
        raise UsageError(f"{request.study}: names no data. Add `data:` to it, or use --data.")
    job = StudyJob(study, data, request.output, request.machine)
    device = resolve_device(request.machine.device)
    if study.processor_minutes and device.type != "cpu":
        raise UsageError(f"{request.study}: processor_minutes are of a CPU, and the device is {device}. Use minutes.")
    for name, arm in study.arms.items():
        if arm.is_trained_here:
            _check_arm(job, name)
    splits = plan.resolve(job.base_planning()).known_splits
    if splits is not None:
        _require_folds(study, splits)
    for name, arm in study.arms.items():
        if arm.masks is not None:
            for masks in arm.mask_folders(study.seeds):
                find_pairs(data, masks, name)
    return job


def _check_arm(job: StudyJob, name: str) -> None:
    """Check what can be checked of an arm without the dataset.

    Raises:
        SegpipeError: As `plan.check_options`, with the arm's name.
    """
    try:
        plan.check_options(job.planning(name, job.study.seeds[0]))
    except PlanError as fault:
        raise PlanError(f"arm {name}: {fault}") from None


def _require_folds(study: Study, splits: Splits) -> None:
    if max(study.folds) >= splits.k:
        raise UsageError(f"folds {study.folds}: the data have {splits.k} folds, counted from 0. Name fewer.")


def estimate(job: StudyJob) -> StudyEstimate:
    """Count the trainings, and those that are finished."""
    trainings = job.study.trainings
    n_finished = sum(_is_finished(job, training) for training in trainings)
    return StudyEstimate(**dict(job.study), n_trainings=len(trainings), n_finished=n_finished)


@dataclass(frozen=True)
class StudyResult:
    """Result of a study.

    Args:
        comparison: Of the arms that are whole.
        page: The same for people.
        failures: Why each other arm is not whole, one sentence each.
    """

    comparison: Comparison
    page: Path
    failures: tuple[str, ...]


def run(job: StudyJob) -> StudyResult:
    """Train what is not trained yet, score it, compare. All arms are planned before one is trained.

    What the study is judged by is declared before the first training. An arm in which a training fails is left out of
    the comparison, and named; the other arms are trained all the same.

    Raises:
        UsageError: If the folder holds other trainings than the study's, or the splits changed since the declaration.
        DataError: If the dataset or an arm's masks cannot be used, or too few arms are whole to compare.
        PlanError: If an arm's plan is wrong.
        Interrupted: If it was asked to stop; rerun it to resume.
    """
    make_folder(job.output)
    with only_process(job.output):
        running = _Running(job)
        running.plan()
        running.train()
        failures = tuple(f"Arm {arm} failed: {reason}" for arm, reason in running.failed.items())
        methods, question = running.methods(), running.question
        curves, notes = learning_curves(job.study, job.folder, methods, question)
        comparison = compare(methods, question)
        comparison = with_standing(comparison, [job.output], methods, question, *failures, *notes)
        save(comparison, job.output)
        page = write_compare_page(comparison, methods, question, job.output, curves)
        return StudyResult(comparison, page, failures)


class _Running:
    """A study at work."""

    def __init__(self, job: StudyJob) -> None:
        self.job, self.study, self.data = job, job.study, job.data
        self.folder, self.machine = job.folder, job.machine
        self.failed: dict[str, str] = {}  # why, by arm
        self.question = Question(margins=dict(job.study.margins), against_first=True)

    def plan(self) -> None:
        """The base, then each arm and seed on the same fingerprint and splits."""
        study, base = self.study, self.folder.base
        job = plan.resolve(self.job.base_planning())
        self._refuse_other_splits(job)
        plan.run(job)
        self.dataset, self.splits = Dataset.load(base.dataset), Splits.load(base.splits)
        _require_folds(study, self.splits)
        n_steps = self._steps_in_processor_time() if study.processor_minutes else {}
        for name, arm in study.arms.items():
            for seed in study.seeds if arm.is_trained_here else ():
                self._plan_arm(name, seed, n_steps.get(name))
                work = self.folder.seed(name, seed)
                if arm.training_patients < 1:
                    presence = plan.label_presence(Fingerprint.load(base.fingerprint))
                    with_fewer_patients(
                        self.splits, self.dataset, presence, arm.training_patients, study.split_seed
                    ).save(work.splits)
        if any(arm.nnunetv2 for arm in study.arms.values()):
            file_ending(self.dataset)
            nnunet_labels(self.dataset)
        study.save(self.folder.path / STUDY_FILE)
        self._declare()
        self.given = {name: self._scored_masks(name, arm) for name, arm in study.arms.items() if arm.masks}

    def _plan_arm(self, name: str, seed: int, n_steps: int | None) -> None:
        say(f"arm {name}, seed {seed}")
        _share(self.folder.base, self.folder.seed(name, seed))
        planned = plan.run(plan.resolve(self.job.planning(name, seed, n_steps)))
        default_configuration(planned.plan, self._configuration(name))

    def _steps_in_processor_time(self) -> dict[str, int]:
        """Steps of each arm that take the study's processor time; what is not known yet is measured first.

        Arms are measured in turn, several times, and the least counts: other work on the machine only adds to it.
        """
        study, file = self.study, self.folder.step_costs
        known = StepCosts.load(file).arms if file.is_file() else {}
        edits = {
            name: study.assignments(arm, study.seeds[0]) for name, arm in study.arms.items() if arm.is_trained_here
        }
        missing = [name for name in edits if name not in known or known[name].edits != edits[name]]
        for name in missing:
            self._plan_arm(name, study.seeds[0], None)
        least = dict.fromkeys(missing, math.inf)
        for _ in range(_MEASURED_TIMES if missing else 0):
            for name in missing:
                work, configuration = self.folder.seed(name, study.seeds[0]), self._configuration(name)
                request = TrainRequest(work.path, self.machine, configuration, folds=study.folds[:1])
                least[name] = min(least[name], train.processor_seconds_of_step(request))
        costs = known | {name: StepCost(edits=edits[name], seconds=least[name]) for name in missing}
        if missing:
            StepCosts(arms=costs).save(file)
        return {name: costs[name].n_steps(study.processor_minutes or 0) for name in edits}

    def _refuse_other_splits(self, job: PlanJob) -> None:
        """Compare the folds with the declared ones, before anything is written over them.

        Raises:
            UsageError: If they differ, and a training has begun.
        """
        file = self.folder.path / DECLARATION_FILE
        if not file.is_file() or not self._has_begun:
            return
        declared = Declaration.load(file)
        planned, _ = plan.decide(job, job.work.measured_cases)
        if max(self.study.folds) < planned.splits.k:
            now = Declaration.of(self.study, planned.dataset, planned.splits)
            if now.splits != declared.splits:
                raise UsageError(
                    f"{file}: the splits changed since they were declared on {declared.time} (digest "
                    f"{declared.splits}, now {now.splits}; {count(declared.n_cases, 'case')} to validate, now "
                    f"{now.n_cases}). Put the dataset, n_folds and split_seed back, or begin a new study in another "
                    "folder."
                )

    @property
    def _has_begun(self) -> bool:
        """True if any fold was trained or is in training."""
        places = ("arms/*/seed_*/runs/*/fold_*", "arms/*/seed_*/fold_*")
        return any(next(self.folder.path.glob(place), None) for place in places)

    def _declare(self) -> None:
        """Write down what the study is judged by; once a training has begun, the first declaration stays."""
        file, now = self.folder.path / DECLARATION_FILE, Declaration.of(self.study, self.dataset, self.splits)
        if file.is_file():
            changes = Declaration.load(file).changes(now)
            for change in changes if self._has_begun else ():
                say(f"warning: {file.name} stays as it was before the first training: {change}.")
            if not changes or self._has_begun:
                return
        now.save(file)
        append_scoring(self.folder.path, Scoring(event="declaration", name=self.study.name, model=now.digest()))

    def train(self) -> None:
        """Every training that is not finished. An arm in which one fails is given up."""
        trainings = self.study.trainings
        for number, training in enumerate(trainings, 1):
            place = f"arm {training.arm}, fold {training.fold}, seed {training.seed}"
            if training.arm in self.failed:
                continue
            say(f"study {self.study.name}: {number}/{len(trainings)}, {place}")
            try:
                if self.study.arms[training.arm].nnunetv2:
                    self._train_nnunet(training)
                else:
                    self._train_planned(training)
            except (Interrupted, UsageError):  # asked to stop; or the folder belongs to another study
                raise
            except SegpipeError as fault:
                self.failed[training.arm] = f"fold {training.fold}, seed {training.seed}: {fault}"
                say(f"error: {place}: {fault}")

    def methods(self) -> list[Method]:
        """The scores of every arm that is whole, which are also written arm by arm.

        Raises:
            DataError: If the baseline failed, or fewer than two arms are whole.
        """
        whole = [name for name in self.study.arms if name not in self.failed]
        if len(whole) < 2 or whole[0] != next(iter(self.study.arms)):
            failures = "; ".join(f"arm {arm}, {reason}" for arm, reason in self.failed.items())
            raise DataError(
                f"{self.folder.path}: nothing to compare, since the baseline or all others failed: {failures}"
            )
        methods = []
        for name in whole:
            arm = self.study.arms[name]
            own = [training for training in self.study.trainings if training.arm == name]
            table = (
                self.given[name]
                if arm.masks is not None
                else ScoreTable.join(map(self._scores, own), self.folder.scores(name).parent)
            )
            table.save(self.folder.scores(name))
            methods.append(Method(name, table))
        return methods

    def _configuration(self, arm: str) -> str | None:
        return self.study.arms[arm].configuration or self.study.base.configuration

    def _fold(self, training: StudyTraining) -> FoldFolder:
        work, arm = self.folder.seed(training.arm, training.seed), self.study.arms[training.arm]
        if arm.nnunetv2:
            return FoldFolder(work.path / f"fold_{training.fold}")
        name = default_configuration(Plan.load(work.plan), self._configuration(training.arm))
        return work.fold(name, str(training.fold))

    def _scores(self, training: StudyTraining) -> ScoreTable:
        rows = ScoreTable.load(self._fold(training).scores).rows
        return ScoreTable(tuple(replace(row, run=training.arm, seed=training.seed) for row in rows))

    def _train_planned(self, training: StudyTraining) -> None:
        work, fold = self.folder.seed(training.arm, training.seed), self._fold(training)
        split = Splits.load(work.splits).folds[training.fold]
        is_done = fold.scores.is_file() and fold.plan.is_file() and fold.split.is_file()
        if (
            is_done
            and Plan.load(fold.plan).decisions == Plan.load(work.plan).decisions
            and Fold.load(fold.split) == split
        ):
            say(f"{fold.path}: already trained and scored.")
            return
        name = fold.path.parent.name
        train.train(TrainRequest(work.path, self.machine, configuration=name, folds=(training.fold,)))

    def _train_nnunet(self, training: StudyTraining) -> None:
        fold, split = self._fold(training), self.splits.folds[training.fold]
        job = NnunetJob(
            fold=training.fold,
            seed=training.seed,
            minutes=self.study.minutes,
            steps=self.study.steps,
            device=device_kind(self.machine.device),
            n_threads=self.machine.n_workers,
        )
        about, made = fold.path / _JOB_FILE, _NnunetMasks(job=job, split=split)
        if fold.scores.is_file() and about.is_file() and _NnunetMasks.load(about).is_of(made):
            say(f"{fold.path}: already trained and scored.")
            return
        if fold.scores.is_file():
            raise UsageError(
                f"{fold.path}: holds nnunetv2 trained with other settings. Use another folder, or delete this one."
            )
        make_folder(fold.path)
        masks = train_nnunet(self.data, self.folder.base.splits, job, fold.path, self.folder.path / "nnunet")
        made.save(about)
        pairs = self._pairs(masks, training)
        table = score_folder(pairs, self.dataset.labels, self.machine.n_workers)
        name = f"{training.arm} fold {training.fold}, seed {training.seed}"
        append_scoring(self.folder.path, scoring_of("fold", name, pairs, table))
        table.save(fold.scores)

    def _scored_masks(self, name: str, arm: Arm) -> ScoreTable:
        """Scores of masks that are there already, in the study's folds."""
        pairs = [
            pair
            for masks, seed in zip(arm.mask_folders(self.study.seeds), self.study.seeds, strict=False)
            for fold in self.study.folds
            for pair in self._pairs(masks, StudyTraining(name, fold, seed))
        ]
        scores, now = self.folder.scores(name), _GivenMasks.of(pairs, self.dataset)
        about = scores.with_name(_MASKS_FILE)
        if scores.is_file() and about.is_file() and _GivenMasks.load(about) == now:
            return ScoreTable.load(scores)
        about.unlink(missing_ok=True)
        table = score_folder(pairs, self.dataset.labels, self.machine.n_workers)
        scoring = scoring_of("fold", f"{name}, masks in {arm.masks}", pairs, table)
        known = {(one.masks, one.scores) for one in read_ledger(self.folder.path / LEDGER_FILE).scorings}
        if (scoring.masks, scoring.scores) not in known:  # the same files may have been copied again
            append_scoring(self.folder.path, scoring)
        table.save(scores)
        now.save(about)
        return table

    def _pairs(self, masks: Path, training: StudyTraining) -> list[MaskPair]:
        """A fold's validation cases.

        Raises:
            DataError: If one has no mask.
        """
        found = {pair.origin.case_id: pair for pair in find_pairs(self.data, masks, training.arm).pairs}
        cases = self.splits.folds[training.fold].validation
        if missing := [case for case in cases if case not in found]:
            raise DataError(
                f"{masks}: lacks masks of {len(missing)} of {len(cases)} validation cases of fold {training.fold} "
                f"({', '.join(missing[:5])}). Add them; cases are never left out of a comparison silently."
            )
        return [
            replace(found[case], origin=replace(found[case].origin, fold=training.fold, seed=training.seed))
            for case in cases
        ]


def _is_finished(job: StudyJob, training: StudyTraining) -> bool:
    """True if a training is scored, as far as its files tell."""
    work = job.folder.seed(training.arm, training.seed)
    fold = f"fold_{training.fold}/scores.csv"
    return any(work.path.glob(fold if job.study.arms[training.arm].nnunetv2 else f"runs/*/{fold}"))


def _share(base: Work, work: Work) -> None:
    """Let an arm find what was measured and prepared; how a case is prepared names its folder, so none is mixed up."""
    make_folder(work.path)
    shutil.copyfile(base.measured_cases, work.measured_cases)
    prepared = work.path / "prepared"
    if not prepared.is_symlink():
        make_folder(base.path / "prepared")
        prepared.symlink_to(os.path.relpath(base.path / "prepared", work.path))
    ledger = work.path / LEDGER_FILE
    if not ledger.is_symlink():  # one for the study: its first line is the declaration
        ledger.unlink(missing_ok=True)
        ledger.symlink_to(os.path.relpath(base.path.parent / LEDGER_FILE, work.path))
