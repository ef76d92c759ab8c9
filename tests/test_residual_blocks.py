"""networks/residual_blocks.py, regulated.py and the scales of residual branches: published numbers, second opinions."""

from __future__ import annotations

import warnings

import pytest
import torch
from specs import unet
from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import BlockShape, BranchSum, Layers, ResidualBlock, follow_depth
from segpipe.networks.build import build
from segpipe.networks.gates import SelectiveKernel
from segpipe.networks.parts import Parts
from segpipe.networks.regulated import RecurrentCell, RegulatedBlock, RegulatedStage
from segpipe.networks.residual_blocks import (
    InceptionBranches,
    PseudoConvolution,
    residual_stage,
    residual_stages,
    through_stages,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own deprecations, met on import
    from timm.layers import SelectiveKernel as TimmSelectiveKernel
    from timm.models.inception_resnet_v2 import Block35

RELU = Parts(activation="relu", norm="batch", bias=False)
SAME = BlockShape(6, 6, (3, 3, 3), (1, 1, 1))


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def additions(network: nn.Module) -> list[BranchSum]:
    return [module for module in network.modules() if isinstance(module, BranchSum)]


# Scales


@pytest.mark.parametrize(
    ("rule", "seen", "factor"), [("none", 3.4e29, 10), ("inv_sqrt_depth", 2.76, 1.1), ("inv_depth", 1.011, 1.002)]
)
def test_growth_of_variance_over_a_hundred_residual_branches(rule, seen, factor):
    """Branches W2 relu(W1 x) that keep the variance grow it by (1 + s²)^L on average; `seen` by others, once."""
    torch.manual_seed(0)
    n, depth = 512, 100
    sums = follow_depth(nn.ModuleList(BranchSum(rule, n) for _ in range(depth)))
    start = x = torch.randn(64, n)
    for each in sums:
        hidden = torch.relu(x @ (torch.randn(n, n) * (2 / n) ** 0.5))
        x = each(x, hidden @ (torch.randn(n, n) * (1 / n) ** 0.5))
    ratio = float(x.double().var() / start.double().var())
    assert seen / factor < ratio < seen * factor


def test_the_depth_of_a_rule_is_the_number_of_additions():
    network = build(unet("residual", "3d", residual_scale="inv_depth", decoder="residual"), 1, 2)
    assert [each.factor for each in additions(network)] == [1 / 7] * 7  # blocks 1 + 2 + 1, then 2 + 1


@pytest.mark.parametrize(("n_blocks", "start"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth(n_blocks, start):
    sums = follow_depth(nn.ModuleList(BranchSum("layerscale", 3) for _ in range(n_blocks)))
    torch.testing.assert_close(sums[0].scale, torch.full((3,), start), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", ["rezero", "layerscale"])
def test_a_learned_scale_and_its_branch_leave_their_start(rule):
    torch.manual_seed(0)
    network = build(unet("residual", "3d", residual_scale=rule), 1, 2)
    network(torch.randn(1, 1, 8, 8, 8))[0].square().sum().backward()
    assert all(each.scale.grad.ne(0).any() for each in additions(network))


def test_rezero_learns_one_number_for_each_addition():
    assert BranchSum("rezero", 6).scale.shape == (1,)


@pytest.mark.parametrize("block", ["basic", "p3d_a", "p3d_cycle", "inception_residual", "convmixer"])
def test_each_block_drops_its_branch_as_often_as_it_is_told(block):
    stage = residual_stage(Layers(3, Parts(block=block)), SAME, [0.25, 0.5])
    assert [each.drop_path.fraction for each in stage.blocks] == [0.25, 0.5]


def test_a_number_stays_as_plans_have_it():
    assert Parts(residual_scale=0.5).model_dump() == {"residual_scale": 0.5}
    assert Parts().model_dump() == {}
    for wrong in ("inv_deth", 0, -1.0):
        with pytest.raises(ValueError, match="expected a number above 0, or one of none, inv_sqrt_depth"):
            Parts(residual_scale=wrong)


# Pseudo-3D


def pseudo(form, n=4, **parts):
    torch.manual_seed(0)
    return PseudoConvolution(Layers(3, Parts(**{**RELU.model_dump(), **parts}), 0), n, (3, 3, 3), form).eval()


def zero_along(module: PseudoConvolution, *, identity: bool) -> None:
    kernel = module.along[0].weight
    with torch.no_grad():
        kernel.zero_()
        if identity:
            kernel[:, :, 1, 0, 0] = torch.eye(len(kernel))


@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_pseudo_3d_has_12_weights_for_27_and_activations_where_the_authors_have_them(form):
    module, x = pseudo(form, 8), torch.randn(2, 8, 3, 4, 5)
    kernels = [p for p in module.parameters() if p.ndim > 1]
    assert sum(kernel.numel() for kernel in kernels) == 12 * 8**2
    s = functional.conv3d(x, module.within[0].weight, padding=(0, 1, 1)) / (1 + 1e-5) ** 0.5

    def along(values: Tensor) -> Tensor:
        return functional.conv3d(values, module.along[0].weight, padding=(1, 0, 0)) / (1 + 1e-5) ** 0.5

    h = s.relu()
    expected = {"a": along(h).relu(), "b": (h + along(x)).relu(), "c": (h + along(h)).relu()}[form]
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("form", "identity"), [("a", True), ("b", False), ("c", False)])
def test_pseudo_3d_without_its_axis_is_the_2d_convolution(form, identity):
    module, x = pseudo(form), torch.randn(1, 4, 3, 4, 5)
    zero_along(module, identity=identity)
    torch.testing.assert_close(module(x), module.within(x), rtol=1e-5, atol=1e-5)


def test_pseudo_3d_forms_alternate_over_all_stages_along_the_thick_axis():
    spec = unet("residual", "anisotropic", block="p3d_cycle")
    assert spec.thick_axis == 0
    network = build(spec, 1, 2)
    found = [module for module in network.modules() if isinstance(module, PseudoConvolution)]
    assert [module.form for module in found] == ["a", "b", "c", "a"]
    assert found[-1].within[0].kernel_size == (1, 3, 3) and found[-1].along[0].kernel_size == (3, 1, 1)


@pytest.mark.parametrize(("axis", "within", "along"), [(1, (3, 1, 3), (1, 3, 1)), (2, (3, 3, 1), (1, 1, 3))])
def test_pseudo_3d_splits_off_the_thick_axis_wherever_it_is(axis, within, along):
    module = PseudoConvolution(Layers(3, Parts(), axis), 4, (3, 3, 3), "a")
    assert (module.within[0].kernel_size, module.along[0].kernel_size) == (within, along)


# Inception


def test_the_inception_block_equals_timms():
    torch.manual_seed(0)
    theirs = Block35(scale=0.17).eval()
    for values in (*theirs.parameters(), *theirs.buffers()):
        if values.ndim == 1:
            nn.init.uniform_(values, 0.5, 1.5)
    make = Layers(2, Parts(**{**RELU.model_dump(), "residual_scale": 0.17, "block": "inception_residual"}))
    ours = residual_stage(make, BlockShape(320, 320, (3, 3), (1, 1)), [0.0]).blocks[0].eval()
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-5
    assert n_parameters(ours) == n_parameters(theirs)
    state = ours.state_dict()
    values = [v for name, v in theirs.state_dict().items()]
    assert [v.shape for v in state.values()] == [v.shape for v in values]
    ours.load_state_dict(dict(zip(state, values, strict=True)))
    x = torch.randn(1, 320, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_the_inception_block_of_scale_0_is_relu():
    make = Layers(3, Parts(activation="relu", residual_scale="rezero", block="inception_residual"))
    stage = follow_depth(residual_stage(make, SAME, [0.0]))
    x = torch.randn(1, 6, 3, 4, 5)
    assert torch.equal(stage(x), x.relu())


@pytest.mark.parametrize(("scale", "finite"), [(1.0, False), (0.1, True)])
def test_scaled_inception_branches_keep_thirty_blocks_without_norms_finite_in_half_precision(scale, finite):
    torch.manual_seed(0)
    make = Layers(2, Parts(activation="relu", residual_scale=scale, block="inception_residual"))
    stage = residual_stage(make, BlockShape(32, 32, (3, 3), (1, 1)), [0.0] * 30)
    for module in list(stage.modules()):
        if isinstance(module, nn.Sequential) and hasattr(module, "norm"):
            module.norm = nn.Identity()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    x = 10 * torch.randn(1, 32, 6, 6, dtype=torch.float16)
    assert bool(stage.half()(x).isfinite().all()) == finite


def test_widths_of_inception_branches_are_those_of_block35():
    branches = InceptionBranches(Layers(3, Parts()), 320, 320, (3, 3, 3)).branches
    assert [[unit[0].out_channels for unit in branch] for branch in branches] == [[32], [32, 32], [32, 48, 64]]


def test_inception_branches_follow_kernel_and_stride_and_have_a_channel_at_least():
    make = Layers(3, Parts(block="inception_residual"))
    assert InceptionBranches(make, 4, 4, (1, 3, 3)).branches[2][2][0].kernel_size == (1, 3, 3)
    assert [len(unit[0].weight) for unit in InceptionBranches(make, 3, 3, (3, 3, 3)).branches[1]] == [1, 1]
    stage = residual_stage(make, BlockShape(3, 4, (3, 3, 3), (1, 2, 2)), [0.0])
    assert stage(torch.randn(1, 3, 3, 4, 5)).shape == (1, 4, 3, 2, 3)


# Selective kernels


def selective(n_axes=2, n_features=64, **changes):
    torch.manual_seed(0)
    return SelectiveKernel(Layers(n_axes, Parts(activation="relu")), n_features, **changes)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({}, {}, 38_672),
        ({"split": False}, {"split_input": False}, 75_536),
        ({"split": False, "kernels": (3, 5), "dilations": (1, 1)}, {"split_input": False, "keep_3x3": False}, 141_072),
    ],
)
def test_selective_kernels_have_timms_number_of_parameters(ours, theirs, expected):
    with torch.device("meta"):
        assert n_parameters(selective(**ours)) == expected
        assert n_parameters(TimmSelectiveKernel(64, **theirs)) == expected


def test_selective_kernels_of_equal_branches_average_and_without_weights_are_uniform():
    module, x = selective(n_features=8, split=False, dilations=(1, 1)).eval(), torch.randn(2, 8, 5, 6)
    nn.init.zeros_(module.select.weight)
    first, second = (branch(x) for branch in module.branches)
    torch.testing.assert_close(module(x), (first + second) / 2)
    module = selective(n_features=8, split=False, dilations=(1, 1))
    module.branches[1].load_state_dict(module.branches[0].state_dict())
    torch.testing.assert_close(module(x), module.branches[0](x))


def test_a_single_selective_kernel_is_its_convolution():
    module, x = selective(n_features=8, kernels=(3,), dilations=(1,)), torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(module(x), module.branches[0](x))


@pytest.mark.parametrize("kept_axis", [None, 0])
def test_selective_kernels_of_one_slice_are_those_of_2d(kept_axis):
    flat, deep = selective(2, 8), selective(3, 8, kept_axis=kept_axis)
    weights = flat.state_dict()
    for name, values in deep.state_dict().items():
        if values.ndim == 5:
            kernel = torch.randn_like(values)  # the slices beside the only one see zeros
            kernel[:, :, 1] = weights[name]
            weights[name] = kernel
    deep.load_state_dict(weights)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], flat(x))


