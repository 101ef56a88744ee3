"""What an unfinished run leaves behind, so that --resume continues it with bit-identical results.

In: model, optimizer and record of a run. Out: the last two states, <work>/training_state/step-<number>/; and back.

    model.safetensors, optimizer.safetensors    weights; moments
    state.json          dataset, config and record
    checksums.json      size and sha256 of the others

A state is flushed to disk before it gets its name, and checked before it is read. A damaged one is reported and
deleted, and the state before it is used. The position in the data is the number of steps, and a loop draws random
numbers only from generators seeded with the step, so no random state is needed.
Run: python -m nemotron.recipes.nano2.stage0_pretrain.training --resume
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from pydantic import TypeAdapter

from nemotron import Artifact
from nemotron.config import recorded_values
from nemotron.directory import (
    PARTIAL_METADATA,
    FileRecord,
    check_not_written,
    file_record,
    final_place,
    repair_swap,
    sync_directory,
    working_name,
)
from nemotron.recipes.nemotron_h.checkpoint import load_tensors, save_tensors
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.strict import one_sentence, parse_json_object
from nemotron.terminal import print_line

KEPT_STATES = 2
"""States kept of an unfinished run: if the disk damages the last one, the run resumes from the one before."""
CHECKSUMS = "checksums.json"
STATE_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


class Identity(TypedDict):
    """What must be unchanged when a run is resumed."""

    dataset: str
    """Digest of the Dataset."""
    config: dict[str, Any]
    """The fields that the result depends on."""


@dataclass
class Record:
    """What a run writes down as it goes; a resumed run continues the same record."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    """A row per step: step, phase, batch (digest of its content), tokens (in the loss), and the loop's own numbers."""
    validation: list[dict[str, Any]] = field(default_factory=list)
    """A row per measurement and category: step, category, loss."""
    weights: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Fingerprints of the weights: "initial", "after step 1", "final"."""

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers that the loop notes at every step."""
        return [name for name in self.curve[0] if name not in ("step", "phase", "batch", "tokens")]


def identity_of(config: Any, dataset: Artifact) -> Identity:
    """The identity of a run with this config on this dataset."""
    return {"dataset": dataset.digest, "config": compared_values(config)}


@dataclass
class State:
    """The content of state.json: the identity of the run, and its record so far."""

    dataset: str
    config: dict[str, Any]
    record: Record


