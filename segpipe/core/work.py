"""Paths in a work folder. The only file that knows these names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.errors import UsageError
from segpipe.core.text import command_text

CALIBRATION_FILE = "calibration.json"


def preferred_configuration(names: Iterable[str]) -> str | None:
    """The configuration that is meant if none is named: the only one; of several 3d_fullres, else 2d, else the first.

    Args:
        names: Configurations that are planned or trained, in order.

    Returns:
        One of the names; None if there is none.

    Example:
        >>> preferred_configuration(["2d", "3d_fullres", "3d_lowres"]), preferred_configuration(["3d_lowres", "mine"])
        ('3d_fullres', '3d_lowres')
    """
    known = list(names)
    return next((name for name in ("3d_fullres", "2d", *known) if name in known), None)


@dataclass(frozen=True)
class FoldFolder:
    """runs/<configuration>/fold_<k>."""

    path: Path

    @property
    def plan(self) -> Path:
        """The plan this fold was trained with."""
        return self.path / "plan.yaml"

    @property
    def split(self) -> Path:
        """The cases this fold was trained on and those kept for validation."""
        return self.path / "split.json"

    @property
    def environment(self) -> Path:
        """The environment of the training: versions, system, device."""
        return self.path / "environment.json"

    @property
    def trained_on(self) -> Path:
        """Statistics of the training cases, to compare new images with."""
        return self.path / "trained_on.json"

    @property
    def weights(self) -> Path:
        """Weights for prediction."""
        return self.path / "checkpoint.safetensors"

    @property
    def pretrained_on(self) -> Path:
        """The cases whose images the first weights were pre-trained on, if they were."""
        return self.path / "pretrained_on.json"

    @property
    def state(self) -> Path:
        """Everything needed to resume training."""
        return self.path / "state.pt"

    @property
    def previous_state(self) -> Path:
        """The state before it, in case the newest is damaged."""
        return self.path / "state.previous.pt"

    @property
    def snapshots(self) -> Path:
        """Weights kept along the training, if the plan asks for them."""
        return self.path / "snapshots"

    @property
    def trajectory(self) -> Path:
        """The analysis of those weights; its picture has the same name and ends in `.png`."""
        return self.path / "trajectory.json"

    @property
    def variance(self) -> Path:
        """Running statistics of its norms against real ones."""
        return self.path / "variance.json"

    @property
    def initial(self) -> Path:
        """Weights that training starts from, if the plan names `fold` as their source."""
        return self.path / "initial.safetensors"

    @property
    def pruning_report(self) -> Path:
        """Record of the pruning that made those weights."""
        return self.path / "pruning.json"

    @property
    def pruning_trials(self) -> Path:
        """Folder of the analysis of pruning: a table for each setting."""
        return self.path / "pruning"

    @property
    def guided_by(self) -> Path:
        """The coarse weights that guided the training of a cascade."""
        return self.path / "guided_by.json"

    @property
    def divergence_note(self) -> Path:
        """The message about a loss that was not finite; the saved states are older."""
        return self.path / "diverged.txt"

    @property
    def crash(self) -> Path:
        """Traces of a training that died; it exists while a training runs."""
        return self.path / "crash.txt"

    @property
    def history(self) -> Path:
        """One line for each epoch."""
        return self.path / "history.csv"

    @property
    def log(self) -> Path:
        """The printed lines."""
        return self.path / "log.txt"

    @property
    def curves(self) -> Path:
        """The history as a picture, if training takes longer than drawing it."""
        return self.path / "learning_curves.png"

    @property
    def tensorboard(self) -> Path:
        """Event files, if requested."""
        return self.path / "tensorboard"

    @property
    def validation(self) -> Path:
        """Masks of the fold's validation cases."""
        return self.path / "validation"

    @property
    def calibration(self) -> Path:
        """Folder of counts of their probabilities; in the folder of the masks, since they go with them."""
        return self.validation / "calibration"

    @property
    def scores(self) -> Path:
        """Scores of those masks."""
        return self.path / "scores.csv"


@dataclass(frozen=True)
class Work:
    """A work folder."""

    path: Path

    @property
    def dataset(self) -> Path:
        """The dataset as it was understood."""
        return self.path / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        """The fingerprint."""
        return self.path / "fingerprint.json"

    @property
    def data_check(self) -> Path:
        """The result of `segpipe check`."""
        return self.path / "data_check.json"

    @property
    def measured_cases(self) -> Path:
        """Measurements of each case, so that only changed cases are measured again."""
        return self.path / "fingerprint_cases.npz"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.path / "plan.yaml"

    @property
    def splits(self) -> Path:
        """The folds."""
        return self.path / "splits.json"

    @property
    def nnunet_dataset(self) -> Path:
        """nnU-Net's dataset.json, if the plan was made from nnU-Net's files instead of images."""
        return self.path / "nnunet_dataset.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report" / "index.html"

    @property
    def plan_page(self) -> Path:
        """The page about the plan: data, decisions, costs."""
        return self.path / "report" / "plan.html"

    def prepared_cases(self, digest: str) -> Path:
        """The cases prepared in one way."""
        return self.path / "prepared" / digest

    def guides(self, prepared: Path, configuration: str) -> Path:
        """Predictions of a coarser configuration for prepared cases, on their grids."""
        return prepared.with_name(f"{prepared.name}_{configuration}")

    @property
    def package_list(self) -> Path:
        """The list of parts, in a package that was opened; a work folder has none."""
        return self.path / "manifest.json"

    def run(self, configuration: str) -> Path:
        """All folds of a configuration."""
        return self.path / "runs" / configuration

    def fold(self, configuration: str, fold: str) -> FoldFolder:
        """One fold, `0`, `1`, … or `all`."""
        return FoldFolder(self.run(configuration) / f"fold_{fold}")

    def calibration(self, configuration: str) -> Path:
        """Calibration of the out-of-fold probabilities."""
        return self.run(configuration) / CALIBRATION_FILE

    def scores(self, configuration: str) -> Path:
        """Out-of-fold scores of all cases."""
        return self.run(configuration) / "scores.csv"

    def require_plan(self) -> None:
        """Refuse a folder that is not a planned work folder.

        Raises:
            UsageError: If the plan is not there.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: is a file, expected a work folder. Give the one that `segpipe plan` wrote.")
        if not self.plan.is_file():
            raise UsageError(
                f"{self.path}: no plan.yaml in it. Create one with "
                f"`{command_text('segpipe', 'plan', 'DATA', '-o', str(self.path))}`."
            )
