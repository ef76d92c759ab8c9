"""train/augmentation beside batchgeneratorsv2, whose transforms nnunetv2 trains with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform, create_affine_matrix_3d
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import stats

from segpipe.plan.augmentation import Augmentation
from segpipe.train.augmentation.apply import apply
from segpipe.train.augmentation.draws import Draws, Scope, draw

NNUNET = Augmentation.from_name("nnunet")
PATCH = (12, 14, 10)
N_DRAWS = 3000
ONE = np.ones((1, 1), np.float32)


def scope(patch=PATCH, values=(1, 2, 3)) -> Scope:
    return Scope(NNUNET, patch, (0, 1, 2), 2, (), (), values)


def nothing() -> Draws:
    draws = draw(replace(scope(), augmentation=Augmentation.from_name("none")), 1, 1, np.random.default_rng(0))
    assert not draws.is_moved.any() and (draws.gamma == 1).all()
    return draws


def smooth(shape) -> torch.Tensor:
    """(1, Z, Y, X): an image without noise, so that where it was looked up matters little and how matters much."""
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")
    return (torch.sin(axes[0] / 2) + torch.cos(axes[1] / 3) * axes[2] / shape[2])[None]


def ours(image: torch.Tensor, patch=PATCH, **changes: object) -> torch.Tensor:
    labels = torch.zeros(1, *image.shape[1:], dtype=torch.int64)
    return apply(image[None], labels, replace(nothing(), **changes), scope(patch))[0][0]


@pytest.mark.parametrize("seed", range(5))
def test_turned_and_scaled_images_and_labels_are_the_same(seed):
    generator = np.random.default_rng(seed)
    affine = create_affine_matrix_3d(generator.uniform(-0.5, 0.5, 3), [generator.uniform(0.7, 1.4)] * 3)
    region = (20, 22, 17)
    image, labels = smooth(region), torch.zeros(1, *region, dtype=torch.int64)
    for value in (1, 2, 3):
        labels[:, 3 * value : 3 * value + 8, 2:15, value:] = value
    draws = replace(nothing(), turns=affine[None].astype(np.float32), is_moved=np.array([True]))
    x, y = apply(image[None], labels, draws, scope())

    their = SpatialTransform(PATCH, 0, False, border_mode_seg="constant", padding_value_seg=-1)
    grid = (torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in PATCH], indexing="ij"), -1)).double()
    grid = (grid @ torch.from_numpy(affine.T) / (torch.tensor(region) / 2)).flip(-1).float()
    expected = their._apply_to_image(image, grid=grid)
    expected_labels = their._apply_to_segmentation(labels, grid=grid)
    expected_labels[expected_labels == -1] = 0
    assert torch.allclose(x[0], expected, atol=2e-5)
    assert (y[0] != expected_labels[0]).float().mean() < 0.003  # theirs are rounded to half a thousandth: equal ones
    assert len(y.unique()) == 4


@pytest.mark.parametrize("sigma", [0.5, 0.58, 0.6, 0.9, 0.92, 1.0])
def test_blurred_images_are_the_same(sigma):
    image = torch.randn(1, *PATCH)
    sigmas = np.array([sigma, 1.5 - sigma, 0.7])
    their = GaussianBlurTransform()
    expected = their._apply_to_image(image.clone(), apply_to_channel=torch.tensor([True]), sigmas=[sigmas.tolist()])
    assert torch.allclose(ours(image, blur_vox=sigmas[None, None].astype(np.float32)), expected, atol=1e-5)


@pytest.mark.parametrize("patch", [PATCH, (3, 14, 11), (1, 9, 12)])
@pytest.mark.parametrize("zoom", [0.5, 0.61, 0.99])
def test_coarse_images_are_the_same(patch, zoom):
    image = torch.randn(1, *patch)
    flat = patch != PATCH
    their = SimulateLowResolutionTransform((0.5, 1), False, True, (0,) if flat else ())
    scales = torch.tensor([[1 if flat else zoom, zoom, zoom]])
    expected = their._apply_to_image(image.clone(), apply_to_channel=[0], scales=scales)
    assert torch.allclose(ours(image, patch, lowres_zoom=ONE * zoom), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [0.7, 1.2, 1.5])
def test_contrast_and_gamma_are_the_same(factor):
    image = torch.randn(1, *PATCH)
    only = dict(apply_to_channel=torch.tensor([0]))
    contrast = ContrastTransform((0.75, 1.25), True, False)
    expected = contrast._apply_to_image(image.clone(), multipliers=torch.tensor([factor]), **only)
    assert torch.allclose(ours(image, contrast=ONE * factor), expected, atol=1e-5)
    for name, inverted in (("gamma", False), ("gamma_inverted", True)):
        gamma = GammaTransform((0.7, 1.5), float(inverted), False, 1, 1)
        numbers = dict(retain_stats=[True], invert_image=[inverted], gamma=torch.tensor([factor]))
        expected = gamma._apply_to_image(image.clone(), **numbers, **only)
        assert torch.allclose(ours(image, **{name: ONE * factor}), expected, atol=1e-5)


def parameters_of_theirs(patch, flat: bool) -> dict[str, list[float]]:
    """What nnunetv2's transforms draw for an image of two channels, by our names; channels pooled."""
    angle = np.deg2rad(180 if flat else 30)
    composed = nnUNetTrainer.get_training_transforms(patch, (-angle, angle), None, (0, 1, 2), flat)
    assert isinstance(composed, ComposeTransforms)
    found: dict[str, list[float]] = {}
    image = torch.zeros(2, *patch)

    def keep(name: str, values: object) -> None:
        found.setdefault(name, []).extend(np.asarray(values, np.float64).reshape(-1).tolist())

    np.random.seed(0)  # noqa: NPY002 (its transforms draw from the global generators)
    torch.manual_seed(0)
    names = iter(("noise_std", "blur_vox", "brightness", "contrast", "lowres_zoom", "gamma_inverted", "gamma"))
    for transform in composed.transforms:
        if isinstance(transform, SpatialTransform):
            size = image[:, 0] if flat else image
            for _ in range(N_DRAWS):
                affine = transform.get_parameters(image=size)["affine"]
                if affine is None:
                    continue
                scale = abs(np.linalg.det(affine)) ** (1 / len(affine))
                keep("scale", scale if abs(scale - 1) > 1e-9 else [])
                is_turned = not np.allclose(affine / scale, np.eye(len(affine)), atol=1e-9)
                keep("turn", np.arctan2(affine[1, 0], affine[0, 0]) if is_turned else [])
        elif isinstance(transform, RandomTransform):
            name = next(names)
            for _ in range(N_DRAWS):
                if not transform.get_parameters()["apply_transform"]:
                    continue
                numbers = transform.transform.get_parameters(image=image)
                values = next(numbers[k] for k in ("sigmas", "multipliers", "scales", "gamma") if k in numbers)
                keep(name, np.asarray(values)[:, -1] if name == "lowres_zoom" and len(values) else values)
        elif "axes" in transform.get_parameters(image=image):
            keep("mirror", [len(transform.get_parameters(image=image)["axes"]) for _ in range(N_DRAWS)])
    return found


