"""Configurations that say only where they differ from another: `inherits: 3d_fullres`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "inherits"


def completed(configurations: Mapping[str, Any]) -> dict[str, Any]:
    """Every configuration with all its values.

    Args:
        configurations: By name, as a plan file holds them; one with `inherits` may leave out whatever is as in the
            configuration it names, also inside `network`.

    Raises:
        ValueError: If a base does not exist or configurations inherit from each other in a circle.
    """
    return {name: _complete(name, configurations, ()) for name in configurations}


def _complete(name: str, configurations: Mapping[str, Any], below: tuple[str, ...]) -> Any:
    own = configurations[name]
    base = own.get(KEY) if isinstance(own, Mapping) else None
    if base is None:
        return own
    if not isinstance(base, str) or base not in configurations:
        raise ValueError(
            f"{name} inherits from {base!r}, expected one of {', '.join(sorted({*configurations} - {name}))}"
        )
    if base == name or base in below:
        raise ValueError(f"{' → '.join((*below, name, base))}: configurations inherit in a circle; break it")
    return _over(_complete(base, configurations, (*below, name)), own)


def _over(base: Any, own: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(own, Mapping)):
        return own
    return {**base, **{key: _over(base.get(key), value) for key, value in own.items()}}


def shortened(configurations: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `completed`: of a configuration with `inherits` only what differs from its base."""
    return {
        name: own if own.get(KEY) is None else {KEY: own[KEY], **_difference(configurations[own[KEY]], own)}
        for name, own in configurations.items()
    }


def _difference(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in own.items():
        if key in base and base[key] == value:
            continue
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = _difference(base[key], value) if both else value
    return result
