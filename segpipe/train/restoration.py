"""Self-supervised training: blocks of an image are hidden, and the network restores them from the rest."""

# B batch, C channels, Z Y X voxels.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segpipe.core.grid import ZYX
from segpipe.networks.spec import NetworkSpec

HIDDEN_SHARE = 0.6
_STAGES_OF_A_BLOCK = 3  # strides whose product is a block's edge: smaller ones are filled in from their border


@dataclass(frozen=True)
class Restoration:
    """A way to hide parts of images.

    Args:
        block_zyx: Edges of a hidden block in voxels.
        hidden_share: Share of blocks that are hidden, above 0 and below 1.
    """

    block_zyx: ZYX
    hidden_share: float = HIDDEN_SHARE

    def draw(self, images_BCZYX: Tensor, generator: np.random.Generator) -> Tensor:
        """Draw which voxels are hidden: (B, 1, Z, Y, X) bool, on the images' device.

        The grid of blocks begins at a random voxel for each image. The share of hidden blocks is exact to a block.
        """
        shape = images_BCZYX.shape[2:]
        hidden = np.empty((len(images_BCZYX), 1, *shape), dtype=bool)
        for one in hidden[:, 0]:
            offset = [int(generator.integers(edge)) for edge in self.block_zyx]
            n_blocks = [-(-(n + o) // e) for n, o, e in zip(shape, offset, self.block_zyx, strict=True)]
            ranks = generator.permutation(int(np.prod(n_blocks))).reshape(n_blocks)
            chosen = ranks < round(self.hidden_share * ranks.size)
            places = [(np.arange(n) + o) // e for n, o, e in zip(shape, offset, self.block_zyx, strict=True)]
            one[...] = chosen[np.ix_(*places)]
        return torch.from_numpy(hidden).to(images_BCZYX.device)


def restoration_for(network: NetworkSpec) -> Restoration:
    """Hidden blocks as large as a voxel of the fourth stage: thick slices have flat blocks; at least 4 in plane.

    Example:
        Strides of 1, (1, 2, 2), 2, 2 make blocks of 4×8×8 voxels in 3D, and 1×8×8 in a 2D network.
    """
    strides = [step if len(step) == 3 else (1, *step) for step in network.strides_zyx[: _STAGES_OF_A_BLOCK + 1]]
    z, y, x = (int(np.prod([step[axis] for step in strides])) for axis in range(3))
    return Restoration((z, max(4, y), max(4, x)))


def restoration_loss(outputs: Sequence[Tensor], images_BCZYX: Tensor, hidden_B1ZYX: Tensor) -> Tensor:
    """Mean squared error over the hidden voxels of all channels, at full resolution, float32; 0 if none is hidden.

    Source:
        He et al. 2022, Masked Autoencoders, with a U-Net: hidden voxels are 0, the mean of a normalised image, instead
        of being left out, and the decoder is kept. As there, the visible voxels do not count; images are the target as
        normalised for the case, not block by block.
    """
    squares = (outputs[0].float() - images_BCZYX).square() * hidden_B1ZYX
    return squares.sum() / (hidden_B1ZYX.sum() * images_BCZYX.shape[1]).clamp_min(1)


def loss_of_unknown_images(outputs: Sequence[Tensor], indices_BZYX: Tensor) -> Tensor:
    """The same loss where only its memory counts: of images of zeros, none of them hidden."""
    hidden_B1ZYX = torch.zeros_like(indices_BZYX, dtype=torch.bool).unsqueeze(1)
    return restoration_loss(outputs, torch.zeros_like(outputs[0], dtype=torch.float32), hidden_B1ZYX)
