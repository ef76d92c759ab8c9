"""The description of a network, without torch: the planner writes it, `build` reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import PositiveInt, model_validator

from segpipe.core.choices import Choice, OneOf
from segpipe.networks.canonical_transforms import canonical_coordinates
from segpipe.networks.efficientnet_table import KIND_PREFIX, KINDS_OF_EFFICIENTNET, is_lite, levels
from segpipe.networks.parts import BLOCKS, GATES, InitialWeights, Parts, Sparse, SparseKernels, aspp_dilations, reads
from segpipe.networks.simplenet_table import KINDS_OF_SIMPLENET, SIMPLENET_STAGES, simplenet_stages

_PYRAMID = {"bottleneck", "dilations_zyx", "bottleneck_features", "bottleneck_pooling"}
_BOTTLENECK = {  # what mixes the voxels of the deepest map
    *("bottleneck_attention", "bottleneck_attention_blocks", "bottleneck_heads", "bottleneck_position_scaling"),
    *("bottleneck_map_zyx", "bottleneck_mask", "bottleneck_mask_form", "bottleneck_mask_components"),
    *("bottleneck_spacing_mm", "bottleneck_mixer", "mixer_blocks", "mixer_kernel", "mixer_states", "mixer_resets"),
}
_ATTENTION = {"attention", "attention_position", "attention_reduction", "sk_split", "sk_dilated"}
_UNET = (
    _PYRAMID
    | _BOTTLENECK
    | _ATTENTION
    | {"norm", "activation", "bias", "dropout_fraction", "uout", "decoder", "decoder_features"}
)
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
    parameters=tuple(sorted((_UNET - {"dropout_fraction", "uout", "stem_kernel_zyx"}) | {"padding", "norm_eps"})),
    gates_norms=True,
)
_EFFICIENTNET_LITE = replace(
    _EFFICIENTNET,
    does="EfficientNet-Lite, without gates in its blocks and with ReLU6; preset effnet_lite0",
    source="Tan and Le 2019, EfficientNet; Google 2020, EfficientNet-Lite; takes weights of the extra `imagenet`",
)
_PLAIN = tuple(sorted(_UNET - {"stem_kernel_zyx", "drop_path_fraction"}))
_SIMPLENET = NetworkKind(
    does="plain convolutions in SimpleNet's own widths, maxima in place of strides; presets of the same names",
    source="Hasanpour et al. 2016, SimpleNet, arXiv 1608.06037",
    parameters=_PLAIN,
    has_additions=False,
    fast_channels_last=True,
)
_ANY = {"canonicalise"}  # acts around a network of any kind
KINDS: dict[str, NetworkKind] = {  # build.py has a function for each row
    "plain": NetworkKind(
        does="convolutions; presets nnunet and cpu",
        source="dynamic-network-architectures, PlainConvUNet",
        parameters=_PLAIN,
        has_additions=False,
        fast_channels_last=True,
    ),
    "residual": NetworkKind(
        does="residual blocks; presets resenc_m, resenc_l and resenc_xl",
        source="dynamic-network-architectures, ResidualEncoderUNet",
        parameters=tuple(sorted(_UNET | {"block", "regulator"})),
        gates_norms=True,
        fast_channels_last=True,
    ),
    "convnext": NetworkKind(
        does="MedNeXt blocks: depthwise convolution, expansion, compression; presets convnext_s to convnext_l",
        source="Roy et al. 2023, MedNeXt",
        parameters=tuple(
            sorted(
                _UNET - {"activation", "bias", "dropout_fraction", "uout", "decoder", "decoder_features"}
                | {"expansion", "decoder_expansion", "response_norm"}
            )
        ),
    ),
    **{kind: _EFFICIENTNET_LITE if is_lite(kind) else _EFFICIENTNET for kind in KINDS_OF_EFFICIENTNET},
    **dict.fromkeys(KINDS_OF_SIMPLENET, _SIMPLENET),
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
_WITH_DENSE_KERNELS = ("plain", "residual")
_PER_STAGE = ("strides_zyx", "kernels_zyx", "blocks")
_MOST_STAGES = 16
_MOST: dict[str, int] = {  # of one entry, far beyond any network: what is larger is a mistake or an attack
    "features": 2**14,
    "strides_zyx": 2**6,
    "kernels_zyx": 2**6,
    "blocks": 2**8,
    "decoder_convolutions": 2**8,
    "decoder_features": 2**14,
    "bottleneck_features": 2**14,
    "expansion": 2**6,
    "decoder_expansion": 2**6,
    "dilations_zyx": 2**10,
    "stem_kernel_zyx": 2**6,
    "bottleneck_attention_blocks": 2**6,
    "bottleneck_map_zyx": 2**10,
    "bottleneck_mask_components": 2**6,
    "mixer_blocks": 2**6,
    "mixer_kernel": 2**6,
    "mixer_states": 2**10,
}


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
        sparse: What its kernels are rewritten as; None: they are dense.
    """

    kind: Annotated[str, OneOf(KINDS)]
    features: tuple[PositiveInt, ...]
    strides_zyx: tuple[tuple[PositiveInt, ...], ...]
    kernels_zyx: tuple[tuple[PositiveInt, ...], ...]
    blocks: tuple[PositiveInt, ...]
    decoder_convolutions: tuple[PositiveInt, ...]
    parts: Parts = Parts()
    weights: InitialWeights | None = None
    sparse: SparseKernels | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        n_stages = len(self.features)
        if not n_stages:
            raise ValueError("features is empty, expected one entry for each stage")
        self._expect_plausible()
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
        self._expect_attention()
        if self.parts.canonicalise:
            canonical_coordinates(self.parts.canonicalise, self.n_axes)
        self._expect_own_topology()
        self._expect_dense_kernels()
        return self

    def _expect_dense_kernels(self) -> None:
        """Refuse sparse kernels where there is nothing to rewrite, or where widths are bound to something else."""
        if self.sparse is None:
            return
        if self.kind not in _WITH_DENSE_KERNELS:
            raise ValueError(
                f"sparse: kind {self.kind!r} has few dense kernels or widths of its own; take kind "
                f"{' or '.join(_WITH_DENSE_KERNELS)}, or leave sparse out"
            )
        if self.parts.block != "basic" or self.parts.regulator is not None:
            raise ValueError(
                "sparse: only convolutions of stages with block 'basic' and without a regulator are rewritten; leave "
                "block and regulator out, or sparse"
            )
        if self.sparse.family == "wide" and (self.parts.bottleneck_attention or self.parts.bottleneck_mixer):
            raise ValueError(
                "sparse: family 'wide' changes the width of the deepest stage, on which attention and mixers of the "
                "bottleneck depend; take family parallel, factorised or doped"
            )

    def _expect_plausible(self) -> None:
        """Before anything is built, which could take all memory or hours."""
        if len(self.features) > _MOST_STAGES or len(self.parts.dilations_zyx) > _MOST_STAGES:
            raise ValueError(f"{len(self.features)} stages, expected {_MOST_STAGES} at most, and no more dilations")
        for name, most in _MOST.items():
            found = max(_numbers_in(getattr(self if name in type(self).model_fields else self.parts, name)), default=0)
            if found > most:
                raise ValueError(f"{name} holds {found}, expected {most} at most")

    def _expect_used_parts(self) -> None:
        chosen = [name for name, field in Parts.model_fields.items() if getattr(self.parts, name) != field.default]
        kind = KINDS[self.kind]
        unused = [name for name in chosen if name not in {*kind.parameters, *_ANY}]
        if unused:
            raise ValueError(f"kind {self.kind!r} does not use parts.{unused[0]}; leave it out")
        scaled = self.parts.residual_scale != 1 and self.parts.decoder == "plain"
        if not kind.has_additions and (scaled or self.parts.attention_position == "after_add"):
            raise ValueError(
                f"kind {self.kind!r} has no addition that attention_position after_add or residual_scale could act on; "
                "take kind residual"
            )
        self._expect_depth()
        self._expect_seeing_gates()

    def _expect_depth(self) -> None:
        for name, table in (("block", BLOCKS), ("attention", GATES)):
            chosen = getattr(self.parts, name)
            if chosen is not None and table[chosen].needs_depth and self.n_axes == 2:
                raise ValueError(
                    f"{name} {chosen!r} works along the thick axis, which a 2D network has not; leave it out"
                )

    def _expect_seeing_gates(self) -> None:
        parts = self.parts
        gates_norms = KINDS[self.kind].gates_norms or parts.decoder == "residual"
        is_blind = parts.attention is not None and GATES[parts.attention].sees_only_means
        if gates_norms and is_blind and (parts.norm, parts.attention_position) == ("instance", "block"):
            raise ValueError(
                f"attention {parts.attention!r} in position block sees channels' means just behind norm 'instance', "
                "which makes them the same for every image; take attention_position after_add or skip, or another norm"
            )

    def _expect_attention(self) -> None:
        parts = self.parts
        if parts.bottleneck_attention is None:
            return
        if self.features[-1] % parts.bottleneck_heads:
            raise ValueError(
                f"bottleneck_heads {parts.bottleneck_heads} cannot share the {self.features[-1]} features of the "
                "deepest stage equally; take a number that divides them"
            )
        needed = {name for name in ("bottleneck_map_zyx", "bottleneck_spacing_mm") if reads(parts, name)}
        for name in sorted(needed):
            values = getattr(parts, name)
            if values is None or len(values) != self.n_axes:
                found = "nothing" if values is None else list(values)
                raise ValueError(
                    f"{name} is {found}, expected {self.n_axes} edges, of the deepest map. Leave it out of a plan, "
                    "which then takes those of its patch and spacing"
                )

    def _expect_own_topology(self) -> None:
        if self.kind in KINDS_OF_EFFICIENTNET:
            self._expect_efficientnet()
        if self.kind in KINDS_OF_SIMPLENET:
            self._expect_simplenet()
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
        self._expect_stages(features, blocks)

    def _expect_simplenet(self) -> None:
        n_stages = len(self.features)
        if not 2 <= n_stages <= SIMPLENET_STAGES:
            raise ValueError(f"kind {self.kind!r} has 2 to {SIMPLENET_STAGES} stages, not {n_stages}")
        try:
            rows = simplenet_stages(self.kind, n_stages, self.features[0])
        except ValueError as fault:
            authors = simplenet_stages(self.kind, n_stages)[0].widths[-1]
            raise ValueError(
                f"features start with {self.features[0]}; kind {self.kind!r} scales its widths, made for {authors}, by "
                f"them, and {fault}. Take {authors}, or half or a quarter of it"
            ) from None
        self._expect_stages(tuple(row.widths[-1] for row in rows), tuple(len(row.widths) for row in rows))

    def _expect_stages(self, features: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        if (self.features, self.blocks) != (features, blocks):
            raise ValueError(
                f"features {self.features} and blocks {self.blocks} of kind {self.kind!r} with {len(self.features)} "
                f"stages must be {features} and {blocks}"
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
    def thick_axis(self) -> int:
        """Index of the axis with the coarsest voxels: halved least, then with most kernels of 1, then the first."""
        axes = range(self.n_axes)
        halved = self.divisors_zyx
        return min(axes, key=lambda axis: (halved[axis], sum(kernel[axis] for kernel in self.kernels_zyx)))

    @property
    def decoder_features(self) -> tuple[int, ...]:
        """Channels of the decoder's stages, the highest resolution first."""
        return self.parts.decoder_features or self.features[:-1]

    @property
    def parts_text(self) -> str:
        """Text of what differs from nnU-Net's parts, as `attention se, bias False`; empty if nothing does."""
        return ", ".join(f"{name} {value}" for name, value in self.parts.model_dump(mode="json").items())

    @property
    def divisors_zyx(self) -> tuple[int, ...]:
        """Divisors of the edges of a patch. Other sizes work too, at the cost of cropped maps."""
        totals = [1] * self.n_axes
        for stride in self.strides_zyx:
            totals = [total * step for total, step in zip(totals, stride, strict=True)]
        return tuple(totals)


def _numbers_in(values: Any) -> Iterator[int]:
    if isinstance(values, int):
        yield values
    for inner in values if isinstance(values, tuple) else ():
        yield from _numbers_in(inner)


def _expect_entries(name: str, values: tuple[Any, ...] | None, expected: int) -> None:
    if values is not None and len(values) != expected:
        raise ValueError(f"{name} has {len(values)} entries, expected {expected}, one for each stage")


EFFNET_SIZES = tuple(kind.removeprefix(KIND_PREFIX) for kind in KINDS_OF_EFFICIENTNET)
_MAX_LEVELS = 5
EFFNET_STAGES = _MAX_LEVELS + 1  # with that at full resolution
_TOP_FEATURES = 16  # of the block at full resolution, which EfficientNet has not
_DECODER_FEATURES = (16, 32, 48, 64, 128)
_PYRAMID_FEATURES = 256
_LITE_EPS = 1e-3


def effnet(
    size: str,
    strides_zyx: tuple[tuple[int, ...], ...],
    kernels_zyx: tuple[tuple[int, ...], ...],
    spacing_mm: Sequence[float],
    patch_vox: Sequence[int],
) -> NetworkSpec:
    """The network for the planner's strides and kernels: EfficientNet, gated skips, pyramid, residual decoder.

    EfficientNet-Lite has neither gated skips nor a pyramid, and the padding and eps that its weights expect.

    Args:
        size: b0 to b7 or lite0.
        strides_zyx: Of each stage, at least two. EfficientNet halves five times: deeper stages are left out.
        kernels_zyx: Of each stage. A 3 becomes 5 in the blocks where EfficientNet has 5.
        spacing_mm: Edges of a voxel, as many axes as the strides have.
        patch_vox: Edges of a patch, same axes.

    Source:
        After the abstract of Behzadpour et al. 2025, arXiv 2501.11196, on 2D slices: ResUNet, EfficientNet encoder,
        channel attention, atrous pyramid. All else is ours: three axes, the block at full resolution, instance norm,
        widths of the decoder, dilations by spacing, no mean over the patch in the pyramid.
    """
    n_levels = min(_MAX_LEVELS, len(strides_zyx) - 1)
    kind, strides = KIND_PREFIX + size, strides_zyx[: n_levels + 1]
    found = levels(kind, n_levels)
    total = [math.prod(steps) for steps in zip(*strides, strict=True)]
    deepest_mm = [edge * step for edge, step in zip(spacing_mm, total, strict=True)]
    deepest_vox = [math.ceil(edge / step) for edge, step in zip(patch_vox, total, strict=True)]
    more: dict[str, Any] = {"padding": "tf_same", "norm_eps": _LITE_EPS}
    if not is_lite(kind):
        dilations = aspp_dilations(deepest_mm, deepest_vox)
        more = {"attention": "se", "bottleneck": "aspp_deeplab", "dilations_zyx": dilations}
        more["bottleneck_features"] = _PYRAMID_FEATURES
    return NetworkSpec(
        kind=kind,
        features=(_TOP_FEATURES, *(level[-1].n_out for level in found)),
        strides_zyx=strides,
        kernels_zyx=kernels_zyx[: n_levels + 1],
        blocks=(1, *(sum(stage.n_blocks for stage in level) for level in found)),
        decoder_convolutions=(1,) * n_levels,
        parts=Parts(bias=False, decoder="residual", decoder_features=_DECODER_FEATURES[:n_levels], **more),
    )


def simplenet_spec(
    kind: str, strides_zyx: tuple[tuple[int, ...], ...], kernels_zyx: tuple[tuple[int, ...], ...]
) -> NetworkSpec:
    """A SimpleNet for the planner's strides and kernels; it has five stages, deeper ones are left out."""
    n_stages = min(SIMPLENET_STAGES, len(strides_zyx))
    rows = simplenet_stages(kind, n_stages)
    return NetworkSpec(
        kind=kind,
        features=tuple(row.widths[-1] for row in rows),
        strides_zyx=strides_zyx[:n_stages],
        kernels_zyx=kernels_zyx[:n_stages],
        blocks=tuple(len(row.widths) for row in rows),
        decoder_convolutions=(1,) * (n_stages - 1),
    )


_FEATURES = 32  # of the first stage, doubled at each


@dataclass(frozen=True)
class Size:
    """Stage by stage, the highest resolution first; the decoder mirrors the encoder.

    Args:
        blocks: Of each stage, without those that lead down and up.
        expansion: Hidden channels as a multiple.
        checkpointing: Whether blocks are computed twice, since what they would keep is too much.
    """

    blocks: tuple[int, ...]
    expansion: tuple[int, ...]
    checkpointing: bool = False


SIZES: dict[str, Size] = {
    "s": Size((2, 2, 2, 2, 2), (2, 2, 2, 2, 2)),
    "b": Size((2, 2, 2, 2, 2), (2, 3, 4, 4, 4)),
    "m": Size((3, 4, 4, 4, 4), (2, 3, 4, 4, 4), checkpointing=True),
    "l": Size((3, 4, 8, 8, 8), (3, 4, 8, 8, 8), checkpointing=True),
}


def mednext(
    size: str,
    strides_zyx: tuple[tuple[int, ...], ...],
    kernels_zyx: tuple[tuple[int, ...], ...],
    *,
    features: int = _FEATURES,
    kernel: Literal[3, 5] = 3,
    response_norm: Literal["mean", "sum"] | None = None,
) -> NetworkSpec:
    """A MedNeXt for the planner's strides and kernels.

    Args:
        size: One of `SIZES`.
        strides_zyx: Of each stage. MedNeXt has five: deeper ones are left out.
        kernels_zyx: Of each stage.
        features: Of the first stage. MedNeXt v2 is size l with 32 or 64 and response norm sum.
        kernel: Takes the place of each 3 in `kernels_zyx`.
        response_norm: See `Parts`.

    Source:
        Roy et al. 2023, MedNeXt, table of the authors' code. They know isotropic volumes and five stages alone.
    """
    row = SIZES[size]
    n_stages = min(len(row.blocks), len(strides_zyx))
    return NetworkSpec(
        kind="convnext",
        features=tuple(features * 2**stage for stage in range(n_stages)),
        strides_zyx=strides_zyx[:n_stages],
        kernels_zyx=tuple(tuple(kernel if k == 3 else k for k in each) for each in kernels_zyx[:n_stages]),
        blocks=row.blocks[:n_stages],
        decoder_convolutions=row.blocks[: n_stages - 1],
        parts=Parts(expansion=row.expansion[:n_stages], response_norm=response_norm, checkpointing=row.checkpointing),
    )
