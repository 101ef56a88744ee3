"""A step's output: a directory whose metadata.json says what it is, what it was made from and which bytes it holds.

In: the files that a step wrote, and the fields of its `Artifact` class. Out: metadata.json, written last and at once; a
directory without it, or one that differs from it in a single byte, is refused before anything in it is parsed.

    with working_directory(config.output_dir, Dataset) as work:
        ...                                                           # write work / "train.parquet"
        Dataset(path=work, num_examples=n, train_path=work / "train.parquet").save(config)
    dataset = Dataset.load(config.output_dir)

Look at one: cat outputs/nano2/tiny/stage0_pretrain/training/metadata.json
Left out: remote stores. Whatever copies a directory copies an artifact, and the copy has the same digest.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from nemotron.directory import (
    METADATA,
    FileRecord,
    Metadata,
    Reference,
    check_files,
    list_files,
    locked,
    read_metadata,
    record_file,
    refuse_loss,
    remove_content,
    repair_swap,
    swap,
    sync_directory,
    working_name,
    write_metadata,
)
from nemotron.lineage import fetch_by_name, producer_record, tell_loaded, tell_saved
from nemotron.pipe import one_sentence, piped_artifact

_open_directories: dict[Path, Path] = {}  # working directories of this process -> where their artifact will be


class Artifact(BaseModel):
    """Base of every step's output type; pydantic validates the fields when it is made and when it is loaded.

    A field of type `Path` (or `Path | None`) is a file or directory inside `path`, or the directory of another
    artifact: a reference. Every file below `path` belongs to the artifact.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    path: Path
    """Where it is now; not stored."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Name -> finite number."""
    _metadata: Metadata | None = PrivateAttr(default=None)

    @field_validator("*")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        return value.absolute() if isinstance(value, Path) else value

    @classmethod
    def type_name(cls) -> str:
        """The class name in lower case: the type in its metadata and on the pipe."""
        return cls.__name__.lower()

    @property
    def saved(self) -> Metadata:
        """What metadata.json holds.

        Raises:
            ValueError: before `save`.
        """
        if self._metadata is None:
            raise ValueError(f"the {self.type_name()} at {self.path} is not saved yet; call save() first")
        return self._metadata

    @property
    def digest(self) -> str:
        """Identifies the content: the same bits have the same digest, whenever and wherever they were made."""
        return self.saved.digest

    @property
    def created_at(self) -> datetime:
        """When it was saved, with the offset from UTC."""
        return self.saved.created_at

    @property
    def inputs(self) -> dict[str, Reference]:
        """Field -> the artifact that it refers to."""
        return self.saved.inputs

    @property
    def files(self) -> dict[str, FileRecord]:
        """Relative path -> size and sha256 of every file below `path` but metadata.json."""
        return self.saved.files

    @property
    def producer(self) -> dict[str, Any]:
        """What made it: inputs, step module, resolved config, seed, versions of the code and the libraries."""
        inputs = {field: reference.model_dump() for field, reference in self.inputs.items()}
        return {"inputs": inputs, **self.saved.producer}

    @classmethod
    def load(cls, path: str | Path | None = None, *, name: str | None = None) -> Self:
        """Read an artifact after checking every byte of it, and the digests of the references that are there.

        Args:
            path: its directory; with neither path nor name, the one that the step before printed is read from the pipe.
            name: what the active lineage tracker calls it.
        Raises:
            ValueError: in one sentence that names the artifact, the field, what was found and what to do.
        """
        if path is not None and name is not None:
            raise ValueError(f"path={str(path)!r} and name={name!r} are both given; give one of them")
        digest = None
        if name is not None:
            path = fetch_by_name(name, cls.type_name())
        elif path is None:
            path, digest = piped_artifact(cls.type_name())
        artifact = cls._read(Path(path))
        if digest is not None and digest != artifact.digest:
            raise ValueError(
                f"{artifact.path}: digest={artifact.digest[:12]!r}, and the step before printed {digest[:12]!r}; "
                f"it was replaced in between, so run that step again"
            )
        if name is None:
            tell_loaded(artifact)
        return artifact

    @classmethod
    def _read(cls, path: Path) -> Self:
        metadata = read_metadata(path, cls.type_name())
        path = path.resolve()
        check_files(path, metadata)
        for field, reference in metadata.inputs.items():
            place = path / reference.path
            if place.exists():  # its files are checked when it is loaded itself
                try:
                    found = read_metadata(place, reference.type).digest
                except ValueError as error:
                    raise ValueError(f"{path}: {field}: {error}") from None
                if found != reference.digest:
                    raise ValueError(
                        f"{path}: {field} was made with digest {reference.digest[:12]}, and {place.resolve()} has "
                        f"{found[:12]}; put the old {reference.type} back, or run the step again"
                    )
        return cls._from_metadata(path, metadata)

    @classmethod
    def _from_metadata(cls, path: Path, metadata: Metadata) -> Self:
        """The artifact at `path`, from metadata that were compared with its files."""
        values: dict[str, Any] = dict(metadata.fields)
        for field in sorted(cls._path_fields() & values.keys()):
            if isinstance(name := values[field], str):
                if not metadata.owns(name):
                    raise ValueError(
                        f"{path}: {field}={name!r} is not among its files, and an own path may not leave the "
                        f"artifact; run the step again"
                    )
                values[field] = str(path / name)
        for field, reference in metadata.inputs.items():
            values[field] = os.path.normpath(path / reference.path)
        values |= {"path": str(path), "metrics": metadata.metrics}
        try:
            artifact = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise ValueError(f"{path}: {one_sentence(error)}; run the step again") from None
        artifact._metadata = metadata
        return artifact

    def save(self, config: Any = None) -> Self:
        """Write metadata.json: from then on, the directory is an artifact.

        Args:
            config: the step's resolved Config, for the producer record.
        Raises:
            ValueError: if a field or path could not be loaded again as it is, or `path` holds another artifact.
            OSError: if the disk is full; the directory then is no artifact.
        """
        path = self.path.resolve()
        path.mkdir(parents=True, exist_ok=True)
        if (path / METADATA).exists():
            read_metadata(path, self.type_name())
        files = {name: record_file(path / name, sync=True) for name in list_files(path)}
        for folder in sorted({(path / name).parent for name in files}):
            sync_directory(folder)
        metadata = Metadata(
            type=self.type_name(),
            created_at=datetime.now().astimezone().replace(microsecond=0),
            fields={},
            metrics=self.metrics,
            inputs={},
            files=files,
            producer=producer_record(type(self).__module__, config),
        )
        for field in type(self).model_fields:
            if field not in ("path", "metrics"):
                self._store(field, path, metadata)
        metadata.digest = metadata.computed_digest()
        loaded = self._from_metadata(path, metadata)
        for field in type(self).model_fields:
            value, again = getattr(self, field), getattr(loaded, field)
            if again != (value.resolve() if isinstance(value, Path) else value):
                raise ValueError(f"{path}: {field}={value!r} would be loaded as {again!r}; use plain JSON values")
        write_metadata(path, metadata)
        self._metadata = metadata
        if path not in _open_directories:
            tell_saved(self)
        return self

    def _store(self, field: str, path: Path, metadata: Metadata) -> None:
        """Put a field's value into the metadata of the artifact at `path`: as JSON, relative path or reference."""
        value = getattr(self, field)
        if not isinstance(value, Path):
            if _holds_path(self.model_dump(include={field})):
                raise ValueError(f"{path}: {field} holds a path inside of a value; give each path a field of its own")
            try:  # by way of text, for a digest over what a reader will see: the keys of {1: "a"} become strings
                text = json.dumps(self.model_dump(mode="json", include={field}).get(field), allow_nan=False)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {field} cannot be written as JSON: {one_sentence(error)}") from None
            metadata.fields[field] = json.loads(text)
            return
        place = value.resolve()
        final = _open_directories.get(path, path)
        if place.is_relative_to(path):
            if not metadata.owns(name := place.relative_to(path).as_posix()):
                raise ValueError(f"{path}: {field}={str(value)!r} is no file and holds none; write it before save()")
            metadata.fields[field] = name
        elif place.is_relative_to(final):
            raise ValueError(
                f"{path}: {field}={str(value)!r} lies in {final}, which this artifact will replace; choose another "
                f"output_dir"
            )
        else:
            try:
                target = read_metadata(place)
            except ValueError as error:
                raise ValueError(f"{path}: {field} is neither inside it nor another artifact: {error}") from None
            relative = Path(os.path.relpath(place, path)).as_posix()
            metadata.inputs[field] = Reference(type=target.type, digest=target.digest, path=relative)

    @classmethod
    def _path_fields(cls) -> set[str]:
        """Names of the fields that are a Path, or a Path or None, but `path`."""
        fields = cls.model_fields.items()
        return {name for name, field in fields if Path in (field.annotation, *get_args(field.annotation))} - {"path"}


