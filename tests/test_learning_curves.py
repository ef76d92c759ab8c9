"""Learning curves: what stands in the picture and in its words, from one epoch and label to a thousand and many."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from segpipe.core.figures import FoldCurves, _running_mean, _thin, learning_curves
from segpipe.core.history import History
from segpipe.core.work import FoldFolder
from segpipe.report.sections import learning_picture
from segpipe.report.work_contents import FoldRun, Run
from segpipe.train.checkpoint import Row
from segpipe.train.show import CurvesFile


def rows_of(n_epochs: int, n_labels: int = 2, interrupted: Sequence[int] = (), left: float = 0.0) -> list[Row]:
    """A minute for each epoch; label k ends at Dice 1 / (k + 1)."""
    rows: list[Row] = []
    for epoch in range(1, n_epochs + 1):
        dice = {f"dice_label {k}": epoch / n_epochs / (k + 1) for k in range(n_labels)}
        row: Row = {"epoch": epoch, "iteration": epoch, "seconds": 60.0 * epoch, "learning_rate": 0.01}
        row |= {"train_loss": 1 / epoch, "validation_loss": 2 / epoch, "mean_patch_dice": sum(dice.values()) / n_labels}
        row |= {"seconds_left": left, "interrupted": int(epoch in interrupted), **dice, "stopped_early": 0}
        rows.append(row)
    return rows


def words(svg: bytes) -> str:
    """Texts of a picture: matplotlib draws them as outlines and keeps them as comments."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.decode(), re.DOTALL))


def run_of(folder: Path, *histories: History | None) -> Run:
    folds = (
        FoldRun(str(k), FoldFolder(folder / f"fold_{k}"), history, (), None) for k, history in enumerate(histories)
    )
    return Run("3d_fullres", tuple(folds), None)


def test_a_row_for_each_fold_with_labels_and_marks():
    early = rows_of(20)
    early[-1]["stopped_early"] = 1
    folds = [
        FoldCurves("fold 0", History.of(rows_of(20, interrupted=(3, 7)))),
        FoldCurves("fold 1", History.of(early)),
        FoldCurves("fold 2", History.of(rows_of(5, left=900.0)), in_training=True),
    ]
    found = words(learning_curves(folds, "svg"))
    for text in (
        "fold 0",
        "fold 1",
        "fold 2",
        "(in training)",
        "label 0",
        "label 1",
        "mean of labels",
        "stopped early",
    ):
        assert text in found, text
    assert found.count("resumed after an interruption") == 1 and "15.0 min" not in found and "15 min" in found
    assert learning_curves(folds, "png").startswith(b"\x89PNG")


def test_of_many_labels_the_worst_are_named_and_the_picture_stays_small():
    folds = [FoldCurves(f"fold {k}", History.of(rows_of(1000, 117))) for k in range(5)]
    svg = learning_curves(folds, "svg")
    found = words(svg)
    assert len(svg) < 600_000
    assert all(f"label {k}\n" in f"{found}\n" for k in (114, 115, 116)) and "label 0\n" not in f"{found}\n"
    assert "mean of 117 labels (grey: middle half and range)" in found


def test_one_epoch_gaps_infinity_and_columns_that_are_missing_can_be_drawn():
    one = rows_of(1, 1)
    lost = [
        row | {"train_loss": math.inf, "dice_label 0": math.nan, "mean_patch_dice": math.nan} for row in rows_of(40)
    ]
    none = [{name: v if "dice" not in name else math.nan for name, v in row.items()} for row in rows_of(40, 9)]
    old = [{"epoch": row["epoch"], "train_loss": row["train_loss"]} for row in rows_of(3)]
    for rows in (one, lost, none, old):
        assert b"<svg" in learning_curves([FoldCurves("fold 0", History.of(rows))], "svg")


def test_thin_and_smoothed_by_hand():
    """Of 401 epochs three are one point: its mean is that of what is known, its place the last of the three."""
    y = np.arange(401.0)
    y[[1, 3, 4, 5]] = np.nan
    x, means = _thin(range(1, 402), y.tolist())
    assert len(x) == 134 and x[:3].tolist() == [3, 6, 9] and x[-1] == 401
    np.testing.assert_equal(means[:3], [1.0, np.nan, 7.0])  # (0 + 2) / 2; nothing; (6 + 7 + 8) / 3
    np.testing.assert_allclose(_running_mean(np.arange(20.0))[[0, 1, 10, 19]], [0, 1, 10, 19])  # of 1, 3, 9 and 1
    np.testing.assert_allclose(_running_mean(np.arange(20.0) ** 2)[[1, 2]], [5 / 3, 30 / 5])  # (0 + 1 + 4) / 3


def test_the_same_in_words(tmp_path):
    unfinished = History.of(rows_of(4, left=7200.0, interrupted=(2,)))
    picture = learning_picture(run_of(tmp_path, History.of(rows_of(10)), None, unfinished, History({"epoch": ()})))
    assert picture is not None
    assert picture.alt == (
        "Loss, patch Dice and learning rate over epochs of training. "
        "fold 0: 10 epochs in 10 min, training loss ends at 0.100, validation loss ends at 0.200, mean patch Dice at "
        "0.750, lowest: label 1, 0.500. "
        "fold 2: 4 epochs in 4 min, training loss ends at 0.250, validation loss ends at 0.500, mean patch Dice at "
        "0.750, lowest: label 1, 0.500, interrupted in epochs 2, still training, about 2 h 00 min left."
    )
    assert picture.caption.endswith("Fold 2 is still training (about 2 h 00 min left).")
    (tmp_path / "fold_2").mkdir()
    (tmp_path / "fold_2" / "scores.csv").touch()  # its time was cut short, and it ended
    again = learning_picture(run_of(tmp_path, History.of(rows_of(10)), None, unfinished))
    assert again is not None and "still training" not in again.alt + again.caption
    assert learning_picture(run_of(tmp_path, None)) is None


def test_a_training_of_some_length_keeps_a_picture_and_a_short_one_none(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"of a training before")
    short = CurvesFile(path, "fold 0", [])
    short(rows_of(1))
    short.close()
    assert not path.exists()
    path.write_bytes(b"of this training, which goes on")
    goes_on = CurvesFile(path, "fold 0", rows_of(3))
    goes_on(rows_of(4))
    assert path.read_bytes().startswith(b"of this")  # too soon for another one
    goes_on.close()
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("left", "stopped", "expected"), [(0.4, 0, False), (5.0, 0, True), (5.0, 1, False)])
def test_a_history_knows_whether_it_is_at_its_end(left, stopped, expected):
    rows = rows_of(2, left=left)
    rows[-1]["stopped_early"] = stopped
    assert History.of(rows).is_unfinished is expected
    assert not History.of([]).is_unfinished


def test_clipped_gradients_have_a_panel_where_an_optimizer_clips(tmp_path: Path):
    rows = rows_of(4)
    assert "Clipped gradients" not in words(learning_curves([FoldCurves("fold 0", History.of(rows))], "svg"))
    rows = [row | {"spikes_stem": math.nan if n == 0 else 0.001 * n, "spikes_head": 0.0} for n, row in enumerate(rows)]
    picture = learning_picture(run_of(tmp_path, History.of(rows)))
    assert picture is not None and "Clipped gradients" in words(picture.content)
    assert "gradients clipped most: stem, 0.30% in an epoch" in picture.alt
