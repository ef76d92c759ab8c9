"""predict/window.py"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from segpipe.predict.window import gaussian_line, mirrored_mean, mirrors_of, sliding_logits, window_starts


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


@given(st.integers(1, 200), st.integers(1, 64))
def test_windows_cover_everything_at_most_half_a_patch_apart_and_as_nnunets(n_voxels, patch):
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    starts = window_starts(n_voxels, patch)
    assert starts[0] == 0 and starts[-1] == max(0, n_voxels - patch)
    assert all(b - a <= max(1, np.ceil(patch / 2)) for a, b in pairwise(starts))
    if n_voxels >= patch > 1:
        assert starts == compute_steps_for_sliding_window((n_voxels,), (patch,), 0.5)[0]


def test_weights_equal_nnunets_gaussian():
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    theirs = compute_gaussian((8, 12, 10), 1 / 8, 1.0, torch.float32, torch.device("cpu")).numpy()
    ours = np.einsum("z,y,x->zyx", *(gaussian_line(edge) for edge in (8, 12, 10)))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert gaussian_line(1) == 1 and gaussian_line(5).min() > 0


@given(st.tuples(*(st.integers(1, 17),) * 3), st.tuples(*(st.integers(1, 9),) * 3), st.integers(1, 3))
def test_a_constant_network_gives_a_constant_volume(size, patch, n_batch):
    logits = sliding_logits([Constant()], np.zeros((1, *size), np.float32), patch, [()], torch.float32, n_batch)
    assert logits.shape == (2, *size)
    assert logits[0] == pytest.approx(3, abs=1e-5) and logits[1] == pytest.approx(-1, abs=1e-5)


@given(st.tuples(*(st.integers(1, 15),) * 3), st.integers(0, 9))
def test_the_identity_gives_the_image_back_mirrored_or_not(size, seed):
    image = np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)
    mirrors = mirrors_of((0, 1, 2), (4, 6, 8))
    logits = sliding_logits([Identity(), Identity()], image, (4, 6, 8), mirrors, torch.float32)
    assert logits[0] == pytest.approx(image[0], abs=1e-5)


def test_mirroring_averages_over_every_set_of_axes_by_hand():
    ramp = torch.arange(4.0).view(1, 1, 1, 1, 4)

    class First(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[..., :1].expand_as(x)]

    # the first value of the ramp is 0, of the mirrored ramp 3
    assert mirrored_mean(First(), ramp, [(), (2,)]).unique().tolist() == [1.5]
    assert mirrors_of((0, 1, 2), (1, 8, 8)) == [(), (1,), (2,), (1, 2)]
