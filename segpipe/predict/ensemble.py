"""Configurations that predict together: their probabilities are averaged on the image's grid, slab by slab."""

# O outputs, N rows of a slab, Y X voxels.
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.errors import UsageError
from segpipe.core.labels import LabelSet
from segpipe.plan.schema import Plan
from segpipe.predict.model import Model
from segpipe.predict.restore import Slab, placed, rows_per_slab, slabs, winners
from segpipe.predict.segment import Segmentation, SegmentOptions, guided, logit_rows, segment
from segpipe.predict.uncertainty import as_bytes, disagreement, entropy
from segpipe.prepare.case import Prepared


@dataclass(frozen=True, eq=False)
class Ensemble:
    """One or several models that predict the same structures of the same images.

    Args:
        members: Models, each of one configuration. Of its folds the logits are averaged, of members the probabilities.

    Raises:
        UsageError: If they differ in channels or labels, or turn images to different axes.
    """

    members: tuple[Model, ...]

    def __post_init__(self) -> None:
        first = self.plan
        for plan in (member.plan for member in self.members[1:]):
            if plan.labels != first.labels or plan.channels != first.channels:
                raise UsageError(
                    f"models of {plan.dataset} and {first.dataset} cannot be averaged: channels and labels "
                    f"{_described(plan)} and {_described(first)}; expected the same names and values in the same order."
                )
            if (plan.orientation, plan.axis_order) != (first.orientation, first.axis_order):
                raise UsageError(
                    f"models of {plan.dataset} and {first.dataset} turn images to different axes ({plan.orientation} "
                    f"{plan.axis_order} and {first.orientation} {first.axis_order}). Predict with each and "
                    "--save-probabilities, and average the folders: `segpipe ensemble`."
                )

    @property
    def models(self) -> tuple[Model, ...]:
        """The members and what guides them."""
        return tuple(model for member in self.members for model in (member, member.guide) if model is not None)

    @property
    def plan(self) -> Plan:
        """Of the first member; channels, labels and axes are those of all."""
        return self.members[0].plan

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.members[0].networks[0].parameters()).device

    @property
    def uncertainty_names(self) -> tuple[str, ...]:
        """Of the maps that it makes: a single network disagrees with nobody."""
        n_networks = sum(len(member.networks) for member in self.members)
        return ("entropy", "disagreement") if n_networks > 1 else ("entropy",)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of all weights, in whatever order the members are."""
        digests = sorted(member.digest for member in self.members)
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]


def _described(plan: Plan) -> str:
    labels = ", ".join(f"{label.name} {'/'.join(map(str, label.values))}" for label in plan.labels.labels)
    return f"({', '.join(plan.channels)}; {labels})"


def segment_ensemble(ensemble: Ensemble, prepared: Sequence[Prepared], options: SegmentOptions) -> Segmentation:
    """Predict a case with all members, row by row side by side.

    Each member holds its rows of logits, at most a patch of them; with uncertainty each of its networks does.

    Args:
        ensemble: What predicts.
        prepared: The case as each member needs it.
        options: How. With uncertainty the mask differs from the one without at ties alone, by rounding.

    Raises:
        DataError: If a network's output is not finite.
        torch.OutOfMemoryError: If the device's memory is not enough; other options may do.
    """
    if len(ensemble.members) == 1 and not options.with_uncertainty:
        return segment(ensemble.members[0], prepared[0], options)
    labels, trace = ensemble.plan.labels, prepared[0].trace
    mask = np.full(trace.shape_zyx, labels.background_value, labels.mask_dtype)
    chances = None
    if options.with_probabilities:
        chances = np.zeros((labels.n_outputs, *trace.shape_zyx), np.float16)
        chances[0] = not labels.has_regions
    names = ensemble.uncertainty_names if options.with_uncertainty else ()
    maps = {name: np.zeros(trace.shape_zyx, np.uint8) for name in names}
    for of_members in _slabs_side_by_side(ensemble, prepared, options):
        slab, shares_ONYX = of_members[0][0], _mean_shares(of_members, labels)
        found = _chosen(shares_ONYX, labels)
        placed(mask, trace, slab)[...] = found
        if chances is not None:
            placed(chances, trace, slab)[...] = shares_ONYX.half().cpu().numpy()
        if options.keep is not None:
            options.keep(slab, shares_ONYX.half().cpu().numpy())
        if "entropy" in maps:
            placed(maps["entropy"], trace, slab)[...] = as_bytes(entropy(shares_ONYX, labels).cpu().numpy())
        if "disagreement" in maps:
            own = [winners(of_network, labels) for of_member in of_members for of_network in of_member]
            placed(maps["disagreement"], trace, slab)[...] = as_bytes(disagreement(found, own))
    return Segmentation(mask, chances, maps)


def _slabs_side_by_side(
    ensemble: Ensemble, prepared: Sequence[Prepared], options: SegmentOptions
) -> Iterator[tuple[tuple[Slab, ...], ...]]:
    """The same rows of the image from every member: one slab, or with uncertainty one from each of its networks."""
    height = rows_per_slab(ensemble.plan.labels.n_outputs, prepared[0].trace)
    streams = []
    for member, own in zip(ensemble.members, prepared, strict=True):
        image = guided(member, own, options)
        parts = [replace(member, networks=(n,)) for n in member.networks] if options.with_uncertainty else [member]
        of_parts = [slabs(logit_rows(part, image, options), image.trace, height) for part in parts]
        streams.append(zip(*of_parts, strict=True))
    return zip(*streams, strict=True)


def _mean_shares(of_members: Sequence[Sequence[Slab]], labels: LabelSet) -> Tensor:
    """(O, N, Y, X) probabilities, mean over members; of a member's networks the logits are averaged."""
    total_ONYX: Tensor | None = None
    for of_member in of_members:
        logits_ONYX = of_member[0].logits()
        for slab in of_member[1:]:
            logits_ONYX.add_(slab.logits())
        logits_ONYX.div_(len(of_member))
        shares_ONYX = logits_ONYX.sigmoid_() if labels.has_regions else logits_ONYX.softmax(0)
        total_ONYX = shares_ONYX if total_ONYX is None else total_ONYX.add_(shares_ONYX)
    assert total_ONYX is not None
    return total_ONYX.div_(len(of_members))


def _chosen(shares_ONYX: Tensor, labels: LabelSet) -> NDArray[Any]:
    """(N, Y, X) file values: the most likely output, of equal ones the first, or regions above one half."""
    chosen = shares_ONYX > 0.5 if labels.has_regions else shares_ONYX.argmax(0)
    return labels.decode(chosen.cpu().numpy())
