"""Remove whole channels from a U-Net: which tensors share a channel, across skips, residual sums and heads.

A channel is removed in every layer that makes it and in every layer that reads it, so what is left is a smaller network
of the same kind: `NetworkSpec` describes it by its features alone, and it is built, trained, packed and exported as any
other. That needs the same number of channels in all layers of a stage; each layer may choose for itself which they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segpipe.core.choices import Choice, functions_for
from segpipe.core.errors import PlanError
from segpipe.networks.build import state_shapes
from segpipe.networks.parts import Parts
from segpipe.networks.spec import NetworkSpec

PRUNED_KINDS = ("plain", "residual")
_PRUNED_NORMS = ("instance", "batch")  # of each channel alone: others see the channels that are gone
_PRUNED_PARTS = {  # that leave each channel to itself; a part that mixes channels needs a row in the graph
    "norm", "activation", "bias", "dropout_fraction", "drop_path_fraction", "residual_scale", "decoder",
    "decoder_features", "deep_supervision", "stem_kernel_zyx", "checkpointing",
}  # fmt: skip
_PRUNED_FIELDS = {
    "kind", "features", "strides_zyx", "kernels_zyx", "blocks", "decoder_convolutions", "parts", "weights",
}  # fmt: skip
CRITERIA: dict[str, Choice] = {  # which channels go; a short retraining decides between them
    "magnitude": Choice(does="the smallest kernels, by the sum of absolute values", source="Li et al. 2017"),
    "scale": Choice(does="the smallest absolute factors of the norms", source="Liu et al. 2017, Network Slimming"),
    "random": Choice(does="any, by the seed"),
}


@dataclass(frozen=True)
class Slot:
    """A place where channels are: consecutive entries of a tensor's axis, from `first` on."""

    tensor: str
    axis: int
    first: int = 0


@dataclass(eq=False)
class ChannelGroup:
    """Channels that live and die together.

    Args:
        name: Path of the layer that makes them first.
        n_channels: How many.
        stages: Resolutions at which they are made, 0 the highest.
        makers: Tensors that make them; with these at 0 the channel is 0 everywhere.
        readers: Tensors that read them.
    """

    name: str
    n_channels: int
    stages: set[int]
    makers: list[Slot] = field(default_factory=list)
    readers: list[Slot] = field(default_factory=list)


_Map = Sequence[ChannelGroup]  # channels of a feature map: of groups, one after another; of the image: none


class _Graph:
    """Collects groups along the way of a map through the network."""

    def __init__(self, spec: NetworkSpec, tensors: Mapping[str, Sequence[int]]) -> None:
        self.spec, self.tensors = spec, tensors
        self.root = "network." if spec.n_axes == 2 else ""  # of SliceWise
        self.groups: list[ChannelGroup] = []

    def new_group(self, path: str, n_channels: int, stage: int) -> ChannelGroup:
        """A group that the layer at `path` makes."""
        self.groups.append(ChannelGroup(self.root + path, n_channels, {stage}))
        return self.groups[-1]

    def make(self, group: ChannelGroup, path: str) -> None:
        """A convolution with its norm makes the group."""
        endings = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        names = (f"{self.root}{path}.{ending}" for ending in endings)
        group.makers += [Slot(name, 0) for name in names if name in self.tensors]

    def read(self, path: str, groups: _Map, axis: int = 1) -> None:
        """A layer reads a map."""
        first = 0
        for group in groups:
            group.readers.append(Slot(self.root + path, axis, first))
            first += group.n_channels

    def stage(self, path: str, groups: _Map, stage: int, n_out: int, n_blocks: int, *, is_residual: bool) -> _Map:
        """Blocks in a row."""
        for index in range(n_blocks):
            if is_residual:
                groups = self.residual_block(f"{path}.blocks.{index}", groups, stage, n_out)
            else:
                unit = f"{path}.convs.{index}"
                self.read(f"{unit}.conv.weight", groups)
                groups = [self.new_group(unit, n_out, stage)]
                self.make(groups[0], unit)
        return groups

    def residual_block(self, path: str, groups: _Map, stage: int, n_out: int) -> _Map:
        """A branch that is added to the map, or to its projection."""
        inner = self.new_group(f"{path}.conv1", n_out, stage)
        self.make(inner, f"{path}.conv1")
        self.read(f"{path}.conv1.conv.weight", groups)
        self.read(f"{path}.conv2.conv.weight", [inner])
        places = (f"{path}.skip.{place}" for place in (0, 1))  # behind the mean over cells, if there is one
        projection = next((place for place in places if f"{self.root}{place}.conv.weight" in self.tensors), None)
        if projection is None:
            (total,) = groups
            total.stages.add(stage)
        else:
            self.read(f"{projection}.conv.weight", groups)
            total = self.new_group(f"{path}.conv2", n_out, stage)
            self.make(total, projection)
        self.make(total, f"{path}.conv2")
        return [total]

    def encoder(self) -> list[_Map]:
        """The map of each stage."""
        spec, maps = self.spec, list[_Map]()
        groups: _Map = ()
        is_residual = spec.kind == "residual"
        if is_residual:
            groups = [self.new_group("encoder.stem.convs.0", spec.features[0], 0)]
            self.make(groups[0], "encoder.stem.convs.0")
        for stage, (n_out, n_blocks) in enumerate(zip(spec.features, spec.blocks, strict=True)):
            path = f"encoder.stages.{stage}" + ("" if is_residual else ".0")
            groups = self.stage(path, groups, stage, n_out, n_blocks, is_residual=is_residual)
            maps.append(groups)
        return maps

    def decoder(self, maps: Sequence[_Map]) -> None:
        """From the deepest map up; every stage reads a skip."""
        spec, (*skips, below) = self.spec, maps
        for place, stage in enumerate(reversed(range(len(skips)))):
            n_out = spec.decoder_features[stage]
            up = self.new_group(f"decoder.transpconvs.{place}", n_out, stage)
            self.read(f"decoder.transpconvs.{place}.weight", below, axis=0)
            up.makers += [Slot(f"{up.name}.weight", 1), Slot(f"{up.name}.bias", 0)]
            below = self.stage(
                f"decoder.stages.{place}",
                [up, *skips[stage]],
                stage,
                n_out,
                spec.decoder_convolutions[stage],
                is_residual=spec.parts.decoder == "residual",
            )
            if f"{self.root}decoder.seg_layers.{place}.weight" in self.tensors:
                self.read(f"decoder.seg_layers.{place}.weight", below)


