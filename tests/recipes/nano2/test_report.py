"""What the recipe adds to its report: the exam of all stages, the same prompts, rollouts, the sweep."""

import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron.directory import Metadata
from nemotron.recipes.nano2 import report
from nemotron.recipes.nano2.report import (
    candidate_table,
    exam_columns,
    exam_section,
    rollout_blocks,
    same_prompts,
    sweep_plot,
)
from nemotron.recipes.scoring.pass_at_k import Paired
from nemotron.report import sections_of
from nemotron.report.blocks import Table
from nemotron.report.run import Stage, Step, read_run


class HeldStep(Step):
    """A step whose tables are in memory."""

    tables: dict[str, list[dict]]

    def has(self, name: str) -> bool:
        return name in self.tables

    def rows(self, name: str) -> list[dict]:
        return self.tables[name]


def held(name: str, tables: dict[str, list[dict]] | None = None, **metrics: float) -> Step:
    metadata = Metadata(type="results", created_at=datetime(2026, 1, 1, tzinfo=UTC), fields={}, metrics=metrics,
                        inputs={}, files={}, producer={"step": f"nemotron.recipes.nano2.stage.{name}"})  # fmt: skip
    step = HeldStep(Path(), metadata)
    object.__setattr__(step, "tables", tables or {})
    return step


def exam(**models: float) -> dict[str, float]:
    """Metrics of an exam, as `exam_metrics` names them: the first model is the one before the stage."""
    names = list(models)
    metrics = {"chance/math": 0.25, "chance/all": 0.2}
    for family in ("math", "all"):
        for model, share in models.items():
            metrics |= {f"exact_match/{family}/{model}/think": share, f"exact_match/{family}/{model}": share,
                        f"standard_error/{family}/{model}": 0.01}  # fmt: skip
        for before, after in pairwise(names):
            suffix = "" if after == names[-1] else f"/{after}"
            metrics |= {f"difference/{family}{suffix}": models[after] - models[before],
                        f"difference_error/{family}{suffix}": 0.02}  # fmt: skip
    return metrics


def reply(mode: str, id: str, right: bool) -> dict:
    return {"mode": mode, "id": id, "family": id[:-1], "reply": f"{mode} says", "right": right, "errors": []}


@pytest.fixture
def stages() -> list[Stage]:
    """Fine-tuning, reinforcement learning, and a stage with two models."""
    asked = [{"id": id, "family": id[:-1], "messages": json.dumps([{"role": "user", "content": f"Ask {id}"}])}
             for id in ("math1", "math2", "long_context1")]  # fmt: skip
    first = [reply("base", "math1", False), reply("base", "math2", False), reply("base", "long_context1", False),
             reply("think", "math1", True), reply("think", "math2", False), reply("think", "long_context1", True),
             reply("no_think", "math1", True), reply("no_think", "math2", True),
             reply("no_think", "long_context1", True), reply("budget", "math1", False)]  # fmt: skip
    later = [reply("tuned/think", "math2", True), reply("policy/think", "math2", False),
             reply("policy/no_think", "math2", True)]  # fmt: skip
    chance = {"chance/math": 0.5, "chance/long_context": 0.0, "chance/all": 0.5}
    return [
        Stage("stage1_sft", "", [held("data_curation", {"exercises.parquet": asked}),
                                 held("evaluation", {"replies.parquet": first}, **chance)], []),
        Stage("stage2_rlvr", "", [held("evaluation", {"replies.parquet": later}, **exam(tuned=0.5, policy=0.6))], []),
        Stage("stage4_rlhf", "", [held("evaluation", **exam(base=0.6, policy=0.7, merged=0.65))], []),
    ]  # fmt: skip


def test_every_model_has_its_column_in_the_order_of_training(stages):
    columns = exam_columns(stages)
    assert [column.label for column in columns] == [
        "base model",
        "stage 1",
        "stage 2",
        "stage 4, policy",
        "stage 4, merged",
    ]
    assert [column.tick for column in columns] == ["base", "1", "2", "4 policy", "4 merged"]


def test_the_first_exam_is_the_mean_over_both_modes_with_its_error(stages):
    base, tuned = exam_columns(stages)[:2]
    assert base.level["math"] == Paired(0, 0)
    assert tuned.level["math"] == Paired(0.75, 0.25)  # 1 and 0.5: deviation 0.354, over the square root of 2
    assert tuned.level["all"] == tuned.level["math"]  # without long_context
    assert tuned.level["long_context"] == Paired(1, 0)
    assert tuned.change["math"] == Paired(0.75, 0.25)
    assert list(base.chance) == ["math", "long_context", "all"]


def test_a_later_exam_is_that_of_its_stage(stages):
    policy, merged = exam_columns(stages)[3:]
    assert policy.level["math"] == Paired(0.7, 0.01)
    assert policy.change["math"] == pytest.approx((0.1, 0.02))
    assert merged.change["all"] == pytest.approx((-0.05, 0.02))


