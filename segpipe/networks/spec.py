"""What a network is made of, without torch: the planner writes it, `build` reads it."""

from __future__ import annotations

from pydantic import PositiveInt, field_validator, model_validator

from segpipe.core.records import Record, did_you_mean

KINDS = ("plain", "residual")
_PER_STAGE = ("strides_zyx", "kernels_zyx", "blocks")


class NetworkSpec(Record):
    """A U-Net, stage by stage, the highest resolution first.

    Args:
        kind: `plain` (PlainConvUNet) or `residual` (ResidualEncoderUNet).
        features: Channels of each encoder stage.
        strides_zyx: Stride at the entry of each stage; the first is 1 on every axis. (Z, Y, X) or (Y, X).
        kernels_zyx: Kernel of each stage, odd.
        blocks: Convolutions (plain) or residual blocks (residual) of each encoder stage.
        decoder_convolutions: Convolutions of each decoder stage, one entry fewer than stages.
    """

    kind: str
    features: tuple[PositiveInt, ...]
    strides_zyx: tuple[tuple[PositiveInt, ...], ...]
    kernels_zyx: tuple[tuple[PositiveInt, ...], ...]
    blocks: tuple[PositiveInt, ...]
    decoder_convolutions: tuple[PositiveInt, ...]

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"expected one of {', '.join(KINDS)}.{did_you_mean(kind, list(KINDS))}")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        n_stages = len(self.features)
        for name in _PER_STAGE:
            if len(getattr(self, name)) != n_stages:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries, expected one for each of {n_stages} stages"
                )
        if len(self.decoder_convolutions) != n_stages - 1:
            raise ValueError(
                f"decoder_convolutions has {len(self.decoder_convolutions)} entries, expected {n_stages - 1}"
            )
        if {len(step) for step in (*self.strides_zyx, *self.kernels_zyx)} not in ({2}, {3}):
            raise ValueError("strides_zyx and kernels_zyx must all have two entries (2D) or all three (3D)")
        if any(k % 2 == 0 for kernel in self.kernels_zyx for k in kernel):
            raise ValueError("kernels must be odd")
        return self

    @property
    def n_axes(self) -> int:
        """2 or 3."""
        return len(self.strides_zyx[0])

    @property
    def divisors_zyx(self) -> tuple[int, ...]:
        """What each edge of an input must be a multiple of."""
        totals = [1] * self.n_axes
        for stride in self.strides_zyx:
            totals = [total * step for total, step in zip(totals, stride, strict=True)]
        return tuple(totals)
