"""Calls of verifiers that may fail: what one raises is a fault with a name, and one that hangs is stopped.

In: an exercise, and a function that asks its verifier. Out: what the function returned, or the fault. Training, exam
and chance levels ask their verifiers through this.

The limit of time needs a POSIX system and the main thread; elsewhere there is none.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.strict import one_sentence

Judged = TypeVar("Judged")

VERIFIER_SECONDS = 10.0  # our choice: ours take a millisecond


@dataclass(frozen=True)
class Guard:
    """Asks verifiers. Once one has taken too long over an exercise, it is not asked about that exercise again."""

    seconds: float = VERIFIER_SECONDS
    """That one call may take."""
    late: dict[str, str] = field(default_factory=dict)
    """Id of an exercise whose verifier took too long -> the fault, which all further replies to it get."""

    def __call__(self, exercise: Exercise, ask: Callable[[], Judged], otherwise: Judged) -> tuple[Judged, str]:
        """What `ask` returns, and no fault; or `otherwise`, and what went wrong."""
        if exercise.id in self.late:
            return otherwise, self.late[exercise.id]
        try:
            with time_limit(self.seconds):
                return ask(), ""
        except Exception as error:  # whatever a verifier raises, the run goes on
            fault = f"{type(error).__name__}: {one_sentence(error)}"
            if isinstance(error, TimeoutError):
                self.late[exercise.id] = fault
            return otherwise, fault


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block after so many seconds, where the system has alarms.

    A block that catches it and goes on is stopped again after as long, and raises it at its end.
    """
    late = TimeoutError(f"no result after {seconds:g} s")
    is_late = False

    def stop(number: int, frame: Any) -> None:
        nonlocal is_late
        is_late = True
        raise late

    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if is_late:
            raise late
    else:
        yield
