"""Run the studies of methods from papers in turn, and write one table of verdicts and costs.

python benchmarks/run_seeds.py -o OUT hippocampus=DATA acdc=DATA [--only plain sparse …] [--minutes 2] [--table FILE]

Each `plans/studies/seeds_<name>.yaml` is trained on each dataset into OUT/<dataset>/<name> by `segpipe study`, one
after the other. Arms get equal processor time, so other work on the machine makes a study later, not other. Rerun the
same command to resume; finished studies are only read again, and the table is written after each. A study that fails
has its reason in the table; the others go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from segpipe.compare.study_file import StepCosts, StudyFolder
from segpipe.core.files import write_text
from segpipe.core.history import History
from segpipe.core.machine import environment_here
from segpipe.core.text import size_text

STUDIES = Path(__file__).parent.parent / "plans" / "studies"
_PREFIX = "seeds_"
_N_VALIDATION = 20  # batches after each epoch, as preset cpu has it
_HEAD = [
    "| dataset | study | arm | Dice | difference | 95 % interval | verdict | seconds a step | steps | memory |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def run_study(file: Path, minutes: float | None, data: Path, output: Path) -> str:
    """Train and compare what is not finished; the last line of what went wrong, empty if nothing did."""
    study = output.parent / f"{output.name}.yaml"
    asked = yaml.safe_load(file.read_text("utf-8"))
    if minutes is not None:
        share = minutes / asked["processor_minutes"]  # of validation as well, which is not counted
        asked["processor_minutes"] = minutes
        asked["base"].setdefault("set", {})["training.validation_iterations"] = max(1, round(share * _N_VALIDATION))
    study.parent.mkdir(parents=True, exist_ok=True)
    write_text(study, yaml.safe_dump(asked, sort_keys=False))
    command = [sys.executable, "-m", "segpipe", "study", str(study), "--data", str(data), "-o", str(output)]
    command += ["--device", "cpu", "-j", "1"]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 130:
        raise KeyboardInterrupt
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""


def costs(output: Path, arm: str) -> tuple[float, float, float]:
    """Processor seconds of a step, number of steps, and largest memory in bytes of an arm's trainings.

    Seconds are by the clock where a study's budget is not a processor time.
    """
    seconds, steps, memory = [], [], []
    for path in sorted((output / "arms" / arm).glob("seed_*/runs/*/fold_*/history.csv")):
        columns = History.load(path).columns
        seconds.append(1 / statistics.median(columns["iterations_per_second"]))
        steps.append(columns["iteration"][-1])
        memory.append(max(columns["peak_memory_bytes"]))
    if not steps:
        return float("nan"), float("nan"), float("nan")
    if (file := StudyFolder(output).step_costs).is_file():
        seconds = [StepCosts.load(file).arms[arm].seconds]
    return statistics.median(seconds), statistics.median(steps), max(memory)


def rows_of(dataset: str, name: str, output: Path, fault: str) -> Iterator[str]:
    """Lines of the table for a study: each arm, the control first."""
    start = f"| {dataset} | {name} "
    if not (output / "comparison.json").is_file():
        yield f"{start}| | | | | {'failed: ' + fault if fault else 'not run yet'} | | | |"
        return
    comparison = json.loads((output / "comparison.json").read_text("utf-8"))
    control, *others = comparison["methods"]
    metric = next(metric for metric in comparison["metrics"] if metric["metric"] == "dice")
    found: dict[str, dict[str, Any]] = {
        row["method"]: row
        for row in metric["rows"]
        if row["baseline"] == control and row["label"] == "(mean)" and not row["grouping"]
    }
    for arm in (control, *others):
        seconds, steps, memory = costs(output, arm)
        cost = f"{seconds:.3f} | {steps:.0f} | {size_text(int(memory))}" if seconds == seconds else "| |"
        if arm == control:
            mean = next((row["mean_baseline"] for row in found.values()), None)
            yield f"{start}| {arm} | {_number(mean)} | | | control | {cost} |"
            continue
        row = found[arm]
        verdict = row["methods"] or row["models"]
        interval = f"{_number(verdict['low'])} to {_number(verdict['high'])}"
        which = "" if row["methods"] else " (these models)"
        difference, mean = _number(row["difference"]), _number(row["mean_method"])
        yield f"{start}| {arm} | {mean} | {difference} | {interval} | {verdict['answer']}{which} | {cost} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def table(lines: list[str], command: str, minutes: float) -> str:
    """Write the page."""
    machine = environment_here("")
    about = ", ".join(f"{name} {machine.versions[name]}" for name in ("segpipe", "torch")) + f", {machine.system}"
    intro = (
        "# Methods from papers\n\n"
        "Each method alone against its control, with the same everything else and the same processor time\n"
        f"(plans/studies): {minutes:g} min of one core for each training, fold 0 of 5. A difference is method minus\n"
        "control; the interval is of the difference. Verdicts are on the methods, from two trainings of each, with a\n"
        "margin of 0.005 Dice. Seconds a step are of the processor.\n\n"
        f"`{command}`\n\n{about}\n\n"
    )
    return intro + "\n".join([*_HEAD, *lines]) + "\n"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("datasets", nargs="+", metavar="NAME=DATA")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="names of studies without seeds_")
    parser.add_argument("--minutes", type=float, help="processor time of each training, instead of the studies' 10")
    parser.add_argument("--table", type=Path, help="where to write the table; default: OUT/seeds.md")
    parser.add_argument("--studies", type=Path, default=STUDIES, help="folder of study files")
    asked = parser.parse_args()
    known = {path.stem.removeprefix(_PREFIX): path for path in sorted(asked.studies.glob(f"{_PREFIX}*.yaml"))}
    unknown = [name for name in asked.only or () if name not in known]
    if unknown or not all("=" in text for text in asked.datasets):
        parser.error(f"expected NAME=DATA, and --only with names of {', '.join(known)}")
    chosen = asked.only or list(known)
    datasets = dict(text.split("=", 1) for text in asked.datasets)
    page, faults = asked.table or asked.output / "seeds.md", {}
    todo = [(name, dataset) for name in chosen for dataset in datasets]
    for name, dataset in todo:
        print(f"{name} on {dataset}", flush=True)
        faults[name, dataset] = run_study(
            known[name], asked.minutes, Path(datasets[dataset]), asked.output / dataset / name
        )
        lines = [
            line
            for one, other in todo
            for line in rows_of(other, one, asked.output / other / one, faults.get((one, other), ""))
        ]
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, table(lines, f"python benchmarks/run_seeds.py {' '.join(sys.argv[1:])}", asked.minutes or 10))


if __name__ == "__main__":
    main()
