"""The directory of an artifact: metadata.json, the files, and the swap that replaces an old artifact with a new one.

In: directories. Out: checked `Metadata`, or one sentence that names the artifact, what was found and what to do.

A step writes in `<name>.incomplete` and marks it as its own with metadata.json.partial; a directory with that name and
other content is refused. The swap renames the old `<name>` to `<name>.incomplete.replaced`, then the new directory to
`<name>`, then removes the old one. The next writer completes a swap that was interrupted; so does the next reader if
`<name>` is missing. A writer locks the directory that it writes in; a swap locks the parent; a whole stage locks
`.running` in its directory. Locks end with their process. A file system without locks, or without flushing of
directories, gives a warning: there, two processes can write the same directory, and a power failure can lose a finished
one.

On Windows, where a directory can be neither opened nor flushed, an empty file in the user's temporary directory is
locked for it (`lock_file_of`). There a lock holds among the processes of one user on one machine.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import lock_descriptor
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from nemotron.process import process
from nemotron.strict import one_sentence, parse_json_object, short
from nemotron.terminal import check_utf8, print_line

SCHEMA_VERSION = 1
METADATA = "metadata.json"
PARTIAL_METADATA = "metadata.json.partial"  # until it is complete; empty at first, to mark a working directory
RUNNING = ".running"  # in the directory of a stage: locked while the whole stage runs
UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error numbers of fsync and locks on a file system that does not support them."""
OPENS_DIRECTORIES = os.name == "posix"
"""Whether this operating system opens a directory like a file, to lock it and to flush it."""
LOCK_POLL_SECONDS = 0.01  # our choice: how often a waiting process tries again
MAX_METADATA_BYTES = 16 << 20  # our choice: enough for 100,000 files


class FileRecord(BaseModel):
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


class Reference(BaseModel):
    """Another artifact that this one was made from; `path` is relative to the directory of this one."""

    type: str
    digest: str
    path: str


