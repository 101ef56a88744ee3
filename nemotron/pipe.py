"""The interface between steps: one JSON line on stdin, one on stdout, messages for people on stderr.

In: the line that the previous step printed, `{"dataset": {"type": "dataset", "path": "<absolute>", "digest": "..."}}`.
Out: the same kind of line for the next step, and an exit code: 0, 2 for a user error in one sentence, 130 for Ctrl-C,
143 for SIGTERM. Any other exception is a bug of the step and keeps its traceback; `python -X dev` keeps all tracebacks.

Run: set -o pipefail; python data_curation.py | python training.py | python evaluation.py
"""

import gc
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NoReturn

from nemotron.directory import METADATA
from nemotron.process import launched, process
from nemotron.strict import one_sentence, parse_json_object, short
from nemotron.terminal import LINES, drop_output, print_line, printable, unless_unread

if TYPE_CHECKING:
    from nemotron.artifact import Artifact

MAX_SHOWN_METRICS = 8  # our choice; a step with more metrics prints its own table
MAX_LINE_BYTES = 1 << 20  # our choice; the line of ten artifacts has 2 kB


@contextmanager
def step_process(*, several: bool = False) -> Iterator[None]:
    """Run a step as a program: only `print_complete` and `print_page` reach stdout, and errors are one sentence.

    Inside, file descriptor 1 points to stderr, so that no library can corrupt the pipe by printing. ValueError and
    OSError become a sentence on stderr and exit code 2, and so does too little memory; Ctrl-C exit code 130, SIGTERM
    exit code 143. Each of them unwinds the step, so that `working_directory` cleans up. At the end, the lineage
    tracker sends what is left.

    What was imported before stays until the end: a quarter of a million objects with torch. Python's garbage collector
    does not search them inside.

    Args:
        several: whether the step is made for several processes of torchrun; any other one is refused there.
    """
    before = signal.getsignal(signal.SIGTERM)
    gc.freeze()
    try:
        signal.signal(signal.SIGTERM, _raise_terminated)
        if sys.stdout is None or sys.stderr is None:
            raise ValueError("stdout or stderr is closed; connect each to a terminal, a file or another program")
        sys.stdout.flush()
        outer, real_stdout = process.stdout, os.dup(1)
        process.stdout = real_stdout
        os.dup2(2, 1)
        try:
            if not several:
                _check_alone()
            yield
        finally:
            try:
                sys.stdout.flush()
            except BrokenPipeError:  # printed text goes to stderr, which may have no reader
                drop_output(1)
                sys.stdout.flush()
            os.dup2(real_stdout, 1)
            os.close(real_stdout)
            process.stdout = outer
    except KeyboardInterrupt as error:
        _exit(str(error) or "interrupted", 143 if isinstance(error, Terminated) else 130)
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        _exit(f"error: {one_sentence(error)}", 2)
    except (RuntimeError, MemoryError) as error:
        if sys.flags.dev_mode or not is_out_of_memory(error):
            raise
        _exit(f"error: {_memory_sentence(error)}", 2)
    finally:
        gc.unfreeze()
        if process.tracker is not None:
            process.tracker.close()
        signal.signal(signal.SIGTERM, before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had too little memory: how Python, PyTorch's allocators and CUDA say it."""
    texts = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _memory_sentence(error: BaseException) -> str:
    said = ". ".join(one_sentence(error).split(". ")[:2]).rstrip(".")  # PyTorch goes on with how its allocator is set
    return (
        f"there is too little memory ({said}); lower a flag of this step that begins with --batch, --micro-batch or "
        f"--max-new-tokens, end other programs that use the device, or use a larger one"
    )


def _check_alone() -> None:
    """Raise ValueError if torchrun has started this program several times; all but the first end without a word."""
    rank, size = launched()
    if rank > 0:
        raise SystemExit(2)
    if size > 1:
        raise ValueError(
            f"torchrun started {size} processes, and this program runs in one; start it without torchrun, which is for "
            f"the training steps"
        )


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; unwinds a step like Ctrl-C."""


def _raise_terminated(number: int, frame: object) -> NoReturn:
    raise Terminated("terminated")


def _exit(sentence: str, exit_code: int) -> NoReturn:
    if sys.stderr is not None:
        with unless_unread():  # the exit code still reports the error
            print_line(sentence)
    raise SystemExit(exit_code)


def print_complete(artifacts: Mapping[str, "Artifact"]) -> None:
    """Print the artifacts of a finished step: one JSON line on stdout for the next step, a table on stderr.

    Args:
        artifacts: name -> saved artifact, in its final place.
    Raises:
        ValueError: if `artifacts` is empty, or the directory of one holds no saved artifact.
        OSError: if stdout cannot be written to.
    """
    if not artifacts:
        raise ValueError("artifacts={} is empty; give print_complete at least one artifact")
    for name, artifact in artifacts.items():
        if not (artifact.path / METADATA).is_file():
            raise ValueError(
                f"{name}: {artifact.path} holds no saved artifact; print the artifact that load(output_dir) returns"
            )
    entries = {
        name: {"type": artifact.type_name(), "path": str(artifact.path), "digest": artifact.digest}
        for name, artifact in artifacts.items()
    }
    _print_table(artifacts)
    try:
        _write_stdout(json.dumps(entries).replace("\x7f", "\\u007f") + "\n")  # JSON leaves DEL as it is
    except BrokenPipeError:
        places = ", ".join(str(artifact.path) for artifact in artifacts.values())
        raise BrokenPipeError(
            f"the next step ended without reading its input; this step is complete: {places}"
        ) from None


def print_page(text: str) -> None:
    """Print a page of text, such as a plan, to the program's real stdout, also inside `step_process`.

    Raises:
        OSError: if stdout cannot be written to, or its reader ends before the page is complete.
    """
    try:
        _write_stdout(printable(text if text.endswith("\n") else f"{text}\n", keep=LINES))
    except BrokenPipeError:
        raise BrokenPipeError(
            "the reader of stdout ended before the whole page was written; write the page to a file instead"
        ) from None


def _write_stdout(text: str) -> None:
    """Write to the stdout that the program was started with, inside and outside `step_process`."""
    if process.stdout is None:
        print(text, end="", flush=True)
        return
    content = text.encode()
    while content:
        content = content[os.write(process.stdout, content) :]


def _print_table(artifacts: Mapping[str, "Artifact"]) -> None:
    from rich.console import Console  # slow to import, and only a finished step needs it
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
            cells = (printable(cell) for cell in ("" if position else name, key, shown))
            table.add_row(*cells, end_section=position == len(rows) - 1)
    text = io.StringIO()  # rich would end the process if it wrote to a stderr without a reader
    Console(file=text, width=shutil.get_terminal_size().columns, markup=False, emoji=False).print(table)
    with unless_unread():
        print(text.getvalue(), file=sys.stderr, end="", flush=True)


def piped_artifact(artifact_type: str) -> tuple[str, str]:
    """Path and digest of the artifact of this type that the previous step printed.

    Raises:
        ValueError: for a terminal, an empty pipe, more than one line, or not exactly one entry of that type.
    """
    advice = f"give --{artifact_type}-path, or pipe in the step that writes the {artifact_type}"
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ValueError(f"there is no {artifact_type} to read; {advice}")
    line = _read_stdin(sys.stdin)
    if not line.strip():
        raise ValueError(f"stdin is empty, because the previous step failed or nothing is piped in; {advice}")
    if len(line) > MAX_LINE_BYTES or b"\n" in line.strip():
        raise ValueError(f"stdin holds more than the one line that a step prints; {advice}")
    entries = parse_json_object(line, "stdin", advice=advice)
    found = [(name, e) for name, e in entries.items() if isinstance(e, dict) and e.get("type") == artifact_type]
    if len(found) != 1:
        listed = short({name: e.get("type") if isinstance(e, dict) else e for name, e in entries.items()})
        raise ValueError(
            f"stdin names {len(found)} artifacts of type {artifact_type} instead of one, in {listed}; {advice}"
        )
    name, entry = found[0]
    path, digest = entry.get("path"), entry.get("digest")
    if not isinstance(path, str) or not os.path.isabs(path) or not isinstance(digest, str):
        raise ValueError(
            f"stdin: {short(name)} must have an absolute path and a digest, but is {short(entry)}; {advice}"
        )
    return path, digest


def _read_stdin(stream: IO[str]) -> bytes:
    if process.stdin is None or process.stdin[0] is not stream:
        process.stdin = stream, stream.buffer.read(MAX_LINE_BYTES + 1)  # type: ignore[attr-defined]
    return process.stdin[1]
