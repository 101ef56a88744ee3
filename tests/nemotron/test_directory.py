"""The directory of an artifact: metadata.json is read strictly, and a writer may be killed at any point."""

import builtins
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nemotron.directory
from nemotron import Artifact
from nemotron import directory as directory_module
from nemotron.artifact import working_directory
from nemotron.directory import (
    MAX_METADATA_BYTES,
    FileRecord,
    check_files,
    file_record,
    locked,
    read_metadata,
    replaced_name,
    working_name,
)
from nemotron.process import process


class Dataset(Artifact):
    text_path: Path


def write(directory: Path, content: str) -> Dataset:
    """Write the files of a dataset and save it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "deep").mkdir(exist_ok=True)
    (directory / "deep" / "text").write_text(content)
    return Dataset(path=directory, text_path=directory / "deep" / "text").save()


def run_step(output_dir: Path, content: str) -> None:
    with working_directory(output_dir, Dataset) as work:
        write(work, content)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def link(directory: Path) -> None:
    """Link the metadata.json of a directory to that of its neighbor."""
    (directory / "metadata.json").symlink_to("../b/metadata.json")


# --- metadata.json


def edit_metadata_text(directory: Path, change: Callable[[str], str | bytes]) -> None:
    text = change((directory / "metadata.json").read_text())
    (directory / "metadata.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "", r"is not valid JSON \(Expecting value"),
        (lambda text: text[:-10], r"is not valid JSON \(Expecting"),
        (lambda text: text + "{}", r"is not valid JSON \(Extra data"),
        (lambda text: "[1]", r"must hold a JSON object, not \[1\]; run the step again"),
        (lambda text: b"\xff\xfe" + text.encode(), r"is not valid JSON \('utf-8' codec can't decode"),
        (lambda text: "[" * 100_000, r"is not valid JSON \(.*(recursion|overflow)"),
        (lambda text: "9" * 5000, r"is not valid JSON \(Exceeds the limit"),
        (
            lambda text: text.replace('"files"', '"type": "dataset", "files"'),
            r'holds the key "type" twice; run the step again',
        ),
        (
            lambda text: text.replace('"metrics": {', '"metrics": {"a": NaN'),
            r"holds NaN, which is not a number in JSON",
        ),
        (
            lambda text: text.replace('"metrics": {', '"metrics": {"a": -Infinity'),
            r"holds -Infinity, which is not a number in JSON",
        ),
        (
            lambda text: text.replace('"metrics": {', '"metrics": {"a": 1e999'),
            r"holds 1e999, which is too large for a float",
        ),
        (lambda text: text.replace('"metrics": {', '"metrics": {"a": 1'), r"digest='\w+' does not match its content"),
        (lambda text: text.replace('_version": 1', '_version": 2'), r"schema_version=2, but this version of nemotron"),
        (lambda text: text.replace('"schema_version": 1,', ""), r"schema_version=None, but this version of nemotron"),
        (lambda text: text.replace('"files"', '"fils"'), r"files=.*: Field required; .*fils=.*Extra inputs"),
        (
            lambda text: re.sub(r'(_at": "[^"]+?)(Z|[+-]\d\d:\d\d)"', r'\1"', text),
            r"created_at=.* should have timezone info",
        ),
        (
            lambda text: " " * MAX_METADATA_BYTES + text,
            r"is larger than the 16777216 bytes of any artifact; run the step again",
        ),
    ],
)
def test_invalid_metadata_is_refused_in_one_sentence(
    tmp_path: Path, change: Callable[[str], str | bytes], sentence: str
):
    write(tmp_path / "dataset", "text")
    edit_metadata_text(tmp_path / "dataset", change)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path / 'dataset' / 'metadata.json'))}.*{sentence}"
    ) as error:
        Dataset.load(tmp_path / "dataset")
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_metadata_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    directory = tmp_path_factory.getbasetemp() / "any bytes"
    directory.mkdir(exist_ok=True)
    (directory / "metadata.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(directory))):
        read_metadata(directory)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist; correct the path, or run the step that writes it"),
        (lambda path: path.write_text(""), "is a file, and an artifact is a directory; correct the path"),
        (
            lambda path: path.mkdir(),
            "has no metadata.json, so it is not a complete artifact; run the step that writes it",
        ),
        (lambda path: path.symlink_to("nowhere"), "does not exist; correct the path"),
        (
            lambda path: (write(path.with_name("b"), ""), path.mkdir(), link(path)),
            "metadata.json is not a regular file; replace the link",
        ),
        pytest.param(
            lambda path: (path.mkdir(), os.mkfifo(path / "metadata.json")),
            "metadata.json is not a regular file",
            marks=pytest.mark.posix,
        ),
    ],
)
def test_a_path_that_is_not_an_artifact_is_refused(tmp_path: Path, make: Callable[[Path], Any], sentence: str):
    make(tmp_path / "there")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'there'))}.{sentence}"):
        read_metadata(tmp_path / "there")


def test_metadata_may_have_the_largest_size_and_no_byte_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Note(Artifact):
        text: str

    Note(path=tmp_path / "first", text="a").save()
    size = (tmp_path / "first" / "metadata.json").stat().st_size
    monkeypatch.setattr(directory_module, "MAX_METADATA_BYTES", size)
    Note(path=tmp_path / "other", text="b").save()
    assert read_metadata(tmp_path / "other").type == "note"
    monkeypatch.setattr(directory_module, "MAX_METADATA_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"is larger than the {size - 1} bytes of any artifact"):
        read_metadata(tmp_path / "other")
    with pytest.raises(ValueError, match=f"{size} bytes of metadata, at most {size - 1} allowed"):
        Note(path=tmp_path / "third", text="c").save()


def test_metadata_that_is_too_large_is_not_written(tmp_path: Path):
    class Log(Artifact):
        lines: list[str]

    with pytest.raises(ValueError, match=r"bytes of metadata, at most 16777216 allowed; move data to files"):
        Log(path=tmp_path, lines=["x" * MAX_METADATA_BYTES]).save()
    assert names(tmp_path) == []


def test_metadata_is_indented_and_in_order(tmp_path: Path):
    write(tmp_path, "text")
    text = (tmp_path / "metadata.json").read_text()
    assert list(json.loads(text)) == [
        *("schema_version", "type", "digest", "created_at", "fields", "metrics", "inputs", "files", "producer")
    ]
    assert '\n  "type": "dataset",\n' in text
    assert text.endswith("}\n")


# --- files


def test_a_file_record_is_its_size_and_sha256(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    # sha256("abc"), FIPS 180-2, appendix B.1
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_record(tmp_path / "abc") == FileRecord(size=3, sha256=sha256)


def test_without_hashes_only_sizes_are_compared(tmp_path: Path):
    write(tmp_path, "text")
    (tmp_path / "deep" / "text").write_text("TEXT")
    check_files(tmp_path, read_metadata(tmp_path), hashes=False)
    (tmp_path / "deep" / "text").write_text("longer")
    with pytest.raises(ValueError, match="deep/text has 6 bytes, but had 4"):
        check_files(tmp_path, read_metadata(tmp_path), hashes=False)


# --- a process that is killed


class Killed(BaseException):
    """Simulates SIGKILL: no later code changes the disk."""


CHANGES_THE_DISK = [
    *((os, name) for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir")),
    (builtins, "open"),
]


def kill_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """Make every call that changes the disk raise Killed, from the `call`-th on, counted from 0."""
    made = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if original is builtin_open and not any(flag in str(args[1:]) for flag in "wax+"):
                return original(*args, **kwargs)
            made[0] += 1
            if made[0] > call:
                raise Killed
            return original(*args, **kwargs)

        return wrapper

    builtin_open = builtins.open
    for module, name in CHANGES_THE_DISK:
        patch.setattr(module, name, counted(getattr(module, name)))


def run_killed_at(call: int, function: Callable[..., object], *arguments: object) -> bool:
    """Run a function that is killed at its `call`-th change of the disk; return whether it got that far."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, call)
        try:
            function(*arguments)
        except Killed:
            return True
    return False


