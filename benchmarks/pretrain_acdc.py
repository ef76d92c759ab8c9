"""Does pre-training on images without labels help, with few labelled patients? ACDC, at equal processor minutes.

python benchmarks/pretrain_acdc.py OUT [--data DATA] [--patients 2,4,8] [--seeds 0,1,2] [--pretrain 10m] [--train 10m]

All images but those of fold 0's validation patients are pre-trained on, without labels. Then, for each number of
labelled patients and each seed, three trainings are scored on the same validation patients:

- scratch: new weights, as long as fine-tuning takes: equal minutes of fine-tuning;
- longer: new weights, as long as pre-training and fine-tuning together: equal minutes in all;
- pretrained: starts from the pre-trained weights.

Rerun it to resume: what is finished stays. Times are wall-clock, so nothing else may run beside it. It ends with a
table of mean Dice by arm, number of patients and seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

ARMS = ("scratch", "longer", "pretrained")
_CONFIGURATION = "3d_fullres"


def run(*command: object) -> None:
    """Run a command of segpipe; its errors end the benchmark."""
    subprocess.run([sys.executable, "-m", "segpipe", *map(str, command)], check=True)


def seconds_of(text: str) -> int:
    """Seconds of `10m` or `90s`."""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def make_plan(out: Path, data: Path) -> Path:
    """A planned work folder; its folds are by patient."""
    work = out / "plan"
    if not (work / "plan.yaml").is_file():
        run("plan", data, "-o", work, "--preset", "cpu_short", "--device", "cpu", "--no-report")
    return work


def patients_by_case(work: Path) -> dict[str, str]:
    """Patient of each case."""
    cases = json.loads((work / "dataset.json").read_text())["cases"]
    return {case["case_id"]: case["patient_id"] for case in cases}


def link_images(out: Path, work: Path, fold: dict[str, list[str]]) -> Path:
    """A folder with the images of the training cases, all that pre-training may see."""
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for case in json.loads((work / "dataset.json").read_text())["cases"]:
        for image in case["images"] if case["case_id"] in fold["train"] else []:
            link = folder / Path(image).name
            if not link.exists():
                link.symlink_to(Path(image).resolve())
    return folder


def write_splits(out: Path, work: Path, fold: dict[str, list[str]], n_patients: int, seed: int) -> Path:
    """Splits whose fold 0 trains on some of the patients and validates on the same ones as always."""
    patient_of = patients_by_case(work)
    patients = sorted({patient_of[case] for case in fold["train"]})
    chosen = set(random.Random(seed).sample(patients, n_patients))
    train = [case for case in fold["train"] if patient_of[case] in chosen]
    path = out / f"splits_{n_patients}_{seed}.json"
    path.write_text(json.dumps([{"train": train, "val": fold["validation"]}]))
    return path


def train_arm(out: Path, data: Path, splits: Path, name: str, seconds: int, seed: int, more: Sequence[str]) -> float:
    """Mean Dice over labels and validation cases of one training."""
    work = out / name
    scores = work / "runs" / _CONFIGURATION / "fold_0" / "scores.csv"
    if not scores.is_file():
        if not (work / "plan.yaml").is_file():
            how = ("--preset", "cpu_short", "--device", "cpu", "--no-report", "--splits", splits)
            run("plan", data, "-o", work, *how)
        edits = [part for edit in (f"training.seed={seed}", *more) for part in ("--set", edit)]
        run("train", work, "-c", _CONFIGURATION, "-f", 0, "--device", "cpu", "--time-budget", f"{seconds}s", *edits)
    with scores.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "dice" and row["value"]]
    return fmean(float(row["value"]) for row in rows)


def results(options: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Number of patients, seed, and Dice of each arm."""
    out, data, before, after = options.out, options.data, seconds_of(options.pretrain), seconds_of(options.train)
    work = make_plan(out, data)
    fold = json.loads((work / "splits.json").read_text())["folds"][0]
    images = link_images(out, work, fold)
    where = ("-o", out / "pre", "--for", work, "-c", _CONFIGURATION, "--device", "cpu")
    run("pretrain", images, *where, "--time-budget", f"{before}s")
    weights = (out / "pre" / "pretrained.safetensors").resolve()
    source = f"configurations.{_CONFIGURATION}.network.weights={{source: {weights}}}"
    for n_patients in options.patients:
        for seed in options.seeds:
            splits, found = write_splits(out, work, fold, n_patients, seed), {}
            for arm in ARMS:
                seconds = after + (before if arm == "longer" else 0)
                more = [source] if arm == "pretrained" else []
                name = f"{arm}_{n_patients}_{seed}"
                found[arm] = train_arm(out, data, splits, name, seconds, seed, more)
            yield n_patients, seed, found


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Print a line for each number of patients and seed as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/acdc"))
    parser.add_argument("--patients", type=_numbers, default=[2, 4, 8])
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--pretrain", default="10m")
    parser.add_argument("--train", default="10m")
    options = parser.parse_args()
    print(f"| patients | seed | {' | '.join(ARMS)} |\n|{'---|' * (2 + len(ARMS))}")
    for n_patients, seed, found in results(options):
        print(f"| {n_patients} | {seed} | {' | '.join(f'{found[arm]:.4f}' for arm in ARMS)} |", flush=True)


if __name__ == "__main__":
    main()
