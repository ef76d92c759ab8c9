"""plan/planned_cost.py: how much prepared cases take, before there are any."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import write_nnunet, write_tiny

from plans import small_plan
from segpipe.core.work import Work
from segpipe.data.load import load_dataset
from segpipe.fingerprint.measure import measure
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, LabelMeasure
from segpipe.plan.make import make_plan
from segpipe.plan.planned_cost import prepared_bytes
from segpipe.prepare.dataset import prepare_dataset


def case(shape_zyx, spacing_mm, **label_voxels: int) -> CaseFingerprint:
    labels = {
        name: LabelMeasure(voxels=n, volume_mm3=0, n_components=0, extent_mm=(0, 0, 0))
        for name, n in label_voxels.items()
    }
    return CaseFingerprint(
        case_id=f"c{shape_zyx}",
        site=None,
        orientation="RAS",
        spacing_mm=spacing_mm,
        shape_zyx=None,
        cropped_shape_zyx=shape_zyx,
        labels=labels,
        content="",
        signature="",
    )


def of(*cases: CaseFingerprint) -> Fingerprint:
    return Fingerprint(
        orientation="RAS", channels=("MR0",), cases=cases, intensities=(), median_relative_size_after_cropping=1.0
    )


def test_two_cases_by_hand():
    plan = small_plan(spacing_mm=(2.0, 1.0, 1.0))
    first = case((10, 40, 40), (4.0, 1.0, 0.5), a=1000, b=30_000)  # prepared: 20 x 40 x 20, as many voxels
    second = case((10, 20, 20), (4.0, 1.0, 1.0), a=100)  # twice as many slices
    # a voxel: 4 bytes of image x 0.88, 2 of labels x 0.03; 12 bytes for each place of a patch; 1500 for each case
    expected = (16_000 + 8000) * (4 * 0.88 + 2 * 0.03) + (1000 + 10_000 + 200) * 12 + 2 * 1500
    assert prepared_bytes(of(first, second), plan, plan.configurations["3d_fullres"]) == expected


def test_axes_are_turned_and_2d_keeps_the_slices():
    plan = small_plan(spacing_mm=(None, 1.0, 1.0)).model_copy(update={"axis_order": (2, 0, 1), "channels": ("a", "b")})
    only = case((40, 20, 10), (1.0, 2.0, 7.0))  # turned: 10 x 40 x 20 voxels of 7 x 1 x 2 mm; prepared: 10 x 40 x 40
    expected = 16_000 * (2 * 4 * 0.88 + 2 * 0.03) + 1500
    assert prepared_bytes(of(only), plan, plan.configurations["3d_fullres"]) == expected


def test_a_stored_dataset_takes_about_as_much(tmp_path):
    """Noise of 100,000 voxels, the worst case of compression."""
    folder = write_nnunet(tmp_path / "data", ["c0", "c1"])
    noise = np.random.default_rng(0).normal(100, 20, (40, 50, 50)).astype(np.float32)
    labels = np.zeros(noise.shape, np.uint8)
    labels[5:30, 10:40, 10:40] = 1
    labels[30:35, 10:20, 10:20] = 2
    for name in ("c0", "c1"):
        write_tiny(folder / "imagesTr" / f"{name}_0000.nii.gz", noise)
        write_tiny(folder / "labelsTr" / f"{name}.nii.gz", labels)
    dataset, work = load_dataset(folder), Work(tmp_path / "work")
    fingerprint = measure(dataset, 1)
    plan = make_plan(fingerprint, dataset.labels, dataset.name, "nnunet", "cpu")
    fingerprint.save(work.fingerprint)
    prepared = prepare_dataset(work, dataset, plan, "3d_fullres", 1)
    stored_bytes = sum(file.stat().st_size for file in prepared.rglob("*") if file.is_file())
    assert prepared_bytes(fingerprint, plan, plan.configurations["3d_fullres"]) == pytest.approx(stored_bytes, rel=0.15)
