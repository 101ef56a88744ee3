"""Two experiment trackers: Weights & Biases, and MLflow. Each run of a step is one run there.

In: the calls of `LineageTracker`. Out: for each step a run with its config, its curves over optimizer steps, its
metrics, its plots and tables as files, the artifacts that it read and the artifact that it wrote. The runs of one
command belong together: a group in W&B, the children of one run in MLflow. Files of an artifact stay where they are;
the tracker gets their digest and place, and copies of metadata.json, plots and tables.

    set_lineage_tracker(WandbTracker())     # the same as --tracker wandb

`pip install "nemotron-recipes[wandb]"`, or `[mlflow]`. Neither library is imported before its tracker is made.
Left out: storing models and datasets in the tracker.
"""

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemotron.directory import METADATA, Metadata
from nemotron.published import read_reference
from nemotron.terminal import print_line

if TYPE_CHECKING:
    import mlflow
    import wandb
    from mlflow.entities import DatasetInput

    from nemotron.artifact import Artifact

SHOWN = (".html", ".md", ".svg")
"""Endings of the files of an artifact that a person looks at; a tracker gets copies of them."""
START_SECONDS = 30.0  # our choice: how long W&B's server may take to begin a run
MAX_PARAMETER_LENGTH = 6000  # of MLflow, in characters
MAX_DIGEST_LENGTH = 36  # of a dataset in MLflow, in characters
MAX_METRICS = 1000  # of one call of MLflow


