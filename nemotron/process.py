"""The state of this process: the only variables of the tooling that outlive a call.

In and out: the attributes of `process`.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron.background import BackgroundTracker
    from nemotron.view import View


@dataclass
class ProcessState:
    """The state of one Python process. There is one instance, `process`."""

    tracker: "BackgroundTracker | None" = None
    """Receives every artifact that this process saves or loads, and its curves; set by `set_lineage_tracker`."""
    logged_digests: set[str] = field(default_factory=set)
    """Digests of artifacts that this process saved and logged; loading these is not logged as the use of an input."""
    stdout: int | None = None
    """Inside `step_process`: the file descriptor of the program's real stdout; None outside."""
    stdin: tuple[IO[str], bytes] | None = None
    """The last stream that was read as stdin, and its content: a step may load several artifacts from one line."""
    loaded_digests: dict[Path, str] = field(default_factory=dict)
    """Directory of an artifact -> the digest that this process last loaded from it, or wrote to it."""
    stages: set[Path] = field(default_factory=set)
    """Directories of the stages that this process is running as a whole."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Step, field and value -> the user's files, as they were when the stage that reads them began."""
    hashed: dict[Path, tuple[Any, Any]] = field(default_factory=dict)
    """File of a directory that no step wrote -> its size and times, and its record; see nemotron/published.py."""
    planned: set[Path] = field(default_factory=set)
    """Places of the artifacts that a plan would make, in this process."""
    warnings: set[str] = field(default_factory=set)
    """Keys of the warnings that this process has printed; each is printed once."""
    view: "View | None" = None
    """Shows how far the stages are that this process is running; None outside of them."""
    working_directories: dict[Path, Path] = field(default_factory=dict)
    """Working directory that is open -> the directory that its artifact will have."""
    started: dict[Path, float] = field(default_factory=dict)
    """Working directory that is open -> `time.monotonic()` when it was opened."""


process = ProcessState()


def launched() -> tuple[int, int]:
    """The number of this process among those that torchrun has started together, and how many; without it, 0 and 1."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() and int(size) > 1 else (0, 1)


def peak_memory_bytes() -> int:
    """The most memory that this process has used so far; what it uses now where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        used = psutil.Process().memory_info()
        return getattr(used, "peak_wset", used.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