def kill_at_every_call(function: Callable[[Path], object], prepare: Callable[[Path], object], root: Path) -> list[Path]:
    """One directory for each call at which the function can be killed, in the state it was left in."""
    places = []
    for call in range(200):
        place = root / str(call)
        place.mkdir()
        prepare(place)
        if not run_killed_at(call, function, place):
            return places
        places.append(place)
    raise AssertionError("more than 200 calls")


def test_a_save_killed_at_any_call_leaves_no_partial_artifact(tmp_path: Path):
    places = kill_at_every_call(lambda place: write(place, "new"), lambda place: None, tmp_path)
    accepted = []
    for place in places:
        try:
            accepted.append(Dataset.load(place).text_path.read_text())
        except ValueError:
            assert not (place / "metadata.json").exists()
        write(place, "later")
        assert Dataset.load(place).text_path.read_text() == "later"
    assert len(places) > 5
    assert accepted == ["new"]  # killed between the rename and the sync of the directory


@pytest.mark.parametrize("old", ["old", None])
def test_a_swap_killed_at_any_call_leaves_the_old_or_the_new_artifact(tmp_path: Path, old: str | None):
    def prepare(place: Path) -> None:
        if old:
            run_step(place / "dataset", old)

    places = kill_at_every_call(lambda place: run_step(place / "dataset", "new"), prepare, tmp_path)
    found = []
    for place in places:
        try:
            found.append(Dataset.load(place / "dataset").text_path.read_text())
        except ValueError:
            found.append(None)
        run_step(place / "dataset", "later")
        assert Dataset.load(place / "dataset").text_path.read_text() == "later"
        assert names(place) == ["dataset"]
    assert len(places) > 10
    assert found[0] == old
    assert found[-1] == "new"
    assert found == [text for text in found if text == old] + [text for text in found if text == "new"]


