"""Optimizers (Muon among them), schedules and the average of weights, each a value in the plan."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn, optim
from torch.optim.adamw import adamw

from segpipe.core.choices import functions_for
from segpipe.networks.build import inner_kernels
from segpipe.plan.training import OPTIMIZERS, SCHEDULES, Training
from segpipe.train.spam import Spam

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial of degree 5 that Jordan chose: steepest at 0
_N_ITERATIONS = 5
_TINY = 1e-7  # a momentum of zeros stays zeros
_LEAST_SIDE = {"cpu": 32, "cuda": 128}  # squares up to this size are computed together: starting them takes the time
_RMS_OF_ADAMW = 0.2  # usual size of AdamW's update, in units of the learning rate


class Muon(optim.Optimizer):
    """Orthogonalised momentum for kernels; AdamW for the other parameters, at the same learning rate.

    A kernel is taken as the matrix it multiplies with, (out, in · voxels); a transposed one, (in, out · voxels).

    Args:
        kernels: Convolution kernels and matrices, see `networks.build.inner_kernels`.
        others: The other parameters; may be empty.
        lr: Learning rate of AdamW. A kernel's update is scaled by 0.2 · sqrt(larger side of its matrix), which makes it
            as large (RMS) as AdamW's usually is, so that one rate and one weight decay do for both.
        momentum: Of the kernels.
        weight_decay: Decoupled.
        nesterov: Whether a kernel steps from where its momentum leads.
        betas: Of AdamW.
        epsilon: Of AdamW.

    Source:
        Jordan 2024 (kellerjordan.github.io/posts/muon), scaled as in Liu et al. 2025 (arXiv 2502.16982, section 2.2).
        Equal to torch.optim.Muon on flattened kernels but for rounding: ours is float32, torch's bfloat16. Jordan's own
        code flattens kernels of 2D convolutions only.
    """

    def __init__(
        self,
        kernels: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.99),
        epsilon: float = 1e-8,
    ) -> None:
        self.nesterov, self.betas, self.epsilon = nesterov, betas, epsilon
        groups = [{"params": list(kernels), "is_kernels": True}, {"params": list(others), "is_kernels": False}]
        super().__init__(
            [g for g in groups if g["params"]], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        assert closure is None
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if group["is_kernels"]:
                by_side: dict[int, list[Tensor]] = {}
                for kernel in with_gradient:
                    side = max(min(kernel.flatten(1).shape), _LEAST_SIDE.get(kernel.device.type, 1))
                    by_side.setdefault(side, []).append(kernel)
                for side, kernels in by_side.items():
                    self._step_kernels(kernels, side, group["lr"], group["momentum"], group["weight_decay"])
            elif with_gradient:
                self._step_others(with_gradient, group["lr"], group["weight_decay"])

    def _step_kernels(
        self, kernels: list[Tensor], side: int, rate: float, momentum: float, weight_decay: float
    ) -> None:
        """Step kernels whose matrices have at most `side` rows or columns, in few operations: a GPU waits for each."""
        for kernel in kernels:
            if not self.state[kernel]:
                self.state[kernel]["momentum"] = torch.zeros_like(kernel)
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        directions = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(directions, gradients, 1 - momentum)
        if self.nesterov:
            directions = list(torch._foreach_lerp(gradients, directions, momentum))
        orders = [(0, *(axis for axis in kernel.dim_order() if axis)) for kernel in kernels]  # a view of any layout
        matrices = [x.permute(order).flatten(1) for x, order in zip(directions, orders, strict=True)]
        factors = orthogonal_factors(matrices, side)
        for kernel, order, matrix, factor in zip(kernels, orders, matrices, factors, strict=True):
            target, least = kernel.permute(order).view(matrix.shape), min(matrix.shape)
            size = rate * _RMS_OF_ADAMW * math.sqrt(max(matrix.shape))
            pair = (factor[:least, :least], matrix) if len(matrix) == least else (matrix, factor[:least, :least])
            target.addmm_(*pair, beta=1 - rate * weight_decay, alpha=-size)

    def _step_others(self, parameters: list[Tensor], rate: float, weight_decay: float) -> None:
        is_fused = parameters[0].is_cuda  # in one operation, which on the CPU rounds otherwise
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(
                    step=torch.tensor(0.0), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter)
                )
            if is_fused:
                state["step"] = state["step"].to(parameter.device, non_blocking=True)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["mean"] for s in states],
            [s["square"] for s in states],
            [],
            [s["step"] for s in states],
            fused=is_fused or None,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=self.epsilon,
            maximize=False,
        )


def orthogonal_factors(matrices: Sequence[Tensor], side: int) -> Tensor:
    """Square matrices that make others orthogonal, all at once.

    The product of a factor and a matrix, factor @ wide or tall @ factor, has the matrix's singular vectors, and
    singular values near 1 (0.68 to 1.13); values far below the largest (under a hundredth of the norm) stay below that
    range. Of zeros the product is zeros.

    Args:
        matrices: float32, of any shapes.
        side: At least the shorter side of each.

    Returns:
        (matrices, side, side) float32. A factor is as large as the shorter side of its matrix, and lies first.

    Source:
        Newton-Schulz iterations of Muon, five of x ← (a + b·xxᵀ + c·(xxᵀ)²) x. Since all factors are polynomials of the
        first xxᵀ, they are multiplied with each other, which is smaller, and not with x; and matrices whose xxᵀ are
        equally large go together whatever their longer side.
    """
    wides = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in matrices]
    norms = torch.stack(torch._foreach_norm(list(matrices))).clamp_min_(_TINY).view(-1, 1, 1)
    square = norms.new_zeros((len(wides), side, side))  # beyond a matrix are zeros, which stay apart
    for wide, place in zip(wides, square, strict=True):
        torch.mm(wide, wide.mT, out=place[: len(wide), : len(wide)])
    square.div_(norms.square())
    a, b, c = _COEFFICIENTS
    product = None
    for step in range(_N_ITERATIONS):
        rest = torch.baddbmm(square, square, square, beta=b, alpha=c)  # the factor of this iteration is a + rest
        if step < _N_ITERATIONS - 1:
            half = torch.baddbmm(square, rest, square, beta=a)
            square = torch.baddbmm(half, rest, half, beta=a)
        if product is None:
            product = rest
            product.diagonal(dim1=1, dim2=2).add_(a)
        else:
            product = torch.baddbmm(product, rest, product, beta=a)
    assert product is not None
    return product.div_(norms)


def _sgd(network: nn.Module, training: Training) -> optim.Optimizer:
    on_cuda = next(network.parameters()).is_cuda
    return optim.SGD(
        network.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov and training.momentum > 0,
        weight_decay=training.weight_decay,
        fused=True if on_cuda else None,  # which skips a step of float16 without waiting for the GPU
    )


def _adamw(network: nn.Module, training: Training) -> optim.Optimizer:
    return optim.AdamW(
        network.parameters(),
        lr=training.learning_rate,
        betas=(training.momentum, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _muon(network: nn.Module, training: Training) -> optim.Optimizer:
    kernels = inner_kernels(network)
    taken = {id(kernel) for kernel in kernels}
    return Muon(
        kernels,
        [p for p in network.parameters() if id(p) not in taken],
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
    )


def _spam(network: nn.Module, training: Training) -> optim.Optimizer:
    return Spam(
        network.parameters(),
        lr=training.learning_rate,
        betas=(training.momentum, training.adam_beta2),
        epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        threshold=training.spam_threshold,
        reset_steps=training.spam_reset_steps,
        warmup_steps=training.spam_warmup_steps,
        quiet_steps=training.spam_quiet_steps,
        density=training.spam_density,
        seed=training.seed,
    )


_MAKERS: dict[str, Callable[[nn.Module, Training], optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "muon": _muon,
    "spam": _spam,
}
_TWICE = {f"{name}+sam_on": make for name, make in _MAKERS.items()}  # what makes the second pass is in sharpness.py
MAKE_OPTIMIZER = functions_for(OPTIMIZERS, _MAKERS | _TWICE, "OPTIMIZERS of plan/training.py")

_IS_PRETRAINED = "is_pretrained"


def make_optimizer(
    network: nn.Module, training: Training, pretrained: Collection[str] = (), *, also: nn.Module | None = None
) -> optim.Optimizer:
    """The plan's optimizer, with groups of their own for parameters that were loaded, if those learn otherwise.

    Args:
        network: To train.
        training: The recipe.
        pretrained: Names of the parameters that were loaded.
        also: Trained with the network.
    """
    if also is not None:
        both = nn.ModuleDict({"network": network, "also": also})
        return make_optimizer(both, training, [f"network.{name}" for name in pretrained])
    optimizer = MAKE_OPTIMIZER[training.optimizer](network, training)
    if training.treats_pretrained and pretrained:
        known = {id(parameter) for name, parameter in network.named_parameters() if name in pretrained}
        groups = []
        for group in optimizer.param_groups:
            for is_pretrained in (False, True):
                chosen = [p for p in group["params"] if (id(p) in known) == is_pretrained]
                groups += [{**group, "params": chosen, _IS_PRETRAINED: is_pretrained}] if chosen else []
        optimizer.param_groups[:] = groups
    return optimizer


def set_rates(optimizer: optim.Optimizer, rate: float, pretrained_factor: float) -> None:
    """Set the learning rate of a step; that of the groups with pretrained parameters times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * pretrained_factor if group.get(_IS_PRETRAINED) else rate


_FACTORS: dict[str, Callable[[float, Training], float]] = {  # from the share of the training that is done, 0 to 1
    "poly": lambda progress, training: (1 - progress) ** training.poly_exponent,
    "cosine": lambda progress, _: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda *_: 1.0,
}
SCHEDULE_FACTORS = functions_for(SCHEDULES, _FACTORS, "SCHEDULES of plan/training.py")


def learning_rate(training: Training, progress: float) -> float:
    """Learning rate after a share of the training, 0 to 1; rises linearly in the warm-up, then follows the schedule.

    Source:
        nnU-Net steps its poly schedule once an epoch; ours follows every step.
    """
    progress = min(max(progress, 0.0), 1.0)
    rise = min(1.0, progress / training.warmup_fraction) if training.warmup_fraction else 1.0
    return training.learning_rate * rise * SCHEDULE_FACTORS[training.schedule](progress, training)


class WeightAverage:
    """Exponential moving average of weights, for prediction; the statistics of batch norms are averaged alike.

    In the first steps the decay is smaller, (1 + n) / (10 + n), so that random weights are forgotten at once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_steps = 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step; whole numbers, such as a count of batches, are copied."""
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
