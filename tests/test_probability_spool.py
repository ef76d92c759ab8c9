"""predict/restore.py: the file holds the probabilities that memory would hold, and memory does not."""

from __future__ import annotations

import resource
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import tiny_image, write_tiny
from models import write_work
from stages import predict
from test_segment import prepared_image, small_model

from plans import LABELS, REGIONS
from segpipe.core.grid import Box
from segpipe.core.labels import Label, LabelSet
from segpipe.core.probabilities import read_outputs
from segpipe.pipeline.requests import Machine
from segpipe.predict.model import Ensemble
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import ProbabilitySpool, slabs
from segpipe.predict.segment import segment
from segpipe.prepare.case import Trace


@pytest.mark.parametrize("with_uncertainty", [False, True])
@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_the_file_holds_what_memory_would(labels: LabelSet, with_uncertainty: bool, tmp_path: Path) -> None:
    model = small_model(labels, n_networks=2)
    prepared = prepared_image(model)  # stored with other axes, and a border that is cropped away
    with closing(ProbabilitySpool(tmp_path, prepared.trace, labels)) as spool:
        options = PredictOptions(probabilities=True, uncertainty=with_uncertainty)
        spooled, _ = segment(Ensemble((model,)), [prepared], options, "a", keep=spool.add)
        spool.write(tmp_path / "a.npz")
    found, _ = segment(Ensemble((model,)), [prepared], options, "a")
    assert spooled.probabilities_ozyx is None and np.array_equal(spooled.mask_zyx, found.mask_zyx)
    with np.load(tmp_path / "a.npz") as stored:
        assert stored.files == ["probabilities"] and stored["probabilities"].dtype == np.float16
        assert np.array_equal(stored["probabilities"], found.probabilities_ozyx)
    outputs = read_outputs(tmp_path / "a.npz", labels, found.mask_zyx.shape)
    assert len(list(outputs)) == labels.n_outputs
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_one_output_is_in_memory_at_a_time(tmp_path: Path) -> None:
    n_outputs, shape = 40, (32, 64, 64)
    labels = LabelSet(labels=tuple(Label(name=str(n), values=(n,)) for n in range(1, n_outputs)))
    trace = Trace(
        shape_zyx=shape, axes_zyx=(1, 0, 2), flips_zyx=(True, False, False), spacing_mm=(1.0, 1.0, 1.0),
        box=Box.whole((64, 32, 64)), target_mm=(1.0, 1.0, 1.0), prepared_shape_zyx=(64, 32, 64),
    )  # fmt: skip
    rows = (torch.zeros(n_outputs, 32, 64) for _ in range(64))
    tracemalloc.start()
    try:
        with closing(ProbabilitySpool(tmp_path, trace, labels)) as spool:
            for slab in slabs(rows, trace, 4):
                spool.add(slab, np.full((n_outputs, slab.stop - slab.start, 32, 64), 1 / n_outputs, np.float16))
            spool.write(tmp_path / "a.npz")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one, whole = np.prod(shape) * 2, n_outputs * np.prod(shape) * 2
    assert peak_bytes < 6 * one < whole / 6  # a slab of all outputs is 2.5 of them


def test_a_full_disk_is_one_and_not_a_lack_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "in" / "a.nii.gz", tiny_image(1))
    work, before = write_work(tmp_path / "work", n_folds=1), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # the probabilities take 960 × 3 × 2 bytes
    try:
        outcome = predict(
            work, tmp_path / "in", tmp_path / "out", Machine("cpu", 1), PredictOptions(probabilities=True)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.exit_code == 5 and "the disk is full" in outcome.faults[0].text
    assert "memory is not enough" not in capsys.readouterr().err
