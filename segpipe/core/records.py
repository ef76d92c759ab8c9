"""Records that live in files: frozen, strict, equal records write equal bytes."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from segpipe.core.errors import DataError, PlanError, SegpipeError
from segpipe.core.files import read_text, write_text
from segpipe.core.text import command_text, size_text

_MOST_FAULTS = 10  # in a message
_MOST_BYTES = {".yaml": 2**18, ".json": 2**26}  # of a file; either takes some ten seconds
_MOST_DEPTH = 64  # of values inside values; Python's own limit ends in an error without a place
_MOST_VALUES = 2**17  # of a YAML file, references written out: more than 256 KiB hold without them
_MOST_DIGITS = 19  # of an integer; reading very long ones takes the square of their length
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which no file can hold


class Record(BaseModel):
    """A frozen record; unknown keys, missing keys and `2.0` for an int are errors."""

    written_by: ClassVar[str] = ""  # command that writes the file again, with {folder} for the folder of the file

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
        again = cls.written_by.format(folder=command_text(str(path.parent)))
        if version := cls._other_version(values):
            remedy = f"Write it again: {again}" if again else "Use that version, or make the file again"
            raise kind(f"{path}: was written by {version} of segpipe. {remedy}.")
        try:
            return cls.parse(values, str(path), kind)
        except kind as fault:
            if not again:
                raise
            raise kind(f"{fault}\n  If another version of segpipe wrote this file, write it again: {again}.") from None

    @classmethod
    def _other_version(cls, values: Mapping[str, Any]) -> str:
        """The version of segpipe whose format values have, as `an older version`; empty if it is today's."""
        for name, field in cls.model_fields.items():
            known = get_args(field.annotation)
            found = values.get(name, 1)  # the first formats did not state theirs
            if name.startswith("segpipe_") and type(found) is int and known and found != known[0]:
                return f"{'an older' if found < known[0] else 'a newer'} version"
        return ""

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
        except RecursionError:
            raise kind(f"{where}: values refer to each other too often. Write them out.") from None
        except (TypeError, ValueError) as fault:
            raise kind(f"{where}: {fault}") from None


def read_mapping(path: Path, kind: type[SegpipeError]) -> dict[str, Any]:
    """Read a `.json` or `.yaml` file that holds one mapping.

    Raises:
        kind: If the file is missing, is not text of that format, or holds something else.
    """
    values = read_values(path, kind)
    if not isinstance(values, dict):
        raise kind(f"{path}: holds a {type(values).__name__}, expected keys and values. Check the path.")
    return values


def read_values(path: Path, kind: type[SegpipeError]) -> Any:
    """Read a `.json` or `.yaml` file from anywhere: the one place that does, so that all have the same limits.

    Raises:
        kind: If the file is missing, is not text of that format, or is larger or deeper than any that is meant.
    """
    format_name, most = ("YAML", _MOST_BYTES[".yaml"]) if path.suffix == ".yaml" else ("JSON", _MOST_BYTES[".json"])
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe could wait for ever
            raise kind(f"{path}: is no plain file, expected one. Check the path.")
        if path.stat().st_size > most:
            raise kind(f"{path}: has {size_text(path.stat().st_size)}, expected {size_text(most)} at most. Check it.")
        text = read_text(path)
        return parse_yaml(text) if path.suffix == ".yaml" else parse_json(text)
    except FileNotFoundError:
        raise kind(f"{path}: no such file. Check the path, or rerun the command that writes it.") from None
    except OSError as fault:
        raise kind(f"{path}: cannot be read ({fault.strerror or fault}), expected a file. Check the path.") from None
    except UnicodeDecodeError as fault:
        raise kind(f"{path}: cannot be read as text ({fault}), expected UTF-8. Check the path.") from None
    except (yaml.YAMLError, ValueError) as fault:
        text = " ".join(str(fault).split())
        raise kind(f"{path}: is not valid {format_name} ({text}). Correct it, or get the file again.") from None


def parse_yaml(text: str) -> Any:
    """Parse YAML as a person expects it: `1e-3` is a number, and a repeated key is an error.

    Raises:
        yaml.YAMLError: If it is not YAML, too deep, holds an integer beyond 64 bits, or references (`*name`) that make
            it too large: a few of those can be worth gigabytes.
    """
    try:
        values = _PlanLoader(text).get_single_data()
        for found in texts_in(values):
            _require_characters(found)
    except ValueError as fault:  # e.g. 2020-13-45, which looks like a date
        raise yaml.YAMLError(str(fault)) from None
    return values


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is not JSON, too deep, or holds a key twice, an integer beyond 64 bits or half a character.
    """
    try:
        values = json.loads(text, parse_int=_integer, object_pairs_hook=_distinct_keys)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    for found in texts_in(values):
        _require_characters(found)
    return values


_TOO_DEEP = f"more than {_MOST_DEPTH} values inside each other"


def texts_in(values: Any) -> Iterator[str]:
    """Every text in values of JSON or YAML, keys included.

    Raises:
        ValueError: If there are too many inside each other.
    """
    level = [values]
    for _ in range(_MOST_DEPTH + 1):
        yield from (value for value in level if isinstance(value, str))
        inside = [[*v, *v.values()] if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [value for values in inside for value in values]
    if level:
        raise ValueError(_TOO_DEEP)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that occurs twice, of which Python would keep the last: a label or a case would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one mapping")
    return values


def _integer(text: str) -> int:
    digits = text.lstrip("+-").replace("_", "")
    value = int(text) if len(digits) <= _MOST_DIGITS else 2**63
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"an integer of {len(digits)} digits, expected 64 bits at most")
    return value


def _require_characters(text: str) -> None:
    if found := _SURROGATE.search(text):
        raise ValueError(f"holds half a character (U+{ord(found[0]):04X})")


def finite_or_none(value: float) -> float | None:
    """The value for a record: None instead of NaN or infinity, which JSON does not have."""
    return float(value) if isfinite(value) else None


def did_you_mean(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """` Did you mean 'x'?`, or the known words if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(map(str, known))}."


def _explain(fault: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    found_faults = sorted(fault.errors(), key=lambda item: item["type"] == "missing")  # wrong values explain more
    for item in found_faults[: _MOST_FAULTS + 1]:
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
        n_more = len(found_faults) - _MOST_FAULTS
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
    """YAML as a person expects it, in linear time: `1e-3` is a number; a repeated key is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._n_values: dict[yaml.Node, int] = {}  # of each node, references written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.get_mark()
        if self._depth >= _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=mark)
        is_reference = self.check_event(yaml.AliasEvent)
        self._depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if node is None or (is_reference and node not in self._n_values):
            raise yaml.MarkedYAMLError(problem="a reference to a value that holds it", problem_mark=mark)
        if not is_reference:
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            pairs = [pair if isinstance(pair, tuple) else (pair,) for pair in children]
            self._n_values[node] = 1 + sum(self._n_values[child] for pair in pairs for child in pair)
        if self._n_values[node] > _MOST_VALUES:
            problem = f"more than {_MOST_VALUES:,} values once its references (*name) are written out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} occurs twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        is_long, value = len(node.value) > _MOST_NUMBER, 0.0
        if not is_long:
            value = (self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float)(node)
        if is_long or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            problem = f"a number of {len(node.value)} characters, expected 64 bits at most"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


_MOST_NUMBER = 70  # characters of a number: 64 bits in binary have 66
for _kind in ("int", "float"):
    _PlanLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlanLoader.construct_number)


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
