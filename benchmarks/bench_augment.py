"""Milliseconds to augment a batch, compared with nnunetv2's own transforms on the same arrays.

OMP_NUM_THREADS=1 python benchmarks/bench_augment.py [--rounds 5] [--batches 20] [--device cpu]

In each round each arm in turn augments `--batches` batches, with new random numbers for each batch. The value of a
round is the mean, since most batches cost little and a few much. The table shows medians over rounds, of processor
time on the CPU and of wall time elsewhere. nnunetv2's arm is `nnUNetTrainer.get_training_transforms`, sample by
sample as in its workers (without the targets of deep supervision), always on the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from segpipe.core.grid import ZYX
from segpipe.plan.augmentation import Augmentation
from segpipe.train.augmentation.apply import apply
from segpipe.train.augmentation.draws import Scope, draw, is_flat, largest_angle, region_for

CASES: tuple[tuple[ZYX, int, int], ...] = (  # patch, batch, labels
    ((40, 56, 40), 2, 2),
    ((40, 56, 40), 9, 2),
    ((128, 128, 128), 2, 2),
    ((20, 256, 224), 2, 3),
    ((1, 256, 224), 12, 3),
)


def scene(region_zyx: ZYX, batch: int, n_labels: int) -> tuple[Tensor, Tensor]:
    """Make regions (B, 1, Z, Y, X) of noise, and labels (B, Z, Y, X): nested balls."""
    noise = torch.randn(batch, 1, *region_zyx, generator=torch.Generator().manual_seed(0))
    axes = [torch.linspace(-1, 1, n) for n in region_zyx]
    distance = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
    labels = sum((distance < 0.6 / k).long() for k in range(1, n_labels + 1))
    return labels + 0.2 * noise, labels.expand(batch, *region_zyx).to(torch.int16)


def ours(scope: Scope, device: torch.device) -> Callable[[Tensor, Tensor, int], None]:
    def run(images: Tensor, labels: Tensor, seed: int) -> None:
        draws = draw(scope, len(images), images.shape[1], np.random.default_rng(seed))
        apply(images, labels, draws, scope)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def theirs(patch: ZYX) -> Callable[[Tensor, Tensor, int], None]:
    angle = float(np.deg2rad(largest_angle(Augmentation(), patch)))
    one_slice = patch[0] == 1
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size=patch[1:] if one_slice else patch,
        rotation_for_DA=(-angle, angle),
        deep_supervision_scales=None,
        mirror_axes=(0, 1) if one_slice else (0, 1, 2),
        do_dummy_2d_data_aug=is_flat(patch) and not one_slice,
    )

    def run(images: Tensor, labels: Tensor, seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002 (its transforms draw from the global generators)
        torch.manual_seed(seed)
        found = []
        for image, label in zip(images, labels[:, None], strict=True):
            squeezed = (image[:, 0], label[:, 0]) if one_slice else (image, label)
            found.append(transforms(image=squeezed[0], segmentation=squeezed[1]))
        torch.stack([f["image"] for f in found])
        torch.stack([f["segmentation"] for f in found])

    return run


def seconds(
    run: Callable[[Tensor, Tensor, int], None],
    images: Tensor,
    labels: Tensor,
    n_batches: int,
    seed: int,
    clock: Callable[[], float],
) -> float:
    """Time batches and take the mean; copies for nnunetv2's transforms, which write into them, do not count."""
    total = 0.0
    for batch in range(n_batches):
        copies = images.clone(), labels.clone()
        start = clock()
        run(*copies, seed + batch)
        total += clock() - start
    return total / n_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="of our arm")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="places in the list of cases")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"{device}, load {os.getloadavg()[0]:.0f}, {options.rounds} rounds of {options.batches} batches\n")
    print("| patch | batch | labels | segpipe, ms | nnunetv2, ms | times faster | strong, ms |")
    print("|---|---|---|---|---|---|---|")
    for place in options.cases:
        patch, batch, n_labels = CASES[place]
        values = dict(
            mirror_axes=(0, 1, 2), side_axis=2, swapped=(), masked_channels=(), values=tuple(range(1, n_labels + 1))
        )
        plain, strong = (Scope(Augmentation.from_name(name), patch, **values) for name in ("nnunet", "strong"))
        images, labels = scene(region_for(patch, plain.augmentation), batch, n_labels)
        moved = images.to(device), labels.to(device)
        arms = ((ours(plain, device), *moved), (theirs(patch), images, labels), (ours(strong, device), *moved))
        for arm in arms:
            seconds(*arm, 2, 0, clock)
        rounds = [
            [seconds(*arm, options.batches, 1000 * r, clock) for arm in arms] for r in range(1, options.rounds + 1)
        ]
        own, other, hard = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(second / first for first, second, _ in rounds)
        shape = "×".join(map(str, patch))
        print(f"| {shape} | {batch} | {n_labels} | {own:.1f} | {other:.1f} | {ratio:.1f} | {hard:.1f} |", flush=True)


if __name__ == "__main__":
    main()
