"""A step's output: a directory whose metadata.json says what it is, what it was made from and which bytes it holds.

In: the files that a step wrote, and the fields of its `Artifact` class. Out: metadata.json, written last and at once;
a directory without it, or whose content differs from it in one byte, is refused before anything in it is parsed.

    with working_directory(config.output_dir, Dataset) as work:
        ...                                                           # write work / "train.parquet"
        Dataset(path=work, num_examples=n, train_path=work / "train.parquet").save(config)
    dataset = Dataset.load(config.output_dir)

Look at one: cat outputs/nano2/tiny/stage0_pretrain/training/metadata.json
Left out: remote stores. A directory is copied by whatever copies directories, and still loads with the same digest.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Self, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from nemotron.lineage import fetch_by_name, tell_loaded, tell_saved
from nemotron.pipe import one_sentence, parse_json, piped_artifact

SCHEMA_VERSION = 1
METADATA = "metadata.json"
PARTIAL_METADATA = "metadata.json.partial"  # its name until it is whole
MAX_METADATA_BYTES = 16 << 20  # our choice; 100,000 files fit


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
    """Every other file below the directory, by its relative path."""
    producer: dict[str, Any]

    def computed_digest(self) -> str:
        """sha256 over type, own fields, metrics, files and the inputs' digests: no time, no place, no producer."""
        content = self.model_dump(include={"type", "fields", "metrics", "files"})
        content["inputs"] = {field: reference.digest for field, reference in self.inputs.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Artifact(BaseModel):
    """Base of every step's output type. A `Path` field is a file or directory inside `path`, or another artifact.

    Fields are validated by pydantic when it is made and when it is loaded; it does not change in between.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    path: Path
    """Its directory now; not stored."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Name -> finite number."""
    _metadata: Metadata | None = PrivateAttr(default=None)

    @field_validator("*")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return value.absolute() if isinstance(value, Path) else value

    @classmethod
    def type_name(cls) -> str:
        """The class name in lower case: what its metadata and the pipe call it."""
        return cls.__name__.lower()

    @property
    def saved(self) -> Metadata:
        """What metadata.json holds.

        Raises:
            ValueError: before `save`.
        """
        if self._metadata is None:
            raise ValueError(f"{self.type_name()} at {self.path} has not been saved yet; call save() first")
        return self._metadata

    @property
    def digest(self) -> str:
        """Identifies the content: equal wherever and whenever the same bits were made."""
        return self.saved.digest

    @property
    def created_at(self) -> datetime:
        """When it was saved, with its offset from UTC."""
        return self.saved.created_at

    @property
    def inputs(self) -> dict[str, Reference]:
        """Field -> the artifact that it refers to."""
        return self.saved.inputs

    @property
    def files(self) -> dict[str, FileRecord]:
        """Relative path -> size and sha256 of every file in the directory but metadata.json."""
        return self.saved.files

    @property
    def producer(self) -> dict[str, Any]:
        """What made it: inputs, step module, resolved config, seed, versions of the code and the libraries."""
        inputs = {field: reference.model_dump() for field, reference in self.inputs.items()}
        return {"inputs": inputs, **self.saved.producer}

    @classmethod
    def load(cls, path: str | Path | None = None, *, name: str | None = None) -> Self:
        """Read an artifact and check every byte of it.

        Args:
            path: its directory; with neither path nor name, the one that the step before printed on the pipe.
            name: what the active lineage tracker calls it.
        Raises:
            ValueError: in one sentence that names the artifact, the field, what was found and what to do.
        """
        if path is not None and name is not None:
            raise ValueError(f"path={path} and name={name!r} were both given; give one of them")
        digest = None
        if name is not None:
            path = fetch_by_name(name, cls.type_name())
        elif path is None:
            path, digest = piped_artifact(cls.type_name())
        artifact = cls._read(Path(path))
        if digest not in (None, artifact.digest):
            raise ValueError(
                f"{artifact.path} has digest {artifact.digest[:12]}, and the step before printed {digest[:12]}: it was "
                f"replaced in between; run that step again"
            )
        tell_loaded(artifact, cls.type_name())
        return artifact

    @classmethod
    def _read(cls, path: Path) -> Self:
        metadata = read_metadata(path)
        path = path.resolve()
        refuse_other_type(path, metadata, cls)
        check_files(path, metadata)
        for field, reference in metadata.inputs.items():
            place = path / reference.path
            if place.exists() and (found := read_metadata(place)).digest != reference.digest:
                raise ValueError(
                    f"{path}: {field} was the {reference.type} {reference.digest[:12]}, and {place.resolve()} now is the "
                    f"{found.type} {found.digest[:12]}; put the old one back, or run the step again"
                )
        return cls._parse(path, metadata)

    @classmethod
    def _parse(cls, path: Path, metadata: Metadata) -> Self:
        """The artifact of checked metadata."""
        values: dict[str, Any] = dict(metadata.fields)
        for field in cls._path_fields():
            if isinstance(value := values.get(field), str):
                if not any(name == value or name.startswith(f"{value}/") for name in metadata.files):
                    raise ValueError(
                        f"{path}: {field}={value!r} is none of its files; an own path stays inside the artifact, so run "
                        f"the step again"
                    )
                values[field] = str(path / value)
        for field, reference in metadata.inputs.items():
            values[field] = os.path.normpath(path / reference.path)
        try:
            artifact = cls.model_validate_json(json.dumps({**values, "metrics": metadata.metrics, "path": str(path)}))
        except ValidationError as error:
            raise ValueError(f"{path}: {one_sentence(error)}; run the step again with this version") from None
        artifact._metadata = metadata
        return artifact

    def save(self, config: Any = None) -> Self:
        """Write metadata.json, at once and last.

        Args:
            config: the step's resolved Config (a dataclass), for the producer record.
        Raises:
            ValueError: if a field, a path or a reference could not be loaded again as it is.
            OSError: if the disk is full; the directory then holds no artifact.
        """
        path = self.path.resolve()
        if (path / METADATA).exists():
            refuse_other_type(path, read_metadata(path), type(self))
        files = {name: FileRecord(size=0, sha256="") for name in list_files(path)}
        for name in files:
            files[name] = hash_file(path / name, sync=True)
        fields, inputs = self._stored_fields(path, files)
        metadata = Metadata(
            type=self.type_name(),
            created_at=datetime.now().astimezone().replace(microsecond=0),
            fields=fields,
            metrics=self.metrics,
            inputs=inputs,
            files=files,
            producer=producer(type(self), config),
        )
        metadata.digest = metadata.computed_digest()
        loaded = self._parse(path, metadata)
        for field in set(type(self).model_fields) - {"path"} - self._path_fields():
            if getattr(loaded, field) != getattr(self, field):
                raise ValueError(
                    f"{path}: {field}={getattr(self, field)!r} would be loaded as {getattr(loaded, field)!r}; keep it as "
                    f"plain JSON values"
                )
        content = metadata.model_dump_json(indent=2).encode()
        if len(content) > MAX_METADATA_BYTES:
            raise ValueError(
                f"{path}: its metadata has {len(content)} bytes, more than {MAX_METADATA_BYTES}; put the data in files"
            )
        with open(path / PARTIAL_METADATA, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path / PARTIAL_METADATA, path / METADATA)
        sync_directory(path)
        self._metadata = metadata
        if path not in _working:
            tell_saved(self)
        return self

    @classmethod
    def _path_fields(cls) -> set[str]:
        """Names of the fields, other than `path`, that are a Path, or a Path or None."""
        return {
            name
            for name, field in cls.model_fields.items()
            if name != "path" and Path in (field.annotation, *get_args(field.annotation))
        }

    def _stored_fields(self, path: Path, files: dict[str, FileRecord]) -> tuple[dict[str, Any], dict[str, Reference]]:
        """The own fields as JSON values, and the references."""
        fields: dict[str, Any] = {}
        inputs: dict[str, Reference] = {}
        final = final_directory(path)
        for field in type(self).model_fields:
            value = getattr(self, field)
            if field in ("path", "metrics"):
                continue
            if not isinstance(value, Path):
                if holds_path(self.model_dump(include={field})):
                    raise ValueError(
                        f"{path}: {field} holds a path inside a container; give every path a field of its own"
                    )
                # Through text, so that the digest sees what a reader will see: keys are strings.
                fields[field] = json.loads(json.dumps(self.model_dump(mode="json", include={field})[field]))
                continue
            place = value.resolve()
            if place.is_relative_to(path):
                name = place.relative_to(path).as_posix()
                if not any(file == name or file.startswith(f"{name}/") for file in files):
                    raise ValueError(f"{path}: {field}={value} is no file and holds none; write it before save()")
                fields[field] = name
            elif place.is_relative_to(final):
                raise ValueError(
                    f"{path}: {field}={value} is in {final}, which this artifact replaces; choose another output_dir"
                )
            else:
                try:
                    target = read_metadata(place)
                except ValueError as error:
                    raise ValueError(
                        f"{path}: {field}={value} is neither inside the artifact nor another artifact: {error}"
                    ) from None
                relative = Path(os.path.relpath(place, path)).as_posix()
                inputs[field] = Reference(type=target.type, digest=target.digest, path=relative)
        return fields, inputs


def holds_path(value: Any) -> bool:
    """Whether a path stands anywhere in a value of dicts and sequences."""
    if isinstance(value, dict):
        return any(holds_path(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(holds_path(part) for part in value)
    return isinstance(value, PurePath)


def read_metadata(directory: Path) -> Metadata:
    """The checked content of metadata.json; the other files are not looked at."""
    if not directory.exists():
        repair_swap(directory.absolute())
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise ValueError(
            f"{directory} {found}, and an artifact is a directory; correct the path, or run the step that writes it"
        )
    file = directory / METADATA
    if not os.path.lexists(file):
        raise ValueError(
            f"{directory} has no {METADATA}: it is half-written or no artifact; run the step that writes it"
        )
    if not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file} is no regular file; put the original directory there")
    with open(file, "rb") as stream:
        content = stream.read(MAX_METADATA_BYTES + 1)
    if len(content) > MAX_METADATA_BYTES:
        raise ValueError(f"{file} has more than {MAX_METADATA_BYTES} bytes; it is no metadata of an artifact")
    values = parse_json(content, str(file))
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{file} has schema_version={values.get('schema_version')!r}, and this version reads {SCHEMA_VERSION}; run the "
            f"step again, or install the version that wrote it"
        )
    try:
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{file}: {one_sentence(error)}; run the step again") from None
    if metadata.digest != metadata.computed_digest():
        raise ValueError(
            f"{file} does not have the digest that it states, {metadata.digest!r}; it was edited, run the step again"
        )
    return metadata


def refuse_other_type(path: Path, metadata: Metadata, artifact_class: type[Artifact]) -> None:
    """Raise ValueError if the artifact in `path` is not one of this class."""
    if metadata.type != artifact_class.type_name():
        raise ValueError(
            f"{path} is a {metadata.type}, not a {artifact_class.type_name()}; give the directory of a {artifact_class.type_name()}"
        )


def list_files(directory: Path) -> list[str]:
    """Relative paths of all files below an artifact's directory but its metadata, sorted.

    Raises:
        ValueError: for a link, a pipe or a device: what they lead to is not in the artifact.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, folders, files in os.walk(directory, onerror=fail):
        for name in folders + files:
            mode = os.lstat(os.path.join(folder, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(
                    f"{os.path.join(folder, name)} is a link or no regular file; an artifact holds copies only"
                )
        names += [(Path(folder) / name).relative_to(directory).as_posix() for name in files]
    return sorted(name for name in names if name not in (METADATA, PARTIAL_METADATA))


def hash_file(file: Path, sync: bool = False) -> FileRecord:
    """Size and sha256 of a file, after making sure that it is on the disk if `sync`."""
    with open(file, "rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=digest)


def check_files(directory: Path, metadata: Metadata, content: bool = True) -> None:
    """Raise ValueError if a file is missing, is not listed, or (with `content`) differs from its record."""
    there = list_files(directory)
    if missing := sorted(set(metadata.files) - set(there)):
        raise ValueError(
            f"{directory}: its file {missing[0]} is missing; copy the artifact again, or run the step again"
        )
    if unlisted := [name for name in there if name not in metadata.files]:
        raise ValueError(f"{directory}: the file {unlisted[0]} does not belong to it; move it somewhere else")
    for name, record in metadata.files.items() if content else ():
        size = (directory / name).stat().st_size
        found = hash_file(directory / name) if size == record.size else FileRecord(size=size, sha256="not computed")
        if found != record:
            raise ValueError(
                f"{directory}: its file {name} has changed: {record.size} bytes with sha256 {record.sha256[:12]} were saved, "
                f"{found.size} bytes with sha256 {found.sha256[:12]} are there; copy the artifact again, or run the step again"
            )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def producer(artifact_class: type[Artifact], config: Any) -> dict[str, Any]:
    """What made an artifact: the step's module, its resolved config and seed, and the versions of code and libraries."""
    values = {} if config is None else asdict(config)
    file = getattr(sys.modules.get(artifact_class.__module__), "__file__", None)
    return {
        "step": module_name(artifact_class.__module__, file),
        # Paths as the user gave them; what JSON cannot hold (an infinite limit) as text.
        "config": json.loads(json.dumps(values, default=str), parse_constant=str),
        "seed": values.get("seed"),
        "code_version": code_version(file),
        "libraries": library_versions(),
    }


def module_name(name: str, file: str | None) -> str:
    """The importable name of a module, also of one that runs as `__main__`."""
    if name != "__main__":
        return name
    spec = sys.modules["__main__"].__spec__
    if spec is not None:  # python -m package.module
        return spec.name
    if file is None:  # a notebook or a prompt
        return name
    import importlib.util

    recipes = importlib.util.find_spec("nemotron.recipes")
    for root in recipes.submodule_search_locations or () if recipes else ():
        if Path(file).resolve().is_relative_to(Path(root).resolve()):
            parts = Path(file).resolve().relative_to(Path(root).resolve()).with_suffix("").parts
            return ".".join(("nemotron.recipes", *parts))
    return Path(file).stem


@cache
def code_version(file: str | None) -> str:
    """The installed version, and the commit of the clone that holds the step, "-dirty" if anything is not committed."""
    version = installed_version("nemotron")
    if file is None:
        return version

    import subprocess  # with importlib.metadata a tenth of a second, and only a finished step needs them

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.path.dirname(os.path.abspath(file)), *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", os.path.abspath(file))  # an environment inside some other clone is not ours
        return f"{version}+{git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')}"
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return version


@cache
def library_versions() -> dict[str, str]:
    """Python's version and that of every library that the installed package declares."""
    import importlib.metadata

    try:
        requirements = importlib.metadata.requires("nemotron") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        requirements = []
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in requirements if "extra ==" not in requirement]
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **{name: installed_version(name) for name in sorted(names)}}


