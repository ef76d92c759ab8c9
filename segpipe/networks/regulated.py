"""Residual stages with a recurrent cell: each block sees a state that the blocks before it wrote."""

# Tensors are (B, C, Z, Y, X), or (B, C, Y, X) in a 2D network. A state is a hidden map, an LSTM's also its cell.
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import BlockShape, CellMeans, Layers, ResidualBlock
from segpipe.networks.parts import REGULATORS

State = tuple[Tensor, ...]  # empty: all zeros


def _lstm(seen: Tensor, recalled: Tensor, state: State) -> State:
    into, forget, cell, out = (seen + recalled).chunk(4, 1)
    memory = into.sigmoid() * cell.tanh()
    if state:
        memory = memory + forget.sigmoid() * state[1]
    return out.sigmoid() * memory.tanh(), memory


def _gru(seen: Tensor, recalled: Tensor, state: State) -> State:
    (reset, keep, new), (reset_h, keep_h, new_h) = seen.chunk(3, 1), recalled.chunk(3, 1)
    kept = (keep + keep_h).sigmoid()
    hidden = (1 - kept) * torch.tanh(new + (reset + reset_h).sigmoid() * new_h)
    return (hidden + kept * state[0],) if state else (hidden,)


def _rnn(seen: Tensor, recalled: Tensor, state: State) -> State:  # noqa: ARG001 (the form of a step)
    return (torch.tanh(seen + recalled),)


_STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
STEP = functions_for(REGULATORS, _STEPS, "REGULATORS of networks/parts.py")
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


class RecurrentCell(nn.Module):
    """A convolutional recurrent cell: on maps of one voxel it is torch's LSTMCell, GRUCell or RNNCell.

    Input and hidden map each pass a depthwise convolution, then a 1×1×1 convolution with a bias. The authors let only
    neighbouring channels meet (grouped 1×1, then depthwise 3×3).

    Args:
        make: Makes layers.
        n_features: Channels of the input and of the state.
        kernel: Of the depthwise convolutions.

    Source:
        Xu et al. 2022, arXiv 2101.00590; Shi et al. 2015, Convolutional LSTM Network.
    """

    def __init__(self, make: Layers, n_features: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.kind = str(make.parts.regulator)
        n_gates = _GATES[self.kind] * n_features
        self.seen, self.recalled = (
            nn.Sequential(
                make.convolution(n_features, n_features, kernel, groups=n_features, bias=False),
                make.convolution(n_features, n_gates, bias=True),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor, state: State) -> State:
        recalled = self.recalled(state[0] if state else torch.zeros_like(x))
        return STEP[self.kind](self.seen(x), recalled, state)


class RegulatedBlock(nn.Module):
    """A residual block whose last convolution also reads the hidden map of the cell.

    Args:
        make: Makes layers.
        n_features: Channels of the block.
        block: Ends in a convolution and a norm.

    Source:
        Xu et al. 2022: a convolution of the concatenation is the sum of two. They put a norm and ReLU behind the cell;
        here the norm behind the sum is the only one.
    """

    def __init__(self, make: Layers, n_features: int, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block
        self.inform = make.convolution(n_features, n_features, bias=False)

    def forward(self, x: Tensor, cell: RecurrentCell, state: State) -> tuple[Tensor, ...]:
        """The result, then the new state."""
        assert isinstance(self.block.conv2, nn.Sequential)
        hidden = self.block.conv1(x)
        state = cell(hidden, state)
        convolution, *rest = self.block.conv2
        branch = convolution(hidden) + self.inform(state[0])
        for layer in rest:
            branch = layer(branch)
        return self.block.finish(x, branch), *state


class RegulatedStage(nn.Module):
    """Blocks in a row that share a cell.

    Args:
        make: Makes layers.
        shape: Of the first block.
        blocks: The blocks.
        n_state: Channels of the state that enters: it is averaged over the stride and, if its channels are others,
            projected. None: the state is 0 before the first block.
    """

    def __init__(self, make: Layers, shape: BlockShape, blocks: Sequence[RegulatedBlock], n_state: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.cell = RecurrentCell(make, shape.n_out, shape.kernel)
        steps: list[nn.Module] = [CellMeans(shape.stride)] if n_state and max(shape.stride) > 1 else []
        if n_state not in (None, shape.n_out):
            steps.append(make.convolution(n_state or 0, shape.n_out, bias=False))
        self.enter = nn.Sequential(*steps)
        self.checkpointing = make.parts.checkpointing

    def forward(self, x: Tensor) -> Tensor:
        return self.pass_on(x, ())[0]

    def pass_on(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The map and the state behind the last block."""
        state = tuple(self.enter(part) for part in state)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x, *rest = checkpoint(block, x, self.cell, state, use_reentrant=False)
            else:
                x, *rest = block(x, self.cell, state)
            state = tuple(rest)
        return x, state
