"""Stage 3, run once at tiny scale on stage 2's model: it reproduces its golden, and it does its job."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.conversations import asked
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage3_dpo.data_curation import Config as DataConfig
from nemotron.recipes.nano2.stage3_dpo.training import Config as TrainingConfig
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises import workplace
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.pairs import Pairs, by_task, pair_rows, pairs_of, try_logprobs
from nemotron.recipes.training.rollouts import prompt_batches
from nemotron.recipes.training.run import Checkpoint
from nemotron.recipes.training.tries import LEVELS, draw_tries

CONFIG = TrainingConfig(scale="tiny")


def rows(path):
    return pq.read_table(path).to_pylist()


def table(stage3, name):
    return rows(stage3.checkpoint.tables_path / f"{name}.parquet")


def exercises_in(path):
    names = Exercise.__dataclass_fields__
    return [exercise_from_row({name: row[name] for name in names}) for row in rows(path)]


@pytest.fixture(scope="module")
def curve(stage3):
    return rows(stage3.checkpoint.curve_path)


@pytest.fixture(scope="module")
def prompts(stage3):
    return next(prompt_batches(stage3.dataset.tasks_path, stage3.dataset.num_tasks, first_step=0))


def test_the_stage_reproduces_its_golden(stage3, golden):
    assert golden(name="nano2/stage3_dpo") == stage3.document


def test_the_readme_says_what_the_golden_does_not_reach():
    """Its row names these measures. If one of them is no longer 0, the row has to change."""
    root = Path(__file__).parents[4]
    golden = json.loads((root / "golden" / "nano2" / "stage3_dpo.json").read_text())
    metrics = {one["name"]: one["value"] for one in golden["ladder"]["evaluation"] if one["rung"] == "metrics"}
    models = [name.removesuffix("/start") for name in metrics if name.endswith("/start")]
    still = {name for name in models if metrics[f"{name}/start"] == metrics[f"{name}/policy"] == 0}
    assert {name for name in still if not name.startswith(("exact_match/", "standard_error/"))} == {
        "valid_calls", "calls_per_try", "right_after_an_error", "success/look_up", "success_error/look_up",
        "success/correct", "success_error/correct",
    }  # fmt: skip
    assert {metrics[f"difference/{family}"] for family in [*FAMILIES, "all"]} == {0}
    text = (root / "recipes" / "nano2" / "stage3_dpo" / "README.md").read_text(encoding="utf-8")
    assert (
        "| tiny, every rung of the golden moves | no column of zeros | **not reached**: valid calls, calls in a" in text
    )


def test_the_steps_are_silent_on_stdout(stage3):
    assert stage3.stdout == ""


def test_the_stage_starts_from_stage_2(stage2, stage3):
    assert Checkpoint.load(path=stage3.dataset.base_checkpoint_path).digest == stage2.checkpoint.digest


def test_every_file_of_an_artifact_is_recorded(stage3):
    for artifact in (stage3.dataset, stage3.checkpoint, stage3.results):
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


# --- the Dataset ---


def test_every_filter_reports_in_the_order_of_application(stage3):
    reports = stage3.dataset.filters
    assert list(reports) == [
        "length", "held out or repeated", "solved too often", "solved too rarely", "no better and worse try",
    ]  # fmt: skip
    kept = [report.num_seen - report.num_dropped for report in reports.values()]
    assert [report.num_seen for report in reports.values()][1:] == kept[:-1]
    assert kept[-1] == stage3.dataset.num_tasks
    assert reports["no better and worse try"].num_dropped > 0


def test_no_held_out_task_is_trained_on(stage3):
    given, held_out = (exercises_in(path) for path in (stage3.dataset.tasks_path, stage3.dataset.held_out_path))
    exam = exercises_in(stage3.dataset.exercises_path)
    assert not {asked(one.messages) for one in [*held_out, *exam]} & {asked(one.messages) for one in given}
    assert not {task for one in [*held_out, *exam] for task in one.tasks} & {
        task for one in given for task in one.tasks
    }
    assert {workplace.kind_of(one) for one in held_out} == set(workplace.KINDS)
    assert {one.family for one in exam} == set(FAMILIES)


def test_a_right_conversation_about_any_task_fits_into_the_context_of_tiny(stage3):
    tokenizer = load_chat_tokenizer(CHAT, stage3.dataset.tokenizer_path)
    for task in exercises_in(stage3.dataset.tasks_path):
        messages = CHAT.with_flag(task.messages, thinking=False)
        if calls := workplace.solution_of(task):
            functions = [{"type": "function", "function": call} for call in calls[0]]
            messages.append({"role": "assistant", "content": "<think></think>", "tool_calls": functions})
            assert len(CHAT.encode(tokenizer, messages, task.tools).ids) <= 512


def test_the_first_pairs_are_those_of_stage_2s_tries(stage2, stage3):
    """Drawn and judged again."""
    config = DataConfig(scale="tiny")
    model, verify = load_checkpoint(stage2.checkpoint.checkpoint_path), Verifier(CHAT, stage3.dataset.tokenizer_path)
    prompts = next(prompt_batches(stage3.dataset.tasks_path, 3, first_step=0))
    sampling = Sampling(config.max_new_tokens, CHAT.stop_ids, config.temperature)
    tries = draw_tries(model, verify, prompts, config.tries, sampling, ("try", config.seed), max_turns=config.max_turns)
    pairs = [pairs_of(members, graded=True, at_most=1) for members in by_task(tries).values()]
    recorded = rows(stage3.dataset.pairs_path)[:6]
    assert [row for found in pairs for row in pair_rows(found)] == recorded


# --- training ---


def test_every_round_begins_at_ln_2_and_then_the_policy_moves(curve):
    assert [row["phase"] for row in curve] == ["round 1"] * 4 + ["round 2"] * 4
    for index, row in enumerate(curve):
        assert (row["preference_loss"] == pytest.approx(math.log(2), abs=1e-12)) == (index in (0, 4))
    assert all(row["accuracy"] == 0 for row in (curve[0], curve[4]))


def test_what_a_step_measures_is_in_its_range(curve):
    for row in curve:
        assert 0 <= row["accuracy"] <= 1
        assert row["margin"] == pytest.approx(row["chosen_reward"] - row["rejected_reward"], abs=1e-12)
        assert row["chosen_logprob"] < 0 > row["rejected_logprob"]
        assert row["pairs"] > 0
        assert row["tokens"] == pytest.approx(row["pairs"] * (row["chosen_tokens"] + row["rejected_tokens"]))


def test_the_recorded_log_probabilities_are_those_of_stage_2s_model(stage2, stage3, curve):
    """Of the first step, before any update."""
    model = load_checkpoint(stage2.checkpoint.checkpoint_path)
    pairs = Pairs.from_table(pq.read_table(stage3.dataset.pairs_path))
    first = next(pairs.optimizer_steps(CONFIG.steps_per_round))
    found = try_logprobs(model, first.batch, per_token=False)
    assert curve[0]["chosen_logprob"] == pytest.approx(found[::2].mean().item(), rel=1e-9)
    assert curve[0]["rejected_logprob"] == pytest.approx(found[1::2].mean().item(), rel=1e-9)


def test_the_tries_of_the_second_round_are_recorded_for_every_task(stage3, prompts):
    tried = table(stage3, "tries")
    assert {row["step"] for row in tried} == {CONFIG.steps_per_round}
    assert [row["task"] for row in tried] == [prompt.exercise.id for prompt in prompts]
    for row in tried:
        levels = list(map(int, row["levels"].split()))
        assert len(levels) == CONFIG.tries
        assert row["right"] == levels.count(LEVELS.index("right"))
        assert row["pairs"] == (max(levels) > min(levels))
        assert row["faults"] == 0


def test_a_chosen_try_always_got_further(stage3):
    pairs = table(stage3, "rewards")
    assert len(pairs) >= stage3.dataset.num_pairs
    assert all(row["chosen_level"] > row["rejected_level"] for row in pairs)


# --- the results ---


def test_the_results_compare_both_models(stage3):
    metrics = stage3.results.metrics
    for kind in (*workplace.KINDS, "all"):
        change = metrics[f"success/{kind}/policy"] - metrics[f"success/{kind}/start"]
        assert metrics[f"success_difference/{kind}"] == pytest.approx(change, abs=1e-12)
    assert metrics["success/all/policy"] > metrics["success/all/start"]  # seconds of training: it ends its replies
    assert metrics["broken/policy"] < metrics["broken/start"]
    assert metrics["held_out_pairs"] > 0
    assert metrics["preference_accuracy"] > 0.5
    assert 0 < metrics["success/best_constant"] < 1


def test_the_exam_is_no_column_of_zeros(stage3):
    """Exact match is the same for both models at this size; how likely right replies are is not."""
    metrics = stage3.results.metrics
    for family in FAMILIES:
        assert 0 < metrics[f"nats/{family}/policy"] != metrics[f"nats/{family}/start"] > 0, family
