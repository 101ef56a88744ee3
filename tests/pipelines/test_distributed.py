"""Training steps in several processes: the numbers of one process, also when resumed on others; what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nemotron.directory import mark_as_own
from nemotron.recipes.nano2.stage0_pretrain import training
from nemotron.recipes.nano2.stage1_sft import data_curation as sft_data_curation
from nemotron.recipes.nano2.stage1_sft import training as sft_training
from nemotron.recipes.nemotron_h.checkpoint import load_tensors
from nemotron.testing.compare import Policy

DRIVER = Path(__file__).with_name("ranks.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
STEP, SFT_STEP = training.__name__, sft_training.__name__

SEQUENCES = {"phase1": 32, "phase2": 9, "phase3": 3, "long_context": 3}  # 8, 3, 1 and 2 steps; the last of one row
SIZES = {
    "warmup_steps": 2,
    "batch_sequences": 4,
    "micro_batch_sequences": 3,
    "long_context_batch_sequences": 2,
    "checkpoint_every_steps": 2,
    "validate_every_steps": 10,
    "validation_sequences": 3,
    "max_grad_norm": 0.5,  # low enough to clip every step
}
SFT_SIZES = {
    "batch_sequences": 3,
    "unpacked_batch_sequences": 5,
    "micro_batch_sequences": 1,
    "warmup_steps": 5,
    "validation_sequences": 1,
}


def flags(**values):
    """The command line of these values."""
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Runs a step in several processes; gives their exit codes, and what each wrote on stdout and stderr."""
    driver = subprocess.Popen(
        [sys.executable, str(DRIVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )

    def run(module, args, kill=None, directories=None):
        place = tmp_path_factory.mktemp("ranks")
        line = {"module": module, "args": args, "directory": str(place), "kill": kill, "directories": directories}
        driver.stdin.write(json.dumps(line) + "\n")
        driver.stdin.flush()
        codes = json.loads(driver.stdout.readline())
        texts = [[(place / f"{rank}.{end}").read_text() for rank in range(len(args))] for end in ("out", "err")]
        return codes, *texts

    yield run
    driver.stdin.close()
    driver.wait()
    driver.stdout.close()


@pytest.fixture(scope="module")
def dataset(random_tokens_dataset, tmp_path_factory):
    return random_tokens_dataset(tmp_path_factory.mktemp("dataset"), SEQUENCES, 16, 32)


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """The Checkpoint of one process."""
    output = tmp_path_factory.mktemp("alone") / "training"
    return training.main(training.Config(**SIZES, dataset_path=dataset.path, output_dir=output))


def assert_same(ladder, other):
    """The ladders of two runs agree within the policy of the goldens."""
    entries, others = (json.loads((path / "ladder.json").read_text()) for path in (ladder, other))
    for one, two in zip(entries, others, strict=True):
        assert (one["rung"], one["name"], one["step"]) == (two["rung"], two["name"], two["step"])
        for ours, theirs in zip(flat(one["value"]), flat(two["value"]), strict=True):
            same = Policy().accepts(ours, theirs) if isinstance(ours, float) else ours == theirs
            assert same, (one, two)


def flat(value):
    return [number for each in value for number in flat(each)] if isinstance(value, list) else [value]


def test_a_run_that_loses_ranks_and_goes_on_with_others_has_the_numbers_of_one_process(ranks, dataset, alone, tmp_path):
    """Two processes until one is killed, then four until one is killed, then one; the batches are not divisible."""
    output = tmp_path / "training"
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=output)
    for size, dies, step in ((2, 1, 2), (4, 0, 6)):
        resume = ["--resume"] if size > 2 else []
        kill = {"rank": dies, "work": f"{output}.incomplete", "step": step}
        codes, out, err = ranks(STEP, [[*command, *resume]] * size, kill)
        assert codes[dies] == -signal.SIGKILL
        others = [rank for rank in range(size) if rank != dies]
        assert [codes[rank] for rank in others] == [2] * (size - 1)
        assert not any(out)
        spoken = [line for text in err for line in text.splitlines() if line.startswith("error")]
        assert all("lost its connection to another process of this run" in line for line in spoken)
        assert "Traceback" not in "".join(err)
        assert len(spoken) == 1
    config = training.Config(**SIZES, dataset_path=dataset.path, output_dir=output, resume=True)
    assert_same(training.main(config).path, alone.path)


def test_one_of_four_processes_writes_what_one_process_alone_would_write(ranks, dataset, alone, tmp_path):
    output, size = tmp_path / "training", 4
    codes, out, err = ranks(STEP, [flags(**SIZES, dataset_path=dataset.path, output_dir=output)] * size)
    assert codes == [0] * size, err
    assert json.loads(out[0])["checkpoint"]["path"] == str(output)
    assert not any(out[1:] + err[1:])
    assert_same(output, alone.path)
    names = [sorted(path.relative_to(place).as_posix() for path in place.rglob("*")) for place in (output, alone.path)]
    assert names[0] == names[1]
    state = sorted((output / "training_state").iterdir())[-1]
    expected = sorted((alone.path / "training_state").iterdir())[-1]
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_tensors(state / file), load_tensors(expected / file)
        assert {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in theirs.items()}
        assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-12
    assert (output / "sample.txt").read_text() == (alone.path / "sample.txt").read_text()


def test_fine_tuning_on_three_processes_has_the_numbers_of_one(ranks, random_base_model, tmp_path):
    base = random_base_model(tmp_path / "base")
    few = {"raw_conversations": 2_000, "exercises_per_family": 1, "rest_share": 0.3}
    dataset = sft_data_curation.main(
        sft_data_curation.Config(**few, base_checkpoint_path=base.path, output_dir=tmp_path / "data_curation")
    )
    given = SFT_SIZES | {"dataset_path": dataset.path}
    alone = sft_training.main(sft_training.Config(**given, output_dir=tmp_path / "alone"))
    codes, _, err = ranks(SFT_STEP, [flags(**given, output_dir=tmp_path / "training")] * 3)
    assert codes == [0] * 3, err
    assert_same(tmp_path / "training", alone.path)


def refusal(ended, code=2):
    """The one sentence of a run that every rank refused."""
    codes, out, err = ended
    assert codes == [code] * len(codes), err
    assert not any(out)
    assert "Traceback" not in "".join(err)
    (sentence,) = [line for text in err for line in text.splitlines() if line.startswith("error")]
    return sentence


def test_more_processes_than_rows_are_refused(ranks, dataset, tmp_path):
    command = flags(**SIZES | {"batch_sequences": 2}, dataset_path=dataset.path, output_dir=tmp_path / "training")
    assert "3 processes, but the largest batch has 2 rows" in refusal(ranks(STEP, [command] * 3))


def test_processes_that_have_another_config_are_refused(ranks, dataset, tmp_path):
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training")
    other = [*command, "--learning-rate", "0.002"]
    sentence = refusal(ranks(STEP, [command, command, other]))
    assert "config of rank 2 has learning_rate='0.002'" in sentence
    assert "give all processes the same command and the same files" in sentence


def test_processes_that_read_another_dataset_are_refused(ranks, dataset, random_tokens_dataset, tmp_path, monkeypatch):
    """The same path leads to other files, as on two machines without a shared disk."""
    other = random_tokens_dataset(tmp_path / "two" / "dataset", SEQUENCES, 16, 32, seed=1)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "dataset").symlink_to(dataset.path)
    command = flags(**SIZES, output_dir=tmp_path / "training")
    commands = [[*command, *flags(dataset_path=tmp_path / name / "dataset")] for name in ("one", "two")]
    assert "config of rank 1 has dataset_path" in refusal(ranks(STEP, commands))
    here = [[*command, "--dataset-path", "dataset"] for _ in range(2)]
    directories = [str(tmp_path / "one"), str(tmp_path / "two")]
    sentence = refusal(ranks(STEP, here, directories=directories))
    assert f"the run of rank 1 has dataset='{other.digest[:12]}" in sentence


