"""Norms in either order of memory, and norms that compose means and variations, against transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from specs import unet
from torch import nn
from torch.nn import functional

from segpipe.networks.build import build
from segpipe.networks.convolutions import InstanceNorm2d, InstanceNorm3d, memory_format
from segpipe.networks.cost import CPU as CPU_MEMORY
from segpipe.networks.cost import cost
from segpipe.networks.norms import BlendNorm, PhaseNorm, UniformNoise
from segpipe.train.optim import WeightAverage

CPU = torch.device("cpu")
CASES = [
    (InstanceNorm3d, nn.InstanceNorm3d, (3, 5, 4, 6, 7), torch.channels_last_3d),
    (InstanceNorm2d, nn.InstanceNorm2d, (2, 4, 8, 9), torch.channels_last),
]


@pytest.mark.parametrize(("ours", "theirs", "shape", "order"), CASES, ids=["3d", "2d"])
def test_values_and_gradients_are_torchs_in_either_order(ours, theirs, shape, order):
    torch.manual_seed(0)
    x, incoming = 3 * torch.randn(shape) + 10, torch.randn(shape)
    first, second = ours(shape[1], affine=True), theirs(shape[1], affine=True)
    with torch.no_grad():
        for norm in (first, second):
            norm.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
    last = x.contiguous(memory_format=order).requires_grad_()
    usual = x.clone().requires_grad_()
    found, expected = first(last), second(usual)
    assert found.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.backward(incoming)
    expected.backward(incoming)
    for own, reference in ((last, usual), (first.weight, second.weight), (first.bias, second.bias)):
        torch.testing.assert_close(own.grad, reference.grad, atol=1e-4, rtol=1e-4)


def test_the_usual_order_is_torchs_own_to_the_bit():
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(InstanceNorm3d(3, affine=True)(x), nn.InstanceNorm3d(3, affine=True)(x))


def test_gradients_are_those_of_differences():
    norm = InstanceNorm3d(2, affine=True).double()
    x = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_one_voxel_of_a_channel_is_refused_as_by_torch():
    x = torch.randn(2, 3, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNorm3d(3, affine=True).train()(x)


@pytest.mark.parametrize(
    ("kind", "trains", "wanted", "is_last"),
    [
        ("plain", True, None, True),
        ("convnext", True, None, False),
        ("convnext", False, None, True),
        ("convnext", True, True, True),
        ("plain", True, False, False),
    ],
)
def test_channels_are_last_where_that_was_faster(kind, trains, wanted, is_last):
    order = memory_format(kind, 3, CPU, trains=trains, wanted=wanted)
    assert order == (torch.channels_last_3d if is_last else torch.contiguous_format)


def test_on_a_gpu_nothing_is_assumed():
    assert memory_format("plain", 3, torch.device("cuda"), trains=False) == torch.contiguous_format


# The transforms of the authors' code, over the axes of the map: amplitudes from squares of at least 1e-5.
def amplitude(F: torch.Tensor) -> torch.Tensor:
    square = F.real.square() + F.imag.square()
    return torch.where(square < 1e-5, torch.full_like(square, 1e-5), square).sqrt()


def with_phase_of(amplitudes: torch.Tensor, other: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    phase = torch.atan2(other.imag, other.real)
    F = torch.complex(amplitudes * phase.cos(), amplitudes * phase.sin())
    return torch.fft.irfftn(F, s=tuple(shape[2:]), dim=tuple(range(2, len(shape))))


def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)))


def affine(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    return x * norm.weight.view(shape) + norm.bias.view(shape)


def phase_norm_by_transform(x: torch.Tensor, norm: PhaseNorm) -> torch.Tensor:
    plain = functional.batch_norm(x, norm.running_mean.clone(), norm.running_var.clone(), training=norm.training)
    shape = (-1, *(1,) * (x.ndim - 2))
    mean = x.mean((0, *range(2, x.ndim))) if norm.training else norm.running_mean
    share = 0.0 if norm.choice is None else torch.softmax(norm.choice / 1e-6, 0)[0]
    return affine(with_phase_of(amplitude(spectrum(plain)), spectrum(x - share * mean.view(shape)), x.shape), norm)


def blend_norm_by_transform(x: torch.Tensor, norm: BlendNorm) -> torch.Tensor:
    normed, kept = torch.softmax(norm.blend / 0.1, 0)
    total = normed * amplitude(spectrum(functional.instance_norm(x))) + kept * amplitude(spectrum(x))
    return affine(with_phase_of(total, spectrum(x), x.shape), norm)


CHOICES = ([0.0, 0.0], [1e-6, 0.0], [0.0, 1.0])
SHAPES = {"2d": (3, 4, 8, 6), "3d": (2, 3, 4, 5, 6)}


def given(norm: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """An input whose means have both signs; the norm gets another scale and shift for each channel."""
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, shape[1]))
        norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
    means = torch.randn(*shape[:2], *(1,) * (len(shape) - 2), dtype=norm.weight.dtype)
    return (torch.randn(shape, dtype=norm.weight.dtype) + means).requires_grad_()


def assert_same(norm: nn.Module, by_transform: Callable[..., torch.Tensor], x: torch.Tensor, atol: float) -> None:
    other = x.detach().clone().requires_grad_()
    expected, incoming = by_transform(other, norm), torch.randn(x.shape, dtype=x.dtype)
    expected.backward(incoming)
    wanted = {name: p.grad for name, p in norm.named_parameters()}
    norm.zero_grad()
    found = norm(x)
    found.backward(incoming)
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-4)
    for name, p in norm.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("choice", [None, *CHOICES], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pcnorm_and_ccnorm_are_those_by_transforms(shape, choice, is_training):
    norm = PhaseNorm(shape[1], centred=choice is not None).train(is_training)
    x = given(norm, shape)
    with torch.no_grad():
        norm.running_mean.copy_(torch.linspace(-0.5, 1, shape[1]))
        norm.running_var.copy_(torch.linspace(0.5, 3, shape[1]))
    if choice is not None:
        norm.choice.copy_(torch.tensor(choice))
    assert_same(norm, phase_norm_by_transform, x, 3e-6)


@pytest.mark.parametrize("blend", [[0.0, 0.0], [0.2, -0.1], [-0.3, 0.3]], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 32, 24), (2, 3, 8, 9, 10)], ids=["2d", "3d"])
def test_scnorm_is_that_by_transforms(shape, blend):
    norm = BlendNorm(shape[1])
    x = given(norm, shape)
    with torch.no_grad():
        norm.blend.copy_(torch.tensor(blend))
    assert_same(norm, blend_norm_by_transform, x, 1.2e-5)  # the mean of a normed map is 0, there √1e-5 / voxels
    assert sum(p.numel() for p in norm.parameters()) == 2 * shape[1] + 2


@pytest.mark.parametrize("norm", [PhaseNorm(2), PhaseNorm(2, centred=True), BlendNorm(2)], ids=["pc", "cc", "sc"])
def test_gradients_of_norms_that_compose_are_those_of_differences(norm):
    norm = norm.double()
    assert torch.autograd.gradcheck(norm, given(norm, (2, 2, 2, 3, 2)))


def test_the_ends_of_scnorm_are_instance_norm_and_the_identity():
    norm = BlendNorm(3)
    x = given(norm, (2, 3, 4, 5, 6))
    with torch.no_grad():
        norm.blend.copy_(torch.tensor([50.0, -50.0]))
        torch.testing.assert_close(norm(x), affine(functional.instance_norm(x), norm))
        norm.blend.copy_(torch.tensor([-50.0, 50.0]))
        torch.testing.assert_close(norm(x), affine(x, norm))


def test_pcnorm_of_one_sample_is_an_instance_norm_and_a_mean_of_0_counts_as_positive():
    norm = PhaseNorm(3)
    x = given(norm, (1, 3, 4, 5, 6))
    torch.testing.assert_close(norm(x), affine(functional.instance_norm(x), norm))
    # two maps of one channel: [-1, 1] with mean 0 and [3, 5] with mean 4. μ = 2, σ² = 5; m_b of the first is -2 / √5,
    # of which sign(0) = +1 makes 2 / √5: (-1 + 2, 1 + 2) / √5
    alone = PhaseNorm(1)
    alone.eps = 0.0
    found = alone(torch.tensor([[[[-1.0, 1.0]]], [[[3.0, 5.0]]]]))
    assert found.flatten().tolist() == pytest.approx([1 / 5**0.5, 3 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])


def test_the_running_statistics_of_pcnorm_are_torchs_batch_norms():
    ours, theirs = PhaseNorm(4), nn.BatchNorm3d(4)
    for momentum in (0.1, None):
        ours.momentum = theirs.momentum = momentum
        for seed in range(3):
            torch.manual_seed(seed)
            x = 3 * torch.randn(2, 4, 3, 4, 5) + seed
            ours(x)
            theirs(x)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="more than 1 value"):
        PhaseNorm(2)(torch.ones(1, 2, 1, 1, 1))


def test_the_average_of_weights_keeps_statistics_of_norms_that_compose():
    torch.manual_seed(0)
    spec = unet("plain", "3d", norm="ccnorm")
    network = build(spec, 1, 2)
    average = WeightAverage(network, 0.9)
    network(torch.randn(2, 1, 8, 16, 16))
    average.update(network)
    norms = [
        (a, b) for a, b in zip(average.network.modules(), network.modules(), strict=True) if isinstance(a, PhaseNorm)
    ]
    decay = 2 / 11  # (1 + n) / (10 + n) behind the first step
    assert norms
    for mean, last in norms:
        torch.testing.assert_close(mean.running_mean, (1 - decay) * last.running_mean)
        torch.testing.assert_close(mean.running_var, decay * 1.0 + (1 - decay) * last.running_var)


def test_noise_keeps_means_and_enlarges_the_variance_by_a_third_of_its_square():
    # x with mean 0.5 and variance 1, ±0.5: E[(x r)²] = 1.25 · 0.25 / 3, so variance 1 + 0.104
    torch.manual_seed(0)
    x = torch.randn(1_000_000) + 0.5
    noisy = UniformNoise(0.5).train()(x)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=5e-3)
    assert float(noisy.var()) == pytest.approx(1 + 1.25 * 0.25 / 3, abs=5e-3)
    assert UniformNoise(0.5).eval()(x) is x


@pytest.mark.parametrize("norm", ["ccnorm", "scnorm"])
def test_the_planned_memory_of_norms_that_compose_is_what_autograd_keeps(norm):
    spec = unet("residual", "3d", norm=norm, uout=0.1)
    planned = cost(spec, 1, 3, (16, 32, 32), 2, precision="bf16", calibration=CPU_MEMORY)
    network, kept = build(spec, 1, 3), {}
    known = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}

    def note(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved), torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 1, 16, 32, 32))
        torch.stack([o.float().mean() for o in outputs]).sum()
    assert planned.kept_activation_bytes == pytest.approx(sum(kept.values()), rel=0.1)
