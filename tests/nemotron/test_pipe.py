"""The line between two steps, and how a step ends: one line on stdout, one sentence on stderr, an exit code."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from nemotron import Artifact, print_complete
from nemotron.pipe import MAX_LINE_BYTES, step_process


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
    """What a step loads when stdin holds these bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return kind.load()


def end_of(step: Callable[[], object]) -> tuple[int, str]:
    """Exit code and stderr of a step that runs in this process."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as end, step_process():
        step()
    return end.value.code, stderr.getvalue()  # type: ignore[return-value]


# --- the line


def test_what_one_step_prints_the_next_one_loads(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    print_complete({"dataset": dataset})
    line = capsys.readouterr().out
    assert json.loads(line) == {"dataset": entry(dataset)}
    assert line.count("\n") == 1
    loaded = load_from(line.encode())
    assert (loaded.path, loaded.digest) == (dataset.path, dataset.digest)


def test_a_step_takes_the_entry_of_the_type_that_it_needs(dataset: Dataset, tmp_path: Path):
    checkpoint = Checkpoint(path=tmp_path / "checkpoint", dataset_path=dataset.path).save()
    line = json.dumps({"a": entry(dataset), "b": entry(checkpoint)}).encode()
    assert load_from(line, Checkpoint).digest == checkpoint.digest
    assert load_from(line + b"\n", Dataset).digest == dataset.digest


def test_a_step_may_take_two_artifacts_from_one_line(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint(path=tmp_path / "checkpoint", dataset_path=dataset.path).save()
    line = json.dumps({"a": entry(dataset), "b": entry(checkpoint)}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
    assert (Checkpoint.load().digest, Dataset.load().digest) == (checkpoint.digest, dataset.digest)


def test_the_table_for_people_holds_fields_and_metrics(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    print_complete({"dataset": dataset})
    table = capsys.readouterr().err
    for shown in ("dataset", "num_examples", "loss", "0.5", dataset.digest[:12]):
        assert shown in table


def test_a_dataset_that_was_replaced_after_it_was_printed_is_refused(dataset: Dataset):
    line = json.dumps({"dataset": entry(dataset)}).encode()
    Dataset(path=dataset.path, num_examples=4).save()
    with pytest.raises(ValueError, match=r"digest='\w{12}', and the step before printed '\w{12}'; it was replaced"):
        load_from(line)


PATH = "/nowhere/at/all"
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the pipe is empty: the step before it failed, or stdin leads nowhere; give --dataset-path"),
        (b" \n", "the pipe is empty: the step before it failed"),
        (b'{"a": 1}\n{"b": 2}\n', "stdin holds more than the one line that a step prints"),
        (b"x" * (MAX_LINE_BYTES + 1), "stdin holds more than the one line that a step prints"),
        (b"{}", r"stdin names 0 artifacts of type dataset, not one: \{\}"),
        (b'{"dataset": 5}', r"stdin names 0 artifacts of type dataset, not one: \{'dataset': 5\}"),
        (json.dumps({"c": {"type": "checkpoint"}}).encode(), r"names 0 artifacts.*: \{'c': 'checkpoint'\}"),
        (
            json.dumps({"a": {"type": "dataset"}, "b": {"type": "dataset"}}).encode(),
            "names 2 artifacts of type dataset",
        ),
        (json.dumps({"a": {"type": "dataset"}}).encode(), "'a' needs an absolute path and a digest, and has"),
        (
            json.dumps({"a": {"type": "dataset", "path": "relative", "digest": DIGEST}}).encode(),
            "needs an absolute path and a digest",
        ),
        (json.dumps({"a": {"type": "dataset", "path": PATH, "digest": DIGEST}}).encode(), f"{PATH} does not exist"),
        (b"Loading...", "stdin is not the JSON that a step writes: Expecting value"),
        (b"\xff\xfe", "stdin is not the JSON that a step writes: 'utf-8' codec can't decode"),
        (b"[]", r"stdin is not the JSON that a step writes: \[\] is no object"),
        (b'{"a": 1, "a": 2}', "stdin is not the JSON that a step writes: the key 'a' stands there twice"),
        (b'{"a": NaN}', "stdin is not the JSON that a step writes: NaN is no finite number"),
        (b'{"a": ' + b"[" * 100_000, "stdin is not the JSON that a step writes: "),
    ],
)
def test_a_line_that_no_step_printed_is_one_sentence_and_exit_code_2(content: bytes, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        load_from(content)
    code, stderr = end_of(lambda: load_from(content))
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
def test_any_bytes_on_stdin_are_one_sentence_and_exit_code_2(content: bytes):
    code, stderr = end_of(lambda: load_from(content))
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [Terminal(), None])
def test_a_terminal_is_asked_for_the_flag_or_the_pipe(stdin: io.StringIO | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(
        ValueError, match=r"no checkpoint to read: give --checkpoint-path, or pipe in the step that writes"
    ):
        Checkpoint.load()


class NobodyReads(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_the_line_is_printed_even_if_nobody_reads_the_table(
    dataset: Dataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", NobodyReads())
    with step_process():
        print_complete({"dataset": dataset})
    assert json.loads(capfd.readouterr().out) == {"dataset": entry(dataset)}


def test_nothing_to_print_is_refused():
    with pytest.raises(ValueError, match="at least one artifact"):
        print_complete({})


def test_an_artifact_that_is_not_where_it_says_is_not_printed(dataset: Dataset, capsys: pytest.CaptureFixture[str]):
    dataset.path.rename(dataset.path.with_name("moved"))
    with pytest.raises(ValueError, match=r"holds no saved artifact; print what load\(output_dir\) returns"):
        print_complete({"dataset": dataset})
    assert capsys.readouterr().out == ""


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
def test_a_mistake_ends_in_one_sentence_and_its_exit_code(error: BaseException, code: int, sentence: str):
    def step() -> None:
        raise error

    assert end_of(step) == (code, sentence)


def test_a_field_that_breaks_its_rule_is_one_sentence():
    code, stderr = end_of(lambda: Dataset(path=Path("x"), num_examples=0, metrics={"loss": float("nan")}))
    assert (code, stderr) == (
        2,
        "error: Dataset: metrics.loss=nan: Input should be a finite number; "
        "num_examples=0: Input should be greater than 0\n",
    )


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), step_process():
        _ = 1 / 0


def test_a_step_leaves_stdout_and_signals_as_they_were(capfd: pytest.CaptureFixture[str]):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with step_process():
        os.write(1, b"inside\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr() == ("outside\n", "inside\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- as a program

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
    subprocess.run(["echo", "from a child"], check=True)
    with working_directory("dataset", Dataset) as work:
        (work / "text").write_text("text")
        if "--fail" in sys.argv:
            raise ValueError("--fail was given")
        if "--bug" in sys.argv:
            raise KeyError("a bug")
        if "--wait" in sys.argv:
            import signal, time
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
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
}


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a line of bash in a directory with two steps, data.py and train.py; `python` is this one."""
    for name, text in STEPS.items():
        (tmp_path / name).write_text(text)

    def run(line: str) -> subprocess.CompletedProcess[str]:
        script = f'set -o pipefail; python() {{ {sys.executable} "$@"; }}; {line}'
        return subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip

    return run


