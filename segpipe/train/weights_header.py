"""Read the header of a file of weights. torch is not imported, so that `segpipe info` answers at once."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from segpipe.core.errors import UsageError


def about_weights(path: Path) -> dict[str, str]:
    """Read what was written beside weights: configuration, fold, finished (0 or 1).

    Raises:
        UsageError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; this fold has no trained weights. Train it: `segpipe train`.")
    try:
        with safe_open(path, "np") as stored:
            return dict(stored.metadata() or {})
    except (SafetensorError, OSError) as fault:
        raise UsageError(
            f"{path}: cannot be read as weights ({fault}). Train the fold again, or get the file again."
        ) from None
