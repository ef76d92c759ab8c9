"""`auto`: which network for which dataset and machine, by published evidence."""

from __future__ import annotations

from dataclasses import replace

from segpipe.plan.measured import Measured
from segpipe.plan.patch import CountedVoxels, fit
from segpipe.plan.presets import MAX_BATCH, PRESETS, Preset

_MAX_GB = 24.0  # 40 GB gave +0.02 Dice on six datasets for twice the time (L 87.56, XL 87.58)
_FIXED_GB, _VOXELS_PER_GB = 2.6, 104e6  # of training, a line through M, L and XL: 9.1, 22.7, 36.6
_USED_SHARE = 0.95  # of the memory; the rest is the allocator's and the screen's
_LEAST_SHARE = 0.3  # of a small GPU's memory for feature maps, below which the line is not trusted
_ROOMY_BATCH = 8  # a residual network with room for this many whole patches is not short of capacity
_COVERAGE = 0.05
_SHORT_SECONDS = (
    3600.0  # measured at 600, where coarse voxels and half of the image in sight were ahead; see benchmarks/LOG.md
)


def auto_preset(
    measured: Measured, device: str, gpu_memory_gb: float | None, fold_seconds: float | None = None
) -> Preset:
    """The preset for a dataset and a machine.

    Args:
        measured: The dataset.
        device: `cpu`, or the kind of a GPU.
        gpu_memory_gb: Memory of the GPU; None: not known, then as much as is used at most.
        fold_seconds: Time to train one fold; None: enough.

    Source:
        Memory and sizes of networks: Isensee et al. 2024 (nnU-Net Revisited), table of presets; plain against
        residual on ten datasets: AutoNNUnet's full cross-validations of nnU-Net's presets. Differs from nnU-Net's
        residual presets: the batch is bounded, 2D patches shrink only until a batch of 2 fits, and the budget follows
        the memory that training was measured to take.
    """
    if device == "cpu" and gpu_memory_gb is None:
        is_short = fold_seconds is not None and fold_seconds <= _SHORT_SECONDS
        return PRESETS["cpu_short" if is_short else "cpu"]
    gigabytes = min(gpu_memory_gb or _MAX_GB, _MAX_GB)
    residual = _bounded(PRESETS["resenc_l"], gigabytes)
    axes = slice(1 if measured.median_shape[0] == 1 else 0, None)  # single slices: their 2D network decides
    found = fit(
        replace(residual, coverage=1.0, max_batch=None),
        CountedVoxels(residual, measured.n_label_entries),
        measured.spacing_mm[axes].tolist(),
        measured.median_shape[axes].tolist(),
        measured.voxels * 1e6,  # the batch by memory alone
    )
    memory = f"{gigabytes:g} GB of GPU memory" + (" (more brings no more Dice)" if gigabytes == _MAX_GB else "")
    if found is not None and found.batch_size >= _ROOMY_BATCH:
        return replace(
            _bounded(PRESETS["nnunet"], gigabytes),
            why=f"A plain U-Net, since {found.batch_size} patches of a residual one would fit into {memory}: on such "
            "small images deeper networks were slower and no better (Hippocampus: 89.0 plain, 88.8 and 88.6 residual).",
        )
    return replace(
        residual,
        why=f"A residual encoder U-Net for {memory}: on large images it was ahead of the plain one (six datasets: "
        "87.6 against 86.8 Dice), elsewhere equal.",
    )


def _bounded(preset: Preset, gigabytes: float) -> Preset:
    voxels = _VOXELS_PER_GB * max(_USED_SHARE * gigabytes - _FIXED_GB, _LEAST_SHARE * gigabytes)
    preset = preset.scaled(voxels / preset.reference_voxels[3])
    return replace(preset, coverage=_COVERAGE, max_batch=MAX_BATCH, batch_in_shrink=True, is_exact=False)
