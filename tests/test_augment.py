"""train/augmentation/draws.py, train/augmentation/apply.py"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import REGIONS, small_plan
from segpipe.core.labels import IGNORE_INDEX, Label, LabelSet
from segpipe.core.seeds import generator_for
from segpipe.plan.augmentation import AUGMENTATIONS, Augmentation
from segpipe.plan.schema import Normalisation
from segpipe.train.augmentation.apply import apply
from segpipe.train.augmentation.draws import Draws, Scope, draw, edges_to_cut, largest_angle, region_for, scope_of
from segpipe.train.augmentation.placement import crop_centre, look_up, move_by_torch, move_compiled, spline_basis

NNUNET = Augmentation.from_name("nnunet")
ALWAYS = Augmentation.from_name("strong", **{name: 1.0 for name in Augmentation.model_fields if name.startswith("p_")})


def scope(patch=(6, 6, 6), augmentation: Augmentation = NNUNET, **changes: object) -> Scope:
    """Of two labels without sides; every axis may be mirrored."""
    values = dict(mirror_axes=(0, 1, 2), side_axis=2, swapped=(0, 1, 2), masked_channels=(), values=(1, 2))
    return Scope(augmentation=augmentation, patch_zyx=patch, **{**values, **changes})


def nothing(n_batch: int = 1, n_channels: int = 1) -> Draws:
    """Draws that change nothing."""
    neutral = np.ones((n_batch, n_channels), np.float32)
    return Draws(
        turns=np.repeat(np.eye(3, dtype=np.float32)[None], n_batch, 0),
        controls=None,
        is_moved=np.zeros(n_batch, np.bool_),
        mirrored=np.zeros((n_batch, 3), np.bool_),
        noise_std=np.zeros(n_batch, np.float32),
        blur_vox=np.zeros((n_batch, n_channels, 3), np.float32),
        brightness=neutral,
        contrast=neutral,
        lowres_zoom=neutral,
        gamma_inverted=neutral,
        gamma=neutral,
        noise_seeds=np.zeros(n_batch, np.int64),
    )


def moved(turn: np.ndarray) -> Draws:
    return replace(nothing(), turns=np.array([turn], np.float32), is_moved=np.array([True]))


def sample(shape=(6, 6, 6), n_channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, n_channels, *shape), torch.randint(0, 3, (1, *shape))


def test_a_batch_is_drawn_then_altered_and_depends_on_its_place_alone():
    training = scope_of(small_plan(augmentation="strong"), small_plan().configurations["3d_fullres"])
    assert training.patch_zyx == (8, 8, 12)
    images, indices = sample(region_for(training.patch_zyx, training.augmentation))
    draws = [draw(training, 1, 1, generator_for(0, 4, 17)) for _ in range(2)]
    (x, y), (x_again, y_again) = (apply(images, indices, d, training) for d in draws)
    assert x.shape == (1, 1, 8, 8, 12) and y.shape == (1, 8, 8, 12)
    assert torch.equal(x, x_again) and torch.equal(y, y_again)


def test_no_draws_cut_the_middle_and_leave_the_input_as_it_is():
    images, indices = sample((8, 8, 8))
    before = images.clone()
    x, y = apply(images, indices, nothing(), scope((4, 6, 8)))
    assert torch.equal(x, images[:, :, 2:6, 1:7]) and torch.equal(y, indices[:, 2:6, 1:7])
    apply(images, indices, replace(nothing(), brightness=np.full((1, 1), 2, np.float32)), scope((8, 8, 8)))
    assert torch.equal(images, before)


def test_mirroring_flips_image_and_labels_alike():
    images, indices = sample()
    x, y = apply(images, indices, replace(nothing(), mirrored=np.array([[True, False, True]])), scope())
    assert torch.equal(x, images.flip(2, 4)) and torch.equal(y, indices.flip(1, 3))


def test_a_quarter_turn_about_z_equals_rot90():
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)  # output (y, x) comes from (-x, y)
    images, indices = sample()
    x, y = apply(images, indices, moved(turn), scope())
    assert torch.allclose(x, images.rot90(-1, (3, 4)), atol=1e-5)
    assert torch.equal(y, indices.rot90(-1, (2, 3)))


def test_seeing_half_as_much_shows_the_middle_twice_as_large():
    images = torch.zeros(1, 1, 8, 8, 8)
    images[..., 3:5, 3:5, 3:5] = 1
    indices = (images[:, 0] > 0).long()
    _, y = apply(images, indices, moved(np.eye(3) / 2), scope((8, 8, 8)))
    assert int(indices.sum()) == 8 and int(y.sum()) == 56  # 4³ less the corners: 0.75³ < ½


def test_what_lies_beyond_the_region_is_0_and_background():
    images, indices = torch.ones(1, 1, 4, 4, 4), torch.full((1, 4, 4, 4), 2)
    x, y = apply(images, indices, moved(np.eye(3) * 2), scope((4, 4, 4)))
    # voxels at ±1 and ±3 of the region's -1.5 … 1.5: the outer ones are 1.5 voxels beyond, the inner ones inside
    assert (x[0, 0, 1:3, 1:3, 1:3] == 1).all() and (y[0, 1:3, 1:3, 1:3] == 2).all()
    assert float(x.sum()) == 8 and int(y.sum()) == 16


@given(st.integers(0, 10_000), st.sampled_from([(6, 6, 6), (1, 8, 6), (2, 9, 7)]))
@settings(max_examples=40)
def test_no_label_is_invented_and_no_number_is_lost(seed, patch):
    training = scope(patch, ALWAYS, values=(IGNORE_INDEX, *range(1, 10)), swapped=tuple(range(10)))
    images, indices = sample((patch[0] if training.is_flat else 7, 9, 9), 2)
    indices = indices * 3 + IGNORE_INDEX  # -1, 2, 5
    draws = draw(training, 1, 2, np.random.default_rng(seed))
    assert draws.is_moved.all() and draws.controls is not None
    x, y = apply(images, indices, draws, training)
    assert set(y.unique().tolist()) <= {-1, 0, 2, 5}  # 0: beyond the region
    assert x.isfinite().all() and x.shape == (1, 2, *patch)


def test_the_strongest_of_linear_masks_wins_and_background_is_one_of_them():
    indices = torch.zeros(1, 1, 1, 4, dtype=torch.int64)
    indices[0, 0, 0] = torch.tensor([1, 1, 2, 0])
    turn = np.diag([1, 1, 1]).astype(np.float32)
    turn[2, 2] = 0.6  # offsets -0.9, -0.3, 0.3, 0.9 about the middle 1.5: 0.6, 1.2, 1.8, 2.4
    training = scope((1, 1, 4))
    _, y = apply(torch.zeros(1, 1, 1, 1, 4), indices, moved(turn), training)
    assert y.reshape(-1).tolist() == [1, 1, 2, 2]
    turn[2, 2] = 0.8  # 0.3, 1.1, 1.9, 2.7: the last is 0.3 of label 2, 0.7 of background
    _, y = apply(torch.zeros(1, 1, 1, 1, 4), indices, moved(turn), training)
    assert y.reshape(-1).tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("n_labels", [1, 2, 7, 20])  # more than 8 are looked up in several passes
def test_the_compiled_way_and_torchs_agree(n_labels):
    torch.manual_seed(n_labels)
    images = torch.randn(3, 2, 13, 12, 14)
    indices = torch.randint(IGNORE_INDEX, n_labels + 1, (3, 13, 12, 14), dtype=torch.int16)
    training = scope((9, 10, 9), ALWAYS, values=(IGNORE_INDEX, *range(1, n_labels + 1)))
    draws = replace(draw(training, 3, 2, np.random.default_rng(0)), is_moved=np.array([True, False, True]))
    ways = [way(images, indices, draws, training) for way in (move_compiled, move_by_torch)]
    for (x, y), (x_torch, y_torch) in zip(*ways, strict=True):
        assert torch.allclose(x, x_torch, atol=1e-4)
        assert torch.equal(y, y_torch) and y.dtype == y_torch.dtype == torch.int64


def cuts(edges, region_zyx) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each sample a cut from the middle of its region, which holds noise."""
    torch.manual_seed(0)
    images = [crop_centre(torch.randn(2, *region_zyx), own) for own in edges]
    return images, [crop_centre(torch.randint(IGNORE_INDEX, 3, region_zyx, dtype=torch.int16), own) for own in edges]


