"""nnU-Net's `plans.json` as our plan, also as nnU-Net wrote it before version 2.4 (e.g. TotalSegmentator's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segpipe.bridge.nnunet_plans import CASCADE, NETWORK_CLASSES, PLANNERS, layer_settings
from segpipe.core.errors import PlanError
from segpipe.core.labels import LabelSet
from segpipe.core.records import did_you_mean, read_mapping
from segpipe.plan.schema import SCHEMES, Plan
from segpipe.plan.training import Training

_INHERITS = "inherits_from"
_LINKS = {_INHERITS: "inherits", "previous_stage": "previous"}
_NAMES = {theirs: ours for ours, theirs in CASCADE.items()}
_KINDS = {class_name.rsplit(".", 1)[1]: (kind, key) for kind, (class_name, key) in NETWORK_CLASSES.items()}
_OURS = {row.nnunet: name for name, row in SCHEMES.items() if row.nnunet}
_CT_KEYS = ("percentile_00_5", "percentile_99_5", "mean", "std")
_KINDS_OF_VALUES = {dict: "keys and values", list: "a list", int: "an integer", float: "a number"}


def read_nnunet_plans(
    path: Path,
    channels: Sequence[str],
    labels: LabelSet,
    orientation: str,
    fingerprint_digest: str,
    only: str | None = None,
) -> Plan:
    """Read the decisions of a `plans.json`.

    Args:
        path: The file.
        channels: Names in order, which nnU-Net keeps in `dataset.json`.
        labels: The same.
        orientation: To which cases are turned; nnU-Net leaves them as they are stored.
        fingerprint_digest: Of the data it will be used with.
        only: nnU-Net's name of a configuration; the others are left out but those that it needs. None: all.

    Returns:
        A plan with nnU-Net's training recipe. Names of resampling functions are not read: segpipe's own is used,
        which equals nnU-Net's default.

    Raises:
        PlanError: If it is not a `plans.json`, or holds what segpipe cannot do.
    """
    values = read_mapping(path, PlanError)
    configurations = _part(values, "configurations", dict, str(path))
    properties = _part(values, "foreground_intensity_properties_per_channel", dict, str(path))
    if only is not None:
        configurations = {name: configurations[name] for name in _inheritance_order(only, configurations, path)}
    full = {name: with_inherited(name, configurations, path) for name in configurations}
    planners = {planner: preset for preset, (planner, _) in PLANNERS.items()}
    record = {
        "preset": planners.get(str(values.get("experiment_planner_used")), "nnunet"),
        "dataset": str(values.get("dataset_name", path.stem)),
        "fingerprint": fingerprint_digest,
        "channels": list(channels),
        "labels": labels.model_dump(mode="json"),
        "orientation": orientation,
        "axis_order": _part(values, "transpose_forward", list, str(path)),
        "normalisation": _only_normalisation(full, properties, path),
        "mirror_axes": [0, 1, 2],
        "configurations": {
            _NAMES.get(name, name): _configuration(name, own, full[name], path) for name, own in configurations.items()
        },
        "training": Training().model_dump(mode="json"),
        "reasons": {"preset": f"Read from {path.name} of nnU-Net."},
    }
    return Plan.parse(record, str(path))


def with_inherited(
    name: str, configurations: Mapping[str, Any], path: Path, below: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A configuration with the values it inherits from others.

    Raises:
        PlanError: If one is missing or inherits from itself.
    """
    own: dict[str, Any] = _part(configurations, name, dict, f"{path}: configurations")
    base = own.get(_INHERITS)
    if base is None:
        return own
    if not isinstance(base, str) or base not in configurations or base in (name, *below):
        raise PlanError(
            f"{path}: configurations.{name}.{_INHERITS}: found {base!r}, expected another configuration that does not "
            f"inherit from it.{did_you_mean(str(base), list(configurations))}"
        )
    return with_inherited(base, configurations, path, (*below, name)) | own


def _inheritance_order(name: str, configurations: Mapping[str, Any], path: Path) -> list[str]:
    """A configuration, after those that it inherits from or goes on from."""
    found, asked = [], [name]
    while asked:
        current = asked.pop()
        if current not in found:
            found.append(current)
            full = with_inherited(current, configurations, path)
            asked += [full[key] for key in _LINKS if full.get(key)]
    return found[::-1]


