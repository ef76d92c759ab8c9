"""Small plans for tests."""

from __future__ import annotations

from segpipe.core.labels import Label, LabelSet
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.schema import Configuration, Normalisation, Plan, Training

LABELS = LabelSet(labels=(Label(name="a", values=(1,)), Label(name="b", values=(2,))))
REGIONS = LabelSet(
    labels=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), ignore_value=9, paint_values=(1, 2)
)

NETWORK = "configurations.3d_fullres.network"
TINY = {  # `set` of a study: the smallest network that trains
    "training.precision": "fp32",
    "training.validation_iterations": 1,
    "configurations.3d_fullres.patch_zyx": [8, 16, 16],
    f"{NETWORK}.features": [4, 8],
    f"{NETWORK}.strides_zyx": [[1, 1, 1], [2, 2, 2]],
    f"{NETWORK}.kernels_zyx": [[3, 3, 3], [3, 3, 3]],
    f"{NETWORK}.blocks": [1, 1],
    f"{NETWORK}.decoder_convolutions": [1],
}


def small_spec(kind: str = "plain", n_axes: int = 3) -> NetworkSpec:
    """Two stages, 4 and 8 features."""
    return NetworkSpec(
        kind=kind,
        features=(4, 8),
        strides_zyx=((1,) * n_axes, (2,) * n_axes),
        kernels_zyx=((3,) * n_axes, (3,) * n_axes),
        blocks=(1, 1),
        decoder_convolutions=(1,),
    )


def small_plan(labels: LabelSet = LABELS, spacing_mm=(2.5, 1.5, 1.0), patch=(8, 8, 12), **training: object) -> Plan:
    """For the tiny datasets of tests/datasets.py."""
    configuration = Configuration(
        spacing_mm=spacing_mm,
        median_shape_zyx=(8, 10, 12),
        patch_zyx=patch,
        batch_size=2,
        batch_dice=False,
        network=small_spec(),
    )
    recipe = {"epochs": 2, "iterations_per_epoch": 3, "validation_iterations": 1, "precision": "fp32", **training}
    return Plan(
        preset="nnunet",
        dataset="tiny",
        fingerprint="0",
        channels=("MR0",),
        labels=labels,
        orientation="RAS",
        axis_order=(0, 1, 2),
        normalisation=(Normalisation(scheme="zscore"),),
        mirror_axes=(0, 1, 2),
        configurations={"3d_fullres": configuration},
        training=Training.model_validate(recipe),
        reasons={},
    )
