"""What a run leaves behind: weights for prediction, state to go on from, history for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segpipe.core.errors import UsageError
from segpipe.core.files import whole_file, write_text
from segpipe.core.progress import say


def save_weights(path: Path, network: nn.Module, about: Mapping[str, str]) -> None:
    """Write a network's weights, whole or not at all. Tensors that the module holds twice are written once."""
    seen: set[int] = set()
    weights = {}
    for name, value in network.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            weights[name] = value.detach().cpu().contiguous()
    with whole_file(path) as temporary:
        temporary.write_bytes(save(weights, dict(about)))  # by Python, so that a full disk is an OSError


def about_weights(path: Path) -> dict[str, str]:
    """What was written beside weights: configuration, fold, finished (0 or 1).

    Raises:
        UsageError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; this fold has no trained weights. Train it: `segpipe train`.")
    try:
        with safe_open(path, "pt") as stored:
            return dict(stored.metadata() or {})
    except (SafetensorError, OSError) as fault:
        raise UsageError(f"{path}: cannot be read as weights ({fault}). Train the fold again.") from None


def load_weights(path: Path, network: nn.Module) -> None:
    """Put weights into a network of the same shape.

    Raises:
        UsageError: If the file is missing, damaged, or of another network.
    """
    about_weights(path)
    weights = load_file(path)
    shared = {value.data_ptr(): name for name, value in network.state_dict().items() if name in weights}
    own = network.state_dict()
    missing = [n for n, v in own.items() if n not in weights and v.data_ptr() not in shared]
    wrong = [n for n, v in weights.items() if n not in own or own[n].shape != v.shape]
    if missing or wrong:
        raise UsageError(
            f"{path}: holds the weights of another network ({len(missing)} missing, {len(wrong)} that do not fit, e.g. "
            f"{(missing + wrong)[0]}). Use the plan that lies beside it."
        )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state to go on from, whole or not at all."""
    packed = io.BytesIO()
    torch.save(dict(state), packed)
    with whole_file(path) as temporary:
        temporary.write_bytes(packed.getbuffer())


def load_state(path: Path) -> dict[str, Any] | None:
    """State to go on from; None if there is none. A damaged file is set aside with a line that says so."""
    if not path.is_file():
        return None
    if not _is_whole(path):
        damaged = path.with_suffix(".damaged")
        path.replace(damaged)
        say(f"warning: {path} is damaged; kept as {damaged.name}, training starts anew.")
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def _is_whole(path: Path) -> bool:
    """Whether the checksums in a file of torch.save, which is a zip archive, are right."""
    try:
        with ZipFile(path) as archive:
            return archive.testzip() is None
    except (BadZipFile, OSError, EOFError):
        return False


def cpu_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU."""
    return {name: value.detach().cpu() for name, value in tensors.items()}


def write_history(path: Path, rows: Sequence[Mapping[str, float | int]]) -> None:
    """One line for each epoch."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
