"""networks/gates.py."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import ChannelSELayer
from torch import Tensor, nn
from torch.nn import functional

from segpipe.networks.blocks import Layers
from segpipe.networks.gates import (
    MAKE_GATE,
    BlockAttention,
    EfficientChannelAttention,
    SpatialAndChannel,
    SqueezeExcitation,
)
from segpipe.networks.parts import Parts

SHAPES = {2: (2, 8, 5, 6), 3: (2, 8, 3, 5, 6)}
BOUNDED = ("se", "eca", "cbam", "scse")  # factors of at most 1; selective kernels are blended, not gated
every_gate = pytest.mark.parametrize(("kind", "n_axes"), [(kind, n) for kind in BOUNDED for n in SHAPES])


def gate(kind: str, n_axes: int) -> nn.Module:
    torch.manual_seed(0)
    return MAKE_GATE[kind](Layers(n_axes, Parts(attention_reduction=2)), 8)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("n_features", "reduction", "expected"),
    # 2 C² / r weights, C + C / r biases; at least 4 hidden channels
    [(32, 2, 1_072), (64, 2, 4_192), (128, 16, 2_184), (320, 2, 102_880), (320, 16, 13_140), (16, 8, 148)],
)
def test_numbers_of_parameters_of_squeeze_and_excitation(n_features, reduction, expected):
    assert n_parameters(SqueezeExcitation(n_features, reduction)) == expected


@pytest.mark.parametrize(("n_features", "kernel"), [(4, 3), (16, 3), (64, 3), (112, 3), (128, 5), (512, 5), (2048, 7)])
def test_the_kernel_of_eca_grows_with_the_channels(n_features, kernel):
    assert EfficientChannelAttention(n_features).convolution.kernel_size == (kernel,)


@pytest.mark.parametrize(("n_axes", "n_spatial"), [(2, 2 * 49), (3, 2 * 343)])
def test_numbers_of_parameters_of_cbam(n_axes, n_spatial):
    assert n_parameters(BlockAttention(n_axes, 64, 16)) == 2 * 64**2 // 16 + n_spatial


@every_gate
def test_a_gate_keeps_shape_and_never_enlarges(kind, n_axes):
    x = torch.randn(SHAPES[n_axes])
    gated = gate(kind, n_axes)(x)
    assert gated.shape == x.shape
    assert (gated.abs() <= x.abs()).all() and not torch.equal(gated, x)


@every_gate
def test_a_gate_of_zero_weights_halves(kind, n_axes):
    """A sigmoid of 0 is ½; CBAM has two in a row."""
    module, x = gate(kind, n_axes), torch.randn(SHAPES[n_axes])
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(module(x), x / (4 if kind == "cbam" else 2))


@every_gate
def test_an_open_gate_is_the_identity(kind, n_axes):
    module = gate(kind, n_axes)
    x = torch.rand(SHAPES[n_axes])  # positive, so that large positive weights open it
    for parameter in module.parameters():
        nn.init.constant_(parameter, 100.0)
    torch.testing.assert_close(module(x), x)


@pytest.mark.parametrize("kind", ["se", "eca"])
def test_channel_gates_do_not_see_where_voxels_are(kind):
    module, x = gate(kind, 3), torch.randn(1, 8, 4, 4, 4)
    order = torch.randperm(64)

    def shuffled(maps: Tensor) -> Tensor:
        return maps.flatten(2)[..., order].view_as(maps)

    torch.testing.assert_close(module(shuffled(x)), shuffled(module(x)))


@pytest.mark.parametrize("kind", ["se", "eca"])
def test_right_behind_an_instance_norm_channel_gates_see_nothing(kind):
    """The norm makes every channel's mean its own bias: why a spec with such a gate is refused."""
    module, norm = gate(kind, 3), nn.InstanceNorm3d(8, affine=True)
    nn.init.normal_(norm.bias)
    gates = [module(x) / x for x in (norm(torch.randn(1, 8, 4, 4, 4)), norm(100 * torch.rand(1, 8, 3, 5, 6) ** 4))]
    torch.testing.assert_close(gates[0][..., 0, 0, 0], gates[1][..., 0, 0, 0])


