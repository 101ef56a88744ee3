"""A whole stage: a step runs only if something that its result depends on differs, and says what."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from nemotron import Artifact, StageConfig, whole_stage
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, at_every_scale, input_path, nested, switch
from nemotron.process import process
from nemotron.stage import chosen_stages, find_current

ran: list[str] = []  # the steps that ran, in order


class Dataset(Artifact):
    words: int
    text_path: Path


class Checkpoint(Artifact):
    dataset_path: Path
    weights_path: Path


@dataclass
class CurationConfig(ScaledConfig):
    output_dir: Path = Path("stage/data")
    sources: tuple[str, ...] = field(default=(), metadata={"files": lambda sources: [Path(one) for one in sources]})
    most_words: int = at_every_scale(3)
    threads: int = at_every_scale(1, recorded=False)


@dataclass
class TrainingConfig(ScaledConfig):
    output_dir: Path = Path("stage/train")
    dataset_path: Path | None = input_path()
    learning_rate: float = at_every_scale(0.5)
    resume: bool = switch()


@pytest.fixture(scope="module", autouse=True)
def skip_fsync() -> Iterator[None]:
    """These tests write thousands of small files; test_directory.py tests fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def curate(config: CurationConfig) -> Dataset:
    ran.append("data")
    words = [word for source in config.sources for word in Path(source).read_text().split()][: config.most_words]
    with working_directory(config.output_dir, Dataset) as work:
        (work / "text").write_text(" ".join(words))
        Dataset(path=work, words=len(words), text_path=work / "text").save(config)
    return Dataset.load(config.output_dir)


def train(config: TrainingConfig) -> Checkpoint:
    ran.append("train")
    dataset = Dataset.load(config.dataset_path)
    with working_directory(config.output_dir, Checkpoint, keep_on_failure=True) as work:
        (work / "weights").write_text(f"{config.learning_rate} {dataset.text_path.read_text()}")
        Checkpoint(path=work, dataset_path=dataset.path, weights_path=work / "weights").save(config)
    return Checkpoint.load(config.output_dir)


STEPS: Any = (SimpleNamespace(Config=CurationConfig, main=curate), SimpleNamespace(Config=TrainingConfig, main=train))


@dataclass
class Config(StageConfig):
    output_dir: Path = Path("stage")
    data: CurationConfig = nested(CurationConfig, "data")
    train: TrainingConfig = nested(TrainingConfig, "train")


def stage(config: Config) -> dict[str, Artifact]:
    with whole_stage(config, STEPS) as run:
        dataset = run(curate, config.data)
        checkpoint = run(train, replace(config.train, dataset_path=dataset.path))
    return {"dataset": dataset, "checkpoint": checkpoint}


def config_in(folder: Path, **given: Any) -> Config:
    """The Config of a stage in a directory, with one source, which is written if it is not there."""
    notes = folder / "notes.txt"
    if not notes.exists():
        notes.write_text("one two three four")
    config = Config(output_dir=folder / "stage", **given)
    config.data.sources = (str(notes),)
    return config


def steps_of(config: Config) -> list[str]:
    """The steps that run."""
    ran.clear()
    stage(config)
    return list(ran)


def producer_without(path: Path, name: str, key: str, value: Any) -> None:
    """Change what an artifact records of its making, which is not part of its digest."""
    file = path / "metadata.json"
    values = json.loads(file.read_text())
    values["producer"][name][key] = value
    file.write_text(json.dumps(values))


def test_the_same_again_runs_nothing_and_says_so(tmp_path, capsys):
    first = stage(config_in(tmp_path))
    capsys.readouterr()
    assert steps_of(config_in(tmp_path)) == []
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "stage 1/2 data is current, and not run again",
        "stage 2/2 train is current, and not run again",
    ]
    assert {name: one.digest for name, one in stage(config_in(tmp_path)).items()} == {
        name: one.digest for name, one in first.items()
    }


