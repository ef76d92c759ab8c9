"""SPAM: Adam that clips spikes of single gradients and forgets its momentum at intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from segpipe.core.seeds import seed_for

_LEAST_FACTOR = 0.01  # of the update, at a reset


class Spam(optim.Optimizer):
    """Adam with decoupled weight decay, clipped spikes, momentum that is reset, and updates that rise after a reset.

    A gradient g with mean square v is a spike if g² > threshold · v; it becomes sign(g) · √(threshold · v), in place.

    Args:
        parameters: To train.
        lr: Learning rate.
        betas: Decay of the mean gradient and of its mean square.
        epsilon: Added to the root of v before the correction for the first steps; torch's Adam adds it behind.
        weight_decay: Decoupled, of the weights after the update.
        threshold: See above.
        reset_steps: At each multiple of it, both means are set to 0; 0: never. The count of steps goes on.
        warmup_steps: N: the k-th update from a reset, k < N, is scaled by 1 - 0.99 · (1 + cos(π k / (N + 1))) / 2.
        quiet_steps: Steps at the start, and from each reset, without clipping: v is still unsure.
        density: Share of a kernel's pairs of output and input channel that have means and learn, until the next reset.
        seed: Of these pairs.

    Source:
        Huang et al. 2025, SPAM, arXiv 2501.06842, and the authors' code. There the pairs need matrices; ours take
        kernels of any number of axes. What stays drawn needs no means kept, since a reset discards them.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        threshold: float = 5000.0,
        reset_steps: int = 500,
        warmup_steps: int = 150,
        quiet_steps: int = 20,
        density: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.betas, self.epsilon, self.threshold = betas, epsilon, threshold
        self.reset_steps, self.warmup_steps, self.quiet_steps = reset_steps, warmup_steps, quiet_steps
        self.density, self.seed = density, seed
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._places = {id(p): place for place, p in enumerate(p for g in self.param_groups for p in g["params"])}
        self._drawn: dict[int, tuple[int, tuple[Tensor, Tensor]]] = {}  # by place: which draw, and its pairs

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group["lr"], group["weight_decay"])

    def spike_rates(self, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
        """Share of the gradients of each kernel that was clipped since this was last asked, by name without `.weight`.

        NaN if no step of that time clips. Parameters of one axis, such as shifts, are left out.
        """
        rates = {}
        for name, parameter in named:
            state = self.state[parameter]
            if parameter.ndim > 1 and state:
                n_checks = state["n_checks"]
                rates[name.removesuffix(".weight")] = float(state["spikes"]) / n_checks if n_checks else math.nan
                state["spikes"].zero_()
                state["n_checks"] = 0
        return rates

    def _step(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        state, whole = self.state[parameter], parameter.grad
        assert whole is not None
        if not state:
            state.update(step=0, n_checks=0, spikes=torch.zeros((), device=parameter.device))
        step = state["step"] = state["step"] + 1
        resets = self.reset_steps > 0 and step % self.reset_steps == 0
        pairs = self._pairs(parameter, step)
        gradient = whole[pairs] if pairs else whole
        if resets or "mean" not in state:
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        mean, square = state["mean"], state["square"]
        since_reset = step % self.reset_steps if self.reset_steps else step
        if step >= self.quiet_steps and since_reset >= self.quiet_steps:
            gradient = self._clip(gradient, square, state)
            if not pairs:
                whole.copy_(gradient)
        mean.lerp_(gradient, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        corrected = rate * math.sqrt(1 - self.betas[1] ** step) / (1 - self.betas[0] ** step)
        update = mean / square.sqrt().add_(self.epsilon) * (-corrected * self._factor(step))
        if pairs:
            parameter.index_put_(pairs, update, accumulate=True)
        else:
            parameter.add_(update)
        parameter.mul_(1 - rate * weight_decay)

    def _clip(self, gradient: Tensor, square: Tensor, state: dict[str, Any]) -> Tensor:
        limit = square * self.threshold
        is_spike = gradient.square() > limit
        state["spikes"] += is_spike.float().mean()
        state["n_checks"] += 1
        return torch.where(is_spike, gradient.sign() * limit.sqrt(), gradient)

    def _factor(self, step: int) -> float:
        if not self.reset_steps or step < self.reset_steps or step % self.reset_steps >= self.warmup_steps:
            return 1.0
        fall = (1 + math.cos(math.pi * (step % self.reset_steps) / (self.warmup_steps + 1))) / 2
        return 1 - (1 - _LEAST_FACTOR) * fall

    def _pairs(self, parameter: Tensor, step: int) -> tuple[Tensor, Tensor] | None:
        """The pairs of output and input channel that learn at a step; None: all. They follow from seed and step."""
        if self.density == 1 or parameter.ndim < 2:
            return None
        place, which = self._places[id(parameter)], step // self.reset_steps if self.reset_steps else 0
        if place not in self._drawn or self._drawn[place][0] != which:
            n_out, n_in = parameter.shape[:2]
            generator = torch.Generator().manual_seed(seed_for(self.seed, place, which))
            n_kept = max(1, round(self.density * n_out * n_in))
            kept = torch.randperm(n_out * n_in, generator=generator)[:n_kept].sort().values.to(parameter.device)
            self._drawn[place] = which, (kept // n_in, kept % n_in)
        return self._drawn[place][1]
