"""Tables and texts of the plan's page: labels, decisions, configurations, network stages, costs, folds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized

import numpy as np

from segpipe.core.labels import Label, LabelSet
from segpipe.core.text import MOST_ROWS, list_names
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.fingerprint.record import Fingerprint
from segpipe.plan.planned_cost import PlannedCost
from segpipe.plan.schema import SCHEMES, Configuration, Normalisation, Plan
from segpipe.report.page import Cell, Table

_RARE_SHARE = 0.1  # of the cases; below it a mean over cases rests on few of them
_FOLDS_SIDE_BY_SIDE = 10  # more would make the table wider than a page
_NONE = "–"


def rare_labels(fingerprint: Fingerprint) -> tuple[str, ...]:
    """A sentence for the labels in no case, and one for rare ones; warnings of the splits name the folds without."""
    n_cases = len(fingerprint.cases)
    groups: dict[str, list[str]] = {}
    for name, share in fingerprint.prevalence.items():
        n_with = round(share * n_cases)
        if n_with == 0:
            consequence = "in no case, so it cannot be learnt. Add cases, or remove it from the labels."
        elif share < _RARE_SHARE:
            consequence = f"in less than {_RARE_SHARE:.0%} of the cases, so its scores will rest on few cases."
        else:
            continue
        groups.setdefault(consequence, []).append(f"{name} ({n_with} of {n_cases})" if n_with else name)
    return tuple(f"Rare: {list_names(names)}, {consequence}" for consequence, names in groups.items())


def label_table(fingerprint: Fingerprint, labels: LabelSet, n_folds: int) -> Table:
    """A row for each label, of many the rarest first; cases without it count in its prevalence alone."""
    n_cases = len(fingerprint.cases)
    rows = []
    for label in labels.labels if len(labels.labels) <= MOST_ROWS else _rarest_first(labels, fingerprint):
        found = [case.labels[label.name] for case in fingerprint.cases if label.name in case.present]
        is_rare = len(found) < max(n_folds, _RARE_SHARE * n_cases)
        cells = [
            Cell(label.name),
            Cell(", ".join(map(str, label.values))),
            Cell(f"{len(found)} of {n_cases}" + (" · rare" if is_rare else ""), is_bad=is_rare),
        ]
        if found:
            volumes = np.array([m.volume_mm3 for m in found]) / 1000
            parts = [m.n_components for m in found]
            extent = np.median([m.extent_mm for m in found], axis=0)
            cells += [
                Cell(f"{short(np.median(volumes))}  [{short(volumes.min())}, {short(volumes.max())}]"),
                Cell(f"{np.median(parts):g}  [{min(parts)}, {max(parts)}]"),
                Cell(_times(extent.tolist())),
            ]
        rows.append((*cells, *[Cell(_NONE)] * (6 - len(cells))))
    caption = (
        "Medians and [smallest, largest] over the cases in which a label occurs. Parts are connected components; "
        f"extent is the median edge of the box around the label along Z × Y × X of {fingerprint.orientation} images."
    )
    columns = ("label", "value in files", "cases", "volume, mL", "parts", "extent, mm")
    return Table(columns, tuple(rows), caption, is_folded=True)


def _rarest_first(labels: LabelSet, fingerprint: Fingerprint) -> list[Label]:
    """Labels by the number of their cases, then by their median volume."""

    def key(label: Label) -> tuple[float, float]:
        found = [case.labels[label.name].volume_mm3 for case in fingerprint.cases if label.name in case.present]
        return fingerprint.prevalence.get(label.name, 0.0), float(np.median(found)) if found else 0.0

    return sorted(labels.labels, key=key)


def configuration_table(plan: Plan) -> Table:
    """A column for each configuration."""
    rows: dict[str, list[str]] = {}
    for configuration in plan.configurations.values():
        for name, text in _configuration_rows(configuration).items():
            rows.setdefault(name, []).append(text)
    lines = tuple((Cell(name), *map(Cell, texts)) for name, texts in rows.items() if set(texts) != {_NONE})
    axes = " × ".join(axis_names(plan))
    caption = f"Lengths are along {axes}: the axes of {plan.orientation} images in the plan's order."
    return Table(("", *plan.configurations), lines, caption)


def _configuration_rows(configuration: Configuration) -> dict[str, str]:
    network = configuration.network
    n_axes = network.n_axes
    patch, median = configuration.patch_zyx[-n_axes:], configuration.median_shape_zyx[-n_axes:]
    edges = [s for s in configuration.spacing_mm[-n_axes:] if s is not None]
    covered = math.prod(min(p / m, 1.0) for p, m in zip(patch, median, strict=True))
    return {
        "voxel, mm": _times(edges),
        "median image, voxels": _times(median),
        "patch, voxels": _times(patch),
        "patch, mm": _times(p * s for p, s in zip(patch, edges, strict=True)),
        "patch / median image": f"{covered:.0%}",
        "batch": str(configuration.batch_size),
        "Dice loss over": "the batch" if configuration.batch_dice else "each patch",
        "network": f"{network.kind}, {len(network.features)} stages",
        "features": f"{network.features[0]} to {network.features[-1]}",
        "parts": network.parts_text or _NONE,
        "guided by": configuration.previous or _NONE,
    }


def stage_tables(plan: Plan) -> tuple[Table, ...]:
    """The stages of each configuration's network; a cascade has those of the configuration it is like."""
    return tuple(
        _stage_table(f"Network of {name}", configuration)
        for name, configuration in plan.configurations.items()
        if configuration.previous is None
    )


