"""The directory of an artifact: its metadata.json, its files, and how a new one takes the place of an old one.

In: directories. Out: checked `Metadata`, or one sentence that names the artifact, what was found and what to do.

A step writes in `<name>.incomplete`. The swap renames the old `<name>` to `<name>.incomplete.replaced`, then the new
one to `<name>`, then removes the old one; whoever comes next repairs a swap that was cut off. A writer locks the
directory that it writes in, a swap the parent; locks end with their process. Where the file system has none (NFS), two
writers of one directory are not kept apart.
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

from nemotron.pipe import one_sentence, parse_json

SCHEMA_VERSION = 1
METADATA = "metadata.json"
PARTIAL_METADATA = "metadata.json.partial"  # its name until it is whole
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
    """Own fields; a path is relative to the directory."""
    metrics: dict[str, float]
    inputs: dict[str, Reference]
    """Field -> the artifact that it refers to."""
    files: dict[str, FileRecord]
    """Every other file in the directory and below, by its relative path."""
    producer: dict[str, Any]

    def computed_digest(self) -> str:
        """sha256 over type, own fields, metrics, files and the inputs' digests: no time, no place, no producer."""
        content = self.model_dump(include={"type", "fields", "metrics", "files"})
        content["inputs"] = {field: reference.digest for field, reference in self.inputs.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def owns(self, path: str) -> bool:
        """Whether a relative path is one of the files, or a directory that holds some."""
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)


def read_metadata(directory: Path, expected_type: str | None = None) -> Metadata:
    """The checked content of metadata.json; the other files are not looked at.

    Raises:
        ValueError: if there is no artifact, only half of one, or one of another type.
    """
    if not directory.exists():
        repair_swap(directory.absolute())
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"{directory} {found}, not an artifact; correct the path, or run the step that writes it")
    file = directory / METADATA
    if not os.path.lexists(file):
        raise ValueError(f"{directory} has no {METADATA}: half-written or no artifact; run the step that writes it")
    if not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file} is a link or no regular file; put the file itself there")
    with open(file, "rb") as stream:
        content = stream.read(MAX_METADATA_BYTES + 1)
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(f"{file} has more than {MAX_METADATA_BYTES} bytes; no artifact has, run the step again")
    values = parse_json(content, str(file))
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{file}: schema_version={version!r}, and this version of nemotron reads {SCHEMA_VERSION}; run the step "
            f"again, or install the version that wrote it"
        )
    try:
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {one_sentence(error)}; run the step again") from None
    if metadata.digest != metadata.computed_digest():
        raise ValueError(f"{file}: digest={metadata.digest!r} is not that of its content; copy the artifact again")
    if expected_type not in (None, metadata.type):
        raise ValueError(
            f"{directory}: type={metadata.type!r}, not {expected_type!r}; give the path of a {expected_type}"
        )
    return metadata


