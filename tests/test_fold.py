"""train/fold.py"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from specs import VARIANTS
from torch import nn

from plans import LABELS, small_plan, small_spec
from segpipe.core.errors import PlanError, SetupError
from segpipe.data.splits import Fold
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Plan
from segpipe.prepare.places import find_places
from segpipe.prepare.store import PatchCase
from segpipe.train.fold import TRAIN, FoldData, FoldTraining

RATE = 0.01


def case(seed: int) -> PatchCase:
    """Noise with a bright block of each label."""
    generator = np.random.default_rng(seed)
    indices = np.zeros((12, 14, 16), np.int16)
    indices[3:7, 4:9, 2:7], indices[5:9, 4:9, 8:13] = 1, 2
    image = (generator.normal(0, 0.5, indices.shape) + indices).astype(np.float32)[None]
    return PatchCase(Path(f"case_{seed}"), image, indices, find_places(indices, LABELS).by_label())


def plan_with(batch_size: int = 2, network: NetworkSpec | None = None, **training: Any) -> Plan:
    """A small plan without augmentation."""
    plan = small_plan(**{"augmentation": "none", "momentum": 0.9, **training})
    changes = {"batch_size": batch_size, "network": network or small_spec()}
    full = plan.configurations["3d_fullres"].model_copy(update=changes)
    return plan.model_copy(update={"configurations": {"3d_fullres": full}})


def training_of(plan: Plan) -> FoldTraining:
    """A fold of three cases on the CPU."""
    ids = ("case_0", "case_1", "case_2")
    cases = [case(seed) for seed in range(3)]
    data = FoldData(0, Fold(train=ids[:2], validation=ids[2:]), cases[:2], cases[2:])
    return FoldTraining(plan, plan.configurations["3d_fullres"], data, torch.device("cpu"), is_new=True)


def train(fold: FoldTraining, n_steps: int, rate: float = RATE) -> list[float]:
    """So many steps; the losses."""
    return [fold.step(fold.draw(TRAIN, fold.at.iteration), rate) for _ in range(n_steps)]


def weights_of(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_fold_learns_and_says_how_well():
    fold = training_of(plan_with(optimizer="adamw"))
    losses = train(fold, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    loss, dice = fold.validate(2)
    assert loss < losses[0] and list(dice) == ["dice_a", "dice_b"] and max(dice.values()) > 0.3


FOUR_STAGES = NetworkSpec(
    kind="plain",
    features=(4, 6, 8, 8),
    strides_zyx=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)),
    kernels_zyx=((1, 3, 3), *((3, 3, 3),) * 3),
    blocks=(1, 1, 2, 1),
    decoder_convolutions=(1, 2, 1),
)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_five_steps_are_those_of_nnunets_trainer(batch_dice):
    plan = plan_with(network=FOUR_STAGES, momentum=0.99)
    full = plan.configurations["3d_fullres"].model_copy(update={"batch_dice": batch_dice})
    fold = training_of(plan.model_copy(update={"configurations": {"3d_fullres": full}}))
    theirs = nnunets_trainer(fold, batch_dice=batch_dice)
    for step in range(5):
        theirs.lr_scheduler.step(step)
        batches = fold.draw(TRAIN, step)
        loss = nnUNetTrainer.train_step(theirs, nnunets_batch(*batches))["loss"]
        assert fold.step(batches, 0.01 * (1 - step / 5) ** 0.9) == pytest.approx(float(loss), abs=1e-5)
    assert (weights_of(fold.network) - weights_of(training_of(plan).network)).abs().max() > 1e-2
    expected = dict(theirs.network.named_parameters())
    for name, weights in fold.network.named_parameters():
        assert torch.allclose(weights, expected[name], atol=1e-6), name


def nnunets_trainer(fold: FoldTraining, *, batch_dice: bool) -> Any:
    """What its train_step needs, made by its own functions; the network has the fold's weights, by the same names."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    spec = FOUR_STAGES
    settings = {"norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU, "conv_bias": True, "deep_supervision": True}
    settings |= {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
    shape = (spec.features, nn.Conv3d, spec.kernels_zyx, spec.strides_zyx, spec.blocks)
    network = PlainConvUNet(1, len(spec.features), *shape, 3, spec.decoder_convolutions, **settings)
    network.load_state_dict(fold.network.state_dict(), strict=False)  # theirs names the encoder's layers twice
    theirs = SimpleNamespace(
        device=torch.device("cpu"),
        network=network,
        grad_scaler=None,
        is_ddp=False,
        enable_deep_supervision=True,
        label_manager=SimpleNamespace(has_regions=False, ignore_label=None),
        configuration_manager=SimpleNamespace(batch_dice=batch_dice),
        initial_lr=0.01,
        weight_decay=3e-5,
        num_epochs=5,
        _do_i_compile=lambda: False,
        _get_deep_supervision_scales=lambda: [None] * 3,
    )
    theirs.loss = nnUNetTrainer._build_loss(theirs)
    theirs.optimizer, theirs.lr_scheduler = nnUNetTrainer.configure_optimizers(theirs)
    return theirs


def nnunets_batch(batch: Any) -> dict[str, Any]:
    """With labels at every resolution, brought down by nnU-Net's transform."""
    scales = [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]
    brought_down = DownsampleSegForDSTransform(scales)
    levels = [brought_down(segmentation=indices[None].short())["segmentation"] for indices in batch.indices.each]
    return {"data": batch.images.stack(), "target": [torch.stack(level) for level in zip(*levels, strict=True)]}


def test_accumulated_gradients_are_those_of_the_larger_batch():
    whole = training_of(plan_with(batch_size=4))
    parts = training_of(plan_with(batch_size=2, gradient_accumulation=2))
    (batch,) = whole.draw(TRAIN, 0)
    for number, part in enumerate(parts.draw(TRAIN, 0)):  # of the last ones, on labels, each has its share
        assert torch.equal(part.images.stack(), batch.images.stack()[number::2])
        assert part.case_ids == batch.case_ids[number::2]
    assert train(whole, 3) == pytest.approx(train(parts, 3), abs=1e-5)
    assert torch.allclose(weights_of(whole.network), weights_of(parts.network), atol=1e-6)


def test_clipping_by_hand():
    batch = training_of(plan_with()).draw(TRAIN, 0)
    moved = {}
    for clip in (0.0, 0.1, 1e6):
        fold = training_of(plan_with(gradient_clip=clip, momentum=0.0, weight_decay=0.0))
        before = weights_of(fold.network)
        fold.step(batch, 1.0)
        moved[clip] = float((weights_of(fold.network) - before).norm())
    assert moved[0.1] == pytest.approx(0.1, rel=1e-3)  # plain descent at rate 1 moves by the gradient
    assert moved[0.0] == pytest.approx(moved[1e6]) and moved[0.0] > 0.1


RECIPES = [
    {"optimizer": "sgd"},
    {"optimizer": "adamw", "precision": "bf16"},
    {"optimizer": "muon", "weight_average": 0.9, "learning_rate": 1e-3},
    {"optimizer": "sgd", "precision": "fp16", "gradient_accumulation": 2},
    {"optimizer": "muon", "channels_last": True, "augmentation": "nnunet"},
    {"optimizer": "muon+sam_on", "precision": "fp16", "gradient_accumulation": 2, "augmentation": "light"},
    {"optimizer": "spam", "spam_reset_steps": 3, "spam_warmup_steps": 1, "spam_quiet_steps": 1, "spam_density": 0.5},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe.values())))
