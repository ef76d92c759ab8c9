"""Records that live in files: frozen, strict, equal records write equal bytes."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from segpipe.core.errors import DataError, PlanError, SegpipeError
from segpipe.core.files import read_text, write_text

_MOST_FAULTS = 10  # in a message


class Record(BaseModel):
    """A frozen record; unknown keys, missing keys and `2.0` for an int are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """The record as JSON with a fixed key order and a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    def to_yaml(self) -> str:
        """The record as YAML for a person: keys in the order of the class, short lists on one line."""
        return yaml.dump(
            self.model_dump(mode="json"), Dumper=_PlanDumper, sort_keys=False, allow_unicode=True, width=110
        )

    def digest(self) -> str:
        """Twelve hexadecimal digits that change when any value in the record does."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Write the record as `.json` or `.yaml`, whole or not at all.

        Raises:
            ResourceError: If the disk is full.
            SetupError: If the path is not writable.
        """
        write_text(path, self.to_yaml() if path.suffix == ".yaml" else self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a record.

        Raises:
            PlanError: If a `.yaml` file is missing, unreadable or holds what it should not.
            DataError: The same for a `.json` file.
        """
        kind: type[SegpipeError] = PlanError if path.suffix == ".yaml" else DataError
        values = read_mapping(path, kind)
        return cls.parse(values, str(path), kind)

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fill in what the files of a record may leave out, before the values are checked.

        Raises:
            ValueError: If a value that was left out cannot be derived.
        """
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str, kind: type[SegpipeError] = PlanError) -> Self:
        """Check values that were read from `where`.

        Raises:
            kind: With one line for each fault: its place, what was found, what was expected.
        """
        try:
            values = cls.complete(values)
            return cls.model_validate_json(json.dumps(values))  # JSON mode: a list becomes a tuple, 2.0 stays no int
        except ValidationError as fault:
            raise kind(_explain(fault, cls, where)) from None
        except (TypeError, ValueError) as fault:
            raise kind(f"{where}: {fault}") from None


def read_mapping(path: Path, kind: type[SegpipeError]) -> dict[str, Any]:
    """Read a `.json` or `.yaml` file that holds one mapping.

    Raises:
        kind: If the file is missing, is not text of that format, or holds something else.
    """
    try:
        text = read_text(path)
        values = parse_yaml(text) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        raise kind(f"{path}: no such file. Check the path, or rerun the command that writes it.") from None
    except OSError as fault:
        raise kind(f"{path}: cannot be read ({fault.strerror or fault}), expected a file. Check the path.") from None
    except UnicodeDecodeError as fault:
        raise kind(f"{path}: cannot be read as text ({fault}), expected UTF-8. Check the path.") from None
    except (yaml.YAMLError, json.JSONDecodeError) as fault:
        format_name = "YAML" if path.suffix == ".yaml" else "JSON"
        text = " ".join(str(fault).split())
        raise kind(f"{path}: is not valid {format_name} ({text}). Correct it, or get the file again.") from None
    if not isinstance(values, dict):
        raise kind(f"{path}: holds a {type(values).__name__}, expected keys and values. Check the path.")
    return values


def parse_yaml(text: str) -> Any:
    """Parse YAML as a person expects it: `1e-3` is a number, and a repeated key is an error.

    Raises:
        yaml.YAMLError: If it is not YAML.
    """
    try:
        return _PlanLoader(text).get_single_data()
    except ValueError as fault:  # e.g. 2020-13-45, which looks like a date
        raise yaml.YAMLError(str(fault)) from None


def finite_or_none(value: float) -> float | None:
    """The value for a record: None instead of NaN or infinity, which JSON does not have."""
    return float(value) if isfinite(value) else None


def did_you_mean(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """` Did you mean 'x'?`, or the known words if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(map(str, known))}."


def _explain(fault: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    for item in sorted(
        fault.errors(), key=lambda item: item["type"] == "missing"
    ):  # wrong values first, they explain more
        place = ".".join(map(str, item["loc"])) or "(top)"
        if item["type"] == "extra_forbidden":
            lines.append(
                f"{place}: unknown key.{did_you_mean(str(item['loc'][-1]), _keys_at(model, item['loc'][:-1]))}"
            )
        elif item["type"] == "missing":
            lines.append(f"{place}: missing. Add it.")
        elif not item["loc"]:  # the values contradict each other: the message names them
            lines.append(f"{item['msg'].removeprefix('Value error, ')}.")
        else:
            found = repr(item["input"])
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: found {found if len(found) < 80 else found[:77] + '...'}; {message}.")
    if len(lines) > _MOST_FAULTS:
        n_more = len(lines) - _MOST_FAULTS
        lines[_MOST_FAULTS:] = [f"… and {n_more} more. If another version wrote this file, create it again."]
    return f"{where}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Field names of the record at `place` inside `model`, following lists and mappings."""
    current: Any = model
    for step in place:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(step))
            current = field.annotation if field else None
        else:  # inside tuple[X, ...] or dict[str, X]: the record is the last type argument that is one
            current = _record_in(current)
        if not (isinstance(current, type) and issubclass(current, BaseModel)) and step == place[-1]:
            current = _record_in(current)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _record_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    records = [_record_in(part) for part in getattr(annotation, "__args__", ())]
    return next((part for part in records if part is not None), None)


class _PlanLoader(yaml.SafeLoader):
    """YAML as a person expects it: `1e-3` is a number, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


class _PlanDumper(yaml.SafeDumper):
    """Lists of numbers on one line, everything else in block style."""


for _side in (
    _PlanLoader,
    _PlanDumper,
):  # the dumper too, or a digest such as 120529175e23 would be written without quotes
    _side.add_implicit_resolver(  # YAML 1.1 reads `1e-3` as text, since it has no dot
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _short_lists_inline(dumper: _PlanDumper, values: list[Any]) -> yaml.Node:
    flat = all(not isinstance(v, dict) and not (isinstance(v, str) and len(v) > 40) for v in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_PlanDumper.add_representer(list, _short_lists_inline)