def larger_cuts(draws: Draws, training: Scope) -> list[tuple[int, ...]]:
    """Cuts that are as large as any moved sample needs, and of the others patches."""
    needed = np.array(edges_to_cut(draws, training))
    common = needed[draws.is_moved].max(axis=0, initial=0).tolist()
    return [tuple(common) if is_moved else training.patch_zyx for is_moved in draws.is_moved]


@given(
    st.integers(0, 10_000),
    st.sampled_from([(6, 9, 8), (16, 16, 12), (2, 9, 8), (1, 9, 9)]),
    st.sampled_from(["light", "nnunet", "strong"]),
)
def test_a_small_cut_of_each_sample_gives_to_the_bit_what_a_large_one_gives(seed, patch, name):
    chances = dict.fromkeys(("p_rotation", "p_scale", "p_elastic", "p_quarter_turn"), 0.9) if seed % 2 else {}
    training = scope(patch, Augmentation.from_name(name, **chances), values=(IGNORE_INDEX, 1, 2), masked_channels=(1,))
    draws, region = draw(training, 4, 2, np.random.default_rng(seed)), training.region_zyx
    small = cuts(edges_to_cut(draws, training), region)
    if draws.is_moved.any():
        ways = (move_by_torch(*cut, draws, training) for cut in (small, cuts(larger_cuts(draws, training), region)))
        for own, expected in zip(*ways, strict=True):
            assert all(map(torch.equal, own, expected))
    if not training.is_flat:  # compiled: from whole regions, in the middle of which are the patches that do not move
        whole = apply(*cuts([region] * 4, region), draws, training)
        assert all(map(torch.equal, apply(*small, draws, training), whole))


