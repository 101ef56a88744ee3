"""A directory that no step wrote, as the input of one: a Hugging Face model, known by the sha256 of its files.

In: a directory without metadata.json. Out: `Metadata` as an artifact has it, of the type publishedmodel, so that a step
can name the directory as an input, and `python -m nemotron.lineage` can show and check it. Nothing is written there.

    metadata = read_reference(Path("<directory of an artifact or of a model>"))

What counts are the files directly in the directory whose names do not begin with a dot; links are followed, as a
download cache needs them. A file is hashed again when its size, its modification time or the file itself is another.
"""

from datetime import datetime
from pathlib import Path

from nemotron.directory import METADATA, FileRecord, Metadata, file_record, read_metadata
from nemotron.process import process
from nemotron.terminal import check_utf8

PUBLISHED = "publishedmodel"
"""The type of such a directory, among those of artifacts."""
MARKS = ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json")
"""Files of which a model in the layout of the Hugging Face Hub has at least one."""


def is_published(directory: Path) -> bool:
    """Whether a directory is not an artifact and has a file of a model."""
    return not (directory / METADATA).exists() and any((directory / name).is_file() for name in MARKS)


def published_metadata(directory: Path) -> Metadata:
    """What identifies the directory: the size and sha256 of each file, and one digest over all of them."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    records: dict[str, FileRecord] = {}
    newest = 0.0
    for file in files:
        check_utf8(file)
        place, state = file.resolve(), file.stat()
        signature = (state.st_size, state.st_mtime_ns, state.st_ino)
        if process.hashed.get(place, (None, None))[0] != signature:
            process.hashed[place] = (signature, file_record(file))
        records[file.name] = process.hashed[place][1]
        newest = max(newest, state.st_mtime)
    metadata = Metadata(
        type=PUBLISHED,
        created_at=datetime.fromtimestamp(newest).astimezone().replace(microsecond=0),
        fields={},
        metrics={},
        inputs={},
        files=records,
        producer={},
    )
    metadata.digest = metadata.compute_digest()
    return metadata


def read_reference(directory: Path, expected_type: str | None = None) -> Metadata:
    """What identifies an input of a step: the metadata of an artifact, or that of a directory that no step wrote.

    Raises:
        ValueError: as `read_metadata`, if it is neither of the two or of another type.
    """
    if expected_type not in (None, PUBLISHED) or not is_published(directory):
        return read_metadata(directory, expected_type)
    return published_metadata(directory)
