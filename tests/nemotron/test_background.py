"""Calls to a tracker in a thread: whatever the tracker does, the run goes on."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nemotron.background import BackgroundTracker


class Tracker:
    """Keeps what it is given; `before` is called first, and may fail or wait."""

    def __init__(self, before=lambda: None):
        self.before, self.metrics, self.ended = before, [], False

    def log_artifact(self, artifact):
        raise NotImplementedError

    def use_artifact(self, artifact, artifact_type):
        self.before()
        return Path(artifact)

    def log_metrics(self, metrics, step=None, *, producer=""):
        self.before()
        self.metrics.append((metrics, step, producer))

    def log_files(self, paths):
        raise NotImplementedError

    def close(self):
        self.ended = True


def fail():
    raise ConnectionError("the server is down")


def test_calls_arrive_in_their_order_with_what_they_had_when_they_were_made():
    tracker = Tracker(lambda: time.sleep(0.001))
    background = BackgroundTracker(tracker)
    metrics = {"loss": 0.0}
    for step in range(50):
        metrics["loss"] = float(step)
        background.log_metrics(metrics, step, producer="a")
    background.close()
    assert tracker.metrics == [({"loss": float(step)}, step, "a") for step in range(50)]
    assert tracker.ended


def test_a_tracker_that_fails_is_one_warning_and_the_number_of_lost_calls(capsys):
    attempts = []

    def count_and_fail():
        attempts.append(1)
        fail()

    background = BackgroundTracker(Tracker(count_and_fail))
    for step in range(20):
        background.log_metrics({"loss": 1.0}, step, producer="a")
    background.close()
    assert len(attempts) == 3  # then it is left alone: a server that is down costs a timeout at each call
    assert capsys.readouterr().err.splitlines() == [
        "warning: Tracker did not log the metrics of a: ConnectionError('the server is down')",
        "warning: Tracker lacks 21 calls of this run; its artifacts are on disk",
    ]


def test_one_failure_does_not_lose_the_calls_after_it(capsys):
    left = [ConnectionError("the server is down")]

    def fail_once():
        if left:
            raise left.pop()

    tracker = Tracker(fail_once)
    background = BackgroundTracker(tracker)
    for step in range(3):
        background.log_metrics({}, step)
    background.close()
    assert [step for _, step, _ in tracker.metrics] == [1, 2]
    assert "Tracker lacks 1 calls" in capsys.readouterr().err


def test_a_slow_tracker_does_not_hold_up_the_run_and_loses_what_does_not_fit_in_the_queue(capsys):
    go = threading.Event()
    tracker = Tracker(go.wait)
    background = BackgroundTracker(tracker, max_waiting=5)
    started = time.monotonic()
    for step in range(100):
        background.log_metrics({}, step)
    assert time.monotonic() - started < 5
    go.set()
    background.close()
    assert len(tracker.metrics) in (5, 6)  # the first call may have left the queue before it was full
    first, last = capsys.readouterr().err.splitlines()
    assert first == "warning: Tracker is slower than the run: 5 calls wait, and more are dropped"
    assert last == f"warning: Tracker lacks {100 - len(tracker.metrics)} calls of this run; its artifacts are on disk"


def test_a_tracker_that_hangs_does_not_hold_up_the_end(capsys):
    go = threading.Event()
    background = BackgroundTracker(Tracker(go.wait), end_seconds=0.05)
    background.log_metrics({}, 0)
    background.close()
    background.close()
    go.set()
    assert capsys.readouterr().err.splitlines() == [
        "warning: Tracker is still busy after 0.05 s; the run ends without it",
        "warning: Tracker lacks 2 calls of this run; its artifacts are on disk",
    ]


def test_a_name_is_waited_for_and_its_error_is_the_callers():
    background = BackgroundTracker(Tracker())
    assert background.use_artifact("corpus:v3", "dataset") == Path("corpus:v3")
    background.close()
    background = BackgroundTracker(Tracker(fail))
    with pytest.raises(ConnectionError, match="the server is down"):
        background.use_artifact("corpus:v3", "dataset")
    background.close()


SCRIPT = """
import time
from nemotron import set_lineage_tracker
from nemotron.process import process

class Tracker:
    def log_artifact(self, artifact): pass
    def use_artifact(self, artifact, artifact_type): pass
    def log_files(self, paths): pass
    def log_metrics(self, metrics, step=None, *, producer=""):
        time.sleep(0.2)
        print("sent", step, flush=True)

set_lineage_tracker(Tracker())
process.tracker.log_metrics({}, 1)
process.tracker.log_metrics({}, 2)
print("the script ends", flush=True)
"""


@pytest.mark.parametrize("failing", [False, True])
def test_the_end_of_a_program_waits_for_the_calls_that_are_left(failing):
    script = SCRIPT + ("raise ValueError('a mistake')" if failing else "")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.split("\n") == ["the script ends", "sent 1", "sent 2", ""]
    assert done.returncode == failing
