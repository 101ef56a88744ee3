"""Whole runs of stage 2 on a random model and few prompts: resuming, refusing, faulty verifiers, users' prompts."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.chat.program import load_chat
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage2_rlvr import data_curation, evaluation, training
from nemotron.recipes.nemotron_h import generate as generate_module
from nemotron.recipes.nemotron_h.checkpoint import load_config, load_tensors
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.training.run import Run

FEW = {"raw_prompts": 4_800, "tries": 3, "max_new_tokens": 12, "exercises_per_family": 1, "held_out_instructions": 4}
SMALL = {
    "prompts_per_step": 4,
    "replies_per_prompt": 3,
    "micro_batch_prompts": 2,
    "max_new_tokens": 10,
    "warmup_steps": 1,
    "checkpoint_every_steps": 2,
}


@pytest.fixture(scope="module")
def base(random_base_model, tmp_path_factory):
    """A model of random weights that has the chat template, in place of the fine-tuned model."""
    return random_base_model(tmp_path_factory.mktemp("base"), CHAT.template)


def curated(base, tmp_path, **changes):
    given = FEW | {"base_checkpoint_path": base.path, "output_dir": tmp_path / "data_curation"}
    return data_curation.Config(**(given | changes))


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory):
    return data_curation.main(curated(base, tmp_path_factory.mktemp("curated")))


def configured(dataset, tmp_path, **changes):
    return training.Config(**(SMALL | changes), dataset_path=dataset.path, output_dir=tmp_path / "training")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return training.main(configured(dataset, tmp_path_factory.mktemp("run")))


def curve_of(checkpoint):
    return pq.read_table(checkpoint.curve_path).to_pylist()


def table_of(checkpoint, name):
    return pq.read_table(checkpoint.tables_path / f"{name}.parquet").to_pylist()


def prompts_of(dataset):
    return pq.read_table(dataset.prompts_path).to_pylist()


# --- the Dataset ---


def test_the_rungs_of_curation_follow_the_order_of_events(dataset):
    ladder = json.loads((dataset.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "conversations", "exercises", "filters", "tries", "rewards", "prompts",
    ]  # fmt: skip
    filters = [entry["name"] for entry in ladder if entry["rung"] in ("filters", "prompts")]
    assert [name for name in dict.fromkeys(filters) if name in dataset.filters] == list(dataset.filters)


PLACES = {
    ("conversations", "sha256"): ("raw_prompts", lambda real: lambda config: (real(config)[0][1:], [])),
    ("exercises", "held_out"): (
        "of_every_difficulty",
        lambda real: (
            lambda generate, number, seed, split, top: real(generate, number + (split != "train"), seed, split, top)
        ),
    ),
    ("filters", "length"): (
        "first_rules",
        lambda real: lambda config, prompts, held_out: real(replace(config, max_prompt_tokens=100), prompts, held_out),
    ),
    ("tries", "tokens"): (
        "draw_replies",
        lambda real: lambda model, prompts, size, sampling, purpose: real(model, prompts, size, sampling, ("other",)),
    ),
    ("rewards", "first"): (
        "Verifier",
        lambda real: type("Other", (real,), {"__call__": lambda self, *asked: better(real.__call__(self, *asked))}),
    ),
    ("prompts", "never solved"): ("difficulty_rules", lambda real: lambda rewards: kept_all(real(rewards))),
    ("prompts", "order"): ("digest_of", lambda real: lambda *parts: real("another", *parts)),
}
"""The first entry of curation's ladder that changes -> the function that does this part, and how it is changed."""


def better(rewards):
    """The first reply earns a little more."""
    return [replace(rewards[0], total=rewards[0].total + 0.01), *rewards[1:]]


def kept_all(rules):
    """Rules that drop nothing."""
    return [replace(rule, fault=lambda item: None) for rule in rules]


@pytest.mark.parametrize("entry", PLACES, ids=" ".join)
def test_a_change_at_each_place_shows_first_in_its_own_entry(entry, base, dataset, tmp_path, monkeypatch):
    """So the entries are in the order of the work, and no change hides behind an equal count."""
    name, change = PLACES[entry]
    monkeypatch.setattr(data_curation, name, change(getattr(data_curation, name)))
    changed = data_curation.main(curated(base, tmp_path))
    before, after = (json.loads((run.path / "ladder.json").read_text()) for run in (dataset, changed))
    first = next(ours for ours, theirs in zip(before, after, strict=False) if ours != theirs)
    expected = before[[one["rung"] for one in before].index("rewards")]["name"] if entry[1] == "first" else entry[1]
    assert (first["rung"], first["name"]) == (entry[0], expected)


