"""train/schedule.py"""

import pytest

from segpipe.plan.training import Training
from segpipe.train.schedule import Progress, Schedule


def at(iteration: int, seconds: float = 0.0, *ends: tuple[int, float]) -> Progress:
    """Somewhere in a training whose epochs ended at these iterations and seconds."""
    rows = [{"epoch": n, "iteration": i, "seconds": s} for n, (i, s) in enumerate(ends, 1)]
    return Progress(iteration, len(ends), seconds, rows)


def test_a_schedule_by_hand():
    by_epochs = Schedule(Training(epochs=4, iterations_per_epoch=10))
    assert by_epochs.n_epochs == 4 and by_epochs.progress(at(10)) == 0.25
    assert by_epochs.share_of_epoch(at(15, 0, (10, 1.0))) == 0.5
    assert not by_epochs.is_over(at(39), 0) and by_epochs.is_over(at(40), 0)
    by_steps = Schedule(Training(epochs=4, iterations_per_epoch=10, iterations=25))
    assert by_steps.n_epochs == 3 and by_steps.is_over(at(25), 0) and by_steps.progress(at(5)) == 0.2
    assert by_steps.seconds_left(at(5, 3.0)) == pytest.approx(12)  # a fifth took 3 s


def test_a_time_budget_by_hand():
    hour = Schedule(Training(time_budget_seconds=3600, validation_iterations=50, iterations_per_epoch=250))
    assert hour.n_epochs == 20 and hour.progress(at(1, 900)) == 0.25  # 180 s each
    assert hour.share_of_epoch(at(30, 1090, (20, 1000.0))) == 0.5
    assert hour.is_over(at(1, 3590), seconds_to_finish=10) and not hour.is_over(at(1, 3590), 9)
    assert [hour.validation_iterations(n) for n in (1, 100, 9999)] == [1, 20, 50]  # a fifth of the steps
    day = Schedule(Training(time_budget_seconds=86400))
    assert day.n_epochs == 288  # 5 minutes each
