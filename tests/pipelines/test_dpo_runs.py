"""Whole runs of stage 3 on a random model and few tasks: resuming, refusing, faulty verifiers, silent policies."""

import json
import math
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage3_dpo import data_curation, evaluation, training
from nemotron.recipes.nemotron_h import generate as generate_module
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.model import parameter_groups
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.training import tries as tries_module
from nemotron.recipes.training.pairs import Pairs, try_logprobs
from nemotron.recipes.training.run import Run

FEW = {"raw_tasks": 2_200, "tries": 4, "max_new_tokens": 20, "exercises_per_family": 1, "held_out_tasks": 4,
       "max_prompt_tokens": 330, "thinking_share": 0.0}  # fmt: skip
SMALL = {"rounds": 2, "steps_per_round": 2, "tries": 4, "max_new_tokens": 20, "warmup_steps": 1}


@pytest.fixture(scope="module")
def base(random_base_model, tmp_path_factory):
    """A model of random weights that has the chat template, in place of stage 2's."""
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


# --- the Dataset ---


def test_the_rungs_of_curation_follow_the_order_of_events(dataset):
    ladder = json.loads((dataset.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "exercises", "filters", "tries", "rewards", "prompts", "token ids",
    ]  # fmt: skip
    filters = [entry["name"] for entry in ladder if entry["rung"] in ("filters", "prompts")]
    assert [name for name in filters if name in dataset.filters] == list(dataset.filters)


def test_requests_for_a_single_call_stay_where_another_task_is_dropped_and_are_counted_and_named(
    base, tmp_path, capsys
):
    dataset = data_curation.main(curated(base, tmp_path, single_share=0.2))
    tasks = pq.read_table(dataset.tasks_path, columns=["id", "pairs"]).to_pylist()
    pairs = {single: [task["pairs"] for task in tasks if ("workplace_single" in task["id"]) == single]
             for single in (False, True)}  # fmt: skip
    assert min(pairs[True]) == 0 < min(pairs[False])
    assert dataset.num_pairs == sum(pairs[True] + pairs[False])
    unpaired = sorted(task["id"] for task in tasks if not task["pairs"])
    assert dataset.num_unpaired == len(unpaired) > 0
    said = (
        f"{len(unpaired)} of {len(pairs[True])} requests for a single call have no pair, the first is {unpaired[0]}\n"
    )
    assert said in capsys.readouterr().err


PLACES = {
    ("exercises", "tasks"): (
        "tasks_of_every_difficulty",
        lambda real: lambda number, config, split, *rest: real(number - (split == "train"), config, split, *rest),
    ),
    ("filters", "length"): (
        "first_rules",
        lambda real: lambda config, prompts, held: real(replace(config, max_prompt_tokens=250), prompts, held),
    ),
    ("tries", "tokens"): (
        "draw_tries",
        lambda real: (
            lambda model, verify, prompts, size, sampling, purpose, max_turns: real(
                model, verify, prompts, size, sampling, ("other",), max_turns=max_turns
            )
        ),
    ),
    ("prompts", "solved too rarely"): (
        "pair_rules",
        lambda real: lambda config, tries: real(replace(config, solved_min=0.1), tries),
    ),
    ("prompts", "order"): ("digest_of", lambda real: lambda *parts: real("another", *parts)),
    ("token ids", "pairs"): ("pair_rows", lambda real: lambda pairs: real(pairs)[::-1]),
}
"""The first entry of curation's ladder that changes -> the function that does this part, and how it is changed."""


@pytest.mark.parametrize("entry", PLACES, ids=" ".join)
def test_a_change_at_each_place_shows_first_in_its_own_entry(entry, base, dataset, tmp_path, monkeypatch):
    name, change = PLACES[entry]
    monkeypatch.setattr(data_curation, name, change(getattr(data_curation, name)))
    changed = data_curation.main(curated(base, tmp_path))
    before, after = (json.loads((run.path / "ladder.json").read_text()) for run in (dataset, changed))
    first = next(ours for ours, theirs in zip(before, after, strict=False) if ours != theirs)
    assert (first["rung"], first["name"]) == entry


def test_tasks_without_a_pair_are_counted_and_named_and_the_pairs_are_of_the_others(dataset):
    report = dataset.filters["no better and worse try"]
    assert report.num_dropped > 0
    assert all(one.value == "its tries are equally good" for one in report.examples)
    tasks = pq.read_table(dataset.tasks_path).to_pylist()
    rows = pq.read_table(dataset.pairs_path).to_pylist()
    assert dataset.num_tasks == len(tasks) == report.num_seen - report.num_dropped
    assert [row["id"] for row in rows[::2]] == [row["id"] for row in rows[1::2]] == [row["id"] for row in tasks]
    assert all(chosen["level"] > rejected["level"] for chosen, rejected in zip(rows[::2], rows[1::2], strict=True))
    assert dataset.num_pairs == len(rows) // 2


# --- what training does ---


def test_every_round_begins_at_ln_2_with_the_policy_of_the_round_before(trained):
    curve = curve_of(trained)
    assert [row["phase"] for row in curve] == ["round 1"] * 2 + ["round 2"] * 2
    for first in (curve[0], curve[2]):
        assert first["preference_loss"] == pytest.approx(math.log(2), abs=1e-12)
        assert (abs(first["margin"]) < 1e-12, first["accuracy"]) == (True, 0)
    for second in (curve[1], curve[3]):
        assert second["margin"] != 0


def test_the_first_round_learns_from_the_pairs_of_curation_and_the_next_from_new_tries(dataset, trained):
    rows = pq.read_table(dataset.pairs_path).to_pylist()
    pairs = table_of(trained, "rewards")
    first = [row for row in pairs if row["step"] == 0]
    assert [(row["task"], row["chosen"], row["rejected"]) for row in first] == [
        (chosen["id"], chosen["number"], rejected["number"])
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
    ]
    tried = table_of(trained, "tries")
    assert {row["step"] for row in tried} == {2}
    assert [row["task"] for row in tried] == pq.read_table(dataset.tasks_path)["id"].to_pylist()
    assert sum(row["pairs"] for row in tried) == len([row for row in pairs if row["step"] == 2])
    steps = curve_of(trained)
    assert [sum(row["pairs"] for row in steps[start : start + 2]) for start in (0, 2)] == [
        len(first), len(pairs) - len(first),
    ]  # fmt: skip


def test_the_first_round_is_that_of_a_plain_loop(base, dataset, trained):
    """The steps written out again: all pairs of a step in one forward pass, the loss from its formula."""
    config, policy = training.Config(**SMALL), load_checkpoint(base.checkpoint_path, dtype=torch.float64)
    pairs = Pairs.from_table(pq.read_table(dataset.pairs_path))
    with torch.no_grad():
        reference = try_logprobs(policy, pairs.batch, per_token=False)
    optimizer = torch.optim.AdamW(
        parameter_groups(policy, config.weight_decay), betas=(config.beta1, config.beta2), eps=config.adam_eps
    )
    for row, places in zip(curve_of(trained), torch.arange(len(pairs)).tensor_split(2), strict=False):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = config.learning_rate
        optimizer.zero_grad()
        moved = try_logprobs(policy, pairs.batch, per_token=False) - reference
        margins = config.beta * (moved[2 * places] - moved[2 * places + 1])
        loss = -torch.log(1 / (1 + torch.exp(-margins))).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
        optimizer.step()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-8)
        assert row["margin"] == pytest.approx(margins.mean().item(), rel=1e-8, abs=1e-12)


