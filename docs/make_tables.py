"""docs/tables/*.md, made of the records and tables that a plan follows: `python docs/make_tables.py`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from make_json import documented_arguments
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segpipe.bridge.exporters import EXPORTERS
from segpipe.core.choices import Choice, table_of
from segpipe.evaluate.metrics import METRICS, FromCase
from segpipe.networks.canonical_transforms import TRANSFORMS
from segpipe.networks.parts import (
    ACTIVATIONS,
    BLOCKS,
    BOTTLENECK_ATTENTIONS,
    BOTTLENECK_MASKS,
    BOTTLENECK_MIXERS,
    GATES,
    NORMS,
    PYRAMIDS,
    REGULATORS,
    RESIDUAL_SCALES,
    SPARSE_FAMILIES,
    Parts,
    SparseKernels,
)
from segpipe.networks.spec import KINDS
from segpipe.plan.augmentation import AUGMENTATIONS, LOCAL_CHANGES, Augmentation
from segpipe.plan.loss import LOSSES, TERMS, Loss
from segpipe.plan.schema import SCHEMES, Normalisation
from segpipe.plan.training import OPTIMIZERS, SAMPLERS, SCHEDULES, Training

FOLDER = Path(__file__).with_name("tables")


def tables() -> dict[str, str]:
    """File name and text."""
    return {
        "training.md": _values(Training, without=("loss", "augmentation")),
        "augmentation.md": _values(Augmentation, without=()),
        "loss.md": _values(Loss, without=()),
        "parts.md": _values(Parts, without=()),
        "losses.md": _rows("name", "terms and their weights", LOSSES),
        "augmentations.md": _rows(
            "name",
            "what differs from the table below",
            {name: dict(row.changes) for name, row in AUGMENTATIONS.items()},
        ),
        "metrics.md": _metrics(),
        "optimizers.md": _choices("optimizer", OPTIMIZERS, Training),
        "schedules.md": _choices("schedule", SCHEDULES, Training),
        "samplers.md": _choices("foreground_unit", SAMPLERS, Training),
        "terms.md": _choices("term", TERMS, Loss),
        "schemes.md": _choices("scheme", SCHEMES, Normalisation),
        "local_changes.md": _choices("change", LOCAL_CHANGES, Augmentation),
        "exporters.md": _choices("--to", EXPORTERS, None),
        "kinds.md": _choices("kind", KINDS, None),
        "norms.md": _choices("norm", NORMS, Parts),
        "activations.md": _choices("activation", ACTIVATIONS, Parts),
        "gates.md": _choices("attention", GATES, Parts),
        "blocks.md": _choices("block", BLOCKS, None),
        "residual_scales.md": _choices("residual_scale", RESIDUAL_SCALES, None),
        "regulators.md": _choices("regulator", REGULATORS, None),
        "pyramids.md": _choices("bottleneck", PYRAMIDS, Parts),
        "bottleneck_attentions.md": _choices("bottleneck_attention", BOTTLENECK_ATTENTIONS, Parts),
        "bottleneck_masks.md": _choices("bottleneck_mask", BOTTLENECK_MASKS, Parts),
        "transforms.md": _choices("canonicalise", TRANSFORMS, Parts),
        "sparse.md": _values(SparseKernels, without=("family",)),
        "sparse_families.md": _choices("family", SPARSE_FAMILIES, None),
        "bottleneck_mixers.md": _choices("bottleneck_mixer", BOTTLENECK_MIXERS, Parts),
    }


def _metrics() -> str:
    """Every metric but those of other rules and other parts of the image, which differ in one word of their name."""
    units = {"1": "–", "mm": "mm", "mm3": "mm³; people see mL"}
    best = {"overlap": "1", "distance": "0", "difference": "0"}
    rows = [
        f"| `{m.name}` | {m.description} | {units[m.unit]} | {best[m.kind]} | {m.source or '–'} |"
        for m in METRICS.values()
        if not isinstance(m.value, FromCase) or not m.value.variant or m.value.key in ("sq", "pq")
    ]
    return (
        "\n".join(["| metric | what it is | unit | best | source |", "| --- | --- | --- | --- | --- |", *rows]) + "\n"
    )


def _choices(title: str, table: Mapping[str, Choice], record: type[BaseModel] | None) -> str:
    """The rows of a table of choices; without a record their parameters are not shown."""
    rows = []
    for row, group in itertools.groupby(table, lambda name: table[name]):  # the sizes of one family share a row
        names = list(group)
        name = "` … `".join(names if len(names) == 1 else (names[0], names[-1]))
        own = ", ".join(_parameter(record, parameter) for parameter in row.parameters) if record else ""
        rows.append(
            f"| `{name}` | {'; '.join(filter(None, (row.does, own and f'reads {own}')))} | {row.source or '–'} |"
        )
    return "\n".join([f"| {title} | what it is | source |", "| --- | --- | --- |", *rows]) + "\n"


def _parameter(record: type[BaseModel], name: str) -> str:
    """A parameter with its default and range."""
    field = record.model_fields[name]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in signs.items()
        if getattr(limit, key, None) is not None
    ]
    return f"`{name}` ({', '.join([_shown(field.default).strip('`'), *limits])})"


def _values(record: type[BaseModel], without: tuple[str, ...]) -> str:
    said = documented_arguments(inspect.getdoc(record) or "")
    rows = [
        f"| `{name}` | {_shown(field.default)} | {_names(field)}{said.get(name, field.description or '')} |"
        for name, field in record.model_fields.items()
        if name not in without
    ]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def _names(field: FieldInfo) -> str:
    """The names among which a value is chosen, if it is."""
    parts = (*field.metadata, field.annotation, *get_args(field.annotation))
    table = next((found for part in parts if (found := table_of(part)) is not None), None)
    literal = next((part for part in parts if get_origin(part) is Literal), None)
    names = table or get_args(literal)
    return (
        f"One of {', '.join(f'`{name}`' for name in names)}. "
        if names and get_origin(field.annotation) is not dict
        else ""
    )


def _rows(key: str, value: str, names: dict[str, dict[Any, Any]]) -> str:
    rows = [f"| `{name}` | {_differences(values)} |" for name, values in names.items()]
    return "\n".join([f"| {key} | {value} |", "| --- | --- |", *rows]) + "\n"


def _differences(values: dict[Any, Any]) -> str:
    if values and set(values.values()) == {0.0}:
        return "every probability is 0"
    return ", ".join(f"`{key}` {_shown(value).strip('`')}" for key, value in values.items()) or "nothing"


def _shown(value: Any) -> str:
    """As YAML writes it."""
    if value is None:
        return "–"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...").strip()
    return f"`{text}`"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in tables().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
