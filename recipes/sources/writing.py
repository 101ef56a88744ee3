"""The rows of the user's files as Parquet files of documents, for sources that do not fit into memory.

In: sources, each "location" or "category=location", and a reader of one file. Out: files of documents with unique ids,
and a named reason for each row that does not become one. `files.py` makes documents of text in this way, and
`conversations.py` of conversations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import pyarrow.parquet as pq

from nemotron.recipes.sources.dataframes import Task, run_tasks
from nemotron.recipes.sources.documents import Document, DocumentWriter, Unreadable, read_documents, read_values
from nemotron.recipes.sources.listing import SourceFile
from nemotron.recipes.sources.reading import (
    files_of_sources,
    nothing_in,
    read_files,
    read_rows_of,
    take_turns,
    unique_ids,
)


@dataclass(frozen=True)
class Kind:
    """What the rows of sources become."""

    name: str
    """"document" or "conversation", for messages."""
    default_category: str
    """The category of files for which the user names none."""
    read_file: Callable[[SourceFile, int | None], Iterator[Document | Unreadable]]
    """One document for each row of a file, at most so many of a .parquet file."""


def write_items(
    kind: Kind, sources: Sequence[str], directory: Path, num_items: int | None
) -> tuple[list[Path], list[Unreadable]]:
    """Write the documents of all sources: in the order of the sources, within a source by path, within a file by row.

    Args:
        sources: each "location" or "category=location"; a file that several of them name is read once.
        directory: where the Parquet files go, with the columns of `Document`.
        num_items: rows to read in total, including unreadable ones. The sources take turns row by row, so each
            contributes its first rows, as many as the others or as it has. None reads everything, and the files are
            read wherever Daft runs, at the same time.
    Returns:
        The files, in order, of documents with unique ids (a repeated one gets "#2"), and what could not be read.
    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source is empty, is truncated or damaged, does not answer, or has a format that is not read; if
            a file has two categories.
    """
    files, unreadable = files_of_sources(sources, kind.name, kind.default_category, num_items)
    if num_items is None:
        paths, bad = _write_all(kind, sources, files, directory)
    else:
        paths, bad = _write_first(kind, sources, files, directory, num_items)
    _make_ids_unique(paths)
    return paths, unreadable + bad


def _write_all(
    kind: Kind, sources: Sequence[str], files: Sequence[Sequence[SourceFile]], directory: Path
) -> tuple[list[Path], list[Unreadable]]:
    """Every document, each file of the sources as a file."""

    def write_file(task: Task) -> Task:
        unreadable: list[tuple[str, str]] = []
        with DocumentWriter(Path(task["path"])) as writer:
            for row in read_rows_of(SourceFile(**task["file"]), lambda file: kind.read_file(file, None)):
                if isinstance(row, Unreadable):
                    unreadable.append((row.id, row.reason))
                else:
                    writer.add(row)
        return {"num_documents": writer.num_documents, "unreadable": unreadable}

    known = [asdict(file) for members in files for file in members]
    paths = [directory / f"{number:05d}.parquet" for number in range(len(known))]
    tasks = [{"path": str(path), "file": file} for path, file in zip(paths, known, strict=True)]
    results = iter(run_tasks(write_file, tasks))
    unreadable: list[Unreadable] = []
    for source, members in zip(sources, files, strict=True):
        done = list(islice(results, len(members)))
        bad = [Unreadable(*item) for result in done for item in result["unreadable"]]
        if members and not any(result["num_documents"] for result in done):
            raise nothing_in(source, kind.name, len(bad), bad[0] if bad else None)
        unreadable += bad
    return paths, unreadable


def _write_first(
    kind: Kind, sources: Sequence[str], files: Sequence[Sequence[SourceFile]], directory: Path, number: int
) -> tuple[list[Path], list[Unreadable]]:
    """The first documents of each source, each source as a file."""

    def read_file(file: SourceFile) -> Iterator[Document | Unreadable]:
        return kind.read_file(file, number)

    streams = [read_files(*one, read_file, kind.name) for one in zip(sources, files, strict=True)]
    unreadable: list[list[Unreadable]] = [[] for _ in streams]
    paths = [directory / f"{index:05d}.parquet" for index in range(len(streams))]
    with ExitStack() as stack:
        writers = [stack.enter_context(DocumentWriter(path)) for path in paths]
        for index, row in take_turns(streams, number, kind.name):
            if isinstance(row, Unreadable):
                unreadable[index].append(row)
            else:
                writers[index].add(row)
    return paths, list(chain.from_iterable(unreadable))


def _make_ids_unique(paths: Sequence[Path]) -> None:
    """Give each repeated id a number, and rewrite the files that contain one."""
    ids = iter(unique_ids(id for (id,) in read_values(paths, "id")))
    for path in paths:
        new_ids = list(islice(ids, pq.read_metadata(path).num_rows))
        if all(old_id == id for (old_id,), id in zip(read_values([path], "id"), new_ids, strict=True)):
            continue
        renamed = path.with_suffix(".renamed")
        with DocumentWriter(renamed) as writer:
            for document, id in zip(read_documents([path]), new_ids, strict=True):
                writer.add(document if document.id == id else replace(document, id=id, module=id))
        renamed.replace(path)