def parameters_of_ours(patch, flat: bool) -> dict[str, list[float]]:
    draws = draw(scope(patch), N_DRAWS, 2, np.random.default_rng(0))
    turns = draws.turns.astype(np.float64)[:, 1:, 1:] if flat else draws.turns.astype(np.float64)
    scales = np.abs(np.linalg.det(turns)) ** (1 / turns.shape[-1])
    is_turned = ~np.isclose(turns / scales[:, None, None], np.eye(turns.shape[-1]), atol=1e-6).all((1, 2))
    found = {
        "scale": scales[np.abs(scales - 1) > 1e-6],
        "turn": np.arctan2(turns[:, 1, 0], turns[:, 0, 0])[is_turned],
        "noise_std": draws.noise_std[draws.noise_std > 0],
        "blur_vox": draws.blur_vox[draws.blur_vox > 0],
        "mirror": draws.mirrored.sum(1),
    }
    for name in ("brightness", "contrast", "lowres_zoom", "gamma_inverted", "gamma"):
        values = getattr(draws, name)
        found[name] = values[values != 1]
    return {name: np.asarray(values, np.float64).reshape(-1).tolist() for name, values in found.items()}


@pytest.mark.parametrize(("patch", "flat"), [((8, 10, 9), False), ((2, 10, 9), True)])
def test_parameters_are_drawn_as_often_and_from_the_same_distributions(patch, flat):
    theirs, own = parameters_of_theirs(patch, flat), parameters_of_ours(patch, flat)
    assert set(theirs) == set(own)
    for name, values in theirs.items():
        # 10 quantities, each asked twice, for two patches: by chance one in 250 runs of fixed seeds would fail
        assert stats.ks_2samp(values, own[name]).pvalue > 1e-4, name
        per_draw = 6 if name == "blur_vox" else 1 if name in ("scale", "turn", "noise_std", "mirror") else 2
        counts = [[len(v), N_DRAWS * per_draw - len(v)] for v in (values, own[name])]
        if name != "mirror":  # one number for each draw
            # channels and axes of a sample are chosen together, so that there are fewer independent ones
            p = stats.chi2_contingency(np.array(counts) / per_draw).pvalue
            assert p > 1e-4, (name, counts)
