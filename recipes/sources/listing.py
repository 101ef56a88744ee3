"""Finding the files of a source.

In: a source, "location" or "category=location". Out: its files, and a named reason for each file and folder that is not
read. A location is a local path, a glob, or a URI that Daft can read (`hf://datasets/...`, `s3://...`, `file://...`); a
directory means every file below it. Every file and folder of a directory or glob that is not read is counted and named:

    links     are followed wherever they point; a file or folder that is reached twice is read once
    hidden    files and folders, whose names begin with a dot, are not read unless the location spells that name out
    others    broken links, pipes, sockets, devices, and files of other formats are not read
"""

import fnmatch
import gzip
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron.recipes.sources.dataframes import check_runner, daft
from nemotron.recipes.sources.documents import Unreadable
from nemotron.terminal import check_utf8, printable

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
MAX_LISTED = 1_000_000  # files and folders of a source; our choice

CATEGORY = re.compile(r"([a-z0-9][a-z0-9+_-]*)=(.+)", re.DOTALL)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
FILE_SCHEME = "file://"
GLOB_CHARACTER = re.compile(r"[*?\[]")

# After listing a URI has failed, Daft's threads still log, and an interpreter that exits during that crashes: measured
# in 6 of 10 runs without a pause, and in 0 of 10 with a pause of 0.3 s.
DAFT_SHUTDOWN_SECONDS = 0.3

# Our choice: a URI that does not answer is reported within half a minute.
REMOTE = daft.io.IOConfig(
    s3=daft.io.S3Config(num_tries=3, connect_timeout_ms=5_000, read_timeout_ms=30_000),
    http=daft.io.HTTPConfig(num_tries=3),
)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    location: str
    """Local path or URI."""
    name: str
    """The path below the source's directory or its glob's fixed part; used in ids, so the same on every machine."""
    category: str
    source: str
    """The location as the user gave it, for the attribution list."""

    @property
    def identity(self) -> str:
        """The same for every name of the file: for a local file, the path without links."""
        path = self.location.removeprefix(FILE_SCHEME)
        return path if SCHEME.match(path) else os.path.realpath(path)


def sources_field() -> Any:
    """The field `sources` of a Config: () if left out. The files that it names are inputs of the step, by digest."""
    return field(default=(), metadata={"files": local_files})


def local_files(sources: Sequence[str]) -> list[str]:
    """The local files that a step reads of its sources, in order. Those of a URI are left out, except `file://`.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if a source holds no file of a readable format.
    """
    local = [source for source in sources if not is_remote(split_category(source)[1])]
    files = [file.location.removeprefix(FILE_SCHEME) for source in local for file in find_files(source, "")[0]]
    return list(dict.fromkeys(files))


def is_remote(location: str) -> bool:
    """Whether a location is a URI of another machine."""
    return bool(SCHEME.match(location)) and not location.startswith(FILE_SCHEME)


def find_files(source: str, default_category: str) -> tuple[list[SourceFile], list[Unreadable]]:
    """The files of one source that have a readable format, sorted by path, and what else is there.

    Raises:
        FileNotFoundError: if the location does not exist.
        ValueError: if it holds no file of a readable format, or does not answer.
    """
    category, location = split_category(source)
    category = category or default_category
    check_utf8(location, "source")
    found, skipped = list_uri(location) if SCHEME.match(location) else list_local(os.path.expanduser(location))
    found = sorted((path, printable(name)) for path, name in found)
    files = [SourceFile(path, name, category, location) for path, name in found if path.endswith(SUFFIXES)]
    reason = f"not one of {', '.join(SUFFIXES)}"
    others = [Unreadable(name, reason) for path, name in found if not path.endswith(SUFFIXES)]
    others += [Unreadable(printable(name), reason) for name, reason in sorted(skipped)]
    if not files:
        example = f"; found {others[0].id}" if others else ""
        example += f", which is not read: {others[0].reason}" if others and others[0].reason != reason else ""
        raise ValueError(f"{location} holds no file that ends in {', '.join(SUFFIXES)}{example}; name another source")
    return files, others


def split_category(source: str) -> tuple[str | None, str]:
    """ "code=/data/*.jsonl" -> ("code", "/data/*.jsonl"); a path that exists is never split."""
    match = CATEGORY.fullmatch(source)
    if match and not os.path.lexists(source):
        return match.group(1), match.group(2)
    if not source or source.endswith("="):
        raise ValueError(f"source {source!r} names no location; write <category>=<path>, glob or URI")
    return None, source


