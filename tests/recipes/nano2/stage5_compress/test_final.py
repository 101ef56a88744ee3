"""The final stages of the published chain, run once on the distilled model of the stage, at the smallest sizes."""

import json
import re
from dataclasses import fields, replace
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
import torch

from nemotron import SCALES
from nemotron.config import flag_of
from nemotron.directory import working_name
from nemotron.recipes.nano2.stage2_rlvr.data_curation import Dataset as PromptDataset
from nemotron.recipes.nano2.stage3_dpo.data_curation import Dataset as TaskDataset
from nemotron.recipes.nano2.stage4_rlhf.data_curation import Dataset as PairDataset
from nemotron.recipes.nano2.stage4_rlhf.reward_model import RewardModel
from nemotron.recipes.nano2.stage5_compress import final
from nemotron.recipes.nano2.stage5_compress.data_curation import Dataset
from nemotron.recipes.nano2.stage5_compress.final import LINKS, Config, FinalStages, links_of
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, load_config
from nemotron.recipes.training.run import Checkpoint, Run

SMALLEST = {"tool_tasks": 600, "preference_steps": 1, "instruction_prompts": 800, "chat_pairs": 1200,
            "chat_prompts": 400}  # fmt: skip


@pytest.fixture(scope="module")
def chain(stage5, tmp_path_factory):
    """The Config of a finished chain from the distilled model, and what it made."""
    directory = tmp_path_factory.mktemp("final")
    config = Config(**SMALLEST, checkpoint_path=stage5.artifacts["control"].path, output_dir=directory / "final")
    return config, final.main(config)


def link(chain, name):
    """The directory of a link."""
    return chain[0].output_dir.with_name("final_links") / name


def test_every_link_reads_what_the_one_before_wrote(chain, stage5):
    """From the merge back to the distilled model, by the paths that each artifact records."""
    _, made = chain
    merged = Checkpoint.load(made.checkpoint_path)
    policy = Checkpoint.load(merged.dataset_path)
    pairs = PairDataset.load(RewardModel.load(policy.dataset_path).dataset_path)
    restored = pairs.base()
    rows = Dataset.load(restored.dataset_path)
    following = Checkpoint.load(rows.student_path)
    preferring = PromptDataset.load(following.dataset_path).base()
    distilled = TaskDataset.load(preferring.dataset_path).base()
    assert distilled.digest == stage5.checkpoint.digest
    found = [merged, policy, restored, following, preferring]
    assert [one.path for one in found] == [
        link(chain, name) for name in ("merging", "rlhf", "distillation", "grpo", "dpo")
    ]
    assert rows.base().digest == stage5.dataset.base().digest  # the teacher of the long distillation
    assert made.given_path == stage5.artifacts["control"].path


def test_every_model_of_the_chain_has_the_shape_of_the_distilled_one(chain, stage5):
    shape = load_config(stage5.checkpoint.checkpoint_path)
    assert shape != load_config(stage5.dataset.base().checkpoint_path)
    for name in ("dpo", "grpo", "distillation", "rlhf", "merging"):
        assert load_config(Checkpoint.load(link(chain, name)).checkpoint_path) == shape


def test_every_training_starts_with_the_weights_of_the_one_before(chain, stage5):
    """By the fingerprints in the ladders: the first weights of a link are the last ones of the link before."""

    def weights(directory, rung):
        ladder = json.loads((directory / "ladder.json").read_text())
        return [entry["value"] for entry in ladder if entry["rung"] == rung]

    order = [stage5.checkpoint.path, *(link(chain, name) for name in ("dpo", "grpo", "distillation", "rlhf"))]
    for before, after in pairwise(order):
        assert weights(before, "final weights") == weights(after, "initial weights") != weights(after, "final weights")


def test_the_merge_is_the_mean_of_the_last_two(chain):
    first, second, merged = (
        load_checkpoint(Checkpoint.load(link(chain, name)).checkpoint_path).state_dict()
        for name in ("distillation", "rlhf", "merging")
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=0, atol=1e-12)
    assert chain[1].metrics["a"] == 0.5


