"""Whole stages that start from a published model: with its shape, tokenizer and template; its origin is known."""

import json
from dataclasses import replace
from importlib import import_module

import pyarrow.parquet as pq
import pytest
import torch

from nemotron.artifact import Artifact
from nemotron.lineage.__main__ import all_nodes, read_tree
from nemotron.published import published_metadata
from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.chat.program import load_chat
from nemotron.recipes.chat.template import TemplateFormat, format_of
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config, load_tokenizer
from nemotron.recipes.training.run import Checkpoint

ASKED = {"max_new_tokens": 8}
# Stage -> step of its Config -> fields: few examples, steps and questions.
FEW = {
    "stage1_sft": {
        "data": {"raw_conversations": 4_000, "exercises_per_family": 1, "rest_share": 0.3},
        "train": {"batch_sequences": 4, "unpacked_batch_sequences": 8, "warmup_steps": 2, "validation_sequences": 1},
        "eval": ASKED,
    },
    "stage2_rlvr": {
        "data": {"raw_prompts": 4_800, "tries": 3, "exercises_per_family": 1, "held_out_instructions": 3, **ASKED},
        "train": {"prompts_per_step": 8, "replies_per_prompt": 3, "warmup_steps": 1, **ASKED},
        "eval": ASKED,
    },
    "stage3_dpo": {
        "data": {"raw_tasks": 2_200, "tries": 4, "max_new_tokens": 20, "exercises_per_family": 1, "held_out_tasks": 3,
                 "max_prompt_tokens": 430, "thinking_share": 0.0},
        "train": {"rounds": 1, "steps_per_round": 2, "tries": 4, "max_new_tokens": 20, "warmup_steps": 1},
        "eval": ASKED,
    },
    "stage4_rlhf": {
        "data": {"raw_pairs": 3_000, "raw_prompts": 800, "sampled_share": 0.3, "max_new_tokens": 20,
                 "held_out_pairs": 8, "held_out_prompts": 2, "validation_prompts": 2, "validation_exercises": 1,
                 "exercises_per_family": 1},
        "reward": {"pairs_per_step": 8, "micro_batch_pairs": 8},
        "train": {"prompts_per_step": 4, "replies_per_prompt": 3, "hacking_window": 1, **ASKED},
        "merge": {"weights": (0.5,), **ASKED},
        "eval": ASKED,
    },
    "stage5_compress": {
        "data": {"calibration_samples": 4, "lengths": (16, 32), "sequences": (12, 4), "validation_rows": 1,
                 "exercises_per_family": 1},
        "prune": {"budget_bytes": 150_000, "depths": (4,), "hidden_sizes": (40, 48), "intermediate_sizes": (64,),
                  "mamba_heads": (2, 4), "num_candidates": 1, "candidate_steps": 1, "batch_sequences": 4},
        "train": {"batch_sequences": (4, 2), "micro_batch_sequences": (4, 2), "warmup_steps": 1},
        "scratch": {"batch_sequences": (4, 2), "micro_batch_sequences": (4, 2), "warmup_steps": 1},
        "eval": ASKED,
    },
}  # fmt: skip


def run(name, base, directory, **inputs):
    """The artifacts of a whole stage at tiny that starts from the directory."""
    stage = import_module(f"nemotron.recipes.nano2.{name}.__main__")
    config = stage.Config(output_dir=directory / name, base_checkpoint_path=base, **inputs)
    steps = {step: replace(getattr(config, step), **values) for step, values in FEW[name].items()}
    return stage.main(replace(config, **steps))


@pytest.fixture(scope="module")
def tuned(whole_published_model, tmp_path_factory):
    """Stage 1 from the published model."""
    return run("stage1_sft", whole_published_model, tmp_path_factory.mktemp("runs"))


def check_origin(artifacts: dict[str, Artifact], model):
    """The model is the start of all artifacts of a stage, and its shape, tokenizer and template are theirs."""
    digest = published_metadata(model).digest
    assert artifacts["dataset"].inputs["base_checkpoint_path"].digest == digest
    for artifact in artifacts.values():
        nodes = list(all_nodes(read_tree(artifact.path)))
        assert digest in {node.digest for node in nodes if node.type == "publishedmodel"}
        assert not any(node.broken for node in nodes)
    checkpoint = artifacts["checkpoint"].checkpoint_path
    for name in ("tokenizer.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json"):
        assert (checkpoint / name).read_bytes() == (model / name).read_bytes(), name
    ours, theirs = (json.loads((place / "tokenizer_config.json").read_text()) for place in (checkpoint, model))
    assert ours == theirs


def test_fine_tuning_starts_from_a_published_model(tuned, whole_published_model):
    check_origin(tuned, whole_published_model)
    shape = load_config(tuned["checkpoint"].checkpoint_path)
    assert shape == load_config(whole_published_model)
    metrics = tuned["results"].metrics
    assert metrics["reply_loss/all/tuned"] < metrics["reply_loss/all/base"]