Listed = tuple[list[tuple[str, str]], list[tuple[str, str]]]
"""(path, name in ids) of each file, and (name in ids, reason) of whatever is not read."""
HIDDEN = "hidden; spell its name out to read it"


def list_local(location: str) -> Listed:
    """A file, everything below a directory, or what a glob matches.

    Raises:
        FileNotFoundError: if nothing exists there.
        OSError: if a directory cannot be listed.
        ValueError: for a device, a pipe or a socket, or more than `MAX_LISTED` files and folders.
    """
    if os.path.isdir(location):
        parent = os.path.dirname(os.path.abspath(location))
        walk = Walk(parent)
        walk.directory(location)
    elif os.path.lexists(location):
        with errors_naming(location):
            check_regular(location)
        return [(location, os.path.basename(location))], []
    else:
        fixed = GLOB_CHARACTER.split(location, maxsplit=1)[0]
        root = os.path.dirname(fixed)
        walk = Walk(os.path.abspath(root))
        if os.path.isdir(root or os.curdir):
            walk.matches(root, Path(location).parts[len(Path(root).parts) :])
        if not walk.num_listed:
            raise FileNotFoundError(f"{location} does not exist; name a file, directory, glob or URI that does")
    walk.follow_links()
    return list(walk.files.items()), list(walk.skipped.items())


class Walk:
    """Lists files below directories. Real directories come before links, so a name without a link wins.

    Args:
        parent: the directory that names in ids are relative to.
    """

    def __init__(self, parent: str) -> None:
        self.parent = parent
        self.files: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.num_listed = 0
        self._links: list[tuple[str, Sequence[str]]] = []
        self._seen: dict[tuple[str, tuple[str, ...]], str] = {}

    def name(self, path: str) -> str:
        """The name of a path in ids."""
        return Path(os.path.relpath(os.path.abspath(path), self.parent)).as_posix()

    def skip(self, path: str, reason: str) -> None:
        """Note that a path is not read."""
        self.skipped[self.name(path)] = reason

    def count(self, directory: str) -> None:
        """Count something that was listed."""
        self.num_listed += 1
        if self.num_listed > MAX_LISTED:
            raise ValueError(
                f"{directory} is one of more than {MAX_LISTED:,} files and folders; name a smaller directory, or look "
                f"for a link that leads out of it"
            )

    def follow_links(self) -> None:
        """Look at the links that were found, and at those found behind them."""
        while self._links:
            links, self._links = sorted(self._links), []
            for path, pattern in links:
                self.entry(path, pattern, is_link=False)

    def directory(self, path: str, pattern: Sequence[str] = ("**",)) -> None:
        """List what matches a pattern below a directory, once."""
        key = (os.path.realpath(path), tuple(pattern))
        first = self._seen.setdefault(key, path)
        if first != path:
            self.skip(path, f"the same folder as {printable(self.name(first))}")
            return
        try:
            with os.scandir(path or os.curdir) as entries:
                found = sorted((entry.name, entry.is_symlink()) for entry in entries)
        except OSError as error:
            reason = f"{path} cannot be listed ({error.strerror}); check its permissions"
            raise OSError(reason) from error
        first_part, *_ = pattern
        wanted = "*" if first_part == "**" else first_part
        for name, is_link in found:
            if not fnmatch.fnmatchcase(name, wanted):
                continue
            place = os.path.join(path, name)
            self.count(place)
            if name.startswith(".") and not wanted.startswith("."):
                if wanted == pattern[-1] or first_part == pattern[-1] or os.path.isdir(place):
                    self.skip(place, HIDDEN)
            else:
                self.entry(place, pattern, is_link)

    def entry(self, path: str, pattern: Sequence[str], is_link: bool) -> None:
        """Look at something whose name matches the first part of a pattern."""
        if is_link:
            self._links.append((path, pattern))
        elif os.path.isdir(path):
            rest = pattern if pattern[0] == "**" else pattern[1:] or ("**",)
            self.matches(path, rest)
        elif len(pattern) == 1:
            self.file(path)

    def matches(self, path: str, pattern: Sequence[str]) -> None:
        """List what matches a pattern below a directory, where "**" may also stand for no folder."""
        if not GLOB_CHARACTER.search(pattern[0]):  # a name without a wildcard
            place = os.path.join(path, pattern[0])
            if os.path.lexists(place):
                self.count(place)
                self.entry(place, pattern, is_link=False)
            return
        self.directory(path, pattern)
        if pattern[0] == "**" and len(pattern) > 1:
            self.matches(path, pattern[1:])

    def file(self, path: str) -> None:
        """Note a file, or why it is not read."""
        if not os.path.exists(path):
            self.skip(path, "a link that leads nowhere")
            return
        if not stat.S_ISREG(os.stat(path).st_mode):
            self.skip(path, "a pipe, socket or device")
            return
        first = self._seen.setdefault((os.path.realpath(path), ()), path)
        if first == path:
            self.files[path] = self.name(path)
        else:
            self.skip(path, f"the same file as {printable(self.name(first))}")