def _configuration(name: str, own: Mapping[str, Any], full: Mapping[str, Any], path: Path) -> dict[str, Any]:
    where = f"{path}: configurations.{name}"
    links = {ours: _NAMES.get(str(own[theirs]), own[theirs]) for theirs, ours in _LINKS.items() if own.get(theirs)}
    if set(own) <= set(_LINKS):
        return links
    patch, spacing, median = (
        _part(full, key, list, where) for key in ("patch_size", "spacing", "median_image_size_in_voxels")
    )
    flat = len(patch) == 2
    try:
        return links | {
            "spacing_mm": [None, *spacing] if flat else spacing,
            "median_shape_zyx": [1, *median] if flat else median,
            "patch_zyx": [1, *patch] if flat else patch,
            "batch_size": full["batch_size"],
            "batch_dice": full["batch_dice"],
            "network": _network(full, len(patch), where),
        }
    except KeyError as fault:
        raise PlanError(f"{where}: {fault} is missing. Give a plans.json of nnU-Net v2.") from None


def _network(full: Mapping[str, Any], n_axes: int, where: str) -> dict[str, Any]:
    if "architecture" not in full:  # before version 2.4
        n_stages = len(_part(full, "n_conv_per_stage_encoder", list, where))
        base, limit = (_part(full, key, int, where) for key in ("UNet_base_num_features", "unet_max_num_features"))
        kind, _ = _kind(str(full["UNet_class_name"]), where)
        return {
            "kind": kind,
            "features": [min(base * 2**stage, limit) for stage in range(n_stages)],
            "strides_zyx": full["pool_op_kernel_sizes"],
            "kernels_zyx": full["conv_kernel_sizes"],
            "blocks": full["n_conv_per_stage_encoder"],
            "decoder_convolutions": full["n_conv_per_stage_decoder"],
        }
    architecture = _part(full, "architecture", dict, where)
    kind, blocks_key = _kind(str(architecture["network_class_name"]).rsplit(".", 1)[-1], where)
    stages = _part(architecture, "arch_kwargs", dict, f"{where}.architecture")
    for key, usual in layer_settings(n_axes).items():
        found = stages.get(
            key, None if key == "nonlin" else usual
        )  # other layers that are left out show in the weights
        if found != usual:
            raise PlanError(
                f"{where}.architecture.arch_kwargs.{key}: found {found!r}, expected {usual!r}, as nnU-Net's "
                "planners write; others cannot be read."
            )
    n_stages = _part(stages, "n_stages", int, f"{where}.architecture.arch_kwargs")
    if isinstance(features := stages["features_per_stage"], list) and len(features) != n_stages:
        raise PlanError(f"{where}: {len(features)} features_per_stage for n_stages {n_stages}. Correct the plans.")
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


def _only_normalisation(
    full: Mapping[str, Mapping[str, Any]], properties: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    """The normalisation of all configurations; they may not differ in it, since our plans hold one."""
    found = {name: _normalisation(own, properties, f"{path}: configurations.{name}") for name, own in full.items()}
    first = next(iter(found), "")
    for name, schemes in found.items():
        if schemes != found[first]:
            raise PlanError(
                f"{path}: configurations.{name}: normalises differently from {first}. Make one plans.json for each."
            )
    return found.get(first, [])


def _normalisation(own: Mapping[str, Any], properties: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    names, masked = (_part(own, key, list, where) for key in ("normalization_schemes", "use_mask_for_norm"))
    if len(names) != len(masked):
        raise PlanError(
            f"{where}: {len(names)} normalization_schemes, but {len(masked)} use_mask_for_norm; expected one of each "
            "for a channel. Correct it."
        )
    result = []
    for channel, (name, within) in enumerate(zip(names, masked, strict=True)):
        scheme = _OURS.get(str(name))
        if scheme is None:
            raise PlanError(f"{where}.normalization_schemes: found {name!r}.{did_you_mean(str(name), list(_OURS))}")
        values: dict[str, Any] = {"scheme": scheme, "within_nonzero": bool(within) and scheme == "zscore"}
        if scheme == "ct":
            inside = f"{where}: foreground_intensity_properties_per_channel"
            seen = _part(properties, str(channel), dict, inside)
            low, high, mean, std = (_part(seen, key, float, f"{inside}.{channel}") for key in _CT_KEYS)
            values |= {"low": low, "high": high, "mean": mean, "std": max(std, 1e-8)}
        result.append(values)
    return result


def _part(values: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A value whose kind is needed to read on; all others are checked with the whole plan."""
    found = values.get(key)
    if not isinstance(found, (int, float) if kind is float else kind):
        raise PlanError(
            f"{where}: {key}: found {str(found)[:60]!r}, expected {_KINDS_OF_VALUES[kind]}. Give nnU-Net's plans.json."
        )
    return found
