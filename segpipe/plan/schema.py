"""The plan: every decision of a run, strict and editable.

`configurations` and everything above it follow from the data; `training` is what a person chose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

from pydantic import (
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from segpipe.core.choices import Choice, OneOf, unread_parameters
from segpipe.core.grid import turn_between
from segpipe.core.labels import LabelSet
from segpipe.core.records import Record
from segpipe.core.text import size_text
from segpipe.networks.canonical_transforms import TRANSFORMS
from segpipe.networks.parts import COMPARES_SAMPLES, NORMS, WRITE_DEFAULTS, attention_bytes, reads
from segpipe.networks.spec import NetworkSpec
from segpipe.plan.laterality import AS_STORED, sideways_axis, swapped_indices
from segpipe.plan.training import Training

KEY = "inherits"
CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade")  # which of them are planned follows from the data
_MOST_VOXELS = 2**34  # of a batch: hundreds of GiB in any network
_MOST_ATTENTION_BYTES = 2**30  # of one block of attention in training; a whole U-Net takes a few of them
_SAME_SPACING = 1e-3  # relative
_MOST_CONFIGURATIONS = 100  # each is made of all that it inherits from


def complete_configurations(configurations: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the inherited values of every configuration.

    Args:
        configurations: By name, as a plan file holds them; one with `inherits` may leave out values that are as in the
            configuration it names, also inside `network`.

    Raises:
        ValueError: If a base does not exist or configurations inherit from each other in a circle.
    """
    if len(configurations) > _MOST_CONFIGURATIONS:
        raise ValueError(f"{len(configurations)} configurations, expected {_MOST_CONFIGURATIONS} at most")
    return {name: _with_deepest_map(_complete(name, configurations, ())) for name in configurations}


