"""The report's pictures: where contours lie, in which colour, at which proportions."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from segpipe.core.figures import ERROR_COLOURS, SCAN_COLOURS, paler
from segpipe.core.labels import Label, LabelSet
from segpipe.report.charts import Spread, distribution_svg
from segpipe.report.overlay_pictures import Overlay, overlay_png

LABELS = LabelSet(labels=(Label(name="organ", values=(1,)), Label(name="core", values=(2,))))


def overlay_of(reference: NDArray[np.int32], prediction: NDArray[np.int32], **more: bool) -> Overlay:
    image = np.zeros((1, *reference.shape), np.float32)
    return Overlay(image, ("CT",), reference, prediction, LABELS, (2.0, 1.0, 1.0), (None,), **more)


def pixels_of(png: bytes) -> NDArray[np.float32]:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def count(pixels: NDArray[np.float32], colour: str) -> int:
    """Pixels of exactly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) < 0.01).sum())


def test_contours_are_drawn_in_their_label_colour_and_dashes_are_shorter():
    empty = np.zeros((10, 40, 40), np.int32)
    organ = empty.copy()
    organ[3:7, 10:30, 10:30] = 1
    only_reference = count(pixels_of(overlay_png(overlay_of(organ, empty))), "#E69F00")
    only_prediction = count(pixels_of(overlay_png(overlay_of(empty, organ))), paler("#E69F00"))
    assert only_reference > 1.3 * only_prediction > 0
    assert count(pixels_of(overlay_png(overlay_of(organ, organ))), "#56B4E9") == 0
    assert count(pixels_of(overlay_png(overlay_of(2 * organ, 2 * organ))), "#56B4E9") > 0


def test_planes_go_through_the_largest_error_if_asked():
    reference = np.zeros((10, 40, 40), np.int32)
    reference[2, 5:35, 5:35] = 1  # the largest cross-section is right
    prediction = reference.copy()
    prediction[7, 10:20, 10:20] = 2  # what was invented lies elsewhere
    right = pixels_of(overlay_png(overlay_of(reference, prediction)))
    wrong = pixels_of(overlay_png(overlay_of(reference, prediction, through_error=True)))
    assert count(wrong, paler("#56B4E9")) > count(right, paler("#56B4E9"))


def test_three_wrong_voxels_are_told_apart_by_colour():
    """The largest cross-sections of an organ that is right; beside it three voxels missed, or invented."""
    right = np.zeros((20, 60, 60), np.int32)
    right[5:15, 10:50, 10:40] = 1
    speckled = right.copy()
    speckled[10, 30, 50:53] = 1
    n_of = {}
    for name, (reference, prediction) in {"missed": (speckled, right), "spurious": (right, speckled)}.items():
        pixels = pixels_of(overlay_png(overlay_of(reference, prediction, through_error=True)))[:-40]  # no legend
        n_of[name] = {kind: count(pixels, colour) for kind, colour in ERROR_COLOURS.items()}
    assert min(n_of["missed"]["missed"], n_of["spurious"]["spurious"]) > 10
    assert n_of["missed"]["spurious"] == n_of["spurious"]["missed"] == n_of["missed"]["other label"] == 0


def test_a_ring_does_not_hide_what_it_encloses():
    """A square of 20 voxels in a ring of 24: they share the square's border, whichever has the smaller number."""
    for ring, core in ((1, 2), (2, 1)):
        values = np.zeros((10, 40, 40), np.int32)
        values[:, 8:32, 8:32] = ring
        values[:, 10:30, 10:30] = core
        pixels = pixels_of(overlay_png(overlay_of(values, 0 * values)))
        n_of = {1: count(pixels, "#E69F00"), 2: count(pixels, "#56B4E9")}
        assert 1 < n_of[ring] / n_of[core] < 4, n_of  # 9.7 if the ring is drawn last


