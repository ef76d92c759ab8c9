"""nnU-Net's `plans.json`, written from our plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.core.errors import DataError, PlanError
from segpipe.core.files import write_text
from segpipe.core.header import ending_of
from segpipe.core.records import read_mapping
from segpipe.core.work import Work
from segpipe.data.dataset import Dataset
from segpipe.fingerprint.record import Fingerprint, Intensities
from segpipe.plan.schema import SCHEMES, Configuration, Plan

CASCADE = {"3d_cascade": "3d_cascade_fullres"}  # our configuration: theirs, where they differ
PLANNERS = {  # preset: planner, plans_name
    "nnunet": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}
_UNET = "dynamic_network_architectures.architectures.unet"
NETWORK_CLASSES = {  # kind: class, key of its blocks
    "plain": (f"{_UNET}.PlainConvUNet", "n_conv_per_stage"),
    "residual": (f"{_UNET}.ResidualEncoderUNet", "n_blocks_per_stage"),
}
RESAMPLING = "resample_data_or_seg_to_shape"
_SEPARATE = {"order_z": 0, "force_separate_z": None}
DATA_RESAMPLING = {"is_seg": False, "order": 3, **_SEPARATE}
SEGMENTATION_RESAMPLING = {"is_seg": True, "order": 1, **_SEPARATE}
LOGIT_RESAMPLING = {"is_seg": False, "order": 1, **_SEPARATE}
_READERS = {
    "NaturalImage2DIO": (".png", ".bmp", ".tif"),
    "SimpleITKIO": (".nii.gz", ".nrrd", ".mha", ".gipl"),
    "Tiff3DIO": (".tiff",),
    "NibabelIO": (".nii",),
}


def reader_for(file_ending: str) -> str:
    """The first of nnU-Net's readers for such files."""
    return next((name for name, endings in _READERS.items() if file_ending.lower() in endings), "SimpleITKIO")


def layer_settings(n_axes: int) -> dict[str, Any]:
    """Arguments that all networks of nnU-Net's planners share."""
    return {
        "conv_op": f"torch.nn.modules.conv.Conv{n_axes}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n_axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def architecture_settings(n_axes: int, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of an `architecture`, keys in nnU-Net's order; its networks differ in `stages` alone."""
    fixed = layer_settings(n_axes)
    first = ("n_stages", "features_per_stage")
    order = (*first, "conv_op", *(key for key in stages if key not in first), *list(fixed)[1:])
    return {
        "arch_kwargs": {key: {**fixed, **stages}[key] for key in order},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


_EXPRESSIBLE = {"kind", "features", "strides_zyx", "kernels_zyx", "blocks", "decoder_convolutions"}


def export_nnunet_plans(folder: Path, output: Path) -> None:
    """Write the plan of a work folder as nnunetv2 2.8.1 would.

    Raises:
        UsageError: If the folder holds no plan.
        PlanError: If nnU-Net cannot express the plan.
    """
    work = Work(folder)
    work.require_plan()
    plan, fingerprint = Plan.load(work.plan), Fingerprint.load(work.fingerprint)
    write_text(output, json.dumps(nnunet_plans(plan, fingerprint, reader_of(work)), indent=4) + "\n")


def reader_of(work: Work) -> str:
    """nnU-Net's reader of the images, as its own dataset.json or the file names say."""
    if work.nnunet_dataset.is_file():
        described = read_mapping(work.nnunet_dataset, DataError)
        named = described.get("overwrite_image_reader_writer")
        return str(named) if named not in (None, "None") else reader_for(str(described.get("file_ending", "")))
    cases = Dataset.load(work.dataset).cases
    return reader_for(ending_of(cases[0].image_paths[0]))


def nnunet_plans(plan: Plan, fingerprint: Fingerprint, reader: str, order: Sequence[int] = ()) -> dict[str, Any]:
    """A plan as nnU-Net's, keys in nnU-Net's order.

    Args:
        plan: Plain or residual networks without further parts.
        fingerprint: What the plan follows from.
        reader: Class with which nnU-Net reads the images.
        order: Of the planned axes among those that the reader gives; none if it reads images as most are stored.

    Raises:
        PlanError: If nnU-Net cannot express the plan.
    """
    if fingerprint.content_digest() != plan.fingerprint:
        raise PlanError(
            f"the plan follows from fingerprint {plan.fingerprint}, found {fingerprint.content_digest()}: the data "
            "changed since, or another version of segpipe measured them. Plan again."
        )
    planner, plans_name = PLANNERS.get(plan.preset, ("segpipe", "segpipePlans"))
    measured = list(plan.axes_of(fingerprint.orientation))
    order = list(order) or measured
    spacings = np.array([case.spacing_mm for case in fingerprint.cases], np.float64)
    shapes = np.array([case.cropped_shape_zyx for case in fingerprint.cases], np.float64)
    return {
        "dataset_name": plan.dataset,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": np.median(spacings, 0)[measured].tolist(),
        "original_median_shape_after_transp": [round(n) for n in np.median(shapes, 0)[measured].tolist()],
        "image_reader_writer": reader,
        "transpose_forward": order,
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "configurations": {
            CASCADE.get(name, name): _configuration_values(name, configuration, plan, plans_name)
            for name, configuration in plan.configurations.items()
        },
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): _properties(seen) for channel, seen in enumerate(fingerprint.intensities)
        },
    }