def complete_states(work: Path) -> list[Path]:
    """Directories of the training states that were written completely, the last one last."""
    found = [path for path in work.glob("training_state/step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=steps_of)


def steps_of(state: Path) -> int:
    """Optimizer steps that were done when a state was written."""
    return int(state.name.removeprefix("step-"))


def check_no_unfinished_run(work: Path, flag: str = "--resume") -> None:
    """Raise ValueError if an earlier run left a state behind from which `flag` would continue."""
    states = complete_states(work)
    if states:
        raise ValueError(
            f"{work} holds an unfinished run at {states[-1].name}; add {flag} to go on, or delete that directory to "
            f"start over"
        )


def check_before_work(config: Any, flag: str) -> None:
    """Refuse before any work what `training_run` would refuse later: an unfinished run, or one with another config.

    Args:
        config: of the training step: output_dir and resume.
        flag: sets `resume` in the command that was typed.
    Raises:
        ValueError: if another process is training there, there is an unfinished run and `resume` is not set, or the run
            to resume had another config.
    """
    output_dir = final_place(config.output_dir)
    check_not_written(output_dir)
    work = working_name(output_dir)
    if not config.resume:
        check_no_unfinished_run(work, flag)
        return
    for directory, otherwise in ((work, f"delete {work}"), (output_dir, f"drop {flag}")):
        states = complete_states(directory)
        for state in reversed(states):
            try:
                found = read_state_json(state)
            except ValueError as error:
                print_line(f"warning: {error}")
            else:
                check_config(found, compared_values(config), directory, otherwise)
                break
        if states:
            return


def read_state_json(state: Path) -> State:
    """Dataset, config and record of a state, whose other files are not looked at.

    Raises:
        ValueError: if it is damaged; the message begins with its path.
    """
    check_file(state, "state.json", read_checksums(state))
    try:
        content = json.loads((state / "state.json").read_bytes())
        return TypeAdapter(State).validate_python(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{state} is damaged (state.json: {one_sentence(error)})") from None


def read_checksums(state: Path) -> dict[str, FileRecord]:
    """The content of checksums.json.

    Raises:
        ValueError: if it is damaged.
    """
    path = state / CHECKSUMS
    try:
        records = TypeAdapter(dict[str, FileRecord]).validate_python(
            parse_json_object(path.read_bytes(), path.name, advice="")
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"{state} is damaged ({one_sentence(error).rstrip('; ')})") from None
    if set(records) != set(STATE_FILES):
        raise ValueError(f"{state} is damaged ({CHECKSUMS} lists {', '.join(sorted(records)) or 'no file'})")
    return records


def check_file(state: Path, name: str, records: Mapping[str, FileRecord]) -> None:
    """Raise ValueError if a file of a state is missing, or is not what was written."""
    if not (state / name).is_file() or (state / name).is_symlink():
        raise ValueError(f"{state} is damaged ({name} is missing)")
    if file_record(state / name) != records[name]:
        raise ValueError(f"{state} is damaged ({name} is not what was written)")


def compared_values(config: Any) -> dict[str, Any]:
    """The fields of a Config that a result depends on, after a round trip through JSON."""
    return json.loads(json.dumps(recorded_values(config)))


def check_identity(state: State, identity: Identity, directory: Path, otherwise: str) -> None:
    """Raise ValueError if the run in `directory`, whose state this is, had another dataset or config."""
    if state.dataset != identity["dataset"]:
        raise ValueError(
            f"{directory} was trained on a dataset with digest {state.dataset[:12]}, not "
            f"{identity['dataset'][:12]}; resume with that dataset, or {otherwise} to start over"
        )
    check_config(state, identity["config"], directory, otherwise)


def check_config(state: State, config: Mapping[str, Any], directory: Path, otherwise: str) -> None:
    """Raise ValueError if the run in `directory`, whose state this is, had another config."""
    for name, value in config.items():
        if state.config.get(name) != value:
            raise ValueError(
                f"{directory} was trained with {name}={state.config.get(name)}, not {value}; resume with the same "
                f"value, or {otherwise} to start over"
            )


def is_finished(output_dir: Path, identity: Identity) -> bool:
    """Whether the run that --resume is to continue has ended: a job that is started again has nothing left to do.

    Raises:
        ValueError: if the finished run had another dataset or config.
    """
    output_dir = final_place(output_dir)
    repair_swap(output_dir)  # if killed between its two renames, a finished run has another name
    states = complete_states(output_dir)
    if not states or complete_states(working_name(output_dir)):
        return False
    try:
        state = read_state_json(states[-1])
    except ValueError as error:
        raise ValueError(f"{error}; copy the artifact again, or delete {output_dir} to start over") from None
    check_identity(state, identity, output_dir, "drop --resume")
    print_line(f"{output_dir} is finished; nothing to resume")
    return True


def write_training_state(
    work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer, record: Record
) -> None:
    """Write all that --resume needs; a state that is cut short keeps the name .partial and is never read."""
    # Written under another name, flushed to disk and then renamed: a name without .partial is a complete state.
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
    records = {name: file_record(partial / name, sync=True).model_dump() for name in STATE_FILES}
    (partial / CHECKSUMS).write_text(json.dumps(records, indent=2) + "\n")
    file_record(partial / CHECKSUMS, sync=True)
    sync_directory(partial)
    partial.rename(directory)
    for folder in (directory.parent, work, work.parent):
        sync_directory(folder)
    keep_last_states(work, KEPT_STATES)


def keep_last_states(work: Path, number: int) -> None:
    """Delete all but the last `number` states."""
    for state in complete_states(work)[:-number]:
        delete_state(state)


def delete_state(state: Path) -> None:
    """Delete a state, renamed to .partial first: if this is cut short, the rest is not taken for a complete state."""
    partial = state.with_name(state.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    state.rename(partial)
    shutil.rmtree(partial)


def remove_leftovers(work: Path) -> None:
    """Delete all but the states from a killed run's working directory, so that nothing else enters the artifact."""
    states = complete_states(work)
    kept = {work / PARTIAL_METADATA, *(state / name for state in states for name in (*STATE_FILES, CHECKSUMS))}
    opened = {work / "training_state", *states} if states else set()
    left = [
        entry
        for directory in sorted({work, *opened})
        for entry in sorted(directory.iterdir())
        if entry not in kept and entry not in opened
    ]
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if left:
        names = ", ".join(entry.relative_to(work).as_posix() for entry in left)
        print_line(f"deleted what an unfinished run left in {work}: {names}")


def read_training_state(work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer) -> Record:
    """Load the last undamaged state of an unfinished run into model and optimizer, and return its record.

    Raises:
        ValueError: if that run had another dataset or config, or if every state is damaged.
    """
    states = complete_states(work)
    if not states:
        print_line("nothing to resume: no state was written yet, starting at step 0")
        return Record(weights={"initial": weight_fingerprint(model)})
    damaged: dict[Path, str] = {}
    for directory in reversed(states):
        try:
            state, weights, moments = checked_state(directory, model, optimizer)
            break
        except ValueError as error:
            damaged[directory] = str(error)
    else:
        raise ValueError(f"{'; '.join(damaged.values())}; no earlier state is left, so delete {work} to start over")
    check_identity(state, identity, work, f"delete {work}")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    for path, sentence in damaged.items():  # now that an earlier state is known to fit
        delete_state(path)
        print_line(f"warning: {sentence}; deleted it and took the state before it")
    record = state.record
    print_line(f"resumed at step {len(record.curve)}")
    return record


def checked_state(
    directory: Path, model: NemotronH, optimizer: torch.optim.Optimizer
) -> tuple[State, dict[str, torch.Tensor], dict[str, Any]]:
    """State, weights and what `optimizer.load_state_dict` takes, after checking that they are whole and fit the model.

    Raises:
        ValueError: if a file is damaged or belongs to another state or model; the message begins with the path.
    """
    records = read_checksums(directory)
    for name in STATE_FILES:
        check_file(directory, name, records)
    state = read_state_json(directory)
    if len(state.record.curve) != steps_of(directory):
        raise ValueError(f"{directory} is damaged (its record has {len(state.record.curve)} steps)")
    weights = load_tensors(directory / "model.safetensors")
    moments = optimizer.state_dict()
    tensors = load_tensors(directory / "optimizer.safetensors")
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal():
            raise ValueError(f"{directory} is damaged (optimizer.safetensors has a tensor {key})")
        moments["state"].setdefault(int(index), {})[name] = tensor
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != {name: tensor.shape for name, tensor in model.state_dict().items()}:
        raise ValueError(f"{directory} is damaged (model.safetensors holds the weights of another model)")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else set()
    for number, values in moments["state"].items():
        if number >= len(parameters) or needed - values.keys() or not all(
            tensor.shape in (torch.Size(), parameters[number].shape) for tensor in values.values()
        ):  # fmt: skip
            raise ValueError(f"{directory} is damaged (optimizer.safetensors does not fit parameter {number})")
    return state, weights, moments