def test_the_difficulty_of_a_prompt_is_measured_by_its_tries(base, dataset):
    """Those on which nothing is to be learned are dropped, and the others keep what the tries earned."""
    for row in prompts_of(dataset):
        assert 0 < row["mean_reward"] < 1
        assert row["solved"] in {0, 1 / 3, 2 / 3}
    dropped = dataset.filters["never solved"]
    assert dropped.num_dropped > 0
    assert all(one.value.startswith("each of 3 tries earns 0.") for one in dropped.examples)
    assert dataset.num_prompts == len(prompts_of(dataset)) == dropped.num_seen - dropped.num_dropped


# --- what training does ---


def test_every_prompt_is_used_once_in_the_order_of_the_file(dataset, trained):
    curve, rows = curve_of(trained), prompts_of(dataset)
    assert len(curve) == math.ceil(len(rows) / 4)
    rollouts = table_of(trained, "rollouts")
    of_step = {step: [row["prompt"] for row in rollouts if row["step"] == step] for step in (0, len(curve) - 1)}
    assert len(rollouts) == sum(map(len, of_step.values()))
    ids = [row["id"] for row in rows]
    assert of_step[0] == [id for id in ids[:4] for _ in range(3)]
    assert of_step[len(curve) - 1] == [id for id in ids[4 * (len(curve) - 1) :] for _ in range(3)]
    judged = [sum(row["replies"] for row in table_of(trained, "rewards") if row["part"] == "all")]
    assert judged == [3 * len(rows)]


def test_micro_batches_do_not_change_the_result(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, micro_batch_prompts=1))
    for ours, theirs in zip(curve_of(other), curve_of(trained), strict=True):
        assert ours["batch"] == theirs["batch"]
        for name in ("loss", "grad_norm", "kl", "entropy", "reward"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-8, abs=1e-12), name


def test_replies_written_in_another_process_are_the_same(dataset, trained, tmp_path):
    """At every step, so the process has the weights of each update."""
    other = training.main(configured(dataset, tmp_path, rollout_processes=1))
    for ours, theirs in zip(curve_of(other), curve_of(trained), strict=True):
        assert ours["batch"] == theirs["batch"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-8, abs=1e-12)


def test_a_run_whose_process_is_killed_ends_with_a_sentence_and_goes_on(dataset, trained, tmp_path):
    flags = {"scale": "tiny", "dataset_path": dataset.path, "output_dir": tmp_path / "training", **SMALL}
    command = [sys.executable, "-m", "nemotron.recipes.nano2.stage2_rlvr.training", "--rollout-processes=1"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        workers = []
        while not workers and running.poll() is None:
            children = psutil.Process(running.pid).children()
            workers = [one for one in children if any("spawn_main" in part for part in one.cmdline())]
            time.sleep(0.05)
        workers[0].kill()
        out, said = running.communicate()
    assert (running.returncode, out) == (2, "")
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        "error: a process that writes replies ended, perhaps because memory ran out; give fewer rollout_processes, "
        "and resume the run"
    )
    again = training.main(configured(dataset, tmp_path, rollout_processes=0, resume=True))
    for ours, theirs in zip(curve_of(again), curve_of(trained), strict=True):
        assert ours["batch"] == theirs["batch"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-8, abs=1e-12)


def test_processes_that_write_replies_need_the_processor():
    with pytest.raises(ValueError, match=r"^rollout_processes=2 needs device=cpu; give 0, which writes .* on cuda$"):
        training.Config(rollout_processes=2, device="cuda")


def test_the_policy_moves_and_the_reference_stays(trained):
    curve = curve_of(trained)
    assert curve[-1]["kl"] > curve[0]["kl"] > 0  # the second update of the first step sees a moved policy
    assert all(row["sampler_difference"] < 1e-10 for row in curve)


def test_without_kl_there_is_no_reference_and_the_numbers_are_those_of_weight_0_with_one(
    dataset, tmp_path, monkeypatch
):
    loads, real = [], training.load_checkpoint

    def load(path, **given):
        loads.append(path)
        return real(path, **given)

    monkeypatch.setattr(training, "load_checkpoint", load)
    without = training.main(configured(dataset, tmp_path / "without", kl_weight=0.0))
    assert len(loads) == 1
    with_one = training.main(configured(dataset, tmp_path / "with", kl_weight=1e-300))  # adds 0 to every gradient
    assert len(loads) == 3
    for ours, theirs in zip(curve_of(without), curve_of(with_one), strict=True):
        assert (ours["kl"], theirs["kl"] > 0) == (0, True)
        assert {**ours, "kl": 0} == {**theirs, "kl": 0}


