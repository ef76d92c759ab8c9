"""Optimizers and schedules of the learning rate, as tables; `train/optim.py` has a function for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segpipe.core.choices import Choice


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts(Choice):
    """Facts about an optimizer that need no run of it. All read learning_rate, momentum and weight_decay.

    Args:
        usual: Learning rate, momentum and weight decay that go with it, for the advice when it is changed.
        states: Numbers kept for each number of a kernel inside the network, and of any other parameter.
        gradient_copies: Copies of all gradients that a step makes on its way.
    """

    usual: Mapping[str, float]
    states: tuple[int, int]
    gradient_copies: int = 0


_ADAM_LIKE = {"learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-2}
OPTIMIZERS: dict[str, OptimizerFacts] = {
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
        gradient_copies=1,  # works on one kernel, with about six times its size; that is below all gradients
    ),
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
