"""Stage 1, run once at tiny scale on stage 0's model: it reproduces its golden, and it does its job."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage1_sft.training import Config as TrainingConfig
from nemotron.recipes.nano2.stage1_sft.training import validation_batches, validation_losses
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.run import Checkpoint

PARTS = ("everything", "tools", "long_context")


def test_the_stage_reproduces_its_golden(stage1, golden):
    assert golden(name="nano2/stage1_sft") == stage1.document


def test_the_golden_has_three_families_with_right_replies_at_tiny():
    """A first run shows that the model has learned something."""
    golden = json.loads((Path(__file__).parents[4] / "golden" / "nano2" / "stage1_sft.json").read_text())
    metrics = {one["name"]: one["value"] for one in golden["ladder"]["evaluation"] if one["rung"] == "metrics"}
    assert sum(metrics[f"exact_match/{family}/think"] > 0 for family in FAMILIES) >= 3


def test_the_steps_are_silent_on_stdout(stage1):
    assert stage1.stdout == ""


def test_the_dataset_names_its_parts_in_training_order(stage1):
    assert tuple(phase.name for phase in stage1.dataset.phases) == PARTS
    for phase in stage1.dataset.phases:
        rows = pq.read_table(*phase.paths(stage1.dataset.path))["tokens"].to_pylist()
        assert len(rows) == phase.num_sequences
        assert max(map(len, rows)) <= phase.sequence_length + 1


def test_the_loss_of_the_first_part_falls_to_half(stage1):
    curve = pq.read_table(stage1.checkpoint.curve_path).to_pylist()
    losses = [row["loss"] for row in curve if row["phase"] == PARTS[0]]
    assert sum(losses[-5:]) / 5 < losses[0] / 2


def test_every_filter_reports_in_the_order_of_application(stage1):
    reports = stage1.dataset.filters
    assert list(reports) == [
        "structure", "repetition", "language", "duplicates", "decontamination", "too long for any part",
        "too long for a row",
    ]  # fmt: skip
    assert reports["duplicates"].num_dropped == 0  # no exercise is drawn twice


def test_about_ten_percent_of_the_thoughts_are_emptied_and_some_are_cut(stage1):
    assert 0.05 < stage1.dataset.num_emptied_traces / stage1.dataset.num_conversations < 0.15
    assert stage1.dataset.num_cut_traces > 0


@pytest.mark.parametrize("part", PARTS)
def test_every_row_has_tokens_outside_the_loss_and_every_conversation_begins_there(stage1, part):
    for row in pq.read_table(stage1.dataset.path / part).to_pylist():
        assert 0 < sum(row["in_loss"]) < len(row["tokens"])
        starts = [place for place, segment in enumerate(row["segments"]) if segment not in row["segments"][:place]]
        assert not any(row["in_loss"][place] for place in starts)
        assert {row["tokens"][place] for place in starts} == {10}  # the system turn


def test_conversations_share_rows_except_in_the_part_for_tool_calling(stage1):
    shared = {
        part: max(max(row) for row in pq.read_table(stage1.dataset.path / part)["segments"].to_pylist())
        for part in PARTS
    }
    assert shared["everything"] > 0
    assert shared["tools"] == 0


def test_the_samples_show_what_counts_in_the_loss(stage1):
    page = stage1.dataset.samples_path.read_text()
    assert page.count("⟦") == page.count("⟧") == 9  # one a family, and one in the explanation
    assert "<SPECIAL_12>⟧" in page


def test_no_thought_is_longer_than_its_budget_and_grace(stage1):
    assert stage1.results.metrics["within_budget"] == 1
    assert stage1.results.metrics["num_closed_by_budget"] > 0


def test_every_reply_is_kept_with_its_errors(stage1):
    replies = pq.read_table(stage1.results.replies_path).to_pylist()
    assert len(replies) == 4 * stage1.results.metrics["num_exercises"]
    for mode in ("think", "no_think"):
        of_mode = [reply for reply in replies if reply["mode"] == mode]
        errors = sum(bool(reply["errors"]) for reply in of_mode) / len(of_mode)
        assert errors == stage1.results.metrics[f"format_errors/{mode}"]


def test_the_fine_tuned_model_knows_the_format_better_than_the_base_model(stage1):
    metrics = stage1.results.metrics
    assert metrics["format_errors/think"] < metrics["format_errors/base"]


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_makes_the_right_reply_likelier_in_every_family(stage1, family):
    metrics = stage1.results.metrics
    assert metrics[f"reply_loss/{family}/tuned"] < 0.7 * metrics[f"reply_loss/{family}/base"]


def test_the_reply_loss_is_that_of_training(stage1):
    """The loss of training, on the same rows: every token of a right reply counts, and no token of a question."""
    model = load_checkpoint(stage1.checkpoint.checkpoint_path)
    batches = validation_batches(stage1.dataset, conversations=1_000)
    losses = validation_losses(model, batches, TrainingConfig(scale="tiny"))
    for family, loss in losses.items():
        assert stage1.results.metrics[f"reply_loss/{family}/tuned"] == pytest.approx(loss, rel=1e-9)


def test_the_stage_starts_from_stage_0(stage0, stage1):
    assert Checkpoint.load(path=stage1.dataset.base_checkpoint_path).digest == stage0.checkpoint.digest


def test_every_file_of_an_artifact_is_recorded(stage1):
    for artifact in (stage1.dataset, stage1.checkpoint, stage1.results):
        path = Path(artifact.path)
        found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"metadata.json"}
        assert found == set(artifact.files)


def test_transformers_gives_the_same_prompt_and_reply(stage1):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nemotron.recipes.nemotron_h.generate import Sampling, generate

    path = stage1.checkpoint.checkpoint_path
    messages = [{"role": "user", "content": "What is 3 + 4? /no_think"}]
    ours = CHAT.encode(load_chat_tokenizer(CHAT, path), messages, add_generation_prompt=True).ids
    tokenizer, twin = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert theirs["input_ids"][0].tolist() == ours
    continued = twin.generate(**theirs, max_new_tokens=20, do_sample=False)[0, len(ours) :]
    (continuation,) = generate(load_checkpoint(path), [ours], Sampling(max_new_tokens=20, stop_ids=(2, 11, 12)), [0])
    assert continuation.tokens == continued.tolist()


@pytest.mark.parametrize(("part", "share"), [("everything", 0.02), ("tools", 0.3)])
def test_tool_calls_are_learned_in_the_first_part_and_in_their_own(stage1, part, share):
    tokenizer = load_chat_tokenizer(CHAT, stage1.dataset.tokenizer_path)
    rows = pq.read_table(stage1.dataset.path / part).to_pylist()
    learned = [
        tokenizer.decode([token for token, counts in zip(row["tokens"], row["in_loss"], strict=True) if counts])
        for row in rows
    ]
    assert sum("<TOOLCALL>" in text for text in learned) > share * len(rows)
