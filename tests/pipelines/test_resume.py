"""A killed run that resumes ends with the same bits as a run without a break."""

import os
import random
import re
import time
from pathlib import Path

FILES = ["model/model.safetensors", "curve.parquet", "validation_curve.parquet", "ladder.json"]


def steps_done(output: Path) -> int:
    """Steps in the last complete state of an unfinished run; 0 if there is none."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in output.glob("training_state/*"))
    return max((int(name[1]) for name in names if name), default=0)


def test_a_run_that_is_killed_again_and_again_resumes_to_the_same_bits(short_dataset, shell):
    """Killed before its first state and at three random steps."""
    from nemotron.recipes.training.run import Checkpoint

    seed = int.from_bytes(os.urandom(4), "big")
    draw = random.Random(seed)
    kill_after = [0, *sorted(draw.sample(range(1, 20), 3))]  # of 22 steps
    told = f"seed {seed}, killed after {kill_after}"

    command = (
        f"python training.py $SHORT --checkpoint-every-steps 1 --dataset-path {short_dataset.path} --output-dir $OUT/"
    )
    undisturbed = shell.run(f"{command}undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr

    unfinished = shell.output / "killed.incomplete"
    for step in kill_after:
        process = shell.start(f"{command}killed --resume")
        shell.wait_until(lambda step=step: unfinished.exists() and steps_done(unfinished) >= step, process)
        time.sleep(draw.random() * 0.1)
        process.kill()
        assert process.wait() == -9, told
        assert not (shell.output / "killed").exists(), told
    resumed = shell.run(f"{command}killed --resume")
    assert resumed.returncode == 0, (told, resumed.stderr)
    assert re.search(r"resumed at step \d+", resumed.stderr), told

    for name in FILES:
        expected = (shell.output / "undisturbed" / name).read_bytes()
        assert (shell.output / "killed" / name).read_bytes() == expected, (name, told)
    digests = {Checkpoint.load(path=shell.output / name).digest for name in ("undisturbed", "killed")}
    assert len(digests) == 1, told
    assert not unfinished.exists()


def test_a_run_does_not_resume_with_another_seed(short_dataset, shell):
    dataset = f"--dataset-path {short_dataset.path}"
    command = f"python training.py $SHORT --checkpoint-every-steps 1 {dataset} --output-dir $OUT/run"
    process = shell.start(command)
    shell.wait_until(lambda: steps_done(shell.output / "run.incomplete") >= 1, process)
    process.kill()
    process.wait()
    sentence = shell.refusal(shell.run(f"{command} --resume --seed 7"))
    assert "seed=1234" in sentence
    assert "seed=1234" not in shell.refusal(shell.run(command))