def test_cut_replies_count_unless_they_are_left_out(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, learn_from_cut_replies=False))
    ours, theirs = curve_of(other)[0], curve_of(trained)[0]
    rows = [row for row in table_of(trained, "rollouts") if row["step"] == 0]
    lengths = [len(row["tokens"].split()) for row in rows]
    ended = [int(row["tokens"].split()[-1]) in CHAT.stop_ids for row in rows]
    assert 0 < sum(ended) < len(ended)
    assert theirs["tokens"] == sum(lengths)
    assert theirs["replies_cut"] == ours["replies_cut"] == 1 - sum(ended) / len(ended)
    assert ours["tokens"] == sum(length for length, end in zip(lengths, ended, strict=True) if end)


def test_a_step_has_as_many_updates_as_the_config_says(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, updates_per_step=1))
    updates = []
    for run in (other, trained):
        (state,) = run.training_state_path.iterdir()
        updates.append(load_tensors(state / "optimizer.safetensors")["0.step"].item())
    assert updates == [trained.num_steps, 2 * trained.num_steps]
    assert curve_of(other)[0]["batch"] == curve_of(trained)[0]["batch"]


# --- resuming ---


class Stopped(Exception):
    pass


def stop_in_a_rollout(monkeypatch, step):
    """After some tokens of every reply."""
    rollouts, real = [], generate_module.stream

    def stream(*arguments, **given):
        rollouts.append(len(rollouts))
        for position, tokens in enumerate(real(*arguments, **given)):
            if (rollouts[-1], position) == (step, 5):
                raise Stopped
            yield tokens

    monkeypatch.setattr(generate_module, "stream", stream)


def stop_between_two_updates(monkeypatch, step):
    real, calls = Run.check_finite, []

    def check(run, **numbers):
        calls.extend([run.step] * ("grad_norm" in numbers and "loss" not in numbers))
        if calls.count(step) == 2:
            raise Stopped
        real(run, **numbers)

    monkeypatch.setattr(Run, "check_finite", check)


def stop_after_a_state(monkeypatch, step):
    real = Run.keep_state

    def keep(run):
        real(run)
        if run.step == step:
            raise Stopped

    monkeypatch.setattr(Run, "keep_state", keep)


@pytest.mark.parametrize("stop", [stop_in_a_rollout, stop_between_two_updates, stop_after_a_state])
@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_run_resumes_to_the_same_bits(dataset, trained, tmp_path, monkeypatch, stop, step):
    """States are written after every second step, so one of the two repeats a step."""
    config = configured(dataset, tmp_path)
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises(Stopped):
            training.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-0000\d+; add --resume"):
        training.main(config)
    assert training.main(replace(config, resume=True)).digest == trained.digest


def test_a_run_stopped_in_its_first_rollout_starts_over(dataset, trained, tmp_path, monkeypatch, capsys):
    config = configured(dataset, tmp_path)
    with monkeypatch.context() as patch:
        stop_in_a_rollout(patch, 0)
        with pytest.raises(Stopped):
            training.main(config)
    assert training.main(replace(config, resume=True)).digest == trained.digest
    assert "no state was written yet, starting at step 0" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(dataset, trained, capsys):
    again = training.main(configured(dataset, trained.path.parent, resume=True))
    assert again.digest == trained.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


def test_the_same_run_gives_the_same_bytes(base, dataset, trained, tmp_path):
    assert data_curation.main(curated(base, tmp_path)).digest == dataset.digest
    results = [
        evaluation.main(
            evaluation.Config(
                max_new_tokens=8, batch_replies=batch, checkpoint_path=trained.path, output_dir=tmp_path / str(batch)
            )
        )
        for batch in (128, 3)
    ]
    ladders = [json.loads((one.path / "ladder.json").read_text()) for one in results]
    assert ladders[0] == ladders[1]
    for name in ("table_path", "plot_path", "training_plot_path", "rollouts_path"):
        assert getattr(results[0], name).read_bytes() == getattr(results[1], name).read_bytes()


# --- verifiers that fail ---


