"""The parts of the pretraining step; tests/pipelines/test_training_runs.py trains on a small made-up dataset."""

import math

import pytest
import torch

from nemotron.recipes.nano2.stage0_pretrain import data_curation, training
from nemotron.recipes.nano2.stage0_pretrain.data_curation import planned_phases
from nemotron.recipes.nano2.stage0_pretrain.training import Config
from nemotron.recipes.nemotron_h.model import Linear


def test_learning_rate_warms_up_holds_decays_and_ends_constant():
    config = Config(
        warmup_steps=4, learning_rate=1.0, min_learning_rate=0.1, decay_frac=0.2, long_context_learning_rate=0.05
    )
    rates = [training.learning_rate_at(step, 100, config) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[79] == 1.0  # the last step before the decay
    assert rates[84] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(5 / 20)), rel=1e-15)
    assert rates[99] == pytest.approx(0.1, rel=1e-15)
    assert rates[100:] == [0.05] * 5


def test_full_scale_decays_over_the_published_last_3_6_of_20_trillion_tokens():
    config = Config(scale="full")
    num_steps = training.base_steps(
        training.training_phases(config, planned_phases(data_curation.Config(scale="full")))
    )
    tokens_per_step = 768 * 8192
    steps = range(0, num_steps, 1000)
    last_stable = max(step for step in steps if training.learning_rate_at(step, num_steps, config) == 4.5e-4)
    assert last_stable * tokens_per_step == pytest.approx(16.4e12, rel=1e-3)
    assert training.learning_rate_at(num_steps - 1, num_steps, config) == pytest.approx(4.5e-6, rel=1e-12)


def test_loss_compares_each_position_with_the_next_token():
    class Predicts(torch.nn.Module):
        """Gives all probability to one more than the token it reads."""

        def forward(self, tokens):
            return torch.nn.functional.one_hot(tokens + 1, 10) * 100.0

    head = Linear(10, 10)
    with torch.no_grad():
        head.weight.copy_(torch.eye(10))
    assert training.loss_sum(Predicts(), head, torch.tensor([[3, 4, 5, 6]])).item() < 1e-30
    assert training.loss_sum(Predicts(), head, torch.tensor([[3, 3, 3, 3]])).item() == pytest.approx(300.0)


def test_steps_come_from_the_dataset_and_the_batch_sizes():
    phases = planned_phases(
        data_curation.Config(num_sequences=100, batch_sequences=1, long_context_sequences=7)
    )  # 60, 30, 10 and 7
    config = Config(batch_sequences=8, long_context_batch_sequences=2, warmup_steps=0)
    chosen = training.training_phases(config, phases)
    assert [phase.num_steps for phase in chosen] == [8, 4, 2, 4]
    assert training.base_steps(chosen) == 14


def test_only_the_long_context_phase_has_the_long_context_batches():
    config = Config(
        batch_sequences=8, micro_batch_sequences=3, long_context_batch_sequences=4, long_context_micro_batch_sequences=1
    )
    chosen = training.training_phases(config, planned_phases(data_curation.Config()))
    assert [(phase.batch_sequences, phase.micro_batch_sequences) for phase in chosen] == [(8, 3)] * 3 + [(4, 1)]


def test_cut_long_context_cuts_only_the_long_rows_and_to_the_base_length():
    phases = planned_phases(data_curation.Config(sequence_length=128, long_context_length=512))
    assert [phase.cut_to for phase in training.training_phases(Config(), phases)] == [None] * 4
    cut = training.training_phases(Config(cut_long_context=True), phases)
    assert [phase.cut_to for phase in cut] == [None, None, None, 128]
    assert [phase.length for phase in cut] == [128] * 4
    assert cut[3].micro_batch_sequences == phases[3].sequence_length // 128  # as many tokens at once as uncut


def test_long_rows_that_are_not_a_multiple_of_the_base_length_cannot_be_cut():
    phases = planned_phases(data_curation.Config(sequence_length=128, long_context_length=500))
    assert len(training.training_phases(Config(), phases)) == 4
    with pytest.raises(ValueError, match="cut_long_context: 128 does not divide 500 tokens"):
        training.training_phases(Config(cut_long_context=True), phases)


def test_the_warmup_may_end_where_the_decay_begins_but_not_later():
    phases = planned_phases(data_curation.Config())  # 100 steps, the decay over the last 18
    assert len(training.training_phases(Config(warmup_steps=82), phases)) == 4
    with pytest.raises(
        ValueError,
        match=r"^warmup_steps=83 and the decay over the last 18 of 100 steps overlap; give at most 82 warmup steps$",
    ):
        training.training_phases(Config(warmup_steps=83), phases)


@pytest.mark.parametrize(
    "name",
    [
        *("batch_sequences", "micro_batch_sequences", "learning_rate", "long_context_learning_rate", "max_grad_norm"),
        *("checkpoint_every_steps", "validate_every_steps", "validation_sequences"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: Input should be (greater than 0|a finite number)"):
        Config(**{name: value})


def test_the_learning_rate_cannot_rise_in_its_decay():
    assert Config(learning_rate=0.5, min_learning_rate=0.5).min_learning_rate == 0.5
    with pytest.raises(ValueError, match=r"min_learning_rate=1.0 is above learning_rate=0.004, from which"):
        Config(min_learning_rate=1.0)