def _properties(seen: Intensities) -> dict[str, float]:
    names = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {name: getattr(seen, name) for name in names}


def _configuration_values(name: str, configuration: Configuration, plan: Plan, plans_name: str) -> dict[str, Any]:
    if configuration.previous is not None:
        return {"inherits_from": configuration.inherits, "previous_stage": configuration.previous}
    n_axes = configuration.network.n_axes
    shared = plans_name.startswith("nnUNet") and name in ("2d", "3d_fullres")  # residual presets share these data
    values = {
        "data_identifier": f"{'nnUNetPlans' if shared else plans_name}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_zyx[-n_axes:]),
        "median_image_size_in_voxels": list(configuration.median_shape_zyx[-n_axes:]),
        "spacing": list(configuration.spacing_mm[-n_axes:]),
        "normalization_schemes": [_their_scheme(n.scheme) for n in plan.normalisation],
        "use_mask_for_norm": [n.within_nonzero for n in plan.normalisation],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_data_kwargs": DATA_RESAMPLING,
        "resampling_fn_seg_kwargs": SEGMENTATION_RESAMPLING,
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": LOGIT_RESAMPLING,
        "architecture": _architecture(name, configuration),
        "batch_dice": configuration.batch_dice,
    }
    following = [other for other, c in plan.configurations.items() if c.previous == name]
    if following:
        values["next_stage"] = CASCADE.get(following[0], following[0])
    return values


def _their_scheme(name: str) -> str:
    if not SCHEMES[name].nnunet:
        known = ", ".join(other for other, row in SCHEMES.items() if row.nnunet)
        raise PlanError(f"normalisation: nnU-Net has nothing like the scheme {name}, only like {known}.")
    return SCHEMES[name].nnunet


def _architecture(name: str, configuration: Configuration) -> dict[str, Any]:
    network = configuration.network
    further = sorted(set(network.model_dump(mode="json")) - _EXPRESSIBLE)
    if network.kind not in NETWORK_CLASSES or further:
        raise PlanError(
            f"configurations.{name}.network: found {network.kind}{' with ' if further else ''}{', '.join(further)}; "
            "nnU-Net's plans hold plain and residual U-Nets only. Export a plan of --preset nnunet or resenc_m."
        )
    class_name, blocks_key = NETWORK_CLASSES[network.kind]
    stages = {
        "n_stages": len(network.features),
        "features_per_stage": list(network.features),
        "kernel_sizes": [list(kernel) for kernel in network.kernels_zyx],
        "strides": [list(stride) for stride in network.strides_zyx],
        blocks_key: list(network.blocks),
        "n_conv_per_stage_decoder": list(network.decoder_convolutions),
    }
    return {"network_class_name": class_name, **architecture_settings(network.n_axes, stages)}