def verifier_of_one(monkeypatch, dataset, verify):
    """Replace the verifier of the first prompt of instructions; return the id of the prompt and its step."""
    rows = prompts_of(dataset)
    place = next(place for place, row in enumerate(rows) if row["family"] == instructions.FAMILY)
    chosen, real = rows[place]["id"], instructions.satisfied_parts

    def satisfied_parts(exercise, reply):
        return verify() if exercise.id == chosen else real(exercise, reply)

    monkeypatch.setattr(instructions, "satisfied_parts", satisfied_parts)
    return chosen, place // SMALL["prompts_per_step"]


@pytest.mark.parametrize(
    ("verify", "sentence"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: time.sleep(60), "TimeoutError: no result after 0.2 s"),
    ],
    ids=["raises", "hangs"],
)
def test_a_verifier_that_fails_is_named_and_counted_and_training_goes_on(
    verify, sentence, dataset, trained, tmp_path, monkeypatch, capsys
):
    chosen, step = verifier_of_one(monkeypatch, dataset, verify)
    monkeypatch.setattr(training, "Verifier", partial(Verifier, seconds=0.2))
    other = training.main(configured(dataset, tmp_path))
    assert other.num_steps == trained.num_steps
    faults = [row["verifier_faults"] for row in curve_of(other)]
    expected = [0.0] * other.num_steps
    expected[step] = 3 / (3 * min(4, dataset.num_prompts - 4 * step))
    assert faults == expected
    assert {row["verifier_faults"] for row in curve_of(trained)} == {0}
    said = capsys.readouterr().err
    assert said.count(f"the verifier of instruction_following failed on {chosen}: {sentence}") == 3


def test_a_verifier_that_fails_in_evaluation_is_named_and_counted_and_the_others_are_judged(
    dataset, trained, tmp_path, monkeypatch, capsys
):
    held_out = pq.read_table(dataset.held_out_path).to_pylist()
    chosen, real = held_out[0]["id"], instructions.satisfied_parts

    def satisfied_parts(exercise, reply):
        return {}[reply] if exercise.id == chosen else real(exercise, reply)

    monkeypatch.setattr(instructions, "satisfied_parts", satisfied_parts)
    config = evaluation.Config(max_new_tokens=8, checkpoint_path=trained.path, output_dir=tmp_path / "evaluation")
    results = evaluation.main(config)
    share = sum(row["id"] == chosen for row in held_out) / len(held_out)
    assert {results.metrics[f"verifier_faults/{model}"] for model in ("tuned", "policy")} == {share} != {0}
    assert "| not judged, because the verifier failed | 25.0% | 25.0% |" in results.table_path.read_text()
    said = capsys.readouterr().err
    assert f"the verifier of instruction_following failed on {chosen}: KeyError" in said
    assert f"the verifier of instruction_following failed on {chosen}, for the chance level: KeyError" in said


def test_a_verifier_that_always_fails_is_named_in_curation_and_leaves_no_prompt(base, tmp_path, monkeypatch, capsys):
    real = instructions.satisfied_parts

    def satisfied_parts(exercise, reply):
        return real(exercise, reply) if reply == exercise.answer else {}[reply]

    monkeypatch.setattr(instructions, "satisfied_parts", satisfied_parts)
    with pytest.raises(ValueError, match=r"the filter 'never solved' leaves none of \d+ items.*raise --tries"):
        data_curation.main(curated(base, tmp_path, other_share=0.0))
    assert "the verifier of instruction_following failed on sft/instruction_following/" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 2.0])
def test_a_reward_that_is_no_share_stops_the_run_with_its_prompt(value, dataset, tmp_path, monkeypatch):
    chosen, _ = verifier_of_one(monkeypatch, dataset, lambda: {"count": value})
    with pytest.raises(ValueError, match=rf"gives the prompt {chosen} the parts .*{value}.*correct the verifier or dr"):
        training.main(configured(dataset, tmp_path))


# --- policies that learn nothing ---


def prefers(*tokens):
    """A change of a model: it gives these tokens nearly all probability, whatever it reads."""

    def change(model):
        with torch.no_grad():
            model.backbone.embeddings.weight[:, 0] = 100.0  # one number of every hidden vector is large and positive
            model.lm_head.weight[:, 0] = -10.0
            model.lm_head.weight[list(tokens), 0] = 10.0

    return change