def require_prunable(spec: NetworkSpec, where: str) -> None:
    """Refuse a network with layers that mix channels in another way than a convolution.

    Args:
        spec: The network.
        where: Its key in the plan, for the message.

    Raises:
        PlanError: If its kind or a part cannot be pruned.
    """
    if spec.kind not in PRUNED_KINDS:
        raise PlanError(
            f"{where}.kind {spec.kind!r}: cannot be pruned, expected {' or '.join(PRUNED_KINDS)}. Its blocks tie "
            "channels together in ways that pruning does not follow."
        )
    if spec.parts.norm not in _PRUNED_NORMS:
        raise PlanError(
            f"{where}.parts.norm {spec.parts.norm!r}: cannot be pruned, expected {' or '.join(_PRUNED_NORMS)}: its "
            "mean runs over channels, so that removing some changes the others."
        )
    chosen = {name: getattr(spec, name) for name in NetworkSpec.model_fields if name not in _PRUNED_FIELDS}
    chosen |= {f"parts.{name}": getattr(spec.parts, name) for name in Parts.model_fields if name not in _PRUNED_PARTS}
    usual = NetworkSpec.model_fields | {f"parts.{name}": known for name, known in Parts.model_fields.items()}
    for name, value in chosen.items():
        if value != usual[name].default:
            raise PlanError(
                f"{where}.{name} {value!r}: cannot be pruned. Pruning follows convolutions, norms of single "
                "channels, sums and skips; train without this part."
            )


def channel_groups(spec: NetworkSpec, n_channels: int, n_outputs: int) -> list[ChannelGroup]:
    """Find all groups of channels that may be removed, in the order of the network.

    The image's channels and the logits are in none of them.

    Args:
        spec: A network that `require_prunable` lets pass.
        n_channels, n_outputs: As for `build`.
    """
    graph = _Graph(spec, state_shapes(spec, n_channels, n_outputs))
    graph.decoder(graph.encoder())
    return graph.groups