def _holds_path(value: Any) -> bool:
    """Whether a path stands anywhere in a value made of dicts and sequences."""
    if isinstance(value, dict):
        return any(_holds_path(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_path(part) for part in value)
    return isinstance(value, PurePath)


@contextmanager
def working_directory(
    output_dir: str | Path, artifact_class: type[Artifact], keep_on_failure: bool = False
) -> Iterator[Path]:
    """A directory to write an artifact in; leaving the block puts it in the place of `output_dir`, all at once.

    It is `<output_dir>.incomplete`. An artifact of the same type in output_dir is replaced only at the end; anything
    else in output_dir is refused before any work.

    Args:
        keep_on_failure: keep what an unfinished run wrote, and hand it to the next run as it is.
    Raises:
        ValueError: if output_dir holds anything else, another process writes it, or the block saved no artifact.
        OSError: if output_dir cannot be written.
    """
    given = Path(os.path.abspath(output_dir))
    final = given.parent.resolve() / given.name
    work = working_name(final)
    refuse_loss(final, artifact_class.type_name())
    repair_swap(final)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        (work / METADATA).unlink(missing_ok=True)
        if not keep_on_failure:
            remove_content(work)
        _open_directories[work] = final
        try:
            yield work
            if not (work / METADATA).exists():
                raise ValueError(f"{work}: the step saved no {artifact_class.type_name()}; call save() before it ends")
            metadata = read_metadata(work, artifact_class.type_name())
            check_files(work, metadata, hashes=False)
        except BaseException:
            if not keep_on_failure:
                shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            del _open_directories[work]
        swap(final, artifact_class.type_name())
    tell_saved(artifact_class._from_metadata(final, metadata))
