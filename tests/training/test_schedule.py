"""Steps, epochs and learning rates."""

import pytest

from mav.pipeline.training.schedule import Schedule


@pytest.mark.parametrize(
    ("step", "total", "warmup", "rate"),
    [
        (0, 10, 2, 0.5),
        (1, 10, 2, 1.0),
        (2, 10, 2, 1.0),
        (3, 10, 2, 0.875),
        (9, 10, 2, 0.125),
        (0, 4, 0, 1.0),
        (3, 4, 0, 0.25),
        (2, 3, 5, 0.6),
        (0, 1, 0, 1.0),
    ],
)
def test_learning_rate(step: int, total: int, warmup: int, rate: float) -> None:
    for peak in (1.0, 2e-4):
        schedule = Schedule(epoch_steps=(total,), peak=peak, warmup=warmup)
        assert schedule.learning_rate(step) == pytest.approx(peak * rate)


@pytest.mark.parametrize(("total", "warmup"), [(9, 0), (10, 1), (55, 5), (5000, 100)])
def test_warmup_is_a_tenth_of_the_steps_at_most_a_hundred(total: int, warmup: int) -> None:
    schedule = Schedule(epoch_steps=(total,), peak=1.0)
    assert schedule.learning_rate(warmup) == 1.0
    assert all(schedule.learning_rate(step) < 1.0 for step in range(warmup - 1))


def test_epochs_may_have_any_number_of_steps() -> None:
    schedule = Schedule(epoch_steps=(2, 3, 1), peak=1.0)
    assert schedule.total == 6
    assert [schedule.position(step) for step in range(7)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (3, 0),
    ]
    assert [schedule.epochs(step) for step in range(7)] == pytest.approx(
        [0, 0.5, 1, 4 / 3, 5 / 3, 2, 3]
    )
