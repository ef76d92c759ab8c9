"""Costs of a network before it is built on a device: bytes, multiplications, about how many seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from segpipe.core.records import Record
from segpipe.networks.build import build, inner_kernels, norm_parameters
from segpipe.networks.memory_trace import LossFunction, Workload, trace_inference, trace_training
from segpipe.networks.spec import NetworkSpec

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROBE_EDGE_VOX = {"cuda": 96}  # large enough to fill the device; 32 elsewhere
_PROBE_FEATURES = 32
_PROBE_SECONDS = 1.0


class Calibration(Record):
    """Memory that a device takes besides the tensors of a step.

    Args:
        device_kind: Whose rules autocast follows.
        context_bytes: Once for each process that uses the device.
        scratch_share: Memory of a convolution besides its operands and results, as a share of those.
        slack_fraction: How much more an allocator holds than is alive, as a share of that.
    """

    device_kind: Literal["cuda", "cpu"]
    context_bytes: NonNegativeInt
    scratch_share: NonNegativeFloat
    slack_fraction: NonNegativeFloat


# Provisional until a GPU has measured it: contexts of current drivers take 0.3 to 0.6 GiB; cuDNN brings the operands of
# a 3D convolution into its own layout; blocks of the caching allocator are not filled.
CUDA = Calibration(device_kind="cuda", context_bytes=600 * 2**20, scratch_share=1.0, slack_fraction=0.05)
# Measured in whole trainings, benchmarks/results/memory.md: Python with torch and segpipe takes 750 MiB, following a
# step on fake tensors another 120, and glibc keeps freed memory in pieces: 60 % of what is alive at the peak.
CPU = Calibration(device_kind="cpu", context_bytes=870 * 2**20, scratch_share=0.0, slack_fraction=0.6)


class Cost(Record):
    """Cost of a training step and of predicting one patch. Bytes are of the device's memory.

    Args:
        n_parameters: Numbers in the parameters.
        parameter_bytes: Parameters and buffers.
        gradient_bytes: Their gradients, all of which exist when backward ends.
        optimizer_bytes: Its state, and the average of the weights.
        batch_bytes: Images and labels of a batch.
        kept_activation_bytes: Storages that forward and loss save for backward, each once; with autocast the short
            copies of the weights are among them.
        transient_bytes: What the largest moment of the step holds besides parameters, optimizer, batch and kept
            activations: gradients so far, copies of the loss, scratch memory.
        n_macs_forward: Multiplications with addition of the forward pass of a batch.
        n_macs_step: Of a training step.
        training_bytes: Predicted peak of training, calibration included.
        inference_bytes: Predicted peak of predicting one patch, calibration included.
    """

    n_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    kept_activation_bytes: int
    transient_bytes: int
    n_macs_forward: int
    n_macs_step: int
    training_bytes: int
    inference_bytes: int


def cost(
    network: NetworkSpec | nn.Module,
    n_channels: int,
    n_outputs: int,
    patch_zyx: tuple[int, int, int],
    batch_size: int,
    *,
    optimizer_states: tuple[int, int] = (1, 1),
    gradient_copies: int = 1,
    n_passes: int = 1,
    averages_weights: bool = False,
    precision: Precision = "bf16",
    loss: LossFunction | None = None,
    calibration: Calibration = CUDA,
) -> Cost:
    """Predict what training and prediction take, without computing anything; needs no GPU.

    Args:
        network: What `build` takes, or a module from (B, C, Z, Y, X) to logits or a list of them; it is not changed.
        n_channels: Channels of the image.
        n_outputs: Channels of the result; a module has its own.
        patch_zyx: Voxels of a patch.
        batch_size: Patches in a step.
        optimizer_states: Numbers that the optimizer keeps for each number of an inner kernel, and of any other
            parameter; the default is that of SGD with momentum.
        gradient_copies: Copies of all gradients that a step of the optimizer makes on its way.
        n_passes: How often a step computes the gradients; with two, norms' parameters and all buffers are kept
            meanwhile.
        averages_weights: Whether a second copy of the weights is kept.
        precision: Of autocast.
        loss: The trainer's, so that its memory counts; None for the network alone.
        calibration: Of the device.

    Source:
        The tensors are those that torch itself makes and frees, followed on fake tensors. Approximated: CUDA's autocast
        (the CPU's, with CUDA's additional float32 operations), scratch memory and slack (`Calibration`). nnU-Net
        counts feature-map voxels instead and compares them with reference networks.
    """
    if isinstance(network, NetworkSpec):
        with torch.device("meta"):
            network = build(network, n_channels, n_outputs)
    on_cuda = calibration.device_kind == "cuda"
    work = Workload(n_channels, patch_zyx, batch_size, _DTYPES[precision], on_cuda)
    traced = trace_training(network, work, loss or _sum_of_means, calibration.scratch_share)
    one_patch = trace_inference(network, replace(work, batch_size=1), calibration.scratch_share)
    weight_bytes, gradient_bytes = traced.parameter_bytes + traced.buffer_bytes, traced.trainable_bytes
    optimizer_bytes = _state_bytes(network, optimizer_states) + averages_weights * weight_bytes
    if n_passes > 1:
        optimizer_bytes += sum(p.nbytes for p in norm_parameters(network).values()) + traced.buffer_bytes
    stepping_bytes = weight_bytes + traced.batch_bytes + (1 + gradient_copies) * gradient_bytes
    peak_bytes = max(traced.peak_bytes, stepping_bytes) + optimizer_bytes
    lasting_bytes = weight_bytes + optimizer_bytes + traced.batch_bytes + traced.kept_bytes
    return Cost(
        n_parameters=traced.n_parameters,
        parameter_bytes=weight_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer_bytes,
        batch_bytes=traced.batch_bytes,
        kept_activation_bytes=traced.kept_bytes,
        transient_bytes=max(0, peak_bytes - lasting_bytes),
        n_macs_forward=traced.n_macs_forward,
        n_macs_step=n_passes * traced.n_macs_step,
        training_bytes=_on_device(peak_bytes, calibration),
        inference_bytes=_on_device(one_patch, calibration),
    )


def _state_bytes(network: nn.Module, states: tuple[int, int]) -> int:
    of_kernels, of_others = states
    kernel_bytes = sum(p.nbytes for p in inner_kernels(network) if p.requires_grad)
    return (
        of_others * sum(p.nbytes for p in network.parameters() if p.requires_grad)
        - (of_others - of_kernels) * kernel_bytes
    )


def fits(predicted: Cost, memory_bytes: int) -> bool:
    """Return whether training fits into a device's memory."""
    return predicted.training_bytes <= memory_bytes


