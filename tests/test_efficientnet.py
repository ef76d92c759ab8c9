"""networks/efficientnet.py, its table, and the specs of effnet.py."""

from __future__ import annotations

import warnings

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from segpipe.networks.blocks import BlockShape, Layers
from segpipe.networks.build import build
from segpipe.networks.efficientnet import LatePadding, MobileBlock
from segpipe.networks.efficientnet_table import levels, stem_features
from segpipe.networks.initial_weights import start_from
from segpipe.networks.parts import InitialWeights
from segpipe.networks.spec import NetworkSpec, effnet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own deprecations, met on import
    import timm
    from monai.networks.nets.efficientnet import EfficientNetBNFeatures

ISOTROPIC = (1, 1, 1), *((2, 2, 2),) * 5
FLAT = (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)


def spec_of(size: str = "b0", strides=ISOTROPIC, kernels=None, n_axes: int = 3, **parts: object) -> NetworkSpec:
    """With parts exchanged; for 2 axes the strides' Z is left out."""
    strides = tuple(step[-n_axes:] for step in strides)
    kernels = kernels or ((3,) * n_axes,) * len(strides)
    spec = effnet(size, strides, kernels, (1.0,) * n_axes, (64,) * n_axes)
    return spec.model_copy(update={"parts": spec.parts.model_copy(update=parts)})


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    with torch.device("meta"):
        return build(spec, n_channels, n_outputs)


