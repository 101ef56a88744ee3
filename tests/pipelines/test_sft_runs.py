"""Whole runs of stage 1 on a random base model and few conversations: resuming, refusing, users' files, the chat."""

import itertools
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
from tokenizers import Tokenizer

from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.chat.program import load_chat
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage1_sft import data_curation, evaluation, training
from nemotron.recipes.nemotron_h.checkpoint import load_tensors
from nemotron.recipes.sources.conversations import stored_conversations
from nemotron.recipes.sources.exercises.families import FAMILIES
from nemotron.recipes.training.run import Run

FEW = {"raw_conversations": 4_000, "exercises_per_family": 1, "rest_share": 0.3}
BATCHES = {"batch_sequences": 4, "unpacked_batch_sequences": 8, "micro_batch_sequences": 2, "warmup_steps": 5}
SMALL = {**BATCHES, "checkpoint_every_steps": 4, "validate_every_steps": 6, "validation_sequences": 1}


@pytest.fixture(scope="module")
def base(random_base_model, tmp_path_factory):
    return random_base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("curated") / "data_curation"
    return data_curation.main(data_curation.Config(**FEW, base_checkpoint_path=base.path, output_dir=output))


def another_seed_of(kind):
    """A change of `falls_into_share`: what is drawn for this purpose is drawn with another seed."""
    return lambda real: lambda share, name, seed, id: real(share, name, seed + (name == kind), id)


def exchanged_drop(name):
    """A change of `apply_to_files`: the filter keeps what it dropped, and drops as many that it kept."""

    def change(real):
        def apply(paths, rules, reports, directory, item_of):
            chosen = [rule for rule in rules if rule.name == name]
            if not chosen:
                return real(paths, rules, reports, directory, item_of)
            items = list(stored_conversations(paths))
            dropped = [item.id for item in items if chosen[0].fault(item)]
            instead = [item.id for item in items if not chosen[0].fault(item)][: max(1, len(dropped))]
            exchanged = replace(chosen[0], fault=lambda item: "exchanged" if item.id in instead else None)
            changed = [exchanged if rule is chosen[0] else rule for rule in rules]
            return real(paths, changed, reports, directory, item_of)

        return apply

    return change


def drops_one_more(name):
    """A change of `length_rule`: the rule drops the first conversation."""

    def change(real):
        def rule_of(rule_name, threshold, capacity):
            rule = real(rule_name, threshold, capacity)
            number = itertools.count()
            changed = replace(rule, fault=lambda one: rule.fault(one) if next(number) else "the first")
            return changed if rule_name == name else rule

        return rule_of

    return change


def without_the_first_row(name):
    """A change of `rows_of_parts`: a part lacks a row."""
    return lambda real: lambda *given: (parts := real(*given)) | {name: parts[name][1:]}


PLACES = {
    ("conversations", "sha256"): ("conversation_of", lambda real: lambda one: replace(real(one), id=f"{one.id}/other")),
    ("exercises", "sha256"): (
        "exam_exercises",
        lambda real: lambda number, seed, difficulty: real(number, 9, difficulty),
    ),
    **{
        ("filters", name): ("apply_to_files", exchanged_drop(name))
        for name in ("structure", "repetition", "language", "duplicates", "decontamination")
    },
    ("emptied traces", "sha256"): ("falls_into_share", another_seed_of("emptied")),
    **{
        ("length filters", name): ("length_rule", drops_one_more(name))
        for name in ("too long for any part", "too long for a row")
    },
    ("cut traces", "sha256"): ("falls_into_share", another_seed_of("long_context")),
    ("tokens", "everything"): ("rows_of_parts", without_the_first_row("everything")),
    ("token ids", "everything/tokens"): (
        "write_packed_rows",
        lambda real: lambda *given: real(*given[:-1], given[-1] + 1),
    ),
}
"""The first entry of curation's ladder that changes -> the function that does this part, and how it is changed."""


