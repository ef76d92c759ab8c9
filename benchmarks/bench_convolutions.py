"""Seconds of a training step with torch's convolutions and with those of networks/convolutions.py, in one run.

On a processor with AMX torch's own may crash in bf16; give ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, or --precision fp32.

    python benchmarks/bench_convolutions.py WORK/plan.yaml --precision bf16
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from segpipe.networks.build import build
from segpipe.networks.convolutions import memory_format
from segpipe.plan.schema import Plan

_TORCHS = {"Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d, "ConvTranspose3d": nn.ConvTranspose3d}


def as_torch_has_it(network: nn.Module) -> nn.Module:
    """The network with torch's convolutions, in place."""
    for module in network.modules():
        if type(module).__module__ == "segpipe.networks.convolutions":
            module.__class__ = _TORCHS[type(module).__name__]
    return network


def seconds_of(network: nn.Module, images: Tensor, dtype: torch.dtype, *, trains: bool, n_repeats: int) -> float:
    """Best time of a step, or of a prediction."""
    best = float("inf")
    for _ in range(n_repeats + 1):
        begun = time.perf_counter()
        with (
            torch.set_grad_enabled(trains),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            outputs = network(images)
        if trains:
            sum(o.float().square().mean() for o in outputs).backward()
        best = min(best, time.perf_counter() - begun)
    return best


def main() -> None:
    """Print a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--only-own", action="store_true", help="Leave torch's out, which may crash.")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan = Plan.load(arguments.plan)
    chosen, dtype = plan.configurations[arguments.configuration], torch.bfloat16
    if arguments.precision == "fp32":
        dtype = torch.float32
    images = torch.randn(chosen.batch_size, plan.n_inputs(chosen), *chosen.patch_zyx)
    found = []
    for own in (True, False)[: 1 if arguments.only_own else 2]:
        torch.manual_seed(0)
        network = build(chosen.network, plan.n_inputs(chosen), plan.labels.n_outputs)
        order = memory_format(chosen.network.kind, chosen.network.n_axes, torch.device("cpu"), trains=True)
        network = (network if own else as_torch_has_it(network)).to(memory_format=order)
        step = seconds_of(network, images, dtype, trains=True, n_repeats=arguments.repeats)
        forward = seconds_of(network.eval(), images, dtype, trains=False, n_repeats=arguments.repeats)
        found.append(f"{'own' if own else 'torch'}: step {step:.2f} s, prediction {forward:.2f} s")
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "all instructions")
    what = f"{arguments.plan}, patch {chosen.patch_zyx}, batch {chosen.batch_size}, {arguments.precision}, {isa}"
    print(f"{what}: {'; '.join(found)}")


if __name__ == "__main__":
    main()