SILENT = {"only padding": prefers(0), "never ends": prefers(*range(20, 400))}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_a_model_that_learns_nothing_from_any_prompt_is_refused_by_curation(change, random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template, change)
    sentence = (
        r"^the filter 'never solved' leaves none of \d+ items, for example .*each of 3 tries earns 0\.\d\d.*raise"
    )
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path, thinking_share=1.0))
    assert not (tmp_path / "data_curation").exists()


def on_another_base(dataset, base, path):
    """The Dataset, with another fine-tuned model than the one that tried its prompts."""
    shutil.copytree(dataset.path, path)
    other = data_curation.Dataset.load(path=path)
    return other.model_copy(update={"base_checkpoint_path": base.path}).save()


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_a_policy_whose_replies_do_not_differ_is_reported_at_every_step(
    change, dataset, random_base_model, tmp_path, capsys
):
    """It may become so in training, long after curation. Nothing breaks, and nothing is learned."""
    (tmp_path / "base").mkdir()
    other = on_another_base(dataset, random_base_model(tmp_path / "base", CHAT.template, change), tmp_path / "data")
    found = training.main(configured(other, tmp_path))
    curve = curve_of(found)
    assert {(row["replies_cut"], row["groups_with_signal"], row["reply_tokens"]) for row in curve} == {(1, 0, 10)}
    said = capsys.readouterr().err
    for step in range(1, found.num_steps + 1):
        assert re.search(rf"step {step}: .* so nothing is learned .*; (\d+) of \1 were cut at max_new_tokens=10;", said)


def test_with_all_replies_cut_and_left_out_nothing_breaks(dataset, random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template, SILENT["never ends"])
    other = on_another_base(dataset, base, tmp_path / "data")
    curve = curve_of(training.main(configured(other, tmp_path, learn_from_cut_replies=False)))
    assert {(row["tokens"], row["loss"], row["grad_norm"]) for row in curve} == {(0, 0, 0)}


# --- what is refused ---


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_a_group_has_at_least_two_replies(number):
    sentence = rf"^replies_per_prompt={number}: Input should be greater than or equal to 2$"
    with pytest.raises(ValueError, match=sentence):
        training.Config(replies_per_prompt=number)


def test_more_updates_than_prompts_are_refused():
    sentence = r"^updates_per_step=5 is above prompts_per_step=4; give fewer updates, or more prompts$"
    with pytest.raises(ValueError, match=sentence):
        training.Config(**SMALL, updates_per_step=5)
    assert training.Config(**SMALL, updates_per_step=4).updates_per_step == 4


def test_a_last_step_with_fewer_prompts_than_updates_has_fewer_updates(dataset, tmp_path):
    size = dataset.num_prompts - 1
    found = training.main(configured(dataset, tmp_path, prompts_per_step=size, updates_per_step=size))
    (state,) = found.training_state_path.iterdir()
    assert found.num_steps == 2
    assert load_tensors(state / "optimizer.safetensors")["0.step"].item() == size + 1


def test_a_length_that_no_prompt_has_is_refused_with_its_flag(base, tmp_path):
    with pytest.raises(ValueError, match=r"'length' leaves none of 48 items.*raise --max-prompt-tokens"):
        data_curation.main(curated(base, tmp_path, max_prompt_tokens=1))


def test_a_prompt_as_long_as_the_context_is_refused_before_any_is_read(base, tmp_path):
    context = load_config(base.checkpoint_path).max_position_embeddings
    sentence = (
        rf"^max_prompt_tokens={context} leaves no room for a reply in the {context} tokens that the model reads; give "
        rf"at most {context - 1}$"
    )
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path, max_prompt_tokens=context))
    assert not (tmp_path / "data_curation").exists()


def test_a_base_model_without_chat_template_is_refused(random_base_model, tmp_path):
    """The tokenizer of a Dataset has the template of the format, so this must be asked of the model."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base")
    sentence = (
        r"has no chat template, so it is a base model; fine-tune it with python -m nemotron\.recipes\.nano2\.stage1"
    )
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path))
    assert not (tmp_path / "data_curation").exists()


def test_a_missing_fine_tuned_model_is_refused_with_the_command_that_makes_it(tmp_path):
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage1_sft --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        data_curation.main(
            data_curation.Config(scale="small", base_checkpoint_path=tmp_path / "no", output_dir=tmp_path / "out")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuned_model_that_was_replaced_since_curation_is_refused(random_base_model, tmp_path):
    """The policy would start from another model than the one that tried the prompts."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template)
    dataset = data_curation.main(curated(base, tmp_path, raw_prompts=1_600))
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").mkdir()
    random_base_model(tmp_path / "base", CHAT.template, lambda model: model.lm_head.weight.data.mul_(0.5))
    with pytest.raises(
        ValueError, match=r"base_checkpoint_path had digest .*restore the old checkpoint, or run the st"
    ):
        training.main(configured(dataset, tmp_path))