CHANGES = {
    "most_words": (["data", "train"], "config most_words changed from 3 to 2"),
    "learning_rate": (["train"], "config learning_rate changed from 0.5 to 0.25"),
    "seed": (["data", "train"], "config seed changed from 1234 to 7"),
    "source": (["data", "train"], "sources changed: .*notes.txt is another file now"),
    "unread source": (["data"], "sources changed: .*notes.txt is another file now"),
    "code of data": (["data"], r"code changed: nemotron\.ladder"),
    "code of train": (["train"], r"code changed: nemotron\.ladder"),
    "library": (["data"], "numpy changed from '0' to '[0-9.]+'"),
    "tool": ([], ""),
    "threads": ([], ""),
    "file of train": (["train"], "what is there cannot be used: .*weights has"),
    "train is gone": (["train"], "not made yet"),
    "data is gone": (["data"], "not made yet"),
    "no record": (["data"], "it is not recorded which code made it"),
    "force": (["data", "train"], "--force"),
}


def change(what: str, folder: Path) -> Config:
    """Change one thing that a stage depends on; the Config of the next run."""
    config = config_in(folder)
    place = folder / "stage"
    match what:
        case "most_words":
            config.data.most_words = 2
        case "learning_rate":
            config.train.learning_rate = 0.25
        case "seed":
            config = config_in(folder, seed=7)
        case "source":
            (folder / "notes.txt").write_text("five six seven")
        case "unread source":  # the same Dataset: training reads nothing new
            (folder / "notes.txt").write_text("one two three five")
        case "code of data" | "code of train":
            producer_without(place / what.rsplit(maxsplit=1)[-1], "code", "nemotron.ladder", "0")
        case "library":
            producer_without(place / "data", "libraries", "numpy", "0")
        case "tool":
            producer_without(place / "data", "libraries", "rich", "0")
        case "threads":
            config.data.threads = 2
        case "file of train":
            (place / "train" / "weights").write_text("0")
        case "train is gone" | "data is gone":
            artifact = place / what.split(maxsplit=1)[0]
            for file in artifact.iterdir():
                file.unlink()
            artifact.rmdir()
        case "no record":
            values = json.loads((place / "data" / "metadata.json").read_text())
            del values["producer"]["code"]
            (place / "data" / "metadata.json").write_text(json.dumps(values))
        case "force":
            config = config_in(folder, force=True)
    return config


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_decides_which_steps_run_and_is_named(what, tmp_path, capsys):
    expected, reason = CHANGES[what]
    stage(config_in(tmp_path))
    config = change(what, tmp_path)
    capsys.readouterr()
    assert steps_of(config) == expected
    lines = [line for line in capsys.readouterr().err.splitlines() if " runs: " in line]
    assert len(lines) == len(expected)
    if expected:
        assert re.search(f"{expected[0]} runs: {reason}", lines[0])
    assert steps_of(replace(config, force=False)) == []