def write_metadata(directory: Path, metadata: Metadata) -> None:
    """Write metadata.json: the whole file appears at once, after everything that it describes is on the disk."""
    content = metadata.model_dump_json(indent=2).encode() + b"\n"
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(
            f"{directory}: {len(content)} bytes of metadata, {MAX_METADATA_BYTES} allowed; put data in files"
        )
    with open(directory / PARTIAL_METADATA, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(directory / PARTIAL_METADATA, directory / METADATA)
    sync_directory(directory)


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files of an artifact but its metadata, sorted.

    Raises:
        ValueError: for a link, a pipe or a device: what is behind it is not in the artifact.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, folders, files in os.walk(directory, onerror=fail):
        for name in folders + files:
            entry = Path(folder) / name
            if not (stat.S_ISREG(entry.lstat().st_mode) or stat.S_ISDIR(entry.lstat().st_mode)):
                place = entry.relative_to(directory)
                raise ValueError(f"{directory}: {place} is a link or no regular file; put a copy of the file there")
        names += [(Path(folder) / name).relative_to(directory).as_posix() for name in files]
    return sorted(name for name in names if name not in (METADATA, PARTIAL_METADATA))


def record_file(file: Path, sync: bool = False) -> FileRecord:
    """Size and sha256 of a file, after making sure that it is on the disk if `sync`."""
    with open(file, "rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=sha256)


def check_files(directory: Path, metadata: Metadata, hashes: bool = True) -> None:
    """Raise ValueError if a file is missing, is not listed, or differs from its record; without `hashes`, in size only.

    A file that is not listed is refused, because the reader of a directory (of Parquet parts, say) would read it.
    """
    there = dict.fromkeys(list_files(directory))
    for name in there:
        if name not in metadata.files:
            raise ValueError(f"{directory}: the file {name} does not belong to it; move it somewhere else")
    for name, record in metadata.files.items():
        if name not in there:
            raise ValueError(f"{directory}: the file {name} is missing; copy the artifact again, or run the step again")
        size = (directory / name).stat().st_size
        if size != record.size:
            found, saved = f"has {size} bytes", f"{record.size}"
        elif hashes and (sha256 := record_file(directory / name).sha256) != record.sha256:
            found, saved = f"has sha256 {sha256[:12]}", record.sha256[:12]
        else:
            continue
        raise ValueError(
            f"{directory}: the file {name} {found} and had {saved} when it was saved; copy the artifact again, or run "
            f"the step again"
        )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory.

    Raises:
        ValueError: if another process holds it, unless `wait`.
    """
    busy = f"{directory} is being written by another process; wait for it, or choose another output_dir"
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # NFS has no locks on directories
                raise
        if not (directory.exists() and os.path.samestat(os.fstat(descriptor), os.stat(directory))):
            raise ValueError(busy)  # it was finished and renamed just before we had the lock
        yield
    finally:
        os.close(descriptor)


def working_name(final: Path) -> Path:
    """Where the next artifact of `final` is written."""
    return final.with_name(f"{final.name}.incomplete")


def replaced_name(final: Path) -> Path:
    """Where the last artifact of `final` is while the two change places."""
    return final.with_name(f"{final.name}.incomplete.replaced")


def swap(final: Path, artifact_type: str) -> None:
    """Put the finished artifact in the working directory in the place of `final`."""
    with locked(final.parent, wait=True):
        try:
            refuse_loss(final, artifact_type)
        except ValueError as error:
            raise ValueError(f"{error}; the finished {artifact_type} is in {working_name(final)}") from None
        if (final / METADATA).exists():
            os.rename(final, replaced_name(final))
        os.rename(working_name(final), final)
        sync_directory(final.parent)
    repair_swap(final)


def repair_swap(final: Path) -> None:
    """Bring a swap to its end that was cut off between its two renames, or before the old artifact was removed."""
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
    """Empty a directory, metadata.json last: until then it can be told what it is."""
    for entry in sorted(directory.iterdir(), key=lambda entry: (entry.name == METADATA, entry.name)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def refuse_loss(final: Path, artifact_type: str) -> None:
    """Raise ValueError if writing an artifact to `final` would lose anything but an artifact of the same type."""
    for place in (final, working_name(final), replaced_name(final)):
        if place.is_symlink() or (place.exists() and not place.is_dir()) or os.path.ismount(place):
            raise ValueError(
                f"{place} is a file, a link or a mount point, no plain directory; choose another output_dir"
            )
    if final.name.endswith((".incomplete", ".replaced")):
        raise ValueError(f"output_dir={final} has the name of a directory for unfinished work; choose another name")
    if final.exists() and not os.access(final, os.W_OK):
        raise ValueError(f"output_dir={final} cannot be written; change its permissions or choose another one")
    for parent in final.parents:
        if is_artifact(parent):
            raise ValueError(f"output_dir={final} lies inside the artifact {parent}; choose one outside of it")
    if final.exists() and any(final.iterdir()):
        try:
            owned = read_metadata(final, artifact_type).files
            foreign = [name for name in list_files(final) if name not in owned]
        except ValueError as error:
            raise ValueError(f"output_dir={final} is not replaced, delete it or choose another: {error}") from None
        if foreign:
            raise ValueError(
                f"output_dir={final} holds {foreign[0]}, which the {artifact_type} does not own; move it away"
            )


def is_artifact(directory: Path) -> bool:
    """Whether there is readable metadata in a directory."""
    try:
        read_metadata(directory)
    except (ValueError, OSError):
        return False
    return True
