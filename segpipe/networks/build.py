"""From a NetworkSpec to a module that takes and gives (B, C, Z, Y, X)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn

from segpipe.networks.spec import NetworkSpec


def _plain(spec: NetworkSpec, common: dict[str, Any]) -> nn.Module:
    network = PlainConvUNet(
        n_conv_per_stage=list(spec.blocks), n_conv_per_stage_decoder=list(spec.decoder_convolutions), **common
    )
    return network.apply(InitWeights_He(1e-2))


def _residual(spec: NetworkSpec, common: dict[str, Any]) -> nn.Module:
    network = ResidualEncoderUNet(
        n_blocks_per_stage=list(spec.blocks), n_conv_per_stage_decoder=list(spec.decoder_convolutions), **common
    )
    return network.apply(InitWeights_He(1e-2)).apply(init_last_bn_before_add_to_0)


NETWORKS: dict[str, Callable[[NetworkSpec, dict[str, Any]], nn.Module]] = {"plain": _plain, "residual": _residual}


class SliceWise(nn.Module):
    """A 2D network applied to every slice: Z moves into the batch and back."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        n_batch, n_slices = x_BCZYX.shape[0], x_BCZYX.shape[2]
        slices_BCYX = x_BCZYX.transpose(1, 2).flatten(0, 1)
        outputs = self.network(slices_BCYX)
        return [o.unflatten(0, (n_batch, n_slices)).transpose(1, 2) for o in outputs]


def build(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """Make a network with new weights (He initialisation for leaky ReLU, as nnU-Net).

    Args:
        spec: What it is made of.
        n_channels: Channels of the image.
        n_outputs: Channels of the result.

    Returns:
        A module from (B, C, Z, Y, X) float to a list of logits (B, n_outputs, z, y, x), one for each decoder stage,
        the highest resolution first. A 2D network treats every slice by itself.

    Source:
        dynamic-network-architectures, PlainConvUNet and ResidualEncoderUNet with nnU-Net's settings.
    """
    flat = spec.n_axes == 2
    common = dict(
        input_channels=n_channels,
        num_classes=n_outputs,
        n_stages=len(spec.features),
        features_per_stage=list(spec.features),
        conv_op=nn.Conv2d if flat else nn.Conv3d,
        kernel_sizes=[list(kernel) for kernel in spec.kernels_zyx],
        strides=[list(stride) for stride in spec.strides_zyx],
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    network = NETWORKS[spec.kind](spec, common)
    return SliceWise(network) if flat else network