def test_each_slice_has_kernels_of_its_own_along_the_thick_axis():
    """Slices apart see different weights; with a mean over the map one slice would change the weights of all."""
    module, x = selective(3, 8, kernels=(1, 1), kept_axis=0), torch.randn(1, 8, 4, 5, 6)
    for branch in module.branches:
        branch[1] = nn.Identity()  # an instance norm sees all slices
    other = x.clone()
    other[:, :, 3] *= 2
    torch.testing.assert_close(module(x)[:, :, :3], module(other)[:, :, :3])
    whole = selective(3, 8, kernels=(1, 1))
    for branch in whole.branches:
        branch[1] = nn.Identity()
    assert not torch.allclose(whole(x)[:, :, :3], whole(other)[:, :, :3])


# Regulators


@pytest.mark.parametrize(("kind", "theirs"), [("lstm", nn.LSTMCell), ("gru", nn.GRUCell), ("rnn", nn.RNNCell)])
def test_a_cell_on_one_voxel_is_torchs(kind, theirs):
    torch.manual_seed(0)
    cell = RecurrentCell(Layers(3, Parts(regulator=kind)), 5, (3, 3, 3))
    reference = theirs(5, 5)
    for name, branch in (("ih", cell.seen), ("hh", cell.recalled)):
        with torch.no_grad():
            branch[0].weight[:, :, 1, 1, 1] = 1
            branch[1].weight.copy_(getattr(reference, f"weight_{name}")[..., None, None, None])
            branch[1].bias.copy_(getattr(reference, f"bias_{name}"))
    state, expected = (), None
    for x in torch.randn(3, 2, 5):
        state = cell(x[..., None, None, None], state)
        expected = reference(x, expected)
    hidden = expected if isinstance(expected, tuple) else (expected,)
    for ours, right in zip(state, hidden, strict=True):
        torch.testing.assert_close(ours.flatten(1), right)


