"""The directory of an artifact: its metadata are read strictly, and a process that writes may be killed anywhere."""

import builtins
import json
import os
import re
import shutil
import signal
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

from nemotron import Artifact
from nemotron.artifact import working_directory
from nemotron.directory import (
    MAX_METADATA_BYTES,
    FileRecord,
    check_files,
    locked,
    read_metadata,
    record_file,
    replaced_name,
    working_name,
)


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
    """A directory whose metadata.json is that of its neighbour."""
    (directory / "metadata.json").symlink_to("../b/metadata.json")


# --- metadata.json


def break_metadata(directory: Path, change: Callable[[str], str | bytes]) -> None:
    text = change((directory / "metadata.json").read_text())
    (directory / "metadata.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "", r"is not the JSON that a step writes: Expecting value"),
        (lambda text: text[:-10], r"is not the JSON that a step writes: Expecting"),
        (lambda text: text + "{}", r"is not the JSON that a step writes: Extra data"),
        (lambda text: "[1]", r"is not the JSON that a step writes: \[1\] is no object"),
        (lambda text: b"\xff\xfe" + text.encode(), r"is not the JSON that a step writes: 'utf-8' codec can't decode"),
        (lambda text: "[" * 100_000, r"is not the JSON that a step writes: .*(recursion|overflow)"),
        (lambda text: "9" * 5000, r"is not the JSON that a step writes: Exceeds the limit"),
        (lambda text: text.replace('"files"', '"type": "dataset", "files"'), r"the key 'type' stands there twice"),
        (lambda text: text.replace('"metrics": {', '"metrics": {"a": NaN'), r"NaN is no finite number"),
        (lambda text: text.replace('"metrics": {', '"metrics": {"a": -Infinity'), r"-Infinity is no finite number"),
        (lambda text: text.replace('"metrics": {', '"metrics": {"a": 1e999'), r"1e999 is no finite number"),
        (lambda text: text.replace('"metrics": {', '"metrics": {"a": 1'), r"digest='\w+' is not that of its content"),
        (lambda text: text.replace('_version": 1', '_version": 2'), r"schema_version=2, and this version of nemotron"),
        (lambda text: text.replace('"schema_version": 1,', ""), r"schema_version=None, and this version of nemotron"),
        (lambda text: text.replace('"files"', '"fils"'), r"files=.*: Field required; .*fils=.*Extra inputs"),
        (lambda text: text.replace("+00:00", "").replace("Z", ""), r"created_at=.* should have timezone info"),
        (lambda text: " " * MAX_METADATA_BYTES + text, r"has more than 16777216 bytes; no artifact has"),
    ],
)
def test_metadata_that_no_step_wrote_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str | bytes], sentence: str
):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    write(tmp_path / "dataset", "text")
    break_metadata(tmp_path / "dataset", change)
    with pytest.raises(ValueError, match=f"^{tmp_path}/dataset/metadata.json.*{sentence}") as error:
        Dataset.load(tmp_path / "dataset")
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200))
def test_any_bytes_as_metadata_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    directory = tmp_path_factory.getbasetemp() / "any bytes"
    directory.mkdir(exist_ok=True)
    (directory / "metadata.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(directory))):
        read_metadata(directory)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist, not an artifact; correct the path, or run the step that writes it"),
        (lambda path: path.write_text(""), "is a file, not an artifact; correct the path"),
        (lambda path: path.mkdir(), "has no metadata.json: half-written or no artifact; run the step that writes it"),
        (lambda path: path.symlink_to("nowhere"), "does not exist, not an artifact"),
        (
            lambda path: (write(path.with_name("b"), ""), path.mkdir(), link(path)),
            "metadata.json is a link or no regular",
        ),
        (lambda path: (path.mkdir(), os.mkfifo(path / "metadata.json")), "metadata.json is a link or no regular file"),
    ],
)
def test_what_is_no_artifact_is_refused(tmp_path: Path, make: Callable[[Path], Any], sentence: str):
    make(tmp_path / "there")
    with pytest.raises(ValueError, match=f"{tmp_path}/there.{sentence}"):
        read_metadata(tmp_path / "there")


def test_metadata_that_are_too_large_are_not_written(tmp_path: Path):
    class Log(Artifact):
        lines: list[str]

    with pytest.raises(ValueError, match=r"bytes of metadata, 16777216 allowed; put data in files"):
        Log(path=tmp_path, lines=["x" * MAX_METADATA_BYTES]).save()
    assert names(tmp_path) == []


def test_metadata_are_readable_and_in_order(tmp_path: Path):
    write(tmp_path, "text")
    text = (tmp_path / "metadata.json").read_text()
    assert list(json.loads(text)) == [
        *("schema_version", "type", "digest", "created_at", "fields", "metrics", "inputs", "files", "producer")
    ]
    assert '\n  "type": "dataset",\n' in text
    assert text.endswith("}\n")


# --- files


