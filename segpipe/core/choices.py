"""Tables of what a plan may choose by name: a row for each choice, without torch.

From a table follow the values that a record accepts (`OneOf`), the completion of `--set`, "did you mean", the cost
model and the generated pages of the documentation. What computes is a dictionary elsewhere, made by `functions_for`,
which holds both to the same keys. So a new choice is one row and one function; docs/extending.md has examples.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Function = TypeVar("Function")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A row of a table.

    Args:
        does: One phrase for the documentation and the completion of the shell.
        source: Paper or program that it follows; empty if there is none to name.
        parameters: Fields of the same record that it reads, with their range and default there.
    """

    does: str
    source: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OneOf:
    """Mark a field as a key of a table: `optimizer: Annotated[str, OneOf(OPTIMIZERS)]`. Rows may be added later."""

    table: Mapping[str, Choice]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, name: Any) -> Any:
        """The name itself; a ValueError if the table has no such row."""
        return expect_known(name, self.table)


@dataclass(frozen=True, eq=False)
class PositiveOr(OneOf):
    """Mark a field as a number above 0 or a key of a table: `scale: Annotated[float | str, PositiveOr(SCALES)]`."""

    def check(self, name: Any) -> Any:
        """The number or name itself; a ValueError if the number is not above 0 or the table has no such row."""
        if not isinstance(name, str) and name > 0:
            return name
        try:
            return expect_known(name if isinstance(name, str) else "", self.table)
        except ValueError as err:
            raise ValueError(f"expected a number above 0, or {str(err).removeprefix('expected ')}") from None


def expect_known(name: str, known: Iterable[str]) -> str:
    """The name itself.

    Raises:
        ValueError: If it is not among those known, with the nearest one.
    """
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"expected one of {', '.join(names)}{hint}")
    return name


def table_of(annotation: Any) -> Mapping[str, Choice] | None:
    """The table that an annotation names, also inside `… | None` or as the keys of a dict; None if there is none."""
    if isinstance(annotation, OneOf):
        return annotation.table
    parts = (*get_args(annotation), *getattr(annotation, "__metadata__", ()))
    return next((table for part in parts if (table := table_of(part)) is not None), None)


def unread_parameters(table: Mapping[str, Choice], chosen: Collection[str]) -> dict[str, str]:
    """Parameters that none of the chosen rows reads, each with the names of the rows that do.

    Example:
        >>> unread_parameters({"a": Choice(does="", parameters=("x",)), "b": Choice(does="")}, ["b"])
        {'x': 'a'}
    """
    read = {parameter for name in chosen for parameter in table[name].parameters}
    readers: dict[str, list[str]] = {}
    for name, row in table.items():
        for parameter in row.parameters:
            if name.partition("+")[0] not in readers.setdefault(parameter, []):  # what it is made of says enough
                readers[parameter].append(name)
    return {parameter: " and ".join(names) for parameter, names in readers.items() if parameter not in read}


def functions_for(
    table: Mapping[str, Choice], functions: Mapping[str, Function], table_name: str
) -> dict[str, Function]:
    """The functions in the order of the table.

    Raises:
        ValueError: If a row has no function, or a function no row; `table_name` tells where the table is.
    """
    without_function, without_row = [*table.keys() - functions], [*functions.keys() - table]
    if without_function or without_row:
        missing = [f"{name!r} has a row and no function" for name in without_function]
        missing += [f"{name!r} has a function and no row" for name in without_row]
        raise ValueError(f"{table_name}: {'; '.join(sorted(missing))}. Add what is missing.")
    return {name: functions[name] for name in table}