def test_a_regulated_block_convolves_hidden_map_and_state_together():
    """The authors' X3 = W23 * [X2, H], with H from X2 and the state before."""
    torch.manual_seed(0)
    make = Layers(3, Parts(regulator="gru", activation="relu", bias=False))
    cell, block = RecurrentCell(make, 6, (3, 3, 3)), RegulatedBlock(make, 6, ResidualBlock(make, SAME))
    x, before = torch.randn(1, 6, 3, 4, 5), torch.randn(1, 6, 3, 4, 5)
    hidden = block.block.conv1(x)
    state = cell(hidden, (before,))
    last, norm = block.block.conv2
    together = torch.cat([last.weight, functional.pad(block.inform.weight, (1,) * 6)], 1)
    branch = norm(functional.conv3d(torch.cat([hidden, *state], 1), together, padding=1))
    found, after = block(x, cell, (before,))
    torch.testing.assert_close(found, (x + branch).relu(), rtol=1e-5, atol=1e-5)
    assert torch.equal(after, state[0])


@pytest.mark.parametrize("block", ["basic", "p3d_b"])
def test_a_block_that_does_not_read_its_state_is_the_plain_block(block):
    torch.manual_seed(0)
    make = Layers(3, Parts(regulator="lstm", block=block))
    stage = residual_stage(make, BlockShape(4, 6, (3, 3, 3), (2, 2, 2)), [0.0, 0.0])
    assert isinstance(stage, RegulatedStage)
    for each in stage.blocks:
        nn.init.zeros_(each.inform.weight)
    x = torch.randn(1, 4, 5, 6, 7)
    expected = stage.blocks[1].block(stage.blocks[0].block(x))
    torch.testing.assert_close(stage(x), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_the_state_goes_on_from_block_to_block_and_over_strides(kind):
    torch.manual_seed(0)
    make = Layers(3, Parts(regulator=kind))
    shapes = [BlockShape(4, 4, (3, 3, 3), (1, 1, 1)), BlockShape(4, 6, (3, 3, 3), (1, 2, 2))]
    stages = residual_stages(make, shapes, [[0.0, 0.0], [0.0]])
    maps = through_stages(stages, torch.randn(1, 4, 4, 5, 7))
    assert [tuple(each.shape[1:]) for each in maps] == [(4, 4, 5, 7), (6, 4, 3, 4)]
    fed = maps[1].square().sum()
    weights = [stages[0].cell.seen[1].weight, stages[1].enter[1].weight, stages[0].blocks[0].inform.weight]
    assert all(gradient.ne(0).any() for gradient in torch.autograd.grad(fed, weights))


def test_a_stage_without_a_state_to_read_has_no_cell():
    network = build(unet("residual", "3d", regulator="gru"), 1, 2)
    assert [isinstance(stage, RegulatedStage) for stage in network.encoder.stages] == [False, True, True]  # 1, 2, 1
    assert sum(isinstance(module, RegulatedBlock) for module in network.modules()) == 3


def test_checkpointing_changes_no_gradient_of_a_regulated_network():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build(unet("residual", "3d", regulator="lstm", checkpointing=checkpointing), 1, 2)
        network(torch.randn(1, 1, 8, 8, 8))[0].square().sum().backward()
        gradients.append([p.grad for p in network.encoder.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# Refusals


@pytest.mark.parametrize(
    ("kind", "view", "parts", "said"),
    [
        ("plain", "3d", {"regulator": "lstm"}, "does not use parts.regulator"),
        ("plain", "3d", {"residual_scale": "inv_depth"}, "has no addition"),
        ("residual", "2d", {"block": "p3d_a"}, "works along the thick axis"),
        ("residual", "2d", {"attention": "sk_axis"}, "works along the thick axis"),
        ("residual", "3d", {"block": "convmixer", "regulator": "gru"}, "block 'convmixer' has no place for regulator"),
        ("residual", "3d", {"block": "inception_residual", "regulator": "rnn"}, "has no place for regulator"),
        ("residual", "3d", {"attention": "se", "sk_split": False}, "sk_split belongs to attention sk and sk_axis"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(kind, view, parts, said):
    with pytest.raises(ValueError, match=said):
        unet(kind, view, **parts)


def test_a_block_of_other_shape_still_starts_as_the_identity_of_its_shortcut():
    network = build(unet("residual", "3d", block="p3d_cycle"), 2, 3)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    x = torch.rand(1, 6, 4, 4, 4)
    same = next(block for block in blocks if not len(block.skip) and block.conv1[0][0].in_channels == 6)
    assert torch.equal(same(x), x)
