"""networks/unet.py and networks/blocks.py: equal to nnU-Net's networks, and every part in every view."""

from __future__ import annotations

import math

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from specs import VIEWS, unet
from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import BlockShape, CellMeans, ChannelNorm, DropPath, Layers, ResidualBlock, drop_paths
from segpipe.networks.build import build
from segpipe.networks.parts import Parts
from segpipe.networks.spec import NetworkSpec


def nnunets(spec: NetworkSpec, n_channels: int, n_outputs: int) -> nn.Module:
    """The network that nnU-Net makes of its plan."""
    flat = spec.n_axes == 2
    common = dict(
        input_channels=n_channels,
        num_classes=n_outputs,
        n_stages=len(spec.features),
        features_per_stage=list(spec.features),
        conv_op=nn.Conv2d if flat else nn.Conv3d,
        kernel_sizes=[list(kernel) for kernel in spec.kernels_zyx],
        strides=[list(stride) for stride in spec.strides_zyx],
        n_conv_per_stage_decoder=list(spec.decoder_convolutions)[::-1],  # it counts from the deepest stage
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    if spec.kind == "plain":
        return PlainConvUNet(n_conv_per_stage=list(spec.blocks), **common)
    return ResidualEncoderUNet(n_blocks_per_stage=list(spec.blocks), **common)


def stirred(network: nn.Module) -> nn.Module:
    """With random numbers in every parameter, also where 0 or 1 would hide a mistake."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def patch(*edges: int) -> Tensor:
    return torch.randn(2, 2, *(edges or (8, 16, 24)))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_outputs_equal_nnunets_with_the_same_weights(kind, view):
    torch.manual_seed(0)
    spec = unet(kind, view)
    theirs, ours = stirred(nnunets(spec, 2, 3)), build(spec, 2, 3)
    inner = ours.network if view == "2d" else ours
    inner.load_state_dict({name: theirs.state_dict()[name] for name in inner.state_dict()})
    x = patch()[:, :, 3] if view == "2d" else patch()
    for one, other in zip(theirs(x), inner(x), strict=True):
        assert torch.equal(one, other)


PARTS = [
    *({"attention": a} for a in ("se", "eca", "cbam", "scse")),
    *({"attention": a, "attention_position": "block", "norm": "batch"} for a in ("se", "eca", "cbam", "scse")),
    {"attention": "se", "attention_position": "after_add"},
    {"norm": "batch"},
    {"norm": "group"},
    {"norm": "layer"},
    {"activation": "relu"},
    {"activation": "gelu"},
    {"activation": "silu"},
    {"bias": False, "decoder": "residual"},
    {"decoder": "residual", "decoder_features": (3, 5)},
    {"dropout_fraction": 0.5},
    {"drop_path_fraction": 0.5, "residual_scale": 0.2},
    {"bottleneck": "aspp_simple", "dilations_zyx": 2},
    {"bottleneck": "aspp_deeplab", "dilations_zyx": 3, "bottleneck_features": 12},
    {"bottleneck": "aspp_deeplab", "dilations_zyx": 2, "bottleneck_pooling": True},
    {"deep_supervision": False},
    {"stem_kernel_zyx": 5},
    {"checkpointing": True},
]


def spec_with(view: str, parts: dict[str, object]) -> NetworkSpec:
    """Numbers stand for that many dilations, or for an edge of the kernel."""
    n_axes, parts = 2 if view == "2d" else 3, dict(parts)
    if "dilations_zyx" in parts:
        parts["dilations_zyx"] = tuple((1 + branch,) * n_axes for branch in range(parts["dilations_zyx"]))
    if "stem_kernel_zyx" in parts:
        parts["stem_kernel_zyx"] = (parts["stem_kernel_zyx"],) * n_axes
    return unet("residual", view, **parts)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts.values())))
def test_every_part_in_every_view(parts, view):
    torch.manual_seed(0)
    network = stirred(build(spec_with(view, parts), 2, 3))
    for edges in [(8, 16, 24), (7, 17, 13)]:
        network.zero_grad()
        outputs = network(patch(*edges))
        assert outputs[0].shape == (2, 3, *edges)
        assert len(outputs) == (2 if parts.get("deep_supervision", True) else 1)
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    x = patch()
    assert torch.equal(network.eval()(x)[0], network(x)[0])


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_checkpointing_changes_neither_outputs_nor_gradients(kind):
    torch.manual_seed(0)
    x = patch()
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        network = build(unet(kind, "3d", checkpointing=checkpointing, dropout_fraction=0.3), 2, 3)
        outputs = network(x)
        outputs[0].square().mean().backward()
        results.append([outputs[0], *(p.grad for p in network.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_residual_block_starts_as_the_identity_on_what_is_positive():
    network = build(unet("residual", "3d"), 2, 3)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    x = torch.rand(1, 6, 4, 4, 4)
    same = next(block for block in blocks if block.conv1[0].in_channels == block.conv1[0].out_channels == 6)
    assert torch.equal(same(x), x)


def test_a_residual_branch_is_scaled_before_it_is_added():
    torch.manual_seed(0)
    shape = BlockShape(3, 3, (3, 3), (1, 1))
    whole, half = (ResidualBlock(Layers(2, Parts(residual_scale=scale)), shape) for scale in (1.0, 0.5))
    half.load_state_dict(stirred(whole).state_dict())
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(half(x), functional.leaky_relu(x + 0.5 * whole.conv2(whole.conv1(x)), 0.01))


def test_the_skip_of_a_residual_block_averages_what_is_there_by_hand():
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert CellMeans((1, 2))(row).tolist() == [[[[1.5, 3.0]]]]  # (1 + 2) / 2 and 3
    assert CellMeans((2, 4))(row).tolist() == [[[[2.0]]]]  # smaller than the cell on both axes: (1 + 2 + 3) / 3


@pytest.mark.parametrize("kind", ["plain", "residual", "convnext"])
def test_strides_and_kernels_of_any_size_on_an_axis_that_is_shorter_than_a_stride(kind):
    spec = NetworkSpec(
        kind=kind,
        features=(4, 6, 8),
        strides_zyx=((1, 1, 1), (3, 1, 2), (2, 4, 3)),
        kernels_zyx=((1, 3, 5), (1, 1, 3), (3, 5, 3)),
        blocks=(1, 1, 1),
        decoder_convolutions=(1, 1),
    )
    network = build(spec, 2, 3)
    for edges in [(18, 12, 24), (7, 9, 13), (2, 3, 40), (1, 50, 5)]:
        assert network(patch(*edges))[0].shape == (2, 3, *edges)


def test_drop_path_keeps_the_mean_and_is_off_in_prediction():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 1, 1, 1)
    dropped = drop(x)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.25 / 0.75 / 4000))
    assert drop.eval()(x) is x


def test_drop_paths_rise_to_the_deepest_block():
    assert drop_paths([1, 2, 2], 0.4) == [[0.0], [0.1, 0.2], [pytest.approx(0.3), 0.4]]
    assert drop_paths([1], 0.4) == [[0.0]]


def test_channel_norm_is_layer_norm_of_each_voxel():
    norm, x = stirred(ChannelNorm(5)), torch.randn(2, 5, 3, 4, 2)
    expected = functional.layer_norm(x[1, :, 2, 3, 1], (5,), norm.weight, norm.bias)
    torch.testing.assert_close(norm(x)[1, :, 2, 3, 1], expected)


def test_group_norm_takes_what_divides_the_channels():
    assert [Layers(3, Parts(norm="group")).norm(n).num_groups for n in (4, 6, 16, 7)] == [4, 2, 8, 1]
