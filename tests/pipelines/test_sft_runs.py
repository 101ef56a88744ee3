"""Whole runs of stage 1 on a random base model and few conversations: resuming, refusing, users' files, the chat."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2 import chat_cli
from nemotron.recipes.nano2.sizes import SIZES
from nemotron.recipes.nano2.stage0_pretrain.training import Checkpoint as BaseCheckpoint
from nemotron.recipes.nano2.stage1_sft import data_curation, evaluation, training
from nemotron.recipes.nemotron_h.checkpoint import load_tensors, save_checkpoint
from nemotron.recipes.nemotron_h.model import NemotronH, initialize

FEW = {"raw_conversations": 4_000, "exercises_per_family": 1, "rest_share": 0.3}
SMALL = {"checkpoint_every_steps": 4, "validate_every_steps": 6, "validation_sequences": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model of random weights, with a tokenizer of its own."""
    path = tmp_path_factory.mktemp("base")
    families = data_curation.FAMILIES.values()
    exercises = [exercise for family in families for exercise in family.generate_exercises(20, 0, split="train")]
    texts = [message["content"] for exercise in exercises for message in exercise.messages]
    save_tokenizer(train_tokenizer(texts, 400), path / "tokenizer")
    model = NemotronH(replace(SIZES["tiny"].model, vocab_size=400), dtype=torch.float64)
    initialize(model, 0)
    save_checkpoint(model, path / "tokenizer", path / "model")
    empty = path / "empty"
    empty.write_text("")
    return BaseCheckpoint(
        path=path,
        num_steps=1,
        num_parameters=1,
        training_loss=1.0,
        checkpoint_path=path / "model",
        training_state_path=empty,
        curve_path=empty,
        validation_curve_path=empty,
        plot_path=empty,
        sample="",
        dataset_path=path / "tokenizer",
    ).save()


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("curated") / "data_curation"
    return data_curation.main(data_curation.Config(**FEW, base_checkpoint_path=base.path, output_dir=output))


def configured(dataset, tmp_path, **changes):
    return training.Config(**(SMALL | changes), dataset_path=dataset.path, output_dir=tmp_path / "training")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return training.main(configured(dataset, tmp_path_factory.mktemp("run")))


def curve_of(checkpoint):
    return pq.read_table(checkpoint.curve_path).to_pylist()


def test_the_parts_are_trained_in_their_published_order_and_every_row_once(dataset, trained):
    curve = curve_of(trained)
    assert list(dict.fromkeys(row["phase"] for row in curve)) == list(data_curation.PARTS)
    for part in data_curation.PARTS:
        rows = pq.read_table(dataset.path / f"{part}.parquet").to_pylist()
        in_loss = sum(sum(row["in_loss"][1:]) for row in rows)
        assert sum(row["tokens"] for row in curve if row["phase"] == part) == in_loss


def test_micro_batches_change_memory_and_not_the_result(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, micro_batch_sequences=1))
    for ours, theirs in zip(curve_of(other), curve_of(trained), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-9)


