"""Weights & Biases offline and MLflow on a SQLite file: the real libraries, and what they wrote is read back."""

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron import Artifact, MlflowTracker, WandbTracker, set_lineage_tracker
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, parse_command_line
from nemotron.lineage import log_curve, log_files
from nemotron.process import process
from nemotron.recipes.nano2.stage0_pretrain import training

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries


class Dataset(Artifact):
    pass


class Checkpoint(Artifact):
    dataset_path: Path


@dataclass
class Config:
    seed: int = 3


@pytest.fixture(autouse=True)
def remove_tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    set_lineage_tracker(None)


def run_steps(place: Path) -> tuple[Dataset, Checkpoint]:
    """Two steps, the second of which trains for three steps, and a report beside them."""
    with working_directory(place / "dataset", Dataset) as work:
        (work / "plots").mkdir()
        (work / "plots" / "length.svg").write_text("<svg/>")
        (work / "table.md").write_text("| a |")
        (work / "rows.parquet").write_text("large")
        Dataset(path=work, metrics={"documents/all": 7}).save(Config())
    dataset = Dataset.load(place / "dataset")
    with working_directory(place / "checkpoint", Checkpoint) as work:
        for step in (1, 2, 3):
            log_curve(Config(), {step: {"loss": 1 / step, "reward": step / 10}})
        Checkpoint(path=work, dataset_path=dataset.path, metrics={"validation_loss": 0.25}).save(Config(seed=4))
    (place / "report.html").write_text("<html>")
    log_files(place / "report.html")
    return dataset, Checkpoint.load(place / "checkpoint")


def wandb_records(directory: Path) -> Iterator:
    """The records in the file of an offline run: a log of blocks of 32 KiB, each record in one or several pieces."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = directory.glob("run-*.wandb")
    data, place, content = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = -place % 32768
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if 0 < left < 7 or kind == 0:
            place += left
            continue
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(content)
            content = b""


def wandb_runs(directory: Path) -> dict[str, dict]:
    """Name -> what W&B would be sent of each offline run."""
    runs = {}
    for place in sorted(directory.glob("wandb/offline-run-*")):
        records = list(wandb_records(place))
        (run,) = (record.run for record in records if record.HasField("run"))
        config = {item.key: json.loads(item.value_json) for r in records for item in r.config.update}
        history = [
            {
                item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                for item in r.history.item
            }
            for r in records
            if r.HasField("history")
        ]
        summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for r in records
            for item in r.summary.update
        }
        artifacts = [r.artifact for r in records if r.HasField("artifact")]
        files = {str(file.relative_to(place / "files")) for file in (place / "files").rglob("*") if file.is_file()} - {
            "requirements.txt"
        }
        runs[run.display_name] = dict(
            group=run.run_group, config=config, history=history, summary=summary, artifacts=artifacts, files=files
        )
    return runs


def test_an_offline_run_of_wandb_has_curves_artifacts_and_files(tmp_path, capfd):
    set_lineage_tracker(WandbTracker(project="trial", mode="offline"))
    dataset, checkpoint = run_steps(tmp_path)
    set_lineage_tracker(None)
    runs = wandb_runs(tmp_path)
    name = __name__.replace(".", "/")
    assert [*runs] == [name, "report"]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 3
    assert runs["report"]["files"] == {"report.html"}
    trained = runs[name]  # the second run of that name
    assert trained["config"]["seed"] == 4
    assert [(row["steps_done"], row["loss"], row["reward"]) for row in trained["history"]] == [
        (1, 1.0, 0.1),
        (2, 0.5, 0.2),
        (3, 1 / 3, 0.3),
    ]
    assert trained["summary"]["validation_loss"] == 0.25
    (made,) = trained["artifacts"]
    stored = json.loads(made.metadata)
    assert (made.type, stored["digest"], stored["path"]) == ("checkpoint", checkpoint.digest, str(checkpoint.path))
    assert stored["inputs"]["dataset_path"]["digest"] == dataset.digest
    assert set(made.aliases) == {"latest", checkpoint.digest[:12]}
    assert "metadata.json" in str(made.manifest)
    said = capfd.readouterr().err
    assert said.count("W&B is offline: artifacts have their inputs in their metadata and not as edges") == 1
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in said


def test_wandb_writes_below_the_directory_in_which_a_run_begins(tmp_path, monkeypatch):
    for name in ("first", "second"):  # W&B itself writes both into the first
        place = tmp_path / name
        place.mkdir()
        (place / "report.html").write_text("<html>")
        monkeypatch.chdir(place)
        set_lineage_tracker(WandbTracker(mode="offline"))
        log_files(place / "report.html")
        set_lineage_tracker(None)
        assert list(wandb_runs(place)) == ["report"]


def test_wandb_offline_refuses_to_fetch_by_name(tmp_path):
    set_lineage_tracker(WandbTracker(mode="offline"))
    with pytest.raises(ValueError, match="name='corpus:v3' cannot be fetched, because W&B is offline; load the art"):
        Dataset.load(name="corpus:v3")


def test_wandb_online_without_a_key_is_one_warning_and_asks_nothing(tmp_path, monkeypatch, capfd):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    set_lineage_tracker(WandbTracker())
    _, checkpoint = run_steps(tmp_path)
    set_lineage_tracker(None)
    first, last = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert "W&B has no API key; run wandb login, or set WANDB_API_KEY or WANDB_MODE=offline" in first
    assert last.endswith("calls of this run; its artifacts are on disk")
    assert checkpoint.metrics == {"validation_loss": 0.25}


def mlflow_runs(uri: str) -> dict[str, list]:
    """Name -> the runs of that name, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name("nemotron")
    runs: dict[str, list] = {}
    for run in client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]):
        runs.setdefault(run.info.run_name, []).append(run)
    return runs