Shell = Callable[[str], subprocess.CompletedProcess[str]]


def test_a_pipe_carries_one_line_whatever_libraries_print(shell: Shell, tmp_path: Path):
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


def test_a_failing_first_step_fails_the_pipe_with_one_sentence_each(shell: Shell, tmp_path: Path):
    result = shell("python data.py --fail 2> data.log | python train.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert (tmp_path / "data.log").read_text().splitlines()[-1] == "error: --fail was given"
    assert result.stderr == (
        "error: the pipe is empty: the step before it failed, or stdin leads nowhere; give --dataset-path, or pipe in "
        "the step that writes the dataset\n"
    )
    assert not list(tmp_path.glob("dataset*/")) + list(tmp_path.glob("checkpoint*/"))


def test_a_bug_in_a_program_has_a_traceback_and_exit_code_1(shell: Shell):
    result = shell("python data.py --bug")
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" in result.stderr
    assert "KeyError: 'a bug'" in result.stderr


def test_the_development_mode_of_python_shows_where_a_mistake_was_found(shell: Shell):
    result = shell("python -X dev data.py --fail")
    assert "Traceback" in result.stderr
    assert result.returncode != 0


def test_a_closed_pipe_is_one_sentence_and_the_artifact_stays(shell: Shell, tmp_path: Path):
    result = shell("python data.py | true")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"error: the next step ended before this one, which is complete: {tmp_path / 'dataset'}"
    )
    assert (tmp_path / "dataset" / "metadata.json").exists()


def test_output_that_nobody_reads_at_all_gives_no_traceback(shell: Shell, tmp_path: Path):
    result = shell("{ python data.py; echo $? > code; } 2>&1 | true")
    assert result.stderr == ""
    assert (tmp_path / "code").read_text() == "2\n"


def test_a_full_disk_for_the_line_is_one_sentence(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    code, stderr = end_of(lambda: print_complete({"dataset": dataset}))
    assert code == 2
    assert stderr.splitlines()[-1] == "error: No space left on device; free some space and run the step again"


def test_a_line_that_is_taken_in_pieces_arrives_whole(dataset: Dataset, capfd: pytest.CaptureFixture[str]):
    write = os.write
    with pytest.MonkeyPatch.context() as patch, step_process():
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
        print_complete({"dataset": dataset})
    assert json.loads(capfd.readouterr().out) == {"dataset": entry(dataset)}


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stdout_or_stderr_gives_no_traceback_and_no_line(shell: Shell, redirection: str):
    result = shell(f"python data.py {redirection}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b"{}\n{}\n", b'{"a": {"type": "dataset", "path": "/\\u0000"}}']
)
def test_wrong_bytes_on_the_stdin_of_a_program_are_one_sentence(shell: Shell, tmp_path: Path, content: bytes):
    (tmp_path / "line").write_bytes(content)
    result = shell("python train.py < line")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


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


def test_the_table_for_people_stays_short_with_many_metrics(tmp_path, capfd):
    class Results(Artifact):
        pass

    results = Results(path=tmp_path, metrics={f"metric{number:03}": 1.0 for number in range(60)}).save()
    print_complete({"results": results})
    shown = capfd.readouterr().err
    assert "metric007" in shown
    assert "metric008" not in shown
    assert "52 more metrics in metadata.json" in shown
