"""States of unfinished runs: when a run is finished, when it can be resumed, what is refused."""

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic.dataclasses import dataclass

from nemotron.config import ScaledConfig, at_every_scale, input_path, switch
from nemotron.directory import PARTIAL_METADATA, file_record
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import load_tensors, save_tensors
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.state import (
    CHECKSUMS,
    STATE_FILES,
    Identity,
    Record,
    check_before_work,
    check_no_unfinished_run,
    code_digest,
    complete_states,
    identity_of,
    is_finished,
    read_training_state,
    remove_leftovers,
    write_training_state,
)

IDENTITY: Identity = {
    "dataset": "d" * 64,
    "config": {"scale": "tiny", "learning_rate": 1e-3, "seed": 7},
    "code": "c" * 64,
}


@pytest.fixture(scope="module")
def model():
    model = NemotronH(MODELS["tiny"])
    initialize(model, 0)
    return model


def record_of(steps):
    """What a run of `steps` steps has noted."""
    curve = [{"step": i, "phase": "one", "batch": "b", "tokens": 9, "loss": 0.5, "grad_norm": 1} for i in range(steps)]
    validation = [{"step": steps, "category": "code", "loss": 0.5}]
    return Record(curve, validation, {"initial": {"x": [1.0]}, "after step 1": {"x": [1.5]}})


def trained(directory, model, steps=1):
    """Write a state after `steps` steps into the directory."""
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    write_training_state(directory, IDENTITY, model, optimizer, record_of(steps))


def test_a_finished_run_has_nothing_to_resume(tmp_path, model, capsys):
    trained(tmp_path / "run", model)
    assert is_finished(tmp_path / "run", IDENTITY, "--here.resume")
    assert capsys.readouterr().err == f"{tmp_path / 'run'} is finished; nothing to resume\n"


def test_resume_prefers_an_unfinished_run_over_a_finished_one(tmp_path, model):
    trained(tmp_path / "run", model)
    trained(tmp_path / "run.incomplete", model)
    assert not is_finished(tmp_path / "run", IDENTITY, "--here.resume")


def test_without_a_state_no_run_is_finished(tmp_path):
    assert not is_finished(tmp_path / "run", IDENTITY, "--here.resume")


OTHERS = [
    ({**IDENTITY, "dataset": "e" * 64}, "was trained on a dataset with digest dddddddddddd, not eeeeeeeeeeee"),
    ({**IDENTITY, "config": {"learning_rate": 1e-3, "seed": 8}}, "was trained with seed=7, not 8"),
]


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_a_finished_run_with_another_dataset_or_config_is_refused(tmp_path, model, identity, sentence):
    trained(tmp_path / "run", model)
    with pytest.raises(ValueError, match=f"{sentence}; .* or drop --here.resume to start over"):
        is_finished(tmp_path / "run", identity, "--here.resume")


@pytest.mark.parametrize(("identity", "sentence"), OTHERS)
def test_an_unfinished_run_with_another_dataset_or_config_is_not_resumed(tmp_path, model, identity, sentence):
    work = tmp_path / "run.incomplete"
    trained(work, model)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=f"{sentence}; .* or delete .*incomplete to start over"):
        read_training_state(work, identity, model, optimizer)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_last_two_states_are_kept(tmp_path, model):
    for steps in (1, 2, 3):
        trained(tmp_path, model, steps)
    assert names(tmp_path / "training_state") == ["step-00000002", "step-00000003"]


def test_the_states_are_in_the_order_of_their_steps(tmp_path, model):
    for steps in (9, 10):
        trained(tmp_path, model, steps)
        (state,) = tmp_path.glob(f"training_state/step-*{steps}")
        state.rename(state.with_name(f"step-{steps}"))
    assert [path.name for path in complete_states(tmp_path)] == ["step-9", "step-10"]


def test_an_incomplete_state_is_ignored(tmp_path, model):
    trained(tmp_path, model)
    (state,) = (tmp_path / "training_state").iterdir()
    state.rename(state.with_name(state.name + ".partial"))
    check_no_unfinished_run(tmp_path, "--resume")