def check_installed(package: str, extra: str) -> None:
    """Raise ValueError if a tracker's library is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'{extra} is not installed; run pip install "nemotron-recipes[{extra}]"')


def short_name(producer: str) -> str:
    """nano2/stage0_pretrain/training of nemotron.recipes.nano2.stage0_pretrain.training."""
    return producer.removeprefix("nemotron.recipes.").replace(".", "/") or "run"


def shown_files(artifact: "Artifact") -> list[Path]:
    """The files of an artifact that a tracker gets a copy of."""
    return [artifact.path / name for name in sorted(artifact.files) if name.endswith(SHOWN)]


def described(path: Path, metadata: Metadata) -> dict[str, Any]:
    """What a tracker stores of an artifact beside its files."""
    return {
        "digest": metadata.digest,
        "path": str(path),
        "inputs": {name: one.model_dump() for name, one in metadata.inputs.items()},
        "producer": metadata.producer,
        "fields": metadata.fields,
    }


class WandbTracker:
    """Weights & Biases.

    Args:
        project: where the runs go.
        mode: as in `wandb.init`; by default WANDB_MODE, or online. Offline writes below ./wandb, or WANDB_DIR, and
            `wandb sync` sends it later.
    Raises:
        ValueError: if wandb is not installed.
    """

    def __init__(self, project: str = "nemotron", mode: Literal["online", "offline"] | None = None) -> None:
        check_installed("wandb", "wandb")
        import wandb  # now, because a program that is ending cannot import it

        self.project, self.mode = project, mode
        self.group = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        self.producer = ""
        self.run: wandb.Run | None = None
        self.has_warned = False

    def _run_of(self, producer: str) -> "wandb.Run":
        """The run of a step; that of another step is finished first."""
        import wandb

        if self.run is None or producer != self.producer:
            self.close()
            mode = self.mode or os.environ.get("WANDB_MODE", "online")
            if mode == "online" and not wandb.login(prompt=False):
                raise ValueError("W&B has no API key; run wandb login, or set WANDB_API_KEY or WANDB_MODE=offline")
            settings = wandb.Settings(
                console="off", silent=True, disable_git=True, x_disable_stats=True, init_timeout=START_SECONDS
            )
            self.run = wandb.init(
                project=self.project, group=self.group, name=short_name(producer), mode=self.mode, settings=settings,
                dir=os.environ.get("WANDB_DIR") or os.getcwd(),  # W&B keeps the directory of its first run
            )  # fmt: skip
            self.producer = producer
            self.run.define_metric("steps_done", hidden=True)
            self.run.define_metric("*", step_metric="steps_done")
            if self.run.offline and not self.has_warned:
                self.has_warned = True
                print_line(
                    "W&B is offline: artifacts have their inputs in their metadata and not as edges, and none can be "
                    f"loaded by its name. To send the runs: wandb sync {Path(self.run.dir).parents[1]}/offline-run-*"
                )
        return self.run

    def log_artifact(self, artifact: "Artifact") -> None:
        """Log it as the output of its step's run, which ends here, and its inputs as those of the run."""
        run = self._run_of(artifact.producer["step"])
        run.config.update(artifact.producer["config"], allow_val_change=True)
        if not run.offline:
            for reference in artifact.inputs.values():
                run.use_artifact(self._wandb_artifact((artifact.path / reference.path).resolve()))
        run.log_artifact(self._wandb_artifact(artifact.path), aliases=["latest", artifact.digest[:12]])
        for file in shown_files(artifact):
            _copy(file, artifact.path, run)
        self.close()

    def _wandb_artifact(self, path: Path) -> "wandb.Artifact":
        """W&B's record of an artifact on disk; the same content gives the same version there."""
        import wandb

        metadata = read_reference(path)
        name = short_name(metadata.producer.get("step", "")).replace("/", "-")
        made = wandb.Artifact(name, metadata.type, metadata=described(path, metadata))
        made.add_reference(path.as_uri(), name="directory", checksum=False)
        if (path / METADATA).exists():  # a published model has none
            made.add_file(str(path / METADATA))
        return made

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """Of a loaded artifact, nothing: it becomes an edge when the step saves what it made of it.

        A name is as W&B shows it: nano2-stage0_pretrain-training:latest.

        Raises:
            ValueError: if W&B is offline.
        """
        if not isinstance(artifact, str):
            return artifact.path
        run = self._run_of("load")
        if run.offline:
            raise ValueError(f"name={artifact!r} cannot be fetched, because W&B is offline; load the artifact by path")
        return Path(run.use_artifact(artifact, type=artifact_type).metadata["path"])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, *, producer: str = "") -> None:
        """Log the metrics of a step of training, or of a whole artifact as W&B's summary."""
        run = self._run_of(producer)
        if step is None:
            run.summary.update(dict(metrics))
        else:
            run.log({**metrics, "steps_done": step})

    def log_files(self, paths: Sequence[Path]) -> None:
        """Log files as those of a run named report."""
        run = self._run_of("report")
        for path in paths:
            _copy(path, path.parent, run)
        self.close()

    def close(self) -> None:
        """Finish the run that is open."""
        if self.run is not None:
            self.run.finish()
            self.run = None


def _copy(file: Path, below: Path, run: "wandb.Run") -> None:
    """Copy a file into a run of W&B, which would make a link, and the file may be replaced before it is sent."""
    copy = Path(run.dir, file.relative_to(below))
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    run.save(str(copy), base_path=run.dir, policy="now")


