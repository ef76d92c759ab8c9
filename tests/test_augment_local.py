"""train/augmentation/local.py and quarter turns, beside batchgeneratorsv2 as nnunetv2's trainer DA5 uses it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import BrightnessAdditiveTransform
from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform
from batchgeneratorsv2.transforms.local.local_gamma import LocalGammaTransform
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.median_filter import MedianFilterTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from scipy import stats

from segpipe.plan.augmentation import LOCAL_CHANGES, Augmentation
from segpipe.train.augmentation.apply import apply
from segpipe.train.augmentation.draws import Scope, draw, is_flat
from segpipe.train.augmentation.local import Hill, LocalChange, alter_locally_, draw_local, hill_ZYX

STRONG = Augmentation.from_name("strong")
PATCH = (14, 30, 22)
N_DRAWS = 2000
HILL: Hill = ((3.0, 4.0), (30.0, 20.0), (-5.0, 9.0))


def image(shape=PATCH) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))


def ours(x: torch.Tensor, change: LocalChange, *, keep_planes: bool = False) -> torch.Tensor:
    changed = x.clone()[None]
    alter_locally_(changed, [[change]], keep_planes=keep_planes)
    return changed[0]


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_medians_and_sharpened_images_are_the_same(size):
    their = MedianFilterTransform((2, 8))._apply_to_image(image().clone(), apply_channel=[True], filter_sizes=[size])
    assert torch.equal(ours(image(), LocalChange("median", 0, size)), their)
    numbers = dict(apply_channel=[True], strengths=[size / 7], clamp_intensities=[False])
    their = SharpeningTransform()._apply_to_image(image().clone(), **numbers)
    assert torch.allclose(ours(image(), LocalChange("sharpening", 0, size / 7)), their, atol=1e-5)
    flat = image()[:, 2]
    planes = SharpeningTransform()._apply_to_image(flat.clone(), **numbers)
    assert torch.allclose(
        ours(image(), LocalChange("sharpening", 0, size / 7), keep_planes=True)[:, 2], planes, atol=1e-5
    )
    planes = MedianFilterTransform(3)._apply_to_image(flat.clone(), apply_channel=[True], filter_sizes=[size])
    assert torch.equal(ours(image(), LocalChange("median", 0, size), keep_planes=True)[:, 2], planes)


def test_the_median_of_a_window_wider_than_the_image_is_the_same():
    small = image((3, 2, 1))
    their = MedianFilterTransform(3)._apply_to_image(small.clone(), apply_channel=[True], filter_sizes=[3])
    assert torch.equal(ours(small, LocalChange("median", 0, 3)), their)


def test_hills_and_what_is_done_on_them_are_the_same():
    numbers = iter([value for middle, width in HILL for value in (middle, width)])

    def next_place(shape, axis):
        return next(numbers) / shape[axis]

    kernel = LocalGammaTransform(lambda *_: next(numbers), next_place)._generate_kernel(PATCH)
    hill = hill_ZYX(HILL, PATCH, torch.device("cpu"))
    assert np.allclose(hill.numpy(), kernel, atol=1e-5) and hill.min() == 0 and hill.max() == 1
    for gamma in (0.3, 2.5):
        their = LocalGammaTransform(1.0)._apply_to_image(image().clone(), kernels=[kernel], gammas=[gamma])
        assert torch.allclose(ours(image(), LocalChange("local_gamma", 0, gamma, hill=HILL)), their, atol=1e-4)
    their = BrightnessGradientAdditiveTransform(1.0)._apply_to_image(image().clone(), kernels=[-3 * kernel])
    assert torch.allclose(ours(image(), LocalChange("gradient", 0, -3.0, hill=HILL)), their, atol=1e-4)


def test_boxes_become_their_mean_and_a_shift_is_added_by_hand():
    x = image()
    box = LocalChange("blank", 0, 0.0, (1, 2, 3), (4, 9, 5))
    their = BlankRectangleTransform((1, 1, 1), torch.mean, 1)._apply_to_image(
        x.clone(), apply_channel=[True], rectangles=[[([1, 2, 3], [4, 9, 5])]]
    )
    assert torch.allclose(ours(x, box), their) and (ours(x, box)[0, 1:4, 2:9, 3:5] == x[0, 1:4, 2:9, 3:5].mean()).all()
    assert torch.equal(ours(x, LocalChange("shift", 0, 0.5)), x + 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 8), (2, 3, 40)])
@pytest.mark.parametrize("name", LOCAL_CHANGES)
def test_small_patches_of_one_value_stay_finite(name, shape):
    always = Augmentation.from_name("none", **{f"p_{name}": 1.0})
    drawn = draw_local(always, shape, (20, 1), np.random.default_rng(0))
    assert any(drawn)
    x = torch.ones(20, 1, *shape)
    alter_locally_(x, drawn, keep_planes=False)
    assert x.isfinite().all()


def numbers_of_theirs() -> dict[str, list[float]]:
    """What DA5's transforms draw for one channel, by our names."""
    composed = nnUNetTrainerDA5.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), False)

    def edges(found):
        return [b - a for low, high in found["rectangles"][0] for a, b in zip(low, high, strict=True)]

    def heights(found):
        return [kernel.sum() for kernel in found["kernels"] if kernel is not None]

    kinds = {
        BrightnessAdditiveTransform: ("shift", lambda found: found["shift"][found["apply_to_channel"]]),
        BlankRectangleTransform: ("blank", edges),
        BrightnessGradientAdditiveTransform: ("gradient", heights),
        LocalGammaTransform: ("local_gamma", lambda found: [g for g in found["gammas"] if g is not None]),
        SharpeningTransform: ("sharpening", lambda found: np.array(found["strengths"])[found["apply_channel"]]),
    }  # fmt: skip
    np.random.seed(0)  # noqa: NPY002 (its transforms draw from the global generators)
    torch.manual_seed(0)
    result: dict[str, list[float]] = {}
    for transform in composed.transforms:
        if isinstance(transform, RandomTransform) and type(transform.transform) in kinds:
            name, values = kinds[type(transform.transform)]
            for _ in range(N_DRAWS):
                if transform.get_parameters()["apply_transform"]:
                    found = transform.transform.get_parameters(image=torch.zeros(1, *PATCH))
                    if name != "shift" or found["shift"] is not None:
                        result.setdefault(name, []).extend(np.asarray(values(found), np.float64).tolist())
    return result


