"""train/augment.py and train/transforms.py"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpipe.core.labels import IGNORE_INDEX
from segpipe.train.augment import STRENGTHS, Draws, Strength, draw, region_for
from segpipe.train.transforms import apply

NNUNET = STRENGTHS["nnunet"]
assert NNUNET is not None


def nothing(n_batch: int = 1, n_channels: int = 1) -> Draws:
    """Draws that change nothing."""
    neutral = np.ones((n_batch, n_channels), np.float32)
    return Draws(
        turns=np.repeat(np.eye(3, dtype=np.float32)[None], n_batch, 0),
        is_turned=np.zeros(n_batch, np.bool_),
        mirrored=np.zeros((n_batch, 3), np.bool_),
        noise_std=np.zeros(n_batch, np.float32),
        blur_vox=neutral * 0,
        brightness=neutral,
        contrast=neutral,
        gamma=neutral,
        gamma_inverted=neutral,
        lowres_zoom=neutral,
        noise_seed=0,
    )


def sample(shape=(6, 6, 6), n_channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, n_channels, *shape), torch.randint(0, 3, (1, *shape))


def test_no_draws_cut_the_middle_and_change_nothing():
    images, indices = sample((8, 8, 8))
    x, y = apply(images, indices, nothing(), (4, 6, 8))
    assert torch.equal(x, images[:, :, 2:6, 1:7]) and torch.equal(y, indices[:, 2:6, 1:7])


def test_mirroring_flips_image_and_labels_alike():
    images, indices = sample()
    x, y = apply(images, indices, replace(nothing(), mirrored=np.array([[True, False, True]])), (6, 6, 6))
    assert torch.equal(x, images.flip(2, 4)) and torch.equal(y, indices.flip(1, 3))


def test_a_quarter_turn_about_z_equals_rot90():
    turn = np.array([[[1, 0, 0], [0, 0, -1], [0, 1, 0]]], np.float32)  # output (y, x) comes from (-x, y)
    images, indices = sample()
    x, y = apply(images, indices, replace(nothing(), turns=turn, is_turned=np.array([True])), (6, 6, 6))
    assert torch.allclose(x, images.rot90(-1, (3, 4)), atol=1e-5)
    assert torch.equal(y, indices.rot90(-1, (2, 3)))


def test_magnifying_twice_shows_the_middle_twice_as_large():
    images = torch.zeros(1, 1, 8, 8, 8)
    images[..., 3:5, 3:5, 3:5] = 1
    indices = (images[:, 0] > 0).long()
    draws = replace(nothing(), turns=np.eye(3, dtype=np.float32)[None] / 2, is_turned=np.array([True]))
    _, y = apply(images, indices, draws, (8, 8, 8))
    assert int(indices.sum()) == 8 and int(y.sum()) == 56  # 4³ less the corners: 0.75³ < ½


@given(st.integers(0, 200))
def test_no_label_is_invented(seed):
    images, indices = sample()
    indices = indices * 3 + IGNORE_INDEX  # -1, 2, 5
    always = Strength(**{f"p_{n}": 1.0 for n in ("rotation", "scale", "noise", "blur", "lowres", "gamma", "mirror")})
    draws = draw(always, (1, 1), (6, 6, 6), (0, 1, 2), np.random.default_rng(seed))
    x, y = apply(images, indices, draws, (6, 6, 6))
    assert set(y.unique().tolist()) <= {-1, 0, 2, 5}  # 0: beyond the region
    assert x.isfinite().all()


def test_frequencies_and_ranges_are_the_tables():
    draws = draw(NNUNET, (20_000, 1), (64, 64, 64), (0, 2), np.random.default_rng(0))
    share = {
        "rotation or scaling": (draws.is_turned.mean(), 1 - 0.8 * 0.8),
        "noise": ((draws.noise_std > 0).mean(), 0.1),
        "blur": ((draws.blur_vox > 0).mean(), 0.2 * 0.5),
        "brightness": ((draws.brightness != 1).mean(), 0.15),
        "contrast": ((draws.contrast != 1).mean(), 0.15),
        "low resolution": ((draws.lowres_zoom != 1).mean(), 0.25 * 0.5),
        "gamma": ((draws.gamma != 1).mean(), 0.3),
        "inverted gamma": ((draws.gamma_inverted != 1).mean(), 0.1),
        "mirror z": (draws.mirrored[:, 0].mean(), 0.5),
        "mirror y": (draws.mirrored[:, 1].mean(), 0.0),
    }
    for name, (found, expected) in share.items():
        assert found == pytest.approx(expected, abs=0.015), name
    assert draws.blur_vox[draws.blur_vox > 0].min() >= 0.5 and draws.blur_vox.max() <= 1
    scales = np.linalg.det(draws.turns.astype(np.float64)) ** (-1 / 3)
    assert 0.7 - 1e-3 <= scales.min() < 0.75 and 1.35 < scales.max() <= 1.4 + 1e-3


def test_flat_patches_turn_in_plane_only():
    draws = draw(replace(NNUNET, p_rotation=1.0), (200, 1), (8, 64, 64), (0, 1, 2), np.random.default_rng(0))
    assert (draws.turns[:, 0] == [1, 0, 0]).all() and (draws.turns[:, :, 0] == [1, 0, 0]).all()
    assert (draws.turns[:, 1, 1] < -0.5).any()  # up to 180 degrees


def test_intensities_by_hand():
    images = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 1, 1, 4)
    indices = torch.zeros(1, 1, 1, 4, dtype=torch.int64)

    def result(**changes: np.ndarray) -> list[float]:
        return apply(images, indices, replace(nothing(), **changes), (1, 1, 4))[0].reshape(-1).tolist()

    one = np.ones((1, 1), np.float32)
    assert result(brightness=one * 2) == [0, 2, 4, 6]
    assert result(contrast=one / 2) == [0.75, 1.25, 1.75, 2.25]  # towards the mean 1.5
    assert result(contrast=one * 2) == [0, 0.5, 2.5, 3]  # clipped to the range before
    curved = result(gamma=one * 2)
    assert np.mean(curved) == pytest.approx(1.5, abs=1e-5) and np.std(curved) == pytest.approx(
        np.std([0, 1, 2, 3]), abs=1e-5
    )
    assert curved[1] - curved[0] < curved[3] - curved[2]
    blurred = result(blur_vox=one)
    assert blurred[0] > 0 and blurred[3] < 3 and sum(blurred) == pytest.approx(6, abs=1e-4)


def test_noise_has_the_drawn_deviation_and_depends_on_the_seed_alone():
    images, indices = torch.zeros(1, 1, 30, 30, 30), torch.zeros(1, 30, 30, 30, dtype=torch.int64)
    draws = replace(nothing(), noise_std=np.array([0.1], np.float32), noise_seed=3)
    first, second = (apply(images, indices, draws, (30, 30, 30))[0] for _ in range(2))
    assert torch.equal(first, second) and float(first.std()) == pytest.approx(0.1, rel=0.02)


def test_the_region_holds_every_turned_patch():
    assert region_for((40, 40, 40), None) == (40, 40, 40)
    # 30° about each axis in turn widens a cube by cos 30° + sin 30° = 1.366 at least; 0.85 leaves room for scaling
    assert all(e >= 40 * 1.366 / 0.85 - 1 for e in region_for((40, 40, 40), NNUNET))
    assert region_for((8, 64, 64), NNUNET)[0] == 8
