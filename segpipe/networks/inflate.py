"""The weights that training starts from: ImageNet's for EfficientNet, 2D kernels made 3D, or any checkpoint's."""

# Kernels are (O, I, Y, X) or (O, I, Z, Y, X): channels out, channels in, taps.
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from segpipe.core.errors import SetupError, UsageError
from segpipe.core.records import did_you_mean
from segpipe.networks.parts import InitialWeights
from segpipe.networks.transfer import Transferred, plain_name, put_weights, read_weights

_TIMM = "timm:"
_HUB_FILE = "model.safetensors"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_DEPTHWISE = ".depthwise.conv.weight"
_STEM = {"conv_stem": "stem.conv", "bn1": "stem.norm"}  # timm's names and ours
_IN_BLOCK = {
    "conv_pw": "expand.conv",
    "bn1": "expand.norm",
    "conv_dw": "depthwise.conv",
    "bn2": "depthwise.norm",
    "se.conv_reduce": "squeeze.reduce",
    "se.conv_expand": "squeeze.expand",
    "conv_pwl": "project.conv",
    "bn3": "project.norm",
}
_IN_FIRST_STAGE = _IN_BLOCK | {"bn1": "depthwise.norm", "conv_pw": "project.conv", "bn2": "project.norm"}


def start_from(weights: InitialWeights, network: nn.Module) -> list[str]:
    """Put the weights that a plan names into a new network.

    Args:
        weights: A file that `transfer_weights` can read, or `timm:` and a model with its tag, which is downloaded
            once. A 2D EfficientNet in timm's names goes into the encoder of the same size, its kernels made 3D; of
            batch norms, scale and shift are taken by any norm, statistics by a batch norm alone.
        network: Changed in place.

    Returns:
        For a person: what was loaded, what stayed new, what was not used, and why.

    Raises:
        UsageError: If the source is missing, damaged, unsafe, unknown to timm, or of another network.
        SetupError: If timm is not installed, or what it names cannot be downloaded.
    """
    if weights.source.startswith(_TIMM):
        path, licence = _from_timm(weights.source.removeprefix(_TIMM))
    else:
        path, licence = Path(weights.source), weights.licence
    stored = read_weights(path)
    is_photographic = "conv_stem.weight" in stored
    if is_photographic:
        stored = _for_encoder(weights, _rename(stored), network)
    found = put_weights(weights.source, stored, network)
    stated = f", stated by timm: {licence}" if licence != weights.licence else ""
    made = f"; kernels made 3D: {weights.inflation}" if is_photographic and _n_axes(network) == 3 else ""
    return [f"starts from {weights.source} (licence {weights.licence}{stated}){made}", *_account(found)]


