"""The interface between steps: one line on stdout, one sentence on stderr, an exit code."""

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from nemotron import Artifact, print_complete
from nemotron.pipe import MAX_LINE_BYTES, print_page, step_process


class Dataset(Artifact):
    num_examples: int = Field(gt=0)


class Checkpoint(Artifact):
    dataset_path: Path


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(path=tmp_path / "dataset", num_examples=3, metrics={"loss": 0.5}).save()


def entry(artifact: Artifact) -> dict[str, str]:
    return {"type": artifact.type_name(), "path": str(artifact.path), "digest": artifact.digest}


def load_from(content: bytes, kind: type[Artifact] = Dataset) -> Any:
    """The artifact that a step loads from these bytes on stdin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return kind.load()


def run_failing(step: Callable[[], object]) -> tuple[int, str]:
    """Run a step in this process; return its exit code and stderr."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as end, step_process():
        step()
    return end.value.code, stderr.getvalue()  # type: ignore[return-value]


# --- the JSON line


def test_the_next_step_loads_what_a_step_prints(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    print_complete({"dataset": dataset})
    line = capsys.readouterr().out
    assert json.loads(line) == {"dataset": entry(dataset)}
    assert line.count("\n") == 1
    loaded = load_from(line.encode())
    assert (loaded.path, loaded.digest) == (dataset.path, dataset.digest)


def test_a_step_loads_the_entry_of_the_type_that_it_needs(dataset: Dataset, tmp_path: Path):
    checkpoint = Checkpoint(path=tmp_path / "checkpoint", dataset_path=dataset.path).save()
    line = json.dumps({"a": entry(dataset), "b": entry(checkpoint)}).encode()
    assert load_from(line, Checkpoint).digest == checkpoint.digest
    assert load_from(line + b"\n", Dataset).digest == dataset.digest


def test_a_step_may_load_two_artifacts_from_one_line(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint(path=tmp_path / "checkpoint", dataset_path=dataset.path).save()
    line = json.dumps({"a": entry(dataset), "b": entry(checkpoint)}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert (Checkpoint.load().digest, Dataset.load().digest) == (checkpoint.digest, dataset.digest)


def test_the_table_shows_fields_and_metrics(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    print_complete({"dataset": dataset})
    table = capsys.readouterr().err
    for shown in ("dataset", "num_examples", "loss", "0.5", dataset.digest[:12]):
        assert shown in table


def test_a_dataset_replaced_after_it_was_printed_is_refused(dataset: Dataset):
    line = json.dumps({"dataset": entry(dataset)}).encode()
    Dataset(path=dataset.path, num_examples=4).save()
    with pytest.raises(
        ValueError, match=r"digest='\w{12}', but the previous step printed '\w{12}'; it was replaced since"
    ):
        load_from(line)


PATH = "/nowhere/at/all"
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "stdin is empty, because the previous step failed or nothing is piped in; give --dataset-path"),
        (b" \n", "stdin is empty, because the previous step failed"),
        (b'{"a": 1}\n{"b": 2}\n', "stdin holds more than the one line that a step prints"),
        (b"x" * (MAX_LINE_BYTES + 1), "stdin holds more than the one line that a step prints"),
        (b"{}" + b" " * (MAX_LINE_BYTES - 2), r"stdin names 0 artifacts"),  # as long as a line may be
        (b"{}", r"stdin names 0 artifacts of type dataset instead of one, in \{\}"),
        (b'{"dataset": 5}', r"stdin names 0 artifacts of type dataset instead of one, in \{'dataset': 5\}"),
        (json.dumps({"c": {"type": "checkpoint"}}).encode(), r"names 0 artifacts.*, in \{'c': 'checkpoint'\}"),
        (
            json.dumps({"a": {"type": "dataset"}, "b": {"type": "dataset"}}).encode(),
            "names 2 artifacts of type dataset",
        ),
        (json.dumps({"a": {"type": "dataset"}}).encode(), "'a' must have an absolute path and a digest, but is"),
        (
            json.dumps({"a": {"type": "dataset", "path": "relative", "digest": DIGEST}}).encode(),
            "must have an absolute path and a digest",
        ),
        (json.dumps({"a": {"type": "dataset", "path": PATH, "digest": DIGEST}}).encode(), f"{PATH} does not exist"),
        (b"Loading...", r"stdin is not valid JSON \(Expecting value.*\); give --dataset-path"),
        (b"\xff\xfe", r"stdin is not valid JSON \('utf-8' codec can't decode"),
        (b"[]", r"stdin must hold a JSON object, not \[\]; give --dataset-path"),
        (b'{"a": 1, "a": 2}', 'stdin holds the key "a" twice; give --dataset-path'),
        (b'{"a": NaN}', "stdin holds NaN, which is not a number in JSON"),
        (b'{"a": ' + b"[" * 100_000, r"stdin is not valid JSON \("),
    ],
)
def test_an_invalid_line_is_one_sentence_and_exit_code_2(content: bytes, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        load_from(content)
    code, stderr = run_failing(lambda: load_from(content))
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {"type": st.just("dataset") | json_values},
    optional={"path": st.text().map(lambda text: f"/{text}") | json_values, "digest": st.text() | json_values},
)
lines = st.dictionaries(st.text(), entries | json_values, max_size=3).map(lambda line: json.dumps(line).encode())


@given(st.binary() | lines | st.tuples(lines, st.binary()).map(b"".join))
@example(json.dumps({"a": {"type": "dataset", "path": "/\0", "digest": ""}}).encode())
@example(json.dumps({"a": {"type": "dataset", "path": "/\ud800", "digest": ""}}).encode())
@example(json.dumps({"a": {"type": "dataset", "path": "/" + "x" * 5000, "digest": ""}}).encode())
@example(json.dumps({"a": {"type": "dataset", "path": "/", "digest": ""}}).encode())
@example(json.dumps({"a\nb\x1b[31m": {"type": "dataset", "path": "/a\nb", "digest": 1}}).encode())
def test_arbitrary_bytes_on_stdin_are_one_sentence_and_exit_code_2(content: bytes):
    code, stderr = run_failing(lambda: load_from(content))
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [Terminal(), None])
def test_without_a_pipe_the_error_names_the_flag(stdin: io.StringIO | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(
        ValueError, match=r"there is no checkpoint to read; give --checkpoint-path, or pipe in the step that writes"
    ):
        Checkpoint.load()


class WithoutReader(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_the_line_is_printed_even_if_stderr_has_no_reader(
    dataset: Dataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", WithoutReader())
    with step_process():
        print_complete({"dataset": dataset})
    assert json.loads(capfd.readouterr().out) == {"dataset": entry(dataset)}


def test_print_complete_needs_an_artifact():
    with pytest.raises(ValueError, match=r"artifacts=.* is empty; give print_complete at least one artifact"):
        print_complete({})


def test_a_moved_artifact_is_not_printed(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    dataset.path.rename(dataset.path.with_name("moved"))
    with pytest.raises(
        ValueError, match=r"holds no saved artifact; print the artifact that load\(output_dir\) returns"
    ):
        print_complete({"dataset": dataset})
    assert capsys.readouterr().out == ""


def test_a_page_reaches_stdout_and_other_output_does_not(capfd: pytest.CaptureFixture[str]):
    with step_process():
        os.write(1, b"from a library\n")
        print_page("12 B parameters\n×")
        print_page("ends with a newline\n")
    assert capfd.readouterr() == ("12 B parameters\n×\nends with a newline\n", "from a library\n")


def test_a_page_is_printed_outside_step_process(capsys: pytest.CaptureFixture[str]):
    print_page("page")
    assert capsys.readouterr().out == "page\n"


# --- the end of a step


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("batch=3 does not\ndivide 8"), 2, "error: batch=3 does not divide 8\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (FileNotFoundError(2, "No such file", "/a/b"), 2, "error: /a/b: No such file\n"),
        (OSError(28, "No space left", "/a"), 2, "error: /a: No space left; free some space and run the step again\n"),
        (PermissionError(13, "Denied", "/a"), 2, "error: /a: Denied; change its permissions or choose another place\n"),
        (OSError("a library's words"), 2, "error: a library's words\n"),
        (ValueError("x" * 3000), 2, f"error: {'x' * 2000}...\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_user_error_is_one_sentence_and_an_exit_code(error: BaseException, code: int, sentence: str):
    def step() -> None:
        raise error

    assert run_failing(step) == (code, sentence)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79."),
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"), "CUDA error: CUBLAS_STATUS_ALLOC"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_too_little_memory_is_one_sentence_that_says_what_to_lower(error: BaseException, said: str):
    def step() -> None:
        raise error

    code, sentence = run_failing(step)
    assert code == 2
    assert sentence.startswith(f"error: there is too little memory ({said}")
    assert "79" not in sentence
    assert "--batch, --micro-batch or --max-new-tokens" in sentence
    assert sentence.count("\n") == 1


def test_a_tensor_for_which_the_machine_has_no_memory_is_one_sentence():
    code, sentence = run_failing(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert code == 2
    assert re.fullmatch(r"error: there is too little memory \(.*can't allocate memory.*\); lower .*\n", sentence)


def test_another_runtime_error_is_a_bug_with_a_traceback():
    with pytest.raises(RuntimeError, match="shapes"), step_process():
        raise RuntimeError("shapes do not match")


def test_invalid_fields_are_one_sentence():
    code, stderr = run_failing(lambda: Dataset(path=Path("x"), num_examples=0, metrics={"loss": float("nan")}))
    assert (code, stderr) == (
        2,
        "error: Dataset: metrics.loss=nan: Input should be a finite number; "
        "num_examples=0: Input should be greater than 0\n",
    )


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), step_process():
        _ = 1 / 0


def test_the_garbage_collector_does_not_search_what_was_there_before_a_step() -> None:
    before = [[]]
    with step_process():
        inside = [[]]
        searched = {id(one) for one in gc.get_objects()}
        assert id(before) not in searched
        assert id(inside) in searched
    assert gc.get_freeze_count() == 0


def test_step_process_restores_stdout_and_signals(capfd: pytest.CaptureFixture[str]):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with step_process():
        os.write(1, b"inside\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr() == ("outside\n", "inside\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- steps as programs

STEPS = {
    "data.py": """
import os, subprocess, sys
from pathlib import Path
from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process

class Dataset(Artifact):
    text_path: Path

def main() -> Dataset:
    print("from print")
    os.write(1, b"from a library\\n")
    subprocess.run(["echo", "from a child"], check=False)
    with working_directory("dataset", Dataset) as work:
        (work / "text").write_text("text")
        if "--fail" in sys.argv:
            raise ValueError("--fail was given")
        if "--bug" in sys.argv:
            raise KeyError("a bug")
        if "--wait" in sys.argv:
            import signal, time
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have disabled it
            print("waiting", file=sys.stderr, flush=True)
            time.sleep(60)
        Dataset(path=work, text_path=work / "text").save()
    return Dataset.load("dataset")

if __name__ == "__main__":
    with step_process():
        print_complete({"dataset": main()})
""",
    "train.py": """
from pathlib import Path
from data import Dataset
from nemotron import Artifact, print_complete
from nemotron.artifact import working_directory
from nemotron.pipe import step_process

class Checkpoint(Artifact):
    dataset_path: Path

def main() -> Checkpoint:
    dataset = Dataset.load()
    with working_directory("checkpoint", Checkpoint) as work:
        Checkpoint(path=work, dataset_path=dataset.path, metrics={"length": len(dataset.text_path.read_text())}).save()
    return Checkpoint.load("checkpoint")

if __name__ == "__main__":
    with step_process():
        print_complete({"checkpoint": main()})
""",
    "plan.py": """
from nemotron.pipe import print_page, step_process

with step_process():
    print_page("a line of the plan\\n" * 100_000)  # 2 MB, more than a pipe holds
""",
}


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line of bash in a directory with the programs of STEPS; `python` is this interpreter."""
    for name, text in STEPS.items():
        (tmp_path / name).write_text(text)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        script = f'set -o pipefail; python() {{ {sys.executable} "$@"; }}; {line}'
        return subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip

    return run


Shell = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.mark.posix
def test_a_pipe_carries_one_line_even_if_libraries_print(shell: Shell, tmp_path: Path):
    result = shell("python data.py > dataset.json && python train.py < dataset.json")
    assert result.returncode == 0
    assert list(json.loads((tmp_path / "dataset.json").read_text())) == ["dataset"]
    assert (tmp_path / "dataset.json").read_text().count("\n") == 1
    assert json.loads(result.stdout)["checkpoint"]["path"] == str(tmp_path / "checkpoint")
    assert result.stdout.count("\n") == 1
    for noise in ("from print", "from a library", "from a child"):
        assert noise in result.stderr
    checkpoint = json.loads((tmp_path / "checkpoint" / "metadata.json").read_text())
    assert checkpoint["inputs"]["dataset_path"]["path"] == "../dataset"
    assert checkpoint["producer"]["step"] == "train"  # not __main__


@pytest.mark.posix
def test_a_failing_first_step_fails_the_pipe_with_one_sentence_each(shell: Shell, tmp_path: Path):
    result = shell("python data.py --fail 2> data.log | python train.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert (tmp_path / "data.log").read_text().splitlines()[-1] == "error: --fail was given"
    assert result.stderr == (
        "error: stdin is empty, because the previous step failed or nothing is piped in; give --dataset-path, or pipe "
        "in the step that writes the dataset\n"
    )
    assert not list(tmp_path.glob("dataset*/")) + list(tmp_path.glob("checkpoint*/"))


@pytest.mark.posix
def test_a_bug_in_a_program_has_a_traceback_and_exit_code_1(shell: Shell):
    result = shell("python data.py --bug")
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" in result.stderr
    assert "KeyError: 'a bug'" in result.stderr


@pytest.mark.posix
def test_development_mode_keeps_the_traceback_of_a_user_error(shell: Shell):
    result = shell("python -X dev data.py --fail")
    assert "Traceback" in result.stderr
    assert result.returncode != 0


@pytest.mark.posix
def test_a_closed_pipe_is_one_sentence_and_keeps_the_artifact(shell: Shell, tmp_path: Path):
    result = shell("python data.py | true")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"error: the next step ended without reading its input; this step is complete: {tmp_path / 'dataset'}"
    )
    assert (tmp_path / "dataset" / "metadata.json").exists()


@pytest.mark.posix
def test_a_page_whose_reader_ends_early_is_one_sentence(shell: Shell):
    result = shell("python plan.py | head -1")
    assert (result.returncode, result.stdout) == (2, "a line of the plan\n")
    assert result.stderr == (
        "error: the reader of stdout ended before the whole page was written; write the page to a file instead\n"
    )


@pytest.mark.posix
def test_output_without_any_reader_gives_no_traceback(shell: Shell, tmp_path: Path):
    result = shell("{ sleep 0.5; python data.py; echo $? > code; } 2>&1 | true")  # its reader has ended by then
    assert result.stderr == ""
    assert (tmp_path / "code").read_text() == "2\n"


def test_a_full_disk_under_stdout_is_one_sentence(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    code, stderr = run_failing(lambda: print_complete({"dataset": dataset}))
    assert code == 2
    assert stderr.splitlines()[-1] == "error: No space left on device; free some space and run the step again"


def test_a_partially_written_line_is_completed(dataset: Dataset, capfd: pytest.CaptureFixture[str]):
    write = os.write
    with pytest.MonkeyPatch.context() as patch, step_process():
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
        print_complete({"dataset": dataset})
    assert json.loads(capfd.readouterr().out) == {"dataset": entry(dataset)}


@pytest.mark.posix
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stdout_or_stderr_gives_no_traceback_and_no_line(shell: Shell, redirection: str):
    result = shell(f"python data.py {redirection}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.posix
@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b"{}\n{}\n", b'{"a": {"type": "dataset", "path": "/\\u0000"}}']
)
def test_invalid_bytes_on_the_stdin_of_a_program_are_one_sentence(shell: Shell, tmp_path: Path, content: bytes):
    (tmp_path / "line").write_bytes(content)
    result = shell("python train.py < line")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.posix
@pytest.mark.parametrize(
    ("number", "code", "sentence"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupted_step_cleans_up(shell: Shell, tmp_path: Path, number: int, code: int, sentence: str):
    command = [sys.executable, "data.py", "--wait"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while process.stderr.readline() != "waiting\n":
            assert process.poll() is None
        assert (tmp_path / "dataset.incomplete").exists()
        process.send_signal(number)
        assert process.stdout.read() == ""
        words = process.stderr.read()
    assert process.returncode == code
    assert words.splitlines()[-1] == sentence
    assert "Traceback" not in words
    assert not list(tmp_path.glob("dataset*/"))


def test_the_table_shows_at_most_eight_metrics(tmp_path, capfd):
    class Results(Artifact):
        pass

    results = Results(path=tmp_path, metrics={f"metric{number:03}": 1.0 for number in range(60)}).save()
    print_complete({"results": results})
    shown = capfd.readouterr().err
    assert "metric007" in shown
    assert "metric008" not in shown
    assert "52 more metrics in metadata.json" in shown


def test_eight_metrics_are_all_of_them(tmp_path, capfd):
    class Results(Artifact):
        pass

    results = Results(path=tmp_path, metrics={f"metric{number:03}": 1.0 for number in range(8)}).save()
    print_complete({"results": results})
    shown = capfd.readouterr().err
    assert "metric007" in shown
    assert "more metrics" not in shown
