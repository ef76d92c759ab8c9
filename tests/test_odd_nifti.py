"""Real files that are odd, through check and predict: a mask on the same grid, or an error that says what and why."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from plans import small_plan
from segpipe.core.errors import DataError
from segpipe.data.check import check_dataset
from segpipe.data.inputs import list_inputs
from segpipe.networks.build import build
from segpipe.predict.model import Model
from segpipe.predict.run import predict_cases

REFUSED = {  # by what the message must name
    "index.json": "format",
    "wm.mgz": "format",
    "aparc.a2009s+aseg.mgz": "format",
    "nifti1.hdr": "format",
    "shear.nii.gz": "sheared",
    "img_patient001_frame01.nii.gz": "mm in pixdim",
    "lab_patient001_frame01.nii.gz": "mm in pixdim",
    "example_4d.nii.gz": "3 channels",
    "EPI_PE=RL_5.nii": "2 channels",
    "example_nifti2.nii.gz": "2 channels",
    "dmri.nii.gz": "7 channels",
    "venc.nii.gz": "3 channels",
}


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights at 8 mm: what comes out does not matter here, where it lies does."""
    torch.manual_seed(0)
    plan = small_plan(spacing_mm=(8.0, 8.0, 8.0)).model_copy(update={"mirror_axes": ()})
    configuration = plan.configurations["3d_fullres"]
    return Model(plan, configuration, (build(configuration.network, 1, 3).eval(),), "0")


def test_every_odd_file_gives_a_mask_on_its_grid_or_a_reason(shared_data: Path, model: Model, tmp_path: Path) -> None:
    files = sorted(p for p in (shared_data / "odd_nifti").rglob("*") if p.is_file())
    assert len(files) > 50
    for number, file in enumerate(files):
        reason = REFUSED.get(file.name)
        if reason:
            with pytest.raises(DataError, match=reason):
                predict_cases(model, list_inputs(file, model.plan.channels), tmp_path / str(number)).require_all()
            continue
        (path,) = predict_cases(model, list_inputs(file, model.plan.channels), tmp_path / str(number)).require_all()
        image, mask = nib.load(file), nib.load(path)
        assert mask.shape == image.shape[:3], file
        assert mask.header.get_zooms()[:3] == image.header.get_zooms()[:3], file
        for key in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
            assert np.array_equal(mask.header[key], image.header[key]), (file, key)
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_check_names_what_is_odd_and_ends(shared_data: Path) -> None:
    report = check_dataset(shared_data / "odd_nifti", 2)
    named = {(Path(f.file).name, f.kind) for f in report.faults if f.file}
    assert any(name == "shear.nii.gz" and "shear" in kind for name, kind in named), named
    assert any(name == "img_patient001_frame01.nii.gz" for name, _ in named)
    assert report.is_fatal