def test_a_repair_killed_at_any_call_can_be_repaired(tmp_path: Path):
    def prepare(place: Path) -> None:
        interrupt_swap(place / "dataset")

    places = kill_at_every_call(lambda place: Dataset.load(place / "dataset"), prepare, tmp_path)
    for place in places:
        assert Dataset.load(place / "dataset").text_path.read_text() == "new"
        run_step(place / "dataset", "later")
        assert names(place) == ["dataset"]
    assert len(places) > 3


def interrupt_swap(final: Path) -> None:
    """Create the state between the two renames of a swap."""
    run_step(final, "old")
    os.rename(final, replaced_name(final))
    write(working_name(final), "new")


def test_a_reader_repairs_an_interrupted_swap(tmp_path: Path):
    interrupt_swap(tmp_path / "dataset")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"
    assert names(tmp_path) == ["dataset"]


def test_a_writer_repairs_an_interrupted_swap(tmp_path: Path):
    interrupt_swap(tmp_path / "dataset")
    with pytest.raises(KeyboardInterrupt), working_directory(tmp_path / "dataset", Dataset):
        raise KeyboardInterrupt
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"


def test_a_reference_is_found_after_an_interrupted_swap(tmp_path: Path):
    class Results(Artifact):
        dataset_path: Path

    run_step(tmp_path / "dataset", "new")
    Results(path=tmp_path / "results", dataset_path=tmp_path / "dataset").save()
    shutil.rmtree(tmp_path / "dataset")
    interrupt_swap(tmp_path / "dataset")
    assert Dataset.load(Results.load(tmp_path / "results").dataset_path).text_path.read_text() == "new"


def test_an_interrupted_swap_without_a_new_artifact_restores_the_old_one(tmp_path: Path):
    interrupt_swap(tmp_path / "dataset")
    (working_name(tmp_path / "dataset") / "metadata.json").unlink()
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "old"


PROGRAM = """
import itertools, sys
from pathlib import Path
from nemotron import Artifact
from nemotron.artifact import working_directory

class Dataset(Artifact):
    text_path: Path

for number in itertools.count():
    with working_directory(sys.argv[1], Dataset) as work:
        (work / "text").write_text(str(number) * 100_000)
        Dataset(path=work, text_path=work / "text").save()
    if number == 0:
        print("running", flush=True)
"""


def test_a_process_killed_by_a_signal_leaves_a_complete_artifact(tmp_path: Path):
    for moment_seconds in (0.0, 0.013, 0.029):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "dataset")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"running\n"
            time.sleep(moment_seconds)
            process.kill()
        text = Dataset.load(tmp_path / "dataset").text_path.read_text()
        assert text == text[: len(text) // 100_000] * 100_000


def test_a_full_disk_leaves_only_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_step(tmp_path / "dataset", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "direct", "new")
    with pytest.raises(ValueError, match=r"has no metadata.json"):
        Dataset.load(tmp_path / "direct")
    with pytest.raises(OSError, match="No space left on device"):
        run_step(tmp_path / "dataset", "new")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "old"
    assert names(tmp_path) == ["dataset", "direct"]


def test_files_and_directories_are_synced_before_the_metadata_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []  # inodes that were synced, and 0 for the rename
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append(0), replace(source, target)))
    write(tmp_path, "text")
    text, folder, metadata = (
        (tmp_path / name).stat().st_ino for name in ("deep/text", "deep", "metadata.json")
    )  # fmt: skip
    assert calls == [text, folder, metadata, 0, tmp_path.stat().st_ino]


# --- two processes


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.posix), False], ids=["directory", "lock file"])
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """What is locked for a directory: itself or, as on Windows, a file in the user's temporary directory."""
    monkeypatch.setattr(nemotron.directory, "OPENS_DIRECTORIES", request.param)
    return request.param


@pytest.mark.locks
def test_a_swap_waits_for_another_swap_in_the_same_parent(tmp_path: Path, lock: bool):
    run_step(tmp_path / "dataset", "old")
    with locked(tmp_path, wait=True):
        writer = threading.Thread(target=run_step, args=(tmp_path / "dataset", "new"))
        writer.start()
        writer.join(timeout=0.2)
        assert writer.is_alive()
        assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "old"
    writer.join()
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"