def test_a_state_is_on_disk_before_it_has_its_name(tmp_path, model, monkeypatch):
    calls = []
    rename, fsync = Path.rename, os.fsync

    def noted(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", lambda path, target: (calls.append("renamed"), rename(path, target))[1])
    trained(tmp_path, model)
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"]
    folders = ["training_state", tmp_path.name, tmp_path.parent.name]
    assert calls == [*files, "step-00000001.partial", "renamed", *folders]


def zero_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit_a_number(path):
    path.write_text(path.read_text().replace("0.5", "0.25"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def replace_by_a_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES = {
    **{f"half of {name} is zero": (name, zero_half) for name in (*STATE_FILES, CHECKSUMS)},
    **{f"a bit of {name}": (name, flip_a_bit) for name in (*STATE_FILES, CHECKSUMS)},
    **{f"{name} is cut": (name, truncate) for name in (*STATE_FILES, CHECKSUMS)},
    **{f"{name} is gone": (name, Path.unlink) for name in (*STATE_FILES, CHECKSUMS)},
    **{f"{name} is a link": (name, replace_by_a_link) for name in STATE_FILES},
    "an edited loss": ("state.json", edit_a_number),
    "empty checksums": (CHECKSUMS, lambda path: path.write_text("{}")),
    "checksums nested deep": (CHECKSUMS, lambda path: path.write_text("[" * 100_000)),
}


def resumed(directory, model):
    return read_training_state(directory, IDENTITY, model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_is_taken(tmp_path, model, capsys, damage):
    name, apply = DAMAGES[damage]
    for steps in (1, 2):
        trained(tmp_path, model, steps)
    apply(tmp_path / "training_state" / "step-00000002" / name)
    assert len(resumed(tmp_path, model).curve) == 1
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"warning: \S+/step-00000002 is damaged \(.+\); deleted it and took the state before it", said[0]
    )
    assert said[1:] == ["resumed at step 1"]
    trained(tmp_path, model, 2)  # the run gets there again
    assert len(resumed(tmp_path, model).curve) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_an_undamaged_state_a_run_is_refused_and_nothing_is_deleted(tmp_path, model, damage):
    name, apply = DAMAGES[damage]
    trained(tmp_path, model)
    apply(tmp_path / "training_state" / "step-00000001" / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"step-00000001 is damaged \(.*\); no earlier state is left, so delete"
    ) as error:
        resumed(tmp_path, model)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_state_of_another_run_is_not_deleted(tmp_path, model):
    for steps in (1, 2):
        trained(tmp_path, model, steps)
    flip_a_bit(tmp_path / "training_state" / "step-00000002" / "model.safetensors")
    with pytest.raises(ValueError, match="was trained on a dataset with digest"):
        read_training_state(tmp_path, {**IDENTITY, "dataset": "e" * 64}, model, torch.optim.AdamW(model.parameters()))
    assert names(tmp_path / "training_state") == ["step-00000001", "step-00000002"]


def test_tables_come_back_with_the_types_that_they_had(tmp_path, model):
    row = {"step": 0, "text": "a\n\u00e9\U0001f600", "number": 3, "whole": 2.0, "share": 0.1, "right": True}
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    record = record_of(1)
    record.tables["rewards"] = [row, {**row, "text": ""}]
    write_training_state(tmp_path, IDENTITY, model, optimizer, record)
    found = resumed(tmp_path, model).tables
    assert found == record.tables
    assert [type(value) for value in found["rewards"][0].values()] == [type(value) for value in row.values()]


def reseal(directory, content):
    """Replace files of a state, with checksums that match."""
    for name, value in content.items():
        file = next(file for file in STATE_FILES if file.startswith(name))
        if file == "state.json":
            (directory / file).write_text(value)
        else:
            save_tensors(value, directory / file)
    records = {name: file_record(directory / name).model_dump() for name in STATE_FILES}
    (directory / CHECKSUMS).write_text(json.dumps(records))


WHOLE_RECORD = asdict(record_of(1))
SENSELESS_RECORDS = [
    *({**WHOLE_RECORD, "curve": [{**WHOLE_RECORD["curve"][0], **change}]} for change in (
        {"step": 1}, {"step": 0.0}, {"phase": 1}, {"batch": None}, {"tokens": "9"}, {"loss": "low"}, {"loss": 1},
        {"grad_norm": [1]},
    )),
    {**WHOLE_RECORD, "curve": [{name: 0 for name in WHOLE_RECORD["curve"][0]}]},
    {**WHOLE_RECORD, "validation": [{"step": 1, "category": "code"}]},
    {**WHOLE_RECORD, "validation": [{"step": 1, "category": 5, "loss": 0.5}]},
    *({**WHOLE_RECORD, "tables": {"rewards": rows}} for rows in (
        [{}], [{"mean": 0.5}], [{"step": 1, "mean": 0.5}], [{"step": -1}], [{"step": 0.0}], [{"step": False}],
        [{"step": "0"}], [{"step": 0, "mean": 0.5}, {"step": 0}], [{"step": 0, "mean": [1]}], [5], "x",
    )),
    {**WHOLE_RECORD, "weights": {"initial": {}}},
    {**WHOLE_RECORD, "weights": {"after step 1": {}}},
]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        *({"state": text} for text in ("{}", '"x"', "[" * 100_000, "null", "")),
        {"state": json.dumps({"dataset": "d" * 64, "record": {"curve": [{}]}})},
        {"state": json.dumps({**IDENTITY, "record": "x"})},
        {"state": json.dumps({**IDENTITY, "record": {"curve": [{}] * 7}})},
        *({"state": json.dumps({**IDENTITY, "record": record})} for record in SENSELESS_RECORDS),
        {"state": '{"dataset": NaN}'},
        {"state": '{"dataset": "a", "dataset": "b"}'},
        {"optimizer": {}},
        {"optimizer": {f"0.{name}": torch.zeros(512, 64) for name in ("exp_avg", "exp_avg_sq", "step")}},
        {"optimizer": {"9" * 5000 + ".step": torch.zeros(())}},
        {"model": {"lm_head.weight": torch.zeros(1)}},
        {"optimizer": {"0.exp_avg": torch.zeros(1)}},
        {"optimizer": {"x": torch.zeros(1)}},
        {"optimizer": {f"9999.{name}": torch.zeros(()) for name in ("step", "exp_avg", "exp_avg_sq")}},
        {"optimizer": {f"0.{name}": torch.zeros(3) for name in ("step", "exp_avg", "exp_avg_sq")}},
    ],
)
def test_a_state_that_is_whole_and_makes_no_sense_is_damaged_too(tmp_path, model, content):
    trained(tmp_path, model)
    reseal(tmp_path / "training_state" / "step-00000001", content)
    with pytest.raises(ValueError, match=r"step-00000001 is damaged \(.*\); no earlier state is left, so delete"):
        resumed(tmp_path, model)


def test_a_negative_mean_of_squares_is_damage(tmp_path, model):
    trained(tmp_path, model)
    directory = tmp_path / "training_state" / "step-00000001"
    tensors = load_tensors(directory / "optimizer.safetensors")
    tensors["0.exp_avg_sq"] = -1 - tensors["0.exp_avg_sq"]
    reseal(directory, {"optimizer": tensors})
    with pytest.raises(ValueError, match=r"optimizer\.safetensors does not fit parameter 0"):
        resumed(tmp_path, model)


@pytest.mark.parametrize("name", ["lm_head.weight", "backbone.layers.0.mixer.D", "0.exp_avg", "1.step"])
@pytest.mark.parametrize("change", ["integers", "booleans", "eight bits", "another shape", "NaN", "huge", "missing"])
def test_one_tensor_of_a_state_that_does_not_fit_is_damage(tmp_path, model, name, change):
    trained(tmp_path, model)
    directory = tmp_path / "training_state" / "step-00000001"
    file = "optimizer" if name[0].isdecimal() else "model"
    tensors = load_tensors(directory / f"{file}.safetensors")
    tensor = tensors.pop(name)
    if change != "missing":
        changed = {"integers": tensor.long(), "booleans": tensor.bool(), "another shape": tensor[None]}
        changed |= {"NaN": tensor * float("nan"), "huge": torch.full_like(tensor, 1e30)}
        changed["eight bits"] = tensor.to(torch.float8_e4m3fn)
        tensors[name] = changed[change]
    reseal(directory, {file: tensors})
    with pytest.raises(ValueError, match=r"step-00000001 is damaged \(.*\); no earlier state is left, so delete"):
        resumed(tmp_path, model)


def test_a_damaged_state_of_a_finished_run_is_one_sentence(tmp_path, model):
    trained(tmp_path / "run", model)
    truncate(tmp_path / "run" / "training_state" / "step-00000001" / "state.json")
    with pytest.raises(ValueError, match=r"step-00000001 is damaged \(.*\); copy the artifact again, or delete"):
        is_finished(tmp_path / "run", IDENTITY, "--here.resume")


def test_what_a_killed_run_left_is_deleted_by_name(tmp_path, model, capsys):
    for steps in (1, 2):
        trained(tmp_path, model, steps)
    (tmp_path / PARTIAL_METADATA).touch()
    kept = sorted(tmp_path.rglob("*"))
    (tmp_path / "training_state" / "step-00000001.partial").mkdir()
    (tmp_path / "training_state" / "notes").touch()
    (tmp_path / "training_state" / "step-00000002" / ".tmpAbc").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".tmpAbc").touch()
    (tmp_path / "curve.parquet").symlink_to("/etc/hostname")
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept
    assert capsys.readouterr().err == (
        f"deleted what an unfinished run left in {tmp_path}: curve.parquet, model, training_state/notes, "
        f"training_state/step-00000001.partial, training_state/step-00000002/.tmpAbc\n"
    )
    remove_leftovers(tmp_path)
    assert capsys.readouterr().err == ""


