"""train/contrast.py: supervised contrast of voxels, and training with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from specs import unet
from test_fold import plan_with, train, training_of

from segpipe.core.errors import PlanError
from segpipe.core.seeds import generator_for
from segpipe.networks.build import build
from segpipe.plan.loss import Loss
from segpipe.train.checkpoint import save_weights
from segpipe.train.contrast import VoxelContrast, supervised_contrast

LABELS = [0, 0, 1, 1, 2, 3]
TERMS = {"dice": 1.0, "supcon_voxel": 0.1}
VALUES = {  # temperature: with labels, and where only the two views of an image are alike; Khosla et al.'s code
    0.07: (5.349237, 2.064747),
    0.1: (4.057338, 1.758196),
    0.5: (2.441338, 1.981509),
    1.0: (2.394802, 2.164888),
}
SCALED = {0.1: 5.796197, 0.5: 17.438126, 1.0: 34.211460}  # with its default base temperature of 0.07


def features() -> torch.Tensor:
    """Two views of six images, sin(0.7 i + 1.3 v + 0.5 k (i + 1)), view after view."""
    i, v, k = np.ogrid[:6, :2, :8]
    return torch.from_numpy(np.sin(0.7 * i + 1.3 * v + 0.5 * k * (i + 1))).transpose(0, 1).reshape(12, 8)


@pytest.mark.parametrize("temperature", VALUES)
def test_published_values(temperature):
    labelled, views = VALUES[temperature]
    assert supervised_contrast(features(), torch.tensor(LABELS * 2), temperature) == pytest.approx(labelled, abs=1e-6)
    assert supervised_contrast(features(), torch.arange(6).repeat(2), temperature) == pytest.approx(views, abs=1e-6)


@pytest.mark.parametrize("temperature", SCALED)
def test_the_authors_scale_is_a_factor(temperature):
    found = supervised_contrast(features(), torch.tensor(LABELS * 2), temperature) * temperature / 0.07
    assert found == pytest.approx(SCALED[temperature], abs=1e-5)


def test_a_lonely_voxel_is_no_anchor_but_others_are_pushed_from_it():
    """One view: four anchors, each with one alike, over five others, written out voxel by voxel."""
    found = supervised_contrast(features()[:6], torch.tensor(LABELS), 0.1)
    z = features()[:6] / features()[:6].norm(dim=1, keepdim=True)
    each = []
    for anchor, positive in ((0, 1), (1, 0), (2, 3), (3, 2)):
        others = [torch.exp(z[anchor] @ z[other] / 0.1) for other in range(6) if other != anchor]
        each.append(-torch.log(torch.exp(z[anchor] @ z[positive] / 0.1) / sum(others)))
    assert float(found) == pytest.approx(float(sum(each) / 4), abs=1e-9)
    fewer = supervised_contrast(features()[:4], torch.tensor(LABELS[:4]), 0.1)
    assert fewer < found


def test_without_two_of_a_label_it_is_0_with_gradient_0():
    for labels in (torch.arange(3), torch.zeros(0)):
        one = torch.randn(len(labels), 4, requires_grad=True)
        value = supervised_contrast(one, labels, 0.1)
        value.backward()
        assert value == 0 and not one.grad.any()


@pytest.mark.parametrize("view", ["2d", "3d", "anisotropic"])
def test_voxels_are_few_and_labelled(view):
    """Of each label at most as many as the plan says; none of a patch without a label, none that is ignored."""
    spec = unet("plain", view)
    network = build(spec, 1, 3)
    contrast = VoxelContrast(network, spec, Loss(terms=TERMS, supcon_voxels=5, supcon_temperature=0.5))
    indices = torch.zeros(2, 8, 16, 16, dtype=torch.long)
    indices[0, :, :8, :8], indices[0, :, 8:], indices[1, :4] = 1, -1, -1
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 16, 16))
    assert not contrast._maps, "watched in training only"
    network(torch.randn(2, 1, 8, 16, 16))
    map_ = contrast._maps[0].detach()
    assert map_.shape[-2:] == (8, 8), "half the resolution"
    value = contrast(indices, generator_for(0))
    value.backward()
    step = 1 if map_.ndim == 4 else 8 // map_.shape[2]
    coarse = indices[:, step // 2 :: step, 1::2, 1::2]
    places, labels = contrast._sample(coarse, generator_for(0))
    b, z, y, x = np.unravel_index(places.numpy(), coarse.shape)
    found = map_[8 * b + z, :, y, x] if map_.ndim == 4 else map_[b, :, z, y, x]
    expected = 0.1 * supervised_contrast(contrast.projection(found), labels, 0.5)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert value > 0 and all(p.grad is not None for p in contrast.parameters())
    places, labels = contrast._sample(indices, generator_for(1))
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 5
    assert torch.equal(indices.flatten()[places], labels) and int(places.max()) < indices[0].numel()
    again, _ = contrast._sample(indices, generator_for(1))
    assert torch.equal(again, places)
    contrast.loss = Loss(terms=TERMS, supcon_voxels=2000)
    assert len(contrast._sample(torch.arange(4096).view(2, 8, 16, 16) % 2, generator_for(1))[0]) == 1024


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_training_with_it_goes_on_bit_for_bit_and_forgets_the_projection(optimizer, tmp_path: Path):
    terms = {"dice": 1.0, "ce": 1.0, "supcon_voxel": 0.1}
    plan = plan_with(loss=Loss(terms=terms), precision="fp32", optimizer=optimizer)
    whole, half, again = training_of(plan), training_of(plan), training_of(plan)
    before = [p.detach().clone() for p in whole.contrast.parameters()]
    train(whole, 5)
    train(half, 2)
    again.restore(half.state(finished=False))
    train(again, 3)
    for one, other in ((whole.network, again.network), (whole.contrast, again.contrast)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, whole.contrast.parameters(), strict=True))
    save_weights(tmp_path / "w.safetensors", whole.predictor, {})
    plain = training_of(plan_with(precision="fp32", optimizer=optimizer))
    assert set(load_file(tmp_path / "w.safetensors")) == set(plain.network.state_dict())
    train(plain, 5)
    pairs = zip(plain.network.parameters(), whole.network.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs), "the term does nothing to the network"


def test_what_cannot_work_is_refused():
    with pytest.raises(PlanError, match="alone does not train the layers that make logits"):
        training_of(plan_with(loss=Loss(terms={"supcon_voxel": 0.1})))
    terms = {"dice": 1.0, "supcon_voxel": 0.1}
    spec = unet("plain", "3d").model_copy(update={"kind": "segresnet"})
    with pytest.raises(PlanError, match=r"network\.kind segresnet does not have"):
        VoxelContrast(torch.nn.Identity(), spec, Loss(terms=terms))
    with pytest.raises(ValueError, match="compiled: true with the term supcon_voxel of loss"):
        plan_with(loss=Loss(terms=terms), compiled=True)
