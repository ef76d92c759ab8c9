"""Calibration over patients: count while cases are predicted, fit a temperature, measure the gap without its bias.

A case is judged on a sample of voxels, so that time and memory do not grow with the image. Its counts for every
temperature of a list are all that is kept.
"""

# O outputs, L labels, T temperatures, B bins, P patients.
from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.stats import t as student_t

from segpipe.core.errors import DataError
from segpipe.core.files import whole_file
from segpipe.core.labels import IGNORE_INDEX, LabelSet
from segpipe.core.probabilities import Reliability
from segpipe.core.text import count
from segpipe.evaluate.calibration import N_BINS, NEAR_MM
from segpipe.evaluate.intervals import FEWEST_PATIENTS

TEMPERATURES = 2.0 ** (np.arange(-12, 19) / 6)  # 0.25 to 8, each 12 % above the last: half a step costs no likelihood
UNCHANGED = 12  # its place of temperature 1
_MAX_VOXELS = 1 << 15  # judged in a case, all labels together
_MAX_VOXELS_OF_LABEL = 1 << 10  # a bin's share then has a standard error of 0.016 at most; patients differ by more
_BLOCK = 1 << 18  # logits of several temperatures at once: what a processor's cache holds
_CONFIDENCE = 0.95
_N_FLIPS = 1999


