"""Pre-train the network of a plan on images, labelled or not: it restores what is hidden of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.files import make_folder
from segpipe.core.foreseen import Foreseen
from segpipe.core.progress import say
from segpipe.core.seeds import generator_for
from segpipe.core.text import count
from segpipe.core.volume import read_header
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Case
from segpipe.data.inputs import list_inputs
from segpipe.data.splits import Fold
from segpipe.fingerprint.record import CaseFingerprint
from segpipe.networks.device import resolve_device, set_processors
from segpipe.pipeline.costs import restoring_cost
from segpipe.pipeline.estimates import fold_bytes, foreseen_training, seconds_of_steps, steps_text, weights_bytes
from segpipe.pipeline.plan import default_configuration
from segpipe.pipeline.requests import PretrainRequest
from segpipe.pipeline.train import count_steps_left
from segpipe.plan.edit import edit_plan
from segpipe.plan.loss import SUPCON
from segpipe.plan.planned_cost import kept_case_bytes, prepared_case_bytes
from segpipe.plan.schema import Plan
from segpipe.prepare.dataset import cases_to_prepare, needs_of_unplanned, prepare_unplanned, prepared_folder
from segpipe.prepare.store import content_of_stored, open_cases
from segpipe.train.checkpoint import save_pretrained
from segpipe.train.fold import FoldData
from segpipe.train.loop import train_fold
from segpipe.train.restoration import restoration_for
from segpipe.train.schedule import Schedule

WEIGHTS_FILE, _TRAINING = "pretrained.safetensors", "training"
_FEWEST = 2
_HELD_OUT_SHARE = 0.05  # of the images, to see whether the loss falls on others too; at least one
_HOLD_OUT = 6  # place of the random stream
_MAX_NAMED = 10  # faulty images in a message


@dataclass(frozen=True)
class PretrainJob:
    """A pre-training that was checked.

    Args:
        request: As it was asked.
        plan: With the edits.
        configuration: Name of the one whose network is trained.
        cases: The images, and where they are wanted their labels.
        split: Which are trained on, and which are held out to watch the loss.
        steps_left: From the end of the last epoch.
    """

    request: PretrainRequest
    plan: Plan
    configuration: str
    cases: tuple[Case, ...]
    split: Fold
    steps_left: int


@dataclass(frozen=True)
class Pretrained:
    """The weights that pre-training made, for `network.weights.source`, and the images that they have seen."""

    weights: Path
    configuration: str
    n_images: int
    n_held_out: int


def resolve(request: PretrainRequest) -> PretrainJob:
    """Check a pre-training against the plan and the images.

    Raises:
        UsageError: If there is no plan, no such configuration, the configuration is the second of a cascade, or the
            output folder holds a pre-training with another plan or on other images.
        PlanError: If an edit is wrong.
        DataError: If there are fewer than 2 images, or their channels are not the plan's.
        SetupError: If there is no such device.
    """
    work = Work(request.plan_of)
    work.require_plan()
    plan = edit_plan(Plan.load(work.plan).decisions, request.all_edits)
    name = default_configuration(plan, request.configuration)
    if plan.configurations[name].previous is not None:
        raise UsageError(
            f"-c {name}: is guided by the labels of {plan.configurations[name].previous}, which images do not have. "
            "Choose a configuration that sees images alone."
        )
    resolve_device(request.machine.device)
    if request.with_labels != (SUPCON in plan.training.loss.terms):
        raise UsageError(
            f"--with-labels and the term {SUPCON} of training.loss go together: it is what learns from labels. Give "
            f"both, e.g. --with-labels --set 'training.loss.terms={{{SUPCON}: 0.1}}', or neither."
        )
    cases = list_inputs(request.data, plan.channels)
    if not request.with_labels:
        cases = [case.model_copy(update={"label": None}) for case in cases]
    if len(cases) < _FEWEST:
        raise DataError(
            f"{request.data}: {count(len(cases), 'image')}, expected at least {_FEWEST}: one is held out to see "
            "whether the loss falls on images that are not trained on. Add images."
        )
    ids = [case.case_id for case in cases]
    n_held_out = max(1, round(_HELD_OUT_SHARE * len(ids)))
    order = generator_for(plan.training.seed, _HOLD_OUT).permutation(len(ids))
    held_out = {ids[place] for place in order[:n_held_out]}
    split = Fold(train=tuple(i for i in ids if i not in held_out), validation=tuple(i for i in ids if i in held_out))
    folder = FoldFolder(request.output / _TRAINING)
    left = Schedule(plan.training).n_iterations if request.restart else count_steps_left(plan, split, folder, 1)
    return PretrainJob(request, plan, name, tuple(cases), split, left)


def run(job: PretrainJob) -> Pretrained:
    """Prepare the images and pre-train; rerun to resume. Leaves `WEIGHTS_FILE` in the output folder.

    It is a training with the plan's recipe in which images are hidden and restored; see `train.restoration`. One
    process computes it. The time budget counts from the start of training, after the images are prepared.

    Raises:
        DataError: If images cannot be prepared.
        ResourceError, SetupError: If memory or disk runs out, or the folder cannot be written.
    """
    request, plan, name = job.request, job.plan, job.configuration
    set_processors(request.machine.n_workers)
    device, configuration = resolve_device(request.machine.device), plan.configurations[name]
    make_folder(request.output)
    folder = prepared_folder(Work(request.output), plan, configuration)
    prepare_unplanned(folder, job.cases, plan, configuration, request.machine.n_workers)
    train, held_out = (
        open_cases(folder, ids, request.machine.n_workers, device) for ids in (job.split.train, job.split.validation)
    )
    data = FoldData(0, job.split, train, held_out, restoration_for(configuration.network))
    fold = FoldFolder(request.output / _TRAINING)
    train_fold(plan, name, data, fold, device, time.monotonic(), restart=request.restart)
    weights = request.output / WEIGHTS_FILE
    save_pretrained(weights, fold.weights, {case.case_id: content_of_stored(case) for case in (*train, *held_out)})
    say(f"{weights}: pre-trained on {count(len(job.cases), 'image')}.")
    return Pretrained(weights, name, len(job.cases), len(held_out))


def estimate(job: PretrainJob) -> Foreseen:
    """Estimate the time, disk and memory that a pre-training will take; of the images only headers are read.

    Raises:
        DataError: If headers cannot be read, all of them together.
    """
    request, plan, name = job.request, job.plan, job.configuration
    own, machine = plan.configurations[name], request.machine
    folder = prepared_folder(Work(request.output), plan, own)
    images = _by_headers(job)
    missing = {case.case_id for case in cases_to_prepare(folder, job.cases)}
    new = [image for image in images if image.case_id in missing]
    needs = needs_of_unplanned(folder, new, plan, own, machine.n_workers)
    kept, prepared = (
        sum(size_of(image, plan, own, plan.axes_of(image.orientation)) for image in images)
        for size_of in (kept_case_bytes, prepared_case_bytes)
    )
    cost = restoring_cost(plan, name, kept, prepared, machine)
    seconds, source = seconds_of_steps(plan, name, cost, job.steps_left, [FoldFolder(request.output / _TRAINING)])
    return foreseen_training(
        command="pretrain",
        todo=f"{name}, {count(len(images), 'image')}, {steps_text(plan, [job.steps_left])}; "
        f"{count(needs.n_cases, 'image')} to prepare",
        seconds=seconds if job.steps_left else 0.0,
        seconds_from=source if job.steps_left else "the training is finished",
        written_bytes=fold_bytes(plan, cost) + weights_bytes(cost) if job.steps_left else 0,
        folder=request.output,
        needs=needs,
        cost=cost,
        device=machine.device,
        notes=[
            *(["preparing images takes additional time"] if new else []),
            "images count in full: what cropping removes is not known",
        ],
    )


def _by_headers(job: PretrainJob) -> list[CaseFingerprint]:
    """The images as far as headers tell, as if nothing were cropped.

    Raises:
        DataError: If headers cannot be read, all of them together.
    """
    found, faults = [], []
    for case in job.cases:
        try:
            grid = read_header(case.image_paths[0]).grid
        except DataError as fault:
            faults.append(str(fault))
            continue
        found.append(
            CaseFingerprint(
                case_id=case.case_id,
                site=None,
                orientation=grid.orientation,
                spacing_mm=grid.spacing_mm,
                shape_zyx=grid.shape_zyx,
                cropped_shape_zyx=grid.shape_zyx,
                labels={},
                content="",
                signature="",
            )
        )
    if faults:
        more = [f"… and {len(faults) - _MAX_NAMED} more."] if len(faults) > _MAX_NAMED else []
        head = f"{job.request.data}: {len(faults)} of {count(len(job.cases), 'image')} cannot be read. Correct them."
        raise DataError("\n  ".join([head, *faults[:_MAX_NAMED], *more]))
    return found


def pretrain(request: PretrainRequest) -> Pretrained:
    """Check a pre-training and run it; see `resolve` and `run`."""
    return run(resolve(request))
