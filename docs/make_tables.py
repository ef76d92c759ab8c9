"""docs/tables/*.md, made of the records whose values a plan holds: `python docs/make_tables.py`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from segpipe.cli.json_page import _arguments
from segpipe.networks.parts import Parts
from segpipe.plan.augmentation import AUGMENTATIONS, Augmentation
from segpipe.plan.loss import LOSSES, Loss
from segpipe.plan.training import Training

FOLDER = Path(__file__).with_name("tables")


def tables() -> dict[str, str]:
    """File name and text."""
    return {
        "training.md": _values(Training, without=("loss", "augmentation")),
        "augmentation.md": _values(Augmentation, without=()),
        "loss.md": _values(Loss, without=()),
        "parts.md": _values(Parts, without=()),
        "losses.md": _rows("name", "terms and their weights", LOSSES),
        "augmentations.md": _rows("name", "what differs from the table below", AUGMENTATIONS),
    }


def _values(record: type[BaseModel], without: tuple[str, ...]) -> str:
    said = _arguments(inspect.getdoc(record) or "")
    rows = [
        f"| `{name}` | {_shown(field.default)} | {_choices(field.annotation)}{said.get(name, '')} |"
        for name, field in record.model_fields.items()
        if name not in without
    ]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def _choices(annotation: Any) -> str:
    """What may be chosen among, if that is a list of names."""
    inner = next((part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal), None)
    return f"One of {', '.join(f'`{name}`' for name in get_args(inner))}. " if inner else ""


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