@dataclass(frozen=True, eq=False)
class CaseCounts:
    """Counts of a case, for every temperature.

    Args:
        n_vox: (T, L, B) voxels judged, by temperature, label and bin of the label's probability.
        n_true_vox: (T, L, B) those of them that are of the label.
        total_probability: (T, L, B) sum of their probabilities.
        nll: (T, L) mean −ln(probability of the truth); NaN of a label without voxels.
    """

    n_vox: NDArray[np.int32]
    n_true_vox: NDArray[np.int32]
    total_probability: NDArray[np.float32]
    nll: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write the counts, compressed.

        Raises:
            ResourceError, SetupError: If they cannot be written.
        """
        with whole_file(path) as temporary:
            np.savez_compressed(temporary, **{part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def load(cls, path: Path, n_labels: int) -> CaseCounts:
        """Read the counts.

        Raises:
            DataError: If the file is missing, damaged or of other labels.
        """
        shape = (len(TEMPERATURES), n_labels, N_BINS)
        try:
            with np.load(path) as stored:
                found = cls(**{part.name: stored[part.name] for part in fields(cls)})
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as fault:
            raise DataError(
                f"{path}: cannot be read as counts ({fault}). Remove it and rerun `segpipe train`."
            ) from None
        shapes = (found.n_vox.shape, found.n_true_vox.shape, found.total_probability.shape, (*found.nll.shape, N_BINS))
        if set(shapes) != {shape}:
            raise DataError(f"{path}: counts {shapes}, expected {shape}. Remove it and rerun `segpipe train`.")
        return found


class CaseCounter:
    """Counts how probabilities agree with the reference, while the slabs of a case are predicted.

    Judged are, for each label, voxels within `NEAR_MM` of it in the reference, and all that the mask gives to it: a
    uniform sample of both. Far background is left out, as in `evaluate.calibration`; what is near a false alarm but
    not in it is too, since no more than a slab of the mask is known.

    Args:
        reference_zyx: (Z, Y, X) inside values of the voxels that are predicted, contiguous.
        spacing_mm: Of these voxels.
        labels: The structures.
        case_id: Seeds the sample.
    """

    def __init__(self, reference_zyx: NDArray[np.int16], spacing_mm: Sequence[float], labels: LabelSet, case_id: str):
        seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8])
        self._random, self.labels = np.random.default_rng(seed), labels
        self._reference, self._row_vox = reference_zyx.reshape(-1), int(np.prod(reference_zyx.shape[1:]))
        n_wanted = min(_MAX_VOXELS_OF_LABEL, _MAX_VOXELS // len(labels.labels))
        boxes = ndimage.find_objects(reference_zyx, len(labels.values))
        self._samples = [
            _LabelSample(reference_zyx, spacing_mm, labels.indices_of(label), boxes, n_wanted, self._random)
            for label in labels.labels
        ]
        self._begin()

    def _begin(self) -> None:
        shape = (len(TEMPERATURES), len(self.labels.labels), N_BINS)
        self._n_vox, self._n_true_vox = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self._total, self._nll = np.zeros(shape, np.float32), np.zeros(shape[:2])

    def choose(self, start: int, mask_NYX: NDArray[Any]) -> list[NDArray[np.intp]]:
        """Choose the voxels of a slab to judge, for each label; flat places in the slab, ascending.

        Args:
            start: The first row; 0 begins again, since a case may be predicted anew with less memory.
            mask_NYX: File values.
        """
        if start == 0:
            self._begin()
        mask, first = mask_NYX.reshape(-1), start * self._row_vox
        reference = self._reference[first : first + mask.size]
        found = np.flatnonzero((mask != self.labels.background_value) & (reference != IGNORE_INDEX))
        luck = self._random.random(found.size)
        chosen = []
        for label, sample in zip(self.labels.labels, self._samples, strict=True):
            own = found[luck < sample.rate]
            far = sample.not_near(own[np.isin(mask[own], label.values)] + first)
            if far.size > sample.n_wanted:
                far = self._random.choice(far, sample.n_wanted, replace=False)
            ends = np.searchsorted(sample.near, (first, first + mask.size))
            chosen.append(np.sort(np.concatenate([sample.near[slice(*ends)], far])) - first)
        return chosen

    def add(self, start: int, places: Sequence[NDArray[np.intp]], logits_On: NDArray[np.float32]) -> None:
        """Count the chosen voxels.

        Args:
            start: The first row of the slab.
            places: As chosen.
            logits_On: (O, n) at the places of all labels, each once, ascending.
        """
        union = np.unique(np.concatenate(places))
        truth = self._reference[union + start * self._row_vox]
        of_label = [np.searchsorted(union, own) for own in places]
        n_labels, sizes = len(places), [own.size for own in places]
        label = np.repeat(np.arange(n_labels), sizes)
        voxel = np.concatenate(of_label)
        output = label + (not self.labels.has_regions)
        is_true_Ln = np.stack([np.isin(truth, self.labels.indices_of(own)) for own in self.labels.labels])
        is_true = is_true_Ln[label, voxel]
        logits_On = np.ascontiguousarray(logits_On)  # indexing turns its memory, which makes sums over outputs slow
        if not self.labels.has_regions:
            logits_On = logits_On - logits_On.max(axis=0)
        at_once = max(1, _BLOCK // max(1, logits_On.size))
        for start in range(0, len(TEMPERATURES), at_once):
            part = slice(start, start + at_once)
            temperatures = TEMPERATURES[part].astype(np.float32)[:, None, None]
            shares_TOn, nll_TLn = _shares_and_nll(logits_On / temperatures, truth, is_true_Ln, self.labels)
            p_Tn = shares_TOn[:, output, voxel]
            first = np.arange(len(p_Tn))[:, None] * n_labels
            at = (first + label) * N_BINS + np.minimum((p_Tn * N_BINS).astype(np.intp), N_BINS - 1)
            shape = (len(p_Tn), n_labels, N_BINS)
            n_places = first.size * n_labels * N_BINS
            self._n_vox[part] += np.bincount(at.ravel(), minlength=n_places).reshape(shape)
            self._n_true_vox[part] += np.bincount(at[:, is_true].ravel(), minlength=n_places).reshape(shape)
            self._total[part] += np.bincount(at.ravel(), p_Tn.ravel(), n_places).reshape(shape)
            nll_Tn = nll_TLn[:, label, voxel]
            self._nll[part] += np.bincount((first + label).ravel(), nll_Tn.ravel(), first.size * n_labels).reshape(
                len(p_Tn), n_labels
            )

    @property
    def counts(self) -> CaseCounts:
        """The counts of the slabs so far."""
        n = self._n_vox.sum(axis=-1)
        nll = np.divide(self._nll, n, out=np.full(n.shape, np.nan), where=n > 0)
        return CaseCounts(self._n_vox, self._n_true_vox, self._total, nll)


class _LabelSample:
    """The sample of a label: voxels near it in the reference, and the share of all voxels that are taken.

    Args:
        reference_zyx, spacing_mm: As for `CaseCounter`.
        indices: Inside values of the label.
        boxes: Of each inside value, from 1; None where it is absent.
        n_wanted: Voxels at most.
        random: Chooses.
    """

    def __init__(
        self,
        reference_zyx: NDArray[np.int16],
        spacing_mm: Sequence[float],
        indices: tuple[int, ...],
        boxes: Sequence[tuple[slice, ...] | None],
        n_wanted: int,
        random: np.random.Generator,
    ) -> None:
        self.n_wanted, self.rate, self.near = n_wanted, 1.0, np.zeros(0, np.intp)
        self._shape_zyx, self._spacing_mm = reference_zyx.shape, np.asarray(spacing_mm)
        self._surface: KDTree | None = None
        own = [box for index in indices if (box := boxes[index - 1]) is not None]
        if not own:
            return
        low = np.min([[edge.start for edge in box] for box in own], axis=0)
        high = np.max([[edge.stop for edge in box] for box in own], axis=0)
        inside = np.isin(reference_zyx[tuple(map(slice, low, high))], indices)
        surface = np.argwhere(inside & ~ndimage.binary_erosion(inside)) + low
        self._surface = KDTree(surface * self._spacing_mm)
        margin = (NEAR_MM / self._spacing_mm).astype(int) + 1
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, reference_zyx.shape)
        shape = tuple(high - low)
        n_box = int(np.prod(shape))
        self.rate = min(1.0, n_wanted / n_box)
        drawn = np.arange(n_box) if self.rate == 1 else random.choice(n_box, n_wanted, replace=False)
        corner = np.array(np.unravel_index(drawn, shape)) + low[:, None]
        flat = np.ravel_multi_index(tuple(corner), self._shape_zyx)
        values = reference_zyx.reshape(-1)[flat]
        is_near = np.isin(values, indices)
        outside = np.flatnonzero(~is_near & (values != IGNORE_INDEX))
        is_near[outside] = self._is_near(corner[:, outside])
        self.near = np.sort(flat[is_near])

    def _is_near(self, index_zyx: NDArray[np.intp]) -> NDArray[np.bool_]:
        if self._surface is None or not index_zyx.size:
            return np.zeros(index_zyx.shape[1], bool)
        points_mm = index_zyx.T * self._spacing_mm
        distances_mm, _ = self._surface.query(points_mm, distance_upper_bound=np.nextafter(NEAR_MM, np.inf))
        return np.isfinite(distances_mm)

    def not_near(self, flat: NDArray[np.intp]) -> NDArray[np.intp]:
        """Voxels of some that are farther from the label in the reference than `NEAR_MM`."""
        is_near = self._is_near(np.array(np.unravel_index(flat, self._shape_zyx)))
        return flat[~is_near]


def _shares_and_nll(
    logits_TOn: NDArray[np.float32], truth: NDArray[np.int16], is_true_Ln: NDArray[np.bool_], labels: LabelSet
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities (T, O, n), and for each label −ln(probability of the truth) (T, L, n): of all labels, or a region.

    Logits of labels are 0 at most.
    """
    if labels.has_regions:
        softplus = np.logaddexp(np.float32(0), -logits_TOn)  # −ln(probability)
        return np.exp(-softplus), softplus + np.where(is_true_Ln, np.float32(0), logits_TOn)
    powers = np.exp(logits_TOn)
    total = powers.sum(axis=1, keepdims=True)
    nll = np.log(total) - logits_TOn[:, truth.astype(np.intp), np.arange(len(truth))][:, None]
    return powers / total, np.broadcast_to(nll, (len(nll), *is_true_Ln.shape))


