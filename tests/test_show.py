"""What a person sees of a training."""

from __future__ import annotations

import sys

import torch

from segpipe.train import show
from segpipe.train.show import EpochBar, epoch_line, peak_memory_bytes

ROW = {
    "epoch": 3,
    "train_loss": 0.4,
    "validation_loss": 0.55,
    "mean_patch_dice": 0.45,
    "iterations_per_second": 12.345,
    "wait_share": 0.021,
    "peak_memory_bytes": 3 * 2**29,
    "seconds_left": 5400.0,
}


def test_a_line_with_few_labels_names_each():
    assert epoch_line(ROW | {"dice_a": 0.9, "dice_b": 0.0}, "0", 20) == (
        "fold 0  epoch 3/20  loss 0.400 (validation 0.550)  patch Dice mean 0.450: a 0.900 b 0.000  12.35 it/s  "
        "2% waiting for data  1.5 GiB  90 min left"
    )


def test_a_line_with_many_labels_gives_the_worst_and_counts():
    dice = {f"dice_organ_{n}": n / 116 for n in range(117)} | {"dice_organ_5": float("nan"), "dice_organ_9": 0.0}
    line = epoch_line(ROW | dice, "0", 20)
    assert (
        "mean 0.450 of 116 labels: 2 at 0, 1 not in the patches, worst organ_0 0.000 organ_9 0.000 organ_1 0.009"
        in line
    )
    assert len(line) < 300


def test_one_label_needs_no_mean_and_an_epoch_beyond_the_plan_no_smaller_total():
    line = epoch_line(ROW | {"dice_a": 0.9}, "all", 2)
    assert "fold all  epoch 3/3 " in line and "patch Dice a 0.900" in line


def test_memory_is_at_least_what_is_held():
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    assert peak_memory_bytes(torch.device("cpu")) >= max(before, block.nbytes)


def test_a_long_epoch_gives_a_sign_of_life_without_a_terminal(capsys, monkeypatch):
    bar = EpochBar()
    bar.show(0.1, lambda: "too early")
    monkeypatch.setattr(show, "_SECONDS_BETWEEN_SIGNS", 0.0)
    bar.show(0.5, lambda: "epoch 1/3  2.00 it/s")
    bar.close()
    assert capsys.readouterr().err == "epoch 1/3  2.00 it/s  50% of the epoch\n"


def test_on_a_terminal_a_bar_comes_and_goes(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = EpochBar()
    bar.show(0.25, lambda: "fold [0]")  # brackets are not markup
    bar.close()
    bar.close()
    shown = capsys.readouterr().err
    assert "fold [0]" in shown and "25%" in shown and shown.endswith("\x1b[2K")  # the bar's line is cleared
