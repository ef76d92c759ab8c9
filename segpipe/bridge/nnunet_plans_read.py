"""nnU-Net's `plans.json` as our plan, also as nnU-Net wrote it before version 2.4 (e.g. TotalSegmentator's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.bridge.nnunet_names import CASCADE, NETWORK_CLASSES, PLANNERS, SCHEMES
from segpipe.core.errors import PlanError
from segpipe.core.labels import LabelSet
from segpipe.core.records import did_you_mean, read_mapping
from segpipe.plan.schema import Plan, Training

_INHERITS = "inherits_from"
_LINKS = {_INHERITS: "inherits", "previous_stage": "previous"}
_NAMES = {theirs: ours for ours, theirs in CASCADE.items()}
_KINDS = {class_name.rsplit(".", 1)[1]: (kind, key) for kind, (class_name, key) in NETWORK_CLASSES.items()}
_OURS = {theirs: ours for ours, theirs in SCHEMES.items()}


def read_nnunet_plans(
    path: Path, channels: Sequence[str], labels: LabelSet, orientation: str, fingerprint_digest: str
) -> Plan:
    """Read the decisions of a `plans.json`.

    Args:
        path: The file.
        channels: Names in order, which nnU-Net keeps in `dataset.json`.
        labels: The same.
        orientation: To which cases are turned; nnU-Net leaves them as they are stored.
        fingerprint_digest: Of the data it will be used with.

    Returns:
        A plan with nnU-Net's training recipe. Names of resampling functions are not read: segpipe's own is used,
        which equals nnU-Net's default.

    Raises:
        PlanError: If it is not a `plans.json`, or holds what segpipe cannot do.
    """
    values = read_mapping(path, PlanError)
    configurations = _mapping(values, "configurations", str(path))
    for key in ("transpose_forward", "foreground_intensity_properties_per_channel"):
        if key not in values:
            raise PlanError(f"{path}: {key} is missing; found the keys {', '.join(values)}. Give nnU-Net's plans.json.")
    full = {name: _inherited(name, configurations, path) for name in configurations}
    some = next(iter(full.values()), {})
    planners = {planner: preset for preset, (planner, _) in PLANNERS.items()}
    record = {
        "preset": planners.get(str(values.get("experiment_planner_used")), "nnunet"),
        "dataset": str(values.get("dataset_name", path.stem)),
        "fingerprint": fingerprint_digest,
        "channels": list(channels),
        "labels": labels.model_dump(mode="json"),
        "orientation": orientation,
        "axis_order": values["transpose_forward"],
        "normalisation": _normalisation(some, values["foreground_intensity_properties_per_channel"], path),
        "mirror_axes": [0, 1, 2],
        "configurations": {
            _NAMES.get(name, name): _configuration(name, own, full[name], path) for name, own in configurations.items()
        },
        "training": Training().model_dump(mode="json"),
        "reasons": {"preset": f"Read from {path.name} of nnU-Net."},
    }
    return Plan.parse(record, str(path))


def _inherited(name: str, configurations: Mapping[str, Any], path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    own = _mapping(configurations, name, f"{path}: configurations")
    base = own.get(_INHERITS)
    if base is None:
        return dict(own)
    if base not in configurations or base in (name, *below):
        raise PlanError(
            f"{path}: configurations.{name}.{_INHERITS}: found {base!r}, expected another configuration that does not "
            f"inherit from it.{did_you_mean(str(base), list(configurations))}"
        )
    return _inherited(base, configurations, path, (*below, name)) | dict(own)


def _configuration(name: str, own: Mapping[str, Any], full: Mapping[str, Any], path: Path) -> dict[str, Any]:
    where = f"{path}: configurations.{name}"
    links = {ours: _NAMES.get(own[theirs], own[theirs]) for theirs, ours in _LINKS.items() if own.get(theirs)}
    if set(own) <= set(_LINKS):
        return links
    try:
        flat = len(full["patch_size"]) == 2
        spacing, median = list(full["spacing"]), list(full["median_image_size_in_voxels"])
        return links | {
            "spacing_mm": [None, *spacing] if flat else spacing,
            "median_shape_zyx": [1, *median] if flat else median,
            "patch_zyx": [1, *full["patch_size"]] if flat else list(full["patch_size"]),
            "batch_size": full["batch_size"],
            "batch_dice": full["batch_dice"],
            "network": _network(full, where),
        }
    except KeyError as fault:
        raise PlanError(f"{where}: {fault} is missing. Give a plans.json of nnU-Net v2.") from None


def _network(full: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "architecture" not in full:  # before version 2.4
        n_stages = len(full["n_conv_per_stage_encoder"])
        base, limit = full["UNet_base_num_features"], full["unet_max_num_features"]
        kind, _ = _kind(str(full["UNet_class_name"]), where)
        return {
            "kind": kind,
            "features": [min(base * 2**stage, limit) for stage in range(n_stages)],
            "strides_zyx": full["pool_op_kernel_sizes"],
            "kernels_zyx": full["conv_kernel_sizes"],
            "blocks": full["n_conv_per_stage_encoder"],
            "decoder_convolutions": full["n_conv_per_stage_decoder"],
        }
    architecture = full["architecture"]
    kind, blocks_key = _kind(str(architecture["network_class_name"]).rsplit(".", 1)[-1], where)
    stages = architecture["arch_kwargs"]
    n_stages = stages["n_stages"]
    return {
        "kind": kind,
        "features": stages["features_per_stage"],
        "strides_zyx": _each_stage(stages["strides"], n_stages),
        "kernels_zyx": _each_stage(stages["kernel_sizes"], n_stages),
        "blocks": stages[blocks_key],
        "decoder_convolutions": stages["n_conv_per_stage_decoder"],
    }


def _each_stage(values: Any, n_stages: int) -> Any:
    return values if isinstance(values, list) else [values] * n_stages


def _kind(class_name: str, where: str) -> tuple[str, str]:
    if class_name not in _KINDS:
        raise PlanError(f"{where}: network {class_name!r}, expected one of {', '.join(_KINDS)}; others cannot be read.")
    return _KINDS[class_name]


def _normalisation(configuration: Mapping[str, Any], properties: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    result = []
    names, masked = configuration.get("normalization_schemes", []), configuration.get("use_mask_for_norm", [])
    for channel, (name, within) in enumerate(zip(names, masked, strict=True)):
        if name not in _OURS:
            raise PlanError(f"{path}: normalization_schemes: found {name!r}.{did_you_mean(str(name), list(_OURS))}")
        scheme = _OURS[name]
        values: dict[str, Any] = {"scheme": scheme, "within_nonzero": bool(within) and scheme == "zscore"}
        if scheme == "ct":
            seen = _mapping(properties, str(channel), f"{path}: foreground_intensity_properties_per_channel")
            values |= {"low": seen["percentile_00_5"], "high": seen["percentile_99_5"]}
            values |= {"mean": seen["mean"], "std": max(seen["std"], 1e-8)}
        result.append(values)
    return result


def _mapping(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    found = values.get(key)
    if not isinstance(found, Mapping):
        raise PlanError(f"{where}: {key}: found {str(found)[:60]!r}, expected keys and values. Is it a plans.json?")
    return found
