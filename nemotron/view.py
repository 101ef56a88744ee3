"""How far a run of one or more stages is: a live display in a terminal, a few words in the plain lines elsewhere.

In: which step begins and ends, and how much of it is done. Out: stage, step and the time that is left of the stage and
of the whole. It is an estimate: a step that is still to do takes as long as those that were run took on average. No
result depends on it.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemotron.process import process
from nemotron.terminal import printable

REFRESHES_PER_SECOND = 2  # our choice: enough for a person, and too rare to slow down a tiny run


class View:
    """Counts steps, and shows the count if stderr is a terminal."""

    def __init__(self) -> None:
        self.left: dict[str, float] = {}  # stage -> steps that are not done, a part of one included
        self.total = 0
        self.stage = ""
        self.done_of_step = 0.0
        self.num_run, self.seconds = 0.0, 0.0  # steps that were run, and how long they took
        self.began = time.perf_counter()
        self.bar: Any = None
        self.row: Any = None

    def open(self, stage: str, num_steps: int) -> None:
        """A stage with this number of steps is going to run."""
        self.left[stage] = num_steps
        self.total += num_steps

    def begin(self, stage: str, title: str) -> None:
        """A step of a stage begins."""
        self.stage, self.began, self.done_of_step = stage, time.perf_counter(), 0.0
        self.show(printable(title))

    def advance(self, share: float) -> None:
        """A share of the step, from 0 to 1, is done."""
        self.done_of_step = share
        self.show()

    def end(self, was_run: bool) -> None:
        """The step has ended; one that was current took no time."""
        if was_run:
            self.num_run += 1
            self.seconds += time.perf_counter() - self.began
        self.left[self.stage] = max(0, self.left.get(self.stage, 0) - 1)
        self.done_of_step = 0.0
        self.show()

    def seconds_left(self) -> tuple[float, float] | None:
        """Estimates for the stage and for the whole run; None before anything is known."""
        now = time.perf_counter() - self.began if self.done_of_step else 0.0
        num_run = self.num_run + self.done_of_step
        if not num_run:
            return None
        each = (self.seconds + now) / num_run
        stage, whole = self.left.get(self.stage, 0.0), sum(self.left.values())
        return each * (stage - self.done_of_step), each * (whole - self.done_of_step)

    def words(self) -> str:
        """The time that is left, as the end of a line; empty before anything is known."""
        left = self.seconds_left()
        return f"  about {duration(left[0])} left of the stage, {duration(left[1])} of the whole run" if left else ""

    def show(self, title: str = "") -> None:
        """Bring the display up to date."""
        if self.bar is not None:
            done = self.total - sum(self.left.values()) + self.done_of_step
            title = title or self.bar.tasks[0].description
            self.bar.update(self.row, description=title, total=self.total, completed=done, numbers=self.words().strip())


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def shown() -> Iterator[View]:
    """The view of this process; the outermost block owns it, and shows it if stderr is a terminal."""
    if process.view is not None:
        yield process.view
        return
    view = process.view = View()
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console  # slow to import
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            view.bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                console=Console(file=sys.stderr), refresh_per_second=REFRESHES_PER_SECOND,
            )  # fmt: skip
            view.row = view.bar.add_task("", total=None, numbers="")
            with view.bar:
                yield view
        else:
            yield view
    finally:
        process.view = None
