"""The examples of the design: three steps with artifacts, pipes, redirections and an orchestrator.

The loader of a recipe is `batches` (recipes/training/batches.py), a plain function; here it is a loop over lines.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.posix  # a shell

DATA_CURATION = """
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from pydantic import Field

from nemotron import Artifact, Scale, apply_scale, print_complete


@dataclass
class Config:
    scale: Scale = "tiny"
    output_dir: Path = Path("data")


class Dataset(Artifact):
    num_examples: int = Field(gt=0)
    train_path: Path
    valid_path: Path


def main(config: Config) -> Dataset:
    # Step 1: Load and filter raw data
    raw_data = [f"document {number}" for number in range(2000)]
    filtered = [text for text in raw_data if not text.endswith("7")]

    # Step 2: Apply scaling for fast iteration
    actual_size = apply_scale(len(filtered), config.scale)
    sampled = filtered[:actual_size]

    # Step 3: Save as validated artifact
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "train.txt").write_text("\\n".join(sampled))
    (config.output_dir / "valid.txt").write_text("\\n".join(filtered[-3:]))
    dataset = Dataset(
        path=config.output_dir,
        num_examples=len(sampled),
        train_path=config.output_dir / "train.txt",
        valid_path=config.output_dir / "valid.txt",
    )
    dataset.save()
    return dataset


if __name__ == "__main__":
    dataset = main(tyro.cli(Config))
    print_complete({"dataset": dataset})
"""

TRAINING = """
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from data_curation import Dataset
from nemotron import Artifact, print_complete


@dataclass
class Config:
    dataset_path: Path | None = None
    output_dir: Path = Path("model")


class Checkpoint(Artifact):
    num_steps: int
    training_loss: float
    checkpoint_path: Path
    dataset_path: Path  # Reference to the dataset used


def main(config: Config) -> Checkpoint:
    dataset = Dataset.load(path=config.dataset_path)
    for step, line in enumerate(dataset.train_path.read_text().splitlines()):
        loss = 1 / (step + 1)
        if step % 10 == 0:
            print(f"Step {step}: loss={loss:.4f}", file=sys.stderr)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "model.pt").write_text("weights")
    checkpoint = Checkpoint(
        path=config.output_dir,
        num_steps=step + 1,
        training_loss=loss,
        checkpoint_path=config.output_dir / "model.pt",
        dataset_path=dataset.path,  # Store reference for evaluation
    )
    checkpoint.save()
    return checkpoint


if __name__ == "__main__":
    print_complete({"checkpoint": main(tyro.cli(Config))})
"""

EVALUATION = """
from dataclasses import dataclass
from pathlib import Path

import tyro

from data_curation import Dataset
from training import Checkpoint
from nemotron import Artifact, print_complete


@dataclass
class Config:
    checkpoint_path: Path | None = None
    output_dir: Path = Path("results")


class Results(Artifact):
    checkpoint_path: Path


def main(config: Config) -> Results:
    checkpoint = Checkpoint.load(config.checkpoint_path)
    # Can access both the model and the dataset
    model = checkpoint.checkpoint_path.read_text()
    dataset = Dataset.load(path=checkpoint.dataset_path)
    results = Results(path=config.output_dir, checkpoint_path=checkpoint.path, metrics={"length": len(model)})
    results.save()
    assert checkpoint.producer["inputs"]["dataset_path"]["digest"] == dataset.digest  # Which dataset was used
    print(checkpoint.created_at, file=__import__("sys").stderr)  # When it was created
    return results


if __name__ == "__main__":
    print_complete({"results": main(tyro.cli(Config))})
"""

ORCHESTRATOR = '''
from dataclasses import dataclass, field

import tyro

from data_curation import Config as DataConfig
from data_curation import main as run_data
from evaluation import Config as EvalConfig
from evaluation import main as run_eval
from training import Config as TrainConfig
from training import main as run_train


@dataclass
class StageConfig:
    """Configuration for complete pretraining stage."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def main(config: StageConfig) -> None:
    """Run complete pretraining stage: data, training, evaluation."""
    # Step 1: Data curation
    dataset = run_data(config.data)

    # Step 2: Training (use dataset from step 1)
    config.train.dataset_path = dataset.path
    checkpoint = run_train(config.train)

    # Step 3: Evaluation (use checkpoint from step 2)
    config.eval.checkpoint_path = checkpoint.path
    run_eval(config.eval)


if __name__ == "__main__":
    tyro.cli(main)
'''


@pytest.fixture
def shell(tmp_path):
    files = {"data_curation": DATA_CURATION, "training": TRAINING, "evaluation": EVALUATION, "stage": ORCHESTRATOR}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")

    def run(line: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{line}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_steps_connect_by_pipes(shell):
    line = shell("python data_curation.py --scale small | \\\n    python training.py | \\\n    python evaluation.py")
    assert json.loads(line)["results"]["type"] == "results"


def test_steps_connect_by_redirections_and_by_paths(shell, tmp_path):
    shell(
        "python data_curation.py > dataset.json\ncat dataset.json\npython training.py < dataset.json > checkpoint.json"
    )
    shell("cat checkpoint.json\npython evaluation.py < checkpoint.json")
    entry = json.loads((tmp_path / "checkpoint.json").read_text())["checkpoint"]
    again = shell(f"python training.py --dataset-path {tmp_path / 'data'} --output-dir other")
    assert json.loads(again)["checkpoint"]["digest"] == entry["digest"]


def test_an_orchestrator_is_plain_calls(shell, tmp_path):
    """Today's tyro names the flags after the parameter of `main`; `tyro.cli(StageConfig)` leaves `--config.` out."""
    assert shell("python stage.py --config.data.scale small") == ""
    results = json.loads((tmp_path / "results" / "metadata.json").read_text())
    assert results["inputs"]["checkpoint_path"]["type"] == "checkpoint"


def test_the_tracker_of_the_design_is_one_line(shell):
    shell("python -c 'from nemotron import WandbTracker, set_lineage_tracker; set_lineage_tracker(WandbTracker())'")
