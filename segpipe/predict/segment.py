"""Segment one prepared case with all networks, within the memory there is.

Models are averaged slab by slab: each holds its rows of logits, at most a patch of them.
"""

# O outputs, N rows of a slab, Y X voxels.
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.core.errors import ResourceError
from segpipe.core.labels import LabelSet
from segpipe.core.progress import say
from segpipe.core.text import count
from segpipe.core.volume import SHARE_STEPS, Volume
from segpipe.networks.device import memory_faults, resolve_precision
from segpipe.plan.laterality import sideways_axis, swapped_indices, swapped_outputs
from segpipe.predict.model import Ensemble, Model
from segpipe.predict.options import PredictOptions
from segpipe.predict.restore import (
    Keep,
    Observe,
    Segmentation,
    Slab,
    SlabFinding,
    assemble,
    find_in_slab,
    mask_of,
    restore,
    rows_per_slab,
    slabs,
    strongest_outputs,
    trace_onto,
)
from segpipe.predict.sliding_window import Mirror, Sliding, mirrors_of, sliding_rows
from segpipe.prepare.case import Prepared, prepare_image, prepare_indices

_ADVICE = "Use --no-tta, another device, or a machine with more memory."
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batching:
    """Windows that are computed at once; fewer where memory is not enough.

    Args:
        n_windows: Windows in one forward pass.
        sum_on: Where windows are added up; None for the networks' device.
        on_window: Called after each window of a model, or with uncertainty of a network.
    """

    n_windows: int = 1
    sum_on: torch.device | None = None
    on_window: Callable[[], None] | None = None

    def __str__(self) -> str:
        windows = f"{count(self.n_windows, 'window')} at a time"
        return f"{windows}, added up on the CPU" if self.sum_on == _CPU else windows


