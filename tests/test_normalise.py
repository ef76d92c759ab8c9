"""prepare/case.py: normalising"""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.plan.schema import Normalisation
from segpipe.prepare.case import normalise


def one(values: list[float], scheme: Normalisation) -> list[float]:
    image = np.array(values, np.float32).reshape(1, 1, 1, -1)
    return normalise(image, [scheme]).reshape(-1).tolist()


def test_ct_by_hand():
    scheme = Normalisation(scheme="ct", low=-100, high=100, mean=20, std=10)
    assert one([-500, 20, 30, 500], scheme) == [-12, 0, 1, 8]  # (clipped - 20) / 10


def test_zscore_by_hand():
    assert one([1, 3], Normalisation(scheme="zscore")) == [-1, 1]  # mean 2, SD 1


def test_zscore_within_nonzero_leaves_zeros_and_ignores_them():
    assert one([0, 1, 3, 0], Normalisation(scheme="zscore", within_nonzero=True)) == [0, -1, 1, 0]


def test_rescaling_by_hand():
    assert one([2, 4, 6], Normalisation(scheme="rescale_0_1")) == [0, 0.5, 1]
    assert one([0, 51, 255], Normalisation(scheme="rgb_0_1")) == pytest.approx([0, 0.2, 1])
    assert one([0, 51], Normalisation(scheme="none")) == [0, 51]


@pytest.mark.parametrize("scheme", ["zscore", "rescale_0_1"])
def test_a_constant_image_becomes_zero(scheme):
    assert one([5, 5, 5], Normalisation(scheme=scheme)) == [0, 0, 0]


def test_the_image_itself_is_left_alone_and_may_be_a_view():
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    before, view = image.copy(), np.flip(image, 2).transpose(0, 3, 1, 2)
    for scheme in ("zscore", "rescale_0_1", "rgb_0_1", "none"):
        result = normalise(view, [Normalisation(scheme=scheme)])
        assert result.flags.c_contiguous and not np.shares_memory(result, image) and (image == before).all()


def test_nothing_within_nonzero_stays_zero():
    assert one([0, 0, 0], Normalisation(scheme="zscore", within_nonzero=True)) == [0, 0, 0]


def test_the_sd_of_a_large_offset_is_exact():
    values = [1e6, 1e6 + 2]  # squares summed in float32 would lose it
    assert one(values, Normalisation(scheme="zscore")) == [-1, 1]


def test_equals_nnunets_schemes():
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as theirs

    image = np.random.default_rng(1).normal(50, 30, (1, 5, 6, 7)).astype(np.float32)
    image[0, :2] = 0
    seg = np.where(image[0] != 0, 0, -1)
    stats = {"mean": 40.0, "std": 20.0, "percentile_00_5": -10.0, "percentile_99_5": 90.0}
    pairs = [
        (theirs.CTNormalization, Normalisation(scheme="ct", low=-10, high=90, mean=40, std=20), False),
        (theirs.ZScoreNormalization, Normalisation(scheme="zscore"), False),
        (theirs.ZScoreNormalization, Normalisation(scheme="zscore", within_nonzero=True), True),
        (theirs.RescaleTo01Normalization, Normalisation(scheme="rescale_0_1"), False),
    ]
    for kind, ours, use_mask in pairs:
        expected = kind(use_mask_for_norm=use_mask, intensityproperties=stats).run(image[0].copy(), seg.copy())
        assert normalise(image, [ours])[0] == pytest.approx(expected, abs=1e-5), kind