@settings(max_examples=15)  # each is a dozen runs
@given(changes=st.lists(st.sampled_from(sorted(CHANGES.keys() - {"force", "seed"})), max_size=4))
def test_whatever_happened_before_the_result_is_that_of_a_first_run(changes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("again")
    stage(config_in(folder))
    for what in changes:
        stage(change(what, folder))
    config = config_in(folder)
    again = stage(config)
    fresh = replace(
        Config(output_dir=folder / "fresh"), data=replace(config.data, output_dir=folder / "fresh" / "data")
    )
    expected = stage(fresh)
    assert again["dataset"].digest == expected["dataset"].digest
    assert again["checkpoint"].digest == expected["checkpoint"].digest
    assert steps_of(config_in(folder)) == []


def test_a_source_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    config = config_in(tmp_path)
    read = Path.read_text

    def read_and_edit(path: Path, *args: Any, **given: Any) -> str:
        text = read(path, *args, **given)
        if path.name == "notes.txt":
            path.write_text("another text")
        return text

    monkeypatch.setattr(Path, "read_text", read_and_edit)
    stage(config)
    monkeypatch.undo()
    assert steps_of(config) == ["data", "train"]
    assert steps_of(config) == []


def test_a_plan_says_what_would_run_and_changes_nothing(tmp_path, capsys):
    stage(config_in(tmp_path))
    config = change("most_words", tmp_path)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    capsys.readouterr()
    assert steps_of(replace(config, plan=True)) == []
    written = capsys.readouterr()
    assert written.out.splitlines() == [
        "stage",
        "  data            runs: config most_words changed from 3 to 2",
        "  train           runs: depends on stage/data, which runs",
    ]
    assert not written.err
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    process.planned.clear()


def test_the_plan_of_a_stage_that_is_current_says_so(tmp_path, capsys):
    stage(config_in(tmp_path))
    capsys.readouterr()
    stage(config_in(tmp_path, plan=True))
    assert capsys.readouterr().out.splitlines() == [
        "stage",
        "  data            is current",
        "  train           is current",
    ]


def test_the_plan_of_a_stage_that_was_not_run_creates_nothing(tmp_path):
    stage(config_in(tmp_path, plan=True))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    process.planned.clear()


def test_a_step_that_another_step_wrote_in_its_place_runs(tmp_path):
    stage(config_in(tmp_path))
    file = tmp_path / "stage" / "train" / "metadata.json"
    file.write_text(file.read_text().replace(f'"step": "{__name__}"', '"step": "another.training"'))
    assert steps_of(config_in(tmp_path)) == ["train"]


def test_an_input_of_another_stage_is_compared_by_its_digest(tmp_path):
    """Training reads the Dataset of another directory: a copy is the same, another one is not."""
    config = config_in(tmp_path)
    dataset = stage(config)["dataset"]
    other = curate(replace(config.data, output_dir=tmp_path / "other", most_words=1))
    trainer = replace(config.train, dataset_path=dataset.path)
    for place, expected in ((dataset.path, []), (other.path, ["train"])):
        ran.clear()
        with whole_stage(config, STEPS) as run:
            run(train, replace(trainer, dataset_path=place))
        assert ran == expected


def test_the_steps_of_a_recipe_are_counted_once(tmp_path, capsys):
    config = config_in(tmp_path)
    with whole_stage(config, STEPS):  # as a recipe opens all its stages
        stage(config)
    assert [line.split(" runs")[0] for line in capsys.readouterr().err.splitlines()] == [
        "stage 1/2 data",
        "stage 2/2 train",
    ]
    assert not process.sources


STAGES = ["nano2/stage0_pretrain", "nano2/stage1_sft", "nano2/stage2_rlvr", "nano2/stage10_last"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", STAGES),
        ("stage1_sft", STAGES[1:2]),
        ("stage1", STAGES[1:2]),
        ("1", STAGES[1:2]),
        ("10", STAGES[3:]),
        ("stage1_sft:stage2_rlvr", STAGES[1:3]),
        ("0:1", STAGES[:2]),
        (":1", STAGES[:2]),
        ("2:", STAGES[2:]),
        (":", STAGES),
    ],
)
def test_stages_are_chosen_by_folder_name_or_number(given, expected):
    assert chosen_stages(given, STAGES) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("stage9", "stages=stage9: there is no stage stage9; use one of stage0_pretrain, stage1_sft, "),
        ("sft", "there is no stage sft"),
        ("0:7", "there is no stage 7"),
        ("0:1:2", "there is no stage 1:2"),
        ("2:1", "stages=2:1 ends before it begins; write it as 1:2"),
    ],
)
def test_a_range_without_stages_is_refused(given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        chosen_stages(given, STAGES)


@given(
    ends=st.lists(st.integers(0, 3), min_size=2, max_size=2).map(sorted), spelled=st.tuples(*[st.integers(0, 2)] * 2)
)
def test_every_spelling_of_a_range_is_the_same_range(ends, spelled):
    spellings = [
        [name.split("/")[1], name.split("/")[1].split("_")[0], name.split("stage")[1].split("_")[0]] for name in STAGES
    ]
    given = ":".join(spellings[end][how] for end, how in zip(ends, spelled, strict=True))
    assert chosen_stages(given, STAGES) == STAGES[ends[0] : ends[1] + 1]


# --- locks and places

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from nemotron.directory import locked
Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_writes(directory: Path) -> Iterator[None]:
    """Another process holds the lock of a directory."""
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline().strip() == b"locked"
        yield
        other.stdin.close()


@pytest.mark.locks
@pytest.mark.parametrize("written", ["data.incomplete", "train.incomplete", ".running"])
def test_a_stage_in_which_another_process_works_is_refused_before_its_first_step(tmp_path: Path, written: str):
    place = tmp_path / "stage" / written
    named = tmp_path / "stage" if written == ".running" else place
    with another_process_writes(place):
        with (
            pytest.raises(ValueError, match=re.escape(f"another process is writing {named};")),
            whole_stage(Config(output_dir=tmp_path / "stage"), STEPS),
        ):
            pytest.fail("the stage started")
        assert [path.name for path in sorted((tmp_path / "stage").iterdir())] == [written]


@pytest.mark.locks
def test_a_step_is_refused_where_another_process_runs_the_whole_stage(tmp_path: Path):
    with (
        another_process_writes(tmp_path / "stage" / ".running"),
        pytest.raises(ValueError, match=re.escape(f"another process is writing {tmp_path / 'stage'}; wait for it")),
    ):
        curate(Config(output_dir=tmp_path / "stage").data)


def test_a_stage_runs_its_own_steps_and_leaves_nothing_else(tmp_path: Path):
    config = Config(output_dir=tmp_path / "stage")
    with whole_stage(config, STEPS), whole_stage(config, STEPS):  # opened by the recipe, and by the stage
        curate(config.data)
    assert [path.name for path in sorted((tmp_path / "stage").iterdir())] == ["data"]


def test_a_killed_stage_does_not_block_the_next(tmp_path: Path):
    (tmp_path / "stage" / ".running").mkdir(parents=True)
    with whole_stage(Config(output_dir=tmp_path / "stage"), STEPS):
        pass
    assert [path.name for path in sorted((tmp_path / "stage").iterdir())] == []


def test_a_place_that_a_later_step_would_refuse_is_refused_before_the_first(tmp_path: Path):
    curate(CurationConfig(output_dir=tmp_path / "stage" / "train"))
    with (
        pytest.raises(ValueError, match="type='dataset', expected 'checkpoint'"),
        whole_stage(Config(output_dir=tmp_path / "stage"), STEPS),
    ):
        pytest.fail("the stage started")


@pytest.mark.parametrize("plan", [False, True])
@pytest.mark.parametrize("place", ["", "stage", "stage/train"])
def test_a_file_in_the_place_of_a_directory_is_refused_by_a_plan_too(tmp_path: Path, place: str, plan: bool):
    file = tmp_path / "here" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with (
        pytest.raises(ValueError, match=re.escape(f"{file} is a file")),
        whole_stage(Config(output_dir=tmp_path / "here" / "stage", plan=plan), STEPS),
    ):
        pytest.fail("the stage started")
    assert file.read_text() == "mine"


def test_a_plan_refuses_the_damaged_artifact_that_a_run_refuses(tmp_path: Path):
    stage(config_in(tmp_path))
    (tmp_path / "stage" / "train" / "metadata.json").write_text("{")
    for plan in (True, False):
        with pytest.raises(ValueError, match=r"train will not be replaced, so delete it .* not valid JSON"):
            stage(config_in(tmp_path, plan=plan))


def test_an_input_that_is_gone_is_named_as_the_input(tmp_path: Path):
    config = config_in(tmp_path)
    stage(config)
    gone = replace(config.train, dataset_path=tmp_path / "gone")
    assert find_current(Checkpoint, gone)[1].startswith(f"dataset_path: {tmp_path / 'gone'} does not exist")