def _stage_table(title: str, configuration: Configuration) -> Table:
    network = configuration.network
    size = np.array(configuration.patch_zyx[-network.n_axes :])
    edges = np.array([s for s in configuration.spacing_mm[-network.n_axes :] if s is not None])
    decoders = (*network.decoder_convolutions, None)
    rows = []
    for number, stride in enumerate(network.strides_zyx):
        size, edges = size // stride, edges * stride
        texts = [
            str(number),
            _times(edges.tolist()),
            _times(size.tolist()),
            str(network.features[number]),
            _times(stride),
            _times(network.kernels_zyx[number]),
            str(network.blocks[number]),
            _NONE if decoders[number] is None else str(decoders[number]),
        ]
        rows.append(tuple(map(Cell, texts)))
    columns = (
        "stage",
        "voxel, mm",
        "patch, voxels",
        "features",
        "stride",
        "kernel",
        "encoder blocks",
        "decoder blocks",
    )
    return Table(columns, tuple(rows), f"{title} ({network.kind}), the highest resolution first.")


def cost_table(costs: Sequence[PlannedCost], plan: Plan) -> Table:
    """Predicted cost of each configuration."""
    n_steps = plan.training.epochs * plan.training.iterations_per_epoch
    rows = []
    for taken in costs:
        seconds = taken.seconds_per_step
        texts = [
            taken.configuration,
            _gib(taken.training_gib),
            _gib(taken.prediction_gib),
            f"{taken.parameters / 1e6:.1f}",
            f"{taken.tera_macs_per_step:.3g}",
            _NONE if seconds is None else f"{seconds:.2g}",
            _NONE if seconds is None else _duration(plan.training.time_budget_seconds or seconds * n_steps),
            _gib(taken.prepared_gib),
        ]
        rows.append(tuple(map(Cell, texts)))
    memory = costs[0].memory
    columns = (
        "configuration",
        f"{memory} memory,\ntraining, GiB",
        f"{memory} memory,\nprediction, GiB",
        "parameters,\nmillions",
        "10¹² MAC\na step",
        "seconds\na step",
        "training\na fold",
        "prepared cases,\nGiB",
    )
    caption = (
        f"Predicted before anything runs. MAC: a multiplication with addition. A fold is {n_steps} steps, validation "
        "not counted. Time is that of the machine that planned; it is not known (–) if the plan is for another one."
    )
    return Table(columns, tuple(rows), caption)


