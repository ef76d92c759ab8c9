"""Pair masks with references, and find their labels and patients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segpipe.core.errors import DataError, UsageError
from segpipe.core.header import stem_of
from segpipe.core.labels import LabelSet
from segpipe.core.probabilities import probabilities_beside
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.core.text import count
from segpipe.data.faults import refuse
from segpipe.data.label_lists import labels_in_files, parse_labels
from segpipe.data.layouts.dataset_json import DESCRIPTION_FILE
from segpipe.data.layouts.folders import IMAGE_FOLDERS, LABEL_FOLDERS, subfolder
from segpipe.data.layouts.scan import DatasetFiles, collect_by_name, image_files, label_name, list_folder
from segpipe.data.load import PATIENTS_FILE, assign_patients, find_layout, patients_of
from segpipe.evaluate.evaluation_case import ScoreSettings
from segpipe.evaluate.metrics import METRICS
from segpipe.evaluate.scores import Origin
from segpipe.evaluate.scoring import MaskPair


@dataclass(frozen=True)
class Pairing:
    """Masks and references, as far as they belong together.

    Args:
        pairs: Sorted by case.
        without_prediction: Cases of references that have no mask.
        without_reference: Cases of masks that have no reference.
        patients_from: How patients were told apart, one sentence.
        description: A `dataset.json` beside the references; None if there is none.
    """

    pairs: tuple[MaskPair, ...]
    without_prediction: tuple[str, ...]
    without_reference: tuple[str, ...]
    patients_from: str
    description: Path | None

    def with_patients(self, patients: Mapping[str, str], source: Path) -> Pairing:
        """The same pairs with the patients that a table names.

        Raises:
            DataError: If it lacks a case.
        """
        absent = [pair.origin.case_id for pair in self.pairs if pair.origin.case_id not in patients]
        if absent:
            raise DataError(
                f"{source}: no row for {count(len(absent), 'case')} of {len(self.pairs)}: {_few(absent)}. It has "
                "a column patient_id, so it must name the patient of every case: add the rows, or remove the column."
            )
        pairs = tuple(
            replace(pair, origin=replace(pair.origin, patient_id=patients[pair.origin.case_id])) for pair in self.pairs
        )
        n_patients = len({pair.origin.patient_id for pair in pairs})
        named = f"{count(n_patients, 'patient')} in {count(len(pairs), 'case')}, from {source.name}"
        return replace(self, pairs=pairs, patients_from=named)


def find_pairs(reference: Path, prediction: Path, run: str) -> Pairing:
    """Pair masks with references: by case where the references are a dataset, else by file name without its ending.

    A mask may be called as the case or as the case's label file (`p01` or `p01_seg`). Files that lie in subfolders
    alone are called by their own names, or by the subfolders' where each holds one of the same name (`p01/mask.nrrd`).

    Args:
        reference: A file, a folder of label maps, or a dataset in a layout of data_readme.md.
        prediction: A file or a folder of masks; a file if `reference` is an image file.
        run: Name of what made the masks.

    Raises:
        UsageError: If one is a mask and the other a folder, or nothing fits.
        DataError: If one is missing, or two files of one folder have the same name but for the ending.
    """
    for path in (reference, prediction):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the path.")
    found = _dataset(reference)
    if (reference.is_file() and found is None) != prediction.is_file():
        raise UsageError(
            f"{reference} and {prediction}: one is a file and the other a folder. Give two files or two folders."
        )
    if prediction.is_file():
        references, masks = {stem_of(prediction): reference}, {stem_of(prediction): prediction}
    else:
        masks = _files(prediction)
        references = _label_files(reference, set(masks)) if found is None else _labels_of_cases(found)
    predictions = _by_case(masks, references)
    case_ids = sorted(predictions)
    if not case_ids:
        raise UsageError(
            f"{prediction}: no mask matches a reference in {reference} by name (masks: {_few(masks)}; "
            f"references: {_few(references)}). Names must be equal apart from the file ending."
        )
    home = next(iter(references.values())).parent
    homes = [home, home.parent] if found is None else [found.root]
    patients, patients_from = _patients(case_ids, found, homes)
    return Pairing(
        tuple(MaskPair(references[c], predictions[c], Origin(c, patients[c], run)) for c in case_ids),
        tuple(sorted(set(references) - set(predictions))),
        tuple(sorted(name for name, path in masks.items() if path not in predictions.values())),
        patients_from,
        next((p / DESCRIPTION_FILE for p in homes if (p / DESCRIPTION_FILE).is_file()), None),
    )


def refuse_missing(pairing: Pairing, is_allowed: bool) -> None:
    """Refuse references without a prediction, or report how many there are; masks without a reference are reported.

    Raises:
        DataError: If predictions are missing and that is not allowed.
    """
    missing, n_references = pairing.without_prediction, len(pairing.pairs) + len(pairing.without_prediction)
    if missing and not is_allowed:
        raise DataError(
            f"{len(missing)} of {count(n_references, 'reference')} without a prediction: {_few(missing, 20)}. Cases "
            "are never dropped silently: predict the missing ones, or score the others with --allow-missing."
        )
    if missing:
        say(f"{len(missing)} of {count(n_references, 'reference')} without a prediction, not scored: {_few(missing)}")
    surplus = pairing.without_reference
    if surplus:
        say(f"{count(len(surplus), 'mask')} without a reference, not scored: {_few(surplus)}")


def with_probabilities(
    pairs: Sequence[MaskPair], settings: ScoreSettings, is_required: bool
) -> tuple[tuple[MaskPair, ...], ScoreSettings]:
    """Add files of probabilities to pairs if a metric needs them.

    Args:
        pairs: The masks.
        settings: What to compute.
        is_required: Whether calibration was asked for; if not, it is left out where no mask has probabilities.

    Raises:
        DataError: If masks have none, naming all of them.
    """
    if "calibration" not in settings.groups:
        return tuple(pairs), settings
    found: list[MaskPair] = []
    faults: list[str] = []
    for pair in pairs:
        try:
            found.append(replace(pair, probabilities=probabilities_beside(pair.prediction)))
        except DataError as fault:
            faults.append(str(fault))
    if not found and not is_required:
        say("No mask has a file of probabilities, so calibration is left out.")
        masks_alone = tuple(name for name in settings.metrics if METRICS[name].group != "calibration")
        return tuple(pairs), replace(settings, metrics=masks_alone)
    if faults:
        raise DataError(
            f"{len(faults)} of {count(len(pairs), 'mask lacks', 'masks lack')} probabilities:\n  " + "\n  ".join(faults)
        )
    return tuple(found), settings


def labels_of(text: str | None, pairing: Pairing, n_workers: int) -> tuple[LabelSet, str]:
    """The structures to score, and their origin.

    Args:
        text: `1,2,3`, `name=1,name2=2` (`name=1+2` joins values to a region, `ignore=255`), names of the `dataset.json`
            beside the references, or the path of such a file or of a saved LabelSet. None: the `dataset.json` beside
            the references, else every value that stands in them. What that file says to ignore stays ignored.
        pairing: The masks.
        n_workers: References read side by side, if their values must be looked up.

    Raises:
        UsageError: If `text` is neither.
        DataError: If a file does not hold labels.
    """
    if text is None:
        if pairing.description is not None:
            return _labels_in(pairing.description), str(pairing.description)
        files = [pair.reference for pair in pairing.pairs]
        return labels_in_files(files, n_workers), f"the values found in {count(len(files), 'reference')}"
    if text.endswith(".json"):
        return _labels_in(Path(text)), text
    described = _labels_of_description(pairing)
    known = {} if described is None else {label.name: label.values for label in described.labels}
    named: dict[str, int | list[int]] = {}
    for part in text.split(","):
        name, _, values = (piece.strip() for piece in part.rpartition("="))
        try:
            numbers = list(known[values]) if values in known else [int(value) for value in values.split("+")]
        except ValueError:
            names = f" or {', '.join(known)}" if known else ""
            raise UsageError(
                f"labels {text!r}: {part!r} is not a label; expected 1,2,3 or name=1,name2=2 or name=1+2{names}, or a "
                ".json file."
            ) from None
        name = name or (values if values in known else f"label_{values}")
        if name in named:
            raise UsageError(f"labels {text!r}: {name!r} occurs twice; give each label once.")
        named[name] = numbers if len(numbers) > 1 else numbers[0]
    if described is not None:
        named = _special_values(described, named) | named
    try:
        return parse_labels(named, _paint_order(named), "option -l"), "option -l"
    except DataError as fault:
        raise UsageError(str(fault)) from None


def _labels_of_description(pairing: Pairing) -> LabelSet | None:
    """Labels of the `dataset.json` beside the references, if it is there and lists any."""
    try:
        return None if pairing.description is None else _labels_in(pairing.description)
    except DataError:
        return None  # labels were given, so the file is not needed


def _special_values(described: LabelSet, named: Mapping[str, int | list[int]]) -> dict[str, int | list[int]]:
    """The background and ignored values of a dataset, unless they were given another meaning."""
    used = {number for value in named.values() for number in (value if isinstance(value, list) else [value])}
    special = {"background": described.background_value, "ignore": described.ignore_value}
    return {name: value for name, value in special.items() if value is not None and value not in used}


def _labels_in(path: Path) -> LabelSet:
    values = read_mapping(path, DataError)
    if isinstance(values.get("labels"), Mapping):
        if isinstance(values["labels"].get("labels"), list):  # a work folder's dataset.json
            return LabelSet.parse(values["labels"], f"{path}: labels", DataError)
        return parse_labels(values["labels"], values.get("regions_class_order"), str(path))
    return LabelSet.parse(values, str(path), DataError)


def _paint_order(named: dict[str, int | list[int]]) -> list[int]:
    """A value for each region; scores do not depend on how regions are painted."""
    return [v[0] if isinstance(v, list) else v for n, v in named.items() if n.lower() not in ("background", "ignore")]


def _dataset(path: Path) -> DatasetFiles | None:
    """The dataset at `path` if it has cases with label maps; None if these are files without one."""
    if path.is_dir() and image_files(path):
        return None
    try:
        found = find_layout(path)
    except DataError:
        return None  # references alone, such as a `dataset.json` that lists nothing but labels
    return found if found is not None and _labels_of_cases(found) else None


def _labels_of_cases(found: DatasetFiles) -> dict[str, Path]:
    """Label map of each case, also of those without image.

    Raises:
        DataError: If a case occurs twice.
    """
    refuse((one for one in found.faults if one.kind == "case_twice"), found.root)
    lonely = [one for one in found.faults if one.kind == "label_without_image"]
    alone = {one.case_id: Path(one.file) for one in lonely if one.case_id and one.file}
    return alone | {case.case_id: case.label for case in found.cases if case.label is not None}


def _label_files(folder: Path, masks: set[str]) -> dict[str, Path]:
    """Label maps by the name of their case, in a folder or its subfolder of label maps."""
    if not image_files(folder):
        folder = subfolder(folder, LABEL_FOLDERS) or folder
    files = _files(folder)
    named, twins = collect_by_name((label_name(name, masks), path) for name, path in files.items())
    refuse(twins, folder)
    return named


def _files(folder: Path) -> dict[str, Path]:
    """Image files by name; if all of them lie in subfolders, one in each, by the subfolder if their names repeat."""
    paths = image_files(folder) or _nested_files(folder)
    names = [stem_of(path) for path in paths]
    homes = [path.parent.relative_to(folder).as_posix().replace("/", "_") for path in paths]
    if len(set(names)) < len(names) and "." not in homes and len(set(homes)) == len(homes):
        names = homes
    files, twins = collect_by_name(zip(names, paths, strict=True))
    refuse(twins, folder)
    return files


def _nested_files(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, without hidden ones and without a dataset's own folders."""
    own = {*IMAGE_FOLDERS, *LABEL_FOLDERS}
    inside = [path for path in list_folder(folder) if path.is_dir() and path.name.lower() not in own]
    return [path for one in inside for path in (*image_files(one), *_nested_files(one))]


def _by_case(masks: Mapping[str, Path], references: Mapping[str, Path]) -> dict[str, Path]:
    """Mask of each case that has one: called as the case, else as its label file."""
    names = {case_id: (case_id, stem_of(path)) for case_id, path in references.items()}
    found = {case_id: next((name for name in both if name in masks), None) for case_id, both in names.items()}
    return {case_id: masks[name] for case_id, name in found.items() if name is not None}


def _patients(case_ids: list[str], found: DatasetFiles | None, homes: Sequence[Path]) -> tuple[dict[str, str], str]:
    """Patients as the dataset names them, else by the first `patients.json`, else by the cases' names."""
    if found is not None and any(case.patient_id for case in found.cases):
        patients, how, faults = patients_of(found)
    else:
        home = next((home for home in homes if (home / PATIENTS_FILE).is_file()), homes[-1])
        patients, how, faults = assign_patients(case_ids, home)
    refuse(faults, homes[-1])
    return patients, how


def _few(names: Collection[str], n_shown: int = 3) -> str:
    return (", ".join(list(names)[:n_shown]) + (", …" if len(names) > n_shown else "")) or "none"
