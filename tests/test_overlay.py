"""Pictures of patches in training, by hand."""

from __future__ import annotations

import numpy as np
import torch

from segpipe.core.labels import Label, LabelSet
from segpipe.train.tensorboard import Plane, draw_planes, planes_of

ORANGE, SKY_BLUE = (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)
LABELS = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(2,))))
REGIONS = LabelSet(labels=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), paint_values=(1, 2))


def where(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour, np.uint8)).all(axis=-1)


def test_planes_go_through_most_labelled_voxels_and_hold_what_was_said():
    image = torch.arange(4 * 5 * 6.0).view(1, 4, 5, 6)
    indices = torch.zeros(4, 5, 6, dtype=torch.int8)
    indices[1, 3, 4] = indices[1, 3, 5] = 2  # most of Z in plane 1, of Y in 3, of X in 4 (the first of two)
    indices[0] = -1  # ignored: no label
    output = torch.zeros(3, 4, 5, 6)
    output[1, 1, 3, 4] = 1  # label a where b is
    planes = planes_of(image, indices, output, LABELS, (3.0, 2.0, 1.0))
    assert [plane.image.shape for plane in planes] == [(5, 6), (4, 6), (4, 5)]
    assert [plane.image[0, 0] for plane in planes] == [30, 18, 4]  # 1·30, 3·6, 4
    assert [plane.edges_mm for plane in planes] == [(2.0, 1.0), (3.0, 1.0), (3.0, 2.0)]
    assert [(list(plane.reference), list(plane.prediction)) for plane in planes] == [([1], [0])] * 3
    assert np.argwhere(planes[0].reference[1]).tolist() == [[3, 4], [3, 5]]
    assert np.argwhere(planes[1].prediction[0]).tolist() == [[1, 4]]
    assert np.argwhere(planes[2].prediction[0]).tolist() == [[1, 3]]


def test_regions_overlap_and_a_flat_patch_has_one_plane():
    indices = torch.tensor([[[0, 1, 2]]]).expand(1, 3, 3)
    output = torch.stack([torch.ones(1, 3, 3), -torch.ones(1, 3, 3)])
    (plane,) = planes_of(torch.zeros(1, 1, 3, 3), indices, output, REGIONS, (None, 1.0, 1.0))
    assert plane.reference[0].sum() == 6 and plane.reference[1].sum() == 3
    assert list(plane.prediction) == [0] and plane.prediction[0].all()


def test_without_labels_the_middle_is_shown():
    image = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4)
    plane = planes_of(image, torch.zeros(4, 4, 4, dtype=torch.int8), torch.zeros(3, 4, 4, 4), LABELS, (1, 1, 1))[0]
    assert plane.image[0, 0] == 2 and not plane.reference and not plane.prediction


def test_the_reference_is_framed_from_outside_and_the_prediction_dashed_from_inside():
    """320 pixels for 32 voxels: a voxel is 10 × 10; the square of voxels 10 to 19 is pixels 100 to 199."""
    image = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    square = np.zeros((32, 32), bool)
    square[10:20, 10:20] = True
    picture = draw_planes([Plane(image, {0: square}, {1: square}, (1.0, 1.0))])
    assert picture.shape == (320, 320, 3) and picture.dtype == np.uint8
    reference, prediction = where(picture, ORANGE), where(picture, SKY_BLUE)
    assert np.argwhere(reference).min(0).tolist() == [98, 98] and np.argwhere(reference).max(0).tolist() == [201, 201]
    assert not reference[100:200, 100:200].any() and reference[98:100, 100:200].all()
    inside = np.zeros((320, 320), bool)
    inside[100:200, 100:200] = True
    inside[102:198, 102:198] = False
    assert not prediction[~inside].any() and 0.4 < prediction[inside].mean() < 0.6
    grey = picture[~reference & ~prediction]
    assert (grey == grey[:, :1]).all()


def test_planes_stand_side_by_side_at_one_scale():
    """10 voxels of 4 mm by 20 of 1 mm: 40 mm are 320 pixels, so 20 mm are 160; a gap of 4, then 10 × 5 mm, 80 × 40."""
    tall = Plane(np.ones((10, 20), np.float32), {}, {}, (4.0, 1.0))
    small = Plane(np.ones((10, 5), np.float32), {}, {}, (1.0, 1.0))
    assert draw_planes([tall, small]).shape == (320, 160 + 4 + 40, 3)
    huge = Plane(np.ones((2000, 1000), np.float32), {}, {}, (1.0, 1.0))
    assert draw_planes([huge]).shape == (320, 160, 3)
    thin = Plane(np.ones((1, 1000), np.float32), {}, {}, (0.1, 1.0))  # never nothing
    assert draw_planes([thin]).shape == (1, 320, 3)
