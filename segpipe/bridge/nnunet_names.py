"""nnU-Net's names for what our plans say: tables, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CASCADE = {"3d_cascade": "3d_cascade_fullres"}  # our configuration: theirs, where they differ
SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_0_1": "RescaleTo01Normalization",
    "rgb_0_1": "RGBTo01Normalization",
}
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
