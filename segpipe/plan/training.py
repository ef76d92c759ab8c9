"""How a network is trained: what a person may choose. The defaults are nnU-Net's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from segpipe.core.records import Record
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.loss import Loss


class Training(Record):
    """What a person may choose; the defaults are the preset's.

    Args:
        epochs, iterations_per_epoch: Length of training when neither iterations nor a time budget are given.
        iterations: Steps of the whole training, in place of epochs; None: epochs count.
        time_budget_seconds: Wall-clock time of training one fold; the schedule is laid over it. None: by steps.
        validation_iterations: Batches of validation patches at the end of each epoch.
        early_stop_epochs: Training ends when the mean patch Dice has not risen for so many epochs; None: never.
        collapse_epochs: After so many epochs in which a label was never found, its likely causes are told.
        checkpoint_minutes: Time between two saved states.
        optimizer: sgd (Nesterov), adamw, muon (kernels inside the network; adamw for the rest, at the same rate).
        learning_rate: At the start.
        momentum: sgd, muon: momentum; adamw: first beta.
        weight_decay: L2 (sgd) or decoupled (adamw, muon).
        warmup_fraction: Share of the training in which the learning rate rises linearly from 0.
        schedule: poly: (1 - progress)^0.9, as nnU-Net; cosine; constant.
        gradient_clip: Largest gradient norm; 0: none.
        gradient_accumulation: Parts, each of the configuration's batch size, whose gradients are averaged for one step:
            a larger batch in the same memory. `network.parts.checkpointing` saves memory too, for time.
        weight_average: Decay of the exponential moving average of the weights used for prediction, for each step,
            0 (none) to below 1.
        foreground_fraction: Share of patches of a batch that are centred on a labelled voxel.
        foreground_unit: What such a patch is centred on: a voxel of a label that is present, each label as likely
            (label), or of a connected component of it, each component as likely (component; for lesions).
        loss: What is made small: a name of `plan/loss.py`, or terms and what they take.
        augmentation: none, light, nnunet, strong, or changes to one of them.
        precision: bf16, fp16, fp32, or auto: bf16 on devices that have it, else fp16 on CUDA and fp32 elsewhere.
        compiled: Whether the network is compiled; None: on CUDA, if Triton and a C compiler are there.
        channels_last: Whether a voxel's channels lie side by side in memory; None: on CPUs where the network is
            plain or residual, which makes it faster.
        seed: Of everything random in training.
    """

    epochs: PositiveInt = 1000
    iterations_per_epoch: PositiveInt = 250
    iterations: PositiveInt | None = None
    time_budget_seconds: PositiveFloat | None = None
    validation_iterations: NonNegativeInt = 50
    early_stop_epochs: PositiveInt | None = None
    collapse_epochs: PositiveInt = 10
    checkpoint_minutes: PositiveFloat = 5.0
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    learning_rate: PositiveFloat = 1e-2
    momentum: float = Field(default=0.99, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 3e-5
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    gradient_clip: NonNegativeFloat = 12.0
    gradient_accumulation: PositiveInt = 1
    weight_average: float = Field(default=0.0, ge=0, lt=1)
    foreground_fraction: float = Field(default=0.33, ge=0, le=1)
    foreground_unit: Literal["label", "component"] = "label"
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compiled: bool | None = None
    channels_last: bool | None = None
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_watched(self) -> Training:
        if self.early_stop_epochs is not None and not self.validation_iterations:
            raise ValueError("early_stop_epochs needs validation patches; set validation_iterations above 0")
        return self
