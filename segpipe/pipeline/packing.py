"""Put a trained model into one file that others can predict with, and say in it what is known of the model."""

from __future__ import annotations

import html
import importlib.resources
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from segpipe._version import __version__
from segpipe.core.errors import UsageError
from segpipe.core.probabilities import CalibrationReport
from segpipe.core.text import printable
from segpipe.core.work import CALIBRATION_FILE, FoldFolder, Work
from segpipe.evaluate.scores import DIAGONAL, ScoreTable
from segpipe.evaluate.summary import summarise
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.folds import (
    SELECTED_MODEL_FILE,
    SELECTION,
    SelectedModel,
    common_training_stats,
    find_members,
    guide_folds,
    selected_postprocessing,
    weights_of,
)
from segpipe.predict.package import CARD, Manifest, ModelFacts, PackedScore, write_package
from segpipe.predict.postprocess import NO_POSTPROCESSING, POSTPROCESSING_FILE, Postprocessing
from segpipe.train.weights_header import about_weights

_TEMPLATE = "model_card.md.jinja"
_INSIDE = Work(Path())  # of a package
_SCORED_BY = ("dice", "hd95")


def pack(
    model: Path,
    output: Path,
    *,
    configurations: Sequence[str] = (),
    folds: Sequence[str] = (),
    licence: str | None = None,
) -> Manifest:
    """Write a model as one file: weights, plan, what the training cases are like, postprocessing, scores, model card.

    No image, no case's name and no path goes into it.

    Args:
        model: A work folder, a configuration's folder or a fold's.
        output: The file.
        configurations: Which, as for `predict`; what guides a cascade goes along.
        folds: Which; none for all that are trained to the end.
        licence: Terms under which the model may be used, e.g. `CC-BY-4.0`; None if unknown.

    Raises:
        UsageError: If there is no such model, it is a file already, or a fold is not trained to the end.
        ResourceError, SetupError: If it cannot be written.
    """
    if model.is_file():
        raise UsageError(f"{model}: is a file, expected a work folder or one of its runs/<configuration>.")
    members = {_about(chosen[0])[0]: chosen for chosen in find_members(model, configurations, folds)}
    _require_finished(fold for chosen in members.values() for fold in chosen)
    plan = Plan.load(next(iter(members.values()))[0].plan)
    steps = selected_postprocessing(list(members.values()), plan.labels)
    packed = members | _guides(plan, members)
    trained_on = [common_training_stats(chosen) for chosen in members.values()]
    facts = ModelFacts(
        segpipe=__version__,
        dataset=plan.dataset,
        fingerprint=plan.fingerprint,
        channels=plan.channels,
        labels=plan.labels.names,
        folds={name: tuple(_about(fold)[1] for fold in chosen) for name, chosen in packed.items()},
        n_training_cases=max((known.n_cases for known in trained_on if known), default=None),
        licence=licence,
        scores=tuple(score for name, chosen in members.items() for score in _scores(chosen, name)),
    )
    parts: dict[str, bytes | Path] = {CARD: model_card(facts, plan, trained_on[0], steps).encode()}
    for fold in (fold for chosen in packed.values() for fold in chosen):
        parts |= _fold_parts(fold, _INSIDE.fold(*_about(fold)))
    for name, chosen in members.items():
        if (calibration := chosen[0].path.parent / CALIBRATION_FILE).is_file():
            parts[_INSIDE.calibration(name).as_posix()] = CalibrationReport.load(calibration).to_json().encode()
    home = _INSIDE.run(next(iter(members))) if len(members) == 1 else Path(SELECTION)
    if steps != NO_POSTPROCESSING:
        parts[(home / POSTPROCESSING_FILE).as_posix()] = steps.to_yaml().encode()
    chosen_model = SelectedModel(
        configurations=tuple(members), weights=weights_of(fold for chosen in members.values() for fold in chosen)
    )
    parts[f"{SELECTION}/{SELECTED_MODEL_FILE}"] = chosen_model.to_yaml().encode()
    return write_package(output, facts, parts)


