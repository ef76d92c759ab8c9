"""predict/segment.py with several models, and how sure they are"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plans import LABELS, REGIONS, small_plan
from segpipe.core.errors import UsageError
from segpipe.core.grid import Grid
from segpipe.core.labels import Label, LabelSet
from segpipe.core.volume import Volume
from segpipe.networks.build import build
from segpipe.plan.schema import Configuration
from segpipe.predict.memory import prediction_bytes
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.segment import disagreement, entropy, segment
from segpipe.prepare.case import Prepared, prepare_image

SHAPE = (9, 10, 12)
ALL = PredictOptions(mirror=False, probabilities=True, uncertainty=True)


class Constant(nn.Module):
    """The same logits everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits_O = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        zeros = x_BCZYX[:, :1] * 0
        return [zeros + self.logits_O.view(1, -1, 1, 1, 1)]


def model_of(*networks, labels=LABELS, digest="0", **changes):
    plan = small_plan(labels).model_copy(update={"mirror_axes": ()})
    configuration = plan.configurations["3d_fullres"].model_copy(update=changes)
    return Model(plan, Configuration.model_validate(configuration.model_dump()), networks, digest)


def trained(n_networks, seed, labels=LABELS, **changes):
    """Random weights."""
    model = model_of(labels=labels, digest=str(seed), **changes)
    torch.manual_seed(seed)
    networks = tuple(build(model.configuration.network, 1, labels.n_outputs).eval() for _ in range(n_networks))
    return replace(model, networks=networks)


def coarse(n_networks=1, labels=LABELS):
    """As a second configuration: other voxels, other patch."""
    return trained(n_networks, 7, labels, spacing_mm=(3.0, 2.0, 2.0), patch_zyx=(4, 8, 8))


def prepared_for(model, seed=0):
    """Stored with other axes than the plan's, with a border of zeros."""
    image = np.zeros(SHAPE, np.float32)
    image[1:, 1:-1, :-2] = np.random.default_rng(seed).normal(50, 20, SHAPE)[1:, 1:-1, :-2]
    affine = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 3], [0, 1.25, 0, -8], [0, 0, 0, 1]])
    voxels, trace = prepare_image(Volume(image[None], Grid(SHAPE, affine)), model.plan, model.configuration)
    return Prepared(voxels, None, trace)


def segmented(options, *members):
    return segment(Ensemble(members), [prepared_for(member) for member in members], options, "case")[0]


def test_probabilities_of_configurations_are_averaged_and_logits_of_folds():
    # folds: logits (0, 2, 0) and (0, 0, 2) have the mean (0, 1, 1); a member of its own says (0, 0, ln 2)
    first = model_of(Constant(0, 2, 0), Constant(0, 0, 2))
    second = model_of(Constant(0, 0, float(np.log(2))))
    found = segmented(ALL, first, second)
    e = np.e
    expected = (np.array([1, e, e]) / (1 + 2 * e) + np.array([0.25, 0.25, 0.5])) / 2
    inside = prepared_for(first).trace
    chances = inside.turn.apply(found.probabilities_ozyx)[inside.box.slices]
    assert np.abs(chances - expected[:, None, None, None]).max() < 1e-3
    assert (inside.turn.apply(found.mask_zyx)[inside.box.slices] == 2).all()


def test_regions_are_averaged_as_probabilities_and_compared_with_one_half_once():
    # whole: 0.9 and 0.2 have the mean 0.55, painted; core: 0.9 and 0.05 have 0.475, not painted. A sigmoid of these
    # means, which nnU-Net took for years, is above one half for both: 0.63 and 0.62
    def logit(share):
        return float(np.log(share / (1 - share)))

    members = [model_of(Constant(logit(w), logit(c)), labels=REGIONS) for w, c in ((0.9, 0.9), (0.2, 0.05))]
    found = segmented(ALL, *members)
    inside = prepared_for(members[0]).trace
    assert (inside.turn.apply(found.mask_zyx)[inside.box.slices] == 1).all()
    assert found.probabilities_ozyx[:, 5, 5, 5].tolist() == pytest.approx([0.55, 0.475], abs=1e-3)


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_members_of_different_voxels_equal_the_mean_of_what_each_gives_alone(labels):
    members = (trained(2, 1, labels), coarse(1, labels))
    alone = [segmented(PredictOptions(mirror=False, probabilities=True), member) for member in members]
    mean = np.mean([one.probabilities_ozyx.astype(np.float32) for one in alone], 0)
    found = segmented(PredictOptions(mirror=False, probabilities=True), *members)
    assert found.probabilities_ozyx == pytest.approx(mean, abs=1e-3)
    decided = (
        np.abs(np.diff(np.sort(mean, 0)[-2:], axis=0)[0]) > 2e-3 if labels is LABELS else np.abs(mean - 0.5) > 2e-3
    )
    expected = labels.decode(mean.argmax(0) if labels is LABELS else mean > 0.5)
    same = found.mask_zyx == expected
    assert (same | ~(decided if labels is LABELS else decided.all(0))).all() and same.mean() > 0.98
    assert len(np.unique(found.mask_zyx)) > 1 and found.uncertainty == {}


