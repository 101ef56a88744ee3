"""The output of a step: a directory whose metadata.json records its type, inputs, fields and the hash of every file.

In: the files that a step wrote, and the fields of its `Artifact` class. Out: metadata.json, written last and
atomically. `load` rejects a directory without it, or with a single changed byte, before parsing any other file.

    with working_directory(config.output_dir, Dataset) as work:
        ...                                                           # write work / "train.parquet"
        Dataset(path=work, num_examples=n, train_path=work / "train.parquet").save(config)
    dataset = Dataset.load(config.output_dir)

Look at one: cat outputs/nano2/tiny/stage0_pretrain/training/metadata.json
Left out: remote stores. Any tool that copies a directory copies an artifact; the copy has the same digest.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from nemotron.directory import (
    METADATA,
    FileRecord,
    Metadata,
    Reference,
    check_files,
    check_not_written,
    check_replaceable,
    file_record,
    final_place,
    list_files,
    locked,
    mark_as_own,
    read_metadata,
    remove_content,
    repair_swap,
    swap,
    sync_directory,
    working_name,
    write_metadata,
)
from nemotron.lineage import fetch_by_name, log_loaded, log_saved, producer_record
from nemotron.pipe import piped_artifact
from nemotron.process import peak_memory_bytes, process
from nemotron.published import read_reference
from nemotron.scale import SCALES
from nemotron.strict import one_sentence, short
from nemotron.terminal import check_utf8, print_line


class Ladder(Protocol):
    """What `Artifact.save` needs of a step's ladder, the numbers that are compared with the stage's golden file."""

    def write(self, directory: Path, /) -> object:
        """Write ladder.json into the directory."""


class OtherArtifact(ValueError):
    """An artifact of another type, or of another step, than the class that was to read it; with its metadata."""

    def __init__(self, metadata: Metadata) -> None:
        super().__init__(f"type={short(metadata.type)}, written by {short(metadata.producer.get('step'))}")


class Artifact(BaseModel):
    """Base class of every step's output type; pydantic validates the fields on construction and on load.

    A field of type `Path` (or `Path | None`) is a file or directory inside `path`, or a reference: the directory of
    another artifact. Every file below `path` belongs to the artifact.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    path: Path
    """The directory; not stored."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Name -> finite number."""
    _metadata: Metadata | None = PrivateAttr(default=None)
    _made_by: str = PrivateAttr(default="")

    @field_validator("*")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return value.absolute() if isinstance(value, Path) else value

    @classmethod
    def type_name(cls) -> str:
        """The class name in lower case, as in metadata.json and in the JSON line between steps."""
        return cls.__name__.lower()

    @classmethod
    def made_by(cls) -> str:
        """The step that writes this class, for errors: the module that defines it. Empty if several steps write it."""
        return cls.__module__

    @property
    def saved(self) -> Metadata:
        """The content of metadata.json.

        Raises:
            ValueError: if the artifact was not saved or loaded.
        """
        if self._metadata is None:
            raise ValueError(f"the {self.type_name()} at {self.path} is not saved yet; call save() first")
        return self._metadata

    @property
    def digest(self) -> str:
        """sha256 of the content; equal content has the same digest, independent of time and place."""
        return self.saved.digest

    @property
    def created_at(self) -> datetime:
        """Time of saving, with the offset from UTC."""
        return self.saved.created_at

    @property
    def inputs(self) -> dict[str, Reference]:
        """Field name -> the artifact that it refers to."""
        return self.saved.inputs

    @property
    def files(self) -> dict[str, FileRecord]:
        """Relative path -> size and sha256, for every file below `path` except metadata.json."""
        return self.saved.files

    @property
    def producer(self) -> dict[str, Any]:
        """How it was made: inputs, step module, resolved config, seed, versions of the code and the libraries."""
        inputs = {field: reference.model_dump() for field, reference in self.inputs.items()}
        return {"inputs": inputs, **self.saved.producer}

    @property
    def producer_scale(self) -> str | None:
        """The --scale of the step that made it; None if it had none."""
        config = self.saved.producer.get("config")
        return config.get("scale") if isinstance(config, dict) else None

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        name: str | None = None,
        scale: str | None = None,
        made_by: str = "",
        given: "Artifact | None" = None,
    ) -> Self:
        """Load an artifact after checking the hash of every file and the digest of every reference that exists.

        Args:
            path: its directory. Without path and name, load the artifact that the previous step printed to the pipe.
            name: its name in the active lineage tracker.
            scale: of the step that reads it; a warning says if the artifact was made at another one.
            made_by: the steps whose artifact is expected, for the error; left out: the one that writes this class.
            given: what the step was given, if `path` is an artifact that it was made from. If that one is of another
                type or step, the error is about the given one.
        Raises:
            ValueError: in one sentence that names the artifact, the field, the value found and what to do.
        """
        if path is not None and name is not None:
            raise ValueError(f"path={str(path)!r} and name={name!r} are both given; give one of them")
        digest = None
        if name is not None:
            path = fetch_by_name(name, cls.type_name())
        elif path is None:
            path, digest = piped_artifact(cls.type_name())
        made_by = made_by or cls.made_by()
        try:
            artifact = cls._read(Path(path))
        except OtherArtifact as error:
            place, found, expected = Path(path), error, cls.type_name()
            if given is not None:
                place, found, expected = given.path, OtherArtifact(given.saved), given.type_name()
                made_by = given._made_by
            written = f", written by {made_by}" if made_by else ""
            advice = f"give the path of such a {expected}"
            raise ValueError(f"{place}: {found}, expected {expected!r}{written}; {advice}") from None
        artifact._made_by = made_by
        if digest is not None and digest != artifact.digest:
            raise ValueError(
                f"{artifact.path}: digest={artifact.digest[:12]!r}, but the previous step printed {digest[:12]!r}; "
                f"it was replaced since, so run the previous step again"
            )
        process.loaded_digests[artifact.path] = artifact.digest
        if scale is not None and artifact.producer_scale not in (None, scale):
            made = artifact.producer_scale if artifact.producer_scale in SCALES else short(artifact.producer_scale)
            print_line(f"warning: {artifact.path} was made at --scale {made}, and this step runs at --scale {scale}")
        if name is None:
            log_loaded(artifact)
        return artifact

    def check_unchanged(self) -> None:
        """Raise ValueError if its directory no longer holds this artifact, because another run replaced it."""
        try:
            found = read_reference(self.path, self.type_name()).digest
        except ValueError as error:
            raise ValueError(f"the {self.type_name()} that is being read is gone: {error}") from None
        _check_digest(self.path, self.type_name(), self.digest, found)

    @classmethod
    def _read(cls, path: Path) -> Self:
        metadata = read_metadata(path)
        if metadata.type != cls.type_name() or cls._is_of_another_step(metadata):
            raise OtherArtifact(metadata)
        check_content(path, metadata)
        return cls._from_metadata(path.resolve(), metadata)

    @classmethod
    def _is_of_another_step(cls, metadata: Metadata) -> bool:
        """Whether another step than that of this class wrote other fields."""
        found = metadata.fields.keys() | metadata.inputs.keys()
        needed = {name for name, field in cls.model_fields.items() if field.is_required()} - {"path"}
        differs = bool(needed - found) and bool(found - cls.model_fields.keys())
        return differs and metadata.producer.get("step") != cls.made_by()

    @classmethod
    def _from_metadata(cls, path: Path, metadata: Metadata) -> Self:
        """The artifact at `path`, from metadata that has been checked against its files."""
        values: dict[str, Any] = dict(metadata.fields)
        for field in sorted(cls._path_fields() & values.keys()):
            if isinstance(name := values[field], str):
                if not metadata.owns(name):
                    raise ValueError(
                        f"{path}: {field}={short(name)} is not one of its files, and a path may not point outside the "
                        f"artifact; run the step again"
                    )
                values[field] = str(path / name)
        for field, reference in metadata.inputs.items():
            values[field] = os.path.normpath(path / reference.path)
        values |= {"path": str(path), "metrics": metadata.metrics}
        try:
            artifact = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            found = [(detail["type"], str(detail["loc"][0])) for detail in error.errors() if detail["loc"]]
            lacking = [name for kind, name in found if kind == "missing"]
            if lacking and any(kind == "extra_forbidden" for kind, _ in found):
                advice = "an earlier version of its step wrote it; run the step again"
                raise ValueError(f"{path} lacks {', '.join(lacking[:3])}: {advice}") from None
            raise ValueError(f"{path}: {one_sentence(error)}; run the step again") from None
        artifact._metadata = metadata
        return artifact

    def save(self, config: Any = None, ladder: Ladder | None = None) -> Self:
        """Write metadata.json, which makes the directory an artifact.

        An input that this process loaded is recorded as it was loaded; if it has changed since, nothing is saved.

        Args:
            config: the step's resolved Config, for the producer record.
            ladder: the numbers that the step recorded; `save` writes them into the directory first.
        Raises:
            ValueError: if a field would not load with the same value, `path` holds an artifact of another type, or an
                input was replaced after it was loaded.
            OSError: if the disk is full; the directory is then not an artifact.
        """
        path = self.path.resolve()
        check_utf8(path)
        path.mkdir(parents=True, exist_ok=True)
        if (path / METADATA).exists():
            read_metadata(path, self.type_name())
        if ladder is not None:
            ladder.write(path)
        files = {name: file_record(path / name, sync=True) for name in list_files(path)}
        for folder in sorted({(path / name).parent for name in files}):
            sync_directory(folder)
        metadata = Metadata(
            type=self.type_name(),
            created_at=datetime.now().astimezone().replace(microsecond=0),
            fields={},
            metrics=self.metrics,
            inputs={},
            files=files,
            producer=producer_record(type(self).__module__, config) | resources_used(path),
        )
        for field in type(self).model_fields:
            if field not in ("path", "metrics"):
                self._store(field, path, metadata)
        metadata.digest = metadata.compute_digest()
        loaded = self._from_metadata(path, metadata)
        for field in type(self).model_fields:
            value, reloaded = getattr(self, field), getattr(loaded, field)
            if reloaded != (value.resolve() if isinstance(value, Path) else value):
                raise ValueError(f"{path}: {field}={value!r} would load as {reloaded!r}; use plain JSON values")
        write_metadata(path, metadata)
        self._metadata = metadata
        process.loaded_digests[path] = metadata.digest
        if path not in process.working_directories:
            log_saved(self)
        return self

    def _store(self, field: str, path: Path, metadata: Metadata) -> None:
        """Add a field to the metadata of the artifact at `path`, as JSON, relative path or reference."""
        value = getattr(self, field)
        if not isinstance(value, Path):
            if _contains_path(self.model_dump(include={field})):
                raise ValueError(f"{path}: {field} contains a path inside a value; give each path its own field")
            try:  # through text, so that the digest covers what load() will read: the keys of {1: "a"} become strings
                text = json.dumps(self.model_dump(mode="json", include={field}).get(field), allow_nan=False)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {field} cannot be written as JSON: {one_sentence(error)}") from None
            metadata.fields[field] = json.loads(text)
            return
        place = value.resolve()
        final = process.working_directories.get(path, path)
        if place.is_relative_to(path):
            if not metadata.owns(name := place.relative_to(path).as_posix()):
                raise ValueError(f"{path}: {field}={str(value)!r} is not a file and holds none; write it before save()")
            metadata.fields[field] = name
        elif place.is_relative_to(final):
            raise ValueError(
                f"{path}: {field}={str(value)!r} is inside {final}, which this artifact will replace; choose another "
                f"output_dir"
            )
        else:
            try:
                target = read_reference(place)
            except ValueError as error:
                raise ValueError(f"{path}: {field} is neither inside this artifact nor another one: {error}") from None
            _check_digest(place, target.type, process.loaded_digests.get(place, target.digest), target.digest)
            _check_inputs(place, target)  # the inputs of that artifact, which the step may have read through it
            relative = Path(os.path.relpath(place, path)).as_posix()
            metadata.inputs[field] = Reference(type=target.type, digest=target.digest, path=relative)

    @classmethod
    def _path_fields(cls) -> set[str]:
        """Names of the fields of type Path or Path | None, except `path`."""
        fields = cls.model_fields.items()
        return {name for name, field in fields if Path in (field.annotation, *get_args(field.annotation))} - {"path"}