def _about(fold: FoldFolder) -> tuple[str, str]:
    """Configuration and number, as they stand in the weights: the folder may have another name."""
    about = about_weights(fold.weights)
    if not {"configuration", "fold"} <= about.keys():
        raise UsageError(f"{fold.weights}: does not say of which fold it is, so it is not of segpipe. Train the fold.")
    return about["configuration"], about["fold"]


def _require_finished(folds: Iterable[FoldFolder]) -> None:
    """Refuse what is still being trained: whoever gets the file could not finish it, and `predict` would refuse it."""
    if open_ends := [str(fold.path) for fold in folds if about_weights(fold.weights).get("finished") == "0"]:
        raise UsageError(
            f"{', '.join(open_ends)}: not trained to the end, expected finished folds: a packed model cannot be "
            "trained on. Finish training with the same `segpipe train`, or leave the fold out (-f)."
        )


def _guides(plan: Plan, members: dict[str, list[FoldFolder]]) -> dict[str, list[FoldFolder]]:
    """Folds that guide a cascade, by configuration, unless they are members themselves."""
    links = {plan.configurations[name].previous: chosen[0] for name, chosen in members.items()}
    return {name: guide_folds(fold, name) for name, fold in links.items() if name is not None and name not in members}


def _fold_parts(fold: FoldFolder, inside: FoldFolder) -> dict[str, bytes | Path]:
    """The files of a fold that prediction reads, by path inside; records are serialised again, in one form."""
    parts: dict[str, bytes | Path] = {
        inside.weights.as_posix(): fold.weights,
        inside.plan.as_posix(): Plan.load(fold.plan).to_yaml().encode(),
    }
    if fold.trained_on.is_file():
        parts[inside.trained_on.as_posix()] = TrainingStats.load(fold.trained_on).to_json().encode()
    return parts


def _scores(folds: Sequence[FoldFolder], configuration: str) -> Iterator[PackedScore]:
    """Mean scores over the cases that the folds were validated on."""
    tables = [ScoreTable.load(fold.scores) for fold in folds if fold.scores.is_file()]
    table = ScoreTable.join(tables, folds[0].path.parent)
    rows = tuple(row for row in table.rows if row.metric in (*_SCORED_BY, DIAGONAL))
    for row in summarise(ScoreTable(rows)):
        yield PackedScore(
            configuration=configuration,
            label=row.label,
            metric=row.metric,
            unit=row.unit,
            mean=row.mean,
            low=row.low,
            high=row.high,
            n_patients=row.n_patients,
            note=row.note,
        )


def model_card(facts: ModelFacts, plan: Plan, trained_on: TrainingStats | None, steps: Postprocessing) -> str:
    """The model card: Markdown for people, which says what is not known as well."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    text = importlib.resources.files("segpipe.pipeline").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    axes = zip("ZYX", trained_on.spacing_mm, trained_on.extent_mm, strict=True) if trained_on else ()
    schemes = (scheme.scheme for scheme in plan.normalisation)
    return environment.from_string(text).render(
        facts=facts,
        plan=plan,
        trained_on=trained_on,
        steps=steps,
        axes=list(axes),
        channels=list(zip(plan.channels, schemes, strict=True)),
        span=lambda span: f"{span.low:.4g} to {span.high:.4g}",
        edges=lambda edges_mm: " × ".join("each image's own" if mm is None else f"{mm:.4g}" for mm in edges_mm),
        number=lambda value: "–" if value is None else f"{value:.3f}",
    )


def _cell(text: str) -> str:
    """Text that stays within its place and is no link, picture or HTML, whatever characters a name has."""
    inert = html.escape(printable(" ".join(text.split())), quote=False).replace("`", "'")
    return re.sub(r"([|\[\]])", r"\\\1", inert)
