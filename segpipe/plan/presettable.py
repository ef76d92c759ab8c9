"""Records that a plan may call by name: a loss, an augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from segpipe.core.choices import expect_known
from segpipe.core.records import Record
from segpipe.networks.parts import writes_defaults

PRESET = "preset"  # key beside which stands what differs from a name


class Presettable(Record):
    """A record that a file gives as a name, a name and what differs from it, or what differs from the defaults.

    The shortest of these that reads back equal is written; `model_dump(context=WRITE_DEFAULTS)` has every field.
    """

    NAMES: ClassVar[Mapping[str, Mapping[str, Any]]]  # what each name changes in the defaults

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> Any:
        """The record of a name, with changes."""
        return cls.model_validate({PRESET: name, **changes})

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, values: Any) -> Any:
        given = {PRESET: values} if isinstance(values, str) else values
        if not isinstance(given, Mapping):
            return values
        rest = dict(_as_tuples(given))
        name = rest.pop(PRESET, None)
        if name is None:
            return rest
        return {**cls.NAMES[expect_known(str(name), cls.NAMES)], **rest}

    @model_serializer(mode="wrap")
    def _shortest(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        values: dict[str, Any] = handler(self)
        if writes_defaults(info):
            return values
        forms: list[tuple[int, Any]] = []
        for name in self.NAMES:
            other = type(self).from_name(name)
            changes = {key: value for key, value in values.items() if getattr(self, key) != getattr(other, key)}
            forms.append((1 + len(changes), {PRESET: name, **changes}) if changes else (0, name))
        fields = type(self).model_fields
        chosen = {key: value for key, value in values.items() if getattr(self, key) != fields[key].default}
        return min([*forms, (len(chosen), chosen)], key=lambda form: form[0])[1]


def _as_tuples(value: Any) -> Any:
    """Turn the lists of JSON into the tuples that strict records want."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(inner) for key, inner in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
