"""A small network of every kind, for 2D, isotropic 3D and anisotropic 3D."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from segpipe.networks.efficientnet_table import KIND_PREFIX, KINDS_OF_EFFICIENTNET
from segpipe.networks.parts import Parts, SparseKernels, reads
from segpipe.networks.simplenet_table import KINDS_OF_SIMPLENET, simplenet_stages
from segpipe.networks.spec import NetworkSpec, effnet

Axes = tuple[tuple[int, ...], ...]
VIEWS = ("2d", "3d", "anisotropic")
_FLAT = {"2d": (2, 2), "3d": (2, 2, 2), "anisotropic": (1, 2, 2)}  # stride of the first stages


def _axes(view: str, n_stages: int) -> tuple[Axes, Axes]:
    """Strides and kernels: anisotropic ones leave Z alone until the last stage."""
    n_axes = len(_FLAT[view])
    strides = ((1,) * n_axes, *(_FLAT[view],) * (n_stages - 2), (2,) * n_axes)
    kernel = tuple(1 if step == 1 else 3 for step in _FLAT[view])
    return strides, (*(kernel,) * (n_stages - 1), (3,) * n_axes)


def unet(kind: str, view: str, **parts: Any) -> NetworkSpec:
    """Three stages of 4, 6 and 8 features."""
    strides, kernels = _axes(view, 3)
    return NetworkSpec(
        kind=kind,
        features=(4, 6, 8),
        strides_zyx=strides,
        kernels_zyx=kernels,
        blocks=(1, 2, 1),
        decoder_convolutions=(1, 2),
        parts=Parts(**parts),
    )


def _monai(kind: str, view: str, factors: tuple[int, ...], blocks: tuple[int, ...]) -> NetworkSpec:
    """MONAI's networks know one stride only."""
    strides, kernels = _axes("2d" if view == "2d" else "3d", len(factors))
    return NetworkSpec(
        kind=kind,
        features=tuple(12 * factor for factor in factors),
        strides_zyx=strides,
        kernels_zyx=kernels,
        blocks=blocks,
        decoder_convolutions=(1,) * (len(factors) - 1),
    )


def _effnet(kind: str, view: str) -> NetworkSpec:
    """All six stages."""
    strides, kernels = _axes(view, 6)
    n_axes = len(strides[0])
    return effnet(kind.removeprefix(KIND_PREFIX), strides, kernels, (1.0,) * n_axes, (64,) * n_axes)


def _simplenet(kind: str, view: str) -> NetworkSpec:
    """Three stages, the last of which holds all of the network that is left, in 16 features and more."""
    strides, kernels = _axes(view, 3)
    rows = simplenet_stages(kind, 3, 16)
    return NetworkSpec(
        kind=kind,
        features=tuple(row.widths[-1] for row in rows),
        strides_zyx=strides,
        kernels_zyx=kernels,
        blocks=tuple(len(row.widths) for row in rows),
        decoder_convolutions=(1, 2),
    )


def bottleneck(kind: str, **parts: Any) -> Callable[[str], NetworkSpec]:
    """Attention or mixers on the deepest map, with the edges that a plan would hold."""

    def for_view(view: str) -> NetworkSpec:
        n_axes = len(_FLAT[view])
        edges = {"bottleneck_map_zyx": (4, 8, 16)[-n_axes:], "bottleneck_spacing_mm": (4.0, 2.0, 1.0)[-n_axes:]}
        known = {name: value for name, value in edges.items() if reads(parts, name)}
        return unet(kind, view, **parts, **known)

    return for_view


def sparse(kind: str, family: str) -> Callable[[str], NetworkSpec]:
    """Half of what is rewritten is 0."""
    kernels = SparseKernels(family=family, sparsity=0.5)
    return lambda view: unet(kind, view).model_copy(update={"sparse": kernels})


SPECS: dict[str, Callable[[str], NetworkSpec]] = {  # by kind: the spec for a view
    "plain": lambda view: unet("plain", view),
    "residual": lambda view: unet("residual", view),
    "convnext": lambda view: unet("convnext", view, expansion=(2, 3, 2), response_norm="sum"),
    **{kind: partial(_effnet, kind) for kind in KINDS_OF_EFFICIENTNET},
    **{kind: partial(_simplenet, kind) for kind in KINDS_OF_SIMPLENET},
    "segresnet": lambda view: _monai("segresnet", view, (1, 2, 4, 8), (1, 1, 1, 1)),
    "swin_unetr": lambda view: _monai("swin_unetr", view, (1, 1, 2, 4, 8, 16), (1, 1, 1, 1, 1, 1)),
}
VARIANTS: dict[str, Callable[[str], NetworkSpec]] = {  # by what differs from a kind: the spec for a view
    "botnet": bottleneck("plain", bottleneck_attention="botnet"),
    "gaussian_mixture": bottleneck(
        "residual",
        bottleneck_attention="content",
        bottleneck_heads=2,
        bottleneck_mask="gaussian_mixture",
        bottleneck_mask_form="log_add",
        checkpointing=True,
    ),
    "s5": bottleneck("convnext", bottleneck_mixer="s5", mixer_blocks=1, mixer_states=4, checkpointing=True),
    "convmixer_blocks": lambda view: unet("residual", view, block="convmixer", decoder="residual"),
    "convmixer": bottleneck("residual", bottleneck_mixer="convmixer", mixer_blocks=1),
    "pcnorm": lambda view: unet("plain", view, norm="pcnorm", uout=0.1),
    "ccnorm": lambda view: unet("convnext", view, norm="ccnorm"),
    "scnorm": lambda view: unet("residual", view, norm="scnorm", attention="se", attention_position="block"),
    "sparse_wide": sparse("residual", "wide"),
    "sparse_parallel": sparse("plain", "parallel"),
    "sparse_factorised": sparse("plain", "factorised"),
    "sparse_doped": sparse("residual", "doped"),
    "canonicalise": lambda view: unet("plain", view, canonicalise=("rot_z", "iso_scale")),
    "p3d": lambda view: unet("residual", view, block="basic" if view == "2d" else "p3d_cycle", decoder="residual"),
    "inception": lambda view: unet("residual", view, block="inception_residual", residual_scale="inv_sqrt_depth"),
    "regulated_lstm": lambda view: unet("residual", view, regulator="lstm", checkpointing=True),
    "regulated_gru": lambda view: unet("residual", view, regulator="gru", decoder="residual", residual_scale="rezero"),
    "sk": lambda view: unet("plain", view, attention="sk"),
    "sk_axis": lambda view: unet(
        *("convnext", view),
        **{"attention": "sk" if view == "2d" else "sk_axis", "attention_position": "block", "sk_dilated": False},
        residual_scale="layerscale",
    ),
}
