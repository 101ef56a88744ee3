"""Whole stages that start from a published model: with its shape, tokenizer and template; its origin is known."""

import pytest

from nemotron.recipes.nano2.stage1_sft import __main__ as stage1_sft
from nemotron.recipes.nemotron_h.checkpoint import load_config


@pytest.fixture(scope="module")
def tuned(whole_published_model, tmp_path_factory):
    """Stage 1 from the published model."""
    config = stage1_sft.Config(
        output_dir=tmp_path_factory.mktemp("sft") / "stage1_sft", base_checkpoint_path=whole_published_model
    )
    config.data.raw_conversations = 4_000
    config.data.exercises_per_family = 1
    config.data.rest_share = 0.3
    config.train.batch_sequences = 4
    config.train.unpacked_batch_sequences = 8
    config.train.warmup_steps = 2
    config.eval.max_new_tokens = 16
    return stage1_sft.main(config)


def test_fine_tuning_starts_from_a_published_model(tuned, whole_published_model):
    shape = load_config(tuned["checkpoint"].checkpoint_path)
    assert shape == load_config(whole_published_model)
