"""What is done to the labels that guide a cascade, beside scipy and nnU-Net's transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import (
    ApplyRandomBinaryOperatorTransform,
    binary_closing_torch,
    binary_dilation_torch,
    binary_erosion_torch,
    binary_opening_torch,
)
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from plans import LABELS, small_plan
from segpipe.plan.augmentation import Augmentation
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.augmentation.apply import apply, apply_to_guides
from segpipe.train.augmentation.draws import Scope, draw, edges_to_cut, scope_of
from segpipe.train.cascade import OPERATIONS, Removal, Reshaping, add_guides, change_guides, dilate, draw_changes
from segpipe.train.sampling import Sampling, cut_batch, draw_places

THEIRS = {
    "dilate": binary_dilation_torch,
    "erode": binary_erosion_torch,
    "close": binary_closing_torch,
    "open": binary_opening_torch,
}


def label_map(seed: int, shape: tuple[int, int, int] = (9, 14, 12), n_labels: int = 3) -> NDArray[np.int64]:
    """Blobs of 1 … n_labels in background."""
    noise = np.random.default_rng(seed).normal(size=(n_labels + 1, *shape))
    return np.stack([ndimage.gaussian_filter(n, 1.2, mode="nearest") for n in noise]).argmax(0)


def one_hot(guide: Any, n_labels: int = 3) -> torch.Tensor:
    return torch.stack([(torch.as_tensor(guide) == label).float() for label in range(1, n_labels + 1)])


def test_a_label_grows_shrinks_and_loses_a_gap_by_hand():
    line = torch.zeros(1, 1, 12, dtype=torch.int64)
    line[0, 0, [3, 4, 6, 7]] = 1  # a gap of one voxel
    line[0, 0, 9:] = 2
    grown, shrunk, whole = (
        change_guides(line[None], [[Reshaping(1, name, 1.0)]])[0, 0, 0] for name in THEIRS if name != "open"
    )
    assert grown.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]  # up to 8, beside label 2
    assert shrunk.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2]
    assert whole.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 2, 2, 2]
    taken = change_guides(line[None], [[Reshaping(1, "dilate", 2.9)]])[0, 0, 0]  # reaches two voxels
    assert taken.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]  # what it gains, the other loses


@given(st.integers(0, 10**6), st.floats(0.3, 5.0), st.tuples(*[st.integers(1, 7)] * 3))
def test_dilation_is_a_distance(seed, radius, shape):
    mask = np.random.default_rng(seed).random(shape) < 0.1
    distance = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(shape, np.inf)
    found = dilate(torch.from_numpy(mask), radius).numpy()
    assert np.array_equal(found, distance**2 <= int(radius**2) + 0.5)  # squared distances are whole numbers


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shape", [(9, 14, 12), (1, 16, 13)])
def test_operations_are_nnunets(name, shape):
    for seed, radius in ((0, 1), (1, 2), (2, 4)):
        guide = label_map(seed, shape)
        steps = [Reshaping(2, name, float(radius)), Reshaping(1, name, float(radius))]
        theirs = ApplyRandomBinaryOperatorTransform([0, 1, 2])
        operators = [THEIRS[name]] * 2
        image = one_hot(guide) if shape[0] > 1 else one_hot(guide)[:, 0]  # in 2D theirs is a disk
        expected = theirs._apply_to_image(
            image, apply_to_channels=[1, 0], operators=operators, strel_size=[radius, radius]
        )
        found = one_hot(change_guides(torch.from_numpy(guide)[None], [steps])[0])
        assert torch.equal(found.reshape(expected.shape), expected)


def test_the_parts_that_may_be_lost_are_nnunets():
    guide = label_map(3)
    ours = {
        change_guides(torch.from_numpy(guide)[None], [[Removal(2, pick, 0.05)]])[0].numpy().tobytes()
        for pick in np.linspace(0, 1, 101)
    }
    theirs, transform = set(), RemoveRandomConnectedComponentFromOneHotEncodingTransform([0, 1, 2], 0.0, 0.05)
    np.random.seed(0)  # noqa: NPY002 (theirs draws from it)
    for _ in range(100):
        image = transform._apply_to_image(one_hot(guide), apply_to_channels=[1])
        labels = (image * torch.tensor([1, 2, 3])[:, None, None, None]).sum(0).to(torch.int64)
        theirs.add(labels.numpy().tobytes())
    assert len(ours) > 3 and ours == theirs


def test_a_part_as_large_as_the_share_stays():
    guide = torch.zeros(1, 1, 2, 10, dtype=torch.int64)
    guide[0, 0, 0, :3], guide[0, 0, 1, 8] = 1, 1  # 3 of 20 voxels, and 1
    assert change_guides(guide, [[Removal(1, 0.0, 0.15)]])[0, 0].tolist() == [[1, 1, 1, *[0] * 7], [0] * 10]
    assert torch.equal(change_guides(guide, [[Removal(1, 0.0, 0.05)]]), guide)  # 1 of 20 is not less
    assert torch.equal(change_guides(guide, [[Removal(2, 0.0, 1.0)]]), guide)  # a label that is not there


def test_input_channels_are_nnunets():
    guide, image = torch.from_numpy(label_map(4)), torch.rand(2, 9, 14, 12)
    theirs = MoveSegAsOneHotToDataTransform(0, [1, 2, 3]).apply({"image": image, "segmentation": guide[None]})
    assert torch.equal(add_guides(image[None], guide[None].to(torch.int8), 3)[0], theirs["image"])
    assert add_guides(image[None], None, 0).shape == (1, 2, 9, 14, 12)


@given(st.integers(0, 10**6))
def test_changes_invent_no_label_and_change_no_argument(seed):
    guide = torch.from_numpy(label_map(seed % 50))[None]
    always = Augmentation(p_guide_shape=1.0, p_guide_part=1.0, guide_radius_vox=(1.0, 3.0))
    before = guide.clone()
    found = change_guides(guide, draw_changes(always, 1, 3, np.random.default_rng(seed)))
    assert torch.equal(guide, before) and {*found.unique().tolist()} <= {0, 1, 2, 3}


def test_changes_are_drawn_as_often_as_the_plan_says():
    n = 4000
    drawn = draw_changes(Augmentation(), n, 2, np.random.default_rng(0))
    shaped = [[c for c in changes if isinstance(c, Reshaping)] for changes in drawn]
    lost = [[c for c in changes if isinstance(c, Removal)] for changes in drawn]
    assert sum(map(len, shaped)) / n == pytest.approx(0.4 * 0.5 * 2, abs=0.03)
    assert sum(map(len, lost)) / n == pytest.approx(0.2 * 0.5 * 2, abs=0.03)
    every = [c for changes in shaped for c in changes]
    assert 1 <= min(c.radius_vox for c in every) < 1.1 and 7.9 < max(c.radius_vox for c in every) <= 8
    for name in OPERATIONS:
        assert sum(c.operation == name for c in every) / len(every) == pytest.approx(0.25, abs=0.04)
    firsts = [changes[0].label for changes in shaped if len(changes) == 2]
    assert np.mean(np.array(firsts) == 1) == pytest.approx(0.5, abs=0.08)  # in random order


@pytest.mark.parametrize("patch", [(8, 8, 12), (1, 8, 12), (2, 8, 12)])
def test_a_guide_moves_as_the_labels_do(patch):
    """A guide that equals the labels still does after cutting, turning, scaling, deforming and mirroring."""
    plan = small_plan(augmentation={"preset": "strong", "p_rotation": 1.0, "p_scale": 1.0, "p_elastic": 1.0})
    configuration = plan.configurations["3d_fullres"].model_copy(update={"patch_zyx": patch, "previous": "coarse"})
    scope = scope_of(plan, configuration)
    labels = label_map(5, (12, 16, 20), 2).astype(np.int16)
    case = PatchCase(
        Path("c"), np.zeros((1, *labels.shape), np.float32), labels.astype(np.int8),
        find_places(labels, LABELS).by_label(), labels.astype(np.int8),
    )  # fmt: skip
    draws = draw(scope, 6, 1, np.random.default_rng(1))
    places = draw_places([case], Sampling(patch, 6, 0.5), np.random.default_rng(0))
    batch = cut_batch(places, patch, draws, edges_to_cut(draws, scope))
    assert batch.guides is not None and torch.equal(batch.guides.flat, batch.indices.flat)
    assert any(draws.guide_changes)
    still = type(draws)(**{**draws.__dict__, "guide_changes": ((),) * 6})
    _, indices = apply(batch.images.each, batch.indices.each, still, scope)
    guides = apply_to_guides(batch.guides.each, still, scope)
    assert torch.equal(guides, indices)
    altered = apply_to_guides(batch.guides.each, draws, scope)
    assert not torch.equal(altered, indices)


@pytest.mark.parametrize("patch", [(8, 8, 12), (1, 8, 12)])
def test_an_empty_guide_stays_empty_however_many_labels_there_are(patch):
    scope = Scope(
        Augmentation(p_rotation=1.0), patch, mirror_axes=(), side_axis=2, swapped=tuple(range(5)), masked_channels=(),
        values=(1, 2, 3, 4), n_guides=4,
    )  # fmt: skip
    found = apply_to_guides(
        torch.zeros(2, *patch, dtype=torch.int8), draw(scope, 2, 1, np.random.default_rng(0)), scope
    )
    assert found is not None and found.shape == (2, *patch) and not found.any()