def test_the_short_distillation_reads_one_part_of_long_rows_from_the_same_teacher(chain):
    rows = pq.read_table(Checkpoint.load(link(chain, "distillation")).curve_path).to_pylist()
    assert [row["phase"] for row in rows] == ["length_512"] * 4
    assert {row["learning_rate"] for row in rows} == {chain[0].distillation_learning_rate}


def test_a_second_call_runs_no_link_again(chain, capsys):
    config, made = chain
    capsys.readouterr()
    assert final.main(config).digest == made.digest
    said = capsys.readouterr().err
    assert re.findall(r"final_links \d+/10 (\w+) is current, and not run again", said) == list(LINKS)


class Stopped(Exception):
    pass


def test_an_interrupted_chain_goes_on_with_the_link_that_was_interrupted(chain, monkeypatch, capsys):
    """The short distillation stops after two of four steps. The last test of the chain: it changes the links."""
    config, _ = chain
    changed = replace(config, distillation_length=256)
    real = Run.keep_state

    def stop(run):
        run.config = replace(run.config, checkpoint_every_steps=1)
        real(run)
        if run.step == 2:
            raise Stopped

    def next_link(config) -> PairDataset:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "keep_state", stop)
        with pytest.raises(Stopped):
            final.main(changed)
    monkeypatch.setattr(final.rlhf_data, "main", next_link)
    capsys.readouterr()
    with pytest.raises(Stopped):
        final.main(changed)
    said = capsys.readouterr().err
    assert "5/10 distillation_data is current" in said
    assert "6/10 distillation runs: goes on with its unfinished run" in said
    assert "resumed at step 2" in said


# --- the Configs of the links ---


@pytest.mark.parametrize("scale", SCALES)
def test_every_link_has_the_scale_the_seed_and_the_device_and_a_directory(scale, tmp_path):
    config = Config(scale=scale, seed=7, device="cpu", output_dir=tmp_path / "end")
    links = links_of(config)
    for name, step in LINKS.items():
        one = getattr(links, name)
        assert type(one) is step.Config
        assert (one.scale, one.seed, one.output_dir) == (scale, 7, tmp_path / "end_links" / name)
        assert getattr(one, "device", "cpu") == "cpu"
        assert {getattr(one, item.name) for item in fields(one) if item.metadata.get("input")} == {None}


def test_every_link_has_less_data_than_its_stage():
    for scale in SCALES:
        links = links_of(Config(scale=scale))
        for name, number in (("dpo_data", "raw_tasks"), ("grpo_data", "raw_prompts"), ("rlhf_data", "raw_pairs"),
                             ("rlhf_data", "raw_prompts"), ("dpo", "rounds")):  # fmt: skip
            assert getattr(getattr(links, name), number) < getattr(LINKS[name].Config(scale=scale), number), name


def test_the_numbers_of_full_are_the_published_ones():
    config = Config(scale="full")
    assert config.distillation_length == 262_144
    assert config.distillation_length * config.distillation_sequences == pytest.approx(0.4e9, rel=1e-3)
    assert config.merge_weight == 0.5


def test_the_order_is_the_published_one():
    stages = ("stage3_dpo", "stage2_rlvr", "stage5_compress", "stage4_rlhf")
    assert list(dict.fromkeys(step.__name__.split(".")[3] for step in LINKS.values())) == list(stages)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_merge_weight_of_a_parent_is_refused(weight):
    with pytest.raises(ValueError, match=rf"^merge_weight={weight} is a parent; give a number between 0 and 1$"):
        Config(merge_weight=weight)


def test_an_unfinished_link_of_which_no_state_can_be_read_is_refused(tmp_path):
    config = Config(output_dir=tmp_path / "final")
    state = working_name(tmp_path / "final_links" / "rlhf") / "training_state" / "step-00000001"
    state.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"rlhf\.incomplete holds an unfinished run of which no state can be read"):
        links_of(config)


def test_the_sentences_of_a_link_name_the_flag_of_the_chain():
    """A link has no flags in any command; `resume` of the chain is that of all links."""
    links = links_of(Config(flag_prefix="chain."))
    assert {flag_of(getattr(links, name), "resume") for name in LINKS} == {"--chain.resume"}


def test_the_type_of_the_record_is_its_name():
    assert FinalStages.type_name() == "finalstages"
