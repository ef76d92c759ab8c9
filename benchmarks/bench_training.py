"""Iterations per second and peak memory of training, compared with nnunetv2's own trainer on the same split and plan.

    python benchmarks/bench_training.py DATA/hippocampus DATA/acdc --work W          # CPU
    python benchmarks/bench_training.py DATA/hippocampus phantom --work W --cuda     # GPU

Every arm is a process of its own that stays alive: it trains a few iterations on request and waits in between, so
that arms alternate and other work on the machine affects all of them. nnunetv2's arm is its real trainer's
`train_step` with its real data loader, on its own plan and preprocessed data. Ours is the body of the training loop,
drawing and augmenting included, with `--preset nnunet`, which has the same network, patch and batch. On the CPU both
draw and augment in the training process (nnunetv2: 0 workers), so that no work is done before the clock starts.
`--workers 0 2` adds an arm whose workers fill their queue between the rounds, which is more than they could do in a
long training. On CUDA both load ahead, and a round is longer than the queues.

Times are medians over rounds. Processor seconds are of all threads, which a busy machine changes less; they include
the time that threads wait for each other. Memory is the most resident memory of the process and its children, with
the cases that ours keeps in memory; on CUDA it is the GPU memory that torch reserved. `phantom` is a set of synthetic
volumes whose plan is two patches of 128³. A CUDA run also shows the share of the time in which the GPU computed, by
torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PHANTOM = "phantom"
PHANTOM_SHAPE_ZYX = (138, 170, 138)  # of a head at 1 mm: nnU-Net's plan for it has two patches of 128³
_N_PHANTOMS = 5
_PROFILED_STEPS = 10
_COLUMNS = ("dataset", "patch, batch", "arm", "seconds for an iteration (least – most)", "it/s", "times nnunetv2's")
_COLUMNS += ("processor seconds", "times fewer", "peak memory, MiB", "GPU busy")


def main() -> None:
    args = _arguments()
    if args.arm:
        _serve(args)
        return
    print(f"{_machine(args)}\n\n| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for name in args.data:
        made = args.work / "phantom_data"
        data = phantom(made, tuple(args.phantom_shape)) if name == PHANTOM else Path(name).resolve()
        work = args.work / Path(name).name
        told = _prepare(data, work, args)
        for line in _compare(data, work, args):
            print(f"| {Path(name).name} | {told} | {line} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help=f"datasets, or {PHANTOM}")
    parser.add_argument("--work", type=Path, required=True, help="folder for prepared data of both; reused")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, help="iterations of a round; default: 2, on CUDA 100")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="nnunetv2's augmentation workers; default: 0, on CUDA 12"
    )
    parser.add_argument("--ours", nargs="+", default=["auto", "fp32"], help="precisions of segpipe's arms")
    parser.add_argument("--phantom-shape", type=int, nargs=3, default=PHANTOM_SHAPE_ZYX, help="voxels of a volume")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.iterations = args.iterations or (100 if args.cuda else 2)
    args.workers = args.workers or [12 if args.cuda else 0]
    return args


def _machine(args: argparse.Namespace) -> str:
    import torch

    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gpu = f", {torch.cuda.get_device_name()}" if args.cuda else ""
    return (
        f"{model[0] if model else platform.machine()}, {os.cpu_count()} processors{gpu}, torch {torch.__version__}, "
        f"{args.threads} threads, {args.rounds} rounds of {args.iterations} iterations, load {os.getloadavg()[0]:.1f}"
    )


def phantom(folder: Path, shape_zyx: tuple[int, int, int]) -> Path:
    """Make a few volumes of noise with two balls, in nnU-Net's layout."""
    from segpipe.core.volume import write_image

    if (folder / "dataset.json").is_file():
        return folder
    generator, edge = np.random.default_rng(0), min(shape_zyx)
    points = np.stack(np.meshgrid(*(np.arange(n) for n in shape_zyx), indexing="ij"))
    for number in range(_N_PHANTOMS):
        labels = np.zeros(shape_zyx, np.uint8)
        for value in (1, 2):
            centre, radius = generator.uniform(0.3, 0.7, (3, 1, 1, 1)), generator.uniform(0.07, 0.22)
            labels[((points - centre * edge) ** 2).sum(0) < (radius * edge) ** 2] = value
        image = (labels + generator.normal(1, 0.3, labels.shape)).astype(np.float32)
        write_image(folder / "imagesTr" / f"case_{number}_0000.nii.gz", image[None], np.eye(4))
        write_image(folder / "labelsTr" / f"case_{number}.nii.gz", labels[None], np.eye(4))
    names = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}}
    described = names | {"name": PHANTOM, "numTraining": _N_PHANTOMS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def _prepare(data: Path, work: Path, args: argparse.Namespace) -> str:
    """Plan, split and prepare for our arm; nnunetv2's does its own. Returns patch and batch."""
    from segpipe.pipeline import plan, prepare
    from segpipe.pipeline.requests import Machine, PlanRequest, PrepareRequest
    from segpipe.plan.schema import Plan

    machine = Machine(_device(args), args.threads)
    if not (work / "plan.yaml").is_file():
        request = PlanRequest(work, machine, data, preset="nnunet", gpu_memory_gib=8.0, predicts_costs=False)
        plan.run(plan.resolve(request))
    prepare.run(prepare.resolve(PrepareRequest(work, machine, "3d_fullres")))
    found = Plan.load(work / "plan.yaml").configurations["3d_fullres"]
    return f"{'×'.join(map(str, found.patch_zyx))}, {found.batch_size}"


def _device(args: argparse.Namespace) -> str:
    return "cuda" if args.cuda else "cpu"


def _compare(data: Path, work: Path, args: argparse.Namespace) -> list[str]:
    """Run the arms in turn and return the rest of their rows, nnunetv2's first."""
    names = [f"nnunetv2, {n} workers" for n in args.workers] + [f"segpipe, {p}" for p in args.ours]
    arms: dict[str, Any] = {}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name in names:
            arms[name] = _start(name, data, work, args)
        for arm in arms.values():  # started together: compiling takes each of them minutes
            _answer(arm)  # it has trained its first iterations
        for _ in range(args.rounds):
            for name, arm in arms.items():
                rounds[name].append(_ask(arm, args.iterations))
                print(f"{data.name}, {name}: {rounds[name][-1]}", file=sys.stderr)
        busy = {name: _ask(arm, -_PROFILED_STEPS)["busy"] for name, arm in arms.items()} if args.cuda else {}
    finally:
        for arm in arms.values():
            arm.stdin.close()  # its loop ends, and its workers with it
            arm.wait()
    wall, spent = (
        {name: statistics.median(r[key] for r in rounds[name]) for name in names}
        for key in ("seconds", "processor_seconds")
    )
    theirs = names[: len(args.workers)]
    lines = []
    for name in names:
        times = [r["seconds"] for r in rounds[name]]
        cells = [name, f"{wall[name]:.3g} ({min(times):.3g} – {max(times):.3g})", f"{1 / wall[name]:.3g}"]
        cells += [f"{min(wall[n] for n in theirs) / wall[name]:.2f}", f"{spent[name]:.3g}"]
        cells += [f"{min(spent[n] for n in theirs) / spent[name]:.2f}"]
        cells += [f"{rounds[name][-1]['peak_bytes'] / 2**20:.0f}", f"{busy[name]:.0%}" if busy else "–"]
        lines.append(" | ".join(cells))
    return lines


def _start(name: str, data: Path, work: Path, args: argparse.Namespace) -> Any:
    command = [sys.executable, __file__, str(data), "--work", str(work), "--arm", name, "--fold", str(args.fold)]
    command += ["--threads", str(args.threads), *(["--cuda"] if args.cuda else [])]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(arm: Any, n_iterations: int) -> dict[str, Any]:
    arm.stdin.write(f"{n_iterations}\n")
    arm.stdin.flush()
    return _answer(arm)


def _answer(arm: Any) -> dict[str, Any]:
    line = arm.stdout.readline()
    if not line:
        sys.exit("an arm ended; see its output above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _serve(args: argparse.Namespace) -> None:
    """Run an arm: train the number of iterations in each line of stdin, a negative number with the profiler."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nnunetv2 prints
    steps = _nnunet_steps(args) if args.arm.startswith("nnunetv2") else _segpipe_steps(args)
    counts = iter([1, *([20] if args.cuda else [])])  # the first ones choose kernels, compile and allocate
    for count in counts:
        _seconds(steps, count, args)
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        count = int(line)
        spent = _processor_seconds()
        found = {"seconds": _seconds(steps, count, args)} if count > 0 else {"busy": _busy(steps, -count, args)}
        found["processor_seconds"] = (_processor_seconds() - spent) / abs(count)
        answers.write(json.dumps(found | {"peak_bytes": _peak_bytes(args)}) + "\n")
        answers.flush()
    steps.close()


def _seconds(steps: Iterator[None], n_steps: int, args: argparse.Namespace) -> float:
    """Return the mean seconds of a step."""
    import torch

    started = time.perf_counter()
    for _ in range(n_steps):
        next(steps)
    if args.cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / n_steps


def _busy(steps: Iterator[None], n_steps: int, args: argparse.Namespace) -> float:
    """Return the share of the time in which the GPU computed; kernels of one stream do not overlap."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        seconds = n_steps * _seconds(steps, n_steps, args)
    return sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6 / seconds


def _processor_seconds() -> float:
    """Return processor seconds of this process and its children so far."""
    ticks = 0
    for process in _family():
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # in user mode, in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def _family() -> list[str]:
    own = os.getpid()
    return [str(own), *Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def _peak_bytes(args: argparse.Namespace) -> int:
    """Return the most memory so far: of the GPU, or resident memory of this process and its children."""
    if args.cuda:
        import torch

        return torch.cuda.max_memory_reserved()
    return sum(_peak_resident_bytes(process) for process in _family())


def _peak_resident_bytes(process: str) -> int:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _nnunet_steps(args: argparse.Namespace) -> Iterator[None]:
    """Yield after each step of nnunetv2."""
    from segpipe.bridge import nnunet_train
    from segpipe.bridge.nnunet_raw import link_dataset, read_folds
    from segpipe.data.load import load_dataset

    dataset, shared = load_dataset(Path(args.data[0])), args.work / "nnunet"
    folds = read_folds(args.work / "splits.json", dataset)
    nnunet_train._set_environment(shared, args.threads)
    link_dataset(dataset, shared / "raw" / nnunet_train._NAME)
    preprocessed = shared / "preprocessed" / nnunet_train._NAME
    nnunet_train._plan_and_preprocess(preprocessed, args.threads)
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    _set_threads(args)
    trainer = nnunet_train._make_trainer(args.fold, _device(args), int(args.arm.split()[1]))
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    try:
        while True:
            trainer.train_step(next(trainer.dataloader_train))
            yield
    finally:
        trainer.stop_workers()


def _segpipe_steps(args: argparse.Namespace) -> Iterator[None]:
    """Ours."""
    import torch

    from segpipe.core.prefetch import Prefetch
    from segpipe.core.work import Work
    from segpipe.data.splits import Splits
    from segpipe.plan.schema import Plan
    from segpipe.prepare.dataset import prepared_folder
    from segpipe.prepare.store import open_cases
    from segpipe.train.fold import TRAIN, FoldData, FoldTraining
    from segpipe.train.optim import learning_rate

    _set_threads(args)
    work, device = Work(args.work), torch.device(_device(args))
    plan = Plan.load(work.plan)
    plan = plan.model_copy(update={"training": plan.training.model_copy(update={"precision": args.arm.split()[1]})})
    configuration, split = plan.configurations["3d_fullres"], Splits.load(work.splits).folds[args.fold]
    folder = prepared_folder(work, plan, configuration)
    cases = open_cases(folder, split.train, args.threads, device if args.cuda else None)
    fold = FoldTraining(plan, configuration, FoldData(args.fold, split, cases, []), device, is_new=True)
    n_steps = plan.training.epochs * plan.training.iterations_per_epoch
    with Prefetch(partial(fold.draw, TRAIN), args.threads if args.cuda else 0, 2) as batches:
        while True:
            fold.step(batches.get(fold.at.iteration), learning_rate(plan.training, fold.at.iteration / n_steps))
            yield


def _set_threads(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)


if __name__ == "__main__":
    main()
