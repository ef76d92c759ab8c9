"""The cases of a page in their order, found in a work folder, a folder of predictions or a folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segpipe.core.errors import DataError, UsageError
from segpipe.core.header import checked_ending, stem_of
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.text import command_text
from segpipe.core.work import Work, preferred_configuration
from segpipe.data.dataset import Dataset
from segpipe.data.inputs import list_inputs
from segpipe.data.layouts.folders import IMAGE_FOLDERS, subfolder
from segpipe.data.layouts.scan import DatasetFiles, image_files, pair_files
from segpipe.data.load import find_layout
from segpipe.evaluate.pairs import find_pairs
from segpipe.evaluate.scores import ScoreTable


@dataclass(frozen=True)
class GalleryCase:
    """Files of a case.

    Args:
        case_id: Its name.
        images: One file for each channel, or one with all of them.
        reference: Label map; None if there is none.
        prediction: Mask; None if there is none.
        dice: Mean over its labels, both masks empty as 1; None if it was not scored.
    """

    case_id: str
    images: tuple[Path, ...]
    reference: Path | None = None
    prediction: Path | None = None
    dice: float | None = None


@dataclass(frozen=True)
class Gallery:
    """All that one page shows.

    Args:
        title: For people.
        cases: In the order of the page.
        channels: Names of the channels; empty if nobody named them.
        label_names: Name of each value of the label maps, as far as it is known.
        label_places: Place of each such value's label in its label set, which gives it its colour.
        background_value: Value of everything that is no structure.
        ignore_value: Value of voxels that nobody annotated; None if there is none.
    """

    title: str
    cases: tuple[GalleryCase, ...]
    channels: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    label_places: Mapping[int, int] = field(default_factory=dict)
    background_value: int = 0
    ignore_value: int | None = None

    def case(self, case_id: str) -> GalleryCase | None:
        """The case of that name."""
        return next((case for case in self.cases if case.case_id == case_id), None)


def worst_first(cases: Iterable[GalleryCase]) -> tuple[GalleryCase, ...]:
    """By mean Dice, then by name; cases without scores last."""
    return tuple(sorted(cases, key=lambda c: (c.dice is None, c.dice if c.dice is not None else 0.0, c.case_id)))


def case_dice(table: ScoreTable | None) -> dict[str, float]:
    """Mean Dice of each case over its labels, both masks empty as 1, one as 0; of several predictions the mean."""
    values: dict[str, list[float]] = {}
    for row in table.rows if table else ():
        if row.metric == "dice":
            value = row.value if row.status == "ok" else float(row.status == "both_empty")
            values.setdefault(row.case_id, []).append(value)
    return {case_id: float(np.mean(found)) for case_id, found in values.items()}


def value_places(labels: LabelSet) -> dict[int, int]:
    """Place of each value's label in the label set; with regions that of the smallest region with it."""
    by_size = sorted(enumerate(labels.labels), key=lambda one: len(one[1].values), reverse=True)
    return {value: place for place, label in by_size for value in label.values}


_SCORES, _LABEL_TABLE = "scores.csv", "dseg.tsv"
_N_NAMED = 5  # cases in a message


def is_work_folder(folder: Path) -> bool:
    """True if it was planned or trained in; a `dataset.json` alone is a dataset."""
    return any((folder / name).exists() for name in ("plan.yaml", "splits.json", "runs"))


def from_work(folder: Path, configuration: str | None) -> Gallery:
    """All cases of a work folder with their out-of-fold predictions, as far as folds are trained.

    Args:
        folder: The work folder.
        configuration: Whose predictions; None for 3d_fullres, or the first if that is not trained.

    Raises:
        UsageError: If that configuration is not trained.
        DataError: If dataset.json or the scores cannot be read.
    """
    work = Work(folder)
    dataset = Dataset.load(work.dataset)
    trained = sorted(path.name for path in folder.glob("runs/*") if path.is_dir() and not path.name.startswith("."))
    if configuration is not None and configuration not in trained:
        raise UsageError(
            f"-c {configuration}: is not trained in {folder}; found {', '.join(trained) or 'none'}. Choose one of "
            f"these, or train it with `{command_text('segpipe', 'train', str(folder), '-c', configuration)}`."
        )
    chosen = configuration or preferred_configuration(trained)
    dice = case_dice(_scores_of_work(work, chosen)) if chosen else {}
    masks = _validation_masks(work, chosen) if chosen else {}
    cases = [
        GalleryCase(
            case_id=case.case_id,
            images=tuple(case.image_paths),
            reference=Path(case.label) if case.label else None,
            prediction=masks.get(case.case_id),
            dice=dice.get(case.case_id),
        )
        for case in dataset.cases
    ]
    return Gallery(
        title=f"{dataset.name}, {chosen}" if chosen else dataset.name,
        cases=worst_first(cases),
        channels=dataset.channels,
        label_names=_names(dataset.labels),
        label_places=value_places(dataset.labels),
        background_value=dataset.labels.background_value,
        ignore_value=dataset.labels.ignore_value,
    )


def _validation_masks(work: Work, configuration: str) -> dict[str, Path]:
    """Out-of-fold mask of each case; `fold_all` has none."""
    folds = sorted(path.name.removeprefix("fold_") for path in work.run(configuration).glob("fold_*"))
    folders = [work.fold(configuration, fold).validation for fold in folds if fold.isdecimal()]
    return {stem_of(path): path for folder in folders if folder.is_dir() for path in image_files(folder)}


