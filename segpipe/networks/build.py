"""From a NetworkSpec to a module that takes and gives (B, C, Z, Y, X).

A family is one file and two rows. The file, `segpipe/networks/<family>.py`, has a function
`<family>(spec, n_channels, n_outputs) -> nn.Module` that gives an **initialised** module for `spec.n_axes` axes from
(B, C, [Z,] Y, X) to a list of logits, the highest resolution first, the first as large as the input whatever its size.
Most write an encoder and, if theirs is not nnU-Net's, a `DecoderStyle`, and put both into `unet.UNet`:

    def my_family(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
        return he_initialisation(UNet(spec, MyEncoder(spec, n_channels), n_outputs))

- An encoder gives one map for each stage of the spec (`spec.features[s]` channels, ceil(size / stride) voxels), the
  first at full resolution. Skips' gates, the bottleneck, merging, cropping of odd sizes, heads and `deep_supervision`
  are the U-Net's business.
- Layers come from `blocks.Layers(spec.n_axes, spec.parts, spec.thick_axis)`, which knows norm, activation, bias,
  dropout and gates; blocks run through `blocks.through(..., checkpointing=spec.parts.checkpointing)`.
- A value that the family needs and `Parts` lacks is a new field there, with a default that changes nothing.
- No parameter may stay without a gradient, and no batch norm hide when `parts.norm` is another.

The rows: the function in `_FAMILIES` below, and a `NetworkKind` in `spec.KINDS` with the parts that the family uses; a
spec with others is refused. A third, a small spec in tests/specs.py, has tests/test_build.py run over it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from segpipe.core.choices import functions_for
from segpipe.core.errors import PlanError, ResourceError, package_needed
from segpipe.core.machine import free_bytes
from segpipe.core.text import size_text
from segpipe.networks.blocks import ChannelNorm, he_initialisation
from segpipe.networks.canonical import Canonicalised
from segpipe.networks.convnext import ResponseNorm, convnext
from segpipe.networks.convolutions import guard_convolutions, memory_format
from segpipe.networks.device import set_up_cudnn
from segpipe.networks.efficientnet import efficientnet
from segpipe.networks.efficientnet_table import KINDS_OF_EFFICIENTNET
from segpipe.networks.initial_weights import is_head
from segpipe.networks.norms import BlendNorm
from segpipe.networks.simplenet import simplenet
from segpipe.networks.simplenet_table import KINDS_OF_SIMPLENET
from segpipe.networks.sparse_ift import rewrite_as, widen
from segpipe.networks.spec import KINDS, NetworkSpec
from segpipe.networks.unet import ConvEncoder, ResidualEncoder, UNet

# Two of MONAI's networks, for comparisons: their own topology, one output. MONAI takes seconds to import, so only a
# spec that names it does. B batch, C features, Z Y X voxels; a 2D network has no Z.

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


def plain(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """nnU-Net's network: equal to PlainConvUNet of dynamic-network-architectures, weights by the same names."""
    return he_initialisation(UNet(spec, ConvEncoder(spec, n_channels), n_outputs))


def residual(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """nnU-Net's residual encoder presets: equal to ResidualEncoderUNet, weights by the same names."""
    return he_initialisation(UNet(spec, ResidualEncoder(spec, n_channels), n_outputs))


_FAMILIES: dict[str, Callable[[NetworkSpec, int, int], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "convnext": convnext,
    **dict.fromkeys(KINDS_OF_EFFICIENTNET, efficientnet),
    **dict.fromkeys(KINDS_OF_SIMPLENET, simplenet),
    "segresnet": segresnet,
    "swin_unetr": swin_unetr,
}
NETWORKS = functions_for(KINDS, _FAMILIES, "KINDS of networks/spec.py")


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
    """Make a network with new weights.

    Args:
        spec: What it is made of.
        n_channels: Channels of the image.
        n_outputs: Channels of the result.

    Returns:
        A module from (B, C, Z, Y, X) float to a list of logits (B, n_outputs, z, y, x), one for each decoder stage,
        the highest resolution first and as large as the input. A 2D network treats every slice by itself.

    Raises:
        PlanError: If there is a single stage, which nnU-Net plans for tiny images and cannot build either.
        ResourceError: If memory does not hold its weights.
    """
    if len(spec.features) < 2:
        raise PlanError(
            "network: 1 stage, expected at least 2: the images are too small for a U-Net. Choose another configuration "
            "or plan with --preset auto."
        )
    if torch.get_default_device().type != "meta":
        _require_memory(spec, n_channels, n_outputs)
    network = guard_convolutions(_make(spec, n_channels, n_outputs))
    return SliceWise(network) if spec.n_axes == 2 else network


def _make(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """The network for the spec's axes, with sparse kernels and in a canonical frame if the spec wants it."""
    spec = widen(spec)
    network = rewrite_as(NETWORKS[spec.kind](spec, n_channels, n_outputs), spec)
    return Canonicalised(network, spec, n_channels) if spec.parts.canonicalise else network


def weights_bytes(spec: NetworkSpec, n_channels: int, n_outputs: int) -> int:
    """Bytes of the weights and buffers of a network, which is not built for it."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # the weights of a seed stay as they are
        network = _make(spec, n_channels, n_outputs)
    return sum(value.numel() * value.element_size() for value in network.state_dict().values())


def parameter_shapes(spec: NetworkSpec, n_channels: int, n_outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that `build` would make, by name, each once."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(spec, n_channels, n_outputs)
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def state_shapes(spec: NetworkSpec, n_channels: int, n_outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the state dict of the network that `build` would make, by name."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(spec, n_channels, n_outputs)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _require_memory(spec: NetworkSpec, n_channels: int, n_outputs: int) -> None:
    needed, free = weights_bytes(spec, n_channels, n_outputs), free_bytes()
    if free and needed > free:
        raise ResourceError(
            f"network: its weights take {size_text(needed)}, {size_text(free)} of memory are free. Plan a smaller one."
        )


def ready_to_predict(network: nn.Module, kind: str, n_axes: int, device: torch.device) -> nn.Module:
    """Take a network to its device, in the order of memory that is fast there; it is changed in place.

    Args:
        network: With its weights.
        kind, n_axes: Of its `NetworkSpec`.
        device: Where it predicts.
    """
    set_up_cudnn(device)
    order = memory_format(kind, n_axes, device, trains=False)
    return network.to(memory_format=order).to(device).eval()


_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def inner_kernels(network: nn.Module) -> list[nn.Parameter]:
    """Kernels of dense convolutions and linear layers before the last ones, each once, in the network's order.

    Left out: depthwise and grouped kernels (many small matrices, not one), those of a single row or column, the layers
    that make logits, norms, biases, tables.
    """
    found = {}
    for path, module in network.named_modules():
        is_dense = isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1)
        if is_dense and not is_head(path):
            kernel = module.get_parameter("weight")
            if min(kernel.flatten(1).shape) > 1:
                found[id(kernel)] = kernel
    return list(found.values())


_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, ChannelNorm, BlendNorm, ResponseNorm)


def norm_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Scales, shifts and other parameters of norms, by name; each once, in the network's order.

    Batch, instance and synchronised batch norms of torch are `_NormBase`, and so are the norms made of them.
    """
    norms = [(path, module) for path, module in network.named_modules() if isinstance(module, _NORMS)]
    found = {f"{path}.{name}": p for path, norm in norms for name, p in norm.named_parameters(recurse=False)}
    return {name.removeprefix("."): parameter for name, parameter in found.items()}
