"""Stage 2, run once at tiny scale on stage 1's model: it reproduces its golden, and it does its job."""

import json
from itertools import groupby
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage2_rlvr.training import Config as TrainingConfig
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling, generate
from nemotron.recipes.scoring.rewards import Verifier, reward_parts
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.rollouts import draw_replies, prompt_batches
from nemotron.recipes.training.run import Checkpoint

CONFIG = TrainingConfig(scale="tiny")


def rows(path):
    return pq.read_table(path).to_pylist()


def table(stage2, name):
    return rows(stage2.checkpoint.tables_path / f"{name}.parquet")


@pytest.fixture(scope="module")
def curve(stage2):
    return rows(stage2.checkpoint.curve_path)


@pytest.fixture(scope="module")
def prompts(stage2):
    """The prompts of every step."""
    return list(prompt_batches(stage2.dataset.prompts_path, CONFIG.prompts_per_step, first_step=0))


def test_the_stage_reproduces_its_golden(stage2, golden):
    assert golden(name="nano2/stage2_rlvr") == stage2.document


def test_the_steps_are_silent_on_stdout(stage2):
    assert stage2.stdout == ""


def test_the_stage_starts_from_stage_1(stage1, stage2):
    assert Checkpoint.load(path=stage2.dataset.base_checkpoint_path).digest == stage1.checkpoint.digest


def test_every_file_of_an_artifact_is_recorded(stage2):
    for artifact in (stage2.dataset, stage2.checkpoint, stage2.results):
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


# --- the prompts ---


def test_every_filter_reports_in_the_order_of_application(stage2):
    reports = stage2.dataset.filters
    assert list(reports) == ["length", "held out or repeated", "always solved", "never solved"]
    kept = [report.num_seen - report.num_dropped for report in reports.values()]
    assert [report.num_seen for report in reports.values()][1:] == kept[:-1]
    assert kept[-1] == stage2.dataset.num_prompts
    assert reports["never solved"].num_dropped > 0


def test_every_prompt_has_a_verifier_and_its_right_answer_earns_everything(prompts):
    for prompt in (one for step in prompts for one in step):
        parts = reward_parts(prompt.exercise, prompt.exercise.answer)
        assert set(parts.values()) == {1}, prompt.exercise.id


def test_an_instruction_has_a_part_for_each_constraint(prompts):
    """A list has two at least: how many words, and another one."""
    asked = [one.exercise for step in prompts for one in step if one.exercise.family == instructions.FAMILY]
    sizes = {len(reward_parts(one, one.answer)) for one in asked}
    assert sizes == {len(json.loads(one.details)["constraints"]) for one in asked} == {1, 2}


def test_no_held_out_question_is_a_prompt(stage2):
    held_out, exercises = (
        [exercise_from_row(row) for row in rows(path)]
        for path in (stage2.dataset.held_out_path, stage2.dataset.exercises_path)
    )
    names = set(rows(stage2.dataset.held_out_path)[0])
    given = [exercise_from_row({name: row[name] for name in names}) for row in rows(stage2.dataset.prompts_path)]
    questions = {asked(one.messages) for one in [*held_out, *exercises]}
    tasks = {task for one in [*held_out, *exercises] for task in one.tasks}
    assert not questions & {asked(one.messages) for one in given}
    assert not tasks & {task for one in given for task in one.tasks}
    assert {one.family for one in held_out} == {instructions.FAMILY}
    assert {one.family for one in exercises} == set(FAMILIES)


def test_every_family_has_a_share_of_the_raw_prompts(stage2):
    """Of 56 raw prompts, 30 % are of the seven other families, in equal numbers. The filters leave 17 %."""
    assert stage2.dataset.filters["length"].num_seen == 39 + 7 * 2
    families = [row["family"] for row in rows(stage2.dataset.prompts_path)]
    others = sum(family != instructions.FAMILY for family in families)
    assert round(100 * others / len(families)) == 17


def test_about_half_of_the_prompts_ask_for_thinking(stage2, prompts):
    tokenizer = load_chat_tokenizer(CHAT, stage2.dataset.tokenizer_path)
    thinking = [one.thinking for step in prompts for one in step]
    assert 0.2 < sum(thinking) / len(thinking) < 0.8
    for one in (one for step in prompts for one in step):
        text = tokenizer.decode(list(one.tokens), skip_special_tokens=False)
        assert text.endswith(CHAT.reply_prefixes[one.thinking])


# --- training ---


def test_groups_with_a_signal_are_frequent_from_the_first_step_on(curve):
    shares = [row["groups_with_signal"] for row in curve]
    assert min(shares) >= 0.3


