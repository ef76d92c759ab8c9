"""Which parameters of a network are matrices inside it: the ones that an optimizer may treat as such."""

from __future__ import annotations

from torch import nn

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_HEADS = {"seg_layers", "bottleneck_head", "conv_final", "out"}  # modules that make logits; the last two are MONAI's


def inner_kernels(network: nn.Module) -> list[nn.Parameter]:
    """Kernels of dense convolutions and linear layers before the last ones, each once, in the network's order.

    Left out: depthwise and grouped kernels (many small matrices, not one), those of a single row or column, the layers
    that make logits, norms, biases, tables.
    """
    found = {}
    for path, module in network.named_modules():
        is_dense = isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTIONS) and module.groups == 1)
        if is_dense and not _HEADS & set(path.split(".")):
            kernel = module.get_parameter("weight")
            if min(kernel.flatten(1).shape) > 1:
                found[id(kernel)] = kernel
    return list(found.values())