def stirred(network: nn.Module) -> nn.Module:
    """In prediction, with batch norms that have seen something."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return network.eval()


def with_eps(network: nn.Module, eps: float) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = eps
    return network.eval()


def maps_of_timm(network: nn.Module, x: Tensor) -> list[Tensor]:
    """At 1/2, 1/4, …, 1/32 of the input."""
    x, maps = network.bn1(network.conv_stem(x)), []
    for stage in network.blocks:
        x = stage(x)
        maps.append(x)
    return [maps[index] for index in (0, 1, 2, 4, 6)]


def test_a_network_for_thick_slices():
    """Strides and kernels are the planner's; EfficientNet's 5 replaces a 3, never a 1."""
    kernels = (1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)
    spec = effnet("b0", FLAT, kernels, spacing_mm=(4.0, 1.0, 1.0), patch_vox=(16, 64, 64))
    assert spec.features == (16, 16, 24, 40, 112, 320) and spec.blocks == (1, 1, 2, 2, 6, 5)
    assert spec.parts.dilations_zyx == ((1, 1, 1), (1, 1, 1), (1, 1, 1))  # 16 × 32 × 32 mm, but a map of 2 × 2 × 2
    network = build(spec, 4, 3)
    outputs = network(torch.randn(1, 4, 16, 64, 64))
    sizes = [(16, 64, 64), (16, 32, 32), (16, 16, 16), (8, 8, 8), (4, 4, 4)]
    assert [tuple(o.shape) for o in outputs] == [(1, 3, *size) for size in sizes]
    kernels = [stage.blocks[0].depthwise.conv.kernel_size for stage in network.encoder.stages]
    assert kernels == [(1, 3, 3), (1, 3, 3), (5, 5, 5), (3, 3, 3), (5, 5, 5), (5, 5, 5), (3, 3, 3)]
    assert network.encoder.stem.conv.kernel_size == (1, 3, 3)


ENCODER_PARAMETERS = {  # MONAI's EfficientNetBNFeatures in 3D with 4 channels, without its head
    "b0": 4_278_812,
    "b1": 7_036_928,
    "b2": 8_219_106,
    "b3": 11_468_816,
    "b4": 18_810_248,
    "b5": 29_999_680,
    "b6": 43_064_352,
    "b7": 67_120_656,
}
SKIPS = {
    "b1": (16, 24, 40, 112, 320),
    "b2": (16, 24, 48, 120, 352),
    "b3": (24, 32, 48, 136, 384),
    "b4": (24, 32, 56, 160, 448),
    "b5": (24, 40, 64, 176, 512),
    "b6": (32, 40, 72, 200, 576),
    "b7": (32, 48, 80, 224, 640),
}


@pytest.mark.parametrize("size", ENCODER_PARAMETERS)
def test_published_numbers_of_the_encoders(size):
    encoder = on_meta(spec_of(size), 4, 3).encoder
    assert n_parameters(encoder) - n_parameters(encoder.top) == ENCODER_PARAMETERS[size]
    assert spec_of(size).features[1:] == SKIPS.get(size, SKIPS["b1"])


@pytest.mark.parametrize(
    ("size", "strides", "channels", "expected"),
    [
        ("b0", ISOTROPIC, 4, 8_296_586),
        ("b0", ISOTROPIC, 1, 8_292_650),
        ("b0", FLAT, 1, 8_284_458),
        ("b3", ISOTROPIC, 1, 15_942_090),
        ("b5", ISOTROPIC, 1, 35_338_810),
    ],
)
def test_numbers_of_the_whole_network(size, strides, channels, expected):
    """Of an independent sketch, whose pyramid has the branch with the mean."""
    network = on_meta(spec_of(size, strides, bottleneck_pooling=True), channels, 3)
    assert n_parameters(network) == expected


@pytest.mark.parametrize("size", ENCODER_PARAMETERS)
def test_every_size_has_the_tensors_of_timm(size):
    """Number by number: the shapes, in 2D with batch norm, without the head."""
    with torch.device("meta"):
        theirs = timm.create_model(f"tf_efficientnet_{size}").state_dict()
    head = ("conv_head.", "bn2.", "classifier.")
    expected = [tuple(value.shape) for name, value in theirs.items() if not name.startswith(head)]
    ours = on_meta(spec_of(size, n_axes=2, norm="batch"), 3, 2).network.encoder.state_dict()
    assert [tuple(v.shape) for name, v in ours.items() if not name.startswith("top.")] == expected


@pytest.mark.parametrize(("name", "edges"), [("efficientnet_b0", (65, 70)), ("tf_efficientnet_b1", (33, 64))])
def test_in_2d_it_computes_what_timm_computes(name, edges, tmp_path):
    torch.manual_seed(0)
    theirs, padding = stirred(timm.create_model(name)), "tf_same" if name.startswith("tf_") else "symmetric"
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = build(spec_of(name[-2:], n_axes=2, norm="batch", padding=padding), 3, 2)
    start_from(InitialWeights(source=str(tmp_path / "w.pth"), map_rms="kept"), ours)
    with_eps(ours, theirs.bn1.eps)
    x = torch.randn(1, 3, *edges)
    with torch.no_grad():
        for one, other in zip(maps_of_timm(theirs, x), ours.network.encoder(x)[1:], strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_in_3d_it_computes_what_monai_computes():
    """MONAI pads late where its sizes are even, and registers its layers in the same order."""
    torch.manual_seed(0)
    theirs = EfficientNetBNFeatures("efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=2)
    stirred(theirs)
    ours = with_eps(build(spec_of(norm="batch", padding="tf_same"), 2, 2), theirs._bn0.eps)
    mine = {name: v for name, v in ours.encoder.state_dict().items() if not name.startswith("top.")}
    given = [v for n, v in theirs.state_dict().items() if not n.startswith(("_conv_head", "_bn1", "_fc"))]
    ours.encoder.load_state_dict(dict(zip(mine, given, strict=True)), strict=False)
    x = torch.randn(1, 2, 32, 32, 64)
    with torch.no_grad():
        for one, other in zip(theirs(x), ours.encoder(x)[1:], strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_a_shift_by_the_deepest_stride_shifts_the_result():
    """In a world that repeats itself, where no border tells places apart."""
    torch.manual_seed(0)
    network = build(spec_of(n_axes=2), 1, 3).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    x = torch.randn(1, 1, 1, 64, 96)
    with torch.no_grad():
        moved, still = network(x.roll((32, 64), (3, 4)))[0], network(x)[0]
    torch.testing.assert_close(moved, still.roll((32, 64), (3, 4)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_stages", [2, 3, 4, 5, 6, 8])
def test_fewer_stages_keep_the_whole_of_efficientnet(n_stages):
    """Images too small to be halved five times; more than five are not EfficientNet's."""
    strides = ((1, 1, 1), *((2, 2, 2),) * (n_stages - 1))
    spec, full = spec_of("b2", strides), spec_of("b2")
    assert len(spec.features) == min(n_stages, 6) and spec.features[-1] == 352
    assert sum(spec.blocks) == sum(full.blocks)
    network = on_meta(spec, 2, 3)
    assert n_parameters(network.encoder) == n_parameters(on_meta(full, 2, 3).encoder)
    outputs = network.eval()(torch.empty(1, 2, 70, 65, 66, device="meta"))
    assert outputs[0].shape == (1, 3, 70, 65, 66) and len(outputs) == len(spec.features) - 1


def test_widths_are_rounded_to_eights():
    # B3: 32 · 1.2 = 38.4 → 40; B2: 32 · 1.1 = 35.2 → 32, above nine tenths; B4's 24 · 1.4 = 33.6 → 32
    assert [stem_features(f"efficientnet_{size}") for size in ("b0", "b2", "b3", "b7")] == [32, 32, 40, 64]
    assert levels("efficientnet_b4", 5)[1][0].n_out == 32
    # B2's 112 · 1.1 = 123.2 → 120; blocks: 3 · 1.2 = 3.6 → 4
    assert [(s.n_blocks, s.n_out) for s in levels("efficientnet_b2", 5)[3]] == [(4, 88), (4, 120)]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(5, 3, 2, (1, 1)), (4, 3, 2, (0, 1)), (4, 5, 2, (1, 2)), (7, 5, 2, (2, 2)), (6, 3, 1, (1, 1)), (1, 1, 2, (0, 0))],
)
def test_late_padding_by_hand(size, kernel, stride, expected):
    before, behind = expected  # 4 voxels, kernel 3, stride 2: windows at 0 and 2 reach voxel 4, one too far
    x = torch.ones(1, 1, size, 2)
    padded = LatePadding((kernel, 1), (stride, 1))(x)
    assert padded.shape[2] == before + size + behind
    assert padded[0, 0, :, 0].nonzero().flatten().tolist() == list(range(before, before + size))


