"""nnU-Net's folder of a trained model as ours, and ours as nnU-Net's: either predicts what the other one does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpipe.bridge.nnunet_fingerprint import read_nnunet_dataset, read_nnunet_fingerprint
from segpipe.bridge.nnunet_plans import (
    CASCADE,
    DATA_RESAMPLING,
    LOGIT_RESAMPLING,
    RESAMPLING,
    SEGMENTATION_RESAMPLING,
    nnunet_plans,
    reader_of,
)
from segpipe.bridge.nnunet_plans_read import read_nnunet_plans, with_inherited
from segpipe.bridge.nnunet_raw import nnunet_description
from segpipe.core.errors import DataError, PlanError, UsageError
from segpipe.core.files import whole_file, whole_folder, write_text
from segpipe.core.progress import say
from segpipe.core.records import read_mapping
from segpipe.core.work import FoldFolder, Work
from segpipe.data.dataset import Dataset
from segpipe.fingerprint.record import Fingerprint
from segpipe.networks.build import build
from segpipe.networks.initial_weights import describe_misfit, plain_name
from segpipe.plan.laterality import AS_STORED, ORIENTATION, sideways_axis
from segpipe.plan.schema import Plan
from segpipe.plan.training_stats import TrainingStats
from segpipe.predict.folds import choose_folds, find_folds
from segpipe.predict.model import load_model
from segpipe.train.checkpoint import save_weights
from segpipe.train.weights_header import about_weights

# Beside tensors a checkpoint holds losses, which are numpy's numbers: harmless to make, and called by two names.
_MAKE_NUMBER = torch.tensor(0.0).numpy()[()].__reduce__()[0]
_NUMBERS: list[Any] = [
    (_MAKE_NUMBER, "numpy.core.multiarray.scalar"),
    (_MAKE_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
_NOT_PICKLE = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]  # torch raises it, exports it not
_FAULTS = (_NOT_PICKLE, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError)
_TRAINER = "nnUNetTrainer"
_SECOND_NAMES = {".conv.": ".all_modules.0.", ".norm.": ".all_modules.1."}  # its units list their layers once more
_SECOND_ENCODER = "decoder.encoder."  # and its decoder holds the encoder


@dataclass(frozen=True, eq=False)
class NnunetCheckpoint:
    """The parts of a checkpoint that prediction needs.

    Args:
        weights: By our names, which are nnU-Net's first ones.
        configuration: nnU-Net's name, e.g. `3d_cascade_fullres`.
        trainer: Name of the class that trained.
        mirror_axes: Of the patch (Z, Y, X or Y, X) that may be mirrored in prediction.
    """

    weights: dict[str, Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(path: Path) -> NnunetCheckpoint:
    """Read a checkpoint of nnU-Net.

    Raises:
        DataError: If it is missing, damaged, not nnU-Net's, or holds objects whose making could run code.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; expected a checkpoint of nnU-Net. Give a folder of a finished training."
        )
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            values = torch.load(path, map_location="cpu", weights_only=True)
        _require_parts(values, path)
        return NnunetCheckpoint(
            weights=_weights_once(values["network_weights"], path),
            configuration=str(values["init_args"]["configuration"]),
            trainer=str(values.get("trainer_name", "an unknown trainer")),
            mirror_axes=tuple(int(axis) for axis in values.get("inference_allowed_mirroring_axes") or ()),
        )
    except _FAULTS as fault:
        text = str(fault).strip().splitlines()
        raise DataError(
            f"{path}: cannot be read as a checkpoint of nnU-Net ({type(fault).__name__}: {text[0] if text else ''}); "
            "expected weights and plain values; segpipe makes no other objects, since that could run code. Load it "
            "with nnU-Net and save it again without them."
        ) from None


def _require_parts(values: Any, path: Path) -> None:
    """Refuse a file without the parts that prediction needs; nnU-Net's own always has them."""
    keys = values if isinstance(values, Mapping) else {}
    lacking = [key for key in ("network_weights", "init_args") if not isinstance(keys.get(key), Mapping)]
    if not lacking and "configuration" not in keys["init_args"]:
        lacking = ["init_args.configuration"]
    if lacking:
        found = ", ".join(map(str, list(keys)[:8])) or f"a {type(values).__name__}"
        raise DataError(
            f"{path}: has no {' and no '.join(lacking)} (found: {found}), expected a checkpoint that nnU-Net v2 saved. "
            "For weights alone use --set configurations.<name>.network.weights={source: FILE} of `segpipe plan`."
        )


