"""Write the rows of a phase of pretraining, several files at a time.

In: the category of each row, in training order, and the tokens of each category as a stream. Out: the phase's files.
The rows before it say where in its streams a file begins. So each file is a list of slices of them, and is made by
itself: anywhere, in any order, and with no more in memory than a row group.

Left out: an order that is not in memory. It has a name for each row of a phase, and the tasks have it again as JSON:
for phase 1 of full, 1.46 billion rows, about 30 GB (an estimate).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nemotron.recipes.curation.packing import TokenFiles, TokenStream, rows_from
from nemotron.recipes.curation.rows import TOKENS, Phase, rows_per_group, rows_per_shard
from nemotron.recipes.sources.dataframes import Task, run_tasks

SEQUENCES = pa.schema({"category": pa.string(), "tokens": TOKENS})
"""The columns of a phase's files."""


def write_sequences(
    directory: Path,
    phase: Phase,
    order: Sequence[str],
    streams: Mapping[str, TokenStream],
    made: Mapping[str, TokenFiles],
) -> None:
    """Write the files of a phase; the streams then continue after its rows.

    Args:
        directory: of the Dataset.
        order: the category of each row.
        streams: category -> its tokens.
        made: name in `order` -> rows that were made for this phase, end to end; they share no token.
    """
    tasks, length = [], phase.sequence_length
    read = dict.fromkeys(made, 0)
    for number, path in enumerate(phase.paths(directory)):
        size = rows_per_shard(length)
        names = list(order[number * size : (number + 1) * size])
        parts = {}
        for name in sorted(set(names)):
            tokens = made[name] if name in made else streams[name].tokens
            assert isinstance(tokens, TokenFiles)
            start = read[name] if name in made else streams[name].num_read
            parts[name] = {"paths": list(map(str, tokens.paths)), "counts": tokens.counts, "start": start}
            if name in made:
                parts[name]["rows"] = True
                read[name] += names.count(name) * (length + 1)
            else:
                streams[name].num_read += names.count(name) * length
        tasks.append({"path": str(path), "order": names, "length": length, "parts": parts})
    run_tasks(write_shard, tasks)


def write_shard(task: Task) -> Task:
    """Write one file: the columns category, and tokens with one more than the predicted ones."""
    order, length = task["order"], task["length"]
    parts = task["parts"].items()
    files = {name: TokenFiles([Path(path) for path in part["paths"]], part["counts"]) for name, part in parts}
    read = {name: part["start"] for name, part in parts}
    path, size = Path(task["path"]), rows_per_group(length)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, SEQUENCES) as writer:
        for first in range(0, len(order), size):
            names = np.array(order[first : first + size], dtype=object)
            rows = np.empty((len(names), length + 1), dtype=np.int32)
            for name in sorted(set(names)):
                places = np.flatnonzero(names == name)
                if "rows" in task["parts"][name]:
                    # Each was made with its label, and the next one shares no token with it.
                    start, stop = read[name], read[name] + len(places) * (length + 1)
                    rows[places] = files[name][start:stop].reshape(-1, length + 1)
                    read[name] = stop
                else:
                    # A row has one token more than it predicts: the last one is only a label, and begins the next row.
                    rows[places] = rows_from(files[name], read[name], len(places), length)
                    read[name] += len(places) * length
            starts = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * (length + 1))
            tokens = pa.ListArray.from_arrays(starts, rows.reshape(-1))
            writer.write_table(pa.table([pa.array(names, pa.string()), tokens], schema=SEQUENCES))
    return {}