def test_bfloat16_rounds_the_matrix_products_and_keeps_float32_weights(dataset, trained, tmp_path):
    other = training.main(configured(dataset, tmp_path, dtype="bfloat16"))
    change = curve_of(other)[0]["loss"] / curve_of(trained)[0]["loss"] - 1
    assert 1e-6 < abs(change) < 1e-2
    weights = load_tensors(other.checkpoint_path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in weights.values())


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("nemotron.recipes.training.device.device_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(training, "load_checkpoint", None)
    with pytest.raises(ValueError, match=r"scale=tiny needs 0 GiB for weights.*take a smaller scale"):
        training.main(configured(dataset, tmp_path))


def test_a_run_that_has_ended_is_not_run_again(dataset, trained, capsys):
    again = training.main(configured(dataset, trained.path.parent, resume=True))
    assert again.digest == trained.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


class Stopped(Exception):
    pass


def stop_training_at(monkeypatch, step):
    real = training.refuse_non_finite

    def stop(current, loss, grad_norm):
        if current == step:
            raise Stopped
        real(current, loss, grad_norm)

    monkeypatch.setattr(training, "refuse_non_finite", stop)


@pytest.mark.parametrize("step", [5, -1])
def test_a_stopped_run_resumes_to_the_same_bits(dataset, trained, tmp_path, monkeypatch, step):
    """In the first part and in the last."""
    config = configured(dataset, tmp_path)
    with monkeypatch.context() as patch:
        stop_training_at(patch, step % trained.num_steps)
        with pytest.raises(Stopped):
            training.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-0000\d+; add --resume"):
        training.main(config)
    assert training.main(replace(config, resume=True)).digest == trained.digest


def test_the_same_run_gives_the_same_bytes(base, dataset, trained, tmp_path):
    again = data_curation.main(
        data_curation.Config(**FEW, base_checkpoint_path=base.path, output_dir=tmp_path / "data_curation")
    )
    assert again.digest == dataset.digest
    results = [
        evaluation.main(
            evaluation.Config(max_new_tokens=12, checkpoint_path=trained.path, output_dir=tmp_path / f"evaluation{run}")
        )
        for run in range(2)
    ]
    assert results[0].digest == results[1].digest
    assert results[0].checkpoint_path == trained.path


def test_the_results_do_not_depend_on_how_many_replies_are_written_side_by_side(trained, tmp_path):
    replies = []
    for batch in (1, 64):
        config = evaluation.Config(
            max_new_tokens=12, batch_replies=batch, checkpoint_path=trained.path, output_dir=tmp_path / str(batch)
        )
        replies.append(pq.read_table(evaluation.main(config).replies_path).to_pylist())
    assert replies[0] == replies[1]


def test_a_checkpoint_of_another_scale_is_refused(trained, tmp_path):
    config = evaluation.Config(scale="small", checkpoint_path=trained.path, output_dir=tmp_path / "evaluation")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        evaluation.main(config)


def test_conversations_of_ones_own_in_the_released_columns_are_trained_on(base, tmp_path):
    rows = [
        {"uuid": str(number), "license": "CC-BY-4.0", "generator": "g", "version": "v2", "category": "math",
         "reasoning": "on" if number % 2 else "off",
         "messages": [{"role": "user", "content": f"What is {number} + 1?"},
                      {"role": "assistant", "content": (f"<think>\n{number} + 1 is what comes next\n</think>\n\n"
                                                        if number % 2 else "") + str(number + 1)}]}
        for number in range(40)
    ]  # fmt: skip
    rows.append({**rows[0], "uuid": "bad", "messages": [{"role": "wizard", "content": "Hello"}]})
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = data_curation.Config(
        scale="tiny", sources=(str(path),), raw_conversations=5_000, exercises_per_family=1, rest_share=1.0,
        base_checkpoint_path=base.path, output_dir=tmp_path / "data_curation",
    )  # fmt: skip
    dataset = data_curation.main(config)
    assert dataset.num_conversations == 40
    assert dataset.num_unreadable == 1
    assert "wizard" in dataset.unreadable[0].value


# --- the chat ---


def chat(*arguments, text):
    return subprocess.run(
        [sys.executable, "-m", "nemotron.recipes.nano2.chat_cli", *map(str, arguments)],
        input=text, capture_output=True, text=True, check=False,
        env={**os.environ, "GITHUB_STEP_SUMMARY": ""},
    )  # fmt: skip


def test_the_chat_answers_through_a_pipe(trained):
    done = chat(trained.path, "--max-new-tokens", "8", text="What is 3 + 4? /no_think")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert done.stderr in ("", "(the reply was cut off after 8 tokens; give it more --max-new-tokens)\n")


def test_the_chat_thinks_on_stderr_within_its_budget(trained):
    flags = ("--budget", "3", "--grace-tokens", "2", "--max-new-tokens", "40")
    done = chat(trained.path, *flags, text="What is 3 + 4?")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("</think>\n") == 1
    assert "</think>" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text", "sentence"),
    [
        ((), " /no_think ", "user message without text"),
        (("--max-new-tokens", "0"), "Hello", "max_new_tokens=0 must be greater than 0"),
    ],
)
def test_the_chat_refuses_in_one_sentence(trained, arguments, text, sentence):
    done = chat(trained.path, *arguments, text=text)
    assert done.returncode == 2
    assert not done.stdout
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("inner", ["", "model"])
def test_the_chat_with_a_base_model_names_the_command_that_makes_it_chat(base, inner):
    with pytest.raises(
        ValueError, match=r"has no chat template, so it is a base model.*nemotron\.recipes\.nano2\.stage1"
    ):
        chat_cli.loaded(chat_cli.Config(base.path / inner))


@pytest.mark.parametrize("name", ["", "nothing"])
def test_the_chat_without_a_checkpoint_says_what_to_name(tmp_path, name):
    sentence = r"holds no checkpoint; make one with python -m nemotron\.recipes\.nano2\.stage1_sft"
    with pytest.raises(ValueError, match=sentence):
        chat_cli.loaded(chat_cli.Config(tmp_path / name))


def test_the_chat_begins_with_the_system_message(trained):
    talk = chat_cli.loaded(chat_cli.Config(trained.path, system="Be brief."))
    assert talk.messages == [{"role": "system", "content": "Be brief."}]


def test_a_tokenizer_of_another_model_is_refused(trained, tmp_path):
    shutil.copytree(trained.checkpoint_path, tmp_path / "model")
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 500), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a tokenizer of 500 tokens and a model of 400; they do not belong"):
        chat_cli.loaded(chat_cli.Config(tmp_path))


def test_the_chat_on_a_device_that_is_not_there_says_so(trained):
    with pytest.raises(ValueError, match="device=toaster is not supported"):
        chat_cli.loaded(chat_cli.Config(trained.path, device="toaster"))


def test_a_thought_that_is_cut_off_does_not_stay_in_the_history_as_an_answer(trained):
    talk = chat_cli.loaded(chat_cli.Config(trained.path, max_new_tokens=2))
    list(talk.reply("What is 3 + 4?"))
    assert talk.messages[-1]["content"].endswith("\n</think>")