def check_regular(location: str) -> None:
    """Raise ValueError if a path is a device, a pipe or a socket, which may never end."""
    if not stat.S_ISREG(os.stat(location).st_mode):
        raise ValueError(f"{location} is not a regular file; copy what it holds to a file, and name that")


def list_uri(location: str) -> Listed:
    """A file, everything below a directory, or what a glob matches, as Daft lists it; `file://` is listed here.

    Raises:
        FileNotFoundError: if nothing exists there.
        ValueError: if the URI does not answer or refuses access.
    """
    if location.startswith(FILE_SCHEME):
        return list_file_uri(location)
    if location.endswith(SUFFIXES) and not GLOB_CHARACTER.search(location):
        return [(location, location.rpartition("/")[2])], []
    pattern = location if GLOB_CHARACTER.search(location) else f"{location.rstrip('/')}/**"
    check_runner()
    with errors_naming(location):
        try:
            listed = daft.from_glob_path(pattern, io_config=REMOTE).select("path").to_pydict()["path"]
        except FileNotFoundError:
            listed = []
        except ValueError as error:
            if "MicroPartition" not in str(error):  # part of Daft's message for a glob without a match
                raise
            listed = []
    if not listed:
        raise FileNotFoundError(f"{location} matches no file; check the address")
    fixed = GLOB_CHARACTER.split(pattern, maxsplit=1)[0].rpartition("/")[0]
    spelled_out = {part for part in pattern.removeprefix(fixed).split("/") if part.startswith(".")}
    files, skipped = [], []
    for uri in sorted(listed):
        name = uri.removeprefix(fixed).lstrip("/")
        dotted = (part for part in name.split("/") if part.startswith("."))
        if all(any(fnmatch.fnmatchcase(part, one) for one in spelled_out) for part in dotted):
            files.append((uri, name))
        else:
            skipped.append((name, HIDDEN))
    return files, skipped


def list_file_uri(location: str) -> Listed:
    """The same for a `file://` address, with names as for other URIs; Daft has another rule for links."""
    path = location.removeprefix(FILE_SCHEME)
    is_directory = os.path.isdir(path) and not GLOB_CHARACTER.search(path)
    files, skipped = list_local(os.path.join(path, "**") if is_directory else path)
    other = [(name, "not UTF-8; name its directory without file://") for _, name in files if name != printable(name)]
    return [(FILE_SCHEME + found, name) for found, name in files if name == printable(name)], [*skipped, *other]


# Errors about a file --------------------------------------------------------------------------------------------------


@contextmanager
def errors_naming(location: str) -> Iterator[None]:
    """Turns any error about a file into one sentence that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location} does not exist; check the path or address") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{location} is truncated or damaged ({short_reason(error)}); get it again") from error
    except daft.exceptions.DaftCoreException as error:
        time.sleep(DAFT_SHUTDOWN_SECONDS)
        if "CorruptFile" in str(error):
            raise ValueError(f"{location} is truncated or damaged ({short_reason(error)}); get it again") from error
        raise ValueError(
            f"{location} cannot be read ({short_reason(error)}); check the address, the network and the credentials"
        ) from error
    except OSError as error:
        raise OSError(f"{location} cannot be read ({short_reason(error)}); check its permissions") from error


def short_reason(error: Exception) -> str:
    """The outermost and the innermost reason of an error, which Daft spreads over several lines."""
    lines = [re.sub(r"^\s*([0-9]+: |DaftError::\w+ ?)", "", line).strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith("Caused by")] or [type(error).__name__]
    return reasons[0] if reasons[0] == reasons[-1] else f"{reasons[0]}: {reasons[-1]}"