@dataclass
class Config(ScaledConfig):
    """Of a training step."""

    learning_rate: float = 1e-3
    """A number."""
    output_dir: Path = Path("run")
    """A place."""
    dataset_path: Path | None = input_path()
    """Another place."""
    device: str = at_every_scale("cpu", recorded=False)
    """A place."""
    checkpoint_every_steps: int = at_every_scale(1, recorded=False)
    """Changes no number."""
    resume: bool = switch()
    """A way to start."""


@pytest.mark.parametrize("place", ["run", "run.incomplete"])
def test_a_run_with_another_config_is_refused_before_any_work(tmp_path, model, place):
    trained(tmp_path / place, model)  # with seed 7
    check_before_work(Config(output_dir=tmp_path / "run", seed=7, resume=True))
    otherwise = {"run": "drop --here.resume", "run.incomplete": f"delete {tmp_path}/run.incomplete"}[place]
    with pytest.raises(ValueError, match=f"{place} was trained with seed=7, not 8; .*, or {otherwise} to start over"):
        check_before_work(Config(output_dir=tmp_path / "run", seed=8, resume=True, flag_prefix="here."))
    flip_a_bit(tmp_path / place / "training_state" / "step-00000001" / "state.json")
    check_before_work(Config(output_dir=tmp_path / "run", seed=8, resume=True))  # named when it is read