def test_micro_batches_do_not_change_the_result(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, micro_batch_pairs=1))
    for ours, theirs in zip(curve_of(other), curve_of(trained), strict=True):
        assert ours["batch"] == theirs["batch"]
        for name in ("loss", "grad_norm", "margin", "chosen_logprob", "rejected_logprob"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-8, abs=1e-12), name


def test_the_options_of_the_objective_change_the_run(dataset, trained, tmp_path):
    losses = {}
    for name, value in (("beta", 0.5), ("average_log_probs", True), ("nll_weight", 0.1)):
        found = curve_of(training.main(configured(dataset, tmp_path / name, rounds=1, **{name: value})))
        losses[name] = [row["loss"] for row in found]
        plain = curve_of(trained)[0]["loss"]
        assert (losses[name][0] == pytest.approx(plain, abs=1e-12)) == (name != "nll_weight")
    assert len({tuple(values) for values in losses.values()}) == 3


# --- resuming ---


class Stopped(Exception):
    pass


def stop_in_a_conversation(monkeypatch):
    """After some tokens of the tries of the second round."""
    real = generate_module.stream

    def stream(*arguments, **given):
        for position, tokens in enumerate(real(*arguments, **given)):
            if position == 5:
                raise Stopped
            yield tokens

    monkeypatch.setattr(generate_module, "stream", stream)


