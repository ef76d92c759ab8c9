"""Sides of the body: labels that name one, which a mirrored image would contradict; where left and right are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from segpipe.core.grid import turn_between
from segpipe.core.labels import LabelSet

AS_STORED = "stored"  # as an orientation: no image is turned, as in nnU-Net
ORIENTATION = "RAS"  # to which plans turn all images: the only one that nnU-Net's readers turn images to
_SIDES = {"left": "left", "l": "left", "lh": "left", "lt": "left", "sinister": "left", "links": "left"}
_SIDES |= {"right": "right", "r": "right", "rh": "right", "rt": "right", "dexter": "right", "rechts": "right"}
_WRITTEN_OUT = {"left", "right"}  # one letter may be anything; without a partner only the word is a side
_HEART = {"atrium", "ventricle", "auricle", "appendage", "heart"}  # left and right differ in shape, not only in place
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")  # `KidneyLeft`, `kidney_l`, `Left-Kidney`, `LH amygdala`


def words_of(name: str) -> tuple[str, ...]:
    """Split a label's name into words in lower case.

    Example:
        >>> words_of("Left-KidneyUpper_2")
        ('left', 'kidney', 'upper', '2')
    """
    return tuple(word.lower() for word in _WORDS.findall(name))


def sided_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels whose side a mirror image would contradict, in their order.

    A pair differs in the word of its side alone (`kidney_left`, `kidney_right`; `LH amygdala`, `RH amygdala`). A
    label without its partner counts if the side is written out, since the unlabelled partner looks like it when
    mirrored. The chambers of the heart without `lateral` do not count: they differ in shape.

    Example:
        >>> sided_labels(("liver", "kidney_l", "kidney_r", "left atrium"))
        ('kidney_l', 'kidney_r')
    """
    described = {name: _split_side(name) for name in names}
    sides = {
        rest: {side for _, side, other in described.values() if other == rest} for _, _, rest in described.values()
    }
    return tuple(
        name
        for name, (word, side, rest) in described.items()
        if side and (len(sides[rest] - {""}) == 2 or word in _WRITTEN_OUT) and not _is_chamber(rest)
    )


def _split_side(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the word for the side, the side (empty if there is none, or two), and the other words."""
    words = words_of(name)
    found = [word for word in words if word in _SIDES]
    if len(found) != 1 or len(words) == 1:
        return "", "", words
    return found[0], _SIDES[found[0]], tuple(word for word in words if word != found[0])


def _is_chamber(words: tuple[str, ...]) -> bool:
    return bool(_HEART & set(words)) and "lateral" not in words


def sideways_axis(orientation: str, axis_order: Sequence[int]) -> int:
    """Return the axis of the planned arrays, 0 to 2, that runs from one side of the body to the other.

    Args:
        orientation: Of x, y, z, e.g. `LPS`; of images as they are stored x is taken for it.
        axis_order: Order in which the axes Z, Y, X are put.
    """
    along_xyz = next((i for i, letter in enumerate(orientation) if letter in "LR"), 0)
    return list(axis_order).index(2 - along_xyz)


def order_in(orientation: str, known: str, axis_order: Sequence[int]) -> tuple[int, int, int]:
    """Return the order of axes that gives the same axes of the body after images are turned to another orientation.

    Args:
        orientation: To which images are turned.
        known: For which the order was found.
        axis_order: Order in which the axes Z, Y, X of `known` are put.

    Example:
        Images stored as PSR are (R, S, P), in RAS they are (S, A, R).

        >>> order_in("RAS", "PSR", (0, 1, 2))
        (2, 0, 1)
    """
    axes = turn_between(known, orientation).axes_zyx
    first, second, third = (axes.index(axis) for axis in axis_order)
    return first, second, third


def swapped_outputs(labels: LabelSet, swaps: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Return the output channel that each output becomes when left and right are mirrored.

    Args:
        labels: Of the plan.
        swaps: Pairs of names that change places, each name at most once.

    Returns:
        A permutation of 0 … n_outputs-1, its own inverse.

    Raises:
        ValueError: If a name is unknown or appears twice.
    """
    first = 0 if labels.has_regions else 1  # background is an output unless labels are regions
    result = list(range(labels.n_outputs))
    names = [name for pair in swaps for name in pair]
    for name in names:
        if name not in labels.names or names.count(name) > 1:
            raise ValueError(
                f"mirror_swaps {swaps}: {name!r} must be one of {', '.join(labels.names)} and appear only once"
            )
    for left, right in swaps:
        there, back = first + labels.names.index(left), first + labels.names.index(right)
        result[there], result[back] = back, there
    return tuple(result)


def swapped_indices(labels: LabelSet, swaps: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Return the inside label that each inside label 0, 1, … becomes; values of paired regions swap in their order.

    Raises:
        ValueError: As `swapped_outputs`, or if a region would no longer hold the same structure.
    """
    outputs = swapped_outputs(labels, swaps)
    if not labels.has_regions:
        return outputs
    result = list(range(len(labels.values) + 1))
    by_name = {label.name: labels.indices_of(label) for label in labels.labels}
    for left, right in swaps:
        for there, back in zip(by_name[left], by_name[right], strict=False):
            result[there], result[back] = back, there
    for place, label in enumerate(labels.labels):
        mirrored = labels.labels[outputs[place]]
        if {result[index] for index in by_name[label.name]} != {*by_name[mirrored.name]}:
            raise ValueError(
                f"mirror_swaps {swaps}: mirrored, the values {label.values} of region {label.name!r} are not those of "
                f"{mirrored.name!r}, {mirrored.values}; pair regions with equally many values, in the same order"
            )
    return tuple(result)