def test_coordinates_are_rounded_alike_however_much_was_cut():
    """In float64, since float32 hides it from all but one voxel of millions."""
    generator = np.random.default_rng(0)
    region = generator.normal(size=(1, 31, 31, 31))
    moves = generator.uniform(-1, 1, (3, 9, 9, 9)).astype(np.float32)
    found = []
    for margin in (0, 8):
        inside = (slice(margin, 31 - margin),) * 3
        image, labels = region[:, *inside].copy(), (region[0, *inside] > 0).astype(np.int16)
        patch, winners = np.empty((1, 9, 9, 9)), np.empty((9, 9, 9), np.int64)
        look_up(image, labels, np.full(3, margin), np.eye(3) * 1.1, moves, patch, winners)
        found.append((patch, winners))
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def test_beyond_a_small_cut_beside_a_large_one_lie_0_and_background():
    training, turns = scope((4, 4, 4)), np.repeat(np.eye(3, dtype=np.float32)[None] * 2, 2, 0)
    draws = replace(nothing(2), turns=turns, is_moved=np.array([True, True]))
    images = [torch.ones(1, 4, 4, 4), torch.ones(1, 8, 8, 8)]
    found = move_by_torch(images, [image[0].to(torch.int8) for image in images], draws, training)
    expected = torch.zeros(4, 4, 4)
    expected[1:3, 1:3, 1:3] = 1  # at ±1 of a middle that reaches to ±1.5; ±3 is beyond
    assert torch.equal(found[0][0][0], expected) and torch.equal(found[0][1], expected.long())
    assert (found[1][0] == 1).all() and (found[1][1] == 1).all()


def test_what_is_cut_by_hand():
    training = scope((40, 40, 40))
    assert training.region_zyx == (65, 65, 65)
    turn = np.array([[0.8, 0, 0], [0, 0, -1], [0, 2, 0]], np.float32)
    draws = replace(nothing(2), turns=np.stack([turn, turn]), is_moved=np.array([True, False]))
    # 40 × 0.8 + 2 = 34, 42 and 82: as odd as the region, and not beyond it
    assert edges_to_cut(draws, training) == [(35, 43, 65), (40, 40, 40)]
    flat = scope((1, 40, 40))
    assert edges_to_cut(draws, flat)[0] == (1, 42, flat.region_zyx[2])


@pytest.mark.parametrize("name", ["nnunet", "strong"])
@pytest.mark.parametrize("patch", [(40, 56, 40), (128, 128, 128)])
def test_what_is_cut_is_at_least_2_5_times_less_than_regions(patch, name):
    training = scope(patch, Augmentation.from_name(name))
    edges = edges_to_cut(draw(training, 2000, 1, np.random.default_rng(0)), training)
    assert np.prod(edges, axis=1).mean() < np.prod(training.region_zyx) / 2.5


SIDES = LabelSet(labels=tuple(Label(name=n, values=(v,)) for v, n in enumerate(("left", "right", "liver"), start=1)))


