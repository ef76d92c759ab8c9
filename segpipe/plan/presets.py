"""Presets: a table of inputs for the planner's rules. A new preset is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from segpipe.core.errors import PlanError
from segpipe.core.records import did_you_mean
from segpipe.networks.simplenet_table import KINDS_OF_SIMPLENET, SIMPLENET_STAGES
from segpipe.networks.spec import EFFNET_SIZES, EFFNET_STAGES, SIZES, NetworkSpec, effnet, mednext, simplenet_spec
from segpipe.plan.augmentation import Augmentation
from segpipe.plan.geometry import Topology
from segpipe.plan.training import Training

_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
_PLAIN_BLOCKS = (2,) * 14
_MAX_FEATURES = {2: 512, 3: 320}  # by the number of axes
SHARE_OF_RAM = 0.9  # that a plan for a CPU may take; the rest is for reading cases
MAX_BATCH = {2: 48, 3: 8}  # four times the batches that nnU-Net's budgets were set with


@dataclass(frozen=True)
class Preset:
    """The inputs of the rules of `make.py`.

    Args:
        network: Makes the network of a topology.
        reference_voxels: Feature-map voxels (see `topology.feature_voxels`) that fit at `reference_batch`, by the
            number of axes; empty: the patch is fitted by predicted memory.
        reference_batch: By the number of axes.
        reference_gib: GPU memory that `reference_voxels` stand for, or that is fitted to; None: not for a GPU.
        max_stages: Stages that the network has at most; None: as many as the patch allows.
        coverage: Largest share of the dataset's voxels in one batch.
        max_batch: Largest batch, by the number of axes.
        batch_in_shrink: Whether the patch shrinks until a batch of 2 fits (True) or until the reference batch
            does (False: nnU-Net's residual presets, whose 2D patches become about 6 times smaller).
        view: Least share of the median image that a 3D patch covers; its voxels grow until it does, up to twice the
            edge, and nothing coarser is planned beside it. 0: the voxels stay.
        mirrors: Whether training and prediction mirror: along every axis, but never against labels with sides.
        is_exact: Whether every decision is nnunetv2's, also where we would decide otherwise: cases are counted by
            `numTraining`, all axes are mirrored, a lone slice is no coarse axis.
        training: The recipe.
        why: One sentence.
    """

    network: Callable[[Topology], NetworkSpec]
    why: str
    reference_voxels: dict[int, float] = field(default_factory=dict)
    reference_batch: dict[int, int] = field(default_factory=lambda: {2: 12, 3: 2})
    reference_gib: float | None = None
    max_stages: int | None = None
    coverage: float = 0.05
    max_batch: dict[int, int] | None = None
    batch_in_shrink: bool = True
    view: float = 0.0
    mirrors: bool = True
    is_exact: bool = False
    training: Training = field(default_factory=Training)

    def for_memory(self, gpu_memory_gib: float | None) -> Preset:
        """The row with its budget scaled to this GPU memory, as nnU-Net does; None: as it stands."""
        if gpu_memory_gib is None or self.reference_gib is None:
            return self
        scaled = self.scale(gpu_memory_gib / self.reference_gib)
        if not self.reference_voxels:
            return replace(scaled, reference_gib=gpu_memory_gib)
        return replace(scaled, why=f"{self.why} Its budget is scaled to {gpu_memory_gib:g} GiB.")

    def scale(self, factor: float) -> Preset:
        """The row with a budget of feature maps that is larger or smaller by a factor."""
        return replace(self, reference_voxels={n: v * factor for n, v in self.reference_voxels.items()})


def _unet(
    found: Topology,
    *,
    kind: str,
    blocks: tuple[int, ...],
    decoder_convolutions: int,
    base_features: int = 32,
    max_features: dict[int, int] = _MAX_FEATURES,
) -> NetworkSpec:
    """nnU-Net's networks: features double at each stage up to a limit, blocks are cut to the stages."""
    n_stages, limit = len(found.strides), max_features[len(found.patch)]
    return NetworkSpec(
        kind=kind,
        features=tuple(min(limit, base_features * 2**stage) for stage in range(n_stages)),
        strides_zyx=found.strides,
        kernels_zyx=found.kernels,
        blocks=blocks[:n_stages],
        decoder_convolutions=(decoder_convolutions,) * (n_stages - 1),
    )


_PLAIN = partial(_unet, kind="plain", blocks=_PLAIN_BLOCKS, decoder_convolutions=2)
_RESIDUAL = partial(_unet, kind="residual", blocks=_RESIDUAL_BLOCKS, decoder_convolutions=1)


def _residual(voxels_3d: float, voxels_2d: float, limit_gib: float) -> Preset:
    return Preset(
        network=_RESIDUAL,
        reference_voxels={2: voxels_2d, 3: voxels_3d},
        reference_gib=limit_gib,
        coverage=1.0,
        batch_in_shrink=False,
        is_exact=True,
        why=f"nnU-Net's residual encoder preset for {limit_gib:.0f} GiB.",
    )


def _mednext(size: str, found: Topology) -> NetworkSpec:
    return mednext(size, found.strides, found.kernels)


def _effnet(size: str, found: Topology) -> NetworkSpec:
    return effnet(size, found.strides, found.kernels, found.spacing_mm, found.patch)


def _simple(kind: str, found: Topology) -> NetworkSpec:
    return simplenet_spec(kind, found.strides, found.kernels)


def _simplenet(kind: str) -> Preset:
    return Preset(
        network=partial(_simple, kind),
        reference_gib=24,
        max_stages=SIMPLENET_STAGES,
        max_batch=MAX_BATCH,
        why="SimpleNet as a plain control; patch and batch follow predicted memory.",
    )


def _efficientnet(size: str) -> Preset:
    more = "" if size.startswith("lite") else ", gated skips and pyramid"
    return Preset(
        network=partial(_effnet, size),
        reference_gib=24,
        max_stages=EFFNET_STAGES,
        max_batch=MAX_BATCH,
        why=f"EfficientNet {size.title()} encoder{more}; patch and batch follow predicted memory.",
    )


def _convnext(size: str) -> Preset:
    return Preset(
        network=partial(_mednext, size),
        reference_gib=24,
        max_stages=len(SIZES[size].blocks),
        max_batch=MAX_BATCH,
        training=Training(optimizer="adamw", learning_rate=1e-3, momentum=0.9, weight_decay=1e-2),
        why=f"MedNeXt {size.upper()}; patch and batch follow predicted memory.",
    )


_CPU = Preset(
    network=partial(_PLAIN, base_features=16, max_features={2: 256, 3: 160}),
    reference_voxels={2: 2.4e6, 3: 16e6},
    max_batch={2: 2, 3: 2},
    mirrors=False,
    training=Training(
        epochs=50,
        validation_iterations=20,
        optimizer="muon",
        learning_rate=1e-2,
        momentum=0.9,
        weight_decay=1e-2,
        warmup_fraction=0.05,
        weight_average=0.99,
        augmentation=Augmentation.from_name("light"),
    ),
    why="No GPU: a network at a quarter of the cost and a recipe that learns in few steps.",
)

PRESETS: dict[str, Preset] = {
    "nnunet": Preset(
        network=_PLAIN,
        reference_voxels={2: 85e6, 3: 560e6},
        reference_gib=8,
        is_exact=True,
        why="nnU-Net's default planner.",
    ),
    "resenc_m": _residual(680e6, 135e6, 8),
    "resenc_l": _residual(2.1e9, 380e6, 24),
    "resenc_xl": _residual(3.6e9, 560e6, 40),
    **{f"convnext_{size}": _convnext(size) for size in SIZES},
    **{f"effnet_{size}": _efficientnet(size) for size in EFFNET_SIZES},
    **{kind: _simplenet(kind) for kind in KINDS_OF_SIMPLENET},
    "cpu": _CPU,
    "cpu_short": replace(
        _CPU,
        view=0.5,
        why=f"{_CPU.why} Time is short: a patch covers half of an image at coarser voxels.",
    ),
}

CPU_PRESETS = tuple(name for name, preset in PRESETS.items() if preset.reference_gib is None)


def find_preset(name: str) -> Preset:
    """A row of the table.

    Raises:
        PlanError: If there is none of that name.
    """
    if name not in PRESETS:
        raise PlanError(f"preset {name!r} is unknown.{did_you_mean(name, ['auto', *PRESETS])}")
    return PRESETS[name]
