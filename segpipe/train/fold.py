"""A fold in training: its network, one step, one validation, and the state to resume from."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.core.errors import PlanError, SetupError
from segpipe.core.history import SPIKES
from segpipe.core.prefetch import Prefetch
from segpipe.core.progress import say
from segpipe.core.seeds import generator_for, seed_for
from segpipe.data.splits import Fold
from segpipe.networks.build import build
from segpipe.networks.convolutions import memory_format
from segpipe.networks.device import resolve_precision, set_up_cudnn
from segpipe.networks.initial_weights import start_from
from segpipe.plan.schema import Configuration, Plan
from segpipe.prepare.store import PatchCase
from segpipe.train.augmentation.apply import apply, apply_to_guides
from segpipe.train.augmentation.draws import Draws, draw, edges_to_cut, scope_of
from segpipe.train.cascade import add_guides
from segpipe.train.checkpoint import cpu_copy
from segpipe.train.contrast import contrast_for
from segpipe.train.distributed import ALONE, Group
from segpipe.train.divergence import divergence
from segpipe.train.losses import overlap_counts, supervised_loss
from segpipe.train.optim import WeightAverage, make_optimizer, set_rates
from segpipe.train.restoration import Restoration, restoration_loss
from segpipe.train.rigl import RigL
from segpipe.train.sampling import Batch, Sampling, cut_batch, draw_places
from segpipe.train.schedule import Progress, Schedule
from segpipe.train.sharpness import sharpness_of
from segpipe.train.spam import Spam

TRAIN, VALIDATE, _AUGMENT, _INITIAL, _DROPOUT, _HIDE, _CONTRAST = 0, 1, 2, 3, 4, 5, 6  # places of the random streams


@dataclass(frozen=True, eq=False)
class FoldData:
    """The cases that a fold is trained and validated on.

    Args:
        fold: Its number.
        split: Their ids.
        train, validation: The prepared cases.
        restoration: How images are hidden, where the network is to restore them; None: it segments them.
    """

    fold: int
    split: Fold
    train: Sequence[PatchCase]
    validation: Sequence[PatchCase]
    restoration: Restoration | None = None

    def n_outputs(self, plan: Plan) -> int:
        """Count the outputs of the network: the labels' or, of one that restores images, their channels."""
        return plan.labels.n_outputs if self.restoration is None else len(plan.channels)


@dataclass(frozen=True)
class Hooks:
    """Functions that watch a fold in training.

    Args:
        lap: Called with the name of a part of a step as soon as its work has been handed to the device.
        validated: Called with each validated batch, its output at full resolution, and the number of epochs before.
    """

    lap: Callable[[str], None] = lambda _: None
    validated: Callable[[Batch, Tensor, int], None] = lambda *_: None


_Part = tuple[Tensor, Callable[[Sequence[Tensor]], Tensor]]  # images for the network, and the loss of its outputs


