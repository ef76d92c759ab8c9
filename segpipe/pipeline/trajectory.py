"""Analyse the paths of trained folds through weight space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segpipe.analyse.trajectory import (
    Components,
    Motion,
    distance_between,
    gram_matrix,
    measure_motion,
    null_fractions,
    principal_components,
    walk_fractions,
)
from segpipe.analyse.trajectory_picture import SHOWN_COMPONENTS, trajectory_png
from segpipe.core.errors import UsageError
from segpipe.core.files import whole_file
from segpipe.core.records import Record
from segpipe.core.text import command_text
from segpipe.core.work import FoldFolder, Work
from segpipe.networks.build import parameter_shapes
from segpipe.pipeline.plan import default_configuration
from segpipe.plan.schema import Plan
from segpipe.predict.folds import choose_folds
from segpipe.train.snapshots import snapshot_paths

_FEWEST = 3
_EVEN = 0.5  # steps between snapshots may differ by this share of their mean: a time budget's do


class NullMotion(Record):
    """Random motion to compare with.

    Args:
        name: Of the model.
        parameter: Momentum from snapshot to snapshot, or pull towards the centre; null for a plain random walk.
        fractions: Expected share of variance of the first components.
        distance: Share of the variance that the training has on other components, 0 to 1.
    """

    name: str
    parameter: float | None
    fractions: tuple[float, ...]
    distance: float


class Trajectory(Record):
    """A fold's path through weight space.

    Args:
        configuration, fold: Whose.
        iterations: Of the snapshots.
        n_parameters: Dimensions of the space.
        fractions: Share of variance of the first components.
        nulls: Random motions beside it, the nearest first.
        net_displacement, path_length: From the first to the last snapshot, and along all, in the unit of the weights.
        walk_displacement: Expected net displacement of a random walk with the same steps.
        drift_share: Share of the mean squared step that is one common direction: 0 for a random walk, 1 for a line.
        step_cosine: Mean cosine between steps that follow each other; 0 for a random walk.
        radius: Root mean square distance from the mean of the snapshots.
        resting_radius: That of the Ornstein–Uhlenbeck motion with such steps; null if it has not settled.
        notes: Sentences for a person.
    """

    configuration: str
    fold: str
    iterations: tuple[int, ...]
    n_parameters: int
    fractions: tuple[float, ...]
    nulls: tuple[NullMotion, ...]
    net_displacement: float
    path_length: float
    walk_displacement: float
    drift_share: float
    step_cosine: float
    radius: float
    resting_radius: float | None
    notes: tuple[str, ...]


class TrajectoryReport(Record):
    """The analyses of all folds, which are also in each fold's `trajectory.json`, with a picture beside it."""

    trajectories: tuple[Trajectory, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class TrajectoryRequest:
    """Trajectories to analyse.

    Args:
        folder: A work folder with trained folds.
        configuration: Which; None for the default one.
        folds: Names of folds; empty for all that are trained.
    """

    folder: Path
    configuration: str | None = None
    folds: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrajectoryJob:
    """An analysis that was checked: the configuration, and snapshots of each fold by iteration."""

    configuration: str
    snapshots: dict[str, dict[int, Path]]
    folders: dict[str, FoldFolder]


def resolve(request: TrajectoryRequest) -> TrajectoryJob:
    """Find the snapshots.

    Raises:
        UsageError: If there is no such folder, configuration or fold, or a fold has too few snapshots.
    """
    work = Work(request.folder)
    work.require_plan()
    name = default_configuration(Plan.load(work.plan), request.configuration)
    run = work.run(name)
    found = sorted(path.name.removeprefix("fold_") for path in run.glob("fold_*") if (path / "plan.yaml").is_file())
    if not found:
        train = command_text("segpipe", "train", str(work.path), "-c", name, "--set", "training.snapshots=50")
        raise UsageError(f"{run}: no trained fold, expected one with snapshots. Train it: `{train}`.")
    folds, _ = choose_folds(run, found, request.folds)
    folders = {fold: work.fold(name, fold) for fold in folds}
    snapshots = {fold: snapshot_paths(folder) for fold, folder in folders.items()}
    for fold, paths in snapshots.items():
        if len(paths) < _FEWEST:
            again = command_text(
                "segpipe",
                "train",
                str(work.path),
                "-c",
                name,
                "-f",
                fold,
                "--set",
                "training.snapshots=50",
                "--restart",
            )
            raise UsageError(
                f"{folders[fold].snapshots}: {len(paths)} snapshots, expected at least {_FEWEST}. Training keeps them "
                f"if the plan asks for it: `{again}` trains the fold again and replaces its weights; better use a copy "
                "of the work folder."
            )
    return TrajectoryJob(name, snapshots, folders)


def run(job: TrajectoryJob) -> TrajectoryReport:
    """Analyse each fold; write its `trajectory.json` and `trajectory.png`.

    Raises:
        UsageError: If a snapshot is damaged or of another network.
    """
    analyses, pictures = [], []
    for fold, paths in job.snapshots.items():
        folder = job.folders[fold]
        plan = Plan.load(folder.plan)
        own = plan.configurations[job.configuration]
        shapes = parameter_shapes(own.network, plan.n_inputs(own), plan.labels.n_outputs)
        gram = gram_matrix(list(paths.values()), list(shapes))
        components, motion, iterations = principal_components(gram), measure_motion(gram), tuple(paths)
        if motion.radius == 0:
            raise UsageError(f"{folder.snapshots}: all snapshots are equal, expected weights that move. Train longer.")
        found = null_fractions(components.fractions, _momentum_between(plan, iterations))
        nulls = [
            NullMotion(
                name=name,
                parameter=parameter,
                fractions=_first(expected),
                distance=distance_between(components.fractions, expected),
            )
            for name, (parameter, expected) in found.items()
        ]
        pull = found["Ornstein–Uhlenbeck"][0]
        assert pull is not None
        analysis = Trajectory(
            configuration=job.configuration,
            fold=fold,
            iterations=iterations,
            n_parameters=sum(int(np.prod(shape)) for shape in shapes.values()),
            fractions=_first(components.fractions),
            nulls=tuple(sorted(nulls, key=lambda null: null.distance)),
            net_displacement=motion.net_displacement,
            path_length=motion.path_length,
            walk_displacement=motion.walk_displacement,
            drift_share=motion.drift_share,
            step_cosine=motion.step_cosine,
            radius=motion.radius,
            resting_radius=motion.resting_radius(len(iterations), pull),
            notes=tuple(_notes(components, motion, iterations)),
        )
        picture = folder.trajectory.with_suffix(".png")
        drawn = {name: expected for name, (_, expected) in found.items()}
        with whole_file(picture) as temporary:
            temporary.write_bytes(trajectory_png(components, drawn, iterations, f"{job.configuration} fold {fold}"))
        analysis.save(folder.trajectory)
        analyses.append(analysis)
        pictures.append(str(picture))
    return TrajectoryReport(trajectories=tuple(analyses), pictures=tuple(pictures))


def _first(fractions: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(float(value) for value in fractions[:SHOWN_COMPONENTS])


def _momentum_between(plan: Plan, iterations: tuple[int, ...]) -> float:
    """Momentum of the optimizer that is left from one snapshot to the next."""
    return float(plan.training.momentum ** float(np.diff(iterations).mean()))


def _notes(components: Components, motion: Motion, iterations: tuple[int, ...]) -> list[str]:
    """Say what may be concluded."""
    n_points = len(iterations)
    found, walk = components.fractions[:2].sum(), walk_fractions(n_points)[:2].sum()
    notes = [
        f"The first 2 components hold {found:.0%} of the variance. A pure random walk of {n_points} points gives "
        f"{walk:.0%} in any network, and its picture is as smooth: neither shows that training has few dimensions."
    ]
    times = motion.net_displacement / motion.walk_displacement
    notes.append(
        f"The net displacement is {times:.2g} times that of a random walk with such steps; a common drift makes "
        f"{motion.drift_share:.0%} of the mean squared step."
    )
    gaps = np.diff(iterations)
    if np.abs(gaps - gaps.mean()).max() > _EVEN * gaps.mean() + 1:
        notes.append(
            f"Steps between snapshots range from {gaps.min()} to {gaps.max()}; the random motions assume equal ones."
        )
    return notes


def trajectory_text(found: Trajectory) -> str:
    """Write an analysis as lines for a terminal."""
    first, last = found.iterations[0], found.iterations[-1]
    lines = [
        f"{found.configuration} fold {found.fold}: {len(found.iterations)} snapshots of steps {first} to {last}, "
        f"{found.n_parameters:,} parameters",
        f"  {'share of variance':<27}" + "".join(f"{place:>7}" for place in range(1, 6)) + "   differs",
        f"  {'this training':<27}" + "".join(f"{value:7.4f}" for value in found.fractions[:5]),
    ]
    for null in found.nulls:
        name = null.name if null.parameter is None else f"{null.name} {null.parameter:.2g}"
        lines.append(
            f"  {name:<27}" + "".join(f"{value:7.4f}" for value in null.fractions[:5]) + f"{null.distance:10.0%}"
        )
    lines.append(
        f"  Displacement {found.net_displacement:.4g} (random walk {found.walk_displacement:.4g}), path "
        f"{found.path_length:.4g}, cosine of steps in a row {found.step_cosine:.2f}, radius {found.radius:.4g}"
        + (f" (at rest {found.resting_radius:.4g})" if found.resting_radius is not None else "")
    )
    return "\n".join(lines)
