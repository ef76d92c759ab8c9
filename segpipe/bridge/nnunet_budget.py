"""nnunetv2's trainer with a schedule that ends with a budget. Nothing else of its recipe is changed.

Imported late, since nnunetv2 reads its folders from the environment at import.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from segpipe.core.progress import say

_ITERATIONS_PER_EPOCH = 5  # the fewest with one validation iteration each; more epochs give a smoother schedule
_TRAINING_PER_VALIDATION = 5  # nnU-Net's 250 training to 50 validation iterations
_MAX_EPOCHS = 1000  # nnU-Net's own


class BudgetTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnunetv2 ships no types
    """`nnUNetTrainer` that chooses its number of iterations before each epoch, so that time and epochs end together."""

    budget_seconds = 0.0
    n_steps = 0
    seconds_per_iteration = 0.0
    n_iterations_done = 0
    started: float | None = None
    ended: float | None = None

    def fit_to_budget(self, seconds: float, seconds_per_iteration: float) -> None:
        """Choose the number of epochs; must precede `initialize`, which makes the learning-rate schedule of it."""
        self.budget_seconds, self.seconds_per_iteration = seconds, seconds_per_iteration
        self._choose_epochs(seconds / seconds_per_iteration)

    def fit_to_steps(self, n_steps: int) -> None:
        """Choose the number of epochs for a number of iterations, which is kept exactly."""
        self.n_steps = n_steps
        self._choose_epochs(n_steps)

    def _choose_epochs(self, n_iterations: float) -> None:
        self.num_epochs = int(min(_MAX_EPOCHS, max(min(2, n_iterations), n_iterations // _ITERATIONS_PER_EPOCH)))
        self.disable_checkpointing = True  # the final weights are predicted with from memory
        self.logger.plot_progress_png = lambda _folder: None
        say(f"nnunetv2: about {n_iterations:.0f} iterations, {self.num_epochs} epochs")

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        now = time.monotonic()
        if self.started is None:
            self.started = now
        elapsed = now - self.started
        n_epochs_left = self.num_epochs - self.current_epoch
        if self.n_steps:
            n_iterations = (self.n_steps - self.n_iterations_done) / n_epochs_left
        else:
            if self.n_iterations_done:
                self.seconds_per_iteration = elapsed / self.n_iterations_done
            n_iterations = (self.budget_seconds - elapsed) / n_epochs_left / self.seconds_per_iteration
        self.num_iterations_per_epoch = max(1, round(n_iterations))
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // _TRAINING_PER_VALIDATION)
        self.n_iterations_done += self.num_iterations_per_epoch

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self.ended = time.monotonic()
        say(
            f"nnunetv2: epoch {self.current_epoch}/{self.num_epochs}, {self.n_iterations_done} iterations, "
            f"{self.ended - (self.started or 0):.0f} s"
        )

    def measure(self, seconds: float) -> float:
        """Train for about `seconds` and return the seconds per iteration, with its share of a validation iteration."""
        self.initialize()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.network.train()
        self.train_step(next(self.dataloader_train))  # the first one allocates memory and chooses kernels
        started, n_done = time.monotonic(), 0
        while n_done < 2 or time.monotonic() - started < seconds:
            self.train_step(next(self.dataloader_train))
            n_done += 1
        training_seconds = (time.monotonic() - started) / n_done
        started = time.monotonic()
        with torch.no_grad():
            self.network.eval()
            self.validation_step(next(self.dataloader_val))
        return training_seconds + (time.monotonic() - started) / _TRAINING_PER_VALIDATION

    def stop_workers(self) -> None:
        """End the augmentation processes, if there are any."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()

    def report(self) -> dict[str, Any]:
        """Values of the run for run.json."""
        seconds = (self.ended or 0.0) - (self.started or 0.0)
        return {
            "training_seconds": round(seconds, 1),
            "iterations": self.n_iterations_done,
            "epochs": self.num_epochs,
            "seconds_per_iteration": round(seconds / max(1, self.n_iterations_done), 3),
            "batch_size": self.configuration_manager.batch_size,
            "patch_vox_zyx": [int(n) for n in self.configuration_manager.patch_size],
            "n_parameters": sum(p.numel() for p in self.network.parameters()),
        }