def split_tables(splits: Splits, fingerprint: Fingerprint, dataset: Dataset) -> tuple[Table, ...]:
    """Folds side by side, ten in a table: their cases and patients, and the cases with each label."""
    numbers = range(splits.k)
    starts = range(0, splits.k, _FOLDS_SIDE_BY_SIDE)
    return tuple(
        _split_table(splits, numbers[start : start + _FOLDS_SIDE_BY_SIDE], fingerprint, dataset) for start in starts
    )


def _split_table(splits: Splits, numbers: Sequence[int], fingerprint: Fingerprint, dataset: Dataset) -> Table:
    patient_of = {case.case_id: case.patient_id for case in dataset.cases}
    present = {case.case_id: case.present for case in fingerprint.cases}
    sides = [(splits.folds[n].train, splits.folds[n].validation) for n in numbers]
    patients = [[{patient_of.get(c, c) for c in side} for side in pair] for pair in sides]
    rows = [
        (Cell("cases"), *(_counts(train, validation) for train, validation in sides)),
        (Cell("patients"), *(_counts(train, validation) for train, validation in patients)),
    ]
    shares = fingerprint.prevalence
    is_long = len(shares) > MOST_ROWS
    for name, share in sorted(shares.items(), key=lambda item: item[1]) if is_long else shares.items():
        having = [[[c for c in side if name in present.get(c, ())] for side in pair] for pair in sides]
        is_needed = share > 0
        rows.append((Cell(f"with {name}"), *(_counts(train, validation, is_needed) for train, validation in having)))
    drawn = f"{splits.source}" + (f", seed {splits.seed}" if splits.seed is not None else "")
    caption = f"To train on / to validate with. Folds: {drawn}."
    return Table(("", *(f"fold {n}" for n in numbers)), tuple(rows), caption, is_folded=True)


def _counts(train: Sized, validation: Sized, is_needed: bool = False) -> Cell:
    return Cell(f"{len(train)} / {len(validation)}", is_bad=is_needed and not (train and validation))


def scheme_text(normalisation: Normalisation) -> str:
    """The normalisation of a channel in words."""
    if normalisation.scheme == "ct":
        assert normalisation.low is not None and normalisation.high is not None
        assert normalisation.mean is not None and normalisation.std is not None
        return (
            f"clipped to {short(normalisation.low)} … {short(normalisation.high)}, then − {short(normalisation.mean)}, "
            f"÷ {short(normalisation.std)}"
        )
    inside = ", over nonzero voxels" if normalisation.within_nonzero else ""
    return SCHEMES[normalisation.scheme].does + inside


def decision_texts(plan: Plan) -> dict[str, str]:
    """Values of the decisions by the key of their reason; of a configuration those that fit on a line."""
    axes, configurations = axis_names(plan), plan.configurations.items()
    schemes = zip(plan.channels, plan.normalisation, strict=True)
    edges = {name: _times(edge for edge in c.spacing_mm if edge is not None) for name, c in configurations}
    return {
        **{
            name: f"patch {_times(c.patch_zyx[-c.network.n_axes :])}, batch {c.batch_size}"
            for name, c in configurations
        },
        "spacing": "; ".join(f"{name} {text} mm" for name, text in edges.items()),
        "axis_order": ", ".join(axes),
        "mirror_axes": ", ".join(axes[axis] for axis in plan.mirror_axes) or "none",
        "normalisation": "; ".join(f"{channel}: {scheme_text(scheme)}" for channel, scheme in schemes),
    }


def axis_names(plan: Plan) -> tuple[str, str, str]:
    """The plan's axes 0, 1, 2 by the direction of the body they run along."""
    directions = {"R": "right–left", "L": "right–left", "A": "front–back", "P": "front–back"}
    first, second, third = (directions.get(plan.orientation[2 - axis_zyx], "feet–head") for axis_zyx in plan.axis_order)
    return first, second, third


def short(value: float) -> str:
    """Three digits that matter, never with an exponent above 1."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(values: Iterable[float]) -> str:
    return " × ".join(map(short, values))


def _gib(gib: float) -> str:
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
