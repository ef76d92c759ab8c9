"""Measurements of each case, kept in one file, so that of a changed dataset only the changes are measured."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file
from segpipe.core.labels import LabelSet
from segpipe.core.records import Record
from segpipe.fingerprint.intensity import Foreground
from segpipe.fingerprint.record import CaseFingerprint


@dataclass(frozen=True, eq=False)
class MeasuredCase:
    """A case, and the share of its foreground in the dataset's intensities.

    Args:
        case: Its edges are along the axes of its files.
        channels: One for each channel; empty if no voxel is labelled.
    """

    case: CaseFingerprint
    channels: tuple[Foreground, ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """Measured cases, and the channels and labels they were measured with."""

    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[MeasuredCase, ...]


class _Facts(Record):
    """All but the arrays; `n_rows` is the number of channels counted for each case."""

    segpipe_measured: Literal[1] = 1
    channels: tuple[str, ...]
    labels: LabelSet
    cases: tuple[CaseFingerprint, ...]
    n_rows: tuple[int, ...]


def save_measured(path: Path, measured: Measured) -> None:
    """Write a `.npz`, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        SetupError: If the place is not writable.
    """
    facts = _Facts(
        channels=measured.channels,
        labels=measured.labels,
        cases=tuple(m.case for m in measured.cases),
        n_rows=tuple(len(m.channels) for m in measured.cases),
    )
    rows = [row for m in measured.cases for row in m.channels]
    with whole_file(path) as temporary:
        np.savez(
            temporary,
            allow_pickle=False,
            facts=np.frombuffer(facts.to_json().encode(), np.uint8),
            keys=np.concatenate([np.zeros(0, np.int32), *(row.keys for row in rows)]),
            counts=np.concatenate([np.zeros(0, np.uint32), *(row.counts for row in rows)]),
            n_bins=np.array([row.keys.size for row in rows], np.int64),
            moments=np.array([(row.mean, row.variance, row.low, row.high) for row in rows]).reshape(-1, 4),
        )


def load_measured(path: Path) -> Measured:
    """Read a file that `save_measured` wrote.

    Raises:
        DataError: If the file is missing, damaged, or of another version.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("facts", "keys", "counts", "n_bins", "moments")}
        facts = _Facts.parse(json.loads(arrays["facts"].tobytes()), str(path), DataError)
        ends = np.cumsum(arrays["n_bins"])[:-1]
        parts = zip(np.split(arrays["keys"], ends), np.split(arrays["counts"], ends), arrays["moments"], strict=True)
        rows = iter([Foreground(keys, counts, *moments.tolist()) for keys, counts, moments in parts])
        cases = [
            MeasuredCase(case, tuple(next(rows) for _ in range(n)))
            for case, n in zip(facts.cases, facts.n_rows, strict=True)
        ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError) as fault:
        raise DataError(f"{path}: cannot be read ({fault}). Delete it: its content is measured again.") from None
    return Measured(facts.channels, facts.labels, tuple(cases))
