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
from nemotron.code import digest_of, modules_of
from nemotron.config import flag_of, recorded_values
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
from nemotron.lineage import step_of
from nemotron.recipes.nemotron_h.checkpoint import load_tensors, save_tensors
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.training.distributed import from_first, is_first, share_of_first, whole_on_first
from nemotron.recipes.training.fingerprint import weight_fingerprint
from nemotron.strict import one_sentence, parse_json_object, read_file, short
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
    code: str
    """Digest of the source files that the result depends on; only a run that goes on by itself must have the same."""


@dataclass
class Record:
    """What a run writes down as it goes; a resumed run continues the same record."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    """A row per step: step, phase, batch (digest of its content), tokens (in the loss), and the loop's own numbers."""
    validation: list[dict[str, Any]] = field(default_factory=list)
    """A row per measurement and category: step, category, loss."""
    weights: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Fingerprints of the weights: "initial", "after step 1", "final"."""
    tables: dict[str, list[dict[str, str | int | float | bool]]] = field(default_factory=dict)
    """What else the loop wrote down, rows by table; the first column is the step."""

    def check(self) -> None:
        """Raise ValueError if a row or a fingerprint lacks what the end of the run needs."""
        for index, row in enumerate(self.curve):
            names = {"step": int, "phase": str, "batch": str, "tokens": int, "loss": float}
            if [type(row.get(name)) for name in names] != list(names.values()) or row["step"] != index:
                raise ValueError(f"row {index} of the curve is {short(row)}")
            if list(row) != list(self.curve[0]) or not all(type(row[name]) in (int, float) for name in self.numbers):
                raise ValueError(f"row {index} of the curve is {short(row)}, unlike the first")
        for index, row in enumerate(self.validation):
            if {name: type(value) for name, value in row.items()} != {"step": int, "category": str, "loss": float}:
                raise ValueError(f"row {index} of the validation is {short(row)}")
        for name, rows in self.tables.items():
            for index, row in enumerate(rows):
                step = row.get("step")
                if type(step) is not int or not 0 <= step < len(self.curve) or list(row) != list(rows[0]):
                    raise ValueError(f"row {index} of the table {short(name)} is {short(row)}")
        for name in ("initial", "after step 1") if self.curve else ("initial",):
            if name not in self.weights:
                raise ValueError(f"the weights {name} are missing")

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers that the loop notes at every step; none before the first."""
        return [name for row in self.curve[:1] for name in row if name not in ("step", "phase", "batch", "tokens")]


def identity_of(config: Any, dataset: Artifact) -> Identity:
    """The identity of a run with this config on this dataset."""
    return {"dataset": dataset.digest, "config": compared_values(config), "code": code_digest(config)}


def code_digest(config: Any) -> str:
    """Digest of the source files of the step that a Config belongs to."""
    return digest_of(modules_of(step_of(config)))


@dataclass
class State:
    """The content of state.json: the identity of the run, and its record so far."""

    dataset: str
    config: dict[str, Any]
    record: Record
    code: str = ""