def test_squeeze_and_excitation_equals_monais():
    torch.manual_seed(0)
    theirs, ours = ChannelSELayer(3, 8, r=2, acti_type_1="swish"), SqueezeExcitation(8, 2)
    ours.gate.load_state_dict(theirs.fc.state_dict())
    x = torch.randn(2, 8, 3, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", ["se", "cbam", "scse"])
def test_no_hidden_channel_begins_dead(kind):
    """Behind an instance norm the means are about the same in every image, so what is closed once is closed always."""
    for seed in range(20):
        torch.manual_seed(seed)
        module, x = MAKE_GATE[kind](Layers(3, Parts()), 16), functional.instance_norm(torch.randn(2, 16, 6, 6, 6))
        module(functional.leaky_relu(x)).square().sum().backward()
        assert all(p.grad.ne(0).all() for p in module.parameters())


def test_eca_by_hand():
    module = EfficientChannelAttention(4)
    with torch.no_grad():
        module.convolution.weight.copy_(torch.tensor([[[1.0, 0.0, -1.0]]]))  # channel before minus channel after
    means = [1.0, 2.0, 4.0, 8.0]
    x = torch.tensor(means).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    differences = torch.tensor([0 - 2.0, 1 - 4.0, 2 - 8.0, 4 - 0.0])
    torch.testing.assert_close(module(x)[0, :, 0, 1], torch.tensor(means) * differences.sigmoid())


def test_cbam_by_hand():
    """No hidden weights: the channel gate is ½; then 7 × 7 ones sum mean and maximum of all voxels in reach."""
    module = BlockAttention(2, 2, 1)
    for parameter in module.channels.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(module.voxels.weight, 0.1)
    x = torch.zeros(1, 2, 1, 9)
    x[0, :, 0, 0] = torch.tensor([2.0, 6.0])  # halved: 1 and 3, their mean 2, their maximum 3: together 5
    x[0, 0, 0, 8] = 2.0  # halved: 1 and 0, mean 0.5, maximum 1: together 1.5; 8 voxels from the first, out of reach
    gated = module(x)[0, :, 0]
    assert gated[0, 0].item() == pytest.approx(1 * torch.tensor(0.5).sigmoid().item())
    assert gated[1, 0].item() == pytest.approx(3 * torch.tensor(0.5).sigmoid().item())
    assert gated[0, 8].item() == pytest.approx(1 * torch.tensor(0.15).sigmoid().item())


def test_cbam_sees_means_and_maxima_of_channels_by_hand():
    """Means 1 and 2, maxima 2 and 4: four hidden sums of 3 and 6, s · sigmoid(s) of each weighted by 1/12."""
    module = BlockAttention(2, 2, 1)
    nn.init.ones_(module.channels[0].weight)
    nn.init.constant_(module.channels[2].weight, 1 / 12)
    nn.init.zeros_(module.voxels.weight)
    x = torch.tensor([[[[0.0, 2.0]], [[0.0, 4.0]]]])
    sums = torch.tensor([3.0, 6.0])
    torch.testing.assert_close(module(x), x * (4 / 12 * (sums * sums.sigmoid()).sum()).sigmoid() / 2)


def test_scse_takes_the_larger_of_both_gates_by_hand():
    module = SpatialAndChannel(2, 2, 1)
    for parameter in module.channels.parameters():
        nn.init.zeros_(parameter)  # every channel is halved
    module.voxels.weight.data = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    x = torch.tensor([[[[3.0, 1.0]], [[1.0, 3.0]]]])  # differences 2 and -2: the first voxel's gate is above a half
    expected = torch.stack([x[0, :, 0, 0] * torch.tensor(2.0).sigmoid(), x[0, :, 0, 1] / 2], 1)
    torch.testing.assert_close(module(x)[0, :, 0], expected)
