"""Several processes that train one network: each computes a part of the batch, all make the same step.

N processes are to one process with the same batch what gradient accumulation is to a larger memory: a way to compute
the same thing. Whatever a loss sums over the batch is summed over all processes, and gradients are averaged once before
the step, so every process holds the same weights at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from segpipe.core.errors import SetupError
from segpipe.core.machine import n_processes, rank
from segpipe.networks.norms import PhaseNorm

_PATIENCE = timedelta(7)  # days: the others wait while the first prepares and predicts; a dead one is noticed at once
_AT_ONCE = 1 << 24  # gradients that are sent together: enough to use the line, and few beside the network
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Group:
    """This process and those that it trains with; a single one has nothing to wait for, and nothing changes.

    Every process must call the same methods in the same order.

    Args:
        rank: Number of this process, from 0. The first one writes, prints and keeps the time.
        size: Processes.

    Raises:
        SetupError: From every method, if another process is gone.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, with the gradient of each process's own value."""
        if self.size == 1:
            return value
        total: Tensor = _SumOfAll.apply(value, self.size)
        return total

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes."""
        return self.sum(value) / self.size

    def average_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its mean over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        for taken in _portions(gradients):
            means = _sum(torch.cat([gradient.reshape(-1) for gradient in taken])).div_(self.size)
            for gradient, mean in zip(taken, torch.split(means, [g.numel() for g in taken]), strict=True):
                gradient.copy_(mean.view(gradient.shape))

    def share_statistics(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, whose batch norms then see the whole batch and not this process's part.

        Raises:
            SetupError: If it has batch norms and computes on a CPU, where torch cannot do that, or other norms that
                keep running statistics, which it cannot share anywhere.
        """
        if self.size > 1 and any(isinstance(module, PhaseNorm) for module in network.modules()):
            raise SetupError(
                f"{self.size} processes: norms pcnorm and ccnorm cannot share their statistics between processes. "
                "Train with one process, or plan with another norm "
                "(--set configurations.<name>.network.parts.norm=instance)."
            )
        if self.size == 1 or not any(isinstance(module, _BATCH_NORMS) for module in network.modules()):
            return network
        if device.type != "cuda":
            raise SetupError(
                f"{self.size} processes on {device.type}: it has batch norms, and torch shares their statistics "
                "between processes on CUDA only. Train with one process, or plan with another norm "
                "(--set configurations.<name>.network.parts.norm=instance)."
            )
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return shared

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of every process, by rank."""
        if self.size == 1:
            return [list(values)]
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        return _sum(table).tolist()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes through the body, then the others: what it wrote there is there for them."""
        if not self.is_first:
            self.gather([0.0])
        yield
        if self.is_first:
            self.gather([0.0])


ALONE = Group()


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Connect to the other processes that torchrun or segpipe started; without any, the group is one process.

    Raises:
        SetupError: If they cannot connect.
    """
    if n_processes() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:  # what is in the machine's memory goes by gloo, so that a GPU is not waited for
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as fault:
        raise SetupError(
            f"process {rank()} of {n_processes()}: cannot connect to the other processes ({fault}). Start them with "
            "`torchrun --nproc_per_node N -m segpipe train …`, or on one machine with `segpipe train … --devices N`."
        ) from fault
    group = Group(rank(), n_processes())
    yield group
    group.gather([0.0])  # no process leaves while another one needs it
    distributed.destroy_process_group()


def _portions(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, some at once."""
    portion: list[Tensor] = []
    for gradient in gradients:
        portion.append(gradient)
        if sum(g.numel() for g in portion) >= _AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


def _sum(value: Tensor) -> Tensor:
    """The sum over all processes, in place of a process's own value."""
    try:
        distributed.all_reduce(value)
    except RuntimeError as fault:
        raise SetupError(
            f"process {distributed.get_rank()} of {distributed.get_world_size()}: another process of this training "
            f"ended; its own message says why ({str(fault).splitlines()[0]})."
        ) from None
    return value


class _SumOfAll(torch.autograd.Function):
    """A sum over all processes. What is made of it is the same in each, and so is the gradient that comes back."""

    @staticmethod
    def forward(context: Any, value: Tensor, size: int) -> Tensor:
        context.size = size
        return _sum(value.detach().clone())

    @staticmethod
    def backward(context: Any, to_sum: Tensor) -> tuple[Tensor, None]:
        return to_sum * context.size, None  # since the mean of all gradients is taken in the end