def test_no_voxel_is_left_out_by_a_stride():
    kernels = (1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3)
    network = build(spec_of("b0", ISOTROPIC[:4], kernels), 1, 2)
    x = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    network.encoder.stem.conv(x).sum().backward()
    assert x.grad.ne(0).all()


def test_drop_path_rises_to_the_fraction_and_only_where_there_is_an_addition():
    network = on_meta(spec_of("b1", drop_path_fraction=0.2), 1, 2)
    blocks = [block for stage in network.encoder.stages for block in stage.blocks]
    fractions = [block.drop_path.fraction for block in blocks]
    assert len(fractions) == 23 and fractions == sorted(fractions)
    assert fractions[0] == 0 and fractions[-1] == pytest.approx(0.2)
    assert fractions[1] == pytest.approx(0.2 / 22)
    assert [block.add is not None for stage in network.encoder.stages for block in stage.blocks[:1]] == [False] * 7
    assert all(block.add is not None for stage in network.encoder.stages for block in stage.blocks[1:])


def test_a_block_adds_its_scaled_branch_or_drops_it():
    """In training each sample has none or, at a fraction of a half, twice the branch."""
    torch.manual_seed(0)
    parts, shape = spec_of(residual_scale=0.25).parts, BlockShape(8, 8, (3, 3, 3), (1, 1, 1))
    block, x = MobileBlock(Layers(3, parts), shape, 6, 0.5), torch.randn(16, 8, 4, 4, 4)
    with torch.no_grad():
        branch = block.project(block.squeeze(block.depthwise(block.expand(x))))
        torch.testing.assert_close(block.eval()(x), x + 0.25 * branch)
        added = (block.train()(x) - x).flatten(1)
    kept = added.any(1)
    assert 0 < kept.sum() < 16
    torch.testing.assert_close(added[kept], 0.5 * branch.flatten(1)[kept], atol=1e-5, rtol=1e-5)


def test_new_weights_keep_the_variance_backwards():
    torch.manual_seed(0)
    network = build(spec_of(), 1, 2)
    block = network.encoder.stages[5].blocks[1]
    # a depthwise voxel goes to 5³ outputs, one of expand to 192 · 6 = 1152
    assert block.depthwise.conv.weight.std().item() == pytest.approx((2 / 125) ** 0.5, rel=0.02)
    assert block.expand.conv.weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.02)
    assert not block.squeeze.reduce.bias.any()


def test_parts_reach_the_mobile_blocks():
    spec = spec_of(attention="eca", attention_position="after_add", residual_scale=0.5, checkpointing=True)
    network = on_meta(spec, 1, 2)
    block = network.encoder.stages[1].blocks[1]
    assert n_parameters(block.gate_of_sum) == 3 and block.add.factor == 0.5  # ECA has 3 weights for 24 channels
    assert all(stage.checkpointing for stage in network.encoder.stages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": (16, 16, 24, 40, 112, 192)}, "with 6 stages must be (16, 16, 24, 40, 112, 320)"),
        ({"blocks": (1, 1, 2, 2, 6, 6)}, "and (1, 1, 2, 2, 6, 5)"),
        ({"kind": "efficientnet_b8"}, "did you mean"),
        ({"kind": "efficientnet_b3"}, "must be (16, 24, 32, 48, 136, 384) and (1, 2, 3, 3, 10, 8)"),
        ({"parts": {"dropout_fraction": 0.1}}, "does not use parts.dropout_fraction"),
    ],
)
def test_what_is_not_efficientnet_is_refused(changes, message):
    with pytest.raises(ValidationError) as fault:
        NetworkSpec.model_validate(spec_of().model_dump() | changes)
    assert message in str(fault.value)


def test_more_than_five_halvings_are_refused():
    spec = spec_of().model_dump(context={"write_defaults": True})
    for name in ("features", "strides_zyx", "kernels_zyx", "blocks"):
        spec[name] = (*spec[name], spec[name][-1])
    spec["decoder_convolutions"] = (1,) * 6
    spec["parts"]["decoder_features"] = (16,) * 6
    with pytest.raises(ValidationError, match="6 stages, not 7"):
        NetworkSpec.model_validate(spec)


def test_a_convolution_without_padding():
    parts = spec_of().parts
    assert Layers(3, parts).convolution(1, 1, 3, is_padded=False).padding == (0, 0, 0)
    assert Layers(3, parts).convolution(1, 1, (1, 3, 5), dilation=2).padding == (0, 2, 4)
