"""The directory of an artifact: metadata.json, the files, and the swap that replaces an old artifact with a new one.

In: directories. Out: checked `Metadata`, or one sentence that names the artifact, what was found and what to do.

A step writes in `<name>.incomplete`. The swap renames the old `<name>` to `<name>.incomplete.replaced`, then the new
directory to `<name>`, then removes the old one. The next reader or writer completes a swap that was interrupted. A
writer locks the directory that it writes in; a swap locks the parent. Locks end with their process. On a file system
without locks (NFS), two processes can write the same directory.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from nemotron.strict import one_sentence, parse_json_object

SCHEMA_VERSION = 1
METADATA = "metadata.json"
PARTIAL_METADATA = "metadata.json.partial"  # its name until it is complete
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
    if not directory.exists():
        repair_swap(directory.absolute())
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {found}, not an artifact; correct the path, or run the step that writes it")
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
            f"{file}: schema_version={version!r}, but this version of nemotron reads {SCHEMA_VERSION}; run the step "
            f"again, or install the version that wrote it"
        )
    try:
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {one_sentence(error)}; run the step again") from None
    if metadata.digest != metadata.compute_digest():
        raise ValueError(f"{file}: digest={metadata.digest!r} does not match its content; copy the artifact again")
    if expected_type not in (None, metadata.type):
        raise ValueError(
            f"{directory}: type={metadata.type!r}, expected {expected_type!r}; give the path of a {expected_type}"
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
        os.fsync(stream.fileno())
    os.rename(directory / PARTIAL_METADATA, directory / METADATA)
    sync_directory(directory)


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files of an artifact except its metadata, sorted.

    Raises:
        ValueError: for a link, a pipe or a device, whose content is not in the artifact.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, folders, files in os.walk(directory, onerror=fail):
        for name in folders + files:
            entry = Path(folder) / name
            if not (stat.S_ISREG(entry.lstat().st_mode) or stat.S_ISDIR(entry.lstat().st_mode)):
                place = entry.relative_to(directory)
                raise ValueError(
                    f"{directory}: {place} is not a regular file; replace the link or device with a copy of the file"
                )
        names += [(Path(folder) / name).relative_to(directory).as_posix() for name in files]
    return sorted(name for name in names if name not in (METADATA, PARTIAL_METADATA))


def file_record(file: Path, sync: bool = False) -> FileRecord:
    """Size and sha256 of a file; with `sync`, first flush it to disk."""
    with open(file, "rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=sha256)


def check_files(directory: Path, metadata: Metadata, hashes: bool = True) -> None:
    """Compare the files of a directory with their records; without `hashes`, compare sizes only.

    Raises:
        ValueError: if a file is missing, differs, or is not listed; a reader of all Parquet files would read it too.
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
    """Flush the names in a directory to disk, so that they survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory.

    Raises:
        ValueError: if another process holds it and `wait` is False.
    """
    busy = f"another process is writing {directory}; wait for it, or choose another output_dir"
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # NFS does not lock directories
                raise
        if not (directory.exists() and os.path.samestat(os.fstat(descriptor), os.stat(directory))):
            raise ValueError(busy)  # the other process finished and renamed it just before we got the lock
        yield
    finally:
        os.close(descriptor)


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
    if not (replaced / METADATA).exists():
        return
    with locked(final.parent, wait=True):
        if not final.exists():
            os.rename(work if (work / METADATA).exists() else replaced, final)
            sync_directory(final.parent)
        if replaced.exists():
            remove_content(replaced)
            replaced.rmdir()


def remove_content(directory: Path) -> None:
    """Empty a directory, metadata.json last: until then it is recognizable as an artifact."""
    for entry in sorted(directory.iterdir(), key=lambda entry: (entry.name == METADATA, entry.name)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


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
        if is_artifact(parent):
            raise ValueError(f"output_dir={final} is inside the artifact {parent}; choose one outside of it")
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


def is_artifact(directory: Path) -> bool:
    """Whether a directory has readable metadata."""
    try:
        read_metadata(directory)
    except (ValueError, OSError):
        return False
    return True