def test_a_restored_fold_goes_on_bit_for_bit(recipe):
    expect_to_go_on(plan_with(**recipe))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_network_goes_on_bit_for_bit_in_bf16(name):
    expect_to_go_on(plan_with(network=VARIANTS[name]("3d"), optimizer="muon", precision="bf16", learning_rate=1e-3))


def expect_to_go_on(plan: Plan) -> None:
    """A fold that is restored after two steps, against one that takes four."""
    whole, first, second = (training_of(plan) for _ in range(3))
    losses = train(whole, 4)
    train(first, 2)
    saved = io.BytesIO()
    torch.save(first.state(finished=False), saved)
    saved.seek(0)
    second.restore(torch.load(saved, weights_only=True))
    assert second.at.iteration == 2 and train(second, 2) == losses[2:]
    assert torch.equal(weights_of(whole.network), weights_of(second.network))
    assert torch.equal(weights_of(whole.predictor), weights_of(second.predictor))
    assert whole.validate(1) == second.validate(1)


def test_validation_leaves_batch_norms_alone_and_training_goes_on():
    network = small_spec().model_copy(update={"parts": small_spec().parts.model_copy(update={"norm": "batch"})})
    for average in (0.0, 0.5):
        fold = training_of(plan_with(network=network, weight_average=average))
        train(fold, 1)
        before = {name: value.clone() for name, value in fold.predictor.state_dict().items()}
        fold.validate(2)
        assert all(torch.equal(value, before[name]) for name, value in fold.predictor.state_dict().items())
        assert fold.network.training


