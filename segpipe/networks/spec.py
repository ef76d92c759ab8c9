"""The description of a network, without torch: the planner writes it, `build` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PositiveInt, model_validator

from segpipe.core.choices import Choice, OneOf
from segpipe.networks.efficientnet_table import KINDS_OF_EFFICIENTNET, levels
from segpipe.networks.parts import GATES, InitialWeights, Parts, Sparse

_PYRAMID = {"bottleneck", "dilations_zyx", "bottleneck_features", "bottleneck_pooling"}
_ATTENTION = {"attention", "attention_position", "attention_reduction"}
_UNET = _PYRAMID | _ATTENTION | {"norm", "activation", "bias", "dropout_fraction", "decoder", "decoder_features"}
_UNET |= {"deep_supervision", "stem_kernel_zyx", "checkpointing", "residual_scale", "drop_path_fraction"}


@dataclass(frozen=True, kw_only=True)
class NetworkKind(Choice):
    """Facts about a family of networks that need no build of it; `parameters` are the `Parts` that it uses.

    Args:
        has_additions: Its blocks end in an addition, on which residual_scale and attention after_add act.
        gates_norms: A gate in position block comes just behind a norm.
        fast_channels_last: Trains faster on a CPU with a voxel's channels side by side. Convolutions of single channels
            lose more in the backward pass than they gain.
        own_features: Multiples of the first stage's features, of a family with a topology of its own.
    """

    has_additions: bool = True
    gates_norms: bool = False
    fast_channels_last: bool = False
    own_features: tuple[int, ...] | None = None


_EFFICIENTNET = NetworkKind(
    does="EfficientNet in 3D or 2D, with an extra block at full resolution; presets effnet_b0 to effnet_b7",
    source="Tan and Le 2019, EfficientNet; takes weights of timm",
    parameters=tuple(sorted((_UNET - {"dropout_fraction", "stem_kernel_zyx"}) | {"padding"})),
    gates_norms=True,
)
KINDS: dict[str, NetworkKind] = {  # build.py has a function for each row
    "plain": NetworkKind(
        does="convolutions; presets nnunet and cpu",
        source="dynamic-network-architectures, PlainConvUNet",
        parameters=tuple(sorted(_UNET - {"stem_kernel_zyx", "drop_path_fraction"})),
        has_additions=False,
        fast_channels_last=True,
    ),
    "residual": NetworkKind(
        does="residual blocks; presets resenc_m, resenc_l and resenc_xl",
        source="dynamic-network-architectures, ResidualEncoderUNet",
        parameters=tuple(sorted(_UNET)),
        gates_norms=True,
        fast_channels_last=True,
    ),
    "convnext": NetworkKind(
        does="MedNeXt blocks: depthwise convolution, expansion, compression; presets convnext_s to convnext_l",
        source="Roy et al. 2023, MedNeXt",
        parameters=tuple(
            sorted(
                _UNET - {"activation", "bias", "dropout_fraction", "decoder", "decoder_features"}
                | {"expansion", "decoder_expansion", "response_norm"}
            )
        ),
    ),
    **dict.fromkeys(KINDS_OF_EFFICIENTNET, _EFFICIENTNET),
    "segresnet": NetworkKind(
        does="MONAI's network with its fixed topology, for comparison; by --set",
        source="Myronenko 2018",
        parameters=("dropout_fraction",),
        own_features=(1, 2, 4, 8),
    ),
    "swin_unetr": NetworkKind(
        does="MONAI's network with its fixed topology, for comparison; by --set",
        source="Hatamizadeh et al. 2022",
        parameters=("checkpointing", "drop_path_fraction", "dropout_fraction"),
        own_features=(1, 1, 2, 4, 8, 16),
    ),
}
_PER_STAGE = ("strides_zyx", "kernels_zyx", "blocks")


class NetworkSpec(Sparse):
    """A U-Net, stage by stage, the highest resolution first.

    One stage can be written, since nnU-Net's planner does so for tiny images, but not built.

    Args:
        kind: The family of the encoder, a row of `KINDS`.
        features: Channels of each encoder stage.
        strides_zyx: Stride at the entry of each stage; the first is 1 on every axis. (Z, Y, X) or (Y, X).
        kernels_zyx: Kernel of each stage, odd.
        blocks: Convolutions (plain) or blocks of each encoder stage.
        decoder_convolutions: Convolutions or blocks of each decoder stage, one entry fewer than stages.
        parts: What differs from nnU-Net's parts.
        weights: Where the weights before training come from; None: random.
    """

    kind: Annotated[str, OneOf(KINDS)]
    features: tuple[PositiveInt, ...]
    strides_zyx: tuple[tuple[PositiveInt, ...], ...]
    kernels_zyx: tuple[tuple[PositiveInt, ...], ...]
    blocks: tuple[PositiveInt, ...]
    decoder_convolutions: tuple[PositiveInt, ...]
    parts: Parts = Parts()
    weights: InitialWeights | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        n_stages = len(self.features)
        if not n_stages:
            raise ValueError("features is empty, expected one entry for each stage")
        for name in _PER_STAGE:
            _expect_entries(name, getattr(self, name), n_stages)
        _expect_entries("decoder_convolutions", self.decoder_convolutions, n_stages - 1)
        _expect_entries("parts.decoder_features", self.parts.decoder_features, n_stages - 1)
        _expect_entries("parts.expansion", self.parts.expansion, n_stages)
        _expect_entries("parts.decoder_expansion", self.parts.decoder_expansion, n_stages - 1)
        stem = [self.parts.stem_kernel_zyx] if self.parts.stem_kernel_zyx else []
        per_axis = (*self.strides_zyx, *self.kernels_zyx, *self.parts.dilations_zyx, *stem)
        if {len(step) for step in per_axis} not in ({2}, {3}):
            raise ValueError(
                "strides_zyx, kernels_zyx, dilations and stem kernel must all have two entries (2D) or all three (3D)"
            )
        if any(k % 2 == 0 for kernel in (*self.kernels_zyx, *stem) for k in kernel):
            raise ValueError("kernels must be odd")
        if max(self.strides_zyx[0]) > 1:
            raise ValueError(f"strides_zyx starts with {self.strides_zyx[0]}, expected 1 on every axis")
        self._expect_used_parts()
        self._expect_own_topology()
        return self

    def _expect_used_parts(self) -> None:
        chosen = [name for name, field in Parts.model_fields.items() if getattr(self.parts, name) != field.default]
        kind = KINDS[self.kind]
        unused = [name for name in chosen if name not in kind.parameters]
        if unused:
            raise ValueError(f"kind {self.kind!r} does not use parts.{unused[0]}; leave it out")
        scaled = self.parts.residual_scale != 1 and self.parts.decoder == "plain"
        if not kind.has_additions and (scaled or self.parts.attention_position == "after_add"):
            raise ValueError(
                f"kind {self.kind!r} has no addition that attention_position after_add or residual_scale could act on; "
                "take kind residual"
            )
        self._expect_seeing_gates()

    def _expect_seeing_gates(self) -> None:
        parts = self.parts
        gates_norms = KINDS[self.kind].gates_norms or parts.decoder == "residual"
        is_blind = parts.attention is not None and GATES[parts.attention].sees_only_means
        if gates_norms and is_blind and (parts.norm, parts.attention_position) == ("instance", "block"):
            raise ValueError(
                f"attention {parts.attention!r} in position block sees channels' means just behind norm 'instance', "
                "which makes them the same for every image; take attention_position after_add or skip, or another norm"
            )

    def _expect_own_topology(self) -> None:
        if self.kind in KINDS_OF_EFFICIENTNET:
            self._expect_efficientnet()
        own_features = KINDS[self.kind].own_features
        if own_features is None:
            return
        features = tuple(self.features[0] * factor for factor in own_features)
        if self.features != features:
            raise ValueError(f"features {self.features} of kind {self.kind!r} must be {features}")
        if any(set(stride) != {2} for stride in self.strides_zyx[1:]):
            raise ValueError(f"strides_zyx {self.strides_zyx} of kind {self.kind!r} must be 2 on every axis")
        if any(set(kernel) != {3} for kernel in self.kernels_zyx):
            raise ValueError(f"kernels_zyx {self.kernels_zyx} of kind {self.kind!r} must be 3 on every axis")
        if self.kind == "swin_unetr":
            self._expect_swin()

    def _expect_efficientnet(self) -> None:
        n_levels = len(self.features) - 1
        if not 1 <= n_levels <= 5:
            raise ValueError(f"kind {self.kind!r} has 2 to 6 stages, not {n_levels + 1}")
        found = levels(self.kind, n_levels)
        features = (self.features[0], *(level[-1].n_out for level in found))
        blocks = (self.blocks[0], *(sum(stage.n_blocks for stage in level) for level in found))
        if (self.features, self.blocks) != (features, blocks):
            raise ValueError(
                f"features {self.features} and blocks {self.blocks} of kind {self.kind!r} with {n_levels + 1} stages "
                f"must be {features} and {blocks}"
            )

    def _expect_swin(self) -> None:
        if self.features[0] % 12:
            raise ValueError(f"features start with {self.features[0]}; kind 'swin_unetr' needs a multiple of 12")
        if (self.blocks[0], self.blocks[-1], *self.decoder_convolutions) != (1,) * 7:
            raise ValueError("kind 'swin_unetr' has blocks [1, a, b, c, d, 1] and decoder_convolutions of 1")

    @property
    def n_axes(self) -> int:
        """2 or 3."""
        return len(self.strides_zyx[0])

    @property
    def decoder_features(self) -> tuple[int, ...]:
        """Channels of the decoder's stages, the highest resolution first."""
        return self.parts.decoder_features or self.features[:-1]

    @property
    def divisors_zyx(self) -> tuple[int, ...]:
        """Divisors of the edges of a patch. Other sizes work too, at the cost of cropped maps."""
        totals = [1] * self.n_axes
        for stride in self.strides_zyx:
            totals = [total * step for total, step in zip(totals, stride, strict=True)]
        return tuple(totals)


def _expect_entries(name: str, values: tuple[Any, ...] | None, expected: int) -> None:
    if values is not None and len(values) != expected:
        raise ValueError(f"{name} has {len(values)} entries, expected {expected}, one for each stage")