def number_of_ours(change: LocalChange) -> list[float]:
    if change.name == "blank":
        return [float(b - a) for a, b in zip(change.start_zyx, change.stop_zyx, strict=True)]
    if change.name == "gradient":
        return [change.amount * float(hill_ZYX(change.hill, PATCH, torch.device("cpu")).sum())]
    return [change.amount]


def test_numbers_are_drawn_as_often_and_from_the_same_distributions():
    own: dict[str, list[float]] = {}
    for of_sample in draw_local(STRONG, PATCH, (N_DRAWS, 1), np.random.default_rng(1)):
        for change in of_sample:
            own.setdefault(change.name, []).extend(number_of_ours(change))
    theirs = numbers_of_theirs()
    assert set(theirs) == set(LOCAL_CHANGES) - {"median"}  # drawn apart from blurring
    for name, values in theirs.items():
        # 5 quantities asked twice: by chance one in 1000 runs of fixed seeds would fail
        assert stats.ks_2samp(values, own[name]).pvalue > 1e-4, name
        per_draw = 12 if name == "blank" else 1  # up to 4 boxes, 3 edges each
        counts = [len(values) / per_draw, len(own[name]) / per_draw]
        assert stats.chi2_contingency([[n, N_DRAWS - n] for n in counts]).pvalue > 1e-4, (name, counts)
    n_medians = len(own["median"])
    assert 0.03 < n_medians / N_DRAWS < 0.07 and set(own["median"]) == {2, 3, 4, 5, 6, 7}  # 0.1, half of the channels


def scope(patch, augmentation=STRONG) -> Scope:
    return Scope(augmentation, patch, (0, 1, 2), 2, (), (), (1, 2, 3))


@pytest.mark.parametrize(
    ("patch", "planes"), [((6, 9, 9), {0}), ((9, 6, 9), {1}), ((8, 8, 8), {0, 1, 2}), ((2, 9, 9), {0})]
)
def test_quarter_turns_are_exact_and_stay_in_square_planes(patch, planes):
    always = Augmentation.from_name("none", p_quarter_turn=1.0)
    draws = draw(scope(patch, always), 60, 1, np.random.default_rng(0))
    # an odd difference would move the middle by half a voxel; flat patches are not turned across their planes
    region = tuple(n if axis == 0 and is_flat(patch) else n + 4 for axis, n in enumerate(patch))
    images = torch.randn(60, 1, *region)
    labels = (images[:, 0] > 0.5).long()
    x, y = apply(images, labels, draws, scope(patch, always))
    inside = tuple(slice((n - p) // 2, (n - p) // 2 + p) for n, p in zip(region, patch, strict=True))
    seen = set()
    for sample in range(60):
        cut, mask = images[(sample, 0, *inside)], labels[(sample, *inside)]
        axes = [(1, 2), (0, 2), (0, 1)]
        found = [
            (axis, k)
            for axis in planes
            for k in (1, 2, 3)
            if (turned := torch.rot90(cut, k, axes[axis])).shape == x[sample, 0].shape
            and torch.allclose(turned, x[sample, 0], atol=1e-5)
            and torch.equal(torch.rot90(mask, k, axes[axis]), y[sample])
        ]
        assert len(found) == 1
        seen.update(found)
    assert seen == {(axis, k) for axis in planes for k in (1, 2, 3)}


def test_patches_without_a_square_plane_are_not_turned():
    always = Augmentation.from_name("none", p_quarter_turn=1.0)
    assert not draw(scope((6, 8, 9), always), 9, 1, np.random.default_rng(0)).is_moved.any()
    assert not draw(scope((9, 9, 70), always), 9, 1, np.random.default_rng(0)).is_moved.any()


def test_what_strong_adds_changes_no_label_and_no_voxel_outside_the_body():
    local = {f"p_{name}": 1.0 for name in LOCAL_CHANGES}
    changes = Augmentation.from_name("none", **local)
    masked = replace(scope((8, 9, 10), changes), masked_channels=(0,))
    draws = draw(masked, 8, 2, np.random.default_rng(0))
    images, labels = torch.randn(8, 2, 8, 9, 10), torch.randint(0, 4, (8, 8, 9, 10))
    images[:, 0, :4] = 0
    x, y = apply(images, labels, draws, masked)
    again, _ = apply(images, labels, draws, masked)
    assert torch.equal(y, labels) and (x[:, 0, :4] == 0).all() and torch.equal(x, again)
    assert not torch.equal(x, images)
    both = [apply(images[n::2], labels[n::2], draws.part(n, 2), masked)[0] for n in range(2)]
    assert torch.equal(torch.stack(both, 1).flatten(0, 1), x)
