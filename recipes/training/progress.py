"""Progress of a training run on stderr: a bar in a terminal, a plain line now and then elsewhere. Speeds side by side.

Results do not depend on it, and it is the only place where a step reads the clock.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from nemotron.process import process
from nemotron.terminal import print_line


class TrainingProgress:
    """Shows the step, the numbers that the loop notes, tokens per second and the time that is left.

    Args:
        title: what is being trained, shown before the bar.
        total_steps: steps of the whole run.
        first_step: steps already done when the loop starts, above 0 for a resumed run.
    """

    def __init__(self, title: str, total_steps: int, first_step: int = 0) -> None:
        console = Console(file=sys.stderr)
        self.title = title
        self.total_steps = total_steps
        self.first_step = first_step
        self.line_every_steps = max(1, total_steps // 10)  # without a terminal, about ten lines a run
        self.tokens_done = 0
        self.started = self.updated = self.lap_started = time.perf_counter()
        self.laps: dict[str, tuple[float, int]] = {}  # part of the steps -> seconds and tokens
        self.step_laps: dict[str, tuple[float, int]] = {}  # the same since the last update
        self.bar = None
        self.view = process.view  # of a whole stage, which shows one row more
        if self.view is not None and self.view.bar is not None:
            self.bar = self.view.bar
            self.task = self.bar.add_task(title, total=total_steps, completed=first_step, numbers="")
        elif console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Numbers(), TimeRemainingColumn(),
                console=console,
            )  # fmt: skip
            self.task = self.bar.add_task(title, total=total_steps, completed=first_step, numbers="")

    @property
    def is_row(self) -> bool:
        """Whether the bar is that of a whole stage, which starts and stops it."""
        return self.view is not None and self.bar is self.view.bar

    def __enter__(self) -> "TrainingProgress":
        self.started = self.updated = self.lap_started = time.perf_counter()
        if self.bar and not self.is_row:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar and self.is_row:
            self.bar.remove_task(self.task)
        elif self.bar:
            self.bar.stop()
        if self.laps and error is None:
            total = sum(seconds for seconds, _ in self.laps.values())
            parts = [
                f"{part} {seconds / total:.0%}" + (f" at {tokens / seconds:,.0f} tokens/s" if tokens else "")
                for part, (seconds, tokens) in self.laps.items()
            ]
            print_line(f"share of {total:,.0f} s: {', '.join(parts)}")

    def lap(self, part: str, tokens: int) -> None:
        """Add the time since the last call to a part of the steps, with the tokens that it worked on."""
        now = time.perf_counter()
        for laps in (self.laps, self.step_laps):
            seconds, before = laps.get(part, (0.0, 0))
            laps[part] = (seconds + now - self.lap_started, before + tokens)
        self.lap_started = now

    def update(self, steps_done: int, *, tokens: int, **numbers: float) -> dict[str, float]:
        """Report that `steps_done` steps of the run are done, with `tokens` and `numbers` of the last one.

        Returns:
            Tokens per second since the last call: `tokens_per_second`, and `<part>_tokens_per_second` of each part of
            the step that worked on tokens.
        """
        self.tokens_done += tokens
        now = time.perf_counter()
        seconds, step_seconds = now - self.started, now - self.updated
        self.updated = now
        parts = {part: done / max(taken, 1e-9) for part, (taken, done) in self.step_laps.items() if done}
        self.step_laps = {}
        shown = [f"{name} {value:.4g}" for name, value in numbers.items()]
        shown += [f"{part} {speed:,.0f} tokens/s" for part, speed in parts.items()]
        text = "  ".join([*shown, f"{self.tokens_done / seconds:,.0f} tokens/s"])
        if self.view is not None:
            self.view.advance(steps_done / self.total_steps)
        if self.bar:
            self.bar.update(self.task, completed=steps_done, numbers=text)
        elif steps_done % self.line_every_steps == 0 or steps_done == self.total_steps:
            left = seconds / (steps_done - self.first_step) * (self.total_steps - steps_done)
            line = f"{self.title} {steps_done}/{self.total_steps}  {text}  {left:,.0f} s left"
            print_line(line)
        speeds = {f"{part}_tokens_per_second": speed for part, speed in parts.items()}
        return {"tokens_per_second": tokens / max(step_seconds, 1e-9), **speeds}  # a clock may not have moved


class _Numbers(ProgressColumn):
    """The loop's numbers and its speed, beside the bar."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"])


def side_by_side(tasks: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Tokens per second of each task: the median over rounds, after one that does not count.

    In each round every task runs once, one after the other, so that a busy machine slows all of them alike.

    Args:
        tasks: name -> does the work, and returns how many tokens it was.
    """
    speeds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            tokens = task()
            if number:
                speeds[name].append(tokens / (time.perf_counter() - started))
    return {name: statistics.median(taken) for name, taken in speeds.items()}