def _weights_once(stored: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors by our names; those that the file holds under several must be equal, and all finite.

    Raises:
        DataError: If they are not.
    """
    weights: dict[str, Tensor] = {}
    for name, value in stored.items():
        own = _first_name(plain_name(name))
        if own in weights and not torch.equal(weights[own], value):
            raise DataError(
                f"{path}: holds two different tensors for {own}, expected copies of one. Save it again with nnU-Net."
            )
        if value.is_floating_point() and value.element_size() > 1 and not value.isfinite().all():
            raise DataError(f"{path}: {own} holds numbers that are not finite. Take an earlier checkpoint.")
        weights[own] = value
    return weights


def write_checkpoint(path: Path, checkpoint: NnunetCheckpoint, fold: int | str) -> None:
    """Write what nnU-Net predicts with; it cannot go on training from it."""
    weights = dict(checkpoint.weights)
    weights |= {_second_name(name): value for name, value in weights.items()}
    weights |= {name.replace("encoder.", _SECOND_ENCODER, 1): v for name, v in weights.items() if _is_encoder(name)}
    values = {
        "network_weights": weights,
        "trainer_name": checkpoint.trainer,
        "init_args": {"configuration": checkpoint.configuration, "fold": fold},
        "inference_allowed_mirroring_axes": checkpoint.mirror_axes or None,
    }
    with whole_file(path) as temporary:
        torch.save(values, temporary)


def _is_encoder(name: str) -> bool:
    return name.startswith("encoder.")


def _first_name(name: str) -> str:
    name = name.replace(_SECOND_ENCODER, "encoder.", 1)
    for first, second in _SECOND_NAMES.items():
        name = name.replace(second, first)
    return name


def _second_name(name: str) -> str:
    for first, second in _SECOND_NAMES.items():
        name = name.replace(first, second)
    return name


FINAL = "checkpoint_final.pth"
_TURNING_READER, _HIGHEST_VALUE = "SimpleITKIOWithReorient", 255  # it writes masks of 8 bits
_ORIENTATIONS = {  # by nnU-Net's reader; the others read pictures
    "SimpleITKIO": AS_STORED,
    "NibabelIO": AS_STORED,
    _TURNING_READER: ORIENTATION,
    "NibabelIOWithReorient": ORIENTATION,
}
_ONLY: dict[str, Any] = {  # what a plan could say otherwise, and segpipe does one way
    "preprocessor_name": "DefaultPreprocessor",
    "resampling_fn_data": RESAMPLING,
    "resampling_fn_seg": RESAMPLING,
    "resampling_fn_probabilities": RESAMPLING,
    "resampling_fn_data_kwargs": DATA_RESAMPLING,
    "resampling_fn_seg_kwargs": SEGMENTATION_RESAMPLING,
    "resampling_fn_probabilities_kwargs": LOGIT_RESAMPLING,
}


def import_nnunet_model(
    source: Path, folder: Path, folds: Sequence[str] = (), checkpoint: str = FINAL
) -> list[FoldFolder]:
    """Take up a trained model of nnU-Net: `WORK/runs/<configuration>/fold_<k>` with plan and weights.

    Args:
        source: nnU-Net's `<trainer>__<plans>__<configuration>`, with plans.json, dataset.json and fold_*.
        folder: A work folder; configurations of one dataset can share it.
        folds: Which, as for `choose_folds`.
        checkpoint: Name of the file in each fold's folder.

    Returns:
        Where the folds are now.

    Raises:
        UsageError: If there is no such model or fold, or the work folder holds the fold already.
        DataError: If a file is not nnU-Net's, or the weights are of another network.
        PlanError: If the model does what segpipe cannot.
    """
    paths = _fold_paths(source, folds, checkpoint)
    stored = {fold: read_checkpoint(path) for fold, path in paths.items()}
    first = next(iter(stored.values()))
    for fold, other in stored.items():
        if (other.configuration, other.mirror_axes) != (first.configuration, first.mirror_axes):
            raise DataError(
                f"{paths[fold]}: {other.configuration}, mirrored along {other.mirror_axes}; the first fold is "
                f"{first.configuration}, mirrored along {first.mirror_axes}. Import folds of one training."
            )
    plan, name = _plan(source, first)
    trained_on = _training_stats(source, plan)
    targets = {fold: Work(folder).fold(name, fold) for fold in stored}
    for target in targets.values():
        if target.weights.exists():
            raise UsageError(f"{target.path}: holds a model already. Choose another work folder.")
    for fold, target in targets.items():
        network = build(
            plan.configurations[name].network, plan.n_inputs(plan.configurations[name]), plan.labels.n_outputs
        )
        _load(network, stored[fold], paths[fold])
        plan.save(target.plan)
        if trained_on is not None:
            trained_on.save(target.trained_on)
        save_weights(target.weights, network, {"configuration": name, "fold": fold, "finished": "1"})
    return list(targets.values())


def _fold_paths(source: Path, folds: Sequence[str], checkpoint: str) -> dict[str, Path]:
    if not (source / "plans.json").is_file():
        inside = ", ".join(sorted(str(path.parent.relative_to(source)) for path in source.glob("*/plans.json")))
        raise UsageError(
            f"{source}: holds no plans.json, expected nnU-Net's folder of one configuration, such as "
            f"nnUNetTrainer__nnUNetPlans__3d_fullres. Give {f'one of {inside}' if inside else 'that folder'}."
        )
    names = {path.name.removeprefix("fold_"): path for path in sorted(source.glob("fold_*")) if path.is_dir()}
    folders = {name: path for name, path in names.items() if name.isdecimal() or name == "all"}
    found = {name: path / checkpoint for name, path in folders.items() if (path / checkpoint).is_file()}
    chosen, _ = choose_folds(source, list(folders if folds else found), folds)
    if unfinished := [name for name in chosen if name not in found] or (not chosen and ["*"]):
        others = sorted({path.name for folder in folders.values() for path in folder.glob("*.pth")})
        raise UsageError(
            f"{source}: no fold_{unfinished[0]}/{checkpoint} (found: {', '.join(others) or 'no *.pth'}). Finish "
            "training, or name another file with --checkpoint."
        )
    if "all" in found and "all" not in chosen:
        say(f"{source}: importing folds {', '.join(chosen)}; fold_all is left out (-f fold_all imports it).")
    return {fold: found[fold] for fold in chosen}


def _plan(source: Path, stored: NnunetCheckpoint) -> tuple[Plan, str]:
    """The plan of the one configuration, and our name of that."""
    path, dataset = source / "plans.json", read_nnunet_dataset(source / "dataset.json", has_cases=False)
    theirs = read_mapping(path, PlanError)
    _require_usual(path, theirs, stored.configuration)
    reader = str(theirs.get("image_reader_writer", "SimpleITKIO"))
    if reader not in _ORIENTATIONS:
        raise PlanError(
            f"{path}: image_reader_writer {reader!r}, expected one of {', '.join(_ORIENTATIONS)}. Models of "
            "pictures cannot be imported."
        )
    plan = read_nnunet_plans(
        path, dataset.channels, dataset.labels, _ORIENTATIONS[reader], "", only=stored.configuration
    )
    name = next((ours for ours, theirs in CASCADE.items() if theirs == stored.configuration), stored.configuration)
    n_skipped = 3 - plan.configurations[name].network.n_axes
    reason = f"Read from {path.name} of nnU-Net, trained by {stored.trainer}."
    values = plan.model_dump(mode="json")
    values["mirror_axes"] = [axis + n_skipped for axis in stored.mirror_axes]
    values["reasons"] = {"preset": reason}
    values["configurations"][name] |= {"guide": "masks"} if plan.configurations[name].previous else {}
    values["training"]["precision"] = "nnunet"  # bf16 on a CPU gave other labels to 1.4 % of the voxels
    return Plan.parse(values, f"{source}: {FINAL}"), name


def _require_usual(path: Path, values: dict[str, Any], name: str) -> None:
    """Refuse what segpipe would do otherwise."""
    configurations = values.get("configurations") or {}
    if name not in configurations:
        raise PlanError(
            f"{path}: has no configuration {name!r} ({', '.join(configurations)}), of which the weights are."
        )
    full = with_inherited(name, configurations, path)
    found = {key: full[key] for key in _ONLY if key in full} | {"label_manager": values.get("label_manager")}
    for key, usual in (_ONLY | {"label_manager": "LabelManager"}).items():
        if found.get(key, usual) not in (usual, None):
            raise PlanError(
                f"{path}: {name}: {key}: found {found[key]!r}, expected {usual!r}, which is what segpipe does. Predict "
                "with nnU-Net."
            )


def _training_stats(source: Path, plan: Plan) -> TrainingStats | None:
    """Statistics of the training cases of all folds, from nnU-Net's fingerprint; None if there is none."""
    path = source / "dataset_fingerprint.json"
    if not path.is_file():
        return None
    fingerprint = read_nnunet_fingerprint(path, read_nnunet_dataset(source / "dataset.json", has_cases=False))
    oriented = plan.model_copy(update={"orientation": fingerprint.orientation})  # its lists are in the order of arrays
    seen = TrainingStats.of(fingerprint, oriented, [case.case_id for case in fingerprint.cases])
    return None if seen is None else seen.model_copy(update={"orientations": ()})


def _load(network: torch.nn.Module, stored: NnunetCheckpoint, path: Path) -> None:
    inner = getattr(network, "network", network)  # a 2D network is wrapped
    if misfit := describe_misfit(inner.state_dict(), stored.weights):
        raise DataError(
            f"{path}: holds the weights of another network than plans.json describes ({misfit}). {stored.trainer} made "
            "another network, or the files belong to different models."
        )
    inner.load_state_dict(stored.weights)


def export_nnunet_model(
    folder: Path,
    output: Path,
    configuration: str | None = None,
    folds: Sequence[str] = (),
    *,
    any_orientation: bool = False,
) -> Path:
    """Write trained folds as nnU-Net's model folder, for `nnUNetv2_predict_from_modelfolder`.

    Args:
        folder: A work folder.
        output: A new folder.
        configuration: Which; None for the default one.
        folds: Which, as for `choose_folds`; none for all that are trained to the end.
        any_orientation: Export also a plan that turns images to an orientation to which nnU-Net turns none. It then
            predicts rightly only images that are stored so.

    Raises:
        UsageError: If there is no such model, or the output folder holds something.
        PlanError: If nnU-Net cannot express the plan.
        DataError: If nnU-Net cannot express the labels.
    """
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output}: exists already. Choose a new folder.")
    work, folders = Work(folder), find_folds(folder, configuration, folds)
    name = about_weights(folders[0].weights)["configuration"]
    model = load_model(folders, torch.device("cpu"))
    fingerprint, dataset = Fingerprint.load(work.fingerprint), Dataset.load(work.dataset)
    plan = _only(model.plan, name)
    plans = nnunet_plans(plan, fingerprint, _reader(plan, work, any_orientation), plan.axis_order)
    with whole_folder(output) as temporary:
        write_text(temporary / "plans.json", json.dumps(plans, indent=4))
        write_text(temporary / "dataset.json", json.dumps(nnunet_description(dataset), indent=4))
        for target, network in zip(folders, model.networks, strict=True):
            inner = getattr(network, "network", network)
            checkpoint = NnunetCheckpoint(
                weights=dict(inner.state_dict()),
                configuration=CASCADE.get(name, name),
                trainer=_TRAINER,
                mirror_axes=_mirror_axes(plan, name),
            )
            fold = about_weights(target.weights)["fold"]
            write_checkpoint(temporary / f"fold_{fold}" / FINAL, checkpoint, int(fold) if fold.isdecimal() else fold)
    return output