class Metadata(BaseModel):
    """The content of metadata.json."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    type: str
    digest: str = ""
    created_at: AwareDatetime
    fields: dict[str, Any]
    """The fields of the artifact class; a path is relative to the directory."""
    metrics: dict[str, float]
    inputs: dict[str, Reference]
    """Field name -> the artifact that it refers to."""
    files: dict[str, FileRecord]
    """Relative path -> record, for every other file in the directory and below."""
    producer: dict[str, Any]

    def compute_digest(self) -> str:
        """sha256 over type, fields, metrics, files and the digests of the inputs; not over time, place or producer."""
        content = self.model_dump(include={"type", "fields", "metrics", "files"})
        content["inputs"] = {field: reference.digest for field, reference in self.inputs.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def owns(self, path: str) -> bool:
        """Whether a relative path is one of the files, or a directory that contains one."""
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)


def read_metadata(directory: Path, expected_type: str | None = None) -> Metadata:
    """Read and check metadata.json; does not look at the other files.

    Raises:
        ValueError: if the directory has no complete artifact, or one of another type.
    """
    check_utf8(directory.resolve())
    if not directory.exists():
        repair_swap(directory.absolute())
    if not directory.is_dir():
        found = "is a file, and an artifact is a directory" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {found}; correct the path, or run the step that writes it")
    file = directory / METADATA
    if not os.path.lexists(file):
        raise ValueError(
            f"{directory} has no {METADATA}, so it is not a complete artifact; run the step that writes it"
        )
    if not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file} is not a regular file; replace the link or device with a copy of the file")
    with open(file, "rb") as stream:
        content = stream.read(MAX_METADATA_BYTES + 1)
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(f"{file} is larger than the {MAX_METADATA_BYTES} bytes of any artifact; run the step again")
    values = parse_json_object(content, str(file), advice="run the step again")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version={short(version)}, but this version of nemotron reads {SCHEMA_VERSION}; run the "
            f"step again, or install the version that wrote it"
        )
    try:
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {one_sentence(error)}; run the step again") from None
    if metadata.digest != metadata.compute_digest():
        raise ValueError(f"{file}: digest={short(metadata.digest)} does not match its content; copy the artifact again")
    if expected_type not in (None, metadata.type):
        raise ValueError(
            f"{directory}: type={short(metadata.type)}, expected {expected_type!r}; give the path of a {expected_type}"
        )
    return metadata


def write_metadata(directory: Path, metadata: Metadata) -> None:
    """Write metadata.json atomically; call it after every file that it describes is on disk."""
    content = metadata.model_dump_json(indent=2).encode() + b"\n"
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(
            f"{directory}: {len(content)} bytes of metadata, at most {MAX_METADATA_BYTES} allowed; move data to files"
        )
    with open(directory / PARTIAL_METADATA, "wb") as stream:
        stream.write(content)
        stream.flush()
        flush_to_disk(stream.fileno(), directory / PARTIAL_METADATA)
    os.replace(directory / PARTIAL_METADATA, directory / METADATA)
    sync_directory(directory)


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files of an artifact except its metadata, sorted.

    Raises:
        ValueError: for a link, a pipe or a device, whose content is not in the artifact, or a name that is not UTF-8.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, folders, files in os.walk(directory, onerror=fail):
        for name in folders + files:
            entry = Path(folder) / name
            check_utf8(entry)
            if not (stat.S_ISREG(entry.lstat().st_mode) or stat.S_ISDIR(entry.lstat().st_mode)):
                place = entry.relative_to(directory)
                raise ValueError(
                    f"{directory}: {place} is not a regular file; replace the link or device with a copy of the file"
                )
        names += [(Path(folder) / name).relative_to(directory).as_posix() for name in files]
    return sorted(name for name in names if name not in (METADATA, PARTIAL_METADATA))


def file_record(file: Path, sync: bool = False) -> FileRecord:
    """Size and sha256 of a file; with `sync`, first flush it to disk."""
    writable = sync and not OPENS_DIRECTORIES  # Windows flushes only what it may write
    with open(file, "r+b") if writable else open(file, "rb") as stream:
        if sync:
            flush_to_disk(stream.fileno(), file)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=sha256)


def check_files(directory: Path, metadata: Metadata, hashes: bool = True) -> None:
    """Compare the files of a directory with their records; without `hashes`, compare sizes only.

    Raises:
        ValueError: if a file is missing, differs, or is not listed (a reader of *.parquet would read it too).
    """
    present = dict.fromkeys(list_files(directory))
    for name in present:
        if name not in metadata.files:
            raise ValueError(f"{directory}: the file {name} is not part of the artifact; move it elsewhere")
    for name, record in metadata.files.items():
        if name not in present:
            raise ValueError(f"{directory}: the file {name} is missing; copy the artifact again, or run the step again")
        size = (directory / name).stat().st_size
        if size != record.size:
            found, saved = f"has {size} bytes", f"{record.size}"
        elif hashes and (sha256 := file_record(directory / name).sha256) != record.sha256:
            found, saved = f"has sha256 {sha256[:12]}", record.sha256[:12]
        else:
            continue
        raise ValueError(
            f"{directory}: the file {name} {found}, but had {saved} when it was saved; copy the artifact again, or run "
            f"the step again"
        )


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to disk, so that they survive a power failure; Windows has no call for it."""
    if not OPENS_DIRECTORIES:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        flush_to_disk(descriptor, directory)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int, place: Path) -> None:
    """Call fsync; print a warning if the file system does not support it.

    Raises:
        OSError: if fsync is supported and fails, because the disk is full or broken.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        kind = "directories" if place.is_dir() else "files"
        warn_once(
            f"the file system of {place} cannot flush {kind} to disk ({error.strerror}); after a power failure, check "
            f"what was written last",
            key=f"flush {kind}",
        )


def warn_once(sentence: str, key: str) -> None:
    """Print a warning on stderr, the first time that this process has one with this key."""
    if key not in process.warnings:
        process.warnings.add(key)
        print_line(f"warning: {sentence}")


@contextmanager
def locked(directory: Path, wait: bool = False, written: Path | None = None) -> Iterator[None]:
    """Hold the lock of a directory.

    Args:
        written: what the holder of the lock writes, for the error; the directory itself if left out.
    Raises:
        ValueError: if another process holds it and `wait` is False.
    """
    busy = f"another process is writing {written or directory}; wait for it, or choose another output_dir"
    opened = os.stat(directory)
    if OPENS_DIRECTORIES:
        descriptor = os.open(directory, os.O_RDONLY)
        opened = os.fstat(descriptor)
    else:
        descriptor = os.open(lock_file_of(directory), os.O_RDWR | os.O_CREAT)
    try:
        try:
            if not lock_descriptor(descriptor, blocking=wait, poll_interval=LOCK_POLL_SECONDS):
                raise ValueError(busy)
        except OSError as error:
            if error.errno not in UNSUPPORTED:  # NFS does not lock directories
                raise
            warn_once(
                f"the file system of {directory} cannot lock directories ({error.strerror}); let no other process "
                f"write to {written or directory} meanwhile",
                key="lock",
            )
        if not (directory.exists() and os.path.samestat(opened, os.stat(directory))):
            raise ValueError(busy)  # the other process finished and renamed it just before we got the lock
        yield
    finally:
        os.close(descriptor)


def lock_file_of(directory: Path) -> Path:
    """The file that is locked for a directory where directories cannot be; two spellings of a path have the same one.

    It is empty, and stays: whoever deleted it could delete the one that the next process has just locked.
    """
    folder = Path(tempfile.gettempdir()) / "nemotron-locks"
    folder.mkdir(parents=True, exist_ok=True)
    place = os.path.normcase(os.path.realpath(directory))
    return folder / f"{hashlib.sha256(os.fsencode(place)).hexdigest()}.lock"


def check_not_written(final: Path) -> None:
    """Raise ValueError if another process is writing the artifact of `final`, or runs the stage that it belongs to."""
    if working_name(final).is_dir():
        with locked(working_name(final)):
            pass
    running = final.parent / RUNNING
    if running.is_dir() and final.parent not in process.stages:
        with locked(running, written=final.parent):
            pass


def final_place(output_dir: str | Path) -> Path:
    """The directory that an artifact will have; a link in its place is not followed.

    Raises:
        ValueError: if the path is not UTF-8, also if that is so because of the current directory.
    """
    given = Path(os.path.abspath(output_dir))
    final = given.parent.resolve() / given.name
    check_utf8(final)
    return final


def working_name(final: Path) -> Path:
    """The directory in which the next artifact of `final` is written."""
    return final.with_name(f"{final.name}.incomplete")


def replaced_name(final: Path) -> Path:
    """The directory that holds the old artifact of `final` during the swap."""
    return final.with_name(f"{final.name}.incomplete.replaced")


def swap(final: Path, artifact_type: str) -> None:
    """Replace `final` with the finished artifact in its working directory."""
    with locked(final.parent, wait=True):
        try:
            check_replaceable(final, artifact_type)
        except ValueError as error:
            raise ValueError(f"{error}; the finished {artifact_type} is in {working_name(final)}") from None
        if (final / METADATA).exists():
            os.rename(final, replaced_name(final))
        os.rename(working_name(final), final)
        sync_directory(final.parent)
    repair_swap(final)


def repair_swap(final: Path) -> None:
    """Complete a swap that was interrupted between its two renames, or before the old artifact was removed."""
    work, replaced = working_name(final), replaced_name(final)
    if not is_artifact(replaced):
        return
    with locked(final.parent, wait=True):
        if not final.exists():
            os.rename(work if (work / METADATA).exists() else replaced, final)
            sync_directory(final.parent)
        if replaced.exists():
            remove_content(replaced)
            replaced.rmdir()


def remove_content(directory: Path, ignore_errors: bool = False) -> None:
    """Empty a directory; metadata.json and the mark of a step go last, so that it stays recognizable until then."""
    last = (METADATA, PARTIAL_METADATA)
    for entry in sorted(directory.iterdir(), key=lambda entry: (entry.name in last, entry.name)):
        try:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError:
            if not ignore_errors:
                raise


def check_replaceable(final: Path, artifact_type: str) -> None:
    """Raise ValueError if writing to `final` would lose anything other than an artifact of the same type."""
    for place in (final, working_name(final), replaced_name(final)):
        if place.is_symlink() or (place.exists() and not place.is_dir()) or os.path.ismount(place):
            raise ValueError(
                f"{place} is a file, a link or a mount point, not a plain directory; choose another output_dir"
            )
    if final.name.endswith((".incomplete", ".replaced")):
        raise ValueError(
            f"output_dir={final} ends in .incomplete or .replaced, which are reserved for unfinished work; choose "
            f"another name"
        )
    if final.exists() and not os.access(final, os.W_OK):
        raise ValueError(f"output_dir={final} is not writable; change its permissions or choose another one")
    for parent in final.parents:
        if parent.is_file():
            raise ValueError(f"output_dir={final}: {parent} is a file, not a directory; choose another output_dir")
        if is_artifact(parent):
            raise ValueError(f"output_dir={final} is inside the artifact {parent}; choose one outside of it")
    work, replaced = working_name(final), replaced_name(final)
    for place, is_ours in ((work, is_own(work, artifact_type)), (replaced, is_artifact(replaced))):
        if place.exists() and not is_ours and (kept := sorted(path.name for path in place.iterdir())):
            raise ValueError(
                f"{place} holds {kept[0]}, which no unfinished run of this step wrote; move it elsewhere or choose "
                f"another output_dir"
            )
    if final.exists() and any(final.iterdir()):
        try:
            owned = read_metadata(final, artifact_type).files
            foreign = [name for name in list_files(final) if name not in owned]
        except ValueError as error:
            raise ValueError(
                f"output_dir={final} will not be replaced, so delete it or choose another: {error}"
            ) from None
        if foreign:
            raise ValueError(
                f"output_dir={final} holds {foreign[0]}, which is not part of the {artifact_type}; move it elsewhere"
            )


def is_artifact(directory: Path, artifact_type: str | None = None) -> bool:
    """Whether a directory has readable metadata of an artifact of this type, or of any type if None."""
    if not directory.is_dir():
        return False
    try:
        read_metadata(directory, artifact_type)
    except (ValueError, OSError):
        return False
    return True


def is_own(work: Path, artifact_type: str) -> bool:
    """Whether a step opened this working directory, or finished an artifact in it that was not yet moved."""
    return (work / PARTIAL_METADATA).is_file() or is_artifact(work, artifact_type)


def mark_as_own(work: Path) -> None:
    """Write the mark that tells a step's working directory from any other of that name; save() replaces the mark."""
    with open(work / PARTIAL_METADATA, "ab"):
        pass
    sync_directory(work)
