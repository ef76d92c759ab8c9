"""nnU-Net's checkpoints (`checkpoint_final.pth`), read without running anything in them, and written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file

# Beside tensors a checkpoint holds losses, which are numpy's numbers: harmless to make, and called by two names.
_MAKE_NUMBER = torch.tensor(0.0).numpy()[()].__reduce__()[0]
_NUMBERS: list[Any] = [
    (_MAKE_NUMBER, "numpy.core.multiarray.scalar"),
    (_MAKE_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
_NOT_PICKLE = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # torch raises it, exports it not
_FAULTS = (_NOT_PICKLE, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError)
_TRAINER = "nnUNetTrainer"
_SECOND_NAMES = {".conv.": ".all_modules.0.", ".norm.": ".all_modules.1."}  # its units list their layers once more
_SECOND_ENCODER = "decoder.encoder."  # and its decoder holds the encoder


@dataclass(frozen=True, eq=False)
class NnunetCheckpoint:
    """The parts of a checkpoint that prediction needs.

    Args:
        weights: By our names, which are nnU-Net's first ones.
        configuration: nnU-Net's name, e.g. `3d_cascade_fullres`.
        trainer: Name of the class that trained.
        mirror_axes: Of the patch (Z, Y, X or Y, X) that may be mirrored in prediction.
    """

    weights: dict[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> NnunetCheckpoint:
    """Read a checkpoint of nnU-Net.

    Raises:
        DataError: If it is missing, damaged, not nnU-Net's, or holds objects whose making could run code.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected a checkpoint of nnU-Net. Give a folder of a finished training."
        )
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            values = torch.load(path, map_location="cpu", weights_only=True)
        return NnunetCheckpoint(
            weights={_first_name(name): value for name, value in values["network_weights"].items()},
            configuration=str(values["init_args"]["configuration"]),
            trainer=str(values["trainer_name"]),
            mirror_axes=tuple(int(axis) for axis in values.get("inference_allowed_mirroring_axes") or ()),
        )
    except _FAULTS as fault:
        text = str(fault).strip().splitlines()
        raise DataError(
            f"{path}: cannot be read as a checkpoint of nnU-Net ({type(fault).__name__}: {text[0] if text else ''}); "
            "expected weights and plain values; segpipe makes no other objects, since that could run code. Load it "
            "with nnU-Net and save it again without them."
        ) from None


def write_checkpoint(path: Path, checkpoint: NnunetCheckpoint, fold: int | str) -> None:
    """Write what nnU-Net predicts with; it cannot go on training from it."""
    weights = dict(checkpoint.weights)
    weights |= {_second_name(name): value for name, value in weights.items()}
    weights |= {name.replace("encoder.", _SECOND_ENCODER, 1): v for name, v in weights.items() if _is_encoder(name)}
    values = {
        "network_weights": weights,
        "trainer_name": checkpoint.trainer or _TRAINER,
        "init_args": {"configuration": checkpoint.configuration, "fold": fold},
        "inference_allowed_mirroring_axes": checkpoint.mirror_axes or None,
    }
    with whole_file(path) as temporary:
        torch.save(values, temporary)


def _is_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def _first_name(name: str) -> str:
    name = name.replace(_SECOND_ENCODER, "encoder.", 1)
    for first, second in _SECOND_NAMES.items():
        name = name.replace(second, first)
    return name


def _second_name(name: str) -> str:
    for first, second in _SECOND_NAMES.items():
        name = name.replace(first, second)
    return name