@pytest.mark.parametrize("states", [1, 2])
def test_an_unfinished_run_goes_on_by_itself_with_the_same_config_and_code(tmp_path, model, monkeypatch, states):
    config = Config(output_dir=tmp_path / "run", seed=7)
    assert not check_before_work(config)
    monkeypatch.setitem(IDENTITY, "code", code_digest(config))
    for steps in range(1, states + 1):
        trained(tmp_path / "run.incomplete", model, steps)
    assert check_before_work(config)
    with pytest.raises(ValueError, match=r"was trained with seed=7, not 8; .*, or delete .* to start over"):
        check_before_work(replace(config, seed=8))
    flip_a_bit(tmp_path / "run.incomplete" / "training_state" / f"step-0000000{states}" / "state.json")
    if states == 2:
        assert check_before_work(config)  # from the state before
    else:
        with pytest.raises(ValueError, match="holds an unfinished run of which no state can be read; delete that"):
            check_before_work(config)


def test_an_unfinished_run_that_other_code_began_goes_on_only_with_the_flag(tmp_path, model):
    trained(tmp_path / "run.incomplete", model)
    config = Config(output_dir=tmp_path / "run", seed=7, flag_prefix="here.")
    with pytest.raises(ValueError, match=r"at step-00000001, which other code began; add --here\.resume to go on with"):
        check_before_work(config)
    assert check_before_work(replace(config, resume=True))


def test_a_finished_run_without_resume_is_run_again(tmp_path, model):
    trained(tmp_path / "run", model)
    check_before_work(Config(output_dir=tmp_path / "run", seed=8))


def test_the_identity_of_a_run_is_its_dataset_and_what_its_result_depends_on():
    dataset = SimpleNamespace(digest="d" * 64)
    identity = identity_of(Config(seed=7), dataset)
    code = code_digest(Config())
    assert identity == {
        "dataset": "d" * 64,
        "config": {"scale": "tiny", "seed": 7, "learning_rate": 1e-3},
        "code": code,
    }
    elsewhere = Config(seed=7, output_dir=Path("b"), device="cuda", checkpoint_every_steps=9, resume=True)
    assert identity_of(elsewhere, dataset) == identity
