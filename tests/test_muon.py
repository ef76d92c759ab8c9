"""train/optim.py"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from segpipe.train.optim import Muon, orthogonal_factors

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # timm on a newer torch
    from timm.optim.muon import Muon as TimmsMuon


def after_steps(kernel, gradients, make):
    """The kernel after a step with each gradient."""
    parameter = nn.Parameter(kernel.clone())
    optimizer = make(parameter)
    for gradient in gradients:
        parameter.grad = gradient.reshape(kernel.shape).clone()  # timm overwrites it
        optimizer.step()
    return parameter.detach()


def orthogonalise(matrix):
    """The matrix with singular values near 1."""
    least = min(matrix.shape)
    factor = orthogonal_factors([matrix], least)[0]
    return factor @ matrix if len(matrix) == least else matrix @ factor


def ours(**settings):
    """Makes a Muon of one kernel."""
    return lambda kernel: Muon([kernel], [], **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, **settings})


KERNEL = torch.randn(8, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
GRADIENTS = [torch.randn(8, 4, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3)]


def test_an_orthogonal_momentum_stays_itself_by_hand():
    # singular values 1 and 1, norm √2, so x = 1/√2: five times x(3.4445 - 4.7750x² + 2.0315x⁴)
    # 0.70711 -> 1.10653 -> 0.71208 -> 1.10059 -> 0.70576 -> 1.10811
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert torch.allclose(orthogonalise(7 * turn), 1.10811 * turn, atol=1e-5)


def test_the_update_of_a_kernel_has_singular_values_near_one():
    moved = KERNEL - after_steps(KERNEL, GRADIENTS[:1], ours())
    update = (moved / (0.1 * 0.2 * math.sqrt(108))).flatten(1)  # rate, AdamW's usual size, larger side: 4·27
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.68 and values.max() < 1.2
    # the same singular vectors as the flattened gradient: their product is symmetric
    product = update @ GRADIENTS[0].flatten(1).T
    assert torch.allclose(product, product.T, atol=1e-3)


@pytest.mark.parametrize("shape", [(8, 108), (108, 8), (6, 6)])
def test_equals_the_iteration_written_out_in_double_precision(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    assert torch.allclose(orthogonalise(matrix).double(), x, atol=1e-4)


def test_matrices_together_are_as_each_alone():
    generator = torch.Generator().manual_seed(5)
    matrices = [torch.randn(shape, generator=generator) for shape in ((8, 108), (8, 8), (200, 6), (12, 40), (3, 5))]
    for matrix, factor in zip(matrices, orthogonal_factors(matrices, 16), strict=True):
        least = min(matrix.shape)
        alone = orthogonal_factors([matrix], least)[0]
        assert torch.allclose(factor[:least, :least], alone, atol=1e-5 * float(alone.abs().max()))
        assert not factor[:least, least:].any() and not factor[least:, :least].any()


def test_many_kernels_step_as_each_alone():
    shapes = [(8, 4, 3, 3, 3), (8, 4, 3, 3, 3), (40, 6, 3, 3, 3), (6, 40, 2, 2, 2), (64, 3, 1, 1, 1), (50, 45)]
    together = [nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(n))) for n, s in enumerate(shapes)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    optimizers = [Muon(together, [], **settings), *(Muon([one], [], **settings) for one in alone)]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def test_equals_torch_on_flattened_kernels():
    def torchs(kernel):
        return torch.optim.Muon(
            [kernel], lr=0.1, momentum=0.9, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", nesterov=True
        )

    expected = after_steps(KERNEL.flatten(1), GRADIENTS, torchs)
    found = after_steps(KERNEL, GRADIENTS, ours(weight_decay=0.01))
    assert torch.allclose(found.flatten(1), expected, atol=0.02)  # torch iterates in bfloat16; an update is 0.08


def test_equals_timms_on_kernels():
    def timms(kernel):
        settings = {"adjust_lr_fn": "match_rms_adamw", "ns_coefficients": "original", "nesterov": True}
        return TimmsMuon([kernel], lr=0.1, momentum=0.9, weight_decay=0.01, **settings)

    expected = after_steps(KERNEL, GRADIENTS, timms)
    assert torch.allclose(after_steps(KERNEL, GRADIENTS, ours(weight_decay=0.01)), expected, atol=0.02)


def test_the_order_of_a_kernel_in_memory_changes_nothing():
    expected = after_steps(KERNEL, GRADIENTS, ours())
    last = KERNEL.contiguous(memory_format=torch.channels_last_3d)
    assert torch.allclose(after_steps(last, GRADIENTS, ours()), expected, atol=1e-6)


def test_no_gradient_no_step_and_a_zero_gradient_keeps_zeros():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))]
    optimizer = Muon([parameters[0], parameters[2]], parameters[1:2], lr=0.1, momentum=0.9, weight_decay=0.5)
    parameters[2].grad = torch.zeros(2, 2)
    optimizer.step()
    assert [p.detach().unique().tolist() for p in parameters] == [[1.0], [1.0], [pytest.approx(0.95)]]  # decay alone


def test_other_parameters_follow_adamw():
    first, second = (nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizers = [
        Muon([], [first], lr=0.1, momentum=0.5, weight_decay=0.1),
        torch.optim.AdamW([second], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1),
    ]
    for seed in range(4):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        for parameter, optimizer in zip((first, second), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(first, second, atol=1e-7)