def test_fine_tuning_begins_at_the_published_weights(tuned, whole_published_model):
    norms = {
        name: tensor.double().norm().item()
        for name, tensor in load_checkpoint(whole_published_model, dtype=torch.float64).state_dict().items()
    }
    ladder = json.loads((tuned["checkpoint"].path / "ladder.json").read_text())
    initial = {entry["name"]: entry["value"] for entry in ladder if entry["rung"] == "initial weights"}
    assert initial.keys() == norms.keys()
    for name, value in initial.items():
        assert value[0] == pytest.approx(norms[name], rel=1e-12)


def test_rows_are_what_transformers_makes_of_the_conversations(tuned, whole_published_model):
    """Of the evaluation's exercises; the published template is given the reply without its prefix."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whole_published_model)
    exercises = pq.read_table(tuned["dataset"].exercises_path).to_pylist()
    rows = pq.read_table(tuned["dataset"].validation_path).to_pylist()
    for exercise, row in zip(exercises, rows, strict=True):
        messages, tools = json.loads(exercise["messages"]), json.loads(exercise["tools"])
        wrapped = [{"type": "function", "function": tool} for tool in tools] or None
        prompt = tokenizer.apply_chat_template(messages, tools=wrapped, add_generation_prompt=True, return_dict=False)
        assert row["tokens"][: len(prompt)] == prompt
        learned = tokenizer.decode(row["tokens"][len(prompt) :]).removesuffix("\n<SPECIAL_12>\n")
        reply = {"role": "assistant", "content": learned}
        assert row["tokens"] == tokenizer.apply_chat_template([*messages, reply], tools=wrapped, return_dict=False)
        assert row["in_loss"] == [len(prompt) <= place < len(row["tokens"]) - 1 for place in range(len(row["tokens"]))]


def test_the_tuned_model_chats_with_the_template_that_it_brought(tuned, whole_published_model):
    for place in (tuned["checkpoint"].path, whole_published_model):
        chat = load_chat(CHAT, ChatConfig(checkpoint=place, max_new_tokens=4))
        assert isinstance(chat.format, TemplateFormat)
        assert "".join(text for text, _ in chat.reply("Hello"))
    assert format_of(CHAT, whole_published_model).stop_ids == (2, 11, 12)


def test_a_stage_that_starts_from_a_model_that_changed_runs_again(tuned, published_model, tmp_path, capsys):
    stage = import_module("nemotron.recipes.nano2.stage1_sft.__main__")
    (published_model / "generation_config.json").write_text('{"eos_token_id": 12}')
    config = stage.Config(output_dir=tuned["dataset"].path.parent, base_checkpoint_path=published_model, plan=True)
    stage.main(replace(config, **{step: replace(getattr(config, step), **FEW["stage1_sft"][step])
                                  for step in FEW["stage1_sft"]}))  # fmt: skip
    assert "base_checkpoint_path: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["stage2_rlvr", "stage3_dpo", "stage4_rlhf"])
def test_a_later_stage_starts_from_a_published_model(name, whole_published_model, tmp_path):
    artifacts = run(name, whole_published_model, tmp_path)
    check_origin(artifacts, whole_published_model)
    assert load_config(artifacts["checkpoint"].checkpoint_path) == load_config(whole_published_model)
    assert artifacts["results"].metrics


def test_compression_starts_from_a_published_model(tuned, stage0, whole_published_model, tmp_path):
    inputs = {"fine_tuning_path": tuned["dataset"].path, "pretraining_path": stage0.dataset.path}
    artifacts = run("stage5_compress", whole_published_model, tmp_path, **inputs)
    check_origin(artifacts, whole_published_model)
    teacher, student = (load_config(place) for place in (whole_published_model, artifacts["pruned"].checkpoint_path))
    assert student.hidden_size <= teacher.hidden_size
    assert len(student.hybrid_override_pattern) == 4
    # The text of pretraining is in the tokens of the teacher.
    ours = load_tokenizer(whole_published_model)
    rows = pq.read_table(artifacts["dataset"].validation_path).to_pylist()
    text = ours.decode(next(row["tokens"] for row in rows if row["source"] == "pretraining"))
    theirs = load_tokenizer(stage0.dataset.tokenizer_path)
    raw = [theirs.decode(row["tokens"]) for row in pq.read_table(stage0.dataset.validation_path).to_pylist()]
    assert any(text.strip("\ufffd") in one for one in raw)


@pytest.mark.parametrize("given", [{}, {"fine_tuning_path": "tuned"}], ids=["none", "one"])
def test_compression_names_the_datasets_that_a_published_model_does_not_have(
    given, tuned, whole_published_model, tmp_path
):
    inputs = {name: tuned["dataset"].path for name in given}
    flag = "--pretraining-path" if given else "--fine-tuning-path"
    with pytest.raises(ValueError, match=rf"was not made from anything that .*, or name such a Dataset with {flag}$"):
        run("stage5_compress", whole_published_model, tmp_path, **inputs)


def test_the_checkpoint_of_a_stage_is_the_start_of_the_next(tuned):
    """As a Checkpoint, not as a published model, so that the whole lineage is known."""
    assert isinstance(Checkpoint.load(tuned["checkpoint"].path), Checkpoint)
