"""Verifiers that raise or hang, and how often they are asked."""

import signal
import time

import pytest

from nemotron.recipes.scoring.guard import Guard, time_limit
from nemotron.recipes.sources.exercises.exercise import Exercise, user_exercise

needs_alarms = pytest.mark.posix


def exercise_of(name: str) -> Exercise:
    return Exercise(**{**vars(user_exercise("math", "What is 1 + 2?", "", "3", "1 + 2")), "id": name})


def hanging() -> bool:
    while True:
        pass


def test_what_a_verifier_returns_comes_without_a_fault() -> None:
    assert Guard()(exercise_of("a"), lambda: 0.5, 0.0) == (0.5, "")


def test_what_a_verifier_raises_is_the_fault_and_it_is_asked_again() -> None:
    guard, asked = Guard(), []
    for _ in range(2):
        found = guard(exercise_of("a"), lambda: asked.append(1) or {}["no such\nkey"], 0.0)
        assert found == (0.0, "KeyError: 'no such\\nkey'")
    assert len(asked) == 2


@needs_alarms
def test_a_verifier_that_hangs_is_not_asked_about_the_same_exercise_again() -> None:
    guard = Guard(seconds=0.1)
    assert guard(exercise_of("a"), hanging, False) == (False, "TimeoutError: no result after 0.1 s")
    started = time.monotonic()
    assert [guard(exercise_of("a"), hanging, False) for _ in range(100)] == [
        (False, "TimeoutError: no result after 0.1 s")
    ] * 100
    assert time.monotonic() - started < 5
    assert guard(exercise_of("b"), lambda: True, False) == (True, "")


def test_an_interrupt_is_no_fault() -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard()(exercise_of("a"), interrupt, False)


@needs_alarms
def test_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"no result after 0\.05 s"), time_limit(0.05):
        hanging()
    with time_limit(0.05):
        pass
    assert signal.getsignal(signal.SIGALRM) == before
    time.sleep(0.1)  # an alarm that is still set would end the test
