"""The state of the process: empty at the start, and restored after every use."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron import Artifact
from nemotron.artifact import working_directory
from nemotron.pipe import step_process
from nemotron.process import ProcessState, peak_memory_bytes, process


class Dataset(Artifact):
    pass


def test_the_state_of_a_new_process_is_empty():
    program = "from nemotron.process import ProcessState, peak_memory_bytes, process; assert process == ProcessState()"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_two_states_share_nothing():
    first, second = ProcessState(), ProcessState()
    first.logged_digests.add("a")
    first.working_directories[Path("a.incomplete")] = Path("a")
    assert second == ProcessState()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_a_working_directory_is_registered_only_while_it_is_open(tmp_path: Path, error: BaseException | None):
    def run() -> None:
        with working_directory(tmp_path / "dataset", Dataset) as work:
            assert process.working_directories == {work: tmp_path / "dataset"}
            assert list(process.started) == [work]
            if error:
                raise error
            Dataset(path=work).save()

    if error:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert process.working_directories == process.started == {}


def test_an_artifact_records_what_its_process_used(tmp_path: Path):
    before = peak_memory_bytes()
    with working_directory(tmp_path / "dataset", Dataset) as work:
        time.sleep(0.02)
        saved = Dataset(path=work).save()
    used = Dataset.load(tmp_path / "dataset").producer
    assert 0.02 <= used["seconds"] < 60
    assert 1 << 20 < before <= used["peak_memory_bytes"] <= peak_memory_bytes() < 1 << 40
    assert Dataset(path=tmp_path / "other").save().digest == saved.digest
    assert "seconds" not in Dataset.load(tmp_path / "other").producer


def test_nested_step_processes_restore_stdout_in_order(capfd: pytest.CaptureFixture[str]):
    with step_process():
        outer = process.stdout
        with step_process():
            assert process.stdout not in (None, outer)
        assert process.stdout == outer is not None
    assert process.stdout is None