def test_a_fine_tuned_model_with_another_tokenizer_is_refused(dataset, random_base_model, tmp_path):
    """Its token ids would mean other words, and may lie outside of its embedding."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template)
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 390), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", base.checkpoint_path)
    other = on_another_base(dataset, base.model_copy().save(), tmp_path / "data")
    with pytest.raises(ValueError, match=r"differs from .*, so the data has the token ids of another model; curate"):
        training.main(configured(other, tmp_path))


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("nemotron.recipes.nemotron_h.device.device_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(training, "load_checkpoint", None)
    with pytest.raises(ValueError, match=r"training needs 0\.\d GiB \(weights 0\.0, .*use .*a smaller --scale$"):
        training.main(configured(dataset, tmp_path))


def test_a_checkpoint_of_another_scale_is_refused(trained, tmp_path):
    config = evaluation.Config(scale="small", checkpoint_path=trained.path, output_dir=tmp_path / "evaluation")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        evaluation.main(config)


# --- the user's prompts ---


def own_prompts(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return (str(path),)


def prompt_row(number, **changes):
    given = {
        "key": number,
        "prompt": f"Say something about the number {number}.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "less than", "num_words": 5 + number % 3}],
    }
    return given | changes


def test_own_prompts_in_the_released_columns_are_curated_and_trained_on(base, tmp_path, capsys):
    rows = [prompt_row(number) for number in range(24)]
    rows += [prompt_row(100, instruction_id_list=["paragraphs:paragraphs"], kwargs=[{}])]
    sources = own_prompts(tmp_path / "own.jsonl", *rows)
    dataset = data_curation.main(curated(base, tmp_path, sources=sources, raw_prompts=3_600))
    assert dataset.num_unreadable == 1
    assert "paragraphs:paragraphs" in dataset.unreadable[0].value
    assert "paragraphs:paragraphs" in capsys.readouterr().err
    families = [row["family"] for row in prompts_of(dataset)]
    assert families.count("ifeval") > 2
    assert dataset.filters["length"].num_seen == 24 + 7  # of each other family one
    trained = training.main(configured(dataset, tmp_path))
    parts = {row["part"] for row in table_of(trained, "rewards") if row["verifier"] == "ifeval"}
    assert {"all", "form"} < parts
    assert {row["verifier_faults"] for row in curve_of(trained)} == {0}


def test_sources_without_instructions_are_refused(base, tmp_path):
    sources = own_prompts(tmp_path / "own.jsonl", *({"prompt": f"Hello {number}"} for number in range(3)))
    with pytest.raises(
        ValueError, match=r"holds no prompt \(3 unreadable, .*no instruction that a rule can check\); name"
    ):
        data_curation.main(curated(base, tmp_path, sources=sources))
    assert not (tmp_path / "data_curation").exists()


def test_a_scale_without_exercises_asks_for_sources(base, tmp_path):
    with pytest.raises(ValueError, match=r"raw_prompts=all needs --sources, because exercises have no end"):
        data_curation.main(curated(base, tmp_path, raw_prompts="all"))


def test_a_model_that_brings_a_template_is_asked_with_it_and_keeps_it(random_base_model, tmp_path):
    template = "{{ 'Be kind. ' }}" + CHAT.template
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", template)
    dataset = data_curation.main(curated(base, tmp_path, raw_prompts=2_400))
    tokenizer = load_chat_tokenizer(CHAT, dataset.tokenizer_path)
    for row in prompts_of(dataset):
        text = tokenizer.decode(row["tokens"], skip_special_tokens=False)
        assert text.startswith("Be kind. <SPECIAL_10>System\n")
        assert ("<think></think>" in text) != row["thinking"]
    trained = training.main(configured(dataset, tmp_path))
    for directory in (dataset.tokenizer_path, trained.checkpoint_path):
        assert (directory / "chat_template.jinja").read_text(encoding="utf-8") == template
    talk = load_chat(CHAT, ChatConfig(trained.path))
    assert talk.format.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True).startswith("Be kind. <")