class FoldTraining:
    """A fold in training: network, optimizer, average, and where it stands.

    A new one begins with the weights that the plan names; one that is going to be restored does not look for them.
    Several processes compute an equal part of each batch; what they hold and return is the same.

    Raises:
        PlanError: If the batch cannot be divided by the processes.
        SetupError: If the processes cannot train this network together, or it cannot be compiled as the plan wants.
    """

    def __init__(
        self,
        plan: Plan,
        configuration: Configuration,
        data: FoldData,
        device: torch.device,
        *,
        is_new: bool,
        group: Group = ALONE,
        hooks: Hooks | None = None,
    ) -> None:
        self.plan, self.configuration, self.data, self.device, self.group = plan, configuration, data, device, group
        self.hooks = hooks or Hooks()
        training = plan.training
        if configuration.batch_size % group.size:
            raise PlanError(
                f"batch_size {configuration.batch_size}: cannot be divided among {group.size} processes. Choose a "
                "multiple."
            )
        torch.manual_seed(seed_for(training.seed, data.fold, _INITIAL))
        network = build(configuration.network, plan.n_inputs(configuration), data.n_outputs(plan))
        self.pretrained: frozenset[str] = frozenset()
        self.seen: Mapping[str, str] | None = None  # cases that the first weights know, see `StartingWeights`
        if is_new and configuration.network.weights:
            started = start_from(configuration.network.weights, network)
            self.pretrained, self.seen = started.loaded, started.seen
            for line in started.lines:
                say(line)
        kind, n_axes = configuration.network.kind, configuration.network.n_axes
        order = memory_format(kind, n_axes, device, trains=True, wanted=training.channels_last)
        network = network.to(memory_format=order)
        self.network = group.share_statistics(network.to(device), device)
        sparse = configuration.network.sparse
        self.rigl = RigL(self.network, sparse, training.seed) if sparse else None
        self.average = WeightAverage(self.network, training.weight_average) if training.weight_average else None
        self.contrast = contrast_for(
            self.network, configuration.network, training.loss, restores=bool(data.restoration)
        )
        self.optimizer = make_optimizer(self.network, training, self.pretrained, also=self.contrast)
        self.sharpness = sharpness_of(self.network, training)
        self.dtype = resolve_precision(training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.scope = scope_of(plan, configuration)
        self.at = Progress()
        set_up_cudnn(device)
        if self.contrast is None and _wants_compiling(training.compiled, device):  # it watches the network inside
            # In place: names of weights stay. Both have one graph for training and one for validation at most.
            for network in (self.network, *([self.average.network] if self.average else [])):
                network.compile()

    @property
    def predictor(self) -> nn.Module:
        """The network to predict with."""
        return self.average.network if self.average else self.network

    def state(self, *, finished: bool) -> dict[str, Any]:
        """Return everything needed to resume."""
        return {
            "iteration": self.at.iteration,
            "epoch": self.at.epoch,
            "seconds": self.at.seconds,
            "history": self.at.history,
            "network": cpu_copy(self.network.state_dict()),
            "pretrained": sorted(self.pretrained),
            "contrast": cpu_copy(self.contrast.state_dict()) if self.contrast else {},
            "masks": self.rigl.state() if self.rigl else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": cpu_copy(self.average.network.state_dict()) if self.average else {},
            "average_steps": self.average.n_steps if self.average else 0,
            "finished": finished,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self.at = Progress(state["iteration"], state["epoch"], state["seconds"], list(state["history"]))
        self.network.load_state_dict(state["network"])
        if self.rigl:
            self.rigl.restore(state["masks"])
        self.pretrained = frozenset(state.get("pretrained", ()))  # states of older versions do not know
        if self.contrast:
            self.contrast.load_state_dict(state["contrast"])
        self.optimizer = make_optimizer(self.network, self.plan.training, self.pretrained, also=self.contrast)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the run began without loss scaling
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
            self.average.n_steps = state["average_steps"]

    def spike_rates(self) -> dict[str, float]:
        """Return columns of the history since this was last asked, if the optimizer clips spikes; none otherwise."""
        if not isinstance(self.optimizer, Spam):
            return {}
        rates = self.optimizer.spike_rates(self.network.named_parameters())
        return {f"{SPIKES}{layer}": rate for layer, rate in rates.items()}

    def draw(self, stream: int, iteration: int) -> list[Batch]:
        """This process's batches of an iteration, one for each part whose gradients are averaged.

        They are functions of seed, fold, stream and iteration alone. The parts of a draw, and the processes of a part,
        take samples in turn, so that each has its share of those on labels, which come last.
        """
        training, trains = self.plan.training, stream == TRAIN
        n_parts = training.gradient_accumulation if trains else 1
        sampling = Sampling(
            patch_zyx=self.configuration.patch_zyx,
            batch_size=self.configuration.batch_size * n_parts,
            foreground_fraction=training.foreground_fraction,
            foreground_unit=training.foreground_unit,
        )
        cases = self.data.train if trains else self.data.validation
        places = draw_places(cases, sampling, generator_for(training.seed, self.data.fold, stream, iteration))
        batches = []
        for part in range(n_parts):
            draws = self._draw_augmentation(iteration, part) if trains else None
            edges = edges_to_cut(draws, self.scope) if draws else ()
            own = places[part::n_parts][self.group.rank :: self.group.size]
            batches.append(cut_batch(own, sampling.patch_zyx, draws, edges, pins=self.device.type == "cuda"))
        return batches

    def _draw_augmentation(self, iteration: int, part: int) -> Draws | None:
        """The numbers for this process's samples of a part; None if the plan alters nothing."""
        training, configuration = self.plan.training, self.configuration
        if not training.augmentation.alters:
            return None
        generator = generator_for(training.seed, self.data.fold, _AUGMENT, iteration, part)
        draws = draw(self.scope, configuration.batch_size, len(self.plan.channels), generator)
        return draws.part(self.group.rank, self.group.size)

    def step(self, batches: Sequence[Batch], rate: float, *, freezes: bool = False) -> float:
        """One step of the optimizer.

        Args:
            batches: Of `draw`; the gradients of several are averaged.
            rate: Learning rate.
            freezes: Whether pretrained weights stay as they are.

        Returns:
            The loss. It may be infinite or NaN in float16, where such a step is skipped and the loss scale lowered.

        Raises:
            Diverged: If the loss is not finite and no smaller loss scale can help.
        """
        training = self.plan.training
        set_rates(self.optimizer, rate, 0.0 if freezes else training.pretrained_rate_factor)
        parts: Iterable[_Part] = (self._part(batch, part) for part, batch in enumerate(batches))
        if self.sharpness:
            parts = list(parts)  # for both passes
        losses = self._compute_gradients(parts)
        if self.sharpness:
            with self.sharpness.move():
                self._compute_gradients(parts)
        if self.rigl:
            self.rigl.mask_gradients(self.optimizer, self.at.iteration, Schedule(training).progress(self.at))
        if training.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            more = self.contrast.parameters() if self.contrast else ()
            nn.utils.clip_grad_norm_([*self.network.parameters(), *more], training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network)
        if self.rigl:
            self.rigl.mask_weights(self.network, *([self.average.network] if self.average else []))
        self.hooks.lap("optimizer")
        value = sum(loss.value() for loss in losses)
        self._expect_finite(value)
        self.at.iteration += 1
        return value

    def _part(self, batch: Batch, part: int) -> _Part:
        """The augmented images of a part of this iteration's batch, and the loss of the network's outputs."""
        images, indices = self._augment(batch)
        images, loss_of = self._task(images, indices, TRAIN, self.at.iteration, part)
        contrast, place = self.contrast, (_CONTRAST, self.at.iteration, part, self.group.rank)
        if contrast is None:
            return images, loss_of
        stream = partial(generator_for, self.plan.training.seed, self.data.fold, *place)
        return images, lambda outputs: loss_of(outputs) + contrast(indices, stream())

    def _compute_gradients(self, parts: Iterable[_Part]) -> list[_Later]:
        """Gradients of the batch, the same in all processes, and the losses; again, it drops the same channels."""
        training = self.plan.training
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(seed_for(training.seed, self.data.fold, _DROPOUT, self.at.iteration, self.group.rank))
        losses = []
        for images, loss_of in parts:
            outputs = self._outputs(self.network, images)
            self.hooks.lap("forward")
            loss = loss_of(outputs) / training.gradient_accumulation
            del outputs  # what backward no longer needs is freed
            self.hooks.lap("loss")
            losses.append(_Later(self.group.mean(loss.detach())))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            self.hooks.lap("backward")
        for module in filter(None, (self.network, self.contrast)):
            self.group.average_gradients(module)
        return losses

    def _augment(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's images of a batch and their labels, on the device."""
        there = batch.to(self.device)
        self.hooks.lap("copy")
        result = self._place(there)
        self.hooks.lap("augmentation")
        return result

    def _place(self, there: Batch) -> tuple[Tensor, Tensor]:
        """The network's images of a batch that is on the device, and their labels."""
        draws, scope = there.draws, self.scope
        if draws is None:
            guides = None if there.guides is None else there.guides.stack()
            images, indices = there.images.stack(), there.indices.stack()
        else:
            guides = None if there.guides is None else apply_to_guides(there.guides.each, draws, scope)
            images, indices = apply(there.images.each, there.indices.each, draws, scope)
        return add_guides(images, guides, scope.n_guides), indices.long()

    def _expect_finite(self, loss: float) -> None:
        if math.isfinite(loss) or (self.scaler.is_enabled() and self.scaler.get_scale() >= 1):
            return
        raise divergence(f"the loss is {loss}", self.at.iteration, self.plan.training, self.dtype)

    @torch.no_grad()
    def validate(self, n_batches: int) -> tuple[float, dict[str, float]]:
        """Loss and Dice of each label, pooled over the same patches in every epoch; NaN where a label is absent."""
        losses, counts = [], []
        self.predictor.eval()
        drawn = Prefetch(
            partial(self.draw, VALIDATE), loading_threads(self.device), min(BATCHES_AHEAD, n_batches), stop=n_batches
        )
        with drawn:
            for index in range(n_batches):
                (batch,) = drawn.get(index)
                loss, counted = self._validate_batch(batch, index)
                losses.append(loss)
                counts += counted
        self.network.train()
        if not losses:
            return math.nan, {f"dice_{name}": math.nan for name in self.plan.labels.names}
        # a GPU is waited for here alone, not after each batch
        found = _Later(torch.stack(losses), *([torch.stack(counts).sum(0)] if counts else [])).read()
        mean = sum(found[0].tolist()) / len(losses)
        if not counts:
            return mean, {f"dice_{name}": math.nan for name in self.plan.labels.names}
        hits, spurious, missed = found[1].unbind(1)
        dice = (2 * hits / (2 * hits + spurious + missed)).tolist()
        return mean, {f"dice_{name}": d for name, d in zip(self.plan.labels.names, dice, strict=True)}

    def _validate_batch(self, batch: Batch, index: int) -> tuple[Tensor, list[Tensor]]:
        """Loss of a batch, and if the network segments, what the overlap of labels is computed from."""
        images, indices = self._place(batch.to(self.device))
        images, loss_of = self._task(images, indices, VALIDATE, index)
        outputs = self._outputs(self.predictor, images)
        self.hooks.validated(batch, outputs[0], self.at.epoch)
        loss = self.group.mean(loss_of(outputs))
        if self.data.restoration is not None:
            return loss, []
        return loss, [self.group.sum(overlap_counts(outputs[0].float(), indices, self.plan.labels))]

    @torch.no_grad()
    def calm_passes(self, n_batches: int) -> Iterator[None]:
        """Run the network to predict with, in the mode that it is in, over the next augmented training batches."""
        for iteration in range(self.at.iteration, self.at.iteration + n_batches):
            for part, batch in enumerate(self.draw(TRAIN, iteration)):
                images, indices = self._augment(batch)
                images, _ = self._task(images, indices, TRAIN, iteration, part)
                self._outputs(self.predictor, images)
                yield

    def _task(self, images: Tensor, indices: Tensor, *place: int) -> _Part:
        """The images that the network is given, and the loss of what it makes of them."""
        restoration = self.data.restoration
        if restoration is None:
            return images, lambda outputs: self._loss(outputs, indices)
        hidden = restoration.draw(images, generator_for(self.plan.training.seed, self.data.fold, _HIDE, *place))
        return images.masked_fill(hidden, 0), lambda outputs: restoration_loss(outputs, images, hidden)

    def _outputs(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs: list[Tensor] = network(images)
        return outputs

    def _loss(self, outputs: Sequence[Tensor], indices: Tensor) -> Tensor:
        labels, loss, batch_dice = self.plan.labels, self.plan.training.loss, self.configuration.batch_dice
        return supervised_loss(outputs, indices, labels, batch_dice=batch_dice, loss=loss, pool=self.group.sum)


def _wants_compiling(wanted: bool | None, device: torch.device) -> bool:
    """Return whether to compile; None: on CUDA, if possible. On a CPU it takes minutes.

    Raises:
        SetupError: If it is wanted and something that it needs is missing.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        compilers = [os.environ.get("CC", "cc"), "gcc", "clang"]
    else:
        compilers = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    missing = [] if any(map(shutil.which, compilers)) else [f"a compiler ({' or '.join(compilers)})"]
    if is_cuda and find_spec("triton") is None:
        missing.append("triton")
    if wanted and missing:
        raise SetupError(
            f"training.compiled: true needs {' and '.join(missing)}, not found here. Install it, or train with "
            "--set training.compiled=false."
        )
    return is_cuda and not missing if wanted is None else wanted


class _Later:
    """Numbers on their way from the device: asked for at once they would stop the queue of work behind them."""

    def __init__(self, *values: Tensor) -> None:
        self._copies = [value.to("cpu", non_blocking=True) for value in values]
        self._arrived = torch.cuda.current_stream(values[0].device).record_event() if values[0].is_cuda else None

    def read(self) -> list[Tensor]:
        """Wait for them."""
        if self._arrived:
            self._arrived.synchronize()
        return self._copies

    def value(self) -> float:
        """Wait for one number."""
        (copy,) = self.read()
        return float(copy)


_MOST_THREADS = 8  # each draws a batch ahead, which takes memory
BATCHES_AHEAD = 2  # drawn while the device computes: one is ready even if the next takes longer; more take memory


def loading_threads(device: torch.device) -> int:
    """Return how many threads draw batches: as torch has processors, within bounds; one if the network needs them."""
    return min(_MOST_THREADS, torch.get_num_threads()) if device.type == "cuda" else 1