def pruned_spec(spec: NetworkSpec, ratios: Sequence[float], where: str) -> NetworkSpec:
    """Describe the network that is left.

    Args:
        spec: The whole one.
        ratios: Share of channels that goes, 0 to below 1, for each stage; the decoder's stages follow the encoder's.
        where: Its key in the plan, for messages.

    Raises:
        PlanError: If stages that add their maps would differ, or others become equal and share a sum.
    """
    features = tuple(n_left(n, ratio) for n, ratio in zip(spec.features, ratios, strict=True))
    decoder = tuple(n_left(n, ratio) for n, ratio in zip(spec.decoder_features, ratios[:-1], strict=True))
    if spec.kind == "residual":
        for stage in range(1, len(features)):
            were_equal, are_equal = (each[stage] == each[stage - 1] for each in (spec.features, features))
            if were_equal != are_equal:
                now = f"{features[stage - 1]} and {features[stage]}"
                raise PlanError(
                    f"{where}.features: stages {stage - 1} and {stage} have {spec.features[stage - 1]} and "
                    f"{spec.features[stage]} channels and would have {now}; "
                    + (
                        "they share a residual sum, so give both the same ratio."
                        if were_equal
                        else "equal ones share a residual sum, which the trained network has not. Choose another ratio."
                    )
                )
    is_mirrored = decoder == features[:-1]
    parts = spec.parts.model_copy(update={"decoder_features": None if is_mirrored else decoder})
    return spec.model_copy(update={"features": features, "parts": parts})


def n_left(n_channels: int, ratio: float) -> int:
    """Count the channels that are left of some, at least 1.

    Example:
        >>> n_left(32, 0.5), n_left(3, 0.9)
        (16, 1)
    """
    return max(1, math.floor(n_channels * (1 - ratio) + 0.5))


def _score_by_magnitude(group: ChannelGroup, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:  # noqa: ARG001
    kernels = [(slot, weights[slot.tensor]) for slot in group.makers if weights[slot.tensor].ndim > 1]
    return torch.stack([kernel.movedim(slot.axis, 0).flatten(1).abs().double().sum(1) for slot, kernel in kernels]).sum(
        0
    )


def _score_by_scale(group: ChannelGroup, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    scales = [weights[slot.tensor] for slot in group.makers if slot.tensor.endswith("norm.weight")]
    if not scales:  # of a transposed convolution, which has no norm
        return _score_by_magnitude(group, weights, generator)
    return torch.stack([scale.abs().double() for scale in scales]).sum(0)


def _score_by_chance(group: ChannelGroup, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.rand(group.n_channels, generator=generator, dtype=torch.float64)


_SCORES = {"magnitude": _score_by_magnitude, "scale": _score_by_scale, "random": _score_by_chance}
SCORE_CHANNELS = functions_for(CRITERIA, _SCORES, "CRITERIA of networks/pruning.py")


def choose_dropped(
    groups: Sequence[ChannelGroup], weights: Mapping[str, Tensor], ratios: Sequence[float], criterion: str, seed: int
) -> dict[str, tuple[int, ...]]:
    """Choose which channels go.

    Args:
        groups: Of `channel_groups`.
        weights: State dict of the whole network.
        ratios: For each stage, as for `pruned_spec`.
        criterion: A row of `CRITERIA`.
        seed: Of `random`.

    Returns:
        Channels that go, rising, by the group's name; groups of which none goes are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    dropped = {}
    for group in groups:
        n_kept = n_left(group.n_channels, ratios[min(group.stages)])
        scores = SCORE_CHANNELS[criterion](group, weights, generator)
        order = torch.argsort(scores, stable=True).tolist()  # equal ones: the first goes
        if n_kept < group.n_channels:
            dropped[group.name] = tuple(sorted(order[: group.n_channels - n_kept]))
    return dropped


def remove_channels(
    groups: Sequence[ChannelGroup], weights: Mapping[str, Tensor], dropped: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Cut channels out of every tensor that makes or reads them: the state dict of the smaller network."""
    stays: dict[tuple[str, int], Tensor] = {}
    for slot, channels in _slots(groups, dropped, with_readers=True):
        key = (slot.tensor, slot.axis)
        mask = stays.setdefault(key, torch.ones(weights[slot.tensor].shape[slot.axis], dtype=torch.bool))
        mask[[slot.first + channel for channel in channels]] = False
    result = dict(weights)
    for (name, axis), mask in stays.items():
        result[name] = result[name].index_select(axis, mask.nonzero().flatten())
    return result


def mask_channels(
    groups: Sequence[ChannelGroup], weights: Mapping[str, Tensor], dropped: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Set channels to 0 in the whole network, which then computes what the one without them does."""
    result = {name: value.clone() for name, value in weights.items()}
    for slot, channels in _slots(groups, dropped, with_readers=False):
        if ".running_" not in slot.tensor:
            places = torch.tensor([slot.first + channel for channel in channels])
            result[slot.tensor].index_fill_(slot.axis, places, 0)
    return result


def _slots(
    groups: Sequence[ChannelGroup], dropped: Mapping[str, Sequence[int]], *, with_readers: bool
) -> Iterator[tuple[Slot, Sequence[int]]]:
    for group in groups:
        if channels := dropped.get(group.name):
            yield from ((slot, channels) for slot in (*group.makers, *(group.readers if with_readers else ())))
