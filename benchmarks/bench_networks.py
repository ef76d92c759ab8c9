"""The cost of every network for one patch: parameters, multiplications, kept activations, time of a training step.

python benchmarks/bench_networks.py [--patch 64 64 64] [--rounds 3] [--networks nnunet swin_unetr …]

Cubic voxels, one channel, three outputs, batch 1, float32, on the CPU. Everything except the seconds is computed
without running a network (`segpipe.networks.cost`). Seconds are of forward, loss and backward. Each round times every
network once, after a first run that does not count; the table shows the median over rounds. They are processor time
of all threads, because the load of a machine changes; with one thread (OMP_NUM_THREADS=1) an idle machine takes as
long.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from functools import partial
from typing import Any

import torch

from segpipe.core.labels import Label, LabelSet
from segpipe.networks.build import build
from segpipe.networks.cost import CPU, cost
from segpipe.networks.parts import Parts, aspp_dilations
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.geometry import Topology, topology
from segpipe.plan.presets import PRESETS
from segpipe.train.losses import supervised_loss

LABELS = LabelSet(labels=tuple(Label(name=str(value), values=(value,)) for value in (1, 2)))
LOSS = partial(supervised_loss, labels=LABELS, batch_dice=False)
N_CHANNELS, N_OUTPUTS = 1, LABELS.n_outputs


def _monai(kind: str, features: tuple[int, ...], blocks: tuple[int, ...]) -> NetworkSpec:
    n_stages = len(features)
    return NetworkSpec(
        kind=kind,
        features=features,
        strides_zyx=((1, 1, 1), *((2, 2, 2),) * (n_stages - 1)),
        kernels_zyx=((3, 3, 3),) * n_stages,
        blocks=blocks,
        decoder_convolutions=(1,) * (n_stages - 1),
    )


def _with(spec: NetworkSpec, **parts: Any) -> NetworkSpec:
    return spec.model_copy(update={"parts": Parts(**parts)})


def specs(found: Topology) -> dict[str, NetworkSpec]:
    """Return presets of the planner, single parts on nnU-Net's residual network, and networks without a preset."""
    named = {name: preset.network(found) for name, preset in PRESETS.items()}
    named = {name: spec for name, spec in named.items() if name not in ("resenc_l", "resenc_xl")}  # resenc_m's network
    residual = named["resenc_m"]
    deepest = [p // d for p, d in zip(found.patch, found.divisors, strict=True)]
    pyramid = dict(bottleneck="aspp_deeplab", dilations_zyx=aspp_dilations((1.0,) * 3, deepest))
    named["resenc_m + attention se"] = _with(residual, attention="se")
    named["resenc_m + aspp_deeplab"] = _with(residual, **pyramid)
    named["resenc_m + both"] = _with(residual, attention="se", **pyramid)
    botnet = dict(bottleneck_attention="botnet", bottleneck_map_zyx=tuple(deepest))
    mask = dict(bottleneck_mask="gaussian_mixture", bottleneck_spacing_mm=(16.0,) * 3)
    named["resenc_m + botnet"] = _with(residual, **botnet)
    named["resenc_m + botnet + gaussian_mixture"] = _with(residual, **botnet, **mask)
    named["resenc_m + s5"] = _with(residual, bottleneck_mixer="s5")
    named["resenc_m + convmixer"] = _with(residual, bottleneck_mixer="convmixer")
    named["resenc_m of convmixer blocks"] = _with(residual, block="convmixer")
    named["segresnet"] = _monai("segresnet", (32, 64, 128, 256), (1, 2, 2, 4))
    named["swin_unetr"] = _monai("swin_unetr", (48, 48, 96, 192, 384, 768), (1, 2, 2, 2, 2, 1))
    return named


def step_seconds(network: torch.nn.Module, patch: tuple[int, int, int]) -> float:
    images, labels = torch.randn(1, N_CHANNELS, *patch), torch.randint(0, 3, (1, *patch))
    network.zero_grad()
    start = time.process_time()
    LOSS(network(images), labels).backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64), metavar=("Z", "Y", "X"))
    parser.add_argument("--rounds", type=int, default=3, help="0: do not measure seconds")
    parser.add_argument("--networks", nargs="*", help="names; default: all")
    options = parser.parse_args()
    patch = tuple(options.patch)
    chosen = specs(topology((1.0,) * 3, patch))
    chosen = {name: chosen[name] for name in options.networks or chosen}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds + 1 if options.rounds else 0):
        for name, spec in chosen.items():
            torch.manual_seed(0)
            seconds[name].append(step_seconds(build(spec, N_CHANNELS, N_OUTPUTS), patch))
    print(f"patch {patch}, {torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}, ", end="")
    print(f"{platform.machine()}, load {os.getloadavg()[0]:.0f}\n")
    print("| network | stages | parameters, million | MACs forward, 10⁹ | kept activations, MiB | step, processor s |")
    print("|---|---|---|---|---|---|")
    for name, spec in chosen.items():
        found = cost(spec, N_CHANNELS, N_OUTPUTS, patch, 1, precision="fp32", loss=LOSS, calibration=CPU)
        median = f"{statistics.median(seconds[name][1:]):.2f}" if options.rounds else ""
        print(
            f"| {name} | {len(spec.features)} | {found.n_parameters / 1e6:.2f} | {found.n_macs_forward / 1e9:.1f} | "
            f"{found.kept_activation_bytes / 2**20:.0f} | {median} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