def test_uncertainty_leaves_mask_and_probabilities_as_they_are():
    model = trained(3, 1)
    plain = segmented(PredictOptions(mirror=False, probabilities=True), model)
    found = segmented(ALL, model)
    assert (found.mask_zyx == plain.mask_zyx).mean() > 0.999
    assert found.probabilities_ozyx == pytest.approx(plain.probabilities_ozyx, abs=1e-3)
    expected = entropy(torch.from_numpy(plain.probabilities_ozyx.astype(np.float32)), LABELS).numpy()
    assert found.uncertainty["entropy"] / 200 == pytest.approx(expected, abs=5e-3)
    own = [segmented(PredictOptions(mirror=False), replace(model, networks=(n,))).mask_zyx for n in model.networks]
    votes = sum((mask != found.mask_zyx).astype(int) for mask in own)
    assert (found.uncertainty["disagreement"] == np.rint(votes * 200 / 3)).mean() > 0.999 and len(np.unique(votes)) > 1


def test_one_network_cannot_disagree_with_itself():
    found = segmented(ALL, trained(1, 1))
    assert list(found.uncertainty) == ["entropy"]
    outside = ~nonzero_of(found)
    assert outside.any() and not found.uncertainty["entropy"][outside].any()


def nonzero_of(found):
    """Inside the crop, background is not sure."""
    return found.probabilities_ozyx[0] < 1


def test_entropy_by_hand():
    shares = torch.tensor([[1, 1 / 3, 0.5], [0, 1 / 3, 0.5], [0, 1 / 3, 0]]).view(3, 1, 1, 3)
    assert entropy(shares, LABELS).flatten().tolist() == pytest.approx([0, 1, np.log(2) / np.log(3)])
    # regions: sure of both; one as likely as not; 0.25 has 0.25·2 + 0.75·log2(4/3) bits
    regions = torch.tensor([[1, 0.5, 0.25], [0, 1, 0]]).view(2, 1, 1, 3)
    assert entropy(regions, REGIONS).flatten().tolist() == pytest.approx([0, 1, 0.5 + 0.75 * np.log2(4 / 3)])


def test_disagreement_by_hand():
    mask, others = np.array([1, 1, 2]), [np.array([1, 1, 1]), np.array([1, 2, 1])]
    assert disagreement(mask, others).tolist() == [0.0, 0.5, 1.0]


def test_models_of_other_structures_or_axes_are_refused():
    first, renamed = trained(1, 1), LabelSet(labels=(Label(name="b", values=(1,)), Label(name="a", values=(2,))))
    with pytest.raises(UsageError, match=r"labels \(MR0; b 1, a 2\) and \(MR0; a 1, b 2\); expected the same names"):
        Ensemble((first, trained(1, 2, renamed)))
    turned = replace(first, plan=first.plan.model_copy(update={"axis_order": (2, 0, 1)}))
    with pytest.raises(UsageError, match=r"\(RAS \(2, 0, 1\) and RAS \(0, 1, 2\)\). Predict with each"):
        Ensemble((first, turned))


def test_the_digest_is_of_the_members_in_any_order():
    one, two = trained(1, 1), coarse()
    assert Ensemble((one,)).digest == one.digest
    assert len({Ensemble(members).digest for members in ((one, two), (two, one))}) == 1
    assert len({Ensemble(members).digest for members in ((one,), (two,), (one, two))}) == 3


def test_memory_of_networks_side_by_side_by_hand():
    # 16³ voxels of 4 bytes; members of 2.5 × 1.5 × 1 mm have 16 rows and a patch of 8: 8·16·16 voxels of 3 outputs.
    # alone: image, rows, two arrays of a slab's output, two masks; together: the slabs of all outputs
    grid, n_vox = Grid((16, 16, 16), np.diag([1.0, 1.5, 2.5, 1.0])), 16**3
    model = trained(3, 1, patch_zyx=(8, 8, 12))
    assert prediction_bytes(grid, Ensemble((model,)), PredictOptions()) == n_vox * (4 + 6 + 2 * 4 + 2)
    rows, slabs = 3 * (8 * 16 * 16) * 3 * 4, 4 * n_vox * 3 * 4
    expected = n_vox * 4 + rows + slabs + n_vox * (2 + 2)
    assert prediction_bytes(grid, Ensemble((model,)), PredictOptions(uncertainty=True)) == expected