def test_left_and_right_change_places_when_their_axis_is_mirrored():
    plan = small_plan(SIDES, patch=(2, 2, 4)).model_copy(update={"mirror_swaps": (("left", "right"),)})
    training = scope_of(plan, plan.configurations["3d_fullres"])
    assert training.side_axis == 2 and training.swapped == (0, 2, 1, 3)
    indices = torch.tensor([1, IGNORE_INDEX, 3, 2]).expand(2, 2, 2, 4)
    mirrored = np.array([[True, False, True], [True, True, False]])
    _, y = apply(torch.zeros(2, 1, 2, 2, 4), indices, replace(nothing(2), mirrored=mirrored), training)
    assert y[0, 0, 0].tolist() == [1, 3, IGNORE_INDEX, 2]  # turned round, and 1 and 2 exchanged
    assert y[1, 0, 0].tolist() == [1, IGNORE_INDEX, 3, 2]


def test_the_scope_follows_the_plan():
    plan = small_plan(REGIONS).model_copy(
        update={"orientation": "PLS", "normalisation": (Normalisation(scheme="zscore", within_nonzero=True),)}
    )
    found = scope_of(plan, plan.configurations["3d_fullres"])
    assert found.values == (IGNORE_INDEX, 1, 2) and found.masked_channels == (0,) and found.side_axis == 1


def test_slices_across_the_body_keep_their_sides():
    """Sagittal slices: the side axis runs across them, so a slice is never mirrored from left to right."""
    plan = small_plan(SIDES, patch=(2, 2, 4)).model_copy(
        update={"mirror_swaps": (("left", "right"),), "axis_order": (2, 1, 0)}
    )
    flat = plan.configurations["3d_fullres"].model_copy(update={"patch_zyx": (1, 8, 12)})
    training = scope_of(plan, flat)
    assert training.side_axis == 0 and training.mirror_axes == (1, 2)
    assert not draw(training, 50, 1, np.random.default_rng(0)).mirrored[:, 0].any()


def test_masked_channels_stay_0_outside():
    images, indices = sample((6, 6, 6), 2)
    images[:, :, :3] = 0
    training = scope((6, 6, 6), ALWAYS, masked_channels=(1,))
    draws = replace(draw(training, 1, 2, np.random.default_rng(0)), is_moved=np.array([False]))
    draws = replace(draws, mirrored=np.array([[False, False, False]]))
    x, _ = apply(images, indices, draws, training)
    assert (x[:, 1, :3] == 0).all() and (x[:, 1, 3:] != 0).any() and (x[:, 0, :3] != 0).all()


def test_a_deformation_moves_voxels_by_less_than_its_control_points_and_does_not_fold():
    edge = 16
    training = scope((edge,) * 3, Augmentation.from_name("none", p_elastic=1.0, elastic=(0.39, 0.39)))
    draws = draw(training, 1, 3, np.random.default_rng(0))
    ramp = torch.stack(torch.meshgrid(*[torch.arange(float(edge))] * 3, indexing="ij"))[None]
    assert draws.controls is not None and np.abs(draws.controls).max() <= 0.39 * edge / 4
    x, _ = apply(ramp, torch.zeros(1, edge, edge, edge, dtype=torch.int64), draws, training)
    inner = (x - ramp)[..., 4:-4, 4:-4, 4:-4]  # away from what lies beyond the region
    assert 0.3 < float(inner.abs().max()) <= 0.39 * edge / 4 + 1e-4
    for axis in range(3):  # order is kept along each axis
        assert (x[:, axis].diff(dim=axis + 1)[..., 4:-4, 4:-4, 4:-4] > 0).all()


def test_a_flat_patch_is_moved_in_its_planes_alike():
    training = scope((3, 12, 12), ALWAYS, mirror_axes=())
    draws = draw(training, 1, 1, np.random.default_rng(1))
    assert (draws.turns[:, 0] == [1, 0, 0]).all() and (draws.turns[:, :, 0] == [1, 0, 0]).all()
    images = torch.randn(1, 1, 1, 20, 20).expand(1, 1, 3, 20, 20) + torch.arange(3.0).view(3, 1, 1)
    pure = replace(nothing(), turns=draws.turns, controls=draws.controls, is_moved=draws.is_moved)
    x, _ = apply(images, torch.zeros(1, 3, 20, 20, dtype=torch.int64), pure, training)
    assert torch.allclose((x[:, :, 1:] - x[:, :, :1])[..., 5:7, 5:7], torch.tensor([1.0, 2.0]).view(2, 1, 1), atol=1e-4)