def installed_version(name: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


_working: set[Path] = set()  # open working directories of this process


def final_directory(path: Path) -> Path:
    """Where an artifact that is saved in `path` ends up."""
    return path.with_name(path.name.removesuffix(".incomplete")) if path in _working else path


@contextmanager
def working_directory(
    output_dir: str | Path, artifact_class: type[Artifact], keep_on_failure: bool = False
) -> Iterator[Path]:
    """A directory to write an artifact in; leaving the block puts it in the place of `output_dir`, all at once.

    The directory is `<output_dir>.incomplete`. An artifact of the same type that stood in output_dir is replaced only at
    the end, and only if it holds nothing else. A crash between the two renames is repaired by the next reader or writer.

    Args:
        keep_on_failure: keep what an unfinished run wrote, and hand it to the next one as it is.
    Raises:
        ValueError: before any work, if output_dir holds anything that would be lost, or another process writes it;
            at the end, if no artifact was saved.
        OSError: before any work, if output_dir cannot be written.
    """
    given = Path(os.path.abspath(output_dir))
    final = given.parent.resolve() / given.name
    work, _ = swap_names(final)
    refuse_loss(final, artifact_class)
    work.mkdir(parents=True, exist_ok=True)
    with lock(work):
        repair_swap(final)
        if not work.exists():
            work.mkdir()
        refuse_loss(final, artifact_class)
        (work / METADATA).unlink(missing_ok=True)
        if not keep_on_failure:
            remove_content(work)
        _working.add(work)
        try:
            yield work
            if not (work / METADATA).exists():
                raise ValueError(f"{work}: no {artifact_class.type_name()} was saved in it; call save() before leaving")
            refuse_other_type(work, metadata := read_metadata(work), artifact_class)
            check_files(work, metadata, content=False)
        except BaseException:
            if not keep_on_failure:
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            _working.discard(work)
        swap(final, artifact_class)
    tell_saved(artifact_class._parse(final, metadata))


def swap_names(final: Path) -> tuple[Path, Path]:
    """Where the next artifact of `final` is written, and where the last one is while the two change places."""
    return final.with_name(f"{final.name}.incomplete"), final.with_name(f"{final.name}.replaced")


def swap(final: Path, artifact_class: type[Artifact]) -> None:
    """Put the finished working directory in the place of `final`."""
    work, replaced = swap_names(final)
    with lock(final.parent, wait=True):
        try:
            refuse_loss(final, artifact_class)
        except ValueError as error:
            raise ValueError(f"{error}; the finished {artifact_class.type_name()} is in {work}") from None
        if (final / METADATA).exists():
            os.rename(final, replaced)
        os.rename(work, final)
        sync_directory(final.parent)
    repair_swap(final)


def repair_swap(final: Path) -> None:
    """Bring a swap to its end that was cut off between its two renames or before the old artifact was removed."""
    work, replaced = swap_names(final)
    if not (replaced / METADATA).exists():
        return
    with lock(final.parent, wait=True):
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


def refuse_loss(final: Path, artifact_class: type[Artifact]) -> None:
    """Raise ValueError if writing an artifact to `final` would lose anything but an artifact of the same type."""
    for place in (final, *swap_names(final)):
        if place.is_symlink() or (place.exists() and not place.is_dir()) or os.path.ismount(place):
            raise ValueError(
                f"{place} is a file, a link or a mount point, not a plain directory; choose another output_dir"
            )
    for parent in final.parents:
        if is_artifact(parent):
            raise ValueError(f"output_dir={final} lies inside the artifact {parent}; choose one outside of it")
    _, replaced = swap_names(final)
    if replaced.exists() and not (replaced / METADATA).exists() and any(replaced.iterdir()):
        raise ValueError(f"{replaced} is in the way; move it, or choose another output_dir")
    if final.exists() and any(final.iterdir()):
        try:
            metadata = read_metadata(final)
            refuse_other_type(final, metadata, artifact_class)
            check_files(final, metadata.model_copy(update={"files": dict.fromkeys(list_files(final)) | metadata.files}))
        except ValueError as error:
            raise ValueError(f"output_dir={final} would be replaced, but {error}") from None


def is_artifact(directory: Path) -> bool:
    """Whether a directory has the metadata of an artifact."""
    try:
        read_metadata(directory)
    except ValueError:
        return False
    return True


@contextmanager
def lock(directory: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing in a directory; the lock ends with the process, however that ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(
                f"{directory} is being written by another process; wait for it, or choose another output_dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # NFS cannot lock directories
                raise
        yield
    finally:
        os.close(descriptor)
