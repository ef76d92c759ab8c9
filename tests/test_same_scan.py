"""Scans of one patient under other names: altered copies and repeated scans are found, other patients are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import write_json
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter, zoom
from scipy.stats import spearmanr

from segpipe.core.grid import Grid
from segpipe.core.volume import read_header, read_voxels, write_image
from segpipe.data.check import CheckReport, check_dataset
from segpipe.data.inspect import ALIKE, SAME, alike_pairs, thumbnail
from segpipe.data.load import patient_by_name

AFFINE = np.diag([1.5, 1.5, 6.0, 1.0])
SHAPE = (11, 90, 80)


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    """Smooth structures in a dark background, (Z, Y, X)."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 4, 4))
    return (1000 * np.maximum(field / field.std(), -0.5)).astype(np.float32)


def small(voxels: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> NDArray[np.float16]:
    found = thumbnail(np.ascontiguousarray(voxels, np.float32), Grid(voxels.shape, affine))
    assert found is not None
    return found


def correlation(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    return float(one.astype(float) @ other.astype(float))


def copies(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> Iterator[tuple[str, NDArray, NDArray]]:
    """Eight altered copies of a scan; their world is that of the scan where it matters."""
    random = np.random.default_rng(0)
    span = voxels.max() - voxels.min()
    flipped = affine @ np.array([[-1, 0, 0, voxels.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    yield "exact", voxels, affine
    yield "rescaled", voxels * 1.02 + 3, affine
    yield "noised", voxels + random.normal(0, 0.01 * span, voxels.shape), affine
    yield "cropped", voxels[:, 3:-4, 4:-3], affine
    yield "resampled", zoom(voxels, (1, 0.93, 0.93), order=1), affine
    yield "flipped", voxels[:, :, ::-1], flipped
    yield "integer", np.rint((voxels - voxels.min()) / span * 1000), affine
    yield "one slice fewer", voxels[1:], affine


def write_scans(folder: Path, scans: dict[str, tuple[NDArray, NDArray]]) -> Path:
    """A dataset with these images, each with a label map of one block."""
    for name, (voxels, affine) in scans.items():
        labels = np.zeros(voxels.shape, np.uint8)
        labels[2:4, 30:40, 30:40] = 1
        for kind, array in (("imagesTr", voxels.astype(np.float32)), ("labelsTr", labels)):
            path = folder / kind / f"{name}{'_0000' if kind == 'imagesTr' else ''}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, array[None], affine)
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {"name": "scans", "numTraining": len(scans), **description})
    return folder


def found_kinds(report: CheckReport) -> dict[str, str]:
    kinds = ("duplicate_patients", "same_scan_patients", "alike_patients")
    return {fault.case_id or "": fault.kind for fault in report.faults if fault.kind in kinds}


def test_altered_copies_are_found_and_a_patients_json_is_suggested(tmp_path: Path):
    """Six patients and seven altered copies of the first; the suggested file, written out, ends the warnings."""
    scans = {f"a{i}": (scan(i), AFFINE) for i in range(6)}
    names = {what: f"b{i}" for i, (what, _, _) in enumerate(copies(scan(0), AFFINE))}
    scans |= {names[what]: (voxels, affine) for what, voxels, affine in copies(scan(0), AFFINE)}
    folder = write_scans(tmp_path, scans)
    report = check_dataset(folder, n_workers=1)
    kinds = found_kinds(report)
    assert set(kinds) == set(names.values())
    assert kinds[names["exact"]] == "duplicate_patients"
    for what in ("rescaled", "flipped", "integer"):
        assert kinds[names[what]] == "same_scan_patients", what
    assert report.is_fatal
    assert report.suggested_patients == {name: "a0" if name[0] == "b" else name for name in scans}
    assert 'write patients.json with every case: "b0": "a0", "b1": "a0"' in report.understood["one patient?"]
    write_json(folder / "patients.json", report.suggested_patients)
    again = check_dataset(folder, n_workers=1)
    assert set(found_kinds(again)) <= {names["exact"]}  # equal voxels of one patient are still named
    assert again.suggested_patients == {}
    assert not again.is_fatal
    assert CheckReport.parse(json.loads(report.to_json()), "report") == report


def test_different_patients_are_not_alike(tmp_path: Path):
    report = check_dataset(write_scans(tmp_path, {f"p{i}": (scan(i), AFFINE) for i in range(5)}), n_workers=1)
    assert report.faults == ()
    assert "one patient?" not in report.understood


def test_the_correlation_is_spearmans_of_what_is_left_without_the_local_mean():
    """Each voxel of a thumbnail is the mean of 2 × 3 × 2 voxels here. Both images have one trend."""
    one, other = (np.random.default_rng(seed).normal(size=(48, 72, 48)).round(1) for seed in (0, 1))
    trend = np.linspace(0, 20, 48)
    one, other = trend + one, trend + one + other
    means = [a.reshape(24, 2, 24, 3, 24, 2).mean((1, 3, 5)) for a in (one, other)]
    expected = spearmanr(*[(a - uniform_filter(a, 5, mode="nearest")).ravel() for a in means]).statistic
    assert expected < 0.8
    assert correlation(small(one, np.eye(4)), small(other, np.eye(4))) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("shape", [(1, 60, 50), (60, 1, 50), (1, 1, 40), (3, 5, 4), (24, 24, 24), (30, 20, 70)])
def test_any_shape_has_a_thumbnail_of_unit_length(shape: tuple[int, int, int]):
    one = small(np.random.default_rng(0).normal(size=shape))
    assert one.shape == (24**3,)
    assert correlation(one, one) == pytest.approx(1, abs=2e-3)


def test_a_constant_image_has_no_thumbnail_and_is_like_nothing():
    grid = Grid((4, 5, 6), np.eye(4))
    nothing = thumbnail(np.full((4, 5, 6), 7, np.float32), grid)
    assert nothing is None
    assert thumbnail(np.full((60, 50, 40), -1024.1, np.float32), grid) is None
    assert alike_pairs([nothing, nothing], ["a", "b"]) == []
    assert alike_pairs([], []) == []


@pytest.mark.parametrize("n_scans", [7, 40, 1100])
def test_pairs_are_those_of_a_double_loop(n_scans: int):
    """Also over several blocks: scans of a few patients, some with two names; each has its most alike earlier one."""
    random = np.random.default_rng(n_scans)
    vectors = random.normal(size=(n_scans, 200))
    for place in range(5, n_scans, 5):  # nearly the scan of three places before, or far before
        vectors[place] = vectors[place // 2] + random.uniform(0.1, 0.8) * random.normal(size=200)
    vectors -= vectors.mean(1, keepdims=True)
    stack = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    patients = [f"p{i // 2 if i % 10 == 0 else i + 10000}" for i in range(n_scans)]
    exact = stack.astype(np.float32) @ stack.astype(np.float32).T
    expected = []
    for second in range(n_scans):
        others = [first for first in range(second) if patients[first] != patients[second]]
        if others and (first := max(others, key=lambda place: exact[place, second])) is not None:
            expected += [(first, second)] * bool(exact[first, second] > 0.66)
    found = alike_pairs(list(stack), patients)
    assert [pair[:2] for pair in found if pair.correlation > 0.66] == expected
    assert all(pair.correlation == pytest.approx(exact[pair.first, pair.second], abs=1e-5) for pair in found)


def test_in_one_atlas_space_only_the_unusually_alike_count():
    """All scans share three quarters of their variance (r = 0.75); a second scan of a patient (0.95) is found alone."""
    random = np.random.default_rng(0)
    common, own = random.normal(size=2000), random.normal(size=(30, 2000))
    scans = np.sqrt(0.75) * common + 0.5 * own
    scans[29] = np.sqrt(0.75) * common + np.sqrt(0.2) * own[7] + np.sqrt(0.05) * own[29]
    stack = scans / np.linalg.norm(scans, axis=1, keepdims=True)
    found = alike_pairs(list(stack.astype(np.float16)), [f"p{i}" for i in range(30)])
    assert [pair[:2] for pair in found] == [(7, 29)]
    assert (stack @ stack.T)[np.triu_indices(30, 1)].min() > ALIKE


@given(st.integers(0, 47), st.integers(0, 1000))
def test_the_storage_order_does_not_matter(orientation: int, seed: int):
    """The same image with axes permuted and flipped, in the same world."""
    voxels = np.random.default_rng(seed).normal(size=(9, 12, 10)).astype(np.float32)
    axes = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][orientation % 6]
    signs = [1 if orientation // 6 & bit else -1 for bit in (1, 2, 4)]
    turned = voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    to_old = np.zeros((4, 4))  # index (x, y, z) of the turned array to that of the old one
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        to_old[2 - old, 2 - new] = sign
        to_old[2 - old, 3] = 0 if sign > 0 else voxels.shape[old] - 1
    to_old[3, 3] = 1
    assert (small(turned, AFFINE @ to_old) == small(voxels)).all()


def thumbnails_of(folder: Path) -> dict[str, NDArray[np.float16] | None]:
    found = {}
    for path in sorted((folder / "imagesTr").glob("*_0000.nii.gz")):
        header = read_header(path)
        found[path.name.removesuffix("_0000.nii.gz")] = thumbnail(read_voxels(header)[0], header.grid)
    return found


def test_two_phases_of_a_published_patient_are_found_under_other_names(shared_data: Path):
    """All pairs of end diastole and end systole, and no other: the names say nothing."""
    found = thumbnails_of(shared_data / "acdc")
    names = list(found)
    pairs = alike_pairs(list(found.values()), names)
    assert {(names[pair.first], names[pair.second]) for pair in pairs} == set(zip(names[::2], names[1::2], strict=True))


@pytest.mark.parametrize("dataset", ["acdc", "hippocampus", "sts_multi", "sct_small", "totalseg_ct"])
def test_no_two_published_patients_are_alike(shared_data: Path, dataset: str):
    found = thumbnails_of(shared_data / dataset)
    assert alike_pairs(list(found.values()), [patient_by_name(name) for name in found]) == []


def test_altered_copies_of_published_scans_are_found(shared_data: Path):
    """All eight copies of each tenth ACDC volume, beside the other volumes."""
    found = thumbnails_of(shared_data / "acdc")
    others = [one for name, one in found.items() if name.endswith("frame01")]
    for path in sorted((shared_data / "acdc/imagesTr").glob("*_frame01_0000.nii.gz"))[::6]:
        header = read_header(path)
        for what, voxels, affine in copies(read_voxels(header)[0], header.grid.affine_ras_mm):
            pairs = alike_pairs([*others, small(voxels, affine)], [*map(str, range(len(others))), "copy"])
            assert [pair.second for pair in pairs] == [len(others)], (path.name, what)
            assert what in ("cropped", "one slice fewer", "noised", "resampled") or pairs[0].correlation > SAME