class MlflowTracker:
    """MLflow.

    Args:
        uri: of a server or of a store; by default MLFLOW_TRACKING_URI, or a SQLite file in the current directory, which
            needs no server. `mlflow ui --backend-store-uri sqlite:///mlflow.db` shows it.
        experiment: where the runs go.
        files: directory for files, for a store without a server.
    Raises:
        ValueError: if mlflow is not installed, or SQLAlchemy for a store without a server.
    """

    def __init__(self, uri: str = "", experiment: str = "nemotron", files: Path = Path("mlartifacts")) -> None:
        check_installed("mlflow", "mlflow")
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{Path('mlflow.db').absolute()}"
        if not self.uri.startswith("http"):
            check_installed("sqlalchemy", "mlflow")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # as above

        self.experiment, self.files = experiment, Path(files).absolute()
        self.client: mlflow.MlflowClient | None = None
        self.experiment_id = self.parent_id = ""
        self.producer = self.run_id = ""

    def _connected(self) -> "mlflow.MlflowClient":
        """The client; the first call makes the experiment, and the run for the whole command."""
        if self.client is None:
            import mlflow

            client = mlflow.MlflowClient(self.uri)
            found = client.get_experiment_by_name(self.experiment)
            location = None if self.uri.startswith("http") else self.files.as_uri()
            self.experiment_id = found.experiment_id if found else client.create_experiment(self.experiment, location)
            started = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            self.parent_id = client.create_run(self.experiment_id, run_name=started).info.run_id
            self.client = client
        return self.client

    def _run_of(self, producer: str) -> "tuple[mlflow.MlflowClient, str]":
        """The client and the id of a step's run; that of another step is finished first."""
        client = self._connected()
        if not self.run_id or producer != self.producer:
            self._finish()
            tags = {"mlflow.parentRunId": self.parent_id}
            self.run_id = client.create_run(self.experiment_id, run_name=short_name(producer), tags=tags).info.run_id
            self.producer = producer
        return client, self.run_id

    def log_artifact(self, artifact: "Artifact") -> None:
        """Log it as the output of its step's run, which ends here, and its inputs as those of the run."""
        from mlflow.entities import Param

        client, run_id = self._run_of(artifact.producer["step"])
        config = artifact.producer["config"].items()
        client.log_batch(run_id, params=[Param(name, str(value)[:MAX_PARAMETER_LENGTH]) for name, value in config])
        edges = [_edge(artifact.path, artifact.saved, "output")]
        for field, reference in artifact.inputs.items():
            place = (artifact.path / reference.path).resolve()
            edges.append(_edge(place, read_reference(place), field))
        client.log_inputs(run_id, edges)
        for file in [artifact.path / METADATA, *shown_files(artifact)]:
            folder = file.parent.relative_to(artifact.path).as_posix()
            client.log_artifact(run_id, str(file), None if folder == "." else folder)
        self._finish()

    def use_artifact(self, artifact: "Artifact | str", artifact_type: str) -> Path:
        """Of a loaded artifact, nothing: it becomes an edge when the step saves what it made of it.

        A name is as MLflow shows it: nano2/stage0_pretrain/training/checkpoint. The newest such artifact is taken.

        Raises:
            ValueError: if the store has no artifact of that name and type.
        """
        if not isinstance(artifact, str):
            return artifact.path
        client = self._connected()
        for run in client.search_runs([self.experiment_id], order_by=["attributes.start_time DESC"]):
            for one in run.inputs.dataset_inputs if run.inputs else ():
                if one.dataset.name == artifact and artifact.endswith(f"/{artifact_type}"):
                    return Path(json.loads(one.dataset.source)["path"])
        raise ValueError(f"name={artifact!r}: {self.uri} has no {artifact_type} of that name")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None, *, producer: str = "") -> None:
        """Log metrics of a step of training, or of a whole artifact, which have the step 0."""
        from mlflow.entities import Metric

        client, run_id = self._run_of(producer)
        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step or 0) for name, value in metrics.items()]
        for start in range(0, len(rows), MAX_METRICS):
            client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS])

    def log_files(self, paths: Sequence[Path]) -> None:
        """Log files as those of the run for the whole command."""
        client = self._connected()
        for path in paths:
            client.log_artifact(self.parent_id, str(path))

    def _finish(self) -> None:
        if self.client is not None and self.run_id:
            self.client.set_terminated(self.run_id)
            self.run_id = ""

    def close(self) -> None:
        """Finish the run of the step that is open, and that of the whole command."""
        self._finish()
        if self.client is not None:
            self.client.set_terminated(self.parent_id)


def _edge(path: Path, metadata: Metadata, context: str) -> "DatasetInput":
    """An artifact beside a run of MLflow: `output`, or the field of the output that names it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"path": str(path), "digest": metadata.digest})
    name = f"{short_name(metadata.producer.get('step', ''))}/{metadata.type}"
    dataset = Dataset(name, metadata.digest[:MAX_DIGEST_LENGTH], "local", source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
