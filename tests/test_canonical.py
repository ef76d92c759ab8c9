"""Networks in a canonical frame: coordinates, transforms there and back, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage
from specs import unet

from plans import small_plan
from segpipe.core.errors import PlanError
from segpipe.networks.blocks import Layers
from segpipe.networks.build import build
from segpipe.networks.canonical import (
    Canonicalised,
    Locator,
    canonical_image,
    edge_ratios,
    transform_matrices,
    warp,
)
from segpipe.networks.canonical_transforms import canonical_coordinates, commute
from segpipe.networks.cost import cost
from segpipe.networks.parts import Parts
from segpipe.plan.edit import edit_plan

NETWORK = "configurations.3d_fullres.network.parts.canonicalise"
STEP = math.log(math.sqrt(2) / 0.1) / 32  # of the logarithm of the radius


def blobs(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A smooth image near the middle, (1, 1, …)."""
    torch.manual_seed(seed)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    total = torch.zeros(shape)
    for _ in range(4):
        centre, width = 0.7 * (torch.rand(len(shape)) - 0.5), 0.1 + 0.1 * torch.rand(1)
        total += torch.exp(-((mesh - centre) / width).square().sum(-1))
    return total[None, None]


def moved(image: torch.Tensor, names: tuple[str, ...], amounts: list[float]) -> torch.Tensor:
    coordinates = canonical_coordinates(names, image.ndim - 2)
    matrices = transform_matrices(names, torch.tensor([amounts]), image.ndim - 2)
    return warp(image, matrices, edge_ratios(coordinates, image.shape[2:]))


def test_a_rotation_and_a_scale_shift_the_log_polar_image_by_whole_steps():
    names = ("rot_z", "iso_scale")
    coordinates = canonical_coordinates(names, 2)
    image = blobs((256, 256))
    before = canonical_image(image, coordinates)
    # x(T p): what was at angle a and radius r appears at a - 4 steps, r - 3 steps
    after = canonical_image(moved(image, names, [4 * math.pi / 16, 3 * STEP]), coordinates)
    expected = before.roll(-4, 2)[..., 3:]
    inner = (slice(None), slice(None), slice(None), slice(0, 24))  # beyond, the image lies outside the patch
    assert float((after[..., :-3] - expected)[inner].abs().max()) < 0.0015 * 4
    assert float((after[..., :-3] - expected)[inner].abs().mean()) < 0.0015
    assert float((after - before).abs().max()) > 0.5


SETS = [
    ("rot_z", "iso_scale"),
    ("rot_x", "iso_scale"),
    ("rot_z", "plane_scale", "shift_z"),
    ("scale_z", "scale_y", "scale_x"),
    ("shift_z", "shift_y", "shift_x"),
    ("shift_z", "scale_x"),
]


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_a_transform_moves_the_canonical_image_along_its_coordinate_alone(names):
    coordinates = canonical_coordinates(names, 3)
    image = blobs((48, 48, 48), 3)
    before = canonical_image(image, coordinates)
    for place, entry in enumerate(coordinates.entries):
        if entry.transform is None:
            continue
        step = {"angle": math.pi / 16, "log_radius": STEP, "log": math.log(10) / 32, "linear": 1 / 16}[entry.kind]
        amounts = [2 * step if name == entry.transform else 0.0 for name in names]
        after = canonical_image(moved(image, names, amounts), coordinates)
        kept = slice(6, 24)  # neither wrapped around nor outside the patch
        a, b = (m.movedim(place + 2, 2)[:, :, kept] for m in (after.roll(2, place + 2), before))
        assert float((a - b).abs().mean()) < 0.01, entry
        unmoved = after.movedim(place + 2, 2)[:, :, kept]
        assert float((a - b).abs().mean()) < 0.5 * float((unmoved - b).abs().mean()), entry


def test_commuting_is_found_from_the_generators():
    assert commute("rot_z", "shift_z") and commute("scale_x", "scale_y") and commute("iso_scale", "plane_scale")
    for first, second in (("rot_z", "rot_x"), ("rot_z", "scale_x"), ("iso_scale", "shift_z"), ("shift_y", "rot_z")):
        assert not commute(first, second)


@pytest.mark.parametrize(("names", "said"), [
    (["rot_z", "rot_x"], "rot_z and rot_x do not commute"),
    (["rot_z", "scale_x"], "rot_z and scale_x do not commute"),
    (["rot_z", "iso_scale", "shift_z"], "iso_scale and shift_z do not commute"),
    (["rot_z", "scale_z"], "no coordinates are known in which all of rot_z, scale_z"),
    (["rot_z", "rot_z"], "names a transform twice"),
    (["rot_z"], r"canonicalise rot_z turns voxels of 1.5 × 1 mm; expected equal edges"),
    (["rot"], "did you mean 'rot_"),
])  # fmt: skip
def test_what_cannot_be_canonical_is_refused(names, said):
    with pytest.raises(PlanError, match=said):
        edit_plan(small_plan(), [f"{NETWORK}={names}"])


