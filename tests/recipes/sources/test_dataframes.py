"""Daft is imported with its telemetry off, unless the user has set it; tasks and files on it; Ray that is not there."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nemotron.recipes.sources.dataframes import daft, read_files, run_tasks, write_dataframe, written

NAMES = ("DO_NOT_TRACK", "DAFT_ANALYTICS_ENABLED")


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, ["1", "0"]), ({"DO_NOT_TRACK": "0", "DAFT_ANALYTICS_ENABLED": "1"}, ["0", "1"])],
)
def test_telemetry_is_off_before_daft_is_imported(given: dict[str, str], expected: list[str]) -> None:
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'daft': print(*map(os.environ.get, {NAMES}))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import nemotron.recipes.sources.dataframes"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert result.stdout.split() == expected


def test_results_come_in_the_order_of_the_tasks() -> None:
    tasks = [{"number": number, "text": "\u00fc"} for number in range(20)]
    assert run_tasks(lambda task: {"found": task["number"] ** 2, "text": task["text"]}, tasks) == [
        {"found": number**2, "text": "\u00fc"} for number in range(20)
    ]
    assert run_tasks(lambda task: task, []) == []


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, PermissionError])
def test_the_error_of_the_first_task_that_failed_is_raised_as_it_was(kind: type[Exception]) -> None:
    def fail(task: dict[str, int]) -> dict[str, int]:
        if task["number"] > 1:
            raise kind(f"a sentence about {task['number']}")
        return {}

    with pytest.raises(ValueError if kind is ValueError else OSError, match=r"^a sentence about 2$"):
        run_tasks(fail, [{"number": number} for number in range(5)])


def test_a_mistake_in_a_task_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="absent"):
        run_tasks(lambda task: task["absent"], [{}])


def test_written_rows_come_back_from_any_directory(tmp_path: Path) -> None:
    directory = tmp_path / "a[1] *b?#% \u00fc{c,d}!"
    rows = daft.from_pydict({"number": list(range(10))})
    assert written(rows, directory / "x").sort("number").to_pydict() == {"number": list(range(10))}
    files = write_dataframe(rows, directory / "y")
    assert read_files(files).count_rows() == 10
    assert all(path.is_relative_to(directory / "y") for path in files)


def refusal(environment: dict[str, str], program: str = "") -> str:
    """What stage 0's curation says in one sentence, with exit code 2."""
    module = "nemotron.recipes.nano2.stage0_pretrain.data_curation"
    program += f"import runpy, sys; sys.argv = ['x']; runpy.run_module({module!r}, run_name='__main__')"
    with TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=directory, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert list(Path(directory).rglob("*.parquet")) == []
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_runner_that_does_not_exist_is_refused() -> None:
    assert "DAFT_RUNNER='spark' is neither 'native'" in refusal({"DAFT_RUNNER": "spark"})


def test_ray_that_is_not_installed_is_said_with_the_command_that_installs_it() -> None:
    without = "import sys; sys.modules['ray'] = None\n"  # as if it could not be found
    message = refusal({"DAFT_RUNNER": "ray"}, without)
    assert 'which is not installed; run: pip install "nemotron-recipes[ray]"' in message


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_ray_that_does_not_answer_is_refused_within_seconds(scheme: str) -> None:
    address = f"{scheme}127.0.0.1:9"  # nothing listens on the port for discarded data
    message = refusal({"DAFT_RUNNER": "ray", "RAY_ADDRESS": address})
    assert f"no Ray answers at RAY_ADDRESS='{address}'" in message
    assert "ray start --head" in message
