"""Values that other projects publish in their tests, facts to agree with; each row is one check.

Distances of one direction are those from the first mask. 2D images are volumes of one slice.
"""

from __future__ import annotations

import json
from math import inf, nan, sqrt

import numpy as np
import pytest
from published import SHARED_DATA

from segpipe.core.volume import read_labels
from segpipe.evaluate.metrics import METRICS, dice, iou, measure, overlap_of
from segpipe.evaluate.surfaces.distances import (
    hausdorff_interpolated_mm,
    hausdorff_mm,
    hausdorff_percentile_mm,
    hausdorff_pooled_mm,
    lattice_distances,
    mc_distances,
    mean_directed_distance_mm,
    mean_surface_distance_mm,
    surface_dice,
    voxel_distances,
)

FIXTURES = SHARED_DATA / "metric_fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no published masks at {FIXTURES}")


def points(shape, *indices):
    mask = np.zeros(shape, bool)
    for index in indices:
        mask[index] = True
    return mask


def block(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def ball(radius_mm, centre_mm, spacing=(1.0, 1.0, 1.0), shape=(99, 99, 99)):
    axes = zip(np.ogrid[tuple(slice(n) for n in shape)], centre_mm, spacing, strict=True)
    return sum((index * mm - middle) ** 2 for index, middle, mm in axes) <= radius_mm**2


def directed_mean(side):
    return float(side.apart_mm @ side.apart_weights) / side.weight


def all_mm(side):
    return np.concatenate([np.zeros(side.n_shared), side.apart_mm])


QUANTITIES = {
    "HD": lambda d: hausdorff_mm(d),
    "HD from": lambda d: all_mm(d.from_reference).max(),
    "HD95": lambda d: hausdorff_percentile_mm(d, 0.95),
    "HD95 max": lambda d: hausdorff_interpolated_mm(d, 0.95),
    "HD95 pooled": lambda d: hausdorff_pooled_mm(d, 0.95),
    "HD95 from": lambda d: np.quantile(all_mm(d.from_reference), 0.95),
    "ASSD": mean_surface_distance_mm,
    "MASD": mean_directed_distance_mm,
    "ASD from": lambda d: directed_mean(d.from_reference),
    "ASD to": lambda d: directed_mean(d.from_prediction),
    "area from": lambda d: d.from_reference.weight,
    "area to": lambda d: d.from_prediction.weight,
    "overlap from": lambda d: surface_share(d.from_reference, 1.0),
    "overlap to": lambda d: surface_share(d.from_prediction, 1.0),
}


def surface_share(side, tolerance_mm):
    return (side.apart_weights[side.apart_mm <= tolerance_mm].sum() + side.shared_weight) / side.weight


def quantity(distances, name):
    if name.startswith("NSD@"):
        return surface_dice(distances, float(name.removeprefix("NSD@")))
    return QUANTITIES[name](distances)


# surface-distance: surface_distance_test.py
PLANE, CUBE = (1, 128, 128), (128, 128, 128)
EMPTY_PLANE, EMPTY_CUBE = np.zeros(PLANE, bool), np.zeros(CUBE, bool)
LATTICE = [
    ("2D points", points(PLANE, (0, 50, 70)), points(PLANE, (0, 50, 72)), (9.0, 2.0, 1.0),
     {"ASD from": 1.5, "ASD to": 1.5, "HD": 2, "HD95": 2, "overlap from": 0.5, "overlap to": 0.5, "NSD@1": 0.5,
      "area from": 4 * 1.118034, "area to": 4 * 1.118034}),
    ("2D squares", block((1, 6, 6), (0, 1), (1, 3), (1, 3)), block((1, 6, 6), (0, 1), (1, 4), (1, 3)), (9.0, 2.0, 1.0),
     {"HD": 2, "HD95": 2, "area from": 4 * sqrt(5) / 2 + 2 * 1 + 2 * 2, "area to": 4 * sqrt(5) / 2 + 2 * 1 + 4 * 2}),
    ("2D empty prediction", points(PLANE, (0, 50, 70)), EMPTY_PLANE, (9.0, 3.0, 2.0),
     {"HD": inf, "HD95": inf, "ASD from": inf, "overlap from": 0, "NSD@1": 0}),
    ("2D empty reference", EMPTY_PLANE, points(PLANE, (0, 50, 72)), (9.0, 3.0, 2.0),
     {"HD": inf, "HD95": inf, "ASD to": inf, "overlap to": 0, "NSD@1": 0}),
    ("2D both empty", EMPTY_PLANE, EMPTY_PLANE, (9.0, 3.0, 2.0), {"NSD@1": nan}),
    ("3D points", points(CUBE, (50, 60, 70)), points(CUBE, (50, 60, 72)), (3.0, 2.0, 1.0),
     {"ASD from": 1.5, "ASD to": 1.5, "HD": 2, "HD95": 2, "NSD@1": 0.5}),
    ("3D cubes", block((100,) * 3, (50,)), block((100,) * 3, (51,)), (2.0, 1.0, 1.0),
     {"ASD from": 0.322, "ASD to": 0.339, "HD": 2, "HD95": 2, "overlap from": 0.842, "overlap to": 0.830,
      "NSD@1": 0.836145}),
    ("3D empty prediction", points(CUBE, (50, 60, 70)), EMPTY_CUBE, (3.0, 2.0, 1.0), {"HD": inf, "NSD@1": 0}),
    ("3D empty reference", EMPTY_CUBE, points(CUBE, (50, 60, 72)), (3.0, 2.0, 1.0), {"HD": inf, "NSD@1": 0}),
    ("3D both empty", EMPTY_CUBE, EMPTY_CUBE, (3.0, 2.0, 1.0), {"NSD@1": nan}),
]  # fmt: skip

# MONAI: test_hausdorff_distance.py, test_surface_distance.py, test_surface_dice.py; Metrics Reloaded:
# test_pairwise_measures.py; MedPy: binary.py
UNIT, ODD = (1.0, 1.0, 1.0), (0.85, 1.2, 0.9)
FULL = (1, 480, 640)
SLABS = (200, 110, 80)
BAR, OTHER_BAR = block((1, 10, 10), (0, 1), (1, 4), (1, 2)), block((1, 10, 10), (0, 1), (5, 8), (6, 7))
CROSS = block((1, 11, 11), (0, 1), (3, 8), (3, 8))
CROSS_ARMS = CROSS | block((1, 11, 11), (0, 1), (5, 6), (1, 10)) | block((1, 11, 11), (0, 1), (1, 10), (5, 6))
SQUARE = block((1, 14, 14), (0, 1), (5, 9), (5, 9))
PATCH = block((1, 14, 14), (0, 1), (9, 12), (9, 12))
ONE, OTHER = (np.array([[[bit, not bit]]]) for bit in (True, False))
VOXEL = [
    ("equal balls", ball(20, (20, 20, 20)), ball(20, (20, 20, 20)), UNIT, {"HD": 0, "HD from": 0}),
    ("balls 1 1 1 apart", ball(20, (20, 20, 20)), ball(20, (19, 19, 19)), UNIT,
     {"HD": 1.7320508, "HD from": 1.7320508}),
    ("balls 1 apart", ball(33, (19, 33, 22)), ball(33, (20, 33, 22)), UNIT,
     {"HD": 1, "HD from": 1, "ASSD": 0.350217, "ASD from": 0.3483279}),
    ("concentric balls", ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), UNIT,
     {"HD from": 20.0997512, "HD": 20.2237484, "HD95 from": 19.9248588, "HD95 max": 20.0997512, "ASSD": 15.117741,
      "ASD from": 12.0400335}),
    ("odd voxels, 1 1 1 mm apart", ball(20, (20, 20, 20), ODD), ball(20, (19, 19, 19), ODD), ODD,
     {"HD from": 2.0808651, "HD": 2.2671568}),
    ("odd voxels, concentric", ball(15, (20, 33, 22), ODD), ball(30, (20, 33, 22), ODD), ODD,
     {"HD from": 15.4396410, "HD": 15.62594}),
    ("odd voxels, 1 mm apart", ball(33, (42, 45, 52), ODD), ball(33, (43, 45, 52), ODD), ODD,
     {"ASSD": 0.4951, "ASD from": 0.4951}),
    ("empty prediction", ball(20, (20, 20, 20)), np.zeros((99,) * 3, bool), UNIT, {"HD": inf, "ASSD": inf}),
    ("empty reference", np.zeros((99,) * 3, bool), ball(20, (20, 20, 20)), UNIT, {"HD": inf, "ASSD": inf, "NSD@1": 0}),
    ("half planes", block(FULL, (0, 1), (0, 480), (50, 640)), block(FULL, (0, 1), (0, 480), (60, 640)), UNIT,
     {"NSD@0": 1 - (478 + 480 + 18) / (1920 + 1176 + 1156), "NSD@10": 1}),
    ("the other half planes", block(FULL, (0, 1), (0, 480), (50,)), block(FULL, (0, 1), (0, 480), (60,)), UNIT,
     {"NSD@0": 1 - 976 / (1920 + 96 + 116), "NSD@10": 1}),
    ("half planes of odd pixels", block(FULL, (0, 1), (0, 480), (50, 640)), block(FULL, (0, 1), (0, 480), (60, 640)),
     (1.0, 0.85, 1.2), {"NSD@12": 1}),
    ("slabs", block(SLABS, (200,), (110,), (20, 80)), block(SLABS, (200,), (110,), (30, 80)), UNIT,
     {"NSD@0": 1 - (200 * 110 + 198 * 108 + 9 * 200 * 2 + 9 * 108 * 2)
      / (200 * 110 * 4 + (58 + 48) * 200 * 2 + (58 + 48) * 108 * 2)}),
    ("the other slabs", block(SLABS, (200,), (110,), (20,)), block(SLABS, (200,), (110,), (30,)), UNIT,
     {"NSD@0": 1 - (200 * 110 + 198 * 108 + 9 * 200 * 2 + 9 * 108 * 2)
      / (200 * 110 * 4 + (28 + 18) * 200 * 2 + (28 + 18) * 108 * 2)}),
    ("bars", BAR, OTHER_BAR, UNIT, {"NSD@0": 0, "NSD@5.5": 1 - 4 / 6, "NSD@6": 1 - 2 / 6}),
    ("around bars", ~BAR, ~OTHER_BAR, UNIT, {"NSD@0": 1 - 12 / 84, "NSD@2.8": 1 - 3 / 84, "NSD@3": 1 - 1 / 84}),
    ("cross", CROSS, CROSS_ARMS, UNIT, {"ASSD": 0.44, "MASD": 0.425, "NSD@1": 0.89, "NSD@2": 1.0}),
    ("SN2.10 smaller", SQUARE, block((1, 14, 14), (0, 1), (6, 8), (6, 8)), UNIT,
     {"HD": 1.41, "MASD": 1.07, "ASSD": 1.10, "NSD@1": 0.75}),
    ("SN2.10 larger", SQUARE, block((1, 14, 14), (0, 1), (4, 10), (4, 10)), UNIT,
     {"HD": 1.41, "MASD": 1.04, "ASSD": 1.05, "NSD@1": 0.875}),
    ("figure 5c", PATCH | points((1, 14, 14), (0, 1, 1)), PATCH, UNIT, {"HD": 11.31, "HD95 max": 6.79}),
    ("MedPy, two voxels", ONE, OTHER, UNIT, {"ASD from": 1, "ASD to": 1, "ASSD": 1}),
    ("MedPy, two voxels of 2 mm", ONE, OTHER, (2.0, 2.0, 2.0), {"ASD from": 2, "ASD to": 2, "ASSD": 2}),
]  # fmt: skip
ROUNDED = {"cross", "SN2.10 smaller", "SN2.10 larger", "figure 5c", "3D cubes"}  # published with two or three digits


