"""prepare/case.py: there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import SHAPE_ZYX, oblique_affine, tiny_image, tiny_labels, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import LABELS, REGIONS, small_plan
from segpipe.core.errors import DataError, GeometryError
from segpipe.core.grid import Grid, reorientation
from segpipe.core.labels import IGNORE_INDEX
from segpipe.core.volume import Volume, write_image
from segpipe.data.dataset import Case
from segpipe.predict.restore import restore
from segpipe.prepare.case import prepare_case, prepare_image, prepare_indices

ORIENTATIONS = st.sampled_from(["RAS", "LPS", "SPL", "AIR", "PIL", "IRA"])
ORDERS = st.permutations([0, 1, 2])


def test_a_case_at_its_own_spacing_is_only_turned_and_normalised(tmp_path):
    image = write_tiny(tmp_path / "c_0000.nii.gz", tiny_image(1))
    label = write_tiny(tmp_path / "c.nii.gz", tiny_labels())
    plan = small_plan()
    prepared = prepare_case(
        Case(case_id="c", patient_id="c", images=(str(image),), label=str(label)),
        plan,
        plan.configurations["3d_fullres"],
    )
    expected = tiny_image(1)
    assert prepared.image_czyx[0] == pytest.approx((expected - expected.mean()) / expected.std(), abs=1e-4)
    assert (prepared.indices_zyx == tiny_labels()).all()


@settings(max_examples=30)
@given(ORIENTATIONS, ORIENTATIONS, ORDERS, st.integers(0, 99))
def test_prepare_then_restore_gives_every_voxel_back(stored, wanted, order, seed):
    """At the plan's spacing nothing is interpolated: labels as certain logits come back exactly, crop included."""
    generator = np.random.default_rng(seed)
    turn = reorientation(Grid(SHAPE_ZYX, oblique_affine()), stored)
    volume = turned_volume(turn, generator)
    labels = turn.apply(tiny_labels()).astype(np.int16)
    spacing = reorientation(volume.grid, wanted).permute(volume.grid.spacing_mm)
    plan = small_plan(spacing_mm=tuple(spacing[a] for a in order)).model_copy(
        update={"orientation": wanted, "axis_order": tuple(order)}
    )
    _, trace = prepare_image(volume, plan, plan.configurations["3d_fullres"])
    indices = prepare_indices(labels, trace)
    logits = np.stack([(indices == i) * 8.0 for i in range(3)]).astype(np.float32)
    assert (restored(logits, trace, LABELS)[0] == labels).all()
    chances = restored(logits, trace, LABELS)[1]
    assert chances.shape == (3, *labels.shape)
    assert (chances.argmax(0) == labels).all()
    assert chances.astype(np.float32).sum(0) == pytest.approx(1, abs=2e-3)


def restored(logits, trace, labels):
    """Mask and probabilities of logits (outputs, Z, Y, X)."""
    found = restore(torch.from_numpy(logits).unbind(1), trace, labels, with_probabilities=True)
    return found.mask_zyx, found.probabilities_ozyx


def turned_volume(turn, generator):
    """The tiny image stored in another orientation, zero at its border so that it is cropped."""
    image = np.zeros(SHAPE_ZYX, np.float32)
    image[1:6, 1:8, 1:9] = generator.normal(100, 20, (5, 7, 8))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE_ZYX), indexing="ij"))
    places = turn.apply(index)  # where each stored voxel came from, (z, y, x)
    origin, steps = places[:, 0, 0, 0], []
    for axis in (3, 2, 1):  # stored x, y, z
        steps.append(np.take(places, 1, axis)[:, 0, 0] - origin)
    to_old = np.eye(4)
    to_old[:3, :3] = np.stack([step[::-1] for step in steps], 1)
    to_old[:3, 3] = origin[::-1]
    stored = np.ascontiguousarray(turn.apply(image))
    return Volume(stored[None], Grid(stored.shape, oblique_affine() @ to_old))


def test_resampled_there_and_back_stays_within_a_voxel_of_the_surface():
    labels = np.zeros((20, 20, 20), np.int16)
    labels[5:15, 5:15, 5:15] = 1
    volume = Volume(np.ones((1, 20, 20, 20), np.float32), Grid((20, 20, 20), np.eye(4)))
    plan = small_plan(spacing_mm=(1.7, 0.8, 1.3))
    _, trace = prepare_image(volume, plan, plan.configurations["3d_fullres"])
    assert trace.prepared_shape_zyx == (12, 25, 15)  # 20/1.7, 20/0.8, 20/1.3, rounded
    indices = prepare_indices(labels, trace)
    back = restored(np.stack([indices == 0, indices == 1, indices == 2]).astype(np.float32), trace, LABELS)[0]
    assert back.shape == (20, 20, 20)
    assert 2 * ((back == 1) & (labels == 1)).sum() / ((back == 1).sum() + 1000) > 0.9


def test_regions_are_painted_in_order_and_ignored_voxels_are_marked():
    values = np.array(tiny_labels(), np.int32)
    values[0, 0, 0] = 9
    indices = REGIONS.encode(values, "")
    assert indices[0, 0, 0] == IGNORE_INDEX
    volume = Volume(tiny_image(3)[None], Grid(SHAPE_ZYX, oblique_affine()))
    plan = small_plan(REGIONS)
    _, trace = prepare_image(volume, plan, plan.configurations["3d_fullres"])
    logits = np.stack([np.isin(values, (1, 2)) * 2.0 - 1, (values == 2) * 2.0 - 1]).astype(np.float32)
    assert (restored(logits, trace, REGIONS)[0] == np.where(values == 9, 0, values)).all()


def test_a_wrong_number_of_channels_names_the_case(tmp_path):
    write_image(tmp_path / "c.nii.gz", np.stack([tiny_image(0), tiny_image(1)]), oblique_affine())
    plan = small_plan()
    with pytest.raises(DataError, match=r"c: 2 channels, the plan expects 1 \(MR0\)\. Write the one .* as a 3D file"):
        prepare_case(
            Case(case_id="c", patient_id="c", images=(str(tmp_path / "c.nii.gz"),)),
            plan,
            plan.configurations["3d_fullres"],
        )


def test_nan_and_a_label_on_another_grid_are_refused(tmp_path):
    plan = small_plan()
    bad = tiny_image(0)
    bad[0, 0, 0] = np.nan
    image = write_tiny(tmp_path / "nan.nii.gz", bad)
    case = Case(case_id="c", patient_id="c", images=(str(image),))
    with pytest.raises(DataError, match="c: holds 1 NaN or infinite voxels"):
        prepare_case(case, plan, plan.configurations["3d_fullres"])
    good = write_tiny(tmp_path / "good.nii.gz", tiny_image(0))
    moved = oblique_affine()
    moved[0, 3] += 3
    label = write_tiny(tmp_path / "label.nii.gz", tiny_labels(), moved)
    case = Case(case_id="c", patient_id="c", images=(str(good),), label=str(label))
    with pytest.raises(GeometryError, match=r"c: label against image: .* 3.000 mm apart"):
        prepare_case(case, plan, plan.configurations["3d_fullres"])
