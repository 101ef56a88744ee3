"""A run that is made by hand: artifacts of two stages, every text of which tries to leave its place."""

import hashlib
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.directory import Metadata, Reference, file_record, read_metadata, write_metadata

HOSTILE = (
    "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\"></table></pre>"
    "[link](javascript:alert(1)) ![picture](http://example.invalid/p.png) | `a` **b** & \x1b[2J $x$\n"
    "````\n# heading\n<script>document.title = 'ran'</script>\n``` `\n<svg onload=\"document.title = 'ran'\">"
)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def save_step(
    directory: Path,
    step: str,
    files: dict[str, bytes] | None = None,
    *,
    fields: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    inputs: tuple[Path, ...] = (),
    config: dict[str, Any] | None = None,
    artifact_type: str = "dataset",
) -> Path:
    """Write an artifact as `step` would, and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    metadata = Metadata(
        type=artifact_type,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        fields=fields or {},
        metrics=metrics or {},
        inputs={
            f"input_{index}": Reference(type=found.type, digest=found.digest, path=f"../{path.name}")
            for index, path in enumerate(inputs)
            for found in [read_metadata(path)]
        },
        files={name: file_record(directory / name) for name in files or {}},
        producer={"step": step, "config": config or {}, "seed": 1, "code_version": "1.0", "libraries": {"python": "3"}},
    )
    metadata.digest = metadata.compute_digest()
    write_metadata(directory, metadata)
    return directory


@pytest.fixture
def step() -> Callable[..., Path]:
    """`save_step`."""
    return save_step


@pytest.fixture
def as_parquet() -> Callable[[list[dict[str, Any]]], bytes]:
    """`parquet`."""
    return parquet


@pytest.fixture
def hostile() -> str:
    """A text that tries to be a script, a heading, a link, a picture and the end of what it is in."""
    return HOSTILE


def write_run(output_dir: Path) -> Path:
    """A run of two stages of the recipe nano2, with HOSTILE in every place that a user's data can reach."""
    package = "nemotron.recipes.nano2"
    filters = {
        HOSTILE: {
            "threshold": HOSTILE, "num_seen": 10, "num_dropped": 1, "examples": [{"id": HOSTILE, "value": HOSTILE}],
            "dropped_sha256": hashlib.sha256(b"").hexdigest(),
        }
    }  # fmt: skip
    question = json.dumps([{"role": "user", "content": HOSTILE}]).encode().decode()
    data = save_step(
        output_dir / "stage1_sft" / "data_curation",
        f"{package}.stage1_sft.data_curation",
        {"exercises.parquet": parquet([{"id": "a", "family": "math", "messages": question}])},
        fields={"num_examples": 9, "filters": filters, "attribution": [{"origin": HOSTILE, "num_documents": 9}],
                "exercises_path": "exercises.parquet"},
        config={"scale": "small", "sources": [HOSTILE]},
    )  # fmt: skip
    curve = [
        {"step": index, "phase": HOSTILE if index else "first", "batch": "", "tokens": 8, "loss": 5.0 - 0.5 * index,
         "learning_rate": 0.1 / (index + 1), "grad_norm": 1.0}
        for index in range(4)
    ]  # fmt: skip
    training = save_step(
        output_dir / "stage1_sft" / "training",
        f"{package}.stage1_sft.training",
        {
            "curve.parquet": parquet(curve),
            "validation_curve.parquet": parquet([{"step": 4, "category": HOSTILE, "loss": 3.0}]),
            "sample.txt": HOSTILE.encode(),
            "tables/rollouts.parquet": parquet(
                [{"step": 0, "prompt": HOSTILE, "asked": HOSTILE, "text": HOSTILE, "reward": 0.5, "advantage": 1.0}]
            ),
        },
        fields={"num_steps": 4, "num_parameters": 1000, "training_loss": 3.5, "curve_path": "curve.parquet",
                "validation_curve_path": "validation_curve.parquet"},
        inputs=(data,),
        artifact_type="checkpoint",
    )  # fmt: skip
    replies = [
        {"mode": mode, "id": "a", "family": "math", "reply": HOSTILE, "right": mode == "think", "errors": []}
        for mode in ("base", "think", "no_think")
    ]
    table = f"# Results\n\n## Part\n\n| a | b |\n|---|---|\n| {HOSTILE.splitlines()[0]} | 1.0% |\n\n{HOSTILE}\n"
    save_step(
        output_dir / "stage1_sft" / "evaluation",
        f"{package}.stage1_sft.evaluation",
        {"replies.parquet": parquet(replies), "results.md": table.encode(), "samples.md": table.encode()},
        metrics={"chance/math": 0.25, "chance/all": 0.25, HOSTILE: 1.0},
        inputs=(training,),
        artifact_type="results",
    )
    return output_dir


@pytest.fixture
def hostile_run(tmp_path) -> Path:
    """`write_run`."""
    return write_run(tmp_path / "run")