def test_a_file_that_only_one_process_lacks_ends_all(ranks, dataset, tmp_path):
    command = flags(**SIZES, output_dir=tmp_path / "training")
    commands = [[*command, *flags(dataset_path="dataset")] for _ in range(2)]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "dataset").symlink_to(dataset.path)
    ended = ranks(STEP, commands, directories=[str(tmp_path / "one"), str(tmp_path / "two")])
    assert "dataset does not exist; correct the path" in refusal(ended)


def test_an_output_directory_that_processes_do_not_share_is_refused_before_the_training(ranks, dataset, tmp_path):
    """The same relative path leads to two places, as on two machines without a shared disk."""
    command = flags(**SIZES, dataset_path=dataset.path, output_dir="out")
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    (places[1] / "out.incomplete").mkdir()  # from an earlier run, there
    sentence = refusal(ranks(STEP, [command] * 2, directories=list(map(str, places))))
    assert sentence == (
        "error: output_dir='out' of rank 1 is not the directory that rank 0 writes; name one that all machines see"
    )
    assert not list(tmp_path.rglob("training_state"))


def test_a_state_that_cannot_be_read_ends_all(ranks, dataset, tmp_path):
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training")
    state = tmp_path / "training.incomplete" / "training_state" / "step-00000002"
    state.mkdir(parents=True)
    mark_as_own(tmp_path / "training.incomplete")
    (state / "checksums.json").write_text("{}")
    assert "step-00000002 is damaged" in refusal(ranks(STEP, [[*command, "--resume"]] * 2))


