"""Sharpness-aware steps: gradients are taken where the loss near the weights is about largest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from segpipe.core.errors import PlanError
from segpipe.networks.build import norm_parameters
from segpipe.plan.training import OPTIMIZERS, Training


class SharpnessAware:
    """Moves parameters up the gradient for the second pass of a step, and takes them back.

    With g the gradient of the chosen parameters together, the move is ρ g / |g|; ρ sign(g) if `p` is inf. Adaptive, it
    grows with the size of each number w: with t = |w| + η, it is ρ t² g / |t g|, or ρ t sign(g). Nothing is kept
    between steps, so there is nothing to resume. Parameters get their numbers back bit for bit, buffers too: running
    statistics follow the first pass alone. A gradient that is not finite moves nothing.

    Args:
        network: In training.
        parameters: Of the network, by name: those that move.
        rho: Length of the move.
        p: The move's norm is at most rho in this norm: Euclidean (2) or the largest number (inf).
        adaptive: What moves adaptively: nothing, scales (names that end in `weight`), or all.
        eta: Keeps numbers that are 0 from standing still.

    Source:
        Foret et al. 2021, Sharpness-Aware Minimization; Kwon et al. 2021, ASAM; Müller et al. 2023, Normalization
        Layers Are All That Sharpness-Aware Minimization Needs, whose code chooses norms by their names; ours by type.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        rho: float,
        p: Literal[2, "inf"] = 2,
        adaptive: Literal["none", "scales", "all"] = "none",
        eta: float = 0.01,
    ) -> None:
        self.network, self.rho, self.p, self.eta = network, rho, p, eta
        self.parameters = list(parameters.values())
        self.is_adaptive = [
            adaptive == "all" or (adaptive == "scales" and name.endswith("weight")) for name in parameters
        ]

    @contextmanager
    def move(self) -> Iterator[None]:
        """Move the parameters by the gradients that they have; take them back at the end."""
        values: list[Tensor] = [*self.parameters, *self.network.buffers()]
        kept = [value.detach().clone() for value in values]
        self._ascend()
        yield
        with torch.no_grad():
            for value, before in zip(values, kept, strict=True):
                value.copy_(before)

    @torch.no_grad()
    def _ascend(self) -> None:
        chosen = [(p, p.grad, f) for p, f in zip(self.parameters, self.is_adaptive, strict=True) if p.grad is not None]
        sizes = [p.abs() + self.eta if adapts else torch.ones_like(p) for p, _, adapts in chosen]
        slopes = [size * gradient for size, (_, gradient, _) in zip(sizes, chosen, strict=True)]
        length = torch.stack([slope.norm() for slope in slopes]).norm()
        may_move = length.isfinite() & (length > 0)  # without asking the device, which would stop its queue
        for (parameter, _, _), size, slope in zip(chosen, sizes, slopes, strict=True):
            direction = slope.sign() if self.p == "inf" else slope / length
            parameter.add_(torch.where(may_move, self.rho * size * direction, 0.0))


def sharpness_of(network: nn.Module, training: Training) -> SharpnessAware | None:
    """The plan's second pass; None if its optimizer makes a single one.

    Raises:
        PlanError: If no norm of the network has a scale or a shift that could move.
    """
    if OPTIMIZERS[training.optimizer].n_passes == 1:
        return None
    parameters = norm_parameters(network)
    if not parameters:
        raise PlanError(
            f"training.optimizer: {training.optimizer} moves scales and shifts of norms, and this network has none. "
            f"Take --set training.optimizer={training.optimizer.split('+')[0]}."
        )
    return SharpnessAware(
        network,
        parameters,
        rho=training.sam_rho,
        p=training.sam_p,
        adaptive=training.sam_adaptive,
        eta=training.sam_eta,
    )