def test_the_table_has_every_chance_level_and_marks_clear_changes(stages):
    _, plot, levels, changes = exam_section(exam_columns(stages)).blocks
    assert levels.header[-2:] == ["chance, base to 1", "chance, 2 to 4 merged"]
    assert levels.rows[0] == [
        "math",
        "0.0 ± 0.0",
        "75.0 ± 25.0",
        "60.0 ± 1.0",
        "70.0 ± 1.0",
        "65.0 ± 1.0",
        "50.0",
        "25.0",
    ]
    assert changes.rows[0] == ["math", "+75.0 ± 25.0 *", "+10.0 ± 2.0 *", "+10.0 ± 2.0 *", "-5.0 ± 2.0 *"]
    assert changes.rows[1][:3] == ["long_context", "+100.0 ± 0.0 *", "-"]
    assert plot.alt.endswith("Over all but long_context: base model 0.0%, stage 1 75.0%, stage 2 60.0%, stage 4, "
                             "policy 70.0%, stage 4, merged 65.0%.")  # fmt: skip


def test_prompts_are_shown_that_every_stage_answered(stages):
    (shown,) = same_prompts(stages).blocks
    assert shown.summary == "math: always wrong"
    labels = ["Asked, with thinking", "base model, wrong", "stage 1, wrong", "stage 2, wrong"]
    asked, beside = shown.blocks
    texts = [asked, *beside.blocks]
    assert [block.label for block in texts] == labels
    assert [block.text for block in texts] == ["user: Ask math2", "base says", "think says", "policy/think says"]
    (only,) = same_prompts(stages[:1]).blocks[:1]
    assert only.summary == "math: right: stage 1"


def test_a_run_without_replies_has_no_such_section(stages):
    assert same_prompts([stages[2]]) is None
    assert exam_columns([Stage("stage0_pretrain", "", [held("evaluation")], [])]) == []


def test_of_each_prompt_the_best_and_the_worst_reply_are_shown():
    rows = [{"step": 4, "prompt": "p", "asked": "Q", "text": text, "reward": reward, "advantage": reward - 0.5}
            for text, reward in (("middle", 0.5), ("worst", 0.25), ("best", 1.0))]  # fmt: skip
    (shown,) = rollout_blocks(rows)
    assert shown.summary == "Rollouts of step 5 with their rewards"
    asked, beside = shown.blocks
    assert [(block.label, block.text) for block in (asked, *beside.blocks)] == [
        ("Asked", "Q"),
        ("Best of 3: reward 1.00, advantage +0.50", "best"),
        ("Worst of 3: reward 0.25, advantage -0.25", "worst"),
    ]
    assert rollout_blocks([{"step": 0, "task": "t", "level": 1, "text": "x"}]) == []  # the pairs of stage 3


def test_the_sweep_says_what_was_chosen():
    rows = [{"a": a, "chat": a, "chat_error": 0.1, "reasoning": 1 - a, "reasoning_error": 0.1} for a in (0.0, 0.5, 1.0)]
    assert sweep_plot(rows, 0.5).alt == (
        "Merging sweep over 3 weights: at the chosen a = 0.5, chat 50.0% and reasoning 50.0%; at 0, 0.0% and 100.0%; "
        "at 1, 100.0% and 0.0%."
    )


def test_only_shapes_that_were_distilled_are_shown():
    shape = {"hybrid_override_pattern": "M-M*-", "hidden_size": 56, "intermediate_size": 256, "mamba_num_heads": 8,
             "num_parameters": 1000, "total_bytes": 2000, "pruned_kl": 4.0}  # fmt: skip
    rows = [{**shape, "distilled_kl": None, "fits": False, "chosen": False},
            {**shape, "distilled_kl": 3.5, "fits": True, "chosen": True}]  # fmt: skip
    table = candidate_table(rows)
    assert table.rows == [["M-M*-", "56", "256", "8", "1,000", "2,000", "4", "3.5", "chosen"]]
    assert table.caption.endswith("of 2 in the grid; 1 fit")


def test_the_replies_of_the_exam_are_written_with_its_stage(stage2):
    rows = pq.read_table(stage2.results.path / "replies.parquet").to_pylist()
    assert {row["mode"] for row in rows} == {"tuned/think", "tuned/no_think", "policy/think", "policy/no_think"}
    of_policy = [row["right"] for row in rows if row["mode"] == "policy/think" and row["family"] == "math"]
    assert sum(of_policy) / len(of_policy) == stage2.results.metrics["exact_match/math/policy/think"]


def test_real_stages_have_everything(stage1, stage2):
    stages = [*read_run(stage1.directory), *read_run(stage2.directory)]
    titles = [section.title for section in sections_of(stages, report)]
    assert titles[:3] == ["Overview", "What each stage did to every ability", "The same prompts after each stage"]


def test_a_compression_shows_its_candidates(stage5):
    pruned = next(
        step for stage in read_run(stage5.directory) for step in stage.steps if step.has("tables/candidates.parquet")
    )
    shown = [block for block in report.step_blocks(pruned) if isinstance(block, Table)]
    assert sum("chosen" in row for table in shown for row in table.rows) == 1
