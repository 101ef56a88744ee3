"""The plan of stages 2 to 4: what each of their training steps needs, and what is refused before curation."""

import re
import runpy
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2 import rollout_plan
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import device
from nemotron.recipes.training.memory import CARDS, longest, memory_of_use

COLUMNS = {
    "stage2_rlvr": [["writing", "learning"]],
    "stage3_dpo": [["writing", "learning"]],
    "stage4_rlhf": [["learning", "scoring"], ["writing", "learning", "scoring"]],
}


def config_of(stage, **fields):
    return import_module(f"nemotron.recipes.nano2.{stage}.__main__").Config(**fields)


@pytest.mark.parametrize("stage", COLUMNS)
def test_the_plan_has_a_column_for_each_thing_a_step_does_and_a_line_for_each_card(stage):
    page = rollout_plan.page(config_of(stage, plan=True, devices=2))
    steps = page.split("\n\nTrain ")
    assert page.startswith("Train the ")
    assert page.count(", at scale tiny\n") == len(steps) == len(COLUMNS[stage])
    for step, columns in zip(steps, COLUMNS[stage], strict=True):
        lines = step.splitlines()
        assert "on each of 2 devices, with FSDP2" in lines[2]
        assert lines[3].split() == columns
        assert all(len(line.split("GiB")) == len(columns) + 1 for line in lines if line.strip().startswith("together"))
        assert [line[4:32].strip() for line in lines[-len(CARDS) :]] == list(CARDS)


def test_the_plan_counts_prompts_and_replies_as_long_as_they_may_become():
    config = config_of("stage2_rlvr", scale="medium", plan=True)
    config.data.max_prompt_tokens = 1000
    config.train.max_new_tokens = 500
    assert "128 x 1,500" in rollout_plan.page(config)
    config.train.max_new_tokens = 600
    assert "128 x 1,600" in rollout_plan.page(config)


def test_a_try_of_several_turns_is_a_row_of_all_of_them():
    config = config_of("stage3_dpo", plan=True)
    config.train.max_turns = 3
    turns = 3 * (config.data.max_prompt_tokens + config.train.max_new_tokens)
    assert f"{2 * config.train.micro_batch_pairs} x {turns:,}" in rollout_plan.page(config)


def test_the_reference_of_stage_2_is_planned_only_if_it_is_there():
    config = config_of("stage2_rlvr", plan=True)
    assert "other models" in rollout_plan.page(config)
    config.train.kl_weight = 0.0
    assert "other models" not in rollout_plan.page(config)


@pytest.mark.parametrize("stage", COLUMNS)
def test_more_devices_than_prompts_are_refused(stage):
    with pytest.raises(ValueError, match=r"^devices=1000000, and the largest batch has \d+ rows, so some devices"):
        rollout_plan.page(config_of(stage, plan=True, devices=1_000_000))


@pytest.mark.parametrize("stage", COLUMNS)
def test_what_the_plan_says_does_not_fit_is_refused_before_curation(stage, tmp_path, monkeypatch):
    """And a byte more is enough."""
    config = config_of(stage, output_dir=tmp_path / "run", base_checkpoint_path=tmp_path / "base")
    most = max(
        sum(memory_of_use(shape, step, one, 1, needs.beside, needs.scorers).values())
        for shape, step, needs in rollout_plan.planned_steps(config)
        for one in needs.uses
    )
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: most)
    rollout_plan.check(config)
    monkeypatch.setattr(device, "device_memory_bytes", lambda name: most - 1)
    with pytest.raises(ValueError, match=r"^training needs 0\.\d GiB .* and cpu has 0\.\d GiB; use"):
        rollout_plan.check(config)
    assert rollout_plan.check(replace(config, plan=True)).plan  # a plan runs nothing


@pytest.mark.parametrize("stage", COLUMNS)
def test_a_plan_is_printed_and_nothing_runs(stage, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", [stage, "--plan", "--devices", "2"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(find_spec(f"nemotron.recipes.nano2.{stage}.__main__").origin, run_name="__main__")
    said = capfd.readouterr().out
    assert said.startswith(rollout_plan.page(config_of(stage, plan=True, devices=2)))
    assert re.search(r"\n  training +runs: not made yet\n", said)
    assert list(tmp_path.iterdir()) == []


def test_the_longest_row_of_a_file_has_most_tokens(tmp_path):
    pq.write_table(pa.table({"tokens": [[1, 2], [3, 4, 5], [6]]}), tmp_path / "rows.parquet")
    assert longest(tmp_path / "rows.parquet") == 3


def test_every_scale_has_a_plan():
    for scale in MODELS:
        for stage in COLUMNS:
            config = config_of(stage, scale=scale, plan=True)
            assert [needs.uses for _, _, needs in rollout_plan.planned_steps(config)]
