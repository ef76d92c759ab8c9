"""Compare sites by what trained networks see in their cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segpipe.analyse.sites import pair_cosines, pooled_features, similarity_png
from segpipe.core.errors import UsageError
from segpipe.core.files import whole_file
from segpipe.core.records import Record
from segpipe.core.text import count
from segpipe.core.work import FoldFolder
from segpipe.evaluate.groups import SITE, UNKNOWN, read_cases
from segpipe.networks.device import resolve_device
from segpipe.pipeline.plan import PlannedWork, default_configuration
from segpipe.pipeline.requests import Machine
from segpipe.pipeline.train import numbered_folds, open_fold, prepared_cases
from segpipe.predict.model import load_out_of_fold

_NAME = "sites"  # of the files in the configuration's folder


class SiteSimilarity(Record):
    """Cosines between sites.

    Args:
        configuration: Whose networks.
        folds: Whose validation cases, each seen by the network that was not trained on them.
        sites: Names, in order.
        n_cases: Of each site.
        cosines: Row by row: mean cosine of pairs of cases of different patients, one of either site, in one fold; null
            where there is no such pair.
        n_pairs: Of each entry.
        notes: Sentences for a person.
    """

    configuration: str
    folds: tuple[str, ...]
    sites: tuple[str, ...]
    n_cases: tuple[int, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    n_pairs: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SitesRequest:
    """Sites to compare.

    Args:
        folder: A work folder.
        configuration: Which; None for the default one.
        folds: Names of folds; empty for all that are trained.
        cases: A table of cases; None: sites are those of the dataset.
        by: Its column that names the site, scanner or other group.
        machine: Where to compute.
    """

    folder: Path
    configuration: str | None
    folds: tuple[str, ...]
    cases: Path | None
    by: str
    machine: Machine


@dataclass(frozen=True)
class SitesJob:
    """An analysis that was checked: trained folds, and the site of each case."""

    request: SitesRequest
    planned: PlannedWork
    configuration: str
    folders: dict[str, FoldFolder]
    sites: dict[str, str]


def resolve(request: SitesRequest) -> SitesJob:
    """Find trained folds and sites.

    Raises:
        UsageError: If there is no such folder, configuration or trained fold, if it is a cascade, or there are fewer
            than two sites.
        DataError: If the table cannot be read.
    """
    planned = PlannedWork.load(request.folder)
    name = default_configuration(planned.plan, request.configuration)
    if planned.plan.configurations[name].previous is not None:
        raise UsageError(f"-c {name}: a cascade sees labels beside images. Choose the configuration that guides it.")
    folders = numbered_folds(planned.work, name, request.folds)
    if request.cases is not None:
        table = read_cases(request.cases, (request.by,)).groups[request.by]
    elif request.by == SITE:
        table = {case.case_id: case.site or "" for case in planned.dataset.cases}
    else:
        raise UsageError(
            f"--by {request.by}: the dataset knows sites alone. Add --cases with a table that has this column."
        )
    seen = {case_id for fold in folders for case_id in planned.splits.folds[int(fold)].validation}
    sites = {case_id: table.get(case_id) or UNKNOWN for case_id in seen}
    if len(set(sites.values())) < 2:
        raise UsageError(
            f"{request.cases or planned.work.dataset}: all {count(len(sites), 'validation case')} are of one "
            f"{request.by} ({next(iter(sites.values()), UNKNOWN)}), expected two or more. Name others with --cases and "
            "--by."
        )
    return SitesJob(request, planned, name, folders, sites)


def run(job: SitesJob) -> SiteSimilarity:
    """Measure, and write `sites.json` and `sites.png` into the configuration's folder.

    Raises:
        UsageError: If weights are damaged, or the network has no encoder of its own.
        DataError: If a case cannot be read.
    """
    planned, name, machine = job.planned, job.configuration, job.request.machine
    cases, guides = prepared_cases(planned, name, machine)
    patients = {case.case_id: case.patient_id for case in planned.dataset.cases}
    pairs: dict[tuple[str, str], list[float]] = {}
    for fold, folder in job.folders.items():
        model = load_out_of_fold(folder, resolve_device(machine.device))
        features = {}
        for case in open_fold(cases, planned.splits, int(fold), machine, guides).validation:
            pooled = pooled_features(model.networks[0], case.image, model.configuration.patch_zyx)
            if pooled is None:
                kind = model.configuration.network.kind
                raise UsageError(
                    f"{folder.plan}: kind {kind!r} has no encoder of segpipe's, whose features could be read."
                )
            features[case.case_id] = pooled
        for key, cosines in pair_cosines(features, job.sites, patients).items():
            pairs.setdefault(key, []).extend(cosines)
    names = sorted(set(job.sites.values()))
    found = _similarity(job, names, pairs)
    path = planned.work.run(name) / f"{_NAME}.json"
    matrix = np.array([[math.nan if c is None else c for c in row] for row in found.cosines])
    with whole_file(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(similarity_png(names, matrix, f"{planned.plan.dataset}, {name}"))
    found.save(path)
    return found


def _similarity(job: SitesJob, names: Sequence[str], pairs: dict[tuple[str, str], list[float]]) -> SiteSimilarity:
    table = [[pairs.get((min(a, b), max(a, b)), []) for b in names] for a in names]
    means = tuple(tuple(float(np.mean(values)) if values else None for values in row) for row in table)
    within = [value for key, values in pairs.items() if key[0] == key[1] for value in values]
    between = [value for key, values in pairs.items() if key[0] != key[1] for value in values]
    notes = []
    if within and between:
        notes.append(
            f"Pairs of one {job.request.by} have a mean cosine of {np.mean(within):.2f}, pairs of two "
            f"{np.mean(between):.2f}."
        )
    if any(len(values) < 2 for row in table for values in row):
        notes.append("Some entries have fewer than two pairs; they say little.")
    return SiteSimilarity(
        configuration=job.configuration,
        folds=tuple(job.folders),
        sites=tuple(names),
        n_cases=tuple(sum(site == name for site in job.sites.values()) for name in names),
        cosines=means,
        n_pairs=tuple(tuple(len(values) for values in row) for row in table),
        notes=tuple(notes),
    )


def sites_text(found: SiteSimilarity) -> str:
    """Write the matrix as lines for a terminal."""
    width = max(7, *(len(name) for name in found.sites))
    lines = [
        f"{found.configuration} folds {', '.join(found.folds)}: mean cosine of deepest features between cases",
        "  " + " " * width + "  cases" + "".join(f"  {name:>{width}}" for name in found.sites),
    ]
    for name, n, row in zip(found.sites, found.n_cases, found.cosines, strict=True):
        cells = "".join(f"  {'-' if value is None else format(value, '.2f'):>{width}}" for value in row)
        lines.append(f"  {name:<{width}}  {n:>5}{cells}")
    return "\n".join(lines)
