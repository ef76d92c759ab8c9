"""Prepared cases on disk: time to read a random patch, and size, by blocks, chunks and codec, compared with nnunetv2.

python benchmarks/bench_store.py WORK... [-c 3d_fullres] [--cases 12] [--rounds 100] [--ct] [--only-batches]

A second table has batches per second, from disk and from memory, by the number of loading threads, compared with
nnunetv2's loader. A third one compares what is cut of each sample once its augmentation is drawn with whole regions of
all samples, in processor time; the arms take turns with the same seeds. --ct adds three images of 220 × 320 × 320
voxels (smooth structures and noise) with patches of 128³.

WORK is planned and prepared (`segpipe prepare`). Every way of storing holds the same cases. Every round reads the same
place of the same case from each in turn, image and labels, as large as a moved sample may need it. The times of
patches are medians of processor time, because the load of a machine changes. Batches per second are those that the
plan trains with, in wall time, the median of three turns; no other work runs in the process, so that threads show
their effect on loading alone. nnunetv2's loader runs in this process, without augmentation; in a training it has
processes of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from segpipe.core.grid import ZYX, Box
from segpipe.core.labels import Label, LabelSet
from segpipe.core.machine import cpu_count
from segpipe.core.prefetch import Prefetch
from segpipe.core.work import Work
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.schema import Plan
from segpipe.prepare.case import Prepared, Trace
from segpipe.prepare.dataset import prepared_folder
from segpipe.prepare.store import PatchCase, StoredCase, load_case, open_case, store_case
from segpipe.train.augmentation.draws import Scope, draw, edges_to_cut
from segpipe.train.sampling import Batch, Sampling, cut_, cut_batch, draw_places

_SECONDS_OF_DRAWING = 3.0


@dataclass(frozen=True)
class Arm:
    """Way of storing: edge of blocks (None: blosc2 chooses), chunks of the patch or of the whole case, codec."""

    block_edge: int | None = 32
    chunk: str = "patch"
    codec: str = "LZ4HC"
    level: int = 1
    filter: str = "NOFILTER"

    def write(self, path: Path, array: np.ndarray, patch_zyx: ZYX) -> None:
        shape = array.shape[-3:]
        lead = [1] * (array.ndim - 3)
        chunks = list(shape) if self.chunk == "case" else [min(p, n) for p, n in zip(patch_zyx, shape, strict=True)]
        edge = self.block_edge
        blocks = [*lead, *(min(c, edge) for c in chunks)] if edge else None
        cparams = {
            "codec": blosc2.Codec[self.codec],
            "clevel": self.level,
            "nthreads": 1,
            "filters": [blosc2.Filter[self.filter]],
        }
        blosc2.asarray(array, urlpath=str(path), chunks=[*lead, *chunks], blocks=blocks, cparams=cparams)


ARMS = {
    "segpipe: chunks of the patch, blocks of 32³, LZ4HC 1, no filter": Arm(),
    "blocks of 16³": Arm(block_edge=16),
    "blocks of 64³": Arm(block_edge=64),
    "blocks as blosc2 chooses them": Arm(block_edge=None),
    "one chunk for a case": Arm(chunk="case"),
    "bytes shuffled": Arm(filter="SHUFFLE"),
    "bits shuffled": Arm(filter="BITSHUFFLE"),
    "LZ4 5": Arm(codec="LZ4", level=5),
    "LZ4 5, bytes shuffled": Arm(codec="LZ4", level=5, filter="SHUFFLE"),
    "LZ4HC 5": Arm(level=5),
    "Zstandard 1": Arm(codec="ZSTD"),
}
NNUNET = "nnunetv2"
DTYPES = {"image": torch.float32, "indices": torch.int8}
Reader = Callable[[int, str], Any]  # case, image or indices


def write_all(folder: Path, cases: Sequence[PatchCase], patch_zyx: ZYX) -> dict[str, float]:
    """Store every case in every way; return processor seconds of each way."""
    seconds = {}
    for number in range(len(ARMS)):
        (folder / str(number)).mkdir()
    for name, arm in [*ARMS.items(), (NNUNET, None)]:
        began = time.process_time()
        for index, case in enumerate(cases):
            if arm is None:
                write_nnunet(folder / NNUNET, index, case, patch_zyx)
                continue
            place = folder / str(list(ARMS).index(name))
            arm.write(place / f"{index}_image.b2nd", case.image, patch_zyx)
            arm.write(place / f"{index}_indices.b2nd", case.indices, patch_zyx)
        seconds[name] = time.process_time() - began
    return seconds


def write_nnunet(folder: Path, index: int, case: PatchCase, patch_zyx: ZYX) -> None:
    """Store cases with nnunetv2's own functions, as its preprocessor calls them."""
    folder.mkdir(exist_ok=True)
    indices = case.indices[None].astype(np.int8)
    settings: dict[str, Any] = {}
    for ending, array in (("", case.image), ("_seg", indices)):
        blocks, chunks = comp_blosc2_params(array.shape, patch_zyx, array.itemsize)
        settings |= {f"blocks{ending}": blocks, f"chunks{ending}": chunks}
    places = {  # its lists have the axis of channels in front
        label + 1: np.pad(np.stack(np.unravel_index(own.voxels, case.shape_zyx), axis=1), ((0, 0), (1, 0)))
        for label, own in case.places.items()
    }
    nnUNetDatasetBlosc2.save_case(
        case.image, indices, {"class_locations": places}, str(folder / str(index)), **settings
    )