def check_artifact(path: Path, artifact_type: str) -> Metadata:
    """Check an artifact as `Artifact.load` does, for a reader that does not have its class.

    Raises:
        ValueError: if its type, the hash of a file or the digest of a reference that exists is another one.
    """
    metadata = read_metadata(path, artifact_type)
    check_content(path, metadata)
    return metadata


def check_content(path: Path, metadata: Metadata) -> None:
    """Raise ValueError if the hash of a file, or the digest of a reference that exists, is not that of the metadata."""
    check_files(path.resolve(), metadata)
    _check_inputs(path.resolve(), metadata)


def resources_used(path: Path) -> dict[str, float]:
    """Seconds since this process opened the working directory `path`, and its peak memory; nothing for another one."""
    if path not in process.started:
        return {}
    return {"seconds": round(time.monotonic() - process.started[path], 3), "peak_memory_bytes": peak_memory_bytes()}


def _check_digest(path: Path, artifact_type: str, loaded: str, found: str) -> None:
    """Raise ValueError if a directory no longer holds the artifact that was loaded from it."""
    if found != loaded:
        raise ValueError(
            f"{path}: the {artifact_type} had digest {loaded[:12]} when it was loaded, and now has {found[:12]}, "
            f"because another run replaced it; run this step again, or restore the old {artifact_type}"
        )