def checks(fixtures):
    return [
        pytest.param(*masks, name, value, 5e-3 if title in ROUNDED else 1e-4, id=f"{title}: {name}")
        for title, *masks, expected in fixtures
        for name, value in expected.items()
    ]


@pytest.mark.parametrize(("one", "other", "spacing", "name", "expected", "tolerance"), checks(LATTICE))
def test_lattice(one, other, spacing, name, expected, tolerance):
    found = quantity(lattice_distances(one, other, spacing), name)
    assert found == pytest.approx(expected, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize(("one", "other", "spacing", "name", "expected", "tolerance"), checks(VOXEL))
def test_voxel(one, other, spacing, name, expected, tolerance):
    assert quantity(voxel_distances(one, other, spacing), name) == pytest.approx(expected, abs=tolerance)


OVERLAPS = [
    ("2D points", LATTICE[0][1:3], (0, 0), 1e-9),
    ("3D cubes", LATTICE[6][1:3], (0.990, 50 / 51), 1e-3),
    ("cross", (CROSS, CROSS_ARMS), (0.862, 0.76), 5e-3),
    ("SN2.10 smaller", (SQUARE, VOXEL[-5][2]), (2 * 4 / (16 + 4), 4 / 16), 1e-9),
    ("SN2.10 larger", (SQUARE, VOXEL[-4][2]), (2 * 16 / (16 + 36), 16 / 36), 1e-9),
    ("both empty (nnU-Net)", (EMPTY_PLANE, EMPTY_PLANE), (nan, nan), 0),
]


@pytest.mark.parametrize(("masks", "expected", "tolerance"), [pytest.param(*row, id=name) for name, *row in OVERLAPS])
def test_overlap(masks, expected, tolerance):
    overlap = overlap_of(*masks)
    assert (dice(overlap), iou(overlap)) == pytest.approx(expected, abs=tolerance, nan_ok=True)


def test_there_are_enough_checks():
    assert len(checks(LATTICE)) + len(checks(VOXEL)) + 2 * len(OVERLAPS) >= 80


# Published masks


def labelled(*parts):
    return read_labels(FIXTURES.joinpath(*parts))


@needs_fixtures
def test_chaos_liver():
    expected = json.loads((FIXTURES / "expected.json").read_text("utf-8"))["chaos_ct_liver"]["reproduced"]
    (reference, grid), (prediction, _) = (
        labelled("chaos_ct_liver", f"{n}.nii.gz") for n in ("groundtruth", "segmentation")
    )
    _, values = measure(reference > 0, prediction > 0, grid.spacing_mm, metrics=METRICS)
    assert values["dice"] == pytest.approx(expected["DICE"])
    assert 100 * abs(values["relative_volume_difference"]) == pytest.approx(expected["RAVD"], rel=1e-2)
    assert values["hd_voxel"] == pytest.approx(expected["MSSD"], abs=1e-4)
    assert values["assd_voxel"] == pytest.approx(expected["ASSD_border_value_0"], rel=1e-5)
    assert values["hd95_voxel_pooled"] == pytest.approx(expected["HD95_pooled_bv0"], rel=1e-5)
    assert values["hd95_voxel_max"] == pytest.approx(expected["HD95_max_of_directed_bv0"], rel=1e-5)


@needs_fixtures
def test_spheres_fifteen_mm_apart():
    """The true distance is 15 mm; a surface of voxels is off by part of one, `mc` by less."""
    expected = json.loads((FIXTURES / "expected.json").read_text("utf-8"))["meshmetrics"]
    (reference, grid), (prediction, _) = (
        labelled("meshmetrics", "data", f"example_3d_{n}_mask.nii.gz") for n in ("ref", "pred")
    )
    lattice, mc = (model(reference > 0, prediction > 0, grid.spacing_mm) for model in (lattice_distances, mc_distances))
    assert hausdorff_percentile_mm(lattice, 0.95) == pytest.approx(expected["ideal"]["distance"], abs=0.5)
    assert hausdorff_percentile_mm(mc, 0.95) == pytest.approx(expected["ideal"]["distance"], abs=0.25)
    assert mean_surface_distance_mm(mc) == pytest.approx(expected["ideal"]["distance"], abs=0.25)
    assert hausdorff_mm(lattice) == pytest.approx(expected["mask3d"]["HD100"], abs=0.5)


def means_by_label(reference, prediction, spacing_mm, names):
    values = sorted((set(np.unique(reference)) & set(np.unique(prediction))) - {0})
    scores = [measure(reference == v, prediction == v, spacing_mm, metrics=names)[1] for v in values]
    return [float(np.mean([score[name] for score in scores])) for name in names]


SURFACES = ("hd95", "hd95_voxel_max", "hd95_voxel_pooled", "hd95_mc")


@needs_fixtures
def test_spine():
    """Means over 14 labels: surface-distance, MONAI and MedPy on the same masks; the last is a trial of `mc`."""
    (reference, grid), (prediction, _) = (
        labelled("panoptica_spine", "examples", "spine_seg", "semantic", f"{n}.nii.gz") for n in ("ref", "pred")
    )
    found = means_by_label(reference, prediction, grid.spacing_mm, SURFACES)
    assert found == pytest.approx([9.330, 9.562, 8.755, 9.64], abs=5e-3)


@needs_fixtures
@pytest.mark.parametrize(("group", "first"), [("vertebra", 1), ("ivd", 100)])
def test_vertebrae_and_discs(group, first):
    """panoptica's ASSD is the mean of the two directed means; here in voxels."""
    expected = json.loads((FIXTURES / "expected.json").read_text("utf-8"))["panoptica"]["unmatched_instance_by_group"][
        group
    ]
    (reference, _), (prediction, _) = (
        labelled("panoptica_spine", "examples", "spine_seg", "matched_instance", f"{n}.nii.gz") for n in ("ref", "pred")
    )
    chosen = [np.where((values >= first) & (values < first + 25), values, 0) for values in (reference, prediction)]
    found = means_by_label(*chosen, UNIT, ("dice", "masd_voxel"))
    assert found == pytest.approx([expected["sq_dsc"], expected["sq_assd"]], rel=1e-9)


def test_hippocampus_of_two_people(shared_data):
    (one, grid), (other, _) = (
        read_labels(shared_data / "hippocampus" / "labelsTr" / f"hippocampus_{n}.nii.gz") for n in ("001", "003")
    )
    shape = np.maximum(one.shape, other.shape)
    one, other = (np.pad(v, [(0, n - m) for n, m in zip(shape, v.shape, strict=True)]) for v in (one, other))
    found = means_by_label(one, other, grid.spacing_mm, SURFACES)
    assert found == pytest.approx([2.236, 2.449, 2.236, 2.52], abs=1e-2)
