"""Interrupts, full disks and wrong places: one sentence, no half-written artifact, and nothing that existed is lost."""

import importlib
import signal
from pathlib import Path

import pytest

PACKAGE = "nemotron.recipes.nano2.stage0_pretrain"
STEPS = ("data_curation", "training", "evaluation")


@pytest.fixture
def inputs(stage0, short_dataset) -> dict[str, str]:
    """The input flags of each step."""
    return {
        "data_curation": "",
        "training": f"$SHORT --dataset-path {short_dataset.path}",
        "evaluation": f"--checkpoint-path {stage0.checkpoint.path}",
    }


def test_ctrl_c_in_training_keeps_the_earlier_artifact(inputs, shell):
    from nemotron.recipes.training.run import Checkpoint

    command = f"python training.py {inputs['training']} --checkpoint-every-steps 1 --output-dir $OUT/training"
    assert shell.run(command).returncode == 0
    before = Checkpoint.load(path=shell.output / "training")

    process = shell.start(command)
    unfinished = shell.output / "training.incomplete"
    shell.wait_until(lambda: list(unfinished.glob("training_state/step-*[0-9]")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    shell.last_words((shell.output / "stderr").read_text())
    assert not (shell.output / "stdout").read_text()
    after = Checkpoint.load(path=shell.output / "training")
    assert (after.digest, after.created_at) == (before.digest, before.created_at)
    with pytest.raises((ValueError, OSError), match=r"metadata\.json"):
        Checkpoint.load(path=unfinished)


def test_ctrl_c_in_curation_leaves_nothing_behind(shell):
    process = shell.start("python data_curation.py --output-dir $OUT/data_curation")
    shell.wait_until((shell.output / "data_curation.incomplete").exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    shell.last_words((shell.output / "stderr").read_text())
    assert sorted(path.name for path in shell.output.iterdir()) == ["stderr", "stdout"]


@pytest.mark.parametrize(
    ("step", "kilobytes"),
    [("data_curation", 8), ("data_curation", 100), ("training", 8), ("training", 2500), ("evaluation", 1)],
)
def test_a_full_disk_is_one_sentence_and_leaves_no_artifact(inputs, shell, step, kilobytes):
    """A file above the limit fails with the same kind of error as a file on a full disk."""
    done = shell.run(f"ulimit -f {kilobytes}; python {step}.py {inputs[step]} --output-dir $OUT/step")
    assert "Traceback" not in done.stderr
    shell.refusal(done)
    assert not (shell.output / "step").exists()
    module = importlib.import_module(f"{PACKAGE}.{step}")
    artifact = getattr(module, {"data_curation": "Dataset", "training": "Checkpoint", "evaluation": "Results"}[step])
    with pytest.raises((ValueError, OSError)):
        artifact.load(path=shell.output / "step.incomplete")


def other_artifact(path: Path) -> None:
    """A directory with an artifact of another type."""
    path.mkdir()
    (path / "metadata.json").write_text('{"type": "something_else"}')


def foreign_file(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("five years")


def a_file(path: Path) -> None:
    path.write_text("five years")


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("five years")


@pytest.mark.parametrize("place", [other_artifact, foreign_file, a_file, below_a_file])
@pytest.mark.parametrize("step", STEPS)
def test_an_output_directory_that_is_taken_is_refused_and_untouched(stage0, tmp_path, step, place):
    output = tmp_path / "parent" / "output"
    output.parent.mkdir()
    place(output)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    module = importlib.import_module(f"{PACKAGE}.{step}")
    paths = {
        "training": {"dataset_path": stage0.dataset.path},
        "evaluation": {"checkpoint_path": stage0.checkpoint.path},
    }
    with pytest.raises((ValueError, OSError)) as refused:
        module.main(module.Config(output_dir=output, **paths.get(step, {})))
    assert str(output.parent) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_directory_that_cannot_be_written_is_one_sentence(inputs, shell):
    done = shell.run(f"python training.py {inputs['training']} --output-dir /proc/nemotron/training")
    assert "/proc/nemotron" in shell.refusal(done)


@pytest.mark.parametrize("flags", ["--warmup-steps -5", "--batch-sequences 0", "--scale huge", "--nonsense 1"])
def test_a_bad_flag_is_refused_before_any_work(stage0, shell, flags):
    done = shell.run(f"python training.py {flags} --dataset-path {stage0.dataset.path} --output-dir $OUT/training")
    assert done.returncode == 2
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert flags.split()[0].strip("-").replace("-", "_") in done.stderr.replace("-", "_")
    assert not list(shell.output.iterdir())
