"""A fold in training: its network, one step, one validation, and the state to go on from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.core.errors import PlanError
from segpipe.core.progress import say
from segpipe.core.seeds import generator_for, seed_for
from segpipe.data.splits import Fold
from segpipe.networks.build import build
from segpipe.networks.device import resolve_precision
from segpipe.networks.inflate import start_from
from segpipe.plan.schema import Configuration, Plan
from segpipe.prepare.store import PatchCase
from segpipe.train.augment import STRENGTHS, draw, region_for
from segpipe.train.checkpoint import cpu_copy
from segpipe.train.losses import overlap_counts, supervised_loss
from segpipe.train.optim import OPTIMIZERS, WeightAverage
from segpipe.train.sampling import Batch, Sampling, draw_batch
from segpipe.train.transforms import apply

TRAIN, VALIDATE, _AUGMENT, _INITIAL = 0, 1, 2, 3  # places of the random streams


@dataclass(frozen=True, eq=False)
class FoldData:
    """What a fold is trained and watched on."""

    fold: int
    split: Fold
    train: Sequence[PatchCase]
    validation: Sequence[PatchCase]


@dataclass
class Progress:
    """Where training stands; all of it is in state.pt."""

    iteration: int = 0
    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | int]] = field(default_factory=list)


class FoldTraining:
    """A fold in training: network, optimizer, average, and where it stands.

    A new one begins with the weights that the plan names; one that is going to be restored does not look for them.
    """

    def __init__(
        self, plan: Plan, configuration: Configuration, data: FoldData, device: torch.device, *, is_new: bool
    ) -> None:
        self.plan, self.configuration, self.data, self.device = plan, configuration, data, device
        training = plan.training
        torch.manual_seed(seed_for(training.seed, data.fold, _INITIAL))
        network = build(configuration.network, len(plan.channels), plan.labels.n_outputs)
        if is_new and configuration.network.weights:
            for line in start_from(configuration.network.weights, network):
                say(line)
        self.network = network.to(device)
        self.optimizer = OPTIMIZERS[training.optimizer](self.network.parameters(), training)
        self.average = WeightAverage(self.network, training.weight_average) if training.weight_average else None
        self.dtype = resolve_precision(training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.at = Progress()

    @property
    def predictor(self) -> nn.Module:
        """The network to predict with."""
        return self.average.network if self.average else self.network

    def state(self, *, finished: bool) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "iteration": self.at.iteration,
            "epoch": self.at.epoch,
            "seconds": self.at.seconds,
            "history": self.at.history,
            "network": cpu_copy(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": cpu_copy(self.average.network.state_dict()) if self.average else {},
            "average_steps": self.average.n_steps if self.average else 0,
            "finished": finished,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.at = Progress(state["iteration"], state["epoch"], state["seconds"], list(state["history"]))
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the run began without loss scaling
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
            self.average.n_steps = state["average_steps"]

    def draw(self, stream: int, iteration: int) -> Batch:
        """The batch of an iteration, a function of seed, fold, stream and iteration alone."""
        training, configuration = self.plan.training, self.configuration
        strength = STRENGTHS[training.augmentation] if stream == TRAIN else None
        sampling = Sampling(
            patch_zyx=configuration.patch_zyx,
            region_zyx=region_for(configuration.patch_zyx, strength),
            batch_size=configuration.batch_size,
            foreground_fraction=training.foreground_fraction,
        )
        cases = self.data.train if stream == TRAIN else self.data.validation
        return draw_batch(cases, sampling, generator_for(training.seed, self.data.fold, stream, iteration))

    def step(self, batch: Batch, rate: float) -> float:
        """One step; returns the loss.

        Raises:
            PlanError: If the loss is not finite.
        """
        training, plan = self.plan.training, self.plan
        images, indices = self._to_device(batch)
        strength = STRENGTHS[training.augmentation]
        if strength is not None:
            generator = generator_for(training.seed, self.data.fold, _AUGMENT, self.at.iteration)
            shape = (images.shape[0], images.shape[1])
            draws = draw(strength, shape, self.configuration.patch_zyx, plan.mirror_axes, generator)
            images, indices = apply(images, indices, draws, self.configuration.patch_zyx)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.network, images, indices)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PlanError(
                f"training.learning_rate: the loss is {value} at iteration {self.at.iteration}. Lower it "
                f"(now {training.learning_rate:g}, e.g. --set training.learning_rate={training.learning_rate / 3:.2g}) "
                "or train with --set training.precision=fp32."
            )
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.network)
        self.at.iteration += 1
        return value

    @torch.no_grad()
    def validate(self, n_batches: int) -> tuple[float, dict[str, float]]:
        """Loss and Dice of each label, pooled over the same patches in every epoch; NaN where a label is absent."""
        losses, counts = [], torch.zeros(len(self.plan.labels.labels), 3, dtype=torch.float64)
        for index in range(n_batches):
            images, indices = self._to_device(self.draw(VALIDATE, index))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self.predictor(images)
            batch_dice = self.configuration.batch_dice
            losses.append(float(supervised_loss(outputs, indices, self.plan.labels, batch_dice=batch_dice)))
            counts += overlap_counts(outputs[0].float(), indices, self.plan.labels).cpu()
        hits, spurious, missed = counts.unbind(1)
        dice = (2 * hits / (2 * hits + spurious + missed)).tolist()
        mean_loss = sum(losses) / len(losses) if losses else math.nan
        return mean_loss, {f"dice_{name}": d for name, d in zip(self.plan.labels.names, dice, strict=True)}

    def _loss(self, network: nn.Module, images: Tensor, indices: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = network(images)
        return supervised_loss(outputs, indices, self.plan.labels, batch_dice=self.configuration.batch_dice)

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.to(self.device)