def test_a_loss_that_is_not_finite_is_an_error_with_advice():
    fold = training_of(plan_with())
    batch = fold.draw(TRAIN, 0)
    batch[0].images.flat[:] = torch.nan
    with pytest.raises(PlanError, match=r"the loss is nan at iteration 0.*learning_rate=0\.0033\)\.$"):
        fold.step(batch, RATE)


def test_in_float16_a_step_that_overflows_is_skipped_and_a_loss_that_never_becomes_finite_is_an_error():
    fold = training_of(plan_with(precision="fp16"))
    before, batch = weights_of(fold.network), fold.draw(TRAIN, 0)
    batch[0].images.flat[:] = 1e30  # infinite in float16
    assert not np.isfinite(fold.step(batch, RATE))
    assert torch.equal(weights_of(fold.network), before)
    assert fold.scaler.get_scale() == 2**15  # half of torch's first
    with pytest.raises(PlanError, match=r"the loss is .*precision=fp32\.$"):
        for _ in range(20):
            fold.step(batch, RATE)


def test_channels_last_changes_the_order_in_memory_and_not_the_loss():
    plain, last = training_of(plan_with()), training_of(plan_with(channels_last=True))
    kernel = next(p for p in last.network.parameters() if p.ndim == 5 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
    assert train(plain, 3) == pytest.approx(train(last, 3), abs=1e-5)


def test_two_dimensional_networks_take_channels_last_too():
    plan = plan_with(network=small_spec(n_axes=2), channels_last=True)
    assert np.isfinite(train(training_of(plan), 1)).all()


def test_compiling_is_asked_for_on_a_cpu_and_keeps_the_names_of_weights():
    plain, compiled = training_of(plan_with()), training_of(plan_with(compiled=True, weight_average=0.9))
    is_compiled = [fold.network._compiled_call_impl is not None for fold in (plain, compiled)]  # no public way to ask
    assert is_compiled == [False, True] and compiled.predictor._compiled_call_impl is not None
    assert list(compiled.network.state_dict()) == list(plain.network.state_dict())


def test_compiling_without_a_compiler_is_named_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    with pytest.raises(SetupError, match=r"compiled: true needs a compiler \(.*g\+\+\), .*training.compiled=false"):
        training_of(plan_with(compiled=True))
    assert training_of(plan_with()).network._compiled_call_impl is None


def test_checkpointing_keeps_the_losses():
    parts = small_spec().parts.model_copy(update={"checkpointing": True})
    kept = training_of(plan_with())
    repeated = training_of(plan_with(network=small_spec().model_copy(update={"parts": parts})))
    assert train(kept, 2) == pytest.approx(train(repeated, 2), abs=1e-6)