def opened(path: Path) -> Any:
    return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def readers(folder: Path) -> dict[str, Reader]:
    """Return for each way a function that opens an array of a case; it is called for every patch."""

    def ours(place: Path) -> Reader:
        return lambda index, kind: opened(place / f"{index}_{kind}.b2nd")

    nnunet = nnUNetDatasetBlosc2(str(folder / NNUNET))
    found = {name: ours(folder / str(number)) for number, name in enumerate(ARMS)}
    return found | {NNUNET: lambda index, kind: nnunet.load_case(str(index))[0 if kind == "image" else 1]}


def reading(folder: Path, cases: Sequence[PatchCase], region_zyx: ZYX, n_rounds: int) -> dict[str, float]:
    """Measure median processor milliseconds of a region of image and labels; the ways take turns at the same places."""
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in [*ARMS, NNUNET]}
    ways = readers(folder)
    for round_index in range(n_rounds + 1):  # the first one is not counted
        index = int(generator.integers(len(cases)))
        shape = cases[index].shape_zyx
        start = [
            int(generator.integers(min(0, n - r), max(0, n - r) + 1)) for n, r in zip(shape, region_zyx, strict=True)
        ]
        order = generator.permutation(len(ways))
        for name in [list(ways)[place] for place in order]:
            began = time.process_time()
            for kind in ("image", "indices"):
                array = ways[name](index, kind)
                piece = torch.empty(*array.shape[:-3], *region_zyx, dtype=DTYPES[kind])
                cut_(piece, array, start, 0)
            if round_index:
                seconds[name].append(time.process_time() - began)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.b2nd")) / 2**20


def store_table(cases: Sequence[PatchCase], patch_zyx: ZYX, region_zyx: ZYX, n_rounds: int, folder: Path) -> None:
    raw = sum(case.image.nbytes + case.indices.nbytes for case in cases) / 2**20
    written = write_all(folder, cases, patch_zyx)
    read = reading(folder, cases, region_zyx, n_rounds)
    print("\n| stored as | a region, ms | on disk, share of the arrays | writing, MiB/s |\n|---|---|---|---|")
    for number, name in enumerate([*ARMS, NNUNET]):
        place = folder / (NNUNET if name == NNUNET else str(number))
        print(f"| {name} | {read[name]:.2f} | {size_mib(place) / raw:.2f} | {raw / written[name]:.0f} |", flush=True)