def _with_deepest_map(values: Any) -> Any:
    """A configuration with the edges of its deepest map where parts of its network read them and they are left out.

    Nothing else is changed: what is wrong, the record refuses.
    """
    try:
        network, parts = values["network"], values["network"]["parts"]
        total = [prod(steps) for steps in zip(*network["strides_zyx"], strict=True)]
        patch, spacing_mm = (values[name][-len(total) :] for name in ("patch_zyx", "spacing_mm"))
        derived = {
            "bottleneck_map_zyx": [edge // step for edge, step in zip(patch, total, strict=True)],
            "bottleneck_spacing_mm": [edge * step for edge, step in zip(spacing_mm, total, strict=True)],
        }
        read = {name for name in derived if reads(parts, name)}
    except (KeyError, TypeError, ValueError):
        return values
    kept = {name: value for name, value in parts.items() if name not in derived or (name in read and value is not None)}
    filled = {name: derived[name] for name in derived if name in read}
    return {**values, "network": {**network, "parts": {**filled, **kept}}}


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
        raise ValueError(
            f"{' → '.join((*below, name, base))}: configurations inherit from each other in a circle; break it"
        )
    return _over(_complete(base, configurations, (*below, name)), own)


def _over(base: Any, own: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(own, Mapping)):
        return own
    return {**base, **{key: _over(base.get(key), value) for key, value in own.items()}}


def shorten_configurations(configurations: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a configuration with `inherits` only what differs from its base: the inverse of the function above."""
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


_PAIRS = ({"L", "R"}, {"P", "A"}, {"I", "S"})
_RENAMED = {"gpu_memory_gb": "gpu_memory_gib"}  # keys of plans that an older version wrote
_NAME = re.compile(r"\w[\w-]*")


@dataclass(frozen=True, kw_only=True)
class NormalisationScheme(Choice):
    """A way to normalise a channel. Parameters without a default must be given.

    Args:
        why: The reason that a plan gives for it; may be empty.
        channel: Name of a channel, in small letters, that is normalised so; empty if none asks for it.
        nnunet: nnU-Net's name for the same; empty if it has none.
    """

    why: str = ""
    channel: str = ""
    nnunet: str = ""


_THEIRS = "nnU-Net's normalisation schemes"
SCHEMES: dict[str, NormalisationScheme] = {  # prepare/case.py has a function for each row
    "ct": NormalisationScheme(
        does="clipped to the intensities of the dataset's foreground and scaled by them",
        why="its values have a unit",
        source=_THEIRS,
        parameters=("low", "high", "mean", "std"),
        channel="ct",
        nnunet="CTNormalization",
    ),
    "zscore": NormalisationScheme(
        does="scaled by each case's own mean and SD",
        why="its values have no unit",
        source=_THEIRS,
        parameters=("within_nonzero",),
        nnunet="ZScoreNormalization",
    ),
    "rescale_0_1": NormalisationScheme(
        does="scaled by each case's own minimum and maximum",
        source=_THEIRS,
        channel="rescale_to_0_1",
        nnunet="RescaleTo01Normalization",
    ),
    "rgb_0_1": NormalisationScheme(
        does="divided by 255", source=_THEIRS, channel="rgb_to_0_1", nnunet="RGBTo01Normalization"
    ),
    "none": NormalisationScheme(does="left as it is", source=_THEIRS, channel="nonorm", nnunet="NoNormalization"),
}


class Normalisation(Record):
    """Describe how the voxels of one channel become network input.

    Args:
        scheme: Name of a row of `SCHEMES`.
        within_nonzero: Statistics inside the non-zero voxels, 0 outside.
        low, high: Limits to which intensities are clipped, in the unit of the image.
        mean, std: What is subtracted, and what the rest is divided by, in the unit of the image.
    """

    scheme: Annotated[str, OneOf(SCHEMES)]
    within_nonzero: bool = False
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: PositiveFloat | None = None

    @model_validator(mode="after")
    def _complete(self) -> Normalisation:
        missing = [name for name in SCHEMES[self.scheme].parameters if getattr(self, name) is None]
        if missing:
            raise ValueError(f"scheme {self.scheme} needs {', '.join(missing)}")
        readers = unread_parameters(SCHEMES, [self.scheme])
        given = [name for name in readers if name != "within_nonzero" and getattr(self, name) is not None]
        if given:
            raise ValueError(f"{given[0]} belongs to {readers[given[0]]}, not to scheme {self.scheme}; leave it out")
        return self


class Configuration(Record):
    """One way to see the data: resolution, patch, network.

    Args:
        spacing_mm: Target voxel edge along Z, Y, X after `axis_order`; None keeps each case's own (2D: between slices).
        median_shape_zyx: Median over cases at that spacing, voxels; half voxels occur between an even number of cases.
        patch_zyx: Voxels the network sees at once; Z is 1 for a 2D network.
        batch_size: Patches in a step.
        batch_dice: Dice loss over the whole batch instead of each patch.
        network: The network.
        inherits: Name of the configuration that gives every value which the file leaves out here.
        previous: Name of the coarser configuration whose predicted labels are further input channels (a cascade).
        guide: How a prediction gets these labels: from `logits` brought to this configuration's grid, as in training;
            or from `masks` on the image's grid, resampled, as nnU-Net does in prediction.
    """

    spacing_mm: tuple[PositiveFloat | None, PositiveFloat, PositiveFloat]
    median_shape_zyx: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    patch_zyx: tuple[PositiveInt, PositiveInt, PositiveInt]
    batch_size: PositiveInt
    batch_dice: bool
    network: NetworkSpec
    inherits: str | None = None
    previous: str | None = None
    guide: Literal["logits", "masks"] = "logits"

    @model_validator(mode="after")
    def _fits(self) -> Configuration:
        if prod(self.patch_zyx) * self.batch_size > _MOST_VOXELS:
            raise ValueError(
                f"patch_zyx {self.patch_zyx} and batch_size {self.batch_size} exceed {_MOST_VOXELS} voxels a step"
            )
        patch = self.patch_zyx[-self.network.n_axes :]
        if any(p % d for p, d in zip(patch, self.network.divisors_zyx, strict=True)):
            near = [max(1, round(p / d)) * d for p, d in zip(patch, self.network.divisors_zyx, strict=True)]
            raise ValueError(
                f"patch_zyx {self.patch_zyx} must be a multiple of the network's strides {self.network.divisors_zyx}; "
                f"near: {near}"
            )
        if all(p == d for p, d in zip(patch, self.network.divisors_zyx, strict=True)):
            raise ValueError(f"patch_zyx {self.patch_zyx} leaves a single voxel in the coarsest stage; double an edge")
        if self.network.n_axes == 2 and self.patch_zyx[0] != 1:
            raise ValueError(f"patch_zyx {self.patch_zyx} must have 1 slice for a 2D network")
        norm = self.network.parts.norm
        if self.batch_size == 1 and norm in COMPARES_SAMPLES:
            raise ValueError(
                f"norm {norm!r} compares each sample with the batch; batch_size 1 makes it an instance norm that "
                "predicts with other statistics than it was trained with. Take batch_size 2 or more, or norm "
                "instance or scnorm"
            )
        self._expect_attention(patch)
        self._expect_round_voxels()
        return self

    def _expect_round_voxels(self) -> None:
        """Refuse rotations of voxels that are not square in their plane: they would shear the image."""
        for name in self.network.parts.canonicalise:
            plane = TRANSFORMS[name].plane
            edges_mm = [self.spacing_mm[axis] or 0.0 for axis in plane or ()]
            if edges_mm and abs(edges_mm[0] - edges_mm[1]) > _SAME_SPACING * edges_mm[1]:
                raise ValueError(
                    f"canonicalise {name} turns voxels of {edges_mm[0]:g} × {edges_mm[1]:g} mm; expected equal edges. "
                    "Change spacing_mm, or leave it out"
                )

    def _expect_attention(self, patch: tuple[int, ...]) -> None:
        """Refuse attention that takes too much memory, and distances of another spacing."""
        parts, total = self.network.parts, self.network.divisors_zyx
        if parts.bottleneck_spacing_mm is not None:
            edges_mm = self.spacing_mm[-self.network.n_axes :]
            deepest_mm = [(edge or 0) * step for edge, step in zip(edges_mm, total, strict=True)]
            pairs = zip(parts.bottleneck_spacing_mm, deepest_mm, strict=True)
            if any(abs(own - given) > _SAME_SPACING * given for own, given in pairs):
                raise ValueError(
                    f"parts.bottleneck_spacing_mm {list(parts.bottleneck_spacing_mm)}: spacing_mm and strides_zyx give "
                    f"{deepest_mm}. Set it to null, so that it follows from them"
                )
        if parts.bottleneck_attention is not None:
            deepest = [edge // step for edge, step in zip(patch, total, strict=True)]
            n_tokens = prod(deepest)
            needed = attention_bytes(n_tokens, self.batch_size, parts.bottleneck_heads)
            if needed > _MOST_ATTENTION_BYTES:
                raise ValueError(
                    f"patch_zyx {self.patch_zyx} leaves {' × '.join(map(str, deepest))} = {n_tokens} tokens in the "
                    f"deepest stage: one block of bottleneck_attention takes {size_text(needed)} for a batch of "
                    f"{self.batch_size} with {parts.bottleneck_heads} heads, expected "
                    f"{size_text(_MOST_ATTENTION_BYTES)} at most. Add a stage, or choose a smaller patch or batch"
                )

    @model_serializer(mode="wrap")
    def _without_unused_links(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        unused = {"inherits": None, "previous": None, "guide": "logits"}
        return {key: value for key, value in values.items() if key not in unused or value != unused[key]}


class PlanCommand(Record):
    """The command that made a plan.

    Args:
        options: Of `segpipe plan`, each with its value, e.g. `--preset=auto`. On the same data they give the same plan.
        plan_digest: Of the plan that the command made, without this record: another one means that it was edited since.
    """

    options: tuple[str, ...]
    plan_digest: str


class Plan(Record):
    """Everything that was decided, and why.

    Args:
        segpipe_plan: Version of this format.
        preset: The table row the decisions came from.
        dataset: Name.
        fingerprint: Digest of the fingerprint it follows from.
        channels: Channel names in order.
        labels: Structures and their file values.
        orientation: Every case is turned to this orientation first, e.g. `RAS`; `stored`: none is turned.
        axis_order: Then the axes are put in this order; the axis with the longest voxels comes first.
        normalisation: One for each channel.
        mirror_axes: Axes mirrored in training and prediction, after `axis_order` (0, 1, 2).
        mirror_swaps: Names of labels that change places when left and right are mirrored, e.g. [[left, right]].
        configurations: By name: 2d, 3d_lowres, 3d_fullres, 3d_cascade; in a file one may inherit from another.
        training: The recipe.
        reasons: One sentence for each decision.
        gpu_memory_gib: GPU memory that the plan was asked to fit; None if none was named.
        is_for_gpu: Whether the plan is made for a GPU.
        command: What made it; None if that is not known. Training does not depend on it.
    """

    segpipe_plan: Literal[1] = 1
    preset: str
    dataset: str
    fingerprint: str
    channels: tuple[str, ...]
    labels: LabelSet
    orientation: str
    axis_order: tuple[int, int, int]
    normalisation: tuple[Normalisation, ...]
    mirror_axes: tuple[int, ...]
    mirror_swaps: tuple[tuple[str, str], ...] = ()
    configurations: dict[str, Configuration]
    training: Training
    reasons: dict[str, str]
    gpu_memory_gib: PositiveFloat | None = None
    is_for_gpu: bool = True
    command: PlanCommand | None = None

    @property
    def decisions(self) -> Plan:
        """The plan without the command that made it: two plans with equal decisions train alike."""
        return self.model_copy(update={"command": None})

    @property
    def is_edited(self) -> bool:
        """True if it was changed after its command made it."""
        return self.command is not None and self.command.plan_digest != self.decisions.digest()

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values of a file with inherited ones filled in, and with the names of today for those of older versions."""
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        configurations = values.get("configurations")
        if not isinstance(configurations, Mapping):
            return values
        return {**values, "configurations": complete_configurations(configurations)}

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        whole = {name: c.model_dump(mode="json", context=WRITE_DEFAULTS) for name, c in self.configurations.items()}
        # what differs from the base is written even at its default, or the base's value would be read
        brief = shorten_configurations(whole)
        for name, configuration in self.configurations.items():
            if configuration.inherits is not None:
                values["configurations"][name] = brief[name]
        return {key: value for key, value in values.items() if value or key not in ("mirror_swaps", "command")}

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.training.treats_pretrained and not any(c.network.weights for c in self.configurations.values()):
            raise ValueError(
                "training.pretrained_rate_factor and pretrained_frozen_fraction are for weights that a configuration's "
                "network.weights loads; found none. Name a source, or leave them out"
            )
        norms = {configuration.network.parts.norm for configuration in self.configurations.values()}
        if self.training.recalibrate and not any(NORMS[norm].keeps_running for norm in norms):
            known = ", ".join(name for name, row in NORMS.items() if row.keeps_running)
            raise ValueError(
                f"training.recalibrate {self.training.recalibrate}: norm {', '.join(sorted(norms))} keeps no running "
                f"statistics, only {known} do. Set it to 0, or choose one of them"
            )
        if len(self.normalisation) != len(self.channels):
            raise ValueError(f"{len(self.normalisation)} normalisations for {len(self.channels)} channels")
        is_turned = self.orientation != AS_STORED
        if is_turned and (len(self.orientation) != 3 or not all(pair & {*self.orientation} for pair in _PAIRS)):
            raise ValueError(
                f"orientation {self.orientation!r} must have one letter each of L or R, P or A, and I or S"
            )
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order {self.axis_order} is not a permutation of 0, 1, 2")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ValueError(f"mirror_axes {self.mirror_axes} must be a subset of 0, 1, 2")
        self._expect_swaps()
        self._expect_learnable_masks()
        self.training.loss.labels_with_lines(self.labels.names)
        if not self.configurations:
            raise ValueError("configurations is empty")
        for name, configuration in self.configurations.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"configurations.{name}: expected letters, digits, _ and - only: it names a folder")
            previous = configuration.previous
            if previous is not None and (previous == name or previous not in self.configurations):
                others = ", ".join(other for other in self.configurations if other != name)
                raise ValueError(f"configurations.{name}.previous is {previous!r}, expected one of {others or 'none'}")
            if previous is not None and self.configurations[previous].previous is not None:
                raise ValueError(
                    f"configurations.{name}.previous is {previous!r}, which has one itself; expected two steps"
                )
        return self

    def axes_of(self, orientation: str) -> tuple[int, int, int]:
        """Axis of an array (Z, Y, X) that is stored in an orientation, for each axis of the planned arrays.

        Example:
            An image stored as `PSR` is (R, S, P). A plan for `RAS` with axis_order (0, 1, 2) makes it (S, A, R), hence
            (1, 2, 0).
        """
        turn = turn_between(orientation, orientation if self.orientation == AS_STORED else self.orientation)
        first, second, third = (turn.axes_zyx[axis] for axis in self.axis_order)
        return first, second, third

    def n_inputs(self, configuration: Configuration) -> int:
        """Count the input channels of a configuration: the image's, and in a cascade one for each label value."""
        return len(self.channels) + (len(self.labels.values) if configuration.previous else 0)

    def _expect_learnable_masks(self) -> None:
        """Refuse sparse kernels with an optimizer that takes a kernel as a whole, or trains another part of it."""
        masked = [name for name, c in self.configurations.items() if c.network.sparse]
        optimizer = self.training.optimizer
        if masked and optimizer.startswith("muon"):
            raise ValueError(
                f"configurations.{masked[0]}.network.sparse with training.optimizer {optimizer!r}: muon makes the "
                "update of a kernel orthogonal as a whole, and that of its unmasked part is not. Take "
                "training.optimizer sgd, adamw or spam"
            )
        if masked and self.training.spam_density < 1:
            raise ValueError(
                f"configurations.{masked[0]}.network.sparse with training.spam_density {self.training.spam_density}: "
                "both choose which numbers of a kernel learn. Leave one of them out"
            )

    def _expect_swaps(self) -> None:
        swapped_indices(self.labels, self.mirror_swaps)
        if self.mirror_swaps and self.orientation == AS_STORED:
            raise ValueError(
                "mirror_swaps need an orientation: without one it is unknown which axis runs from left to right"
            )
        sideways = sideways_axis(self.orientation, self.axis_order)
        if self.mirror_swaps and sideways not in self.mirror_axes:
            raise ValueError(
                f"mirror_swaps {self.mirror_swaps} act on axis {sideways}, from left to right, which mirror_axes "
                f"{self.mirror_axes} do not contain; add it, or leave out mirror_swaps"
            )