HOLD = """
import sys
from pathlib import Path
import nemotron.directory

nemotron.directory.OPENS_DIRECTORIES = sys.argv[2] == "True"
with nemotron.directory.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.locks
def test_a_lock_ends_with_its_process(tmp_path: Path, lock: bool):
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"locked"
        with pytest.raises(ValueError, match=r"^another process is writing"), locked(tmp_path):
            pytest.fail("two processes have the lock")
        holder.kill()
    with locked(tmp_path):
        pass


@pytest.mark.locks
def test_a_lock_is_of_the_directory_and_not_of_the_spelling_of_its_path(tmp_path: Path, lock: bool):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with locked(tmp_path / "one"):
        for spelling in (tmp_path / "other" / ".." / "one", Path(os.path.relpath(tmp_path / "one"))):
            with pytest.raises(ValueError, match=r"^another process is writing"), locked(spelling):
                pytest.fail("locked twice")
        with locked(tmp_path / "other"):
            pass


def test_a_lock_leaves_nothing_beside_the_directory(tmp_path: Path, lock: bool):
    run_step(tmp_path / "dataset", "text")
    assert names(tmp_path) == ["dataset"]


@pytest.mark.parametrize("recreated", [False, True])
def test_a_directory_renamed_before_the_lock_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recreated: bool, lock: bool
):
    (tmp_path / "work").mkdir()

    def late(descriptor: int, **options: Any) -> bool:
        (tmp_path / "work").rename(tmp_path / "final")
        if recreated:
            (tmp_path / "work").mkdir()
        return True

    monkeypatch.setattr(nemotron.directory, "lock_descriptor", late)
    with pytest.raises(ValueError, match=r"another process is writing .*work;"), locked(tmp_path / "work"):
        pytest.fail("locked the wrong directory")


def test_a_file_system_without_locks_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(descriptor: int, **options: Any) -> bool:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(nemotron.directory, "lock_descriptor", unknown)
    run_step(tmp_path / "dataset", "text")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "text"


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_or_lock_gives_one_warning_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
):
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def unknown(descriptor: int, **options: Any) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(process, "warnings", set())
    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(nemotron.directory, "lock_descriptor", unknown)
    run_step(tmp_path / "dataset", "text")
    run_step(tmp_path / "other", "text")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "text"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert any("cannot lock directories" in line and os.strerror(number) in line for line in warnings)
    assert any("cannot flush directories to disk" in line for line in warnings)


def test_a_flush_that_fails_for_another_reason_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run_step(tmp_path / "dataset", "text")


# --- names that a step uses beside its directory


@pytest.mark.parametrize("keep_on_failure", [False, True])
@pytest.mark.parametrize("suffix", [".incomplete", ".incomplete.replaced"])
@pytest.mark.parametrize("kept", ["thesis.txt", "deep/thesis.txt", "metadata.json"])
def test_what_somebody_keeps_under_a_name_of_ours_is_refused_and_untouched(
    tmp_path: Path, suffix: str, kept: str, keep_on_failure: bool
):
    file = tmp_path / f"notes{suffix}" / kept
    file.parent.mkdir(parents=True)
    file.write_text("five years")
    sentence = rf"notes{suffix} holds {Path(kept).parts[0]}, which no unfinished run of this step wrote; move it"
    with (
        pytest.raises(ValueError, match=sentence),
        working_directory(tmp_path / "notes", Dataset, keep_on_failure),
    ):
        pytest.fail("the step started")
    assert file.read_text() == "five years"
    assert names(tmp_path) == [f"notes{suffix}"]


def test_an_empty_working_directory_is_used(tmp_path: Path):
    (tmp_path / "dataset.incomplete").mkdir()
    run_step(tmp_path / "dataset", "text")
    assert names(tmp_path) == ["dataset"]


def test_what_a_killed_step_left_is_its_own(tmp_path: Path):
    places = kill_at_every_call(lambda place: run_step(place / "dataset", "new"), lambda place: None, tmp_path)
    for place in places:
        run_step(place / "dataset", "later")
        assert sorted(path.name for path in (place / "dataset").iterdir()) == ["deep", "metadata.json"]
        assert names(place) == ["dataset"]


def test_a_failed_step_killed_while_it_cleans_up_does_not_block_the_next(tmp_path: Path):
    def fail(place: Path) -> None:
        def stop(work: Path) -> None:
            write(work, "new")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), working_directory(place / "dataset", Dataset) as work:
            stop(work)

    for place in kill_at_every_call(fail, lambda place: None, tmp_path):
        run_step(place / "dataset", "later")
        assert Dataset.load(place / "dataset").text_path.read_text() == "later"