def stop_in_a_step(monkeypatch):
    """In the last step, before its update."""
    real = Run.check_finite

    def check(run, **numbers):
        if run.step == 3 and "grad_norm" in numbers:
            raise Stopped
        real(run, **numbers)

    monkeypatch.setattr(Run, "check_finite", check)


def stop_after_a_state(monkeypatch):
    real = Run.keep_state

    def keep(run):
        real(run)
        raise Stopped

    monkeypatch.setattr(Run, "keep_state", keep)


@pytest.mark.parametrize("stop", [stop_in_a_conversation, stop_in_a_step, stop_after_a_state])
def test_a_stopped_run_resumes_to_the_same_bits(dataset, trained, tmp_path, monkeypatch, stop):
    """A state is written at the end of the first round; the second is played again."""
    config = configured(dataset, tmp_path)
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(Stopped):
            training.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-00000002; add --resume"):
        training.main(config)
    assert training.main(replace(config, resume=True)).digest == trained.digest


def test_a_run_stopped_in_its_first_round_starts_over(dataset, trained, tmp_path, monkeypatch, capsys):
    config = configured(dataset, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "note", lambda *given, **numbers: 1 / 0)
        with pytest.raises(ZeroDivisionError):
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
                max_new_tokens=8, batch_replies=batch, micro_batch_pairs=batch, checkpoint_path=trained.path,
                output_dir=tmp_path / str(batch),
            )
        )
        for batch in (128, 3)
    ]  # fmt: skip
    ladders = [json.loads((one.path / "ladder.json").read_text()) for one in results]
    assert [entry["value"] for entry in ladders[0] if entry["rung"] != "metrics"] == [
        entry["value"] for entry in ladders[1] if entry["rung"] != "metrics"
    ]
    for name, value in results[0].metrics.items():
        assert results[1].metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert results[0].conversations_path.read_bytes() == results[1].conversations_path.read_bytes()


# --- verifiers that fail ---


@pytest.mark.parametrize(
    ("verify", "sentence"),
    [
        (lambda *given: 1 / 0, "ZeroDivisionError: division by zero"),
        pytest.param(lambda *given: time.sleep(60), "TimeoutError: no result after 0.1 s", marks=pytest.mark.posix),
    ],
    ids=["raises", "hangs"],
)
def test_a_verifier_that_fails_on_a_task_is_named_and_counted_and_training_goes_on(
    verify, sentence, dataset, tmp_path, monkeypatch, capsys
):
    chosen, real = pq.read_table(dataset.tasks_path)["id"].to_pylist()[0], tries_module.is_right

    def is_right(exercise, database, ran):
        return verify() if exercise.id == chosen else real(exercise, database, ran)

    monkeypatch.setattr(tries_module, "is_right", is_right)
    monkeypatch.setattr(training, "Verifier", partial(Verifier, seconds=0.1))
    monkeypatch.setattr(tries_module.Try, "is_broken", property(lambda self: False, lambda self, value: None))
    found = training.main(configured(dataset, tmp_path))
    faults = {row["task"]: (row["faults"], row["pairs"]) for row in table_of(found, "tries")}
    assert faults.pop(chosen) == (4, 0)
    assert {number for number, _ in faults.values()} == {0}
    assert capsys.readouterr().err.count(f"of {chosen} could not be judged: {sentence}") == 4


def test_a_verifier_that_always_fails_leaves_no_pair_and_says_so(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tries_module, "is_right", lambda *given: 1 / 0)
    monkeypatch.setattr(tries_module.Try, "is_broken", property(lambda self: False, lambda self, value: None))
    with pytest.raises(ValueError, match=r"'no better and worse try' leaves none of \d+ items.*raise --tries"):
        data_curation.main(curated(base, tmp_path))
    assert "could not be judged: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not (tmp_path / "data_curation").exists()


# --- policies that learn nothing ---


def prefers(*tokens):
    """A change of a model: it gives these tokens nearly all probability, whatever it reads."""

    def change(model):
        with torch.no_grad():
            model.backbone.embeddings.weight[:, 0] = 100.0  # one number of every hidden vector is large and positive
            model.lm_head.weight[:, 0] = -10.0
            model.lm_head.weight[list(tokens), 0] = 10.0

    return change


