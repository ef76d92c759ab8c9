"""Learning curves of a study whose arms have shares of the training patients."""

from __future__ import annotations

from collections.abc import Sequence

from segpipe.compare.align import align
from segpipe.compare.comparison import Question
from segpipe.compare.learning_curve import LearningCurve, learning_curve
from segpipe.compare.results import Method
from segpipe.compare.study_file import Study, StudyFolder
from segpipe.core.errors import DataError
from segpipe.data.dataset import Dataset
from segpipe.data.splits import Splits
from segpipe.evaluate.metrics import METRICS


def training_sizes(study: Study, folder: StudyFolder) -> dict[str, tuple[int, ...]]:
    """Arms of a learning curve: they differ in their share of the training patients alone.

    Returns:
        For each of these arms and each fold, the patients to train on; empty if no arm has a smaller share.
    """
    kinds = [(arm.preset, arm.set, arm.configuration) for arm in study.arms.values() if arm.training_patients < 1]
    dataset, sizes = Dataset.load(folder.base.dataset), {}
    for name, arm in study.arms.items():
        if kinds and arm.is_trained_here and (arm.preset, arm.set, arm.configuration) == kinds[0]:
            splits = Splits.load(folder.seed(name, study.seeds[0]).splits)
            trained = [{dataset.by_id[case].patient_id for case in splits.folds[fold].train} for fold in study.folds]
            sizes[name] = tuple(map(len, trained))
    return sizes


def learning_curves(
    study: Study, folder: StudyFolder, methods: Sequence[Method], question: Question
) -> tuple[dict[str, LearningCurve], list[str]]:
    """Learning curves of a study by metric, for twice as many patients, and a sentence where there is none."""
    sizes = training_sizes(study, folder)
    arms = [method for method in methods if method.name in sizes]
    curves, notes = {}, []
    for metric in question.margins if sizes else ():
        if METRICS[metric].kind != "difference":
            try:
                aligned = align(arms, metric, question.policy, labels=question.labels)
                curves[metric] = learning_curve(aligned, sizes, None, question.seed)
            except DataError as fault:
                notes.append(f"No learning curve of {METRICS[metric].title}: {fault}")
    return curves, notes