def smaller_batchings(batching: Batching, device: torch.device) -> Iterator[Batching]:
    """The given batching, then those that need less and less memory: half the windows, one, sums on the CPU.

    Example:
        >>> [b.n_windows for b in smaller_batchings(Batching(n_windows=4), torch.device("cpu"))]
        [4, 2, 1]
    """
    yield batching
    while batching.n_windows > 1:
        batching = replace(batching, n_windows=batching.n_windows // 2)
        yield batching
    if device != _CPU and batching.sum_on is None:
        yield replace(batching, sum_on=_CPU)


def prepare_for(model: Model, volume: Volume) -> Prepared:
    """An image as a model needs it, and as the model that guides it does."""
    image, trace = prepare_image(volume, model.plan, model.configuration)
    if model.guide is None:
        return Prepared(image, None, trace)
    coarse = prepare_for(model.guide, volume)
    if model.configuration.guide == "logits":
        coarse = replace(coarse, trace=trace_onto(coarse.trace, trace))
    return Prepared(image, None, trace, coarse)


def segment(
    ensemble: Ensemble,
    prepared: Sequence[Prepared],
    options: PredictOptions,
    case_id: str,
    batching: Batching = Batching(),
    *,
    keep: Keep | None = None,
    observe: Observe | None = None,
    note: Callable[[str], None] = say,
) -> tuple[Segmentation, Batching]:
    """Segment a case; if memory is not enough, again with less at a time.

    Args:
        ensemble: The networks.
        prepared: The case as each member needs it.
        options: Whether to mirror, and what to find besides the mask. With uncertainty the mask differs from the one
            without at ties alone, by rounding.
        case_id: For messages.
        batching: What to compute at once.
        keep: Takes the probabilities of each slab, instead of holding them in memory as a whole.
        observe: Takes each slab of the first member with the mask; begins with the first slab again if memory was not
            enough.
        note: Takes one line for each time that memory was not enough.

    Returns:
        What was found, and the batching that it took.

    Raises:
        DataError: If a network's output is not finite.
        ResourceError: If the least is too much. Errors of another kind pass as they are.
    """
    shortage, before = "", None
    for own in smaller_batchings(batching, ensemble.device):
        if before is not None:
            note(f"{case_id}: not enough memory with {before}; trying again with {own}.")
            if ensemble.device.type == "cuda":
                torch.cuda.empty_cache()
        try:
            with memory_faults(f"predicting {case_id}", _ADVICE):
                found = assemble(
                    *_parts_and_finder(ensemble, prepared, options, own),
                    prepared[0].trace,
                    ensemble.plan.labels,
                    holds_probabilities=options.probabilities and keep is None,
                    keep=keep if options.probabilities else None,
                    observe=observe,
                    maps=ensemble.uncertainty_names if options.uncertainty else (),
                )
                return found, own
        except (ResourceError, MemoryError) as fault:
            shortage, before = str(fault), own  # not the error itself: it would keep the tensors of its frames alive
    raise ResourceError(shortage or f"predicting {case_id}: memory is not enough. {_ADVICE}")


OfMembers = Sequence[Sequence[Slab]]
"""The same rows of the image: by member one slab, or with uncertainty one from each of its networks."""


def _parts_and_finder(
    ensemble: Ensemble, prepared: Sequence[Prepared], options: PredictOptions, batching: Batching
) -> tuple[Iterable[OfMembers], Callable[[OfMembers], SlabFinding]]:
    """The same slabs of all members, and the function that makes one mask of them. Slabs are computed when taken."""
    labels = ensemble.plan.labels
    height = rows_per_slab(labels.n_outputs, prepared[0].trace, batching.sum_on or ensemble.device)
    streams = []
    for member, own in zip(ensemble.members, prepared, strict=True):
        image = _with_guide(member, own, options, batching)
        parts = [replace(member, networks=(n,)) for n in member.networks] if options.uncertainty else [member]
        of_parts = [slabs(logit_rows(part, image, options, batching), image.trace, height) for part in parts]
        streams.append(zip(*of_parts, strict=True))
    find: Callable[[OfMembers], SlabFinding]
    if len(ensemble.members) == 1 and not options.uncertainty:
        find = partial(_find_alone, labels=labels, options=options, temperature=ensemble.temperature)
    else:
        maps = ensemble.uncertainty_names if options.uncertainty else ()
        find = partial(_find_together, labels=labels, options=options, maps=maps, temperature=ensemble.temperature)
    return zip(*streams, strict=True), find


def _with_guide(model: Model, prepared: Prepared, options: PredictOptions, batching: Batching) -> Prepared:
    """For a cascade, the case with the labels that the coarser model predicts as last channel; else as it is."""
    guide = model.guide
    if prepared.coarse is None or guide is None:
        return prepared
    coarse = _with_guide(guide, prepared.coarse, options, batching)
    rows, device = logit_rows(guide, coarse, options, batching), batching.sum_on or guide.device
    found = restore(rows, coarse.trace, guide.plan.labels, device)
    labels = model.plan.labels.encode(found.mask_zyx, "labels of the coarser configuration")
    if model.configuration.guide == "masks":
        labels = prepare_indices(labels, prepared.trace)
    with_labels = np.concatenate([prepared.image_czyx, labels[None].astype(np.float32)])
    return replace(prepared, image_czyx=with_labels, coarse=None)


def logit_rows(model: Model, prepared: Prepared, options: PredictOptions, batching: Batching) -> Iterator[Tensor]:
    """(outputs, Y, X) for each z of the prepared grid, mean over the model's networks."""
    sliding = Sliding(
        patch_zyx=model.configuration.patch_zyx,
        mirrors=_mirrors(model) if options.mirror else (Mirror(),),
        precision=resolve_precision(model.plan.training.precision, model.device),
        n_batch=batching.n_windows,
        sum_on=batching.sum_on,
        n_guides=model.plan.n_inputs(model.configuration) - len(model.plan.channels),
        on_window=batching.on_window,
    )
    return sliding_rows(model.networks, prepared.image_czyx, sliding)


def _mirrors(model: Model) -> list[Mirror]:
    """Mirrored copies that a model averages over.

    Flipped sideways, the left kidney looks like a right one. So the copy's output for the right kidney counts for the
    left, and a guide's channel of the left kidney is given as that of the right.
    """
    plan, n_images = model.plan, len(model.plan.channels)
    swapped, swapped_inputs = {}, {}
    if plan.mirror_swaps:
        sideways = sideways_axis(plan.orientation, plan.axis_order)
        swapped[sideways] = swapped_outputs(plan.labels, plan.mirror_swaps)
        if n_guides := plan.n_inputs(model.configuration) - n_images:
            # Inputs are the images, which keep their places, then one channel for each label but background. The
            # partners are by label with background first, hence label - 1.
            partners = swapped_indices(plan.labels, plan.mirror_swaps)[1 : 1 + n_guides]
            swapped_inputs[sideways] = (*range(n_images), *(n_images + label - 1 for label in partners))
    return mirrors_of(plan.mirror_axes, model.configuration.patch_zyx, swapped, swapped_inputs)


def _find_alone(of_members: OfMembers, *, labels: LabelSet, options: PredictOptions, temperature: float) -> SlabFinding:
    """The mask of one model."""
    ((slab,),) = of_members
    return find_in_slab(slab, labels, with_probabilities=options.probabilities, temperature=temperature)


def _find_together(
    of_members: OfMembers, *, labels: LabelSet, options: PredictOptions, maps: Sequence[str], temperature: float
) -> SlabFinding:
    """The mask of averaged probabilities, and maps of how sure it is."""
    shares_ONYX = _mean_shares(of_members, labels)
    if labels.has_regions:
        numbers = torch.arange(1, 1 + len(shares_ONYX), dtype=torch.int32, device=shares_ONYX.device)
        chosen_NYX = ((shares_ONYX > 0.5) * numbers[:, None, None, None]).amax(0)  # the last one is painted last
    else:
        chosen_NYX = shares_ONYX.argmax(0).int()
    shares_ONYX = apply_temperature(shares_ONYX, temperature, labels)
    found = {}
    if "entropy" in maps:
        found["entropy"] = _to_steps(entropy(shares_ONYX, labels).cpu().numpy())
    if "disagreement" in maps:
        own = [strongest_outputs(of_network, labels) for of_member in of_members for of_network in of_member]
        masks = [mask_of(chosen.cpu().numpy(), labels) for chosen in (chosen_NYX, *own)]
        found["disagreement"] = _to_steps(disagreement(masks[0], masks[1:]))
    half = shares_ONYX.half().cpu().numpy() if options.probabilities else None
    return SlabFinding(of_members[0][0], chosen_NYX, half, found)


def _mean_shares(of_members: OfMembers, labels: LabelSet) -> Tensor:
    """(O, N, Y, X) probabilities, mean over members; over a member's networks the logits are averaged."""
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


def apply_temperature(shares_ONYX: Tensor, temperature: float, labels: LabelSet) -> Tensor:
    """(O, ...) probabilities whose logits are divided by a temperature: flatter above 1, steeper below.

    The largest output stays the largest, and a region stays on its side of one half.
    """
    if temperature == 1:
        return shares_ONYX
    smallest = torch.finfo(shares_ONYX.dtype).tiny
    logits_ONYX = shares_ONYX.clamp(min=smallest).log()
    if labels.has_regions:
        return logits_ONYX.sub_((1 - shares_ONYX).clamp_(min=smallest).log_()).div_(temperature).sigmoid_()
    return logits_ONYX.div_(temperature).softmax(0)


def entropy(shares_ONYX: Tensor, labels: LabelSet) -> Tensor:
    """Entropy of the predicted probabilities, as a share of the largest there is.

    Args:
        shares_ONYX: (O, N, Y, X) probabilities that the mask is made of.
        labels: The structures. Each region has an entropy of its own; the largest counts.

    Returns:
        (N, Y, X), 0 (one output is certain, or every region is certainly present or absent) to 1 (all outputs are
        equally likely, or one region is as likely as not).

    Source:
        Shannon 1948, Bell System Technical Journal 27(3); "predictive entropy" in Gal 2016, PhD thesis, section 3.3.
    """
    parts_ONYX = torch.special.entr(shares_ONYX)
    if not labels.has_regions:
        return parts_ONYX.sum(0) / log(labels.n_outputs)
    return (parts_ONYX + torch.special.entr(1 - shares_ONYX)).amax(0) / log(2)


def disagreement(mask: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Share of networks whose own mask differs from the mask of all.

    Args:
        mask: File values, any shape.
        others: One mask of the same shape for each network.

    Returns:
        Same shape, 0 (all agree) to 1.

    Source:
        The variation ratio (Freeman 1965, Elementary Applied Statistics), there against the most frequent answer.
    """
    n_differ = np.zeros(mask.shape, np.float32)
    for other in others:
        n_differ += other != mask
    return n_differ / np.float32(len(others))


def _to_steps(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Shares 0 to 1 as whole steps, 0 to `SHARE_STEPS`."""
    return np.rint(values * SHARE_STEPS).astype(np.uint8)