def _check_inputs(path: Path, metadata: Metadata) -> None:
    """Raise ValueError if an input of the artifact at `path` exists and has changed since the artifact was made.

    Reads no file but metadata.json: load() of the input checks its files.
    """
    for field, reference in metadata.inputs.items():
        place = path / reference.path
        if place.exists():
            try:
                found = read_reference(place, reference.type).digest
            except ValueError as error:
                raise ValueError(f"{path}: {field}: {error}") from None
            if found != reference.digest:
                raise ValueError(
                    f"{path}: {field} had digest {reference.digest[:12]}, but {place.resolve()} now has "
                    f"{found[:12]}; restore the old {reference.type}, or run the step again"
                )


def _contains_path(value: Any) -> bool:
    """Whether a value made of dicts and sequences contains a path."""
    if isinstance(value, dict):
        return any(_contains_path(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(_contains_path(part) for part in value)
    return isinstance(value, PurePath)


@contextmanager
def working_directory(
    output_dir: str | Path, artifact_class: type[Artifact], keep_on_failure: bool = False
) -> Iterator[Path]:
    """Open a directory to write an artifact in; leaving the block moves it to `output_dir` atomically.

    The working directory is `<output_dir>.incomplete`. An artifact of the same type in output_dir is replaced only at
    the end; any other content of either directory is an error before the block starts.

    Args:
        keep_on_failure: keep the files of an unfinished run, for the next run to resume from.
    Raises:
        ValueError: if output_dir or the working directory has other content, another process writes it or runs its
            whole stage, or the block did not save an artifact.
        OSError: if output_dir cannot be written.
    """
    final = final_place(output_dir)
    work = working_name(final)
    check_not_written(final)
    check_replaceable(final, artifact_class.type_name())
    repair_swap(final)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        process.working_directories[work] = final
        process.started[work] = time.monotonic()
        try:
            mark_as_own(work)
            (work / METADATA).unlink(missing_ok=True)
            if not keep_on_failure:
                remove_content(work)
                mark_as_own(work)
            yield work
            if not (work / METADATA).exists():
                raise ValueError(
                    f"{work}: the step did not save a {artifact_class.type_name()}; call save() before the block ends"
                )
            metadata = read_metadata(work, artifact_class.type_name())
            check_files(work, metadata, hashes=False)
        except BaseException:
            if not keep_on_failure:
                remove_content(work, ignore_errors=True)
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            del process.working_directories[work], process.started[work]
        swap(final, artifact_class.type_name())
        process.loaded_digests[final] = metadata.digest
    log_saved(artifact_class._from_metadata(final, metadata))
