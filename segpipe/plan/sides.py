"""Which labels say a side of the body: mirrored from left to right, such an image contradicts its labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIDES = {"left": "left", "l": "left", "lh": "left", "lt": "left", "sinister": "left", "links": "left"}
_SIDES |= {"right": "right", "r": "right", "rh": "right", "rt": "right", "dexter": "right", "rechts": "right"}
_WRITTEN_OUT = {"left", "right"}  # one letter may be anything; without a partner only the word is a side
_HEART = {"atrium", "ventricle", "auricle", "appendage", "heart"}  # left and right differ in shape, not only in place
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")  # `KidneyLeft`, `kidney_l`, `Left-Kidney`, `LH amygdala`


def words_of(name: str) -> tuple[str, ...]:
    """Words of a label's name in small letters.

    Example:
        >>> words_of("Left-KidneyUpper_2")
        ('left', 'kidney', 'upper', '2')
    """
    return tuple(word.lower() for word in _WORDS.findall(name))


def sided_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Labels whose side a mirror image would contradict, in their order.

    A pair differs in the word of its side alone (`kidney_left`, `kidney_right`; `LH amygdala`, `RH amygdala`). A
    label without its partner counts if the side is written out, since the unlabelled partner looks like it when
    mirrored. The chambers of the heart without `lateral` do not count: they differ in shape.

    Example:
        >>> sided_labels(("liver", "kidney_l", "kidney_r", "left atrium"))
        ('kidney_l', 'kidney_r')
    """
    described = {name: _described(name) for name in names}
    sides = {
        rest: {side for _, side, other in described.values() if other == rest} for _, _, rest in described.values()
    }
    return tuple(
        name
        for name, (word, side, rest) in described.items()
        if side and (len(sides[rest] - {""}) == 2 or word in _WRITTEN_OUT) and not _is_chamber(rest)
    )


def _described(name: str) -> tuple[str, str, tuple[str, ...]]:
    """The word of the side, the side (empty if none, or two of them), and the other words."""
    words = words_of(name)
    found = [word for word in words if word in _SIDES]
    if len(found) != 1 or len(words) == 1:
        return "", "", words
    return found[0], _SIDES[found[0]], tuple(word for word in words if word != found[0])


def _is_chamber(words: tuple[str, ...]) -> bool:
    return bool(_HEART & set(words)) and "lateral" not in words


def sideways_axis(orientation: str, axis_order: Sequence[int]) -> int:
    """Axis of the planned arrays, 0 to 2, that runs from one side of the body to the other.

    Args:
        orientation: Of x, y, z, e.g. `LPS`.
        axis_order: Order in which the axes Z, Y, X are put.
    """
    along_xyz = next(i for i, letter in enumerate(orientation) if letter in "LR")
    return list(axis_order).index(2 - along_xyz)