def _scores_of_work(work: Work, configuration: str) -> ScoreTable | None:
    """The table of all folds; until it is there, those of the folds."""
    if work.scores(configuration).exists():
        return ScoreTable.load(work.scores(configuration))
    run = work.run(configuration)
    paths = sorted(run.glob(f"fold_[0-9]*/{_SCORES}"))
    return ScoreTable.join(map(ScoreTable.load, paths), run) if paths else None


def from_predictions(predictions: Path, images: Path, references: Path | None, scores: Path | None) -> Gallery:
    """Masks of anyone, on their images, with references if there are any.

    Args:
        predictions: A folder of masks, or one.
        images: Their images: a dataset, a folder, or one file.
        references: A dataset, a folder of label maps, or one; None for those of the dataset in `images`, if it is one.
        scores: A table of scores; None for `scores.csv` beside the masks, if it is there.

    Raises:
        DataError: If something cannot be read, or no mask has an image.
        UsageError: If no mask has a reference.
    """
    for path in (predictions, images):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the path.")
    folder = predictions if predictions.is_dir() else predictions.parent
    masks = {stem_of(path): path for path in (image_files(predictions) if predictions.is_dir() else [predictions])}
    layout = find_layout(images) if images.is_dir() or images.suffix.lower() in (".csv", ".json") else None
    images_of = _images_of(images, layout, masks)
    reference_of = {} if layout is None else {c.case_id: c.label for c in layout.cases if c.label is not None}
    if references is not None:
        pairs = find_pairs(references, predictions, run="").pairs
        reference_of = {stem_of(pair.prediction): pair.reference for pair in pairs}
    dice = case_dice(_table(scores, folder))
    without = sorted(set(masks) - set(images_of))
    if len(without) == len(masks):
        raise DataError(
            f"{images}: holds no image of the masks in {predictions} ({', '.join(without[:_N_NAMED]) or 'no mask'}); "
            "expected images called as the masks, e.g. p01.nii.gz or p01_0000.nii.gz. Check both folders."
        )
    if without:
        say(f"{len(without)} of {len(masks)} masks have no image in {images}: {', '.join(without[:_N_NAMED])}")
    cases = [
        GalleryCase(name, images_of[name], reference_of.get(name), path, dice.get(name))
        for name, path in masks.items()
        if name in images_of
    ]
    return _gallery(folder.resolve().name, cases, layout, _named_values(folder))


def _images_of(images: Path, layout: DatasetFiles | None, masks: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Image files by the name of the mask that they belong to."""
    if layout is not None:
        return {case.case_id: case.images for case in layout.cases}
    if images.is_file():
        checked_ending(images)
        return dict.fromkeys(masks, (images,)) if len(masks) == 1 else {stem_of(images): (images,)}
    files = image_files(images)
    inner = None if files else subfolder(images, ("imagests", *IMAGE_FOLDERS))
    files = image_files(inner) if inner else files
    if not files:  # DICOM series
        return {case.case_id: tuple(case.image_paths) for case in list_inputs(images, ("image",))}
    cases, _, _ = pair_files(files, list(masks.values()), None)
    return {stem_of(case.label): case.images for case in cases if case.label is not None and case.images}


def from_images(folder: Path) -> Gallery:
    """Images, with label maps where the folder is a dataset.

    Raises:
        DataError: If there is no image.
    """
    layout = find_layout(folder) if folder.is_dir() or folder.suffix.lower() in (".csv", ".json") else None
    if layout is not None:
        cases = [GalleryCase(case.case_id, case.images, case.label) for case in layout.cases if case.images]
    elif folder.is_dir() and image_files(folder):
        cases = [GalleryCase(stem_of(path), (path,)) for path in image_files(folder)]
    else:
        cases = [GalleryCase(case.case_id, tuple(case.image_paths)) for case in list_inputs(folder, ("image",))]
    if not cases:
        raise DataError(f"{folder}: a {layout.layout if layout else ''} layout without an image. Check its folders.")
    return _gallery(folder.resolve().name, cases, layout, {})


def _gallery(title: str, cases: list[GalleryCase], layout: DatasetFiles | None, named: Mapping[int, str]) -> Gallery:
    labels = None if layout is None else layout.labels
    return Gallery(
        title=title,
        cases=worst_first(cases),
        channels=() if layout is None else layout.channels,
        label_names=_names(labels) | dict(named),
        label_places=value_places(labels)
        if labels is not None
        else {v: place for place, v in enumerate(v for v in named if v)},
        background_value=0 if labels is None else labels.background_value,
        ignore_value=None if labels is None else labels.ignore_value,
    )


def _names(labels: LabelSet | None) -> dict[int, str]:
    return {} if labels is None else {value: labels.names[place] for value, place in value_places(labels).items()}


def _table(scores: Path | None, folder: Path) -> ScoreTable | None:
    path = scores or folder / _SCORES
    return ScoreTable.load(path) if scores is not None or path.exists() else None


def _named_values(folder: Path) -> dict[int, str]:
    """Names of the values of a folder of masks, from a `dseg.tsv` with the columns index and name."""
    path = folder / _LABEL_TABLE
    if not path.is_file():
        return {}
    try:
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        index, name = lines[0].index("index"), lines[0].index("name")
        return {int(cells[index]): cells[name] for cells in lines[1:] if cells != [""]}
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as fault:
        raise DataError(f"{path}: is no table of labels ({fault}), expected the columns index and name.") from None