def complete_states(work: Path) -> list[Path]:
    """Directories of the training states that were written completely, the last one last."""
    found = [path for path in work.glob("training_state/step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=steps_of)


def steps_of(state: Path) -> int:
    """Optimizer steps that were done when a state was written."""
    return int(state.name.removeprefix("step-"))


def check_no_unfinished_run(work: Path, flag: str) -> None:
    """Raise ValueError if an earlier run left a state behind from which `flag` would continue."""
    states = complete_states(work)
    if states:
        raise ValueError(
            f"{work} holds an unfinished run at {states[-1].name}; add {flag} to go on, or delete that directory to "
            f"start over"
        )


def check_before_work(config: Any) -> bool:
    """Refuse before any work what `training_run` would refuse later; return whether there is an unfinished run.

    Args:
        config: of the training step: output_dir and resume. Without `resume`, an unfinished run must have been begun
            with the same code: then it goes on by itself.
    Raises:
        ValueError: if another process is training there, or the unfinished run had another config or other code.
    """
    output_dir = final_place(config.output_dir)
    check_not_written(output_dir)
    work, flag = working_name(output_dir), flag_of(config, "resume")
    places = {work: f"delete {work}"} | ({output_dir: f"drop {flag}"} if config.resume else {})
    for directory, otherwise in places.items():
        states = complete_states(directory)
        for state in reversed(states):
            try:
                found = read_state_json(state)
            except ValueError as error:
                print_line(f"warning: {error}")
                if state == states[0] and not config.resume:
                    raise ValueError(
                        f"{work} holds an unfinished run of which no state can be read; delete that directory to start "
                        f"over"
                    ) from None
                continue
            check_config(found, compared_values(config), directory, otherwise)
            if not config.resume and found.code != code_digest(config):
                raise ValueError(
                    f"{work} holds an unfinished run at {state.name}, which other code began; add {flag} to go on with "
                    f"the code as it is now, or delete that directory to start over"
                )
            break
        if states:
            return directory == work
    return False


def read_state_json(state: Path) -> State:
    """Dataset, config and record of a state, whose other files are not looked at.

    Raises:
        ValueError: if it is damaged; the message begins with its path.
    """
    check_file(state, "state.json", read_checksums(state))
    try:
        content = parse_json_object((state / "state.json").read_bytes(), "state.json")
        found = TypeAdapter(State).validate_python(content)
        found.record.check()
    except ValueError as error:
        raise ValueError(f"{state} is damaged (state.json: {one_sentence(error)})") from None
    return found


def read_checksums(state: Path) -> dict[str, FileRecord]:
    """The content of checksums.json.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        content = read_file(state / CHECKSUMS, advice="")
        records = TypeAdapter(dict[str, FileRecord]).validate_python(parse_json_object(content, CHECKSUMS, advice=""))
    except (ValueError, OSError) as error:
        raise ValueError(f"{state} is damaged ({one_sentence(error).rstrip('; ')})") from None
    if set(records) != set(STATE_FILES):
        raise ValueError(f"{state} is damaged ({CHECKSUMS} lists {short(sorted(records))})")
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
        if (found := state.config.get(name)) != value:
            raise ValueError(
                f"{directory} was trained with {name}={short(found)}, not {short(value)}; resume with the same value, "
                f"or {otherwise} to start over"
            )


def is_finished(output_dir: Path, identity: Identity, flag: str) -> bool:
    """Whether the run that `flag` is to continue has ended: a job that is started again has nothing left to do.

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
    check_identity(state, identity, output_dir, f"drop {flag}")
    print_line(f"{output_dir} is finished; nothing to resume")
    return True


def write_training_state(
    work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer, record: Record
) -> None:
    """Write all that --resume needs; a state that is cut short keeps the name .partial and is never read.

    Of a model that is sharded, the first rank writes the whole: a run can be resumed with any number of processes.
    """
    weights = whole_on_first(model.state_dict())
    # AdamW's two moments and its step for each parameter, by the parameter's number in the optimizer.
    moments = whole_on_first(
        {
            f"{index}.{name}": tensor
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
    )
    if not is_first():
        return
    # Written under another name, flushed to disk and then renamed: a name without .partial is a complete state.
    directory = work / "training_state" / f"step-{len(record.curve):08d}"
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_tensors(weights, partial / "model.safetensors")
    save_tensors(moments, partial / "optimizer.safetensors")
    state = {**identity, "record": asdict(record)}
    (partial / "state.json").write_text(json.dumps(state), encoding="ascii", newline="\n")
    records = {name: file_record(partial / name, sync=True).model_dump() for name in STATE_FILES}
    (partial / CHECKSUMS).write_text(json.dumps(records, indent=2) + "\n", encoding="ascii", newline="\n")
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

    The first rank reads the state, and each rank gets its shares.

    Raises:
        ValueError: if that run had another dataset or config, or if every state is damaged.
    """
    found = last_state(work, identity, model, optimizer) if is_first() else None
    record = from_first(lambda: found and asdict(found[0]))
    if record is None:
        return Record(weights={"initial": weight_fingerprint(model)})
    weights, moments = found[1:] if found else ({}, {})
    shares = {name: share_of_first(weights.get(name), tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(shares)
    state, parameters = optimizer.state_dict(), parameters_of(optimizer)
    for number, names in from_first(lambda: [[index, [*each]] for index, each in moments.items()]):
        tensors = moments.get(number, {})
        like = {"step": torch.zeros(())}  # AdamW's moments have the shape of their parameter
        state["state"][number] = {
            name: share_of_first(tensors.get(name), like.get(name, parameters[number])) for name in names
        }
    optimizer.load_state_dict(state)
    return Record(**record)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters in the order of their numbers in `optimizer.state_dict()`."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def last_state(
    work: Path, identity: Identity, model: NemotronH, optimizer: torch.optim.Optimizer
) -> tuple[Record, dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]]] | None:
    """Record, weights and moments of the last undamaged state; None if no state was written yet.

    The moments are by the parameter's number in the optimizer.

    Raises:
        ValueError: if that run had another dataset or config, or if every state is damaged.
    """
    states = complete_states(work)
    if not states:
        print_line("nothing to resume: no state was written yet, starting at step 0")
        return None
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
    for path, sentence in damaged.items():  # now that an earlier state is known to fit
        delete_state(path)
        print_line(f"warning: {sentence}; deleted it and took the state before it")
    record = state.record
    print_line(f"resumed at step {len(record.curve)}")
    return record, weights, moments


def checked_state(
    directory: Path, model: NemotronH, optimizer: torch.optim.Optimizer
) -> tuple[State, dict[str, torch.Tensor], dict[int, dict[str, torch.Tensor]]]:
    """State, weights and moments by the parameter's number, after checking that they are whole and fit the model.

    Raises:
        ValueError: if a file is damaged or belongs to another state or model; the message begins with the path.
    """
    records = read_checksums(directory)
    for name in STATE_FILES:
        check_file(directory, name, records)
    state = read_state_json(directory)
    if len(state.record.curve) != steps_of(directory):
        raise ValueError(f"{directory} is damaged (its record has {len(state.record.curve)} steps)")
    try:
        weights = load_tensors(directory / "model.safetensors")
        tensors = load_tensors(directory / "optimizer.safetensors")
    except ValueError as error:  # a file that was written so
        raise ValueError(f"{directory} is damaged ({error})") from None
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if kinds != {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}:
        raise ValueError(f"{directory} is damaged (model.safetensors holds the weights of another model)")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if not (parts := re.fullmatch(r"([0-9]{1,9})\.(.+)", key)):
            raise ValueError(f"{directory} is damaged (optimizer.safetensors has a tensor {short(key)})")
        moments.setdefault(int(parts[1]), {})[parts[2]] = tensor
    parameters = parameters_of(optimizer)
    trained = {number for number, parameter in enumerate(parameters) if parameter.requires_grad}
    for number in sorted(trained | moments.keys()):
        if number not in trained or not _fit(moments.get(number, {}), parameters[number], optimizer):
            raise ValueError(f"{directory} is damaged (optimizer.safetensors does not fit parameter {number})")
    for name, tensor in (weights | tensors).items():
        if not tensor.square().sum().isfinite():  # nor would a norm be
            raise ValueError(
                f"{directory} is damaged (the tensor {short(name)} has a NaN, an infinity or a huge value)"
            )
    return state, weights, moments


def _fit(moments: Mapping[str, torch.Tensor], parameter: torch.Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """Whether moments can be those of a parameter; of optimizers other than Adam and AdamW, only shapes are known."""
    if not isinstance(optimizer, torch.optim.Adam):
        return all(tensor.shape in (torch.Size(), parameter.shape) for tensor in moments.values())
    shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if {name: tensor.shape for name, tensor in moments.items()} != shapes:
        return False
    precise = all(tensor.dtype in (torch.float32, torch.float64) for tensor in moments.values())
    return precise and not any((moments[name] < 0).any() for name in ("step", "exp_avg_sq"))
