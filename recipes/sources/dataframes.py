"""Daft with its telemetry switched off, and what runs on it; import `daft` from here.

    from nemotron.recipes.sources.dataframes import daft

Daft reads these variables when it is imported, so they are set before the import. A value that the user has set is
kept. With DAFT_RUNNER=ray the same code runs on a Ray cluster, whose machines need the files at the same paths; without
it, on the cores of this machine. Results do not depend on the number of workers.
"""

import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of what it will do in the future

import daft
import pyarrow as pa
from daft.runners import get_or_create_runner

# These loggers repeat, over many lines, the errors that Daft raises and the caller turns into one sentence.
for name in ("daft_local_execution", "aws_config"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

__all__ = [
    "BATCH_ROWS",
    "Task",
    "check_runner",
    "daft",
    "read_files",
    "rows_of",
    "run_tasks",
    "write_dataframe",
    "written",
]

BATCH_ROWS = 256  # our choice: documents that a function in Python gets at a time; their texts are twice in memory
# Our choice: what Daft holds of each file that it reads or writes is a few row groups.
ROW_GROUP_BYTES = 8 << 20
PARQUET_BYTES = 32 << 20
ANSWER_SECONDS = 10  # our choice
SPECIAL = re.compile(r"([\\*?{}\[\]!])")  # in a glob, as which Daft reads every path

Task = dict[str, Any]  # JSON values


def check_runner() -> None:
    """Raise ValueError if DAFT_RUNNER asks for what is not there; connects to Ray, or starts it on this machine."""
    name = os.environ.get("DAFT_RUNNER", "native")
    if name not in ("native", "ray"):
        raise ValueError(
            f"DAFT_RUNNER={name!r} is neither 'native', this machine, nor 'ray', a cluster; set one of them"
        )
    if name == "native":
        return
    try:
        import ray
    except ImportError:
        raise ValueError(
            'DAFT_RUNNER=ray needs Ray, which is not installed; run: pip install "nemotron-recipes[ray]"'
        ) from None
    address = os.environ.get("RAY_ADDRESS", "")
    advice = "start it there with: ray start --head; or unset RAY_ADDRESS, to start it on this machine"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"no Ray answers at RAY_ADDRESS={address!r} ({error}); {advice}") from None
    try:
        if not ray.is_initialized():
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # of any kind: Ray raises plain ones too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"Ray does not start, RAY_ADDRESS={address!r} ({reason}); {advice}") from None


def read_files(paths: Sequence[str | Path]) -> daft.DataFrame:
    """The rows of Parquet files."""
    return daft.read_parquet([SPECIAL.sub(r"\\\1", str(path)) for path in paths])


def write_dataframe(rows: daft.DataFrame, directory: Path) -> list[Path]:
    """Write the rows to Parquet files in a new directory; returns the files, in no particular order."""
    with daft.context.execution_config_ctx(
        parquet_target_row_group_size=ROW_GROUP_BYTES, parquet_target_filesize=PARQUET_BYTES
    ):
        return [Path(path) for path in rows.write_parquet(str(directory)).to_pydict()["path"]]


def written(rows: daft.DataFrame, directory: Path) -> daft.DataFrame:
    """The same rows, read from Parquet files in a new directory, so that they are not held in memory."""
    return read_files(write_dataframe(rows, directory))


def rows_of(table: pa.Table | pa.RecordBatch, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row; a few rows at a time are Python values."""
    for start in range(0, len(table), BATCH_ROWS):
        part = table.slice(start, BATCH_ROWS)
        yield from zip(*(part.column(name).to_pylist() for name in columns), strict=True)


def run_tasks(function: Callable[[Task], Task], tasks: Sequence[Task]) -> list[Task]:
    """What the function returns for each task, in the order of the tasks; they run wherever Daft runs, in any order.

    Args:
        function: does its work through files, so that a task and its result are small. It is sent to other machines.
    Raises:
        ValueError, OSError: what the first task that failed raised.
    """

    @daft.func.batch(return_dtype=daft.DataType.string(), use_process=False, batch_size=1)
    def results(column: daft.Series) -> list[str]:
        return [json.dumps(_result_or_error(function, json.loads(task))) for task in column.to_pylist()]

    if not tasks:
        return []
    rows = daft.from_pydict({"number": list(range(len(tasks))), "task": [json.dumps(task) for task in tasks]})
    if get_or_create_runner().name == "ray":
        rows = rows.into_partitions(len(tasks))  # each of them may be on another machine
    done = rows.select("number", results(daft.col("task")).alias("result")).to_pydict()
    in_order = sorted(zip(done["number"], done["result"], strict=True))
    found = [json.loads(result) for _, result in in_order]
    for result in found:
        if "error" in result:
            raise {"ValueError": ValueError, "FileNotFoundError": FileNotFoundError}.get(result["kind"], OSError)(
                result["error"]
            )
    return found


def _result_or_error(function: Callable[[Task], Task], task: Task) -> Task:
    """The result, or the error that a user can do something about as a result: Daft would wrap it in its own."""
    try:
        return function(task)
    except (ValueError, OSError) as error:
        kinds = (FileNotFoundError, OSError, ValueError)
        return {"error": str(error), "kind": next(kind.__name__ for kind in kinds if isinstance(error, kind))}
