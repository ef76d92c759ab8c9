"""networks/convnext.py and networks/spec.py."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from monai.networks.nets.mednext import create_mednext
from specs import unet
from torch import nn

from segpipe.networks.blocks import BlockShape, Layers
from segpipe.networks.build import build
from segpipe.networks.convnext import ConvNeXtBlock, ResponseNorm, upkern
from segpipe.networks.cost import cost
from segpipe.networks.parts import Parts
from segpipe.networks.spec import SIZES, mednext

STRIDES = ((1, 1, 1), *((2, 2, 2),) * 5)  # a planner's, of a patch of 128 mm³ and more: one stage more than MedNeXt
KERNELS = ((3, 3, 3),) * 6


def n_parameters(spec):
    with torch.device("meta"):
        network = build(spec, 1, 3)
    return sum(p.numel() for p in network.parameters())


def with_parts(spec, **parts):
    return spec.model_copy(update={"parts": spec.parts.model_copy(update=parts)})


def small(**parts):
    """Five stages as MedNeXt's, narrow."""
    return with_parts(mednext("b", STRIDES, KERNELS, features=2), **parts)


def made(spec, seed=0):
    torch.manual_seed(seed)
    return build(spec, 1, 3)


# The authors' networks (1 channel, 3 labels, deep supervision) have one parameter more: a dummy for checkpointing.
@pytest.mark.parametrize(
    ("size", "kernel", "published"),
    [
        ("s", 3, 5_553_840),
        ("b", 3, 10_529_232),
        ("m", 3, 17_551_888),
        ("l", 3, 61_782_192),
        ("s", 5, 5_983_472),
        ("b", 5, 10_958_864),
        ("m", 5, 18_263_760),
        ("l", 5, 62_995_824),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(size, kernel, published):
    assert n_parameters(mednext(size, STRIDES, KERNELS, kernel=kernel)) == published - 1


@pytest.mark.parametrize(("features", "published"), [(32, 61_969_507), (64, 246_536_387)])
def test_version_two_has_the_published_numbers_of_parameters(features, published):
    spec = mednext("l", STRIDES, KERNELS, features=features, response_norm="sum")
    assert n_parameters(with_parts(spec, deep_supervision=False)) == published


def test_the_planners_strides_and_kernels_are_kept():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    spec = mednext("l", strides, kernels, kernel=5)
    assert spec.strides_zyx == strides
    assert spec.kernels_zyx == ((1, 5, 5), (1, 5, 5), (5, 5, 5), (5, 5, 5))
    assert (spec.features, spec.blocks) == ((32, 64, 128, 256), (3, 4, 8, 8))
    assert (spec.decoder_convolutions, spec.parts.expansion) == ((3, 4, 8), (3, 4, 8, 8))
    flat = mednext("s", ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    assert [o.shape for o in build(flat, 1, 2)(torch.zeros(1, 1, 3, 9, 8))] == [(1, 2, 3, 9, 8), (1, 2, 3, 5, 4)]


def test_the_sizes_are_read_without_torch():
    code = "import sys, segpipe.networks.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- second opinion: MONAI, whose blocks and size S are MedNeXt's ---

RENAMED = {
    "depthwise": "conv1",
    "expand": "conv2",
    "reduce": "conv3",
    "skip": "res_conv",
    "response.scale": "global_resp_gamma",
    "response.shift": "global_resp_beta",
}


def take_block(block, theirs, prefix=""):
    """Copy MONAI's weights into a block."""
    for name, parameter in block.named_parameters():
        for own, other in RENAMED.items():
            name = name.replace(own, other)
        parameter.data.copy_(theirs[prefix + name].reshape(parameter.shape))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
    ("their_kind", "n_out", "step", "is_up"),
    [(MedNeXtBlock, 4, 1, False), (MedNeXtDownBlock, 6, 2, False), (MedNeXtUpBlock, 3, 2, True)],
)
def test_blocks_equal_those_of_monai(their_kind, n_out, step, is_up, kernel, flat):
    torch.manual_seed(0)
    n_axes = 2 if flat else 3
    theirs = their_kind(4, n_out, 3, kernel, True, "group", f"{n_axes}d", global_resp_norm=True)
    for parameter in theirs.parameters():
        parameter.data.add_(torch.rand_like(parameter), alpha=0.3)  # response norms begin as the identity
    shape = BlockShape(4, n_out, (kernel,) * n_axes, (step,) * n_axes)
    block = ConvNeXtBlock(Layers(n_axes, Parts(response_norm="mean")), shape, 3, is_up=is_up)
    take_block(block, theirs.state_dict())
    x = torch.randn(2, 4, *(6, 5, 8)[:n_axes])
    torch.testing.assert_close(block(x), theirs(x))


def test_size_s_equals_that_of_monai():
    torch.manual_seed(0)
    theirs = create_mednext("S", in_channels=2, out_channels=3, deep_supervision=True)
    network = build(mednext("s", STRIDES, KERNELS), 2, 3)
    weights = theirs.state_dict()
    take = {"encoder.stem.": "stem.", "bottleneck_head.": "out_blocks.0.conv_out."}
    take |= {f"decoder.seg_layers.{i}.": f"out_blocks.{i + 1}.conv_out." for i in range(3)}
    take["decoder.seg_layers.3."] = "out_0.conv_out."
    for name, parameter in network.named_parameters():
        own = next((prefix for prefix in take if name.startswith(prefix)), None)
        if own is not None:
            value = weights[take[own] + name.removeprefix(own)]  # their heads are transposed convolutions
            parameter.data.copy_(value.transpose(0, 1) if "out_" in take[own] and value.ndim > 1 else value)
    for stage in range(5):
        down, *blocks = network.encoder.stages[stage].blocks if stage else (None, *network.encoder.stages[0].blocks)
        if down is not None:
            take_block(down, weights, f"down_blocks.{stage - 1}.")
        for index, block in enumerate(blocks):
            take_block(block, weights, f"enc_stages.{stage}.{index}." if stage < 4 else f"bottleneck.{index}.")
    for stage in range(4):
        take_block(network.decoder.transpconvs[stage].blocks[0], weights, f"up_blocks.{stage}.")
        for index, block in enumerate(network.decoder.stages[stage].blocks):
            take_block(block, weights, f"dec_stages.{stage}.{index}.")
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        for own_output, their_output in zip(network(x), theirs(x), strict=True):
            torch.testing.assert_close(own_output, their_output, rtol=1e-4, atol=1e-5)


# --- blocks, by hand ---


def without_branch(shape, *, is_up=False):
    """A block of one channel that adds nothing to its skip of weight 1."""
    block = ConvNeXtBlock(Layers(2, Parts()), shape, 2, is_up=is_up)
    for layer in (block.reduce, block.skip):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(block.reduce.weight)
    nn.init.ones_(block.skip.weight)
    return block


def test_the_way_down_and_up_by_hand():
    shape = BlockShape(1, 1, (3, 3), (1, 2))
    row = torch.tensor([[[[1.0, 2, 3, 4, 5]]]])
    below = without_branch(shape)(row)
    assert below.tolist() == [[[[1, 3, 5]]]]
    assert without_branch(shape, is_up=True)(below).tolist() == [[[[0, 1, 0, 3, 0, 5]]]]


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_stride_leaves_no_voxel_out_though_the_kernel_is_1(step):
    shape = BlockShape(2, 2, (1, 1), (1, step))
    down, up = (ConvNeXtBlock(Layers(2, Parts()), shape, 2, is_up=is_up) for is_up in (False, True))
    down.norm, up.norm = nn.Identity(), nn.Identity()  # it would carry every voxel everywhere
    x = torch.randn(1, 2, 2, 4 * step, requires_grad=True)
    below = down(x)
    assert below.shape == (1, 2, 2, 4)
    below.sum().backward()
    assert x.grad.all()
    raised = up(below)
    assert raised.shape == x.shape
    moved = (up(below + 1) - raised)[0, 0, 0] != 0
    assert moved.tolist() == [False] * (step - 1) + [True] * (3 * step + 1)  # zeros in front


def test_the_branch_is_scaled_and_not_the_skip():
    full, half = (
        ConvNeXtBlock(Layers(2, Parts(residual_scale=s)), BlockShape(2, 2, (3, 3), (1, 1)), 2) for s in (1, 0.5)
    )
    half.load_state_dict(full.state_dict())
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(half(x) - x, 0.5 * (full(x) - x))


def test_response_norm_by_hand():
    # Channels (3, 0) and (0, 4) have norms 3 and 4. Scales 7 and 14, shifts 0 and 1:
    # sum 7: 3 + 7 · 3 · 3/7 = 12 and 0; 0 + 1 = 1 and 4 + 14 · 4 · 4/7 + 1 = 37. Mean 3.5: twice what is added.
    x = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    for divisor, expected in (("sum", [[12, 0], [1, 37]]), ("mean", [[21, 0], [1, 69]])):
        norm = ResponseNorm(2, divisor)
        assert torch.equal(norm(x), x)
        norm.scale.data, norm.shift.data = torch.tensor([7.0, 14.0]), torch.tensor([0.0, 1.0])
        torch.testing.assert_close(norm(x)[0, :, 0], torch.tensor(expected, dtype=torch.float32))


def test_response_norm_of_a_map_too_large_for_float16():
    norm = ResponseNorm(2, "sum").half()
    nn.init.ones_(norm.scale)
    x = torch.full((1, 2, 64, 64, 64), 200, dtype=torch.float16)  # norm 200 · 512 = 102400, beyond 65504
    assert norm(x).unique().tolist() == [300]  # 200 + 200 · 1/2


def test_response_norm_of_nothing_has_finite_gradients():
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    ResponseNorm(2, "mean")(x).sum().backward()
    assert x.grad.isfinite().all()


# --- networks ---


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(33, 64)] * 3))
def test_the_result_is_as_large_as_the_image(edges):
    with torch.no_grad():
        outputs = made(small())(torch.zeros(1, 1, *edges))
    expected = [edges]
    for _ in range(4):
        expected.append(tuple(-(-edge // 2) for edge in expected[-1]))
    assert [tuple(o.shape[2:]) for o in outputs] == expected


def test_new_weights_are_within_their_fan_and_response_norms_are_the_identity():
    network, version_two = made(small()), made(small(response_norm="sum"))
    x = torch.randn(1, 1, 32, 32, 32)
    assert torch.equal(network(x)[0], version_two(x)[0])
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            bound = module.weight[0].numel() ** -0.5
            assert max(module.weight.abs().max(), module.bias.abs().max()) <= bound
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert len(norms) == 9 * 2 + 8
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_checkpointing_changes_no_output_and_no_gradient():
    x = torch.randn(2, 1, 32, 32, 32)
    results = []
    for checkpointing in (False, True):
        network = made(small(checkpointing=checkpointing, drop_path_fraction=0.5, response_norm="sum"))
        torch.manual_seed(1)  # the same paths are dropped
        outputs = network(x)
        sum(o.square().mean() for o in outputs).backward()
        results.append([*outputs, *(p.grad for p in network.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_checkpointing_keeps_little():
    spec = mednext("s", STRIDES[:3], KERNELS[:3], features=8)
    kept_bytes = [
        cost(with_parts(spec, checkpointing=on), 1, 3, (32, 32, 32), 1).kept_activation_bytes for on in (True, False)
    ]
    assert kept_bytes[0] < 0.2 * kept_bytes[1]
    assert [size for size, row in SIZES.items() if row.checkpointing] == ["m", "l"]


@pytest.mark.parametrize(
    "parts",
    [
        {"norm": "layer", "response_norm": "mean", "decoder_expansion": (3, 1)},
        {"norm": "group", "attention": "se", "attention_position": "block", "residual_scale": 0.5},
        {"attention": "cbam", "attention_position": "after_add", "stem_kernel_zyx": (1, 3, 3), "checkpointing": True},
        {"bottleneck": "aspp_deeplab", "dilations_zyx": ((1, 1, 1), (1, 2, 2)), "bottleneck_features": 12},
    ],
    ids=["layer norm", "se", "cbam", "pyramid"],
)
@pytest.mark.parametrize("short", [False, True], ids=["fp32", "bf16"])
def test_every_part_learns(parts, short):
    network = made(unet("convnext", "anisotropic", **parts))
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        outputs = network(100 * torch.randn(2, 1, 6, 21, 32))
    loss = sum(o.float().square().mean() for o in outputs)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_expansion_is_that_of_the_stage_a_block_leads_to():
    network = made(unet("convnext", "3d", expansion=(2, 3, 5), decoder_expansion=(7, 4)))
    encoder, decoder = network.encoder.stages, network.decoder
    hidden = [stage.blocks[0].expand.out_channels for stage in [*encoder, *decoder.transpconvs, *decoder.stages]]
    # From 4, 4 and 6 channels in the encoder; up from 8 and 6; 6 and 4 in the decoder, the deepest first.
    assert hidden == [2 * 4, 3 * 4, 5 * 6, 4 * 8, 7 * 6, 4 * 6, 7 * 4]
    plain = made(unet("convnext", "3d"))
    assert plain.decoder.stages[0].blocks[0].expand.out_channels == 4 * 6


def test_drop_path_leaves_prediction_alone():
    x = torch.randn(2, 1, 32, 32, 32)
    network, certain = made(small(drop_path_fraction=0.9)), made(small())
    assert torch.equal(network.eval()(x)[0], certain.eval()(x)[0])
    assert not torch.equal(network.train()(x)[0], certain.train()(x)[0])


# --- UpKern ---


def test_upkern_by_hand():
    # Centres of five voxels over the edges of three: -0.2, 0.4, 1, 1.6, 2.2.
    kernel = torch.tensor([[[[10.0, 20.0, 40.0]]]])
    larger = upkern({"w": kernel}, {"w": torch.zeros(1, 1, 1, 5)})["w"]
    torch.testing.assert_close(larger, torch.tensor([[[[10.0, 14.0, 20.0, 32.0, 40.0]]]]))


@given(st.floats(-10, 10, width=32), st.sampled_from([(1, 3, 3), (3, 3, 3)]))
def test_upkern_keeps_constant_kernels_constant(value, kernel):
    larger = upkern(
        {"w": torch.full((2, 1, *kernel), value)}, {"w": torch.zeros(2, 1, *(k + 2 * (k > 1) for k in kernel))}
    )
    torch.testing.assert_close(larger["w"], torch.full_like(larger["w"], value))


def test_upkern_continues_kernel_3_as_kernel_5():
    source = made(small())
    larger = build(mednext("b", STRIDES, KERNELS, features=2, kernel=5), 1, 3)
    fitted = upkern(source.state_dict(), larger.state_dict())
    larger.load_state_dict(fitted)
    changed = {name for name, value in source.state_dict().items() if value.shape != fitted[name].shape}
    assert changed == {name for name in fitted if name.endswith("depthwise.weight")}
    assert all(torch.equal(fitted[name], value) for name, value in source.state_dict().items() if name not in changed)
    # Trilinear interpolation is one after the other along each axis.
    name = "encoder.stages.0.blocks.0.depthwise.weight"
    one_axis = torch.tensor([[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0.4, 0.6], [0, 0, 1]])
    expected = torch.einsum("ai,bj,ck,noijk->noabc", one_axis, one_axis, one_axis, source.state_dict()[name])
    torch.testing.assert_close(fitted[name], expected)


def test_upkern_leaves_alone_what_fits_or_differs_in_more_than_the_kernel():
    weights = made(small()).state_dict()
    same = upkern(weights, weights)
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    odd = {
        "channels": torch.ones(2, 1, 3, 3),
        "axes": torch.ones(2, 1, 3, 3),
        "vector": torch.ones(3),
        "extra": torch.ones(1),
    }
    like = {"channels": torch.ones(4, 1, 5, 5), "axes": torch.ones(2, 1, 5, 5, 5), "vector": torch.ones(5)}
    kept = upkern(odd, like)
    assert all(kept[name] is odd[name] for name in odd)
