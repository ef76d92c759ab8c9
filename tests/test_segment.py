"""predict/segment.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plans import LABELS, REGIONS, small_plan, small_spec
from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import Volume
from segpipe.networks.build import build
from segpipe.plan.schema import Configuration
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import slabs
from segpipe.predict.segment import Batching, logit_rows, segment
from segpipe.prepare.case import Prepared, prepare_image

CPU = torch.device("cpu")


def small_model(labels=LABELS, n_networks=1, n_axes=3, **changes):
    """Random weights; the images' edges are 2 × 1 × 1.25 mm, the plan's 2.5 × 1.5 × 1."""
    plan = small_plan(labels).model_copy(update=changes)
    size = {"patch_zyx": (8, 8, 12) if n_axes == 3 else (1, 8, 12), "network": small_spec(n_axes=n_axes)}
    values = plan.configurations["3d_fullres"].model_copy(update=size)
    configuration = Configuration.model_validate(values.model_dump())
    torch.manual_seed(1)
    networks = [build(configuration.network, 1, labels.n_outputs).eval() for _ in range(n_networks)]
    return Model(plan, configuration, tuple(networks), "0")


def prepared_image(model, shape=(16, 18, 20), seed=0):
    """Stored with other axes than the plan's, a border of zeros, a ball of brightness."""
    image = np.zeros(shape, np.float32)
    image[2:, 1:-1, :-3] = np.random.default_rng(seed).normal(50, 20, shape)[2:, 1:-1, :-3]
    affine = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 3], [0, 1.25, 0, -8], [0, 0, 0, 1]])  # x runs to P, y to S, z to R
    voxels, trace = prepare_image(Volume(image[None], Grid(shape, affine)), model.plan, model.configuration)
    return Prepared(voxels, None, trace)


def found_in(model, prepared, options=PredictOptions(), batching=Batching()):  # noqa: B008 (frozen)
    return segment(Ensemble((model,)), [prepared], options, "case", batching)[0]


def whole_logits(model, prepared, options=PredictOptions(), batching=Batching()):  # noqa: B008 (frozen)
    """On the cropped image, in one slab."""
    (slab,) = slabs(logit_rows(model, prepared, options, batching), prepared.trace, 10**6)
    return slab.logits().numpy()


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("n_axes", [2, 3])
def test_an_image_becomes_a_mask_on_its_own_grid(labels, n_axes):
    model = small_model(labels, n_networks=2, n_axes=n_axes)
    prepared = prepared_image(model)
    found = found_in(model, prepared, PredictOptions(probabilities=True), Batching(3))
    logits = whole_logits(model, prepared, batching=Batching(3))
    chosen = logits.argmax(0) if labels is LABELS else np.where(logits[1] > 0, 2, logits[0] > 0)
    turned = np.zeros(prepared.trace.turn.permute((16, 18, 20)), np.uint8)
    turned[prepared.trace.box.slices] = chosen
    assert found.mask_zyx.dtype == labels.mask_dtype
    assert (found.mask_zyx == prepared.trace.turn.undo(turned)).all() and found.mask_zyx.any()
    assert found.probabilities_ozyx.shape == (labels.n_outputs, 16, 18, 20)
    assert found_in(model, prepared).probabilities_ozyx is None


def test_folds_are_averaged_before_the_strongest_output_is_taken():
    model = small_model(n_networks=3)
    prepared, options = prepared_image(model), PredictOptions(mirror=False)
    alone = [Model(model.plan, model.configuration, (network,), "0") for network in model.networks]
    mean = np.mean([whole_logits(one, prepared, options) for one in alone], 0)
    assert whole_logits(model, prepared, options) == pytest.approx(mean, abs=1e-5)


def test_batches_leave_the_logits_as_they_are():
    model = small_model()
    prepared = prepared_image(model)
    expected = whole_logits(model, prepared)
    batched = whole_logits(model, prepared, batching=Batching(5, sum_on=CPU))
    assert batched == pytest.approx(expected, abs=1e-5)


def test_mirroring_swaps_left_and_right_as_the_plan_says():
    labels = LabelSet(labels=tuple(Label(name=name, values=(v,)) for v, name in enumerate(("left", "right"), 1)))
    plain = small_model(labels, mirror_axes=(2,))
    swapping = Model(plain.plan.model_copy(update={"mirror_swaps": (("left", "right"),)}), *model_parts(plain))
    prepared = prepared_image(plain)
    straight = whole_logits(plain, prepared, PredictOptions(mirror=False))
    flipped = 2 * whole_logits(plain, prepared) - straight
    expected = (straight + flipped[[0, 2, 1]]) / 2
    assert whole_logits(swapping, prepared) == pytest.approx(expected, abs=1e-5)
    assert np.abs(straight - expected).max() > 0.01


def model_parts(model):
    return model.configuration, model.networks, model.digest


@pytest.mark.parametrize("shape", [(3, 2, 2), (4, 40, 5), (3, 3, 60)])
def test_images_smaller_or_longer_than_the_patch(shape):
    model = small_model()
    volume = Volume(np.arange(1.0, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape), Grid(shape, np.eye(4)))
    voxels, trace = prepare_image(volume, model.plan, model.configuration)
    assert found_in(model, Prepared(voxels, None, trace)).mask_zyx.shape == shape