@pytest.mark.parametrize("entry", PLACES, ids=" ".join)
def test_a_change_at_each_place_shows_first_in_its_own_entry(entry, base, dataset, tmp_path, monkeypatch):
    """So the entries are in the order of the work, and no change hides behind an equal count."""
    name, change = PLACES[entry]
    monkeypatch.setattr(data_curation, name, change(getattr(data_curation, name)))
    config = data_curation.Config(**FEW, base_checkpoint_path=base.path, output_dir=tmp_path / "changed")
    before, after = (
        json.loads((run.path / "ladder.json").read_text()) for run in (dataset, data_curation.main(config))
    )
    first = next(ours for ours, theirs in zip(before, after, strict=True) if ours != theirs)
    assert (first["rung"], first["name"]) == entry


def test_the_rungs_of_curation_follow_the_order_of_events(dataset):
    ladder = json.loads((dataset.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "conversations", "exercises", "filters", "emptied traces", "length filters", "cut traces",
        "tokens", "token ids",
    ]  # fmt: skip
    filters = [entry["name"] for entry in ladder if entry["rung"] in ("filters", "length filters")]
    assert filters == list(dataset.filters)


def test_nothing_but_the_dataset_is_left(dataset):
    files = {f"{name}.parquet" for name in ("validation", "exercises")} | {"samples.md", "ladder.json", "metadata.json"}
    assert {path.name for path in dataset.path.iterdir()} == {*PARTS, *files, "tokenizer"}


def sources_of(directory, number):
    """Files of conversations in the released columns, with a row of each that cannot be read."""
    for name in ("a", "b"):
        rows = [
            {"uuid": f"{name}{index}", "category": ("math", "tool_calling", "long_context")[index % 3],
             "messages": [{"role": "user", "content": f"What is {index} + {index % 7}?"},
                          {"role": "assistant", "content": f"<think>\n{index} and {index % 7}\n</think>\n\n{name}"}]}
            for index in range(number)
        ]  # fmt: skip
        text = "\n".join(map(json.dumps, [*rows, {"uuid": f"{name}/bad"}]))
        (directory / f"{name}.jsonl").write_text(text)
    return (str(directory / "*.jsonl"),)


OWN = {"raw_conversations": "all", "exercises_per_family": 1, "rest_share": 0.5}


def test_ray_gives_the_dataset_of_one_process(random_base_model, tmp_path):
    """On a real cluster on this machine, with a template that each of its processes renders by itself."""
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", "{{ 'Be kind. ' }}" + CHAT.template)
    own = OWN | {"sources": sources_of(tmp_path, 60), "base_checkpoint_path": str(base.path)}
    program = (
        "import ray\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "from nemotron.recipes.nano2.stage1_sft import data_curation\n"
        f"print(data_curation.main(data_curation.Config(output_dir='dataset', **{own!r})).digest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"DAFT_RUNNER": "ray"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    native = data_curation.main(data_curation.Config(output_dir=tmp_path / "native", **own))
    assert done.stdout.split()[-1] == native.digest
    assert native.num_unreadable == 2


def configured(dataset, tmp_path, **changes):
    return training.Config(**(SMALL | changes), dataset_path=dataset.path, output_dir=tmp_path / "training")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return training.main(configured(dataset, tmp_path_factory.mktemp("run")))


def curve_of(checkpoint):
    return pq.read_table(checkpoint.curve_path).to_pylist()


PARTS = ("everything", "tools", "long_context")


def test_the_parts_are_trained_in_their_published_order_and_every_row_once(dataset, trained):
    curve = curve_of(trained)
    assert tuple(dict.fromkeys(row["phase"] for row in curve)) == PARTS
    for part in PARTS:
        rows = pq.read_table(dataset.path / part).to_pylist()
        in_loss = sum(sum(row["in_loss"][1:]) for row in rows)
        assert sum(row["tokens"] for row in curve if row["phase"] == part) == in_loss


def test_micro_batches_do_not_change_the_result(dataset, trained, tmp_path):
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
    monkeypatch.setattr("nemotron.recipes.nemotron_h.device.device_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(training, "load_checkpoint", None)
    with pytest.raises(ValueError, match=r"training needs 0\.\d GiB \(weights 0\.0, .*use .*a smaller --scale$"):
        training.main(configured(dataset, tmp_path))


def test_a_finished_run_is_not_run_again(dataset, trained, capsys):
    again = training.main(configured(dataset, trained.path.parent, resume=True))
    assert again.digest == trained.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


class Stopped(Exception):
    pass


def stop_training_at(monkeypatch, step):
    real = Run.check_finite

    def stop(run, **numbers):
        if run.step == step:
            raise Stopped
        real(run, **numbers)

    monkeypatch.setattr(Run, "check_finite", stop)


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


def test_the_replies_do_not_depend_on_their_batch_size(trained, tmp_path):
    replies = []
    for batch in (1, 64):
        config = evaluation.Config(
            max_new_tokens=12, batch_replies=batch, checkpoint_path=trained.path, output_dir=tmp_path / str(batch)
        )
        replies.append(pq.read_table(evaluation.main(config).replies_path).to_pylist())
    assert replies[0] == replies[1]


def test_a_thought_beyond_its_budget_is_counted(trained, tmp_path, monkeypatch):
    """Asked without a budget, the model writes more than one token before it ends its turn or is cut off."""
    unlimited = evaluation.Mode("budget", evaluation.Sampling(max_new_tokens=12))
    asked = [evaluation.Mode("base", unlimited.sampling, knows_format=False), unlimited]
    asked += [replace(unlimited, name="think"), replace(unlimited, name="no_think", thinking=False)]
    monkeypatch.setattr(evaluation, "modes_of", lambda config, tokenizer, **given: asked)
    config = evaluation.Config(
        thinking_budget=1, grace_tokens=0, checkpoint_path=trained.path, output_dir=tmp_path / "evaluation"
    )
    metrics = evaluation.main(config).metrics
    assert metrics["within_budget"] < 0.5
    assert metrics["num_closed_by_budget"] == 0
    assert metrics["num_exercises"] == len(FAMILIES)  # one of each


def test_evaluation_computes_in_the_precision_of_the_weights(trained, tmp_path, monkeypatch):
    """Of the base model and of the fine-tuned one."""
    loaded = []

    def noting(load):
        def noted(path, **given):
            model = load(path, **given)
            loaded.append((path.parent, model.lm_head.weight.dtype))
            return model

        return noted

    for name in ("load_checkpoint", "load_for_inference"):
        monkeypatch.setattr(evaluation, name, noting(getattr(evaluation, name)))
    results = evaluation.main(
        evaluation.Config(max_new_tokens=1, checkpoint_path=trained.path, output_dir=tmp_path / "evaluation")
    )
    base = data_curation.Dataset.load(path=trained.dataset_path).base_checkpoint_path
    assert loaded == [(trained.path, torch.float64), (base, torch.float64)]
    assert results.checkpoint_path == trained.path


def test_a_checkpoint_of_another_scale_is_refused(trained, tmp_path):
    config = evaluation.Config(scale="small", checkpoint_path=trained.path, output_dir=tmp_path / "evaluation")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        evaluation.main(config)


def test_own_conversations_in_the_released_columns_are_curated(base, tmp_path, capsys):
    rows = [
        {"uuid": str(number), "license": "CC-BY-4.0", "generator": "g", "version": "v2", "category": "math",
         "reasoning": "on" if number % 2 else "off",
         "messages": [{"role": "user", "content": f"What is {number} + 1?"},
                      {"role": "assistant", "content": (f"<think>\n{number} + 1 is what comes next\n</think>\n\n"
                                                        if number % 2 else "") + str(number + 1)}]}
        for number in range(40)
    ]  # fmt: skip
    rows.append({**rows[0], "uuid": "bad", "messages": [{"role": "wizard", "content": "Hello"}]})
    rows.append({**rows[0], "uuid": "thoughtless", "reasoning": "on"})
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
    printed = capsys.readouterr().err
    assert "unreadable: 1, the first is bad: messages[0] has the role 'wizard'" in printed
    assert "structure: 1, the first is thoughtless: messages[1] does not begin with '<think>" in printed


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
    assert done.stderr in ("", "(the reply was cut off after 8 tokens; raise --max-new-tokens)\n")


def test_the_chat_thinks_on_stderr_within_its_budget(trained):
    flags = ("--budget", "3", "--grace-tokens", "2", "--max-new-tokens", "40")
    done = chat(trained.path, *flags, text="What is 3 + 4?")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("</think>\n") == 1
    assert not done.stdout.startswith("</think>")  # the answer itself may have any text, with so little training


@pytest.mark.parametrize(
    ("arguments", "text", "sentence"),
    [
        ((), " /no_think ", "user message without text"),
        (("--max-new-tokens", "0"), "Hello", "max_new_tokens=0 must be at least 1"),
    ],
)
def test_the_chat_refuses_in_one_sentence(trained, arguments, text, sentence):
    done = chat(trained.path, *arguments, text=text)
    assert done.returncode == 2
    assert not done.stdout
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("inner", ["", "model"])
def test_the_chat_with_a_base_model_names_the_command_that_fine_tunes_it(base, inner):
    with pytest.raises(
        ValueError, match=r"has no chat template, so it is a base model.*nemotron\.recipes\.nano2\.stage1"
    ):
        load_chat(CHAT, ChatConfig(base.path / inner))


@pytest.mark.parametrize("name", ["", "nothing"])
def test_the_chat_without_a_checkpoint_names_the_command_that_makes_one(tmp_path, name):
    sentence = r"has no checkpoint; make one with python -m nemotron\.recipes\.nano2\.stage1_sft"
    with pytest.raises(ValueError, match=sentence):
        load_chat(CHAT, ChatConfig(tmp_path / name))


def test_the_chat_begins_with_the_system_message(trained):
    talk = load_chat(CHAT, ChatConfig(trained.path, system="Be brief."))
    assert talk.messages == [{"role": "system", "content": "Be brief."}]


def test_a_tokenizer_of_another_model_is_refused(trained, tmp_path):
    shutil.copytree(trained.checkpoint_path, tmp_path / "model")
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 500), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", tmp_path / "model")
    with pytest.raises(ValueError, match=r"has a token with id 499, but its model has 400 tokens; copy the"):
        load_chat(CHAT, ChatConfig(tmp_path))


def test_the_chat_on_a_missing_device_is_refused(trained):
    with pytest.raises(ValueError, match="device=toaster is not supported"):
        load_chat(CHAT, ChatConfig(trained.path, device="toaster"))


def test_a_thought_that_is_cut_off_is_closed_in_the_history(trained):
    talk = load_chat(CHAT, ChatConfig(trained.path, max_new_tokens=2))
    list(talk.reply("What is 3 + 4?"))
    assert talk.messages[-1]["content"].endswith("\n</think>")


def test_a_base_model_that_brings_a_template_is_trained_with_it_and_keeps_it(random_base_model, tmp_path):
    template = "{{ 'Be kind. ' }}" + CHAT.template
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", template)
    config = data_curation.Config(
        **FEW, sequence_length=400, base_checkpoint_path=base.path, output_dir=tmp_path / "data"
    )
    dataset = data_curation.main(config)
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path / "tokenizer.json"))
    rows = pq.read_table(dataset.path / "tools").to_pylist()
    for row in rows:
        text = tokenizer.decode(row["tokens"], skip_special_tokens=False)
        assert text.startswith("Be kind. <SPECIAL_10>System\n")
        learned = [token for token, counts in zip(row["tokens"], row["in_loss"], strict=True) if counts]
        assert text.endswith(tokenizer.decode(learned, skip_special_tokens=False) + "\n")
        assert learned[-1] == 12
    trained = training.main(configured(dataset, tmp_path))
    for directory in (dataset.tokenizer_path, trained.checkpoint_path):
        assert (directory / "chat_template.jinja").read_text(encoding="utf-8") == template
    talk = load_chat(CHAT, ChatConfig(trained.path))
    assert talk.format.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True).startswith("Be kind. <")