def test_the_record_of_a_file_is_its_size_and_sha256(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    # sha256("abc"), FIPS 180-2, appendix B.1
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record_file(tmp_path / "abc") == FileRecord(size=3, sha256=sha256)


def test_files_are_compared_by_size_alone_when_that_is_asked_for(tmp_path: Path):
    write(tmp_path, "text")
    (tmp_path / "deep" / "text").write_text("TEXT")
    check_files(tmp_path, read_metadata(tmp_path), hashes=False)
    (tmp_path / "deep" / "text").write_text("longer")
    with pytest.raises(ValueError, match="deep/text has 6 bytes and had 4"):
        check_files(tmp_path, read_metadata(tmp_path), hashes=False)


# --- a process that is killed


class Killed(BaseException):
    """Nothing runs after it that touches the disk."""


CHANGES_THE_DISK = [
    *((os, name) for name in ("rename", "fsync", "unlink", "rmdir", "mkdir")),
    (builtins, "open"),
]


def kill_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """From the `call`-th call on, counted from 0, every call that changes the disk raises Killed."""
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
    """Run a function in a process that dies at its `call`-th change of the disk; whether it did."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, call)
        try:
            function(*arguments)
        except Killed:
            return True
    return False


def every_call(function: Callable[[Path], object], prepare: Callable[[Path], object], root: Path) -> list[Path]:
    """One directory for each place where the function can be killed, left as it was then."""
    places = []
    for call in range(200):
        place = root / str(call)
        place.mkdir()
        prepare(place)
        if not run_killed_at(call, function, place):
            return places
        places.append(place)
    raise AssertionError("more than 200 calls")


def test_a_save_that_is_killed_anywhere_leaves_no_half_artifact(tmp_path: Path):
    places = every_call(lambda place: write(place, "new"), lambda place: None, tmp_path)
    accepted = []
    for place in places:
        try:
            accepted.append(Dataset.load(place).text_path.read_text())
        except ValueError:
            assert not (place / "metadata.json").exists()
        write(place, "later")
        assert Dataset.load(place).text_path.read_text() == "later"
    assert len(places) > 5
    assert accepted == ["new"]  # killed after the rename, before the directory was synced


@pytest.mark.parametrize("old", ["old", None])
def test_a_swap_that_is_killed_anywhere_leaves_the_old_or_the_new_artifact(tmp_path: Path, old: str | None):
    def prepare(place: Path) -> None:
        if old:
            run_step(place / "dataset", old)

    places = every_call(lambda place: run_step(place / "dataset", "new"), prepare, tmp_path)
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


def test_a_repair_that_is_killed_anywhere_can_be_repaired(tmp_path: Path):
    def prepare(place: Path) -> None:
        cut_off_swap(place / "dataset")

    places = every_call(lambda place: Dataset.load(place / "dataset"), prepare, tmp_path)
    for place in places:
        assert Dataset.load(place / "dataset").text_path.read_text() == "new"
        run_step(place / "dataset", "later")
        assert names(place) == ["dataset"]
    assert len(places) > 3


def cut_off_swap(final: Path) -> None:
    """The state between the two renames of a swap."""
    run_step(final, "old")
    os.rename(final, replaced_name(final))
    write(working_name(final), "new")


def test_a_reader_repairs_a_swap_that_was_cut_off(tmp_path: Path):
    cut_off_swap(tmp_path / "dataset")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"
    assert names(tmp_path) == ["dataset"]


def test_a_writer_repairs_a_swap_that_was_cut_off(tmp_path: Path):
    cut_off_swap(tmp_path / "dataset")
    with pytest.raises(KeyboardInterrupt), working_directory(tmp_path / "dataset", Dataset):
        raise KeyboardInterrupt
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"


def test_a_reference_is_found_in_a_swap_that_was_cut_off(tmp_path: Path):
    class Results(Artifact):
        dataset_path: Path

    run_step(tmp_path / "dataset", "new")
    Results(path=tmp_path / "results", dataset_path=tmp_path / "dataset").save()
    shutil.rmtree(tmp_path / "dataset")
    cut_off_swap(tmp_path / "dataset")
    assert Dataset.load(Results.load(tmp_path / "results").dataset_path).text_path.read_text() == "new"


def test_without_a_finished_new_artifact_the_old_one_is_put_back(tmp_path: Path):
    cut_off_swap(tmp_path / "dataset")
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


def test_a_process_that_is_really_killed_leaves_a_whole_artifact(tmp_path: Path):
    for moment_seconds in (0.0, 0.013, 0.029):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "dataset")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"running\n"
            time.sleep(moment_seconds)
            process.send_signal(signal.SIGKILL)
        text = Dataset.load(tmp_path / "dataset").text_path.read_text()
        assert text == text[: len(text) // 100_000] * 100_000


def test_a_full_disk_leaves_no_artifact_and_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_every_byte_and_every_name_is_synced_before_the_metadata_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []  # inodes that were synced, and 0 for the rename
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "rename", lambda source, target: (calls.append(0), rename(source, target)))
    write(tmp_path, "text")
    text, folder, metadata = (
        (tmp_path / name).stat().st_ino for name in ("deep/text", "deep", "metadata.json")
    )  # fmt: skip
    assert calls == [text, folder, metadata, 0, tmp_path.stat().st_ino]


# --- two processes


def test_a_swap_waits_for_another_one_in_the_same_parent(tmp_path: Path):
    run_step(tmp_path / "dataset", "old")
    with locked(tmp_path, wait=True):
        writer = threading.Thread(target=run_step, args=(tmp_path / "dataset", "new"))
        writer.start()
        writer.join(timeout=0.2)
        assert writer.is_alive()
        assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "old"
    writer.join()
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "new"


def test_a_lock_ends_with_its_process(tmp_path: Path):
    program = f"from nemotron.directory import *\nwith locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("recreated", [False, True])
def test_a_lock_on_a_directory_that_was_renamed_in_between_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recreated: bool
):
    import fcntl

    (tmp_path / "work").mkdir()
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        (tmp_path / "work").rename(tmp_path / "final")
        if recreated:
            (tmp_path / "work").mkdir()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match="work is being written by another process"), locked(tmp_path / "work"):
        pytest.fail("locked the wrong directory")


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", unknown)
    run_step(tmp_path / "dataset", "text")
    assert Dataset.load(tmp_path / "dataset").text_path.read_text() == "text"
