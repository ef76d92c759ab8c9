"""Files of a training: weights for prediction, state to go on from, history for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segpipe.core.errors import UsageError, is_out_of_memory
from segpipe.core.files import whole_file, write_text
from segpipe.core.machine import environment_here
from segpipe.core.progress import say
from segpipe.core.work import FoldFolder
from segpipe.data.splits import Fold
from segpipe.networks.device import device_text
from segpipe.networks.initial_weights import SEEN_KEY, describe_misfit, is_head
from segpipe.networks.parts import FROM_FOLD
from segpipe.plan.schema import Configuration, Plan
from segpipe.train.weights_header import about_weights

Row = dict[str, float | int]  # of a history: what is known at an epoch's end, by column
_HASH_LENGTH = 64  # hexadecimal SHA-256
_NOT_SAFE: Any = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # nothing here unpickles
STATE: dict[str, Any] = {  # what every state holds, see `FoldTraining.state`
    "iteration": int,
    "epoch": int,
    "seconds": float | int,
    "history": list,
    "network": dict,
    "optimizer": dict,
    "scaler": dict,
    "average": dict,
    "average_steps": int,
    "finished": bool,
}


def save_weights(path: Path, network: nn.Module, about: Mapping[str, str]) -> None:
    """Write a network's weights, whole or not at all; equal weights and `about` give equal bytes.

    Tensors that the module holds twice are written once.
    """
    save_state_dict(path, network.state_dict(), about)


def save_state_dict(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Do as `save_weights` from a state dict."""
    seen: set[int] = set()
    weights = {}
    for name, value in tensors.items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            weights[name] = value.detach().cpu().contiguous()
    _write_tensors(path, weights, about)


def save_pretrained(path: Path, weights: Path, seen: Mapping[str, str]) -> None:
    """Write the weights of a pre-training without the layers that restore the image, and what they have seen.

    Args:
        path: To write.
        weights: As `save_weights` wrote them.
        seen: Content digests by case.

    Raises:
        UsageError: If the weights are missing or damaged.
    """
    about = about_weights(weights) | {SEEN_KEY: json.dumps(dict(sorted(seen.items())), separators=(",", ":"))}
    _write_tensors(path, {name: value for name, value in load_file(weights).items() if not is_head(name)}, about)


def _write_tensors(path: Path, weights: dict[str, Tensor], about: Mapping[str, str]) -> None:
    content = memoryview(save(weights, dict(about)))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header["__metadata__"] = dict(sorted(about.items()))  # safetensors writes it in random order, which changes digests
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors after it are aligned
    with whole_file(path) as temporary, temporary.open("wb") as file:  # by Python, so that a full disk is an OSError
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(content[start:])


def write_setting(folder: FoldFolder, plan: Plan, split: Fold, device: torch.device, note: str = "") -> None:
    """Write what a training is about to use: plan, cases, versions and device, with what is to be known of it."""
    plan.save(folder.plan)
    split.save(folder.split)
    environment_here("; ".join(filter(None, (device_text(device), note)))).save(folder.environment)


def with_own_start(configuration: Configuration, folder: FoldFolder) -> Configuration:
    """Replace the source `fold` of initial weights by the file in a fold's folder."""
    weights = configuration.network.weights
    if weights is None or weights.source != FROM_FOLD:
        return configuration
    own = weights.model_copy(update={"source": str(folder.initial)})
    return configuration.model_copy(update={"network": configuration.network.model_copy(update={"weights": own})})


def load_weights(path: Path, network: nn.Module) -> None:
    """Put weights into a network of the same shape.

    Raises:
        UsageError: If the file is missing, damaged, or of another network.
    """
    about_weights(path)
    try:
        weights = load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as fault:  # e.g. a type that torch does not have
        raise UsageError(f"{path}: cannot be read as weights ({fault}). Copy the file again.") from None
    own = network.state_dict()
    if misfit := describe_misfit(own, weights):
        raise UsageError(
            f"{path}: holds the weights of another network ({misfit}). Use the plan that they were trained with, or "
            "copy both again."
        )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def save_state(folder: FoldFolder, state: Mapping[str, Any]) -> None:
    """Write the state to go on from, whole or not at all, with its SHA-256; the one before is kept.

    The hash is the comment of the zip archive that torch writes, so that file and hash are one and `torch.load` still
    reads it. Between the two renames there is only the older state, from which training goes on as well.
    """
    packed = io.BytesIO()
    torch.save(dict(state), packed)
    content = packed.getbuffer()
    content[-2:] = _HASH_LENGTH.to_bytes(2, "little")  # the archive's last field: how long its comment is
    with whole_file(folder.state) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).hexdigest().encode())
        if folder.state.is_file():
            folder.state.replace(folder.previous_state)


def load_state(folder: FoldFolder) -> dict[str, Any] | None:
    """The newest whole state; None if there is none. What is damaged is set aside with a line that says so."""
    damaged: list[Path] = []
    for path in (folder.state, folder.previous_state):
        if not path.is_file():
            continue
        if (state := _read_state(path)) is not None:
            if damaged:
                _tell_of_loss(folder, damaged, state["iteration"])
            return state
        path.replace(path.with_suffix(".damaged"))
        damaged.append(path)
    if damaged:
        _tell_of_loss(folder, damaged, 0)
    return None


def set_aside(folder: FoldFolder) -> None:
    """Rename the newest state, whose tensors are those of another network, and say so."""
    path = folder.state if folder.state.is_file() else folder.previous_state
    path.replace(path.with_suffix(".damaged"))
    say(f"warning: {path}: holds tensors of another network, kept as {path.with_suffix('.damaged').name}.")


def _read_state(path: Path) -> dict[str, Any] | None:
    """The state in a file; None if it is damaged or holds something else."""
    content = path.read_bytes()
    if hashlib.sha256(content[:-_HASH_LENGTH]).hexdigest().encode() != content[-_HASH_LENGTH:]:
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, _NOT_SAFE) as fault:
        if is_out_of_memory(fault):
            raise
        return None
    is_known = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in STATE.items())
    return state if is_known else None


def _tell_of_loss(folder: FoldFolder, damaged: Sequence[Path], iteration: int) -> None:
    """Weights are written just before a state, so they know how far the damaged state was."""
    files = " and ".join(path.name for path in damaged)
    kept = " and ".join(path.with_suffix(".damaged").name for path in damaged)
    try:
        reached = about_weights(folder.weights).get("iteration", "")
    except UsageError:
        reached = ""
    lost = f"{max(0, int(reached) - iteration)} iterations are lost" if reached.isdecimal() else "some work is lost"
    way = (
        f"training resumes from the state before it, at iteration {iteration}" if iteration else "training starts over"
    )
    say(f"warning: {folder.path}: damaged: {files} (wrong SHA-256 or content), kept as {kept}; {way}; {lost}.")


def cpu_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU."""
    return {name: value.detach().cpu() for name, value in tensors.items()}


def write_history(path: Path, rows: Sequence[Row]) -> None:
    """One line for each epoch; no file before the first one ends."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