def fit_temperature(nll_PTL: NDArray[np.float64]) -> int:
    """Place in `TEMPERATURES` of the one that makes the truth most likely.

    Args:
        nll_PTL: (P, T, L) of each patient, NaN where it has no voxel of a label. Labels count equally, and in a label
            its patients.

    Returns:
        `UNCHANGED` if nothing counts.

    Source:
        Guo et al. 2017, ICML: logits divided by one number that minimises the likelihood on held-out data. It changes
        neither which output is largest nor which region is above one half. Theirs is over images, ours over voxels near
        each label, and searched in a list, since counts are kept instead of logits.
    """
    counts = ~np.isnan(nll_PTL)
    n_TL = counts.sum(axis=0)
    means_TL = np.divide(np.nansum(nll_PTL, axis=0), n_TL, out=np.full(n_TL.shape, np.nan), where=n_TL > 0)
    known = means_TL[:, ~np.isnan(means_TL).any(axis=0)]
    return int(known.mean(axis=1).argmin()) if known.size else UNCHANGED


def reliability(shares_PB: NDArray[np.float64], true_PB: NDArray[np.float64], p_PB: NDArray[np.float64]) -> Reliability:
    """Gap between probabilities and frequencies, with a 95 % interval over patients.

    Args:
        shares_PB: (P, B) share of each patient's voxels by bin, 1 over all bins; P is at least 1.
        true_PB: (P, B) share of its voxels that are in the bin and of the label.
        p_PB: (P, B) sum of the probabilities in the bin over the number of its voxels.

    Source:
        The gap is always positive, so chance adds to it (Bröcker 2012, Climate Dynamics 39; Kumar et al. 2019,
        NeurIPS). They take voxels for independent; here patients are the units. Each patient's gaps get their signs
        from the other patients: a sign that is chance then adds nothing on average, and one that is wrong subtracts. On
        average the true gap thus lies between the debiased and the plain one, and the interval goes from the lower end
        of the first to the upper end of the second, each by Student's t over patients. The lower end is 0 unless the
        gap is larger than chance makes it: `benchmarks/simulate_calibration.py` has the coverage.
    """
    n_patients = len(shares_PB)
    gaps_PB = p_PB - true_PB
    total_B = gaps_PB.sum(axis=0)
    plain = float(np.abs(total_B).sum() / n_patients)
    of_patient = (np.sign(total_B - gaps_PB) * gaps_PB).sum(axis=1)
    debiased = float(of_patient.mean()) if n_patients > 1 else plain
    low, high, note = None, None, f"{count(n_patients, 'patient')}: too few for an interval of the gap"
    if n_patients >= FEWEST_PATIENTS:
        half = float(student_t.ppf((1 + _CONFIDENCE) / 2, n_patients - 1) * of_patient.std(ddof=1) / n_patients**0.5)
        low, high, note = max(0.0, debiased - half), min(1.0, plain + half), ""
        low = low if _differs_from_chance(gaps_PB) else 0.0
    share_B = shares_PB.mean(axis=0)
    means = [
        tuple(float(value / share) if share else None for value, share in zip(part.mean(axis=0), share_B, strict=True))
        for part in (p_PB, true_PB)
    ]
    return Reliability(
        ece=plain,
        ece_debiased=debiased,
        low=low,
        high=high,
        note=note,
        share=tuple(share_B.tolist()),
        probability=means[0],
        frequency=means[1],
    )


def _differs_from_chance(gaps_PB: NDArray[np.float64]) -> bool:
    """True if fewer than 5 % of the gaps that random signs of the patients give are as large as the one found."""
    found = np.abs(gaps_PB.sum(axis=0)).sum()
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (_N_FLIPS, len(gaps_PB)))
    as_large = np.abs(signs @ gaps_PB).sum(axis=1) >= found * (1 - 1e-9)  # rounding, of the signs as they are
    return bool((as_large.sum() + 1) / (_N_FLIPS + 1) <= 1 - _CONFIDENCE)
