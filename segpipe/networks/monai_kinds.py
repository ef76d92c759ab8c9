"""Two of MONAI's networks behind the same interface, for comparisons: their own topology, one output.

MONAI takes seconds to import, so only a spec that names it does.
"""

# B batch, C features, Z Y X voxels; a 2D network has no Z.
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from segpipe.core.errors import package_needed
from segpipe.networks.spec import NetworkSpec

_INSTANCE = ("instance", {"affine": True})


class Padded(nn.Module):
    """A network that takes only multiples of a size: the border voxels are repeated, the result is cropped.

    Args:
        network: Gives one map of logits.
        divisors: What each edge must be a multiple of.
    """

    def __init__(self, network: nn.Module, divisors: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.divisors = divisors

    def forward(self, x: Tensor) -> list[Tensor]:
        edges = x.shape[2:]
        missing = [-edge % divisor for edge, divisor in zip(edges, self.divisors, strict=True)]
        if any(missing):
            ends = [pad for edge in reversed(missing) for pad in (0, edge)]
            x = functional.pad(x, ends, mode="replicate")
        return [self.network(x)[(..., *(slice(edge) for edge in edges))]]


def segresnet(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """MONAI's SegResNet with instance norm instead of group norm, MONAI's initial weights.

    Source:
        Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization, without the autoencoder.
    """
    with package_needed("monai", "network.kind: segresnet"):
        from monai.networks.nets.segresnet import SegResNet

    network = SegResNet(
        spatial_dims=spec.n_axes,
        init_filters=spec.features[0],
        in_channels=n_channels,
        out_channels=n_outputs,
        dropout_prob=spec.parts.dropout_fraction or None,
        norm=_INSTANCE,
        blocks_down=spec.blocks,
        blocks_up=spec.decoder_convolutions[::-1],
    )
    return Padded(network, spec.divisors_zyx)


def swin_unetr(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """MONAI's SwinUNETR with windows of 7 voxels, MONAI's initial weights.

    `spec.blocks` are, from the highest resolution: 1, then the transformer blocks at ½, ¼, ⅛ and 1/16, then 1.

    Source:
        Hatamizadeh et al. 2022, Swin UNETR.
    """
    with package_needed("monai", "network.kind: swin_unetr"):
        from monai.networks.nets.swin_unetr import SwinUNETR

    with torch.device("cpu"):  # its constructor reads numbers out of tensors, which other devices may not hold
        network = SwinUNETR(
            in_channels=n_channels,
            out_channels=n_outputs,
            depths=spec.blocks[1:-1],
            feature_size=spec.features[0],
            norm_name=_INSTANCE,
            drop_rate=spec.parts.dropout_fraction,
            dropout_path_rate=spec.parts.drop_path_fraction,
            use_checkpoint=spec.parts.checkpointing,
            spatial_dims=spec.n_axes,
        )
    return Padded(network.to(torch.get_default_device()), spec.divisors_zyx)