def test_a_store_of_mlflow_has_curves_artifacts_and_edges(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/store.db"
    set_lineage_tracker(MlflowTracker(uri))
    dataset, checkpoint = run_steps(tmp_path)
    assert Dataset.load(name=f"{__name__.replace('.', '/')}/dataset").digest == dataset.digest
    with pytest.raises(ValueError, match=r"name='corpus': sqlite:.*store.db has no dataset of that name"):
        Dataset.load(name="corpus")
    set_lineage_tracker(None)
    client, runs = MlflowClient(uri), mlflow_runs(uri)
    curated, trained = runs.pop(__name__.replace(".", "/"))
    ((command,),) = runs.values()
    assert {run.data.tags["mlflow.parentRunId"] for run in (curated, trained)} == {command.info.run_id}
    assert {run.info.status for run in (curated, trained, command)} == {"FINISHED"}
    assert [(m.step, m.value) for m in client.get_metric_history(trained.info.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert [m.value for m in client.get_metric_history(trained.info.run_id, "reward")] == [0.1, 0.2, 0.3]
    assert trained.data.metrics["validation_loss"] == 0.25
    assert curated.data.metrics == {"documents/all": 7}
    assert (curated.data.params, trained.data.params) == ({"seed": "3"}, {"seed": "4"})

    def edges(run):
        found = [(one.tags[0].value, one.dataset) for one in run.inputs.dataset_inputs]
        return {context: (dataset.digest, json.loads(dataset.source)) for context, dataset in found}

    written = dataset.digest[:36], {"path": str(dataset.path), "digest": dataset.digest}
    assert edges(curated) == {"output": written}
    assert edges(trained)["dataset_path"] == written  # an edge from the one run to the other
    assert edges(trained)["output"][1]["digest"] == checkpoint.digest
    files = [file.path for file in client.list_artifacts(curated.info.run_id)]
    assert files == ["metadata.json", "plots", "table.md"]
    assert [file.path for file in client.list_artifacts(curated.info.run_id, "plots")] == ["plots/length.svg"]
    assert [file.path for file in client.list_artifacts(command.info.run_id)] == ["report.html"]


# --- the flag


@pytest.mark.parametrize(("name", "made"), [("wandb", WandbTracker), ("mlflow", MlflowTracker)])
def test_the_flag_sets_the_tracker_and_is_no_field(tmp_path, name, made):
    config = parse_command_line(training.Config, ["--tracker", name])
    assert config == training.Config()
    assert isinstance(process.tracker.tracker, made)


def test_without_the_flag_there_is_no_tracker():
    assert isinstance(parse_command_line(training.Config, []), ScaledConfig)
    assert process.tracker is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_any_work(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        parse_command_line(training.Config, ["--tracker", name])
    assert stopped.value.code == 2
    sentence = f'error: {name} is not installed; run pip install "nemotron-recipes[{name}]"'
    assert capsys.readouterr().err.strip() == sentence


# --- a real stage


class Both:
    """Both trackers, and an error at every third call."""

    def __init__(self, uri: str) -> None:
        self.trackers = WandbTracker(mode="offline"), MlflowTracker(uri)
        self.calls = 0

    def _each(self, method: str, *args, **options) -> None:
        for tracker in self.trackers:
            getattr(tracker, method)(*args, **options)
        self.calls += 1
        if self.calls % 3 == 0:
            raise ConnectionError("every third call")

    def log_artifact(self, artifact):
        self._each("log_artifact", artifact)

    def use_artifact(self, artifact, artifact_type):
        self._each("use_artifact", artifact, artifact_type)

    def log_metrics(self, metrics, step=None, *, producer=""):
        self._each("log_metrics", metrics, step, producer=producer)

    def log_files(self, paths):
        self._each("log_files", paths)

    def close(self):
        self._each("close")


def test_a_tracked_training_has_the_same_numbers_and_its_curve_is_in_both_trackers(stage0, tmp_path, capfd):
    """stage0 is compared with its golden, so a run with the same digest is the golden's too."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/store.db"
    set_lineage_tracker(Both(uri))
    config = training.Config(output_dir=tmp_path / "training", dataset_path=stage0.dataset.path)
    checkpoint = training.main(replace(config))
    set_lineage_tracker(None)
    assert checkpoint.digest == stage0.checkpoint.digest
    assert "warning: Both did not log" in capfd.readouterr().err
    name = "nano2/stage0_pretrain/training"
    curve = pq.read_table(checkpoint.curve_path).to_pylist()
    ((run,), client) = mlflow_runs(uri)[name], MlflowClient(uri)
    for number in ("loss", "learning_rate", "grad_norm"):
        sent = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, number)}
        assert sent == {row["step"] + 1: row[number] for row in curve}
    speeds = client.get_metric_history(run.info.run_id, "tokens_per_second")
    assert len(speeds) == len(curve)
    assert all(metric.value > 0 for metric in speeds)
    written = wandb_runs(tmp_path)[name]
    assert {row["steps_done"]: row["loss"] for row in written["history"] if "loss" in row} == {
        row["step"] + 1: row["loss"] for row in curve
    }
    assert {"loss.svg"} <= written["files"]