def test_angles_and_regions_by_hand():
    assert largest_angle(NNUNET, (64, 64, 64)) == 30
    assert largest_angle(NNUNET, (21, 64, 64)) == 180  # 64 / 21 > 3
    assert largest_angle(NNUNET, (1, 60, 40)) == 180 and largest_angle(NNUNET, (1, 61, 40)) == 15
    assert region_for((40, 40, 40), Augmentation.from_name("none")) == (40, 40, 40)
    # 30° about one axis widens a cube by cos 30° + sin 30° = 1.366; 40 × 1.366 / 0.85 = 64.3
    assert region_for((40, 40, 40), NNUNET) == (65, 65, 65)
    assert region_for((8, 64, 51), NNUNET) == (8, 76, 76)  # 64 / 0.85 = 75.3 on both axes: a quarter turn
    # 15°: 61 cos + 40 sin = 69.3 and 40 cos + 61 sin = 54.4
    assert region_for((1, 61, 40), NNUNET) == (1, 82, 65)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_presets_alter_or_do_not(name):
    augmentation = Augmentation.from_name(name)
    assert augmentation.alters == augmentation.moves == (name != "none")
    draws = draw(scope((8, 8, 8), augmentation), 3, 2, np.random.default_rng(0))
    images, indices = torch.randn(3, 2, 8, 8, 8), torch.zeros(3, 8, 8, 8, dtype=torch.int64)
    x, _ = apply(images, indices, draws, scope((8, 8, 8), augmentation))
    assert torch.equal(x, images) == (name == "none")


def test_intensities_by_hand():
    images = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 1, 1, 4)
    indices = torch.zeros(1, 1, 1, 4, dtype=torch.int64)

    def result(**changes: np.ndarray) -> list[float]:
        return apply(images, indices, replace(nothing(), **changes), scope((1, 1, 4)))[0].reshape(-1).tolist()

    one = np.ones((1, 1), np.float32)
    assert result(brightness=one * 2) == [0, 2, 4, 6]
    assert result(contrast=one / 2) == [0.75, 1.25, 1.75, 2.25]  # towards the mean 1.5
    assert result(contrast=one * 2) == [0, 0.5, 2.5, 3]  # clipped to the range before
    # (x/3)² is 0, 1/9, 4/9, 1: mean 7/18, sum of squares about it 0.6049 (SD 0.449); x has 5 (SD 1.291)
    assert result(gamma=one * 2) == pytest.approx([0.3819, 0.7014, 1.6597, 3.2570], abs=1e-3)
    assert result(gamma_inverted=one * 2) == pytest.approx([3 - v for v in result(gamma=one * 2)][::-1], abs=1e-5)
    # SD 0.5: one voxel on either side, weights 1 and exp(-2); beyond the border lies the mirror image 1, 0 | 3, 2
    weight = np.exp(-2) / (1 + 2 * np.exp(-2))
    blurred = result(blur_vox=np.full((1, 1, 3), 0.5, np.float32))
    assert blurred == pytest.approx([2 * weight, 1, 2, 3 - 2 * weight], abs=1e-6)
    assert result(lowres_zoom=one / 2) == [1, 1.5, 2.5, 3]  # keeps 1 and 3, then a quarter and three quarters


def test_a_constant_channel_survives_what_divides_by_its_range():
    images, indices = torch.full((1, 1, 4, 4, 4), 3.0), torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    factor = np.full((1, 1), 1.4, np.float32)
    draws = replace(nothing(), gamma=factor, gamma_inverted=factor, contrast=factor)
    x, _ = apply(images, indices, draws, scope((4, 4, 4)))
    assert torch.equal(x, images)


def test_noise_has_the_drawn_deviation_and_depends_on_the_seed_alone():
    images, indices = torch.zeros(2, 1, 30, 30, 30), torch.zeros(2, 30, 30, 30, dtype=torch.int64)
    draws = replace(nothing(2), noise_std=np.array([0, 0.1], np.float32), noise_seeds=np.array([0, 3]))
    first, second = (apply(images, indices, draws, scope((30, 30, 30)))[0] for _ in range(2))
    assert torch.equal(first, second) and float(first[1].std()) == pytest.approx(0.1, rel=0.02)
    assert not first[0].any()


def test_spline_weights_sum_to_1_and_are_linear_for_control_points_on_a_line():
    basis = spline_basis(16, 7)  # control points at -1 … 5 of 4 cells
    assert basis.sum(1) == pytest.approx(1, abs=1e-6)
    assert basis @ np.arange(-1, 6) == pytest.approx((np.arange(16) + 0.5) / 4, abs=1e-5)