def inflate(kernel: Tensor, size_zyx: Sequence[int], inflation: str) -> Tensor | None:
    """A 2D kernel as a 3D one with the same sum.

    Args:
        kernel: (O, I, Y, X).
        size_zyx: Taps of the 3D kernel.
        inflation: centre: in the middle plane along Z, 0 elsewhere, so that the network sees each slice as the 2D one
            does. mean: in all planes along Z, divided by their number. axial: the mean of three kernels that lie in
            the middle of YX, ZX and ZY.

    Returns:
        (O, I, Z, Y, X); None if the 2D kernel is as large as no plane of the 3D one. Of planes that are too small or
        too large for it nothing is used: a kernel of 1 along Z takes the 2D one as it is, whatever `inflation`.

    Source:
        Carreira and Zisserman 2017, I3D (mean).
    """
    rows = tuple(kernel.shape[2:])
    normals = [axis for axis in range(3) if (*size_zyx[:axis], *size_zyx[axis + 1 :]) == rows]
    if not normals:
        return None
    chosen = normals if inflation == "axial" else normals[:1]
    precision = torch.promote_types(kernel.dtype, torch.float32)  # a third is no number of 16 bits
    total = kernel.new_zeros(*kernel.shape[:2], *size_zyx, dtype=precision)
    for axis in chosen:
        depth = size_zyx[axis]
        planes = range(depth) if inflation == "mean" else [depth // 2]
        for plane in planes:
            total.select(2 + axis, plane).add_(kernel, alpha=1 / (len(planes) * len(chosen)))
    return total


def _from_timm(name: str) -> tuple[Path, str]:
    """The file with the weights of a model, and their licence as timm states it."""
    try:
        import timm
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise SetupError(
            f"{_TIMM}{name}: the package timm is not installed. `pip install 'segpipe[timm]'`, or give a file "
            f"({_HUB_FILE} of the model) instead."
        ) from None
    names = timm.list_models("*efficientnet_b[0-7].*", pretrained=True)  # with the tag, whose default may change
    known = timm.get_pretrained_cfg(name) if name in names else None
    if known is None or not known.hf_hub_id:
        alike = [other for other in names if _architecture(other) == _architecture(name)]
        hint = f" Known: {', '.join(alike)}." if alike else did_you_mean(name, names)
        raise UsageError(f"{_TIMM}{name}: timm {timm.__version__} has no such weights of an EfficientNet.{hint}")
    try:
        path = hf_hub_download(known.hf_hub_id, _HUB_FILE)
    except OSError as fault:
        raise SetupError(
            f"{_TIMM}{name}: cannot be downloaded ({str(fault).splitlines()[0]}). Download {_HUB_FILE} of "
            f"https://huggingface.co/{known.hf_hub_id} where there is a network, and give its path as the source."
        ) from None
    return Path(path), known.license or "unknown"


def _architecture(name: str) -> str:
    """`efficientnet_b0` of `tf_efficientnet_b0.in1k`."""
    return name.removeprefix("tf_").partition(".")[0]


def _rename(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's EfficientNet by the names they have in our encoder; its head keeps its names."""
    renamed = {}
    for name, value in stored.items():
        layer, _, kind = name.rpartition(".")
        steps = layer.split(".", 3)
        if steps[0] == "blocks" and len(steps) == 4:
            inside = (_IN_FIRST_STAGE if steps[1] == "0" else _IN_BLOCK).get(steps[3], steps[3])
            layer = f"encoder.stages.{steps[1]}.blocks.{steps[2]}.{inside}"
        elif layer in _STEM:
            layer = f"encoder.{_STEM[layer]}"
        renamed[f"{layer}.{kind}"] = value
    return renamed


def _for_encoder(weights: InitialWeights, stored: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Kernels with as many axes as the network's.

    Raises:
        UsageError: If the network has no EfficientNet of that size.
    """
    own = {plain_name(name): value for name, value in network.state_dict().items()}
    theirs, ours = _channels_of_blocks(stored), _channels_of_blocks(own)
    if theirs != ours:
        expected = f"one with {_report(ours)}" if ours else "weights of this network, which has no EfficientNet"
        raise UsageError(
            f"{weights.source}: is an EfficientNet with {_report(theirs)}, expected {expected}. Name other weights in "
            "network.weights.source, or plan the network for these."
        )
    fitted = dict(stored)
    for name in stored.keys() & own.keys():
        if stored[name].ndim == 4 and own[name].ndim == 5:
            made = inflate(stored[name], tuple(own[name].shape[2:]), weights.inflation)
            fitted[name] = stored[name] if made is None else made
    return fitted


def _channels_of_blocks(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Hidden channels of each block, which tell one size from all others."""
    return {name: len(value) for name, value in weights.items() if name.endswith(_DEPTHWISE) and value.ndim}


def _report(channels: Mapping[str, int]) -> str:
    return f"{len(channels)} blocks, the widest of {max(channels.values(), default=0)} hidden channels"


def _n_axes(network: nn.Module) -> int:
    return max(value.ndim for value in network.state_dict().values()) - 2


def _account(found: Transferred) -> list[str]:
    """Say what became of the tensors, part by part: hundreds of names would hide it."""
    n_loaded = len(found.loaded) + len(found.adapted)
    lines = [f"{n_loaded} tensors loaded, {len(found.new)} left new, {len(found.unused)} of the source not used"]
    lines += [f"adapted: {name}: {how}" for name, how in found.adapted.items()]
    for reason, n_names in Counter(found.new.values()).items():
        names = [name for name, why in found.new.items() if why == reason]
        lines.append(f"left new: {names[0] if n_names == 1 else _parts(names)}: {reason}")
    return lines + ([f"not used: {_parts(found.unused)}"] if found.unused else [])


def _parts(names: Iterable[str]) -> str:
    """`decoder (12), encoder.top (8)`: the parts that names belong to, and how many of each."""
    counts: Counter[str] = Counter()
    for name in names:
        first, second, *_ = f"{plain_name(name)}..".split(".")
        is_statistic = name.endswith(_STATISTICS)
        counts[
            "statistics of batch norms" if is_statistic else f"{first}.{second}" * (first == "encoder") or first
        ] += 1
    return ", ".join(f"{part} ({n})" for part, n in sorted(counts.items()))