def batch_table(
    stored: Sequence[PatchCase], in_memory: Sequence[PatchCase], sampling: Sampling, scope: Scope, nnunet: Path
) -> None:
    """Measure batches per second, the median of three turns; the arms take turns."""
    arms: dict[str, Callable[[], float]] = {}
    for name, cases in (("disk", stored), ("memory", in_memory)):
        for n_threads in (0, 1, 2):
            arms[f"segpipe, {name}, {n_threads} threads"] = partial(drawn_per_second, cases, sampling, scope, n_threads)
    arms["nnunetv2's loader, disk"] = partial(nnunet_drawn_per_second, nnunet, sampling, scope.region_zyx)
    turns = [{name: measured() for name, measured in arms.items()} for _ in range(3)]
    print("\n| batches from | per second |\n|---|---|")
    for name in arms:
        print(f"| {name} | {statistics.median(turn[name] for turn in turns):.1f} |", flush=True)


def cut_table(
    stored: Sequence[PatchCase], in_memory: Sequence[PatchCase], sampling: Sampling, scope: Scope, n_rounds: int
) -> None:
    """Compare cuts of what each sample needs with whole regions: numbers, and mean processor time to read a batch."""
    print("\n| batches from | cut | numbers, millions | ms | times less |\n|---|---|---|---|---|")
    for name, cases in (("disk", stored), ("memory", in_memory)):
        sizes: dict[bool, list[int]] = {True: [], False: []}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(n_rounds + 1):  # the first one is not counted
            for whole in (True, False) if seed % 2 else (False, True):
                ahead = drawn(cases, sampling, scope, seed, whole=whole)
                began = time.process_time()
                batch = ahead()
                if seed:
                    seconds[whole].append(time.process_time() - began)
                    sizes[whole].append(batch.images.flat.numel() + batch.indices.flat.numel())
        ms = {whole: 1000 * statistics.mean(values) for whole, values in seconds.items()}
        numbers = {whole: statistics.mean(values) / 1e6 for whole, values in sizes.items()}
        print(f"| {name} | regions of all | {numbers[True]:.2f} | {ms[True]:.2f} | |")
        ratios = f"{numbers[True] / numbers[False]:.1f} numbers, {ms[True] / ms[False]:.1f} time"
        print(f"| {name} | what is needed | {numbers[False]:.2f} | {ms[False]:.2f} | {ratios} |", flush=True)


def drawn(
    cases: Sequence[PatchCase], sampling: Sampling, scope: Scope, seed: int, *, whole: bool = False
) -> Callable[[], Batch]:
    """Draw a batch as training does; what is returned reads it, or whole regions of all samples."""
    generator = np.random.default_rng(seed)
    places = draw_places(cases, sampling, generator)
    draws = draw(scope, sampling.batch_size, cases[0].image.shape[0], generator)
    edges = [scope.region_zyx] * sampling.batch_size if whole else edges_to_cut(draws, scope)
    return partial(cut_batch, places, sampling.patch_zyx, draws, edges)


def drawn_per_second(cases: Sequence[PatchCase], sampling: Sampling, scope: Scope, n_threads: int) -> float:
    with Prefetch(lambda seed: drawn(cases, sampling, scope, seed)(), n_threads, 2) as batches:
        indices = itertools.count()
        return per_second(lambda: batches.get(next(indices)))