def seconds_per_step(predicted: Cost, device: torch.device | str, precision: Precision) -> float:
    """Estimate how long a training step takes: its multiplications at the rate of a small network on this device.

    A rough guide, and rather too short: depthwise convolutions and small feature maps do not reach that rate; loading
    and augmentation are not counted.
    """
    return predicted.n_macs_step / _macs_per_second(torch.device(device), precision)


@lru_cache(maxsize=8)
def _macs_per_second(device: torch.device, precision: Precision) -> float:
    """Rate of training two convolutions with norm and activation, measured once in a process for about a second."""
    edge, n = _PROBE_EDGE_VOX.get(device.type, 32), _PROBE_FEATURES
    layers = [(nn.Conv3d(n, n, 3, padding=1), nn.InstanceNorm3d(n, affine=True), nn.LeakyReLU(inplace=True))] * 2
    network = nn.Sequential(*(layer for block in layers for layer in block)).to(device)
    images = torch.randn(1, n, edge, edge, edge, device=device, requires_grad=True)  # zeros are faster

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32"):
            outputs = network(images)
        outputs.float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    step()  # chooses algorithms
    n_macs_step = 3 * 2 * n * n * 27 * edge**3  # forward, and backward to operands and weights, of two convolutions
    spent, fastest = 0.0, float("inf")
    while spent < _PROBE_SECONDS:
        seconds = step()
        spent, fastest = spent + seconds, min(fastest, seconds)
    return n_macs_step / fastest


def _on_device(live_bytes: int, calibration: Calibration) -> int:
    return calibration.context_bytes + round(live_bytes * (1 + calibration.slack_fraction))


def _sum_of_means(outputs: Sequence[Tensor], indices_BZYX: Tensor) -> Tensor:  # noqa: ARG001 (the form of a loss)
    return torch.stack([o.float().mean() for o in outputs]).sum()
