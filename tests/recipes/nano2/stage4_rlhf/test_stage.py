"""Stage 4, run once at tiny scale on the model before it: it reproduces its golden, and it does its job."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage4_rlhf.training import Config as TrainingConfig
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.scorer import load_scorer
from nemotron.recipes.scoring.judge import Judge
from nemotron.recipes.sources.exercises import conversation
from nemotron.recipes.sources.exercises.exercise import exercise_from_row
from nemotron.recipes.sources.problems.problem import split_of
from nemotron.recipes.training.rollouts import prompt_batches

CONFIG = TrainingConfig(scale="tiny")


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def policy(stage4):
    return stage4.artifacts["policy"]


@pytest.fixture(scope="module")
def reward_model(stage4):
    return stage4.artifacts["reward_model"]


@pytest.fixture(scope="module")
def curve(policy):
    return rows(policy.curve_path)


def test_the_stage_reproduces_its_golden(stage4, golden):
    assert golden(name="nano2/stage4_rlhf") == stage4.document


def test_the_readme_has_the_numbers_of_the_golden():
    root = Path(__file__).parents[4]
    ladder = json.loads((root / "golden" / "nano2" / "stage4_rlhf.json").read_text())["ladder"]
    found = {
        one["name"]: one["value"]
        for step in ("reward_model", "evaluation")
        for one in ladder[step]
        if one["rung"] == "metrics"
    }
    percent = {name: 100 * value for name, value in found.items()}
    text = (root / "recipes" / "nano2" / "stage4_rlhf" / "README.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| tiny, r"))
    for cell in (
        f"{percent['accuracy/clean']:.0f} % (standard error {percent['accuracy_error/clean']:.0f})",
        f"{percent['accuracy/strength 3']:.0f} to {percent['accuracy/strength 2']:.0f} % where one reply is clearly",
        f"calibration error {percent['calibration_error']:.0f} %",
        f"{percent['rubric/policy']:.1f} % (standard error {percent['rubric_error/policy']:.1f})",
        f"after {percent['rubric/base']:.1f} % ({percent['rubric_error/base']:.1f})",
        f"win rate of {percent['win_rate/policy']:.1f} % ({percent['win_rate_error/policy']:.1f})",
        f"score went from {found['score/base']:.2f} to {found['score/policy']:.2f}",
    ):
        assert cell in rows


def test_the_steps_are_silent_on_stdout(stage4):
    assert stage4.stdout == ""


def test_the_artifacts_lead_from_the_merge_to_the_stage_before(stage4, policy, reward_model):
    assert stage4.results.checkpoint_path == stage4.checkpoint.path
    assert stage4.checkpoint.dataset_path == policy.path
    assert policy.dataset_path == reward_model.path
    assert reward_model.dataset_path == stage4.dataset.path
    assert stage4.dataset.base().digest != policy.digest


def test_every_file_of_an_artifact_is_recorded(stage4):
    for artifact in stage4.artifacts.values():
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


# --- the pairs and prompts ---


def test_every_filter_reports_in_the_order_of_application(stage4):
    reports = stage4.dataset.filters
    assert list(reports) == ["language", "equal replies", "no preference", "length"]
    kept = [report.num_seen - report.num_dropped for report in reports.values()]
    assert [report.num_seen for report in reports.values()][1:] == kept[:-1]
    assert kept[-1] == stage4.dataset.num_pairs + len(rows(stage4.dataset.held_out_pairs_path))
    assert reports["equal replies"].num_dropped > 0
    assert reports["no preference"].num_dropped > 0


def test_some_labels_are_noise_in_training_and_in_what_is_held_out(stage4):
    for path in (stage4.dataset.pairs_path, stage4.dataset.held_out_pairs_path):
        noisy = [row["noisy"] for row in rows(path)]
        assert 0 < sum(noisy) / len(noisy) < 0.3
    assert stage4.dataset.noise_share > 0


def exercises_of(path):
    names = {"id", "family", "messages", "tools", "reasoning", "answer", "canonical", "details", "difficulty"}
    return [exercise_from_row({name: row[name] for name in names}) for row in rows(path)]


def test_nothing_that_is_held_out_is_trained_on_and_nothing_is_held_out_twice(stage4):
    dataset = stage4.dataset
    prompts, held_out, validation, exam = (
        exercises_of(path)
        for path in (dataset.prompts_path, dataset.held_out_path, dataset.validation_path, dataset.exercises_path)
    )
    assert {split_of(one.canonical) for one in prompts} == {"train"}
    assert {split_of(task) for one in [*held_out, *validation, *exam] for task in one.tasks} == {"evaluation"}
    kinds = [held_out, [one for one in validation if one.family == conversation.FAMILY]]
    assert not {one.canonical for one in kinds[0]} & {one.canonical for one in kinds[1]}
    tests = [one for one in validation if one.family != conversation.FAMILY]
    assert not {one.id for one in tests} & {one.id for one in exam}
    contexts = [{row["context"] for row in rows(path)} for path in (dataset.pairs_path, dataset.held_out_pairs_path)]
    assert not contexts[0] & contexts[1]
    assert not {asked(one.messages) for one in [*held_out, *validation]} & {
        asked(json.loads(context)) for part in contexts for context in part
    }


def test_half_of_the_rollouts_of_every_step_think(stage4):
    for prompts in prompt_batches(stage4.dataset.prompts_path, CONFIG.prompts_per_step, first_step=0):
        assert sum(one.thinking for one in prompts) == len(prompts) / 2


# --- the reward model ---


def test_the_reward_model_learns_to_rank_held_out_pairs(reward_model):
    """A few seconds of training: it is far from a coin where one reply is much better."""
    assert reward_model.metrics["accuracy/clean"] > 0.55
    assert reward_model.metrics["accuracy/strength 3"] > 0.75
    assert reward_model.metrics["loss"] < math.log(2)
    assert 0 < reward_model.metrics["calibration_error"] < 0.5


def test_a_label_that_is_noise_is_mostly_contradicted(reward_model):
    """The label of a noisy pair calls the reply that is worse by the rubric the chosen one."""
    scores = rows(reward_model.held_out_scores_path)
    followed = {
        noisy: [row["chosen"] > row["rejected"] for row in scores if row["noisy"] == noisy] for noisy in (False, True)
    }
    assert sum(followed[True]) / len(followed[True]) < 0.5
    assert sum(followed[False]) / len(followed[False]) == reward_model.metrics["accuracy/clean"]


# --- training ---


def test_what_a_step_measures_is_in_its_range(curve):
    for row in curve:
        for name in ("rubric", "repetition", "groups_with_signal", "clipped_low", "clipped_high", "replies_cut"):
            assert 0 <= row[name] <= 1, name
        assert row["kl"] >= 0
        assert row["entropy"] > 0
        assert row["sampler_difference"] < 1e-10
    assert curve[-1]["kl"] > curve[0]["kl"] > 0
    assert curve[0]["groups_with_signal"] > 0.3


@pytest.mark.parametrize("step", [0, -1])
def test_the_recorded_rewards_are_the_scores_of_the_recorded_tokens(stage4, policy, reward_model, curve, step):
    """Scored again, from the token ids alone; the advantages have the order of the scores."""
    number = step % len(curve)
    prompts = list(prompt_batches(stage4.dataset.prompts_path, CONFIG.prompts_per_step, first_step=0))[number]
    recorded = [row for row in rows(policy.tables_path / "rollouts.parquet") if row["step"] == number]
    ids = [[int(token) for token in row["tokens"].split()] for row in recorded]
    replies = [Continuation(one, finish="stop" if one[-1] in CHAT.stop_ids else "length") for one in ids]
    judge = Judge(CHAT, stage4.dataset.tokenizer_path, load_scorer(reward_model.reward_model_path))
    again = [one.total for one in judge(prompts, replies)]
    assert again == pytest.approx([row["reward"] for row in recorded], rel=1e-10)
    for start in range(0, len(recorded), CONFIG.replies_per_prompt):
        group = recorded[start : start + CONFIG.replies_per_prompt]
        by_reward = sorted(group, key=lambda row: row["reward"])
        advantages = [row["advantage"] for row in by_reward]
        assert advantages == sorted(advantages)
        assert sum(advantages) == pytest.approx(0, abs=1e-10)


# --- the merge and the results ---


def test_the_sweep_has_all_published_weights_and_both_parents(stage4):
    sweep = rows(stage4.checkpoint.tables_path / "sweep.parquet")
    assert [row["a"] for row in sweep] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert len({row["nats"] for row in sweep}) == 11
    assert len({row["chat"] for row in sweep}) > 3
    assert stage4.checkpoint.metrics["a"] == stage4.results.metrics["a"]


def test_the_merge_lies_between_its_parents_and_is_neither(stage4, policy):
    weights = [
        load_checkpoint(path).lm_head.weight
        for path in (stage4.dataset.base().checkpoint_path, policy.checkpoint_path, stage4.checkpoint.checkpoint_path)
    ]
    a = stage4.checkpoint.metrics["a"]
    assert 0 < a < 1
    assert not weights[2].equal(weights[0])
    assert not weights[2].equal(weights[1])
    assert (weights[2] - ((1 - a) * weights[0] + a * weights[1])).abs().max() < 1e-15


def test_the_results_compare_all_models(stage4):
    metrics = stage4.results.metrics
    # Four steps are too few for the score to rise beyond noise; test_training.py has the direction of a step.
    assert len({metrics[f"score/{model}"] for model in ("base", "policy", "merged")}) == 3
    assert metrics["rubric/policy"] > metrics["rubric/base"] - metrics["rubric_error/base"]
    for model in ("policy", "merged"):
        outcomes = [metrics[f"{name}/{model}"] for name in ("wins", "ties", "losses")]
        assert sum(outcomes) == pytest.approx(1)
        assert metrics[f"win_rate/{model}"] == pytest.approx(outcomes[0] + outcomes[1] / 2)
    assert 0 < metrics["rubric/best_constant"] < 1


def test_no_measure_is_a_column_of_zeros(stage4):
    """What is 0 for every model says nothing about a stage; exact match is, at this size, and nats take its place."""
    metrics = stage4.results.metrics
    for measure in ("rubric", "score", "reply_tokens", "nats/math", "nats/safety", "part/language", "part/helpful"):
        values = {metrics[f"{measure}/{model}"] for model in ("base", "policy", "merged")}
        assert len(values) > 1, measure
        assert 0 not in values, measure
