"""A scan with a marker on the patient's left: where every page draws it, however the scan is stored."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
from browser import launched
from datasets import write_json
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, label
from test_view_page import opened, picture, press

from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.data.load import load_dataset
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.scores import Origin
from segpipe.evaluate.scoring import MaskPair, score_folder
from segpipe.fingerprint.measure import measure
from segpipe.plan.make import make_plan
from segpipe.report.overlay_pictures import case_pictures
from segpipe.report.plan_page_samples import sample_pictures
from segpipe.report.work_contents import read_work
from segpipe.view.gallery import Gallery, GalleryCase

ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)  # body and marker
# Centre of the marker in the box around the body, from the left and from the top, seen radiologically. Along x the body
# is voxels 4 to 43 from left to right, the marker 8 to 13, its middle 7 of 40 from the patient's left, which is at the
# right: 33/40. Along y from the back: 30 to 35, so 11/40 from the front. Along z from the feet: 1 to 10 and 7 to 8.
AXIAL, CORONAL, SAGITTAL = (33 / 40, 11 / 40), (33 / 40, 3 / 10), (11 / 40, 3 / 10)
STORED = {"a": ("LPS", 0), "b": ("RAS", 0), "c": ("PSR", 0), "d": ("LPS", 0), "e": ("RAS", 15)}  # the last is oblique
PIXELS = 0.03  # of the body's size: lines are two or three pixels wide


def write_cases(folder: Path) -> Dataset:
    """A dataset of a case for each way to store it: scans of 2 × 2 × 4 mm, label maps, and in `masks` predictions
    without the marker."""
    values = np.zeros((48, 48, 12), np.uint8)  # RAS
    values[4:44, 4:44, 1:11] = 1
    # holes, but not in planes through the marker, which so hold the most labelled voxels and are drawn
    values[20:24, 10:14, :7] = values[20:24, 10:14, 9:] = 0
    values[24:26, :30, 3] = values[24:26, 36:, 3] = 0
    values[:8, 18:20, 3] = values[14:, 18:20, 3] = 0
    values[8:14, 30:36, 7:9] = 2
    for case_id, (orientation, degrees) in STORED.items():
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        affine = np.diag([2.0, 2.0, 4.0, 1.0])
        affine[:2, :2] = 2 * np.array([[cosine, -sine], [sine, cosine]])
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
        scan = (60 + 60 * values).astype(np.float32)
        files = {f"imagesTr/{case_id}_0000": scan, f"labelsTr/{case_id}": values, f"masks/{case_id}": values.clip(0, 1)}
        for name, voxels in files.items():
            path = folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(voxels, affine).as_reoriented(turn).to_filename(path)
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "body": 1, "marker": 2}}
    write_json(folder / "dataset.json", about | {"numTraining": len(STORED), "file_ending": ".nii.gz"})
    return load_dataset(folder)


def markers(pixels: NDArray[np.integer]) -> list[tuple[float, float]]:
    """Place of the marker's contour in the box of the body's, for every plane that has both, row by row."""
    orange, blue = (np.abs(pixels.astype(int) - colour).max(axis=-1) < 30 for colour in (ORANGE, SKY_BLUE))
    found = []
    for rows, columns in find_objects(label(binary_dilation(orange, iterations=8))[0]):
        if min(rows.stop - rows.start, columns.stop - columns.start) < 60:
            continue  # of a legend
        body, marker = (np.argwhere(mask[rows, columns]) for mask in (orange, blue))
        low, high = body.min(axis=0), body.max(axis=0) + 1
        y, x = ((marker.min(axis=0) + marker.max(axis=0) + 1) / 2 - low) / (high - low)
        found.append((rows.start // 50, columns.start, (x, y)))
    return [place for _, _, place in sorted(found)]


def pixels_of(png: bytes) -> NDArray[np.integer]:
    return np.rint(matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


def test_report_and_plan_page_show_the_left_at_the_right(tmp_path: Path) -> None:
    dataset, work = write_cases(tmp_path / "data"), Work(tmp_path / "work")
    fold = work.fold("3d_fullres", "0").validation
    fold.parent.mkdir(parents=True)
    (tmp_path / "data/masks").rename(fold)
    dataset.save(work.dataset)
    fingerprint = measure(dataset, 1)
    plan = make_plan(fingerprint, dataset.labels, dataset.name, "auto", "cpu")
    plan.save(work.plan)
    pairs = [
        MaskPair(tmp_path / f"data/labelsTr/{name}.nii.gz", fold / f"{name}.nii.gz", Origin(name, name, "r", 0, 0))
        for name in STORED
    ]
    table = score_folder(pairs, dataset.labels, 1, ScoreSettings(("dice",)))
    table.save(work.scores("3d_fullres"))
    found = read_work(work.path)
    notes: list[str] = []
    shown = case_pictures(found, found.runs[0], table, notes)
    samples, _ = sample_pictures(dataset, fingerprint, plan)
    assert (len(shown), len(samples), notes) == (4, 3, [])
    for one in shown:
        np.testing.assert_allclose(markers(pixels_of(one.content)), [AXIAL, CORONAL, SAGITTAL], atol=PIXELS)
    for one in samples:
        np.testing.assert_allclose(markers(pixels_of(one.content)), [AXIAL], atol=PIXELS)
    assert all("the patient's right is on the left" in one.caption for one in (*shown, *samples))


def test_the_viewer_shows_the_left_at_the_right_and_turns_on_demand(tmp_path: Path) -> None:
    write_cases(tmp_path)
    cases = [
        GalleryCase(
            case_id,
            (tmp_path / f"imagesTr/{case_id}_0000.nii.gz",),
            tmp_path / f"labelsTr/{case_id}.nii.gz",
            tmp_path / f"masks/{case_id}.nii.gz",
        )
        for case_id in STORED
    ]
    with launched() as browser, opened(browser, Gallery("t", tuple(cases))) as (page, complaints):
        page.keyboard.press("p")  # the reference alone, in the planes through the largest error: the marker
        for case_id in STORED:
            page.wait_for_selector(f"body[data-shown={case_id}]")
            page.wait_for_timeout(300)
            np.testing.assert_allclose(markers(picture(page)), [AXIAL, CORONAL, SAGITTAL], atol=PIXELS)
            press(page, "j")
        press(page, "f")  # neurological: right and left change sides, front and back stay
        assert "neurological: patient's left on the left" in page.locator("#side option:checked").inner_text()
        turned = [(1 - x, y) for x, y in (AXIAL, CORONAL)]
        np.testing.assert_allclose(markers(picture(page)), [*turned, SAGITTAL], atol=PIXELS)
        assert complaints == []