def test_a_channel_that_the_plan_clips_is_drawn_between_its_limits():
    empty = np.zeros((10, 40, 40), np.int32)
    image = np.full((1, 10, 40, 40), -1000, np.float32)
    image[:, :, 10:20], image[:, :, 20:30] = 50, 3000  # HU of air, liver and metal
    overlay = Overlay(image, ("CT",), empty, empty, LABELS, (2.0, 1.0, 1.0), ((0.0, 100.0),))
    assert count(pixels_of(overlay_png(overlay)), "#7f7f7f") > 1000


def test_a_voxel_is_as_wide_in_the_picture_as_in_the_patient():
    """A ball of 10 mm radius on 4 × 1 × 1 mm voxels is as high as wide in the coronal plane."""
    z, y, x = np.ogrid[-15:16, -50:51, -50:51]
    ball = ((4 * z) ** 2 + y**2 + x**2 < 30**2).astype(np.int32)
    image = np.zeros((1, *ball.shape), np.float32)
    pixels = pixels_of(overlay_png(Overlay(image, ("CT",), ball, ball, LABELS, (4.0, 1.0, 1.0), (None,))))
    middle = pixels[40:-60, pixels.shape[1] // 3 : 2 * pixels.shape[1] // 3]  # without title and legend: coronal
    rows, columns = np.nonzero(middle.max(axis=-1) - middle.min(axis=-1) > 0.3)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.06)


def test_right_is_left_front_is_up_and_the_head_is_on_top():
    """Arrays run to left, back and head (LPS), so the first x and y and the last z are right, front and top."""
    corner = np.zeros((40, 40, 40), np.int32)
    corner[30:38, 2:10, 2:10] = 1  # all margins fit: the whole image is shown
    corner[2:4, 36:38, 36:38] = 2
    pixels = pixels_of(overlay_png(overlay_of(corner, corner)))[:-40]
    rows, columns = np.nonzero(np.abs(pixels - np.array([0xE6, 0x9F, 0x00]) / 255).max(axis=-1) < 0.1)
    panel = columns * 3 // pixels.shape[1]
    for number in range(3):  # right of the patient, or front: on the left of the panel
        assert (columns[panel == number] < (number + 0.5) * pixels.shape[1] / 3).all(), number
    height = pixels.shape[0]
    assert (rows[panel == 0] < height / 3).all()  # front
    assert (rows[panel > 0] < height / 2).all()  # head


def test_flat_empty_and_strange_images_can_be_drawn():
    flat = np.zeros((1, 30, 30), np.int32)
    assert overlay_png(overlay_of(flat, flat)).startswith(b"\x89PNG")
    everywhere = np.ones((3, 5, 5), np.int32)
    image = np.full((1, 3, 5, 5), np.nan, np.float32)
    assert overlay_png(Overlay(image, ("CT",), everywhere, everywhere, LABELS, (1.0, 1.0, 1.0), (None,))).startswith(
        b"\x89PNG"
    )


def test_charts_accept_one_point_and_nothing():
    one, none = Spread("organ", "#E69F00", (0.5,)), Spread("node", "#56B4E9", ())
    assert b"<svg" in distribution_svg([one, none], "Dice", (0.0, 1.0))
    assert b"<svg" in distribution_svg([Spread("organ", "#E69F00", (0.0, 0.0))], "HD95, mm", (0.0, None))


# Linear RGB as an eye without green cones, or without red ones, sees it: Machado et al. 2009, IEEE TVCG 15(6),
# severity 1.
EYES = {
    "usual": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize(("eye", "expected"), [("usual", 26), ("deuteranopia", 17), ("protanopia", 20)])
def test_fourteen_labels_are_told_apart_by_the_colour_blind(eye: str, expected: float):
    from skimage.color import xyz2lab

    stored = np.array([list(bytes.fromhex(colour[1:])) for colour in SCAN_COLOURS]) / 255
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    lab = xyz2lab(np.clip(linear @ np.array(EYES[eye]).T, 0, 1) @ to_xyz.T)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)]
    assert len(lab) == 14 and apart.min() >= expected  # CIELAB 1976; before, 3.1 with deuteranopia
