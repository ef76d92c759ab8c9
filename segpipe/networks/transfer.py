"""Fine-tuning: weights of a segpipe or nnU-Net checkpoint put into a network, with an account of what fitted."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from segpipe.core.errors import UsageError
from segpipe.networks.convnext import upkern

_WRAPPERS = ("module.", "_orig_mod.", "network.")  # of DataParallel, torch.compile, SliceWise
_COPIES = ("decoder.encoder.", ".all_modules.")  # nnU-Net's modules are registered twice, so its files hold them twice
_PLACES = ("network_weights", "network", "state_dict", "model")  # of the weights in files of nnU-Net, segpipe, others
_NUMPY: list[Any] = [  # what nnU-Net's files hold beside tensors: numpy's numbers; nothing here can run code
    np.dtype,
    np.ndarray,
    codecs.encode,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
    *(
        (maker.__reduce__()[0], f"numpy.{core}.multiarray.{name}")  # numpy 2 renamed the module
        for name, maker in (("scalar", np.float64(0)), ("_reconstruct", np.zeros(1)))
        for core in ("core", "_core")
    ),
]


@dataclass(frozen=True)
class Transferred:
    """The fate of every tensor.

    Args:
        loaded: Names that were copied as they are.
        adapted: Names that were fitted to another shape, and how.
        new: Names in the network that keep their initial weights, and why.
        unused: Names in the file that have no place in the network.
    """

    loaded: tuple[str, ...]
    adapted: dict[str, str]
    new: dict[str, str]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """Describe it for a person: the counts, then each reason with the names it concerns."""
        text = [f"{len(self.loaded)} tensors loaded, {len(self.new)} left new, {len(self.unused)} of the file not used"]
        text += [f"adapted: {name}: {how}" for name, how in self.adapted.items()]
        text += [f"left new: {name}: {why}" for name, why in self.new.items()]
        return text + [f"not used: {name}" for name in self.unused]


def transfer_weights(path: Path, network: nn.Module) -> Transferred:
    """Put what fits of a checkpoint into a network; the rest of the network stays as it is.

    Args:
        path: `.safetensors` or `state.pt` of segpipe, `.pth` of nnU-Net, or a file of torch.save with a state dict.
        network: Changed in place. Tensors are matched by name. The first convolution's kernels are fitted to another
            number of image channels: their mean, scaled so that equal channels give the same sum. Kernels of another
            size are interpolated (UpKern). Heads for another number of labels do not fit and stay new.

    Returns:
        What was loaded, what was not, and why.

    Raises:
        UsageError: If the file is missing, damaged, holds anything but numbers and names, or fits nowhere.
    """
    return put_weights(str(path), read_weights(path), network)


def put_weights(source: str, stored: Mapping[str, Tensor], network: nn.Module) -> Transferred:
    """Do as `transfer_weights` from tensors by `plain_name`; `source` names them in errors."""
    own = network.state_dict()
    first = next((name for name, value in own.items() if value.ndim >= 4), None)
    kept: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    new: dict[str, str] = {}
    for name, target in own.items():
        found = stored.get(plain_name(name))
        if found is None:
            new[name] = "the file has no such tensor"
        elif found.shape == target.shape:
            kept[name] = found
        elif (fitted := _fit(found, target, name == first)) is not None:
            kept[name] = fitted
            adapted[name] = f"{tuple(found.shape)} to {tuple(target.shape)}"
        else:
            new[name] = f"has {tuple(found.shape)} in the file, {tuple(target.shape)} here"
    if not kept:
        raise UsageError(
            f"{source}: none of its {len(stored)} tensors fits this network (e.g. {next(iter(stored), 'it is empty')}, "
            f"expected e.g. {next(iter(own))}). Plan the network that the file was trained with."
        )
    broken = next((name for name, value in kept.items() if not value.isfinite().all()), None)
    if broken is not None:
        raise UsageError(
            f"{source}: {broken} holds numbers that are not finite, expected finite weights. "
            "Take an earlier checkpoint."
        )
    network.load_state_dict(kept, strict=False)
    known = {plain_name(name) for name in own}
    loaded = tuple(name for name in kept if name not in adapted)
    return Transferred(loaded, adapted, new, tuple(sorted(set(stored) - known)))


def _fit(source: Tensor, target: Tensor, is_first: bool) -> Tensor | None:
    """A kernel for another number of image channels or of another size; None if it differs otherwise."""
    if source.ndim != target.ndim or source.ndim < 4 or source.shape[0] != target.shape[0]:
        return None
    if source.shape[1] == target.shape[1]:
        return upkern({"": source}, {"": target})[""]
    if is_first and source.shape[2:] == target.shape[2:]:
        mean = source.float().mean(1, keepdim=True) * (source.shape[1] / target.shape[1])
        return mean.expand_as(target)
    return None


def _is_copy(name: str) -> bool:
    return any(copy in name for copy in _COPIES)


def plain_name(name: str) -> str:
    """Strip the prefixes of torch.compile, DataParallel and our 2D networks."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file by `plain_name`, each once.

    Raises:
        UsageError: If it is missing, damaged, or holds anything but numbers and names.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a checkpoint (.safetensors of segpipe, .pth of nnU-Net).")
    try:
        values: Mapping[str, Any] = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except (SafetensorError, OSError, RuntimeError, EOFError) as fault:
        raise UsageError(f"{path}: cannot be read as weights ({str(fault).splitlines()[0]}). Copy it again.") from None
    for place in _PLACES:
        if isinstance(values.get(place), Mapping):
            values = values[place]
            break
    named = {n: v for n, v in values.items() if isinstance(n, str) and isinstance(v, Tensor)}
    weights = {plain_name(n): v for n, v in named.items() if not _is_copy(n)}
    if not weights:
        raise UsageError(f"{path}: holds no tensors by name (found: {', '.join(map(str, values))[:80] or 'nothing'}).")
    return weights


def _read_torch(path: Path) -> Mapping[str, Any]:
    if not is_zipfile(path):
        raise UsageError(
            f"{path}: is not a complete file of torch.save. Copy it again, or save it with torch 1.6 or later."
        )
    with torch.serialization.safe_globals(_NUMPY):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if foreign:
            raise UsageError(
                f"{path}: holds {', '.join(sorted(foreign))}, which would run code when read; expected numbers and "
                "names. Save its state dict alone."
            )
        values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: holds a {type(values).__name__}, expected tensors by name. Save a state dict.")
    return values
