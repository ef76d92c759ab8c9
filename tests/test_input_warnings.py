"""The input guard: what is said of an image that is unlike the training cases, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import SHAPE_ZYX, oblique_affine, tiny_image

from plans import small_plan
from segpipe.core.grid import Grid
from segpipe.core.volume import Volume
from segpipe.fingerprint.record import CaseFingerprint, Fingerprint, Intensities
from segpipe.plan.schema import Normalisation, Plan
from segpipe.plan.training_stats import ChannelRange, Span, TrainingStats
from segpipe.predict.input_warnings import warnings_of
from segpipe.prepare.case import prepare_image

CT = Normalisation(scheme="ct", low=-100.0, high=300.0, mean=80.0, std=50.0)


def measured(case_id: str, spacing_mm: tuple[float, float, float], orientation: str = "RAS") -> CaseFingerprint:
    return CaseFingerprint(
        case_id=case_id,
        site=None,
        orientation=orientation,
        spacing_mm=spacing_mm,
        shape_zyx=SHAPE_ZYX,
        cropped_shape_zyx=SHAPE_ZYX,
        labels={},
        content="",
        signature="",
    )


def fingerprint(
    *cases: CaseFingerprint,
    low: float = 50.0,
    high: float = 150.0,
    least: float = 40.0,
    least_range: float | None = 100.0,
) -> Fingerprint:
    found = Intensities(
        mean=100,
        std=20,
        min=least,
        median=100,
        max=160,
        percentile_00_5=low,
        percentile_99_5=high,
        least_range=least_range,
    )
    return Fingerprint(
        orientation="RAS",
        channels=("MR0",),
        cases=cases,
        intensities=(found,),
        median_relative_size_after_cropping=1.0,
    )


SEEN = ChannelRange(low=50, high=150, min=40, least_range=100)
TRAINED = fingerprint(measured("a", (2.5, 1.5, 1.0)), measured("b", (2.5, 1.5, 1.0)))


def said(
    voxels_zyx: np.ndarray, affine: np.ndarray | None = None, plan: Plan | None = None, trained: Fingerprint = TRAINED
) -> list[str]:
    """Warnings for an image, by default on the grid of the training cases."""
    plan = plan or small_plan()
    grid = Grid(voxels_zyx.shape, oblique_affine() if affine is None else affine)
    volume = Volume(voxels_zyx[None].astype(np.float32), grid)
    trace = prepare_image(volume, plan, plan.configurations["3d_fullres"])[1]
    return list(warnings_of(volume, trace, plan, TrainingStats.of(trained, plan, ["a", "b"])))


def test_an_image_like_the_training_cases_is_not_warned_of() -> None:
    assert said(tiny_image(7)) == []


def test_voxels_and_field_of_view_are_told_by_direction_and_range() -> None:
    thick = np.diag([1.0, 1.5, 5.0, 1.0])
    assert said(tiny_image(1), thick) == [  # 8 slices of 5 mm
        "voxels of 5 mm head–feet, trained on 2.5 to 2.5 mm",
        "a field of view of 40 mm head–feet, trained on 20 to 20 mm",
    ]
    lying = small_plan().model_copy(update={"axis_order": (2, 0, 1)})
    assert said(tiny_image(1), thick, lying)[0].startswith("voxels of 5 mm head–feet, trained on 2.5 to 2.5")
    sideways = np.array([[0, 0, 5.0, 0], [1.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])  # slices from left to right
    assert "voxels of 5 mm left–right, trained on 1 to 1 mm" in said(tiny_image(1), sideways)


@pytest.mark.parametrize(("edge_mm", "is_odd"), [(3.125, False), (3.126, True), (2.0, False), (1.999, True)])
def test_the_margin_is_a_quarter_of_the_range(edge_mm: float, is_odd: bool) -> None:
    found = said(tiny_image(1), np.diag([1.0, 1.5, edge_mm, 1.0]))
    assert any(text.startswith("voxels") for text in found) == is_odd  # 2.5 × 1.25 = 3.125, 2.5 / 1.25 = 2


def test_an_unknown_orientation_is_told() -> None:
    (text,) = said(tiny_image(1), np.diag([-1.0, -1.5, 2.5, 1.0]))
    assert text == "stored as LPS, trained on RAS: it is turned, check left and right"


def test_what_was_cropped_does_not_count_for_the_field_of_view() -> None:
    padded = np.pad(tiny_image(1), ((20, 20), (0, 0), (0, 0)))
    assert said(padded) == []
    assert [text.split(" of ")[0] for text in said(padded + 1)][0] == "a field"  # noqa: RUF015


def test_intensities_of_another_scale_are_told() -> None:
    (text,) = said(tiny_image(1) * 100)
    assert text.startswith("channel MR0: intensities from ") and "hardly any in the range of the structures" in text
    assert "far less contrast" in said(tiny_image(1) / 100 + 99)[0]
    assert said(np.full(SHAPE_ZYX, 7.0)) == ["channel MR0: every voxel is 7"]
    assert "channel MR0: every voxel is 0" in said(np.zeros(SHAPE_ZYX))


def test_contrast_is_compared_with_the_case_that_has_least_of_it() -> None:
    cases = measured("a", (2.5, 1.5, 1.0)), measured("b", (2.5, 1.5, 1.0))
    other_units = fingerprint(*cases, high=100_000.0, least_range=100.0)  # one scanner counts a thousandfold
    assert said(tiny_image(1), trained=other_units) == []
    assert "far less contrast" in said(tiny_image(1) / 100 + 99, trained=other_units)[0]
    assert said(tiny_image(1), trained=fingerprint(*cases, high=100_000.0, least_range=None)) == []
    in_hounsfield = small_plan().model_copy(update={"normalisation": (CT,)})
    unknown = fingerprint(*cases, high=100_000.0, least_range=None)
    assert "far less contrast" in said(tiny_image(1), plan=in_hounsfield, trained=unknown)[0]


def test_ct_without_values_below_zero_is_told() -> None:
    plan = small_plan().model_copy(update={"normalisation": (CT,)})
    trained = fingerprint(measured("a", (2.5, 1.5, 1.0)), low=-50.0, least=-200.0)
    assert said(tiny_image(1) - 80, plan=plan, trained=trained) == []
    (text,) = said(np.maximum(tiny_image(1), 0), plan=plan, trained=trained)
    assert "holds no value below 0" in text and "Hounsfield" in text


def test_without_numbers_of_the_training_only_constant_images_are_told() -> None:
    plan = small_plan()
    volume = Volume(tiny_image(1)[None] * 1000, Grid(SHAPE_ZYX, np.diag([9.0, 9.0, 9.0, 1.0])))
    trace = prepare_image(volume, plan, plan.configurations["3d_fullres"])[1]
    assert warnings_of(volume, trace, plan, None) == ()


def test_the_record_is_of_the_training_cases_alone_and_folds_join(tmp_path: Path) -> None:
    found = fingerprint(measured("a", (2.5, 1.5, 1.0)), measured("b", (5.0, 1.5, 1.0)), measured("c", (3, 2, 1), "LPS"))
    plan = small_plan()
    first, second = TrainingStats.of(found, plan, ["a"]), TrainingStats.of(found, plan, ["b", "c"])
    assert first is not None and second is not None and TrainingStats.of(found, plan, ["gone"]) is None
    assert first.spacing_mm[0] == Span(low=2.5, high=2.5) and second.spacing_mm[0] == Span(low=3, high=5)
    both = first.join(second)
    assert both.spacing_mm[0] == Span(low=2.5, high=5) and both.orientations == ("LPS", "RAS")
    assert both.extent_mm[0] == Span(low=8 * 2.5, high=8 * 5) and both.intensities == (SEEN,)
    both.save(tmp_path / "trained_on.json")
    assert TrainingStats.load(tmp_path / "trained_on.json") == both