SILENT = {"only padding": prefers(0), "never ends": prefers(*range(20, 400)), "says nothing": prefers(12)}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_a_policy_without_a_right_and_a_wrong_try_is_refused_by_curation(change, random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template, change)
    sentence = (
        r"^the filter 'no better and worse try' leaves none of \d+ items, for example .*equally good.*raise --tries"
    )
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path))
    assert not (tmp_path / "data_curation").exists()


def on_another_base(dataset, base, path):
    """The Dataset, with another model than the one that tried its tasks."""
    shutil.copytree(dataset.path, path)
    other = data_curation.Dataset.load(path=path)
    return other.model_copy(update={"base_checkpoint_path": base.path}).save()


def test_a_round_without_a_pair_is_reported_and_nothing_is_learned_from_it(
    dataset, random_base_model, tmp_path, capsys
):
    """The policy may become so in training, long after curation."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template, SILENT["only padding"])
    other = on_another_base(dataset, base, tmp_path / "data")
    curve = curve_of(training.main(configured(other, tmp_path, learning_rate=1e-12)))
    assert [row["pairs"] > 0 for row in curve] == [True, True, False, False]
    assert {(row["loss"], row["tokens"], row["grad_norm"]) for row in curve[2:]} == {(0, 0, 0)}
    said = capsys.readouterr().err
    assert "round 2: no task has both a better and a worse try, so nothing is learned from them" in said


# --- what is refused ---


def test_a_length_that_no_task_has_is_refused_with_its_flag(base, tmp_path):
    with pytest.raises(ValueError, match=r"'length' leaves none of 22 items.*raise --max-prompt-tokens"):
        data_curation.main(curated(base, tmp_path, max_prompt_tokens=1))


def test_prompts_as_long_as_the_context_are_refused_before_any_task_is_tried(base, tmp_path):
    sentence = (
        r"^max_prompt_tokens=512 leaves no room for a reply in the 512 tokens that the model reads; give at most 5"
    )
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path, max_prompt_tokens=512))
    assert not (tmp_path / "data_curation").exists()


def test_a_base_model_without_chat_template_is_refused(random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base")
    with pytest.raises(ValueError, match=r"has no chat template, so it is a base model; fine-tune it with python -m"):
        data_curation.main(curated(base, tmp_path))
    assert not (tmp_path / "data_curation").exists()


def test_a_missing_policy_is_refused_with_the_command_that_makes_it(tmp_path):
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage2_rlvr --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        data_curation.main(
            data_curation.Config(scale="small", base_checkpoint_path=tmp_path / "no", output_dir=tmp_path / "out")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_was_replaced_since_curation_is_refused(random_base_model, tmp_path):
    """Its pairs and the reference would be those of another model, perhaps of another shape."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template)
    dataset = data_curation.main(curated(base, tmp_path))
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").mkdir()
    random_base_model(tmp_path / "base", CHAT.template, lambda model: model.lm_head.weight.data.mul_(0.5))
    with pytest.raises(
        ValueError, match=r"base_checkpoint_path had digest .*restore the old checkpoint, or run the st"
    ):
        training.main(configured(dataset, tmp_path))


def test_pairs_that_say_the_same_are_refused_before_any_step(dataset, tmp_path):
    """Somebody has changed the Dataset and saved it again."""
    shutil.copytree(dataset.path, tmp_path / "data")
    other = data_curation.Dataset.load(path=tmp_path / "data")
    rows = pq.read_table(other.pairs_path)
    pq.write_table(rows.take([0, 0, *range(2, len(rows))]), other.pairs_path)
    with pytest.raises(ValueError, match=r"^pair 0 \(task .*\) has a chosen and a rejected try that say the same; cur"):
        training.main(configured(other.save(), tmp_path))
    assert not (tmp_path / "training").exists()


def test_a_policy_with_another_tokenizer_is_refused(dataset, random_base_model, tmp_path):
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


def test_a_model_that_brings_a_template_plays_with_it(random_base_model, tmp_path):
    template = "{{ 'Be kind. ' }}" + CHAT.template
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", template)
    dataset = data_curation.main(curated(base, tmp_path, max_prompt_tokens=340))
    tokenizer = load_chat_tokenizer(CHAT, dataset.tokenizer_path)
    for row in pq.read_table(dataset.pairs_path).to_pylist():
        assert tokenizer.decode(row["tokens"], skip_special_tokens=False).startswith("Be kind. <SPECIAL_10>System\n")
