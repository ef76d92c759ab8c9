"""Surfaces of digitised balls against the spheres that they are of: how far each model is from the truth."""

from __future__ import annotations

import numpy as np
import pytest

from segpipe.evaluate.metrics import METRICS, measure

SPACINGS = ((1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (5.0, 0.5, 0.5), (2.0, 2.0, 2.0))
CASES = {  # radii in mm, and how far apart the centres are in mm along Z, Y, X
    "concentric": (20.0, 17.0, (0.0, 0.0, 0.0)),
    "moved along X": (20.0, 20.0, (0.0, 0.0, 4.0)),
    "moved along Z": (20.0, 20.0, (6.0, 0.0, 0.0)),
    "lesion": (4.0, 2.5, (0.0, 0.0, 1.0)),
}
TOLERANCE_MM = 2.0
N_PHASES = 8
QUANTITIES = ("hd95", "assd", "masd", "nsd")


def true_values(radius, other_radius, shift):
    """From 40 000 points spread evenly over each sphere; a point's distance to a sphere is |distance to centre - r|."""
    n = 40_000
    height = 1 - (2 * np.arange(n) + 1) / n
    turn = np.pi * (1 + 5**0.5) * np.arange(n)
    flat = np.sqrt(1 - height**2)
    unit = np.stack([height, flat * np.sin(turn), flat * np.cos(turn)], axis=1)
    one = np.abs(np.linalg.norm(unit * radius - shift, axis=1) - other_radius)
    other = np.abs(np.linalg.norm(unit * other_radius + shift, axis=1) - radius)
    weights = np.repeat([radius**2, other_radius**2], n)
    pooled = np.concatenate([one, other])
    return {
        "hd95": max(np.quantile(one, 0.95), np.quantile(other, 0.95)),
        "assd": np.average(pooled, weights=weights),
        "masd": (one.mean() + other.mean()) / 2,
        "nsd": weights[pooled <= TOLERANCE_MM].sum() / weights.sum(),
    }


def digitised(radius, centre_mm, spacing, shape):
    axes = zip(np.ogrid[tuple(slice(n) for n in shape)], centre_mm, spacing, strict=True)
    return sum((index * mm - middle) ** 2 for index, middle, mm in axes) <= radius**2


@pytest.fixture(scope="module")
def errors():
    """Value less truth, by metric: every case, spacing and phase."""
    random, found = np.random.default_rng(0), {}
    for radius, other_radius, shift in CASES.values():
        truth = true_values(radius, other_radius, np.array(shift))
        for spacing in SPACINGS:
            shape = tuple(int(2 * (radius + 8) / mm) + 3 for mm in spacing)
            for _ in range(N_PHASES):
                centre = np.array(shape) * spacing / 2 + random.uniform(-0.5, 0.5, 3) * spacing
                masks = (
                    digitised(radius, centre, spacing, shape),
                    digitised(other_radius, centre + shift, spacing, shape),
                )
                _, values = measure(*masks, spacing, TOLERANCE_MM, METRICS)
                for name, value in values.items():
                    stem = name.split("_")[0]
                    if stem in QUANTITIES:
                        found.setdefault(name, []).append(value - truth[stem])
    return {name: float(np.sqrt(np.mean(np.square(gaps)))) for name, gaps in found.items()}


@pytest.mark.parametrize(("name", "bound"), [("assd_mc", 0.25), ("masd_mc", 0.25), ("nsd_mc", 0.11), ("hd95_mc", 0.7)])
def test_mc_is_near_the_truth(errors, name, bound):
    assert errors[name] <= bound


@pytest.mark.parametrize("stem", ["assd", "masd", "nsd"])
def test_no_other_model_is_as_near(errors, stem):
    assert errors[f"{stem}_mc"] < 0.75 * min(errors[stem], errors[f"{stem}_voxel"])