def test_sampler_and_learner_agree_at_every_step(curve):
    differences = [row["sampler_difference"] for row in curve]
    assert all(0 < difference < 1e-10 for difference in differences)


def test_what_a_step_measures_is_in_its_range(curve):
    for row in curve:
        for name in ("reward", "groups_with_signal", "clipped_low", "clipped_high", "replies_cut"):
            assert 0 <= row[name] <= 1, name
        assert row["verifier_faults"] == 0
        assert row["kl"] >= 0
        assert row["entropy"] > 0
        assert 1 <= row["reply_tokens"] <= CONFIG.max_new_tokens


def test_the_rewards_of_all_verifiers_are_shares_and_their_mean_is_that_of_the_curve(stage2, curve, prompts):
    rewards = table(stage2, "rewards")
    assert all(0 <= row["mean"] <= 1 for row in rewards)
    for row, of_step in zip(curve, prompts, strict=True):
        found = [one for one in rewards if one["step"] == row["step"] and one["part"] == "all"]
        assert {one["verifier"] for one in found} == {one.exercise.family for one in of_step}
        assert sum(one["replies"] for one in found) == len(of_step) * CONFIG.replies_per_prompt
        total = sum(one["replies"] * one["mean"] for one in found) / sum(one["replies"] for one in found)
        assert total == pytest.approx(row["reward"], rel=1e-12)


def test_the_rollouts_of_the_first_and_last_step_are_recorded(stage2, curve, prompts):
    rollouts = table(stage2, "rollouts")
    assert list(dict.fromkeys(row["step"] for row in rollouts)) == [0, len(curve) - 1]
    for step in (0, len(curve) - 1):
        of_step = [row for row in rollouts if row["step"] == step]
        names = [one.exercise.id for one in prompts[step] for _ in range(CONFIG.replies_per_prompt)]
        assert [row["prompt"] for row in of_step] == names
        assert sum(row["reward"] for row in of_step) / len(of_step) == pytest.approx(curve[step]["reward"], rel=1e-12)
        for _, group in groupby(of_step, key=lambda row: row["prompt"]):
            assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("step", [0, -1])
def test_rewards_and_texts_of_the_recorded_rollouts_are_those_of_their_tokens(stage2, curve, prompts, step):
    """Judged again, from the token ids alone."""
    number = step % len(curve)
    of_step = [row for row in table(stage2, "rollouts") if row["step"] == number]
    ids = [[int(token) for token in row["tokens"].split()] for row in of_step]
    replies = [Continuation(one, finish="stop" if one[-1] in CHAT.stop_ids else "length") for one in ids]
    verify = Verifier(CHAT, stage2.dataset.tokenizer_path)
    assert [one.total for one in verify(prompts[number], replies)] == [row["reward"] for row in of_step]
    assert [verify.decode(one) for one in ids] == [row["text"] for row in of_step]


def test_the_first_rollouts_are_those_of_stage_1s_model(stage1, stage2, prompts):
    policy = load_checkpoint(stage1.checkpoint.checkpoint_path)
    sampling = Sampling(CONFIG.max_new_tokens, CHAT.stop_ids, CONFIG.temperature)
    replies = draw_replies(policy, prompts[0], CONFIG.replies_per_prompt, sampling, ("rollout", CONFIG.seed, 0))
    recorded = [row["tokens"] for row in table(stage2, "rollouts") if row["step"] == 0]
    assert [" ".join(map(str, reply.tokens)) for reply in replies] == recorded


# --- the results ---


def test_the_results_compare_both_models(stage2):
    metrics = stage2.results.metrics
    for model in ("tuned", "policy"):
        assert 0 <= metrics[f"reward/{model}"] <= 1
    assert metrics["reward/policy"] > metrics["reward/tuned"]  # seconds of training: the form of the replies
    change = metrics["reward/policy"] - metrics["reward/tuned"]
    assert metrics["reward_difference"] == pytest.approx(change, abs=1e-12)
    assert 0 < metrics["reward/best_constant"] < 1
    assert 0 < metrics["reward/best_copying"] < 1


def test_transformers_gives_the_same_prompt_and_reply(stage2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = stage2.checkpoint.checkpoint_path
    messages = [{"role": "user", "content": "Write the words river and lamp. /no_think"}]
    ours = CHAT.encode(load_chat_tokenizer(CHAT, path), messages, add_generation_prompt=True).ids
    tokenizer, twin = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert theirs["input_ids"][0].tolist() == ours
    continued = twin.generate(**theirs, max_new_tokens=20, do_sample=False)[0, len(ours) :]
    sampling = Sampling(max_new_tokens=20, stop_ids=CHAT.stop_ids)
    (continuation,) = generate(load_checkpoint(path), [ours], sampling, [0])
    assert continuation.tokens == continued.tolist()
