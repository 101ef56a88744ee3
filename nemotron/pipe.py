"""How steps talk: one JSON line on stdout, one on stdin, everything for people on stderr.

In: what the step before printed, `{"dataset": {"type": "dataset", "path": "<absolute>", "digest": "..."}}`.
Out: the same line for the step after, and an exit code: 0, 2 for a mistake that a sentence explains, 130 for Ctrl-C,
143 for SIGTERM. Any other exception is a bug of the step and keeps its traceback; `python -X dev` keeps all of them.

Run: set -o pipefail; python data_curation.py | python training.py | python evaluation.py
"""

import errno
import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

if TYPE_CHECKING:
    from nemotron.artifact import Artifact

MAX_SHOWN_METRICS = 8  # our choice; a step that has more prints a table of its own
MAX_LINE_BYTES = 1 << 20  # our choice; a line of ten artifacts has 2 kB

_true_stdout: list[int] = []  # where step_process moved the stdout of the program


@contextmanager
def step_process() -> Iterator[None]:
    """Around a step that runs as a program: only `print_complete` reaches stdout, and mistakes end in one sentence.

    File descriptor 1 points at stderr inside, so no library can break the pipe by printing. ValueError and OSError
    become a sentence on stderr and exit code 2, Ctrl-C exit code 130, SIGTERM exit code 143; each of them unwinds the
    step, so that working directories are left as `working_directory` promises.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if sys.stdout is None or sys.stderr is None:
            raise ValueError("stdout or stderr is closed; send each to a terminal, a file or another program")
        sys.stdout.flush()
        _true_stdout.append(os.dup(1))
        os.dup2(2, 1)
        try:
            yield
        finally:
            with suppress(BrokenPipeError):  # what was printed goes to stderr, and nobody may be reading that
                sys.stdout.flush()
            os.dup2(_true_stdout[-1], 1)
            os.close(_true_stdout.pop())
    except KeyboardInterrupt as error:
        _end(str(error) or "interrupted", 143 if isinstance(error, Terminated) else 130)
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        _end(f"error: {one_sentence(error)}", 2)
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds a step just as Ctrl-C does."""


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Terminated("terminated")


def _end(sentence: str, exit_code: int) -> NoReturn:
    if sys.stderr is not None:
        with suppress(OSError):  # nobody reads stderr any more: the exit code still tells
            print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(exit_code)


_FREE_SPACE = "free some space and run the step again"
_OTHER_PLACE = "change its permissions or choose another place"
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.EROFS: _OTHER_PLACE,
}


def one_sentence(error: BaseException) -> str:
    """What an exception says, on one line; a pydantic error names every field, the value found and what is allowed."""
    if isinstance(error, ValidationError):
        found = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}={_short(e['input'])}: {e['msg']}"
            for e in error.errors(include_url=False)
        ]
        text = f"{error.title}: {'; '.join(found)}"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        text += f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= 2000 else f"{text[:2000]}..."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """The one JSON object in `text`, strictly: no duplicate keys, no NaN or infinity, nothing after it.

    Raises:
        ValueError: in one sentence that begins with `source`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
        return values

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=unique, parse_constant=finite, parse_float=finite,
        )  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not the JSON that a step writes: {one_sentence(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source} is not the JSON that a step writes: {_short(value)} is no object")
    return value


def print_complete(artifacts: Mapping[str, "Artifact"]) -> None:
    """Tell the next step, in one JSON line on stdout, where the artifacts are, and a person, in a table on stderr.

    Args:
        artifacts: name -> saved artifact, in its final place.
    Raises:
        ValueError: if there is none, or one is not where it says.
        OSError: if stdout cannot be written to.
    """
    if not artifacts:
        raise ValueError("print_complete needs at least one artifact")
    for name, artifact in artifacts.items():
        if not (artifact.path / "metadata.json").is_file():
            raise ValueError(f"{name}: {artifact.path} holds no saved artifact; print what load(output_dir) returns")
    entries = {
        name: {"type": artifact.type_name(), "path": str(artifact.path), "digest": artifact.digest}
        for name, artifact in artifacts.items()
    }
    _print_table(artifacts)
    line = json.dumps(entries).encode() + b"\n"
    try:
        if not _true_stdout:  # called by a program that has no step_process
            print(line.decode(), end="", flush=True)
        while line and _true_stdout:
            line = line[os.write(_true_stdout[-1], line) :]
    except BrokenPipeError:
        places = ", ".join(str(artifact.path) for artifact in artifacts.values())
        raise BrokenPipeError(f"the next step ended before this one, which is complete: {places}") from None


def _print_table(artifacts: Mapping[str, "Artifact"]) -> None:
    from rich.console import Console  # only a finished step needs it
    from rich.table import Column, Table

    table = Table("artifact", "field", Column("value", overflow="fold"))
    for name, artifact in artifacts.items():
        rows = {"path": artifact.path, "digest": artifact.digest[:12]}
        rows |= {key: value for key, value in artifact if isinstance(value, int | float)}
        rows |= dict(list(artifact.metrics.items())[:MAX_SHOWN_METRICS])
        if (hidden := len(artifact.metrics) - MAX_SHOWN_METRICS) > 0:
            rows["..."] = f"{hidden} more metrics in metadata.json"
        for position, (key, value) in enumerate(rows.items()):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            table.add_row("" if position else name, key, shown, end_section=position == len(rows) - 1)
    text = io.StringIO()  # given stderr, rich itself would end the process if nobody reads that
    Console(file=text, width=shutil.get_terminal_size().columns, markup=False).print(table)
    with suppress(BrokenPipeError):
        print(text.getvalue(), file=sys.stderr, end="", flush=True)


def piped_artifact(artifact_type: str) -> tuple[str, str]:
    """(path, digest) of the artifact of this type that the step before printed.

    Raises:
        ValueError: for a terminal, an empty pipe, more than one line, or not exactly one entry of that type.
    """
    ask = f"give --{artifact_type}-path, or pipe in the step that writes the {artifact_type}"
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ValueError(f"no {artifact_type} to read: {ask}")
    line = _read_stdin(sys.stdin)
    if not line.strip():
        raise ValueError(f"the pipe is empty: the step before it failed, or stdin leads nowhere; {ask}")
    if len(line) > MAX_LINE_BYTES or b"\n" in line.strip():
        raise ValueError(f"stdin holds more than the one line that a step prints; {ask}")
    entries = parse_json(line, "stdin")
    found = [(name, e) for name, e in entries.items() if isinstance(e, dict) and e.get("type") == artifact_type]
    if len(found) != 1:
        there = _short({name: e.get("type") if isinstance(e, dict) else e for name, e in entries.items()})
        raise ValueError(f"stdin names {len(found)} artifacts of type {artifact_type}, not one: {there}; {ask}")
    name, entry = found[0]
    path, digest = entry.get("path"), entry.get("digest")
    if not isinstance(path, str) or not os.path.isabs(path) or not isinstance(digest, str):
        raise ValueError(f"stdin: {_short(name)} needs an absolute path and a digest, and has {_short(entry)}; {ask}")
    return path, digest


@lru_cache(maxsize=1)  # a step may take several artifacts from the one line
def _read_stdin(stream: IO[str]) -> bytes:
    return stream.buffer.read(MAX_LINE_BYTES + 1)  # type: ignore[attr-defined]
