"""What an unfinished run leaves behind, so that --resume goes on from it to the same bits.

In: model, optimizer and record of a run. Out: <work>/training_state/step-<number>/, the last one only; and back.
safetensors and JSON. The position in the data is the number of steps, and a loop draws random numbers only from
generators seeded with the step, so no random state is needed.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.training --resume
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch

from nemotron import Artifact
from nemotron.config import recorded_values
from nemotron.directory import working_name
from nemotron.recipes.nemotron_h.checkpoint import load_tensors, save_tensors
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.training.fingerprint import weight_fingerprint


class Identity(TypedDict):
    """What a run may only be resumed with."""

    dataset: str
    """Digest of the Dataset."""
    config: dict[str, Any]
    """The fields that the result depends on."""


@dataclass
class Record:
    """What a run writes down as it goes; a resumed run continues the same record."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    """A row a step: step, phase, batch (digest of its content), tokens (in the loss), and the loop's own numbers."""
    validation: list[dict[str, Any]] = field(default_factory=list)
    """A row a measurement and category: step, category, loss."""
    weights: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Fingerprints of the weights: "initial", "after step 1", "final"."""

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers that the loop notes at every step."""
        return [name for name in self.curve[0] if name not in ("step", "phase", "batch", "tokens")]


def identity_of(config: Any, dataset: Artifact) -> Identity:
    """The identity of a run with this config on this dataset."""
    return {"dataset": dataset.digest, "config": json.loads(json.dumps(recorded_values(config)))}


def complete_states(work: Path) -> list[Path]:
    """Directories of the training states that were written completely, the last one last."""
    return sorted(path for path in work.glob("training_state/step-*") if path.suffix != ".partial")


def check_no_unfinished_run(work: Path) -> None:
    """Raise ValueError if an earlier run left a state behind that --resume could go on from."""
    states = complete_states(work)
    if states:
        raise ValueError(
            f"{work} holds an unfinished run at {states[-1].name}; add --resume (--train.resume for a stage) to go on, "
            f"or delete that directory to start over"
        )


def read_state_json(path: Path) -> dict[str, Any]:
    """The record of a state.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete {path.parent} to go on without it") from error


def check_identity(state: dict[str, Any], identity: Identity, directory: Path, otherwise: str) -> None:
    """Raise ValueError if the run in `directory`, whose state this is, had another dataset or config."""
    if state["dataset"] != identity["dataset"]:
        raise ValueError(
            f"{directory} was trained on a dataset with digest {state['dataset'][:12]}, not "
            f"{identity['dataset'][:12]}; resume with that dataset, or {otherwise} to start over"
        )
    for name, value in identity["config"].items():
        if state["config"].get(name) != value:
            raise ValueError(
                f"{directory} was trained with {name}={state['config'].get(name)}, not {value}; resume with the same "
                f"value, or {otherwise} to start over"
            )


def is_finished(output_dir: Path, identity: Identity) -> bool:
    """Whether the run that --resume is to continue has ended: a job that is started again has nothing left to do.

    Raises:
        ValueError: if the finished run had another dataset or config.
    """
    states = complete_states(output_dir)
    if not states or complete_states(working_name(output_dir)):
        return False
    check_identity(read_state_json(states[-1] / "state.json"), identity, output_dir, "drop --resume")
    print(f"{output_dir} is finished; nothing to resume", file=sys.stderr)
    return True


def write_training_state(
    work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer, record: Record
) -> None:
    """Write all that --resume needs; a state that is cut short keeps the name .partial and is never read."""
    # Written under another name and renamed at the end: a name without .partial is a complete state.
    directory = work / "training_state" / f"step-{len(record.curve):08d}"
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tensors(dict(model.state_dict()), partial / "model.safetensors")
    # AdamW's two moments and its step for each parameter, by the parameter's number in the optimizer.
    moments = {
        f"{index}.{name}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }
    save_tensors(moments, partial / "optimizer.safetensors")
    state = {**identity, "record": asdict(record)}
    (partial / "state.json").write_text(json.dumps(state))
    partial.rename(directory)
    for older in directory.parent.iterdir():
        if older != directory:
            shutil.rmtree(older)


def read_training_state(work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer) -> Record:
    """Load the last complete state of an unfinished run into model and optimizer, and return its record.

    Raises:
        ValueError: if that run had another dataset or config.
    """
    states = complete_states(work)
    if not states:
        print("nothing to resume: no state was written yet, starting at step 0", file=sys.stderr)
        return Record(weights={"initial": weight_fingerprint(model)})
    state = read_state_json(states[-1] / "state.json")
    check_identity(state, identity, work, f"delete {work}")
    model.load_state_dict(load_tensors(states[-1] / "model.safetensors"))
    moments = optimizer.state_dict()
    for key, tensor in load_tensors(states[-1] / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(moments)
    record = Record(**state["record"])
    print(f"resumed at step {len(record.curve)}", file=sys.stderr)
    return record
