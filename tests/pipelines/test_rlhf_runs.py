"""Whole runs of stage 4 on a random model and few pairs: resuming, refusing, hacking, merging, users' preferences."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.chat.program import Config as ChatConfig
from nemotron.recipes.chat.program import load_chat
from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage4_rlhf import data_curation, evaluation, merging, reward_model, training
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_tensors, save_tensors
from nemotron.recipes.nemotron_h.scorer import HEAD_FILE, load_scorer, scores_of
from nemotron.recipes.scoring import judge
from nemotron.recipes.training.run import Checkpoint, Run

FEW = {
    "raw_pairs": 3_000,
    "raw_prompts": 1_000,
    "sampled_share": 0.2,
    "max_new_tokens": 10,
    "held_out_pairs": 8,
    "held_out_prompts": 2,
    "validation_prompts": 2,
    "validation_exercises": 1,
    "exercises_per_family": 1,
}
OF_GENERATED_PAIRS = ("sampled_share", "max_new_tokens", "held_out_pairs")
PAIRS = {"pairs_per_step": 8, "micro_batch_pairs": 8, "checkpoint_every_steps": 2}
SMALL = {
    "prompts_per_step": 4,
    "replies_per_prompt": 3,
    "max_new_tokens": 10,
    "hacking_window": 1,
    "checkpoint_every_steps": 2,
}


def ends_soon(model):
    """Random weights that end most replies within a few tokens, so that some have the right form."""
    with torch.no_grad():
        model.backbone.embeddings.weight[:, 0] = 3.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[CHAT.stop_ids[-1], 0] = 2.0


@pytest.fixture(scope="module")
def base(random_base_model, tmp_path_factory):
    """A model of random weights that has the chat template, in place of that of the stage before."""
    return random_base_model(tmp_path_factory.mktemp("base"), CHAT.template, ends_soon)


def curated(base, tmp_path, **changes):
    few = {name: value for name, value in FEW.items() if "sources" not in changes or name not in OF_GENERATED_PAIRS}
    given = few | {"base_checkpoint_path": base.path, "output_dir": tmp_path / "data_curation"}
    return data_curation.Config(**(given | changes))


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory):
    return data_curation.main(curated(base, tmp_path_factory.mktemp("curated")))


def scored(dataset, tmp_path, **changes):
    return reward_model.Config(**(PAIRS | changes), dataset_path=dataset.path, output_dir=tmp_path / "reward_model")


@pytest.fixture(scope="module")
def rewarding(dataset, tmp_path_factory):
    return reward_model.main(scored(dataset, tmp_path_factory.mktemp("scored")))


def configured(rewarding, tmp_path, **changes):
    return training.Config(**(SMALL | changes), rewardmodel_path=rewarding.path, output_dir=tmp_path / "training")


@pytest.fixture(scope="module")
def trained(rewarding, tmp_path_factory):
    return training.main(configured(rewarding, tmp_path_factory.mktemp("run")))


def merge_config(policy, tmp_path, **changes):
    given = {"weights": (0.5,), "max_new_tokens": 10} | changes
    return merging.Config(**given, checkpoint_path=policy.path, output_dir=tmp_path / "merging")


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    return merging.main(merge_config(trained, tmp_path_factory.mktemp("merged"), weights=(0.25, 0.5)))


def rows(path):
    return pq.read_table(path).to_pylist()


def curve_of(run):
    return rows(run.curve_path)


def table_of(run, name):
    return rows(run.tables_path / f"{name}.parquet")


# --- the Dataset ---


def test_the_rungs_of_curation_follow_the_order_of_events(dataset):
    ladder = json.loads((dataset.path / "ladder.json").read_text())
    assert list(dict.fromkeys(entry["rung"] for entry in ladder)) == [
        "config", "inputs", "exercises", "tries", "conversations", "rewards", "filters", "prompts",
    ]  # fmt: skip
    assert list(dataset.filters) == ["language", "equal replies", "no preference", "length"]


PLACES = {
    ("exercises", "held_out"): ("conversations", lambda real: lambda n, config, *more: real(n + 1, config, *more)),
    ("tries", "tokens"): (
        "draw_replies",
        lambda real: lambda model, prompts, size, sampling, purpose: real(model, prompts, size, sampling, ("other",)),
    ),
    ("conversations", "replies"): ("seeded_random", lambda real: lambda *parts: real("other", *parts)),
    ("rewards", "labels"): ("label_of", lambda real: lambda difference: -real(difference)),
    ("filters", "no preference"): (
        "preference_rules",
        lambda real: (
            lambda lengths, capacity: [
                replace(rule, fault=lambda pair: None) if rule.name == "no preference" else rule
                for rule in real(lengths, capacity)
            ]
        ),
    ),
    ("prompts", "pairs"): ("digest_of", lambda real: lambda *parts: real("another", *parts)),
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


def test_the_chosen_reply_is_read_as_the_chosen_one(dataset):
    """Its tokens end with its text, and the two rows of a pair begin with the same context."""
    tokenizer = load_chat(CHAT, ChatConfig(dataset.base_checkpoint_path)).tokenizer
    for pair in rows(dataset.pairs_path):
        for name in ("chosen", "rejected"):
            text = tokenizer.decode(pair[f"{name}_tokens"], skip_special_tokens=False)
            assert text.endswith(f"<SPECIAL_11>Assistant\n<think></think>{pair[name]}\n<SPECIAL_12>\n")
        assert pair["chosen"] != pair["rejected"]


def test_no_conversation_is_in_both_validation_and_evaluation(dataset):
    held_out, validation = (rows(path) for path in (dataset.held_out_path, dataset.validation_path))
    assert len(held_out) == 2
    assert [row["family"] for row in validation] == ["conversation"] * 2 + ["math", "code", "science"]
    assert not {row["canonical"] for row in held_out} & {row["canonical"] for row in validation}


# --- the reward model ---


def test_every_pair_is_used_once_in_the_order_of_the_file(dataset, rewarding):
    curve = curve_of(rewarding)
    assert len(curve) == -(-dataset.num_pairs // 8)
    assert sum(row["tokens"] for row in curve) == dataset.num_pairs
    assert curve[-1]["learning_rate"] < curve[1]["learning_rate"]


def test_micro_batches_do_not_change_the_reward_model(dataset, rewarding, tmp_path):
    other = reward_model.main(scored(dataset, tmp_path, micro_batch_pairs=3))
    for ours, theirs in zip(curve_of(other), curve_of(rewarding), strict=True):
        assert ours["batch"] == theirs["batch"]
        for name in ("loss", "accuracy", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-8, abs=1e-12), name


def test_only_backbone_and_head_are_trained(base, rewarding):
    before, after = (
        load_tensors(path / "model.safetensors") for path in (base.checkpoint_path, rewarding.reward_model_path)
    )
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert not [name for name in before if name != "lm_head.weight" and torch.equal(before[name], after[name])]


class Stopped(Exception):
    pass


def stop_after_a_state(monkeypatch, step):
    real = Run.keep_state

    def keep(run):
        real(run)
        if run.step == step:
            raise Stopped

    monkeypatch.setattr(Run, "keep_state", keep)


def stop_before_an_update(monkeypatch, step):
    real = Run.check_finite

    def check(run, **numbers):
        if run.step == step and "loss" not in numbers:
            raise Stopped
        real(run, **numbers)

    monkeypatch.setattr(Run, "check_finite", check)


@pytest.mark.parametrize(("stop", "step"), [(stop_after_a_state, 2), (stop_before_an_update, 3)])
def test_a_stopped_reward_model_resumes_to_the_same_bits(dataset, rewarding, tmp_path, monkeypatch, stop, step):
    config = scored(dataset, tmp_path)
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises(Stopped):
            reward_model.main(config)
    with pytest.raises(ValueError, match=r"holds an unfinished run at step-0000\d+; add --resume"):
        reward_model.main(config)
    assert reward_model.main(replace(config, resume=True)).digest == rewarding.digest


def test_a_finished_reward_model_is_not_trained_again(dataset, rewarding, capsys):
    again = reward_model.main(scored(dataset, rewarding.path.parent, resume=True))
    assert again.digest == rewarding.digest
    assert "is finished; nothing to resume" in capsys.readouterr().err


# --- training ---


@pytest.mark.parametrize(("stop", "step"), [(stop_after_a_state, 2), (stop_before_an_update, 1)])
def test_a_stopped_policy_resumes_to_the_same_bits(rewarding, trained, tmp_path, monkeypatch, stop, step):
    config = configured(rewarding, tmp_path)
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises(Stopped):
            training.main(config)
    resumed = training.main(replace(config, resume=True))
    assert resumed.digest == trained.digest


def test_a_policy_does_not_resume_with_another_reward_model(dataset, rewarding, tmp_path, monkeypatch):
    config = configured(rewarding, tmp_path)
    with monkeypatch.context() as patch:
        stop_after_a_state(patch, 2)
        with pytest.raises(Stopped):
            training.main(config)
    other = reward_model.main(scored(dataset, tmp_path, seed=7))
    with pytest.raises(ValueError, match=r"was trained on a dataset with digest .*resume with that dataset, or delete"):
        training.main(replace(config, rewardmodel_path=other.path, resume=True))


def test_half_of_the_rollouts_of_every_step_think(dataset, trained):
    prompts = rows(dataset.prompts_path)
    assert [row["thinking"] for row in prompts] == [place % 2 == 1 for place in range(len(prompts))]
    assert trained.num_steps == -(-len(prompts) // 4)


def test_the_reward_is_the_score_and_the_rubric_is_beside_it(trained):
    rewards = table_of(trained, "rewards")
    parts = {row["part"] for row in rewards}
    assert parts == {"all", "form", "rubric", "helpful", "correct", "concise", "language", "tone"}
    for row in curve_of(trained):
        (rubric,) = (one["mean"] for one in rewards if (one["step"], one["part"]) == (row["step"], "rubric"))
        assert row["rubric"] == pytest.approx(rubric, rel=1e-12)
        (score,) = (one["mean"] for one in rewards if (one["step"], one["part"]) == (row["step"], "all"))
        assert row["reward"] == pytest.approx(score, rel=1e-12)
        assert row["reward"] != row["rubric"]
        assert row["kl"] > 0


HACKED = {"max_rubric_fall": 0.0, "max_length_growth": 0.0, "max_repetition_growth": 0.0}


@pytest.fixture
def falling(monkeypatch):
    """A rubric that falls at every step, under a reward that rises."""
    numbers = iter(range(1000))
    monkeypatch.setattr(
        training, "truth", lambda *given: {"rubric": 1 - next(numbers) / 100, "answer_words": 1.0, "repetition": 0.0}
    )
    real = training.measured
    rewards = iter(range(1000))
    monkeypatch.setattr(training, "measured", lambda *given: {**real(*given), "reward": float(next(rewards))})


def test_reward_hacking_is_a_warning_at_every_step_that_shows_it(rewarding, tmp_path, falling, capsys):
    found = training.main(configured(rewarding, tmp_path, **HACKED))
    said = capsys.readouterr().err
    assert said.count("warning: reward hacking? step ") == found.num_steps - 1
    assert "step 2: the reward rose from 0.000 to 1.000, and the rubric fell from 1.000 to 0.990" in said


def test_reward_hacking_stops_the_run_if_the_config_says_so(rewarding, tmp_path, falling):
    sentence = r"^step 2: the reward rose from .*, and the rubric fell from .*; raise --kl-weight, use more pair"
    with pytest.raises(ValueError, match=sentence):
        training.main(configured(rewarding, tmp_path, **HACKED, on_hacking="stop"))
    assert (tmp_path / "training.incomplete" / "training_state" / "step-00000002").is_dir()


def test_a_run_without_hacking_says_nothing(rewarding, tmp_path, capsys):
    training.main(
        configured(rewarding, tmp_path, max_rubric_fall=1.0, max_length_growth=9.0, max_repetition_growth=1.0)
    )
    assert "hacking" not in capsys.readouterr().err


def test_a_run_of_too_few_steps_to_check_hacking_says_so(rewarding, tmp_path, capsys):
    found = training.main(configured(rewarding, tmp_path, hacking_window=50, on_hacking="stop"))
    said = capsys.readouterr().err
    assert said.count("hacking") == 3  # in this sentence alone
    assert (
        f"reward hacking was not checked: {found.num_steps} steps are fewer than two windows of hacking_window=50"
        in said
    )


def broken_copy(rewarding, path, value):
    """The reward model with a head of this value."""
    shutil.copytree(rewarding.path, path)
    file = path / "model" / HEAD_FILE
    tensors = load_tensors(file)
    save_tensors({name: torch.full_like(tensor, value) for name, tensor in tensors.items()}, file)
    return reward_model.RewardModel._from_metadata(path, rewarding.saved).model_copy(update={"path": path}).save()


def test_a_reward_that_is_not_finite_stops_the_run_with_its_prompt(dataset, rewarding, tmp_path):
    other = broken_copy(rewarding, tmp_path / "broken", 1e308)
    sentence = r"^the reward model gives the reply '.*' to the prompt sft/conversation/\d+/1 the score -?(inf|nan); "
    with pytest.raises(ValueError, match=sentence):
        training.main(configured(other, tmp_path))


def test_a_rubric_that_fails_is_counted_at_every_step_and_training_goes_on(
    rewarding, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(judge, "rubric_parts", lambda *given: 1 / 0)
    found = training.main(configured(rewarding, tmp_path))
    assert {(row["verifier_faults"], row["rubric"]) for row in curve_of(found)} == {(1, 0)}
    assert [row["reward"] for row in curve_of(found)] == [row["reward"] for row in curve_of(trained)]
    said = capsys.readouterr().err
    assert "the rubric failed on a reply to sft/conversation/" in said
    assert "ZeroDivisionError: division by zero" in said


# --- policies that learn nothing ---


def prefers(*tokens):
    """A change of a model: it gives these tokens nearly all probability, whatever it reads."""

    def change(model):
        with torch.no_grad():
            model.backbone.embeddings.weight[:, 0] = 100.0
            model.lm_head.weight[:, 0] = -10.0
            model.lm_head.weight[list(tokens), 0] = 10.0

    return change


SILENT = {"only padding": prefers(0), "never ends": prefers(*range(20, 400))}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
def test_a_policy_whose_replies_have_no_form_is_refused_by_curation(change, random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    other = random_base_model(tmp_path / "base", CHAT.template, change)
    sentence = r"^none of \d+ replies of the policy ends its turn in the right form, for example '.*'; train the stage"
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(other, tmp_path))
    assert not (tmp_path / "data_curation").exists()


def test_a_policy_that_emits_only_padding_is_reported_at_every_step(dataset, rewarding, tmp_path, monkeypatch, capsys):
    """It may become so in training, long after curation. Nothing breaks, and nothing is learned."""
    real = training.load_checkpoint

    def load(path, **given):
        model = real(path, **given)
        prefers(0)(model)
        return model

    monkeypatch.setattr(training, "load_checkpoint", load)
    found = training.main(configured(rewarding, tmp_path))
    assert {(row["replies_cut"], row["groups_with_signal"], row["rubric"]) for row in curve_of(found)} == {(1, 0, 0)}
    said = capsys.readouterr().err
    for step in range(1, found.num_steps + 1):
        assert f"step {step}: the replies to each prompt score the same, so nothing is learned from the rewards" in said


# --- merging ---


def test_the_merge_lies_between_its_parents_and_the_chat_loads_it(base, trained, merged):
    a = merged.metrics["a"]
    first, second, found = (load_tensors(one.checkpoint_path / "model.safetensors") for one in (base, trained, merged))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (1 - a) * first[name] + a * second[name], rtol=1e-12, atol=1e-15)
    assert not torch.equal(found["lm_head.weight"], first["lm_head.weight"])
    assert merged.training_state_path is None
    talk = load_chat(CHAT, ChatConfig(merged.path, max_new_tokens=3, temperature=0.0))
    assert "".join(text for text, _ in talk.reply("Hi")).strip() is not None


def test_the_sweep_has_the_parents_and_every_weight_in_order(merged):
    sweep = table_of(merged, "sweep")
    assert [row["a"] for row in sweep] == [0.0, 0.25, 0.5, 1.0]
    text = (merged.path / "sweep.md").read_text()
    assert text.count("chosen**") == 1
    assert merged.metrics["a"] in (0.25, 0.5)


def test_parents_with_other_tokenizers_are_refused(base, trained, tmp_path):
    other = Checkpoint.load(path=shutil.copytree(trained.path, tmp_path / "policy"))
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 390), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", other.checkpoint_path)
    with pytest.raises(ValueError, match=r"have different tokenizers; merge only checkpoints that read the same"):
        merging.main(merge_config(other.model_copy().save(), tmp_path))
    assert not (tmp_path / "merging").exists()


def test_parents_of_another_shape_are_refused(trained, tmp_path):
    other = Checkpoint.load(path=shutil.copytree(trained.path, tmp_path / "policy"))
    file = other.checkpoint_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] * 2}))
    with pytest.raises(ValueError, match=r"intermediate_size is \d+ in .* and \d+ in .*; only models of the same"):
        merging.main(merge_config(other.model_copy().save(), tmp_path))


@pytest.mark.parametrize("a", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_of_0_to_1_is_refused(a):
    with pytest.raises(ValueError, match=rf"^weights.*={a}: Input should be "):
        merging.Config(weights=(a,))


def test_the_policy_is_merged_only_at_its_own_scale(trained, tmp_path):
    config = merging.Config(scale="small", checkpoint_path=trained.path, output_dir=tmp_path / "merging")
    with pytest.raises(ValueError, match=r"scale=small, but .* was trained at tiny; use --scale tiny"):
        merging.main(config)


# --- evaluation, and the same bytes ---


def test_the_same_run_gives_the_same_bytes(base, dataset, trained, merged, tmp_path):
    assert data_curation.main(curated(base, tmp_path)).digest == dataset.digest
    assert merging.main(merge_config(trained, tmp_path, weights=(0.25, 0.5), batch_replies=3)).digest == merged.digest
    results = [
        evaluation.main(
            evaluation.Config(
                max_new_tokens=8, batch_replies=batch, checkpoint_path=merged.path, output_dir=tmp_path / str(batch)
            )
        )
        for batch in (128, 3)
    ]
    for name in ("table_path", "plot_path", "training_plot_path", "frontier_plot_path", "replies_path"):
        assert getattr(results[0], name).read_bytes() == getattr(results[1], name).read_bytes()


# --- what is refused ---


def test_a_missing_model_is_refused_with_the_command_that_makes_it(tmp_path):
    command = r"make one with python -m nemotron\.recipes\.nano2\.stage3_dpo --scale small, or name one"
    with pytest.raises(ValueError, match=command):
        data_curation.main(
            data_curation.Config(scale="small", base_checkpoint_path=tmp_path / "no", output_dir=tmp_path / "out")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_another_tokenizer_is_refused(dataset, random_base_model, tmp_path):
    (tmp_path / "base").mkdir()
    base = random_base_model(tmp_path / "base", CHAT.template)
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 390), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", base.checkpoint_path)
    shutil.copytree(dataset.path, tmp_path / "data")
    other = data_curation.Dataset.load(path=tmp_path / "data")
    other = other.model_copy(update={"base_checkpoint_path": base.model_copy().save().path}).save()
    with pytest.raises(ValueError, match=r"differs from .*, so the data has the token ids of another model; curate"):
        reward_model.main(scored(other, tmp_path))


def test_a_length_that_no_pair_has_is_refused_with_its_flag(base, tmp_path):
    with pytest.raises(ValueError, match=r"'length' leaves none of \d+ items.*raise --max-pair-tokens"):
        data_curation.main(curated(base, tmp_path, max_pair_tokens=1))


def test_held_out_pairs_with_nothing_but_noise_are_refused(base, tmp_path):
    sentence = r"^the labels of all \d+ held-out pairs are turned around, so nothing shows .*; lower --noise-share"
    with pytest.raises(ValueError, match=sentence):
        data_curation.main(curated(base, tmp_path, noise_share=1.0))
    assert not (tmp_path / "data_curation").exists()


# --- the user's preferences ---


def preference_row(number, **changes):
    """All columns of nvidia/HelpSteer3, subset preference."""
    given = {
        "domain": "general",
        "language": "english",
        "context": [{"role": "user", "content": f"Say something about the number {number}."}],
        "response1": f"{number} is a number.",
        "response2": f"I do not like {number}, and I will not say why.",
        "overall_preference": (-2, 2, 3, -1)[number % 4],
        "individual_preference": [{"score": -2, "reasoning": "", "feedback1": "", "feedback2": ""}],
    }
    return given | changes


def own_pairs(path, *given):
    path.write_text("\n".join(map(json.dumps, given)))
    return (str(path),)


def test_own_preferences_are_curated_scored_and_trained_on(base, tmp_path, capsys):
    given = [preference_row(number) for number in range(60)]
    given += [
        preference_row(100, language="chinese", domain="multilingual"),
        preference_row(101, overall_preference=0),
        preference_row(102, response2="102 is a number."),
        preference_row(103, overall_preference=9),
    ]
    sources = own_pairs(tmp_path / "own.jsonl", *given)
    dataset = data_curation.main(curated(base, tmp_path, sources=sources, raw_pairs="all", raw_prompts=1_200))
    dropped = {name: report.num_dropped for name, report in dataset.filters.items()}
    assert dropped == {"language": 1, "equal replies": 1, "no preference": 1, "length": 0}
    assert dataset.num_unreadable == 1
    assert "'overall_preference' is 9" in capsys.readouterr().err
    assert dataset.num_pairs + len(rows(dataset.held_out_pairs_path)) == 60
    assert dataset.num_prompts == 12
    assert dataset.noise_share == 0
    contexts = [{row["context"] for row in rows(path)} for path in (dataset.pairs_path, dataset.held_out_pairs_path)]
    assert not contexts[0] & contexts[1]
    rewarding = reward_model.main(scored(dataset, tmp_path))
    trained = training.main(configured(rewarding, tmp_path))
    parts = {row["part"] for row in table_of(trained, "rewards")}
    assert parts == {"all", "form", "rubric", "concise", "language", "tone"}


def test_pairs_whose_replies_are_equal_leave_nothing(base, tmp_path):
    given = [preference_row(number, response2=f"{number} is a number.") for number in range(3)]
    sources = own_pairs(tmp_path / "own.jsonl", *given)
    with pytest.raises(ValueError, match=r"^the filter 'equal replies' leaves none of 3 items, for example .*'chosen"):
        data_curation.main(curated(base, tmp_path, sources=sources))
    assert not (tmp_path / "data_curation").exists()


def test_pairs_of_which_none_is_held_out_are_refused(base, tmp_path):
    sources = own_pairs(tmp_path / "own.jsonl", preference_row(1), preference_row(2))
    with pytest.raises(ValueError, match=r"^of 2 pairs 2 are for training and 0 held out, by their contexts; give"):
        data_curation.main(curated(base, tmp_path, sources=sources))


def test_all_pairs_of_no_source_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"^raw_pairs=all needs --sources, because conversations have no end"):
        data_curation.main(curated(base, tmp_path, raw_pairs="all"))


def test_the_reward_model_that_was_written_gives_the_scores_that_were_recorded(dataset, rewarding):
    scorer = load_scorer(rewarding.reward_model_path)
    pairs, recorded = rows(dataset.held_out_pairs_path), rows(rewarding.held_out_scores_path)
    for name in ("chosen", "rejected"):
        found = scores_of(scorer, [pair[f"{name}_tokens"] for pair in pairs], batch_rows=4)
        expected = torch.tensor([row[name] for row in recorded], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_policy_is_loaded_from_its_checkpoint(trained):
    assert load_checkpoint(trained.checkpoint_path).config.vocab_size == 400
