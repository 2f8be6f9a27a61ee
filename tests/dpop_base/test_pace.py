"""Rates and times left, by a clock of the test's own."""

import pytest

from dpop_base.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_is_reckoned_by_the_mean_since_the_start() -> None:
    clock = Clock()
    pace = Pace(100, done=20, clock=clock)  # 20 were done before: they say nothing of this start
    assert (pace.rate, pace.seconds_left, str(pace)) == (None, None, "")
    clock.now += 10
    pace.reach(40)
    assert pace.rate == 2
    assert pace.seconds_left == 30
    clock.now += 20  # a long unit: the rate stays, the time goes by
    assert pace.rate == 2
    assert str(pace) == "2.0/s, 10 s left"
    clock.now += 20
    assert pace.seconds_left == 0
    pace.reach(100)
    assert pace.seconds_left is None


@pytest.mark.parametrize(("total", "text"), [(None, "4.0 s each"), (91, "4.0 s each, 6 min left")])
def test_slow_units_are_said_in_seconds(total: int | None, text: str) -> None:
    clock = Clock()
    pace = Pace(total, clock=clock)
    clock.now += 4
    pace.reach(1)
    assert str(pace) == text


def test_a_start_that_is_no_measure_is_forgotten() -> None:
    clock = Clock()
    pace = Pace(10, clock=clock)
    clock.now += 1000
    pace.reach(1)
    pace.begin_anew()
    assert pace.seconds_left is None
    clock.now += 2
    pace.reach(2)
    assert pace.seconds_left == 16
