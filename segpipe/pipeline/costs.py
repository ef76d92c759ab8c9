"""Predict what a plan will take before anything runs: memory, time of a step, disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from segpipe.core.errors import PlanError
from segpipe.core.labels import LabelSet
from segpipe.core.machine import total_bytes
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.cost import CPU, CUDA, Cost, Precision, cost, seconds_per_step
from segpipe.networks.device import precision_name, resolve_device
from segpipe.networks.memory_trace import LossFunction
from segpipe.networks.spec import NetworkSpec
from segpipe.pipeline.requests import Machine
from segpipe.plan.patch import Memory, PredictMemory, nearest_fit
from segpipe.plan.planned_cost import PlannedCost, kept_bytes, prepared_bytes
from segpipe.plan.presets import SHARE_OF_RAM
from segpipe.plan.schema import Configuration, Plan
from segpipe.plan.training import OPTIMIZERS, Training
from segpipe.prepare.store import KEPT_SHARE
from segpipe.train.losses import supervised_loss
from segpipe.train.restoration import loss_of_unknown_images

_GIB = 2**30


def planned_costs(
    plan: Plan, fingerprint: Fingerprint, machine: Machine, max_memory_gib: float | None = None
) -> list[PlannedCost]:
    """Predict what each configuration will take; those with a single stage, which cannot be built, are left out.

    Args:
        plan, fingerprint, machine: The plan, its data, and what it is for.
        max_memory_gib: Of a CPU, instead of what there is.
    """
    buildable = {n: c for n, c in plan.configurations.items() if len(c.network.features) > 1}
    result = []
    for name, configuration in buildable.items():
        taken = _cost_of(plan, configuration, machine)
        cases = _Cases(kept_bytes(fingerprint, plan, configuration), prepared_bytes(fingerprint, plan, configuration))
        result.append(_make_planned_cost(plan, name, taken, cases, machine, max_memory_gib))
    return result


def restoring_cost(plan: Plan, name: str, kept: int, prepared: int, machine: Machine) -> PlannedCost:
    """Predict what it takes to train a configuration's network to restore images, as `segpipe pretrain` does.

    Args:
        plan, name, machine: The configuration, and what it is for.
        kept: Bytes of the prepared images in memory.
        prepared: Bytes of the prepared images on disk.
    """
    own = plan.configurations[name]
    task = _task(plan, own, len(plan.channels), loss_of_unknown_images, machine)
    taken = _cost(task, own.network, own.patch_zyx, own.batch_size)
    return _make_planned_cost(plan, name, taken, _Cases(kept, prepared), machine)


def too_large(costs: Sequence[PlannedCost], limit_gib: float) -> list[PlannedCost]:
    """The costs of the configurations that do not fit into memory."""
    return [taken for taken in costs if taken.training_gib > limit_gib]


def misfits(plan: Plan, costs: Sequence[PlannedCost], machine: Machine, limit_gib: float) -> list[str]:
    """One sentence for each configuration that does not fit, with the edits that give the nearest one that does."""
    return [
        f"{taken.configuration}: training needs about {taken.training_gib:.1f} GiB of {taken.memory} memory, there are "
        f"{limit_gib:.3g}. {_advice(plan, taken.configuration, machine, limit_gib)}"
        for taken in too_large(costs, limit_gib)
    ]


def fit_to_memory(plan: Plan, costs: Sequence[PlannedCost], machine: Machine, limit_gib: float) -> Plan:
    """The plan with the nearest configuration that fits in place of each that does not; without those that never fit.

    Raises:
        PlanError: If nothing is left.
    """
    configurations, reasons = dict(plan.configurations), dict(plan.reasons)
    misfit = {taken.configuration for taken in too_large(costs, limit_gib)}
    for name, planned in sorted(plan.configurations.items(), key=lambda item: item[1].previous is not None):
        wanted = planned
        if planned.previous is not None:  # a cascade has its base's patch and network, and more channels
            base = configurations.get(planned.inherits or "")
            if base is None or planned.previous not in configurations:
                del configurations[name]
                continue
            wanted = base.model_copy(update={"inherits": planned.inherits, "previous": planned.previous})
        elif name not in misfit:
            continue
        nearest = _nearest(plan, wanted, machine, limit_gib)
        if nearest is None:
            del configurations[name]
            reasons[name] = f"Left out: not even its smallest patch fits {limit_gib:.3g} GiB by the predicted memory."
            continue
        configurations[name] = nearest
        if nearest != wanted or name in misfit:
            smaller = f"Made smaller than the rules say, to fit {limit_gib:.3g} GiB by the predicted memory."
            reasons[name] = f"{reasons.get(name, '')} {smaller}".lstrip()
    if not configurations:
        option = "--gpu-memory" if plan.is_for_gpu else "--max-memory"
        raise PlanError(
            f"{option}: {limit_gib:.3g} GiB is too little for all of them "
            f"({', '.join(plan.configurations)}). Give more, "
            f"{'plan without a GPU (--device cpu), ' if plan.is_for_gpu else ''}or choose a smaller network."
        )
    return plan.model_copy(update={"configurations": configurations, "reasons": reasons})


def memory_limit_gib(plan: Plan, max_memory_gib: float | None) -> float:
    """Memory that training may take; infinite where it is not known.

    Args:
        plan: For a GPU or not.
        max_memory_gib: Of a CPU, instead of what there is.
    """
    if plan.is_for_gpu:
        return plan.gpu_memory_gib or math.inf
    return max_memory_gib or SHARE_OF_RAM * total_bytes() / _GIB or math.inf


def _nearest(plan: Plan, wanted: Configuration, machine: Machine, limit_gib: float) -> Configuration | None:
    return nearest_fit(wanted, lambda c: _cost_of(plan, c, machine).training_bytes, int(limit_gib * _GIB))


def _advice(plan: Plan, name: str, machine: Machine, limit_gib: float) -> str:
    wanted = plan.configurations[name]
    nearest = _nearest(plan, wanted, machine, limit_gib)
    if nearest is None:
        return "Not even the smallest patch fits; choose a smaller network."
    values = {"patch_zyx": list(nearest.patch_zyx), "batch_size": nearest.batch_size}
    edits = [
        f"--set configurations.{name}.{key}={str(value).replace(' ', '')}"
        for key, value in values.items()
        if value != wanted.model_dump(mode="json")[key]
    ]
    return f"The nearest that fits: {' '.join(edits)}"


def predictor(n_channels: int, labels: LabelSet, training: Training) -> PredictMemory:
    """Predicts what training takes on a GPU; asked again for the same network and patch it remembers."""

    @cache
    def predict(network: NetworkSpec, patch_zyx: tuple[int, int, int], batch_size: int) -> Memory:
        loss = _loss_of_labels(labels, training, batch_dice=False)
        task = _Task(n_channels, labels.n_outputs, training, loss, is_for_gpu=True, precision="bf16")
        taken = _cost(task, network, patch_zyx, batch_size)
        fixed = CUDA.context_bytes + taken.parameter_bytes + taken.gradient_bytes + taken.optimizer_bytes
        return Memory(total_bytes=taken.training_bytes, fixed_bytes=fixed)

    return predict


@dataclass(frozen=True)
class _Task:
    """Everything that decides the cost of training besides network, patch and batch."""

    n_channels: int
    n_outputs: int
    training: Training
    loss: LossFunction
    is_for_gpu: bool
    precision: Precision


@dataclass(frozen=True)
class _Cases:
    """Bytes that the prepared cases of a configuration take in memory and on disk."""

    kept: int
    prepared: int


def _make_planned_cost(
    plan: Plan, name: str, taken: Cost, cases: _Cases, machine: Machine, max_memory_gib: float | None = None
) -> PlannedCost:
    device = resolve_device(machine.device)
    is_here = plan.is_for_gpu == (device.type != "cpu")
    kept = 0 if plan.is_for_gpu else cases.kept
    has_room = kept < KEPT_SHARE * memory_limit_gib(plan, max_memory_gib) * _GIB - taken.training_bytes
    return PlannedCost(
        configuration=name,
        memory="GPU" if plan.is_for_gpu else "CPU",
        training_gib=(taken.training_bytes + kept * has_room) / _GIB,
        prediction_gib=taken.inference_bytes / _GIB,
        tera_macs_per_step=taken.n_macs_step / 1e12,
        seconds_per_step=seconds_per_step(taken, device, _precision(plan, machine)) if is_here else None,
        parameters=taken.n_parameters,
        prepared_gib=cases.prepared / _GIB,
    )


def _cost_of(plan: Plan, configuration: Configuration, machine: Machine) -> Cost:
    loss = _loss_of_labels(plan.labels, plan.training, batch_dice=configuration.batch_dice)
    task = _task(plan, configuration, plan.labels.n_outputs, loss, machine)
    return _cost(task, configuration.network, configuration.patch_zyx, configuration.batch_size)


def _task(plan: Plan, configuration: Configuration, n_outputs: int, loss: LossFunction, machine: Machine) -> _Task:
    n_inputs, precision = plan.n_inputs(configuration), _precision(plan, machine)
    return _Task(n_inputs, n_outputs, plan.training, loss, plan.is_for_gpu, precision)


def _cost(task: _Task, network: NetworkSpec, patch_zyx: tuple[int, int, int], batch_size: int) -> Cost:
    optimizer = OPTIMIZERS[task.training.optimizer]
    return cost(
        network,
        task.n_channels,
        task.n_outputs,
        patch_zyx,
        batch_size,
        optimizer_states=optimizer.states,
        gradient_copies=optimizer.gradient_copies,
        n_passes=optimizer.n_passes,
        averages_weights=bool(task.training.weight_average),
        precision=task.precision,
        loss=task.loss,
        calibration=CUDA if task.is_for_gpu else CPU,
    )


def _loss_of_labels(labels: LabelSet, training: Training, *, batch_dice: bool) -> LossFunction:
    return partial(supervised_loss, labels=labels, batch_dice=batch_dice, loss=training.loss)


def _precision(plan: Plan, machine: Machine) -> Precision:
    if plan.is_for_gpu and plan.training.precision == "auto":
        return "bf16"
    return precision_name(plan.training.precision, resolve_device("cpu" if plan.is_for_gpu else machine.device))
