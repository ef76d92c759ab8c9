"""Models that nnunetv2 itself trained, and its own predictions: run as a program, since it reads its folders at import.

    python nnunet_training.py FOLDER

FOLDER/raw/Dataset001_Labels and Dataset002_Regions hold data in nnU-Net's layout; afterwards FOLDER/results holds the
models, and FOLDER/predicted/<dataset>_<plans>_<configuration> the masks of the first training images.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

N_STEPS = 2
N_PREDICTED = 2  # cases
LABELS, REGIONS = "Dataset001_Labels", "Dataset002_Regions"
PLAIN, RESIDUAL = "nnUNetPlans", "nnUNetResEncUNetMPlans"
TRAININGS = (  # dataset, plans, configurations in the order in which they need each other
    (LABELS, PLAIN, ("2d", "3d_lowres", "3d_cascade_fullres")),
    (LABELS, RESIDUAL, ("3d_fullres",)),
    (REGIONS, PLAIN, ("3d_fullres",)),
)
_PLANNERS = {PLAIN: "ExperimentPlanner", RESIDUAL: "nnUNetPlannerResEncM"}
_FEATURES = (4, 8, 16, 32, 32, 32)


def main(folder: Path) -> None:
    """Plan, preprocess, train and predict with nnunetv2."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "MPLBACKEND": "Agg"}
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    # its pools start processes for each small step, which takes longer than all the rest
    multiprocessing.Pool = ThreadPool  # type: ignore[assignment]
    multiprocessing.get_context = lambda _method=None: SimpleNamespace(Pool=ThreadPool)  # type: ignore[assignment]
    for dataset, plans, configurations in TRAININGS:
        _plan_and_preprocess(folder / "preprocessed" / dataset, plans, configurations)
        for configuration in configurations:
            torch.manual_seed(1)
            _train(folder / "preprocessed" / dataset, plans, configuration)
            _predict(folder, dataset, plans, configuration)


def model_folder(results: Path, dataset: str, plans: str, configuration: str) -> Path:
    """Where nnU-Net puts a model."""
    return results / dataset / f"nnUNetTrainer__{plans}__{configuration}"


def _plan_and_preprocess(preprocessed: Path, plans: str, configurations: tuple[str, ...]) -> None:
    import torch
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    number = int(preprocessed.name[7:10])
    extractor = api.DatasetFingerprintExtractor(number, 1)
    extractor.show_progress_bar, extractor.num_foreground_voxels_for_intensitystats = False, 10_000
    extractor.run()
    with torch.device("meta"):  # it makes whole networks to count their feature maps
        api.plan_experiments([number], _PLANNERS[plans])
    path = preprocessed / f"{plans}.json"
    values = json.loads(path.read_text("utf-8"))
    _shrink(values["configurations"])
    if "3d_lowres" in configurations:
        _add_cascade(values["configurations"])
    path.write_text(json.dumps(values))
    needed = [name for name in configurations if "cascade" not in name]
    needed += ["3d_fullres"] if needed != list(configurations) else []  # a cascade trains on its data
    api.preprocess([number], plans, needed, [1] * len(needed), show_progress_bar=False)


def _shrink(configurations: dict[str, Any]) -> None:
    """Thin networks and small patches, as a user with little memory would write them into the plans."""
    for own in configurations.values():
        stages = own["architecture"]["arch_kwargs"]
        stages["features_per_stage"] = list(_FEATURES[: stages["n_stages"]])
        own["batch_size"] = 2


def _add_cascade(configurations: dict[str, Any]) -> None:
    full = configurations["3d_fullres"]
    spacing = [2 * edge_mm for edge_mm in full["spacing"]]
    low = full | {"data_identifier": f"{PLAIN}_3d_lowres", "spacing": spacing, "next_stage": "3d_cascade_fullres"}
    low["median_image_size_in_voxels"] = [n / 2 for n in full["median_image_size_in_voxels"]]
    configurations["3d_lowres"] = low
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


def _train(preprocessed: Path, plans: str, configuration: str) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augmentation processes; the planner takes it for torch's threads
    values = json.loads((preprocessed / f"{plans}.json").read_text("utf-8")) | {"continue_training": False}
    description = json.loads((preprocessed / "dataset.json").read_text("utf-8"))
    trainer = nnUNetTrainer(values, configuration, "all", description, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, N_STEPS, 1
    trainer.plot_network_architecture = trainer.logger.plot_progress_png = lambda *_: None
    trainer.run_training()
    if values["configurations"][configuration].get("next_stage"):
        trainer.perform_actual_validation()  # writes the labels on which the next stage trains
    os.environ |= {"nnUNet_n_proc_DA": "1"}


def _predict(folder: Path, dataset: str, plans: str, configuration: str) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    model = model_folder(folder / "results", dataset, plans, configuration)
    predictor.initialize_from_trained_model_folder(str(model), ("all",))
    images = sorted((folder / "raw" / dataset / "imagesTr").iterdir())[:N_PREDICTED]
    output = folder / "predicted" / f"{dataset}_{plans}_{configuration}"
    output.mkdir(parents=True)
    earlier = str(folder / "predicted" / f"{dataset}_{plans}_3d_lowres") if "cascade" in configuration else None
    names = [str(output / image.name.removesuffix("_0000.nii.gz")) for image in images]
    predictor.predict_from_files_sequential([[str(i)] for i in images], names, False, True, earlier)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
