"""The parts of the pretraining step; tests/pipelines/test_training_runs.py trains on a small made-up dataset."""

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.nano2.sizes import resolved
from nemotron.recipes.nano2.stage0_pretrain import training
from nemotron.recipes.nano2.stage0_pretrain.training import Config, Phase


def test_learning_rate_warms_up_holds_decays_and_ends_constant():
    config = Config(
        num_steps=100, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.1, decay_frac=0.2,
        long_context_learning_rate=0.05,
    )  # fmt: skip
    rates = [training.learning_rate_at(step, config) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[79] == 1.0  # the last step before the decay
    assert rates[84] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(5 / 20)), rel=1e-15)
    assert rates[99] == pytest.approx(0.1, rel=1e-15)
    assert rates[100:] == [0.05] * 5


def test_full_scale_decays_over_the_published_last_3_6_of_20_trillion_tokens():
    config = resolved(Config(scale="full"), "stage0_pretrain", "training")
    tokens_per_step = 768 * 8192
    last_stable = max(s for s in range(0, config.num_steps, 1000) if training.learning_rate_at(s, config) == 4.5e-4)
    assert last_stable * tokens_per_step == pytest.approx(16.4e12, rel=1e-3)
    assert training.learning_rate_at(config.num_steps - 1, config) == pytest.approx(4.5e-6, rel=1e-12)


def test_loss_compares_each_position_with_the_next_token():
    class Predicts(torch.nn.Module):
        """Gives all probability to one more than the token it reads."""

        def forward(self, tokens):
            return torch.nn.functional.one_hot(tokens + 1, 10) * 100.0

    assert training.loss_sum(Predicts(), torch.tensor([[3, 4, 5, 6]])).item() < 1e-30
    assert training.loss_sum(Predicts(), torch.tensor([[3, 3, 3, 3]])).item() == pytest.approx(300.0)


@pytest.fixture
def sequences_path(tmp_path):
    rows = [list(range(10 * i, 10 * i + 9)) for i in range(10)]
    path = tmp_path / "sequences.parquet"
    pq.write_table(pa.table({"tokens": pa.array(rows, pa.list_(pa.int32()))}), path, row_group_size=3)
    return path


def test_batches_come_in_file_order_whatever_the_row_groups(sequences_path):
    phase = Phase("p", num_steps=2, batch_sequences=4, micro_batch_sequences=4, sequence_length=8, cut_to=8)
    batches = list(training.read_batches(sequences_path, phase, first_step=0))
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 10, 20, 30], [40, 50, 60, 70]]
    assert batches[0].shape == (4, 9)


def test_a_resumed_phase_starts_at_the_step_it_stopped_before(sequences_path):
    phase = Phase("p", num_steps=3, batch_sequences=3, micro_batch_sequences=3, sequence_length=8, cut_to=8)
    whole = list(training.read_batches(sequences_path, phase, first_step=0))
    rest = list(training.read_batches(sequences_path, phase, first_step=2))
    assert len(rest) == 1
    assert torch.equal(rest[0], whole[2])


def test_cut_sequences_predict_the_same_tokens(sequences_path):
    phase = Phase("p", num_steps=1, batch_sequences=2, micro_batch_sequences=2, sequence_length=8, cut_to=8)
    whole = next(training.read_batches(sequences_path, phase, 0))
    cut = next(training.read_batches(sequences_path, replace(phase, cut_to=4), 0))
    assert cut.shape == (4, 5)
    assert cut[:, 1:].flatten().tolist() == whole[:, 1:].flatten().tolist()


@pytest.mark.parametrize(
    "name", ["num_steps", "batch_sequences", "learning_rate", "checkpoint_every_steps", "max_grad_norm"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be greater than 0 and finite"):
        Config(**{name: value})