def _reader(plan: Plan, work: Work, any_orientation: bool) -> str:
    """nnU-Net's reader that gives images as the plan turns them.

    Raises:
        PlanError: If it has none and `any_orientation` is not set, or its reader writes other label values.
    """
    if plan.orientation == ORIENTATION:
        if (highest := max(plan.labels.known_values)) > _HIGHEST_VALUE:
            raise PlanError(
                f"{work.plan}: label value {highest}; {_TURNING_READER}, with which nnU-Net turns images, writes "
                f"values up to {_HIGHEST_VALUE}. Renumber the labels in a copy of the dataset and train again."
            )
        return _TURNING_READER
    if plan.orientation != AS_STORED:
        if not any_orientation:
            raise PlanError(
                f"{work.plan}: turns images to {plan.orientation}; nnU-Net turns them to {ORIENTATION} or not at all, "
                f"and would predict wrong masks for images that are not stored as {plan.orientation}. Plan again, "
                f"which turns images to {ORIENTATION}, and train; or add --any-orientation and give it no other images."
            )
        say(f"warning: nnU-Net predicts rightly only images that are stored as {plan.orientation}.")
    return reader_of(work)


def _only(plan: Plan, name: str) -> Plan:
    """One configuration and those that it needs, without where their training started: they are trained."""
    kept, asked = set[str](), [name]
    while asked:
        current = asked.pop()
        kept.add(current)
        own = plan.configurations[current]
        asked += [other for other in (own.inherits, own.previous) if other and other not in kept]
    trained = {
        n: c.model_copy(update={"network": c.network.model_copy(update={"weights": None})})
        for n, c in plan.configurations.items()
        if n in kept
    }
    return plan.model_copy(update={"configurations": trained})


def _mirror_axes(plan: Plan, name: str) -> tuple[int, ...]:
    """Axes of the patch to mirror; without the sideways one if labels swap, which nnU-Net cannot do."""
    n_skipped = 3 - plan.configurations[name].network.n_axes
    axes = set(plan.mirror_axes)
    if plan.mirror_swaps:
        axes.discard(sideways_axis(plan.orientation, plan.axis_order))
        say("nnU-Net cannot swap left and right labels: it will not mirror along that axis.")
    return tuple(axis - n_skipped for axis in sorted(axes) if axis >= n_skipped)
