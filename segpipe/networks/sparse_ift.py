"""Networks of sparse kernels that, but for those of 0, multiply about as often as the dense network.

What is rewritten are the dense convolutions of more than one voxel behind the first one: projections of one voxel,
transposed and depthwise convolutions, norms and the layers that make logits stay as they are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from segpipe.core.choices import functions_for
from segpipe.networks.blocks import Layers, he_initialisation
from segpipe.networks.initial_weights import is_head
from segpipe.networks.parts import SPARSE_FAMILIES, SparseKernels
from segpipe.networks.spec import NetworkSpec

Convolution = nn.Conv2d | nn.Conv3d
MakeLayer = Callable[[int], nn.Module]  # a norm from its channels; an activation, whatever they are
_SPARSE_NAME = "sparse"  # of the submodule whose kernel is masked


def widen(spec: NetworkSpec) -> NetworkSpec:
    """The spec with widths times √(1 / (1 - sparsity)) if its family is `wide`; itself otherwise.

    Example:
        Sparsity 0.75 doubles the widths, so that a quarter of the kernels' numbers multiplies as often as before.
    """
    if spec.sparse is None or spec.sparse.family != "wide":
        return spec
    factor = math.sqrt(1 / (1 - spec.sparse.sparsity))
    decoder, below = spec.parts.decoder_features, spec.parts.bottleneck_features
    parts = {
        "decoder_features": None if decoder is None else tuple(int(n * factor) for n in decoder),
        "bottleneck_features": None if below is None else int(below * factor),
    }
    features = tuple(int(n * factor) for n in spec.features)
    return spec.model_copy(update={"features": features, "parts": spec.parts.model_copy(update=parts)})


def n_branches(sparsity: float) -> int:
    """Number of sparse convolutions in the place of a dense one."""
    return round(1 / (1 - sparsity))


def inner_features(n_in: int, n_out: int, n_kernel: int, sparsity: float) -> int:
    """Channels between both factors of a convolution of `n_kernel` voxels."""
    return math.ceil(n_kernel * n_in * n_out / ((1 - sparsity) * (n_kernel * n_in + n_out)))


def rank(n_in: int, n_out: int, n_kernel: int, sparsity: float) -> int:
    """Channels between both factors of what is added to a sparse convolution; at least 1."""
    return max(1, math.floor(sparsity * n_kernel * n_in * n_out / (n_kernel * n_in + n_out)))


class Branches(nn.Module):
    """The sum of modules that take the same input."""

    def __init__(self, branches: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: Tensor) -> Tensor:
        results = [branch(x) for branch in self.branches.values()]
        return torch.stack(results).sum(0) if len(results) > 2 else sum(results[1:], results[0])


def _wide(convolution: Convolution, *_: object) -> nn.Sequential:
    return _mask_name(convolution)


def _mask_name(convolution: nn.Module, **behind: nn.Module) -> nn.Sequential:
    """A convolution under the name by which `sparse_kernels` finds its kernel, and what comes behind it."""
    return nn.Sequential(OrderedDict({_SPARSE_NAME: convolution}, **behind))


def _parallel(convolution: Convolution, sparsity: float, make_norm: MakeLayer, _: MakeLayer) -> nn.Module:
    branches: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(n_branches(sparsity)):
        branches[str(index)] = _mask_name(deepcopy(convolution), norm=make_norm(convolution.out_channels))
    return Branches(branches)


def _factorise(convolution: Convolution, sparsity: float, make_norm: MakeLayer, make_nonlin: MakeLayer) -> nn.Module:
    n = inner_features(*_sizes(convolution), sparsity)
    first, second = _factors(convolution, n, bias=convolution.bias is not None)
    return nn.Sequential(_mask_name(first, norm=make_norm(n), nonlin=make_nonlin(n)), _mask_name(second))


def _dope(convolution: Convolution, sparsity: float, *_: MakeLayer) -> nn.Module:
    first, second = _factors(convolution, rank(*_sizes(convolution), sparsity), bias=False)
    dense = nn.Sequential(OrderedDict(conv=first, project=second))
    return Branches(OrderedDict({_SPARSE_NAME: convolution, "dense": dense}))


_REWRITERS: dict[str, Callable[[Convolution, float, MakeLayer, MakeLayer], nn.Module]] = {
    "wide": _wide,
    "parallel": _parallel,
    "factorised": _factorise,
    "doped": _dope,
}
REWRITE = functions_for(SPARSE_FAMILIES, _REWRITERS, "SPARSE_FAMILIES of networks/parts.py")


def rewrite(network: nn.Module, sparse: SparseKernels, make_norm: MakeLayer, make_nonlin: MakeLayer) -> nn.Module:
    """Put what the family says in the place of each dense convolution; the network is changed in place and returned.

    Args:
        network: New; widened already if the family is `wide`.
        sparse: Family and sparsity.
        make_norm: Makes a norm of so many channels.
        make_nonlin: Makes an activation.

    Source:
        Thangarasa et al. 2024, Sparse-IFT: the four families, with a norm behind each of the parallel branches beside
        that behind their sum.
    """
    for path, convolution in list(_dense(network).items()):
        parent, _, name = path.rpartition(".")
        rewritten = REWRITE[sparse.family](convolution, sparse.sparsity, make_norm, make_nonlin)
        if sparse.family != "wide":
            he_initialisation(rewritten)
        setattr(network.get_submodule(parent), name, rewritten)
    return network


def rewrite_as(network: nn.Module, spec: NetworkSpec) -> nn.Module:
    """The network with the sparse kernels of its spec; itself if that has none."""
    if spec.sparse is None:
        return network
    make = Layers(spec.n_axes, spec.parts)
    return rewrite(network, spec.sparse, make.norm, lambda _: make.activation())


def sparse_kernels(network: nn.Module) -> dict[str, nn.Parameter]:
    """Kernels to be masked, by name, in the network's order."""
    return {n: p for n, p in network.named_parameters() if n.endswith(f".{_SPARSE_NAME}.weight")}


def _dense(network: nn.Module) -> dict[str, Convolution]:
    found = {p: m for p, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m.groups == 1}
    behind_first = list(found.items())[1:]
    return {path: m for path, m in behind_first if math.prod(m.kernel_size) > 1 and not is_head(path)}


def _sizes(convolution: Convolution) -> tuple[int, int, int]:
    return convolution.in_channels, convolution.out_channels, math.prod(convolution.kernel_size)


def _factors(convolution: Convolution, n: int, *, bias: bool) -> tuple[nn.Module, nn.Module]:
    """A convolution of the same form to `n` channels, and one of a single voxel from there."""
    same = {"stride": convolution.stride, "padding": convolution.padding, "dilation": convolution.dilation}
    make = nn.Conv2d if isinstance(convolution, nn.Conv2d) else nn.Conv3d
    first = make(convolution.in_channels, n, convolution.kernel_size, bias=False, **same)  # type: ignore[arg-type]
    return first, make(n, convolution.out_channels, 1, bias=bias)
