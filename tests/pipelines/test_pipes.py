"""The steps as Unix tools: `python data_curation.py | python training.py | python evaluation.py`, in a real shell."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.testing.alarms import Cell
from nemotron.testing.compare import Policy, compare, encode_golden
from nemotron.testing.stage import stage_document


def test_three_steps_in_a_pipe_give_the_numbers_of_plain_calls(stage0, shell):
    """The directory, the kernels, the threads, the hash seed and the time zone are different, too."""
    cell = Cell("default", "1", "1", 1)
    done = shell.run(
        "python data_curation.py --output-dir $OUT/run/data_curation"
        " | python training.py --output-dir $OUT/run/training"
        " | python evaluation.py --output-dir $OUT/run/evaluation",
        **cell.environment,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    ((name, entry),) = json.loads(line).items()
    assert (name, entry["type"], Path(entry["path"])) == ("results", "results", shell.output / "run" / "evaluation")

    golden = encode_golden(stage0.document, Policy())
    comparison = compare(golden, stage_document(stage0.name, shell.output / "run", list(stage0.document["ladder"])))
    assert comparison.equal, "\n".join(comparison.lines())


def test_step_reads_from_a_file_and_writes_to_one(short_dataset, shell):
    dataset = shell.line_for("dataset", short_dataset)
    done = shell.run(f"python training.py $SHORT --output-dir $OUT/training < {dataset} > $OUT/checkpoint.json")
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    entry = json.loads((shell.output / "checkpoint.json").read_text())["checkpoint"]
    assert Path(entry["path"]) == shell.output / "training"


def test_a_closed_pipe_ends_without_a_traceback(short_dataset, shell):
    dataset = shell.line_for("dataset", short_dataset)
    done = shell.run(f"python training.py $SHORT --output-dir $OUT/training < {dataset} | head -c 0")
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr
    assert (shell.output / "training" / "metadata.json").exists()


def test_a_failing_first_step_fails_the_pipe_with_one_sentence_for_each_step(shell):
    done = shell.run(
        "python data_curation.py --sources $OUT/nothing --output-dir $OUT/run/data_curation"
        " | python training.py --output-dir $OUT/run/training"
        " | python evaluation.py --output-dir $OUT/run/evaluation"
    )
    assert done.returncode == 2
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert f"{shell.output}/nothing" in done.stderr
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert not [path for path in shell.output.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("step", "input_line"),
    [
        ("training.py", "true |"),
        ("training.py", "{ cat $OUT/dataset.json; cat $OUT/dataset.json; } |"),
        ("training.py", "cat $OUT/checkpoint.json |"),
        ("evaluation.py", "cat $OUT/dataset.json |"),
        ("evaluation.py", "head -c 100 /dev/urandom |"),
    ],
    ids=["empty", "two lines", "a checkpoint for training", "a dataset for evaluation", "noise"],
)
def test_a_wrong_input_is_one_sentence_and_exit_code_2(stage0, shell, step, input_line):
    shell.line_for("dataset", stage0.dataset)
    shell.line_for("checkpoint", stage0.checkpoint)
    done = shell.run(f"{input_line} python {step} --output-dir $OUT/step")
    assert len(shell.refusal(done)) < 500
    assert len(done.stderr.splitlines()) == 1
    assert not (shell.output / "step").exists()


def test_a_terminal_as_stdin_is_refused(shell):
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nemotron.recipes.nano2.stage0_pretrain.training"],
            cwd=shell.output,
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "--dataset-path" in shell.refusal(done)
