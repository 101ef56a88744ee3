"""Calls to an experiment tracker, made in a thread: a tracker that is slow or fails neither stops nor changes a run.

In: the calls that a run makes. Out: the same calls on the tracker, in their order, a moment later. Calls wait in a
queue of bounded length. If it is full, further calls are dropped; if a call fails, it is lost. The first loss is a
warning, and a second warning at the end has their number. At the end of the program the tracker has `END_SECONDS` for
the rest.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.terminal import print_line

if TYPE_CHECKING:
    from nemotron.artifact import Artifact
    from nemotron.lineage import LineageTracker

MAX_WAITING_CALLS = 10_000  # our choice: a few megabytes; a step of training makes one call
END_SECONDS = 60.0  # our choice: sending a hundred small files takes seconds
MAX_FAILURES_IN_A_ROW = 3  # our choice; a server that is down costs a timeout at each call


class BackgroundTracker:
    """The interface of a `LineageTracker`, and its calls in a thread."""

    def __init__(
        self, tracker: "LineageTracker", *, max_waiting: int = MAX_WAITING_CALLS, end_seconds: float = END_SECONDS
    ) -> None:
        self.tracker, self.end_seconds = tracker, end_seconds
        self.name = type(tracker).__name__
        self.calls: queue.Queue[Callable[[], None] | None] = queue.Queue(max_waiting)
        self.num_lost = self.failures_in_a_row = 0
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.worker = threading.Thread(target=self._work, name=f"{self.name} calls", daemon=True)
        self.worker.start()
        # Python waits for threads that are not daemons before it ends, and before libraries close what they have open.
        threading.Thread(target=self._close_at_end, name=f"{self.name} end").start()

    def log_artifact(self, artifact: "Artifact") -> None:
        self._put(lambda: self.tracker.log_artifact(artifact), str(artifact.path))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, *, producer: str = "") -> None:
        sent = dict(metrics)
        place = f"the metrics of {producer}"
        self._put(lambda: self.tracker.log_metrics(sent, step, producer=producer), place)

    def log_curve(self, rows: Mapping[int, Mapping[str, float]], *, producer: str) -> None:
        """The metrics of many steps as one call: of the part of a run that an earlier process has done."""

        def log_all() -> None:
            for step, metrics in rows.items():
                self.tracker.log_metrics(metrics, step, producer=producer)

        self._put(log_all, f"the metrics of {producer}")

    def log_files(self, paths: Sequence[Path]) -> None:
        sent = list(paths)
        self._put(lambda: self.tracker.log_files(sent), ", ".join(map(str, sent)))

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """Of an artifact that was loaded: as the other calls. Of a name: wait for its directory, or for the error."""
        if not isinstance(artifact, str):
            self._put(lambda: self.tracker.use_artifact(artifact, artifact_type), str(artifact.path))
            return artifact.path
        found: Future[Path] = Future()

        def fetch() -> None:
            try:
                found.set_result(Path(self.tracker.use_artifact(artifact, artifact_type)))
            except Exception as error:
                found.set_exception(error)

        self.calls.put(fetch)
        return found.result()

    def wait(self, seconds: float) -> bool:
        """Whether every call that was made so far has ended within so many seconds."""
        end = time.monotonic() + seconds
        while self.calls.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)
        return not self.calls.unfinished_tasks

    def close(self) -> None:
        """Wait for the calls that are left, but no longer than `end_seconds`; say how many calls were lost."""
        if self.closed.is_set():
            return
        self.closed.set()
        end = time.monotonic() + self.end_seconds
        close = getattr(self.tracker, "close", None)
        if close is not None:
            try:
                self.calls.put(self._guarded(close, "the end of the run"), timeout=self.end_seconds)
            except queue.Full:
                self._lose("the end of the run")
        if not self.wait(end - time.monotonic()):
            self.num_lost += self.calls.unfinished_tasks
            print_line(f"warning: {self.name} is still busy after {self.end_seconds:g} s; the run ends without it")
        else:
            self.calls.put(None)
            self.worker.join()
        if self.num_lost:
            print_line(f"warning: {self.name} lacks {self.num_lost} calls of this run; its artifacts are on disk")

    def _close_at_end(self) -> None:
        while not self.closed.is_set() and threading.main_thread().is_alive():
            threading.main_thread().join(timeout=0.5)
        self.close()

    def _put(self, call: Callable[[], object], place: str) -> None:
        try:
            self.calls.put_nowait(self._guarded(call, place))
        except queue.Full:
            self._lose(f"{self.name} is slower than the run: {self.calls.maxsize:,} calls wait, and more are dropped")

    def _guarded(self, call: Callable[[], object], place: str) -> Callable[[], None]:
        """The call without its errors, and nothing once the tracker has failed several times in a row."""

        def guarded() -> None:
            if self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                self._lose()
                return
            try:
                call()
                self.failures_in_a_row = 0
            except Exception as error:  # a run may not fail because its tracker does
                self.failures_in_a_row += 1
                self._lose(f"{self.name} did not log {place}: {error!r}")

        return guarded

    def _lose(self, reason: str = "") -> None:
        with self.lock:
            self.num_lost += 1
            is_first = self.num_lost == 1
        if is_first:
            print_line(f"warning: {reason}")

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            try:
                call()
            finally:
                self.calls.task_done()
