"""The training recipe that a person may choose, its optimizers and schedules. The defaults are nnU-Net's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from segpipe.core.choices import Choice, OneOf, unread_parameters
from segpipe.core.records import Record
from segpipe.networks.parts import writes_defaults
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.loss import TERMS, Loss


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts(Choice):
    """Facts about an optimizer that need no run of it. All read learning_rate, momentum and weight_decay.

    Args:
        usual: Learning rate, momentum and weight decay that go with it, for the advice when it is changed.
        states: Numbers kept for each number of a kernel inside the network, and of any other parameter.
        gradient_copies: Copies of all gradients that a step makes on its way.
        n_passes: How often a step computes the gradients.
    """

    usual: Mapping[str, float]
    states: tuple[int, int]
    gradient_copies: int = 0
    n_passes: int = 1


_ADAM_LIKE = {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-2}
_SPAM = ("spam_threshold", "spam_reset_steps", "spam_warmup_steps", "spam_quiet_steps", "spam_density")
_SAM = ("sam_rho", "sam_p", "sam_adaptive", "sam_eta")
_SINGLE_PASS: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts(
        does="stochastic gradient descent with momentum",
        source="nnU-Net's optimizer",
        parameters=("nesterov",),
        usual={"learning_rate": 1e-2, "momentum": 0.99, "weight_decay": 3e-5},
        states=(1, 1),
        gradient_copies=1,  # the weight decay is added to a copy of the gradients
    ),
    "adamw": OptimizerFacts(
        does="Adam with decoupled weight decay; momentum is its first beta",
        source="Loshchilov and Hutter 2019, ICLR",
        parameters=("adam_beta2", "adam_epsilon"),
        usual=_ADAM_LIKE,
        states=(2, 2),
    ),
    "muon": OptimizerFacts(
        does="orthogonalised momentum for kernels inside the network, adamw for the rest, at the same rate",
        source="Jordan 2024, kellerjordan.github.io/posts/muon; scaled as in Liu et al. 2025, arXiv 2502.16982",
        parameters=("nesterov", "adam_beta1", "adam_beta2", "adam_epsilon"),
        usual=_ADAM_LIKE,  # its updates are made as large as adamw's
        states=(1, 2),
        gradient_copies=1,  # the directions of kernels that step together, and small squares
    ),
    "spam": OptimizerFacts(
        does="adamw that clips spikes of single gradients and forgets its momentum at intervals",
        source="Huang et al. 2025, SPAM, arXiv 2501.06842",
        parameters=("adam_beta2", "adam_epsilon", *_SPAM),
        usual=_ADAM_LIKE,
        states=(2, 2),
    ),
}
OPTIMIZERS: dict[str, OptimizerFacts] = _SINGLE_PASS | {
    f"{name}+sam_on": replace(
        facts,
        does=f"{name} with gradients from where norms' scales and shifts make the loss worse; each step takes twice "
        "the time",
        source="Müller et al. 2023, SAM-ON, arXiv 2306.04226",
        parameters=(*facts.parameters, *_SAM),
        n_passes=2,
    )
    for name, facts in _SINGLE_PASS.items()
}

SCHEDULES: dict[str, Choice] = {
    "poly": Choice(
        does="falls as (1 - progress) to the power of poly_exponent",
        source="nnU-Net, with exponent 0.9; ours follows every step, nnU-Net's every epoch",
        parameters=("poly_exponent",),
    ),
    "cosine": Choice(does="falls along half a cosine", source="Loshchilov and Hutter 2017, ICLR"),
    "constant": Choice(does="does not change, so that a training can be made longer"),
}


SAMPLERS: dict[str, Choice] = {  # what a patch is centred on; train/sampling.py has a function for each row
    "label": Choice(does="a voxel of a label that is present, each label as likely"),
    "component": Choice(does="a voxel of a connected component of it, each component as likely; for lesions"),
}
_Share = Annotated[float, Field(ge=0, lt=1)]
_FEWEST_SNAPSHOTS = 3  # two lie on a line whatever the training
_MOST_SNAPSHOTS = 500  # all are open at once while they are analysed, and a process may open 1024 files
_PRETRAINED = {"pretrained_rate_factor", "pretrained_frozen_fraction"}
_WRITTEN_IF_SET = {"snapshots", "recalibrate"} | _PRETRAINED  # so that older plans keep their bytes


class Training(Record):
    """The recipe, which a person may choose; the defaults are nnU-Net's.

    Args:
        epochs, iterations_per_epoch: Length of training when neither iterations nor a time budget are given.
        iterations: Steps of the whole training, in place of epochs; None: epochs count.
        time_budget_seconds: Wall-clock time of training one fold; the schedule is laid over it. None: by steps.
        validation_iterations: Batches of validation patches at the end of each epoch.
        early_stop_epochs: Training ends when the mean patch Dice has not risen for so many epochs; None: never.
        collapse_epochs: After this many epochs in which a label was never found, a warning names the likely causes.
        checkpoint_minutes: Time between two saved states.
        snapshots: Copies of the weights that are kept along the training, the first before it and the others at equal
            steps, for `segpipe analyse trajectory`; 0: none. Each takes as much disk as the weights.
        optimizer: How weights follow the gradients.
        learning_rate: At the start.
        momentum: sgd, muon: momentum; adamw, spam: first beta.
        weight_decay: L2 (sgd) or decoupled (adamw, muon, spam).
        nesterov: sgd, muon: step from where the momentum leads.
        adam_beta1: muon: decay of the mean gradient of the parameters that adamw takes.
        adam_beta2: adamw, muon, spam: decay of the mean square of the gradient. 0.999 is usual elsewhere; its memory of
            a thousand steps is longer than a short training.
        adam_epsilon: adamw, muon, spam: added to the root of that mean, so that tiny gradients make no large steps.
        spam_threshold: spam: a gradient whose square is more than this times its mean square is clipped to there.
        spam_reset_steps: spam: steps after which momentum and mean squares are set to 0, again and again; 0: never, so
            that it clips alone. The authors' 500 are for training language models.
        spam_warmup_steps: spam: steps after a reset in which the update rises from a hundredth.
        spam_quiet_steps: spam: steps at the start, and from each reset, in which nothing is clipped.
        spam_density: spam: share of each kernel's pairs of input and output channels that learn until the next reset,
            when others are drawn; below 1 saves memory.
        sam_rho: +sam_on: how far scales and shifts of norms move, above 0.
        sam_p: +sam_on: the norm in which that is measured: 2, or inf, by which each number moves as far.
        sam_adaptive: +sam_on: which of them move in proportion to their size: none, scales or all.
        sam_eta: +sam_on: added to that size.
        warmup_fraction: Share of the training in which the learning rate rises linearly from 0.
        schedule: How the learning rate falls.
        poly_exponent: poly: 1 falls linearly, less falls late.
        gradient_clip: Largest gradient norm; 0: none.
        gradient_accumulation: Parts, each of the configuration's batch size, whose gradients are averaged for one step:
            a larger batch in the same memory. `network.parts.checkpointing` saves memory too, for time.
        weight_average: Decay of the exponential moving average of the weights used for prediction, for each step,
            0 (none) to below 1.
        pretrained_rate_factor: Of the learning rate, for the weights that `network.weights` loaded.
        pretrained_frozen_fraction: Share of the training at whose beginning those weights stay as they are; what the
            optimizer knows of their gradients and running statistics follow meanwhile.
        recalibrate: At the end, running statistics of norms are computed again from so many training batches, with the
            weights to predict with; 0: they stay as they are. For norms batch, pcnorm and ccnorm.
        foreground_fraction: Share of patches of a batch that are centred on a labelled voxel.
        foreground_unit: What such a patch is centred on.
        loss: What is made small: a name of `plan/loss.py`, or terms and what they take.
        augmentation: none, light, nnunet, strong, or changes to one of them.
        precision: bf16, fp16, fp32, or auto: bf16 on devices that have it, else fp16 on CUDA and fp32 elsewhere;
            nnunet: fp16 on CUDA and fp32 elsewhere, as nnU-Net. fp32 on CUDA is not TF32.
        compiled: Whether the network is compiled; None: on CUDA, if Triton and a C compiler are there and no term of
            the loss watches the network inside.
        channels_last: Whether a voxel's channels are adjacent in memory; None: on CPUs where the network is
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
    snapshots: Annotated[int, Field(ge=0, le=_MOST_SNAPSHOTS)] = 0
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    learning_rate: PositiveFloat = 1e-2
    momentum: _Share = 0.99
    weight_decay: NonNegativeFloat = 3e-5
    nesterov: bool = True
    adam_beta1: _Share = 0.9
    adam_beta2: _Share = 0.99
    adam_epsilon: PositiveFloat = 1e-8
    spam_threshold: PositiveFloat = 5000.0
    spam_reset_steps: NonNegativeInt = 5000
    spam_warmup_steps: NonNegativeInt = 150
    spam_quiet_steps: PositiveInt = 20
    spam_density: Annotated[float, Field(gt=0, le=1)] = 1.0
    sam_rho: PositiveFloat = 0.5
    sam_p: Literal[2, "inf"] = 2
    sam_adaptive: Literal["none", "scales", "all"] = "none"
    sam_eta: NonNegativeFloat = 0.01
    warmup_fraction: _Share = 0.0
    schedule: Annotated[str, OneOf(SCHEDULES)] = "poly"
    poly_exponent: PositiveFloat = 0.9
    gradient_clip: NonNegativeFloat = 12.0
    gradient_accumulation: PositiveInt = 1
    weight_average: _Share = 0.0
    pretrained_rate_factor: PositiveFloat = 1.0
    pretrained_frozen_fraction: _Share = 0.0
    recalibrate: NonNegativeInt = 0
    foreground_fraction: float = Field(default=0.33, ge=0, le=1)
    foreground_unit: Annotated[str, OneOf(SAMPLERS)] = "label"
    loss: Loss = Loss()
    augmentation: Augmentation = Augmentation()
    precision: Literal["auto", "bf16", "fp16", "fp32", "nnunet"] = "auto"
    compiled: bool | None = None
    channels_last: bool | None = None
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_watched(self) -> Training:
        if self.early_stop_epochs is not None and not self.validation_iterations:
            raise ValueError("early_stop_epochs needs validation patches; set validation_iterations above 0")
        return self

    @model_validator(mode="after")
    def _can_be_compiled(self) -> Training:
        watching = [term for term in self.loss.terms if TERMS[term].reads_features]
        if self.compiled and watching:
            raise ValueError(
                f"compiled: true with the term {watching[0]} of loss, which watches the network inside, where compiled "
                "code cannot be watched; leave compiled out, or the term"
            )
        return self

    @model_validator(mode="after")
    def _has_a_trajectory(self) -> Training:
        if 0 < self.snapshots < _FEWEST_SNAPSHOTS:
            raise ValueError(f"snapshots {self.snapshots}: expected 0 or at least {_FEWEST_SNAPSHOTS}")
        return self

    @model_validator(mode="after")
    def _resets_in_time(self) -> Training:
        if self.spam_density < 1 and not self.spam_reset_steps:
            raise ValueError(
                f"spam_density {self.spam_density} without resets: the other weights would never learn; set "
                "spam_reset_steps above 0"
            )
        longest = max(self.spam_warmup_steps, self.spam_quiet_steps)
        if 0 < self.spam_reset_steps <= longest:
            raise ValueError(
                f"spam_reset_steps {self.spam_reset_steps} must be more than spam_warmup_steps and spam_quiet_steps "
                f"({longest}), or every step would be one of them; 0 is no resets"
            )
        return self

    @model_validator(mode="after")
    def _is_read(self) -> Training:
        for parameter, chosen, readers in self._unread():
            if getattr(self, parameter) != type(self).model_fields[parameter].default:
                raise ValueError(f"{parameter} belongs to {readers}, not to {chosen}; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_unread(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if writes_defaults(info):
            return values
        unread = {parameter for parameter, _, _ in self._unread()}
        unread |= {name for name in _WRITTEN_IF_SET if getattr(self, name) == type(self).model_fields[name].default}
        return {key: value for key, value in values.items() if key not in unread}

    @property
    def treats_pretrained(self) -> bool:
        """True if weights that were loaded learn otherwise than new ones."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in _PRETRAINED)

    def _unread(self) -> Iterator[tuple[str, str, str]]:
        """Parameters without effect: each with what was chosen, and what would read it."""
        for key, table in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("foreground_unit", SAMPLERS)):
            chosen = getattr(self, key)
            for parameter, readers in unread_parameters(table, [chosen]).items():
                yield parameter, f"{key} {chosen}", readers
