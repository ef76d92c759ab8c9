"""predict/sliding_window.py"""

from __future__ import annotations

import weakref
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segpipe.core.errors import DataError
from segpipe.predict.sliding_window import (
    Mirror,
    Sliding,
    gaussian_line,
    mirrored_mean,
    mirrors_of,
    n_windows,
    sliding_rows,
    window_shares,
    window_starts,
)

SIZES = st.tuples(*(st.integers(1, 13),) * 3)
PATCHES = st.tuples(*(st.integers(1, 9),) * 3)


class Constant(nn.Module):
    """Two outputs, 3 and -1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([3.0, -1.0]))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.bias.view(1, 2, 1, 1, 1).expand(x.shape[0], 2, *x.shape[2:])]


class Identity(nn.Module):
    """The image and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([x, -x], 1) * self.one]


class Ramp(nn.Module):
    """The image plus the place in the window, so that the windows' seams would show; counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.n_windows = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        self.n_windows += len(x)
        ramp = torch.arange(float(x[0, 0].numel())).reshape(x.shape[2:]) / x[0, 0].numel()
        return [torch.cat([x[:, :1] + ramp, x[:, :1] * ramp, -x[:, :1]], 1) * self.one]


def whole(networks, image, sliding):
    """Rows as one array (outputs, Z, Y, X)."""
    return torch.stack(list(sliding_rows(networks, image, sliding)), 1).numpy()


def noise(size, seed=0, n_channels=1):
    return np.random.default_rng(seed).normal(size=(n_channels, *size)).astype(np.float32)


def test_a_window_moves_along_an_image_and_rows_come_out_in_order():
    image = noise((9, 6, 5))
    rows = list(sliding_rows([Identity()], image, Sliding(patch_zyx=(4, 4, 4))))
    assert [row.shape for row in rows] == [(2, 6, 5)] * 9
    assert torch.stack(rows, 1)[0].numpy() == pytest.approx(image[0], abs=1e-5)


@given(st.integers(1, 200), st.integers(1, 64))
def test_windows_cover_everything_at_most_half_a_patch_apart_and_as_nnunets(n_voxels, patch):
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    starts = window_starts(n_voxels, patch)
    assert starts[0] == 0 and starts[-1] == max(0, n_voxels - patch)
    assert all(0 < b - a <= max(1, np.ceil(patch / 2)) for a, b in pairwise(starts))
    if n_voxels >= patch > 1:
        assert starts == compute_steps_for_sliding_window((n_voxels,), (patch,), 0.5)[0]


def test_weights_equal_nnunets_gaussian():
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    theirs = compute_gaussian((8, 12, 10), 1 / 8, 1.0, torch.float32, torch.device("cpu")).numpy()
    ours = np.einsum("z,y,x->zyx", *(gaussian_line(edge) for edge in (8, 12, 10)))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert gaussian_line(1) == 1 and gaussian_line(5).min() > 0


def test_shares_of_two_windows_by_hand():
    first, second = window_shares(3, 2).items()
    low, high = gaussian_line(2)  # the centre of a window of two voxels is the second
    assert (first[0], second[0]) == (0, 1)
    assert first[1] == pytest.approx([1, high / (high + low)])
    assert second[1] == pytest.approx([low / (high + low), 1])


@given(SIZES, PATCHES, st.integers(1, 3))
def test_a_constant_network_gives_a_constant_volume(size, patch, n_batch):
    logits = whole([Constant()], np.zeros((1, *size), np.float32), Sliding(patch, n_batch=n_batch))
    assert logits.shape == (2, *size)
    assert logits[0] == pytest.approx(3, abs=1e-5) and logits[1] == pytest.approx(-1, abs=1e-5)


@given(SIZES, st.integers(0, 9))
def test_the_identity_gives_the_image_back_mirrored_or_not(size, seed):
    image = noise(size, seed)
    sliding = Sliding((4, 6, 8), mirrors_of((0, 1, 2), (4, 6, 8)))
    assert whole([Identity(), Identity()], image, sliding)[0] == pytest.approx(image[0], abs=1e-5)


@settings(max_examples=25)
@given(SIZES, PATCHES, st.integers(1, 5), st.integers(0, 9))
def test_rows_equal_a_sum_over_the_whole_volume_divided_by_the_weights(size, patch, n_batch, seed):
    image = noise(size, seed)
    spare = [max(p - n, 0) for p, n in zip(patch, size, strict=True)]
    padded = np.pad(image, [(0, 0), *((s // 2, s - s // 2) for s in spare)])
    total, weight = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    gaussian = np.einsum("z,y,x->zyx", *(gaussian_line(edge) for edge in patch))
    for start in product(*(window_starts(n, p) for n, p in zip(padded.shape[1:], patch, strict=True))):
        box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        logits = Ramp()(torch.from_numpy(padded[(slice(None), *box)][None]))[0][0].detach().numpy()
        total[(slice(None), *box)] += logits * gaussian
        weight[box] += gaussian
    kept = tuple(slice(s // 2, s // 2 + n) for s, n in zip(spare, size, strict=True))
    expected = (total / weight)[(slice(None), *kept)]
    assert whole([Ramp()], image, Sliding(patch, n_batch=n_batch)) == pytest.approx(expected, abs=1e-5)


def test_a_2d_patch_goes_through_every_slice_once_in_batches_across_slices():
    image, network = noise((7, 5, 6)), Ramp()
    sliding = Sliding((1, 5, 6), n_batch=4)
    expected = Ramp()(torch.from_numpy(image).transpose(0, 1)[:, :, None])[0][:, :, 0].transpose(0, 1)
    assert whole([network], image, sliding) == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert network.n_windows == 7


def test_windows_of_one_value_are_computed_once_and_change_nothing():
    image = np.full((2, 8, 8, 40), -1.5, np.float32)
    image[1] = 2
    image[:, :, :, 30:] = noise((8, 8, 10), n_channels=2)
    network, sliding = Ramp(), Sliding((8, 8, 8), n_batch=3)
    found = whole([network], image, sliding)
    # nine windows start at 0, 4, 8, …, 32; those from 0 to 20 hold one value: three of the first batch are computed
    assert network.n_windows == 3 + 3
    image[0, :, :, :30] += np.linspace(0, 1e-6, 30, dtype=np.float32)  # no longer one value
    every = Ramp()
    assert found == pytest.approx(whole([every], image, sliding), abs=1e-5)
    assert every.n_windows == 9


def test_another_value_is_another_window():
    image = np.zeros((1, 4, 4, 24), np.float32)
    image[..., 12:] = 1
    assert whole([Ramp()], image, Sliding((4, 4, 4)))[2] == pytest.approx(-image[0], abs=1e-6)


def test_mirroring_averages_over_every_set_of_axes_by_hand():
    ramp = torch.arange(4.0).view(1, 1, 1, 1, 4)

    class First(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[..., :1].expand_as(x)]

    # the first value of the ramp is 0, of the mirrored ramp 3
    assert torch.unique(mirrored_mean([First()], ramp, [Mirror(), Mirror((2,))])).tolist() == [1.5]
    assert [mirror.axes for mirror in mirrors_of((0, 1, 2), (1, 8, 8))] == [(), (1,), (2,), (1, 2)]


def test_left_and_right_change_places_when_sideways_is_flipped():
    class Sides(nn.Module):  # background, what lies in the first half, what lies in the second
        def forward(self, x: Tensor) -> list[Tensor]:
            half = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand_as(x)
            return [torch.cat([torch.zeros_like(x), half * x, (1 - half) * x], 1)]

    x = torch.arange(1.0, 5).view(1, 1, 1, 1, 4)
    mirrors = mirrors_of((1, 2), (8, 8, 8), {2: (0, 2, 1)})
    assert [mirror.outputs for mirror in mirrors] == [(), (), (0, 2, 1), (0, 2, 1)]
    assert torch.equal(mirrored_mean([Sides()], x, mirrors), Sides()(x)[0])


@given(SIZES, PATCHES)
def test_windows_are_counted_as_they_are_computed(size, patch):
    heard = []
    rows = sliding_rows(
        [Constant()], np.zeros((1, *size), np.float32), Sliding(patch, on_window=lambda: heard.append(1))
    )
    assert len(list(rows)) == size[0] and len(heard) == n_windows(size, patch)


def test_a_logit_that_is_not_finite_is_an_error_and_no_background():
    image = noise((4, 4, 4))
    image[0, 2, 1, 1] = np.inf
    with pytest.raises(DataError, match=r"slice 2 of 4: the network's output is not finite"):
        whole([Identity()], image, Sliding((2, 2, 2)))


def test_a_row_leaves_when_the_next_window_begins_behind_it_and_is_then_free():
    network = Ramp()
    rows = sliding_rows([network], noise((40, 4, 4)), Sliding((8, 4, 4)))  # windows start at 0, 4, 8, …, 32
    windows_at_row, bases = [], []
    for row in rows:
        windows_at_row.append(network.n_windows)
        bases.append(weakref.ref(row))
        assert not any(base() is not None for base in bases[:-1])
    # rows 0 to 3 leave when the second window is there, …; the last eight when the ninth and last one is
    assert windows_at_row == [2 + z // 4 for z in range(32)] + [9] * 8


def test_a_batch_of_two_constant_values_gives_each_its_own_logits():
    # windows of one batch: 0 (known from the first batch), 1 (new), 0 again
    image = np.zeros((1, 6, 4, 4), np.float32)
    image[0, 4] = 1
    found = whole([Ramp()], image, Sliding((1, 4, 4), n_batch=3))  # slices 0–2, then 3–5
    assert found[2] == pytest.approx(-image[0], abs=1e-6)
