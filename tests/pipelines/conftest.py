"""Steps as processes: run by a shell, interrupted, killed, out of disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.curation.rows import TOKENS, Phase, planned_phase
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage0_pretrain.data_curation import Dataset
from nemotron.recipes.nemotron_h.checkpoint import save_checkpoint
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.run import Checkpoint

STEPS = Path(__file__).parents[2] / "recipes" / "nano2" / "stage0_pretrain"

SHORT_PHASES = {"phase1": 96, "phase2": 48, "phase3": 16, "long_context": 4}
"""Sequences of `short_dataset`, which tiny trains on in 12, 6, 2 and 2 steps."""
SHORT_TRAINING = "--warmup-steps 2 --validate-every-steps 10"
"""Flags for training on `short_dataset`."""


class Shell:
    """Runs lines of bash in the directory of the steps, as the README shows them.

    $OUT is an empty directory and $SHORT holds the flags of SHORT_TRAINING.
    """

    def __init__(self, output: Path) -> None:
        self.output = output

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """The variables of a line; `python` is the Python that runs the tests."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OUT": str(self.output), "SHORT": SHORT_TRAINING, **more}

    def run(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Exit code, stdout and stderr of `line`, which reads an empty stdin."""
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail\n{line}"],
            cwd=STEPS,
            env=self.environment(more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start one command as a process that can be sent signals; it writes to $OUT/stdout and $OUT/stderr."""
        with (self.output / "stdout").open("w") as stdout, (self.output / "stderr").open("w") as stderr:
            return subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=STEPS,
                env=self.environment({}),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
            )

    def wait_until(self, condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
        """Wait for `condition()` while the process runs."""
        while not condition():
            assert process.poll() is None, f"ended too early: {(self.output / 'stderr').read_text()}"
            time.sleep(0.002)

    def line_for(self, name: str, artifact) -> Path:
        """A file with the line that print_complete writes for an artifact."""
        path = self.output / f"{name}.json"
        entry = {"type": name, "path": str(artifact.path), "digest": artifact.digest}
        path.write_text(json.dumps({name: entry}) + "\n")
        return path

    @staticmethod
    def refusal(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
        """The sentence of a program that refused its input, after checking that stdout is empty."""
        assert done.returncode == code, done.stderr
        assert not done.stdout
        return Shell.last_words(done.stderr)

    @staticmethod
    def last_words(stderr: str) -> str:
        """The last line on stderr, after checking that there is no traceback."""
        assert "Traceback" not in stderr, stderr
        return stderr.rstrip().splitlines()[-1]


def write_random_base_model(
    path: Path, template: str | None = None, change: Callable[[NemotronH], object] = lambda model: None
) -> Checkpoint:
    """The Checkpoint of a model of random weights, with its own tokenizer and maybe a chat template.

    Args:
        change: of the random weights.
    """
    texts = [
        message["content"]
        for family in FAMILIES.values()
        for exercise in family.generate_exercises(20, 0, split="train")
        for message in exercise.messages
    ]
    save_tokenizer(train_tokenizer(texts, 400), path / "tokenizer")
    if template:
        (path / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = NemotronH(replace(MODELS["tiny"], vocab_size=400), dtype=torch.float64)
    initialize(model, 0)
    change(model)
    save_checkpoint(model, path / "tokenizer", path / "model")
    empty = path / "empty"
    empty.write_text("")
    return Checkpoint(
        path=path,
        num_steps=1,
        num_parameters=1,
        training_loss=1.0,
        checkpoint_path=path / "model",
        training_state_path=empty,
        curve_path=empty,
        validation_curve_path=empty,
        plot_path=empty,
        dataset_path=path / "tokenizer",
    ).save()


def write_random_tokens_dataset(
    path: Path, sequences: dict[str, int], length: int, long_length: int, seed: int = 0
) -> Dataset:
    """A Dataset of stage 0 with random tokens.

    Args:
        sequences: name of a phase -> how many it has.
    """
    tokenizer = train_tokenizer(["some text to learn merges from, some more text"] * 5, vocab_size=300)
    save_tokenizer(tokenizer, path / "tokenizer")
    generator = torch.Generator().manual_seed(seed)

    def write(name: str, rows: int, length: int) -> Phase:
        tokens = torch.randint(13, 200, (rows, length + 1), generator=generator).tolist()
        table = {"category": ["code"] * rows, "tokens": pa.array(tokens, TOKENS)}
        phase = planned_phase(name, rows, length)
        (path / name).mkdir()
        pq.write_table(pa.table(table), *phase.paths(path))
        return phase

    phases = [write(name, rows, long_length if name == "long_context" else length) for name, rows in sequences.items()]
    (validation,) = write("validation", 4, length).paths(path)
    empty = path / "empty.parquet"
    pq.write_table(pa.table({"tokens": pa.array([], TOKENS)}), empty)
    return Dataset(
        path=path,
        num_examples=sum(sequences.values()),
        num_documents=9,
        vocab_size=300,
        sequence_length=length,
        long_context_length=long_length,
        tokenizer_path=path / "tokenizer",
        phases=phases,
        validation_path=validation,
        long_validation_path=empty,
        problems_path=empty,
        recall_path=empty,
        documents_path=empty,
        filters={},
        attribution=[],
        blend={},
        absent_categories=[],
        quality_groups={},
        scorers=[],
        unreadable=[],
        num_unreadable=0,
    ).save()


@pytest.fixture(scope="session")
def random_tokens_dataset():
    """`write_random_tokens_dataset`."""
    return write_random_tokens_dataset


@pytest.fixture(scope="session")
def random_base_model():
    """`write_random_base_model`."""
    return write_random_base_model


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell with an empty output directory."""
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def short_dataset(stage0, tmp_path_factory: pytest.TempPathFactory):
    """The Dataset of stage 0 with only the first sequences of each phase, as an artifact: 22 steps at tiny scale."""
    path = shutil.copytree(stage0.dataset.path, tmp_path_factory.mktemp("short") / "data_curation")
    dataset = type(stage0.dataset).load(path=path)
    phases = [phase.model_copy(update={"num_sequences": SHORT_PHASES[phase.name]}) for phase in dataset.phases]
    for phase in phases:
        (file,) = phase.paths(path)
        pq.write_table(pq.read_table(file).slice(0, phase.num_sequences), file)
    shortened = {"phases": phases, "num_examples": sum(SHORT_PHASES.values())}
    return dataset.model_copy(update=shortened).save()