def test_a_device_of_one_process_is_refused(ranks, dataset, tmp_path):
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training", device="cuda:0")
    assert "device=cuda:0 is one device for several processes; give --device cuda" in refusal(
        ranks(STEP, [command] * 2)
    )


def test_a_machine_that_is_too_small_is_refused_with_what_would_fit(ranks, dataset, tmp_path):
    given = {"scale": "full", "device": "cpu", "warmup_steps": 1, "dataset_path": dataset.path}
    command = flags(**given, output_dir=tmp_path / "training")
    sentence = refusal(ranks(STEP, [command] * 2))
    assert re.fullmatch(r"error: training needs [\d,]+ GiB \(weights .*\), and cpu has [\d.,]+ GiB; use .*", sentence)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_a_shard_that_is_missing_or_changed_is_refused(ranks, dataset, tmp_path, damage):
    copy = shutil.copytree(dataset.path, tmp_path / "dataset")
    damage(copy / "phase2" / "00000.parquet")
    command = flags(**SIZES, dataset_path=copy, output_dir=tmp_path / "training")
    sentence = refusal(ranks(STEP, [command] * 2))
    assert "phase2/00000.parquet" in sentence
    assert "copy the artifact again, or run the step again" in sentence


def test_too_little_memory_in_every_process_is_one_sentence(ranks):
    sentence = refusal(ranks("out_of_memory", [[]] * 2))
    assert "there is too little memory" in sentence
    assert "lower a flag of this step" in sentence


def test_a_gpu_that_is_not_there_is_refused(ranks, dataset, tmp_path):
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training", device="cuda")
    sentence = refusal(ranks(STEP, [command] * 2))
    assert sentence == "error: this machine has no CUDA device; give --device cpu"


def test_torchrun_adds_its_own_report_below_the_sentence(dataset, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", STEP]
    command += [*flags(dataset_path=dataset.path, output_dir=tmp_path / "training"), "--compile"]
    ended = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    ours, _, report = ended.stderr.partition("Traceback (most recent call last)")
    (sentence,) = [line for line in ours.splitlines() if line.startswith("error:")]
    assert "--compile is for one process" in sentence
    assert "error:" not in report
    assert "nemotron/" not in report
    assert "Traceback" not in report


def test_compiling_is_refused(ranks, dataset, tmp_path):
    command = [*flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training"), "--compile"]
    assert "--compile is for one process" in refusal(ranks(STEP, [command] * 2))


def test_an_unknown_device_is_refused(ranks, dataset, tmp_path):
    command = flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training", device="tpu")
    assert "device=tpu is not supported" in refusal(ranks(STEP, [command] * 2))


def test_a_dataset_from_the_pipe_is_refused(ranks, tmp_path):
    sentence = refusal(ranks(STEP, [flags(**SIZES, output_dir=tmp_path / "training")] * 2))
    assert "several processes cannot read the line of one pipe; give --dataset-path" in sentence


@pytest.mark.parametrize("module", ["data_curation", "__main__"])
def test_a_step_that_is_not_training_is_refused(ranks, tmp_path, module):
    ended = ranks(f"nemotron.recipes.nano2.stage0_pretrain.{module}", [flags(output_dir=tmp_path / "output")] * 2)
    assert "torchrun started 2 processes, and this program runs in one" in refusal(ended)
    assert not (tmp_path / "output").exists()


def test_a_mistake_in_the_command_is_explained_once(ranks):
    codes, out, err = ranks(STEP, [["--learning-rate", "-1"]] * 2)
    assert codes == [2, 2]
    assert "learning_rate=-1" in out[0] + err[0]
    assert not out[1] + err[1]


def test_the_processes_of_torchrun_end_when_it_is_killed(dataset, tmp_path):
    """Else they would go on, and the next command would find the directory locked."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", STEP]
    command += flags(**SIZES, dataset_path=dataset.path, output_dir=tmp_path / "training")
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not list(tmp_path.glob("training.incomplete/training_state/step-*[0-9]")):
            assert torchrun.poll() is None, (tmp_path / "log").read_text()
        processes = psutil.Process(torchrun.pid).children(recursive=True)
        torchrun.kill()
        torchrun.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert "terminated" in (tmp_path / "log").read_text()
    assert not (tmp_path / "training").exists()