def store_ct(folder: Path, patch_zyx: ZYX, n_cases: int = 3) -> list[str]:
    """Store images as large as those of an abdominal CT: smooth structures with noise; three labels."""
    shape = (220, 320, 320)
    labels = LabelSet(labels=tuple(Label(name=f"l{value}", values=(value,)) for value in (1, 2, 3)))
    names = [f"ct_{number}" for number in range(n_cases)]
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        coarse = torch.from_numpy(generator.normal(size=(1, 1, 9, 12, 12)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0].numpy()
        indices = np.digitize(smooth[0], [0.8, 1.2, 1.6]).astype(np.int16)
        image = (smooth + generator.normal(0, 0.1, shape)).astype(np.float32)
        trace = Trace(
            shape_zyx=shape,
            axes_zyx=(0, 1, 2),
            flips_zyx=(False,) * 3,
            spacing_mm=(1.0,) * 3,
            box=Box(start_zyx=(0, 0, 0), stop_zyx=shape),
            target_mm=(1.0,) * 3,
            prepared_shape_zyx=shape,
        )
        about = StoredCase(case_id=name, signature="", content="", trace=trace)
        store_case(folder / name, Prepared(image, indices, trace), about, labels, patch_zyx)
    return names


def nnunet_drawn_per_second(folder: Path, sampling: Sampling, region_zyx: ZYX) -> float:
    labels = SimpleNamespace(all_labels=[], has_ignore_label=False)
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        sampling.batch_size,
        region_zyx,
        sampling.patch_zyx,
        labels,
        oversample_foreground_percent=sampling.foreground_fraction,
    )
    return per_second(loader.generate_train_batch)


def per_second(draw: Callable[[], object]) -> float:
    draw()
    n_drawn, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS_OF_DRAWING:
        draw()
        n_drawn += 1
    return n_drawn / (time.perf_counter() - began)


def scope_for(patch_zyx: ZYX, augmentation: Augmentation) -> Scope:
    """What augmentation draws; labels and mirrored axes change nothing of what is cut."""
    return Scope(augmentation, patch_zyx, (0, 1, 2), 2, (), (), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", type=Path, nargs="*", metavar="WORK")
    parser.add_argument("-c", "--configuration", default="3d_fullres")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ct", action="store_true", help="add synthetic images and patches of 128³")
    parser.add_argument("--only-batches", action="store_true", help="leave the ways of storing and nnunetv2 out")
    options = parser.parse_args()
    print(f"{platform.machine()}, {cpu_count()} processors, load {os.getloadavg()[0]:.0f}, blosc2 {blosc2.__version__}")
    for path in options.works:
        work = Work(path)
        plan = Plan.load(work.plan)
        configuration = plan.configurations[options.configuration]
        folder = prepared_folder(work, plan, configuration)
        names = sorted(p.name for p in folder.iterdir())
        stored = [open_case(folder / name) for name in names[:: max(1, len(names) // options.cases)][: options.cases]]
        fraction = plan.training.foreground_fraction
        sampling = Sampling(configuration.patch_zyx, configuration.batch_size, fraction)
        scope = scope_for(configuration.patch_zyx, plan.training.augmentation)
        measure(path.resolve().name, stored, sampling, scope, options)
    if options.ct:
        with tempfile.TemporaryDirectory() as place:
            sampling = Sampling((128, 128, 128), 2, 1 / 3)
            stored = [open_case(Path(place) / name) for name in store_ct(Path(place), sampling.patch_zyx)]
            scope = scope_for(sampling.patch_zyx, Augmentation.from_name("nnunet"))
            measure("synthetic CT", stored, sampling, scope, options)


def measure(
    name: str, stored: Sequence[PatchCase], sampling: Sampling, scope: Scope, options: argparse.Namespace
) -> None:
    in_memory = [load_case(case) for case in stored]
    print(f"\n### {name}: {len(stored)} cases, patch {scope.patch_zyx}, region {scope.region_zyx}, ", end="")
    print(f"batch {sampling.batch_size}")
    if not options.only_batches:
        with tempfile.TemporaryDirectory() as scratch:
            store_table(in_memory, scope.patch_zyx, scope.region_zyx, options.rounds, Path(scratch))
            batch_table(stored, in_memory, sampling, scope, Path(scratch) / NNUNET)
    cut_table(stored, in_memory, sampling, scope, options.rounds)


if __name__ == "__main__":
    main()