def test_a_network_of_slices_has_no_third_axis():
    for name, said in (("rot_x", "is for volumes"), ("plane_scale", "take iso_scale"), ("shift_z", "is for volumes")):
        with pytest.raises(ValueError, match=said):
            unet("plain", "2d", canonicalise=(name,))
    assert unet("plain", "2d", canonicalise=("rot_z", "iso_scale"))


@pytest.mark.parametrize("shape", [(40, 64, 48), (64, 48)], ids=["3d", "2d"])
def test_there_and_back_gives_the_same_mask(shape):
    names, image = ("rot_z", "iso_scale"), blobs(shape, 2)
    there = moved(image, names, [0.6, -0.3])
    again, mask = moved(there, names, [-0.6, 0.3]) > 0.3, image > 0.3
    assert float((there - image).abs().max()) > 0.3
    assert 2 * float((again & mask).sum()) / float(again.sum() + mask.sum()) > 0.99


def test_a_rotation_is_that_of_scipy_and_by_hand():
    # the voxel at angle 90° (y = +1 of the middle) is what a quarter turn brings to angle 0 (x = +1)
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 2, 1] = 1
    turned = moved(image, ("rot_z",), [math.pi / 2])
    assert turned[0, 0, 1, 2] == pytest.approx(1, abs=1e-6) and float(turned.sum()) == pytest.approx(1, abs=1e-5)
    smooth = blobs((64, 64))
    expected = ndimage.rotate(smooth[0, 0].numpy(), 20, reshape=False, order=1, mode="nearest")
    found = moved(smooth, ("rot_z",), [math.radians(20)])[0, 0].numpy()
    other = moved(smooth, ("rot_z",), [math.radians(-20)])[0, 0].numpy()
    assert min(abs(found - expected).max(), abs(other - expected).max()) < 0.01


def test_the_prediction_follows_a_quarter_turn_exactly():
    torch.manual_seed(0)
    coordinates = canonical_coordinates(("rot_z", "iso_scale"), 3)
    locate = Locator(Layers(3, Parts()), coordinates, 1)
    for parameter in locate.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    image = blobs((24, 32, 32), 5)
    first = locate(canonical_image(image, coordinates)).detach()
    turned = moved(image, ("rot_z",), [math.pi / 2])
    second = locate(canonical_image(turned, coordinates)).detach()
    turn = float(second[0, 0] - first[0, 0])
    assert math.remainder(turn + math.pi / 2, 2 * math.pi) == pytest.approx(0, abs=1e-3)
    assert float(second[0, 1]) == pytest.approx(float(first[0, 1]), abs=1e-3)


def test_a_network_that_turns_with_its_image_gives_the_same_logits_turned():
    torch.manual_seed(0)
    network = build(unet("plain", "3d", canonicalise=("rot_z", "iso_scale")), 1, 2).eval()
    image = blobs((16, 32, 32), 6)
    with torch.no_grad():
        straight, turned = network(image)[0], network(image.rot90(1, (3, 4)))[0]
    inner = (slice(None), slice(None), slice(None), slice(8, 24), slice(8, 24))
    gap = (straight.rot90(1, (3, 4)) - turned)[inner].abs().max()
    plain = build(unet("plain", "3d"), 1, 2).eval()
    with torch.no_grad():
        usual = (plain(image)[0].rot90(1, (3, 4)) - plain(image.rot90(1, (3, 4)))[0])[inner].abs().max()
    assert float(gap) < 1e-3 < float(usual)


class Nowhere(torch.nn.Module):
    """A locator that finds every image in its place."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_zeros(len(image), 3)


def test_no_transform_leaves_the_networks_logits():
    torch.manual_seed(0)
    network = build(unet("residual", "anisotropic", canonicalise=("shift_z", "shift_y", "shift_x")), 1, 2).eval()
    assert isinstance(network, Canonicalised)
    network.locate = Nowhere()
    x = torch.randn(1, 1, 8, 16, 16)
    torch.testing.assert_close(network(x)[0], network.network(x)[0], atol=1e-4, rtol=1e-4)


def test_the_frame_is_part_of_the_cost():
    plain, framed = (
        cost(unet("plain", "3d", canonicalise=names), 1, 2, (16, 32, 32), 2) for names in ((), ("rot_z", "iso_scale"))
    )
    # two convolutions with 5³ taps to 16 features at 16³ and 8³ points, and a profile of 8 values for each coordinate
    assert framed.n_macs_forward - plain.n_macs_forward == 2 * (
        125 * 16 * 16**3 + 125 * 16 * 16 * 8**3 + 2 * 5 * 16 * 8
    )
    assert framed.kept_activation_bytes > plain.kept_activation_bytes
