"""RigL: masks of sparse kernels that move to where gradients are large while a network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn, optim

from segpipe.core.seeds import seed_for
from segpipe.networks.parts import SparseKernels
from segpipe.networks.sparse_ift import sparse_kernels


class RigL:
    """Masks of a network's sparse kernels: numbers outside them are 0 before and after every step.

    At intervals the smallest numbers of a kernel are dropped and as many others, where the gradient is largest, begin
    to learn from 0. The share that moves falls along half a cosine. Each kernel keeps its count of numbers to the end.

    Args:
        network: New or about to be restored; what is masked becomes 0.
        sparse: Of its spec.
        seed: Of the first masks, which are random.

    Source:
        Evci et al. 2020, Rigging the Lottery. There what was dropped may grow back at once, and a step that moves masks
        makes no update; ours takes others, and makes one.
    """

    def __init__(self, network: nn.Module, sparse: SparseKernels, seed: int) -> None:
        self.sparse = sparse
        self.kernels = sparse_kernels(network)
        counts = kept_counts({name: tuple(p.shape) for name, p in self.kernels.items()}, sparse)
        self.masks: dict[str, Tensor] = {}
        for index, (name, kernel) in enumerate(self.kernels.items()):
            generator = torch.Generator().manual_seed(seed_for(seed, index))
            mask = torch.zeros(kernel.numel(), dtype=torch.bool)
            mask[torch.randperm(kernel.numel(), generator=generator)[: counts[name]]] = True
            self.masks[name] = mask.view(kernel.shape).to(kernel.device)
        self.mask_weights(network)

    def state(self) -> dict[str, Tensor]:
        """Return the masks on the CPU."""
        return {name: mask.cpu() for name, mask in self.masks.items()}

    def restore(self, masks: Mapping[str, Tensor]) -> None:
        """Take the masks of a state."""
        self.masks = {name: masks[name].to(kernel.device) for name, kernel in self.kernels.items()}

    @torch.no_grad()
    def mask_gradients(self, optimizer: optim.Optimizer, iteration: int, progress: float) -> None:
        """Move the masks if it is time, then set gradients outside them to 0; to be called before a step.

        Args:
            optimizer: What it keeps for numbers that are dropped becomes 0.
            iteration: Steps before this one.
            progress: Share of the training that is done.
        """
        is_time = iteration > 0 and iteration % self.sparse.update_steps == 0 and progress < self.sparse.stop_fraction
        if is_time and all(bool(k.grad.isfinite().all()) for k in self.kernels.values() if k.grad is not None):
            fraction = self.sparse.drop_fraction * 0.5 * (1 + math.cos(math.pi * progress / self.sparse.stop_fraction))
            for name, kernel in self.kernels.items():
                self._regrow(name, kernel, fraction)
                for value in optimizer.state[kernel].values():
                    if isinstance(value, Tensor) and value.shape == kernel.shape:
                        value.mul_(self.masks[name])
        for name, kernel in self.kernels.items():
            if kernel.grad is not None:
                kernel.grad.mul_(self.masks[name])

    @torch.no_grad()
    def mask_weights(self, *networks: nn.Module) -> None:
        """Set the numbers outside the masks to 0, in a network or in an average of it."""
        for network in networks:
            for name, kernel in sparse_kernels(network).items():
                kernel.mul_(self.masks[name])

    def _regrow(self, name: str, kernel: Tensor, fraction: float) -> None:
        mask, gradient = self.masks[name].flatten(), kernel.grad
        assert gradient is not None
        n_kept = int(mask.sum())
        n_moved = min(round(fraction * n_kept), mask.numel() - n_kept)
        sizes = kernel.abs().flatten().masked_fill(~mask, math.inf)
        slopes = gradient.abs().flatten().masked_fill(mask, -math.inf)
        moved = mask.clone()
        moved[sizes.topk(n_moved, largest=False).indices] = False
        moved[slopes.topk(n_moved).indices] = True
        self.masks[name] = moved.view(kernel.shape)
        kernel.mul_(self.masks[name])


def kept_counts(shapes: Mapping[str, tuple[int, ...]], sparse: SparseKernels) -> dict[str, int]:
    """Numbers of each kernel that are not masked.

    Args:
        shapes: Of the kernels, (out, in, voxels…).
        sparse: uniform: each keeps the same share. erk: the share is proportional to the sum of its edges divided by
            their product, at most 1, so that small kernels keep more; all together keep the same as with uniform.

    Source:
        Evci et al. 2020, Erdős-Rényi-Kernel.
    """
    numbers = {name: math.prod(shape) for name, shape in shapes.items()}
    density = 1 - sparse.sparsity
    if sparse.distribution == "uniform":
        return {name: round(density * n) for name, n in numbers.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        left = density * sum(numbers.values()) - sum(numbers[name] for name in full)
        factor = left / sum(raw[name] * numbers[name] for name in shapes if name not in full)
        over = {name for name in shapes if name not in full and factor * raw[name] > 1}
        if not over:
            break
        full |= over
    return {name: numbers[name] if name in full else round(factor * raw[name] * numbers[name]) for name in shapes}
