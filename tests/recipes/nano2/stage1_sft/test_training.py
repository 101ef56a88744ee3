"""The loss, the batches and the schedule of fine-tuning, each against a slower or a hand-written way."""

import math
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.packing import PackedRow
from nemotron.recipes.nano2.sizes import SIZES, resolved
from nemotron.recipes.nano2.stage1_sft import training
from nemotron.recipes.nano2.stage1_sft.data_curation import ROW_COLUMNS
from nemotron.recipes.nano2.stage1_sft.training import Batch, Config, collated
from nemotron.recipes.nemotron_h.model import NemotronH, initialize


@pytest.fixture(scope="module")
def model():
    model = NemotronH(SIZES["tiny"].model, dtype=torch.float64)
    initialize(model, 0)
    return model


def row_of(*conversations):
    """A row of (token ids, marks) pairs, as curation writes it."""
    row = PackedRow()
    for tokens, in_loss in conversations:
        row.append(tokens, in_loss)
    return vars(row)


CONVERSATION = st.lists(st.tuples(st.integers(3, 511), st.booleans()), min_size=2, max_size=40).map(
    lambda pairs: ([token for token, _ in pairs], [False] + [counts for _, counts in pairs[1:]])
)


def gradients(model, batches):
    """Sum of the losses of the batches, and its gradient of every parameter."""
    model.zero_grad()
    total = sum(training.loss_sum(model, batch) for batch in batches)
    total.backward()
    return total.item(), [parameter.grad.clone() for parameter in model.parameters()]


@settings(max_examples=15)
@given(conversations=st.lists(CONVERSATION, min_size=1, max_size=4))
def test_the_packed_loss_and_its_gradient_equal_those_of_each_conversation_alone(model, conversations):
    if not any(any(in_loss) for _, in_loss in conversations):
        conversations[0][1][-1] = True
    packed, packed_gradients = gradients(model, [collated([row_of(*conversations)])])
    alone, alone_gradients = gradients(model, [collated([row_of(one)]) for one in conversations if any(one[1])])
    assert packed == pytest.approx(alone, rel=1e-10)
    for ours, theirs in zip(packed_gradients, alone_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_padding_changes_neither_loss_nor_gradient(model):
    short = row_of(([5, 6, 7], [False, True, True]))
    long = row_of((list(range(20, 60)), [False] * 40))
    padded = gradients(model, [collated([short, long])])
    alone = gradients(model, [collated([short])])
    assert padded[0] == pytest.approx(alone[0], rel=1e-12)
    for ours, theirs in zip(padded[1], alone[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_prompt_tokens_are_read_and_not_learnt(model):
    """The loss is that of the marked tokens alone, and the prompt matters to it."""
    tokens, in_loss = [5, 6, 7, 8, 9], [False, False, False, True, True]
    loss = training.loss_sum(model, collated([row_of((tokens, in_loss))])).item()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([tokens]))[0], dim=-1)
    assert loss == pytest.approx(-(logprobs[2, 8] + logprobs[3, 9]).item(), rel=1e-12)
    other = training.loss_sum(model, collated([row_of(([5, 60, 7, 8, 9], in_loss))])).item()
    assert other != pytest.approx(loss, rel=1e-6)


def test_a_token_in_a_long_answer_weighs_as_much_as_one_in_a_short_answer():
    batch = collated([row_of(([5, 6], [False, True])), row_of(([5] * 30, [False] + [True] * 29))])
    assert batch.num_in_loss == 30
    assert sum(piece.num_in_loss for piece in batch.split(1)) == 30


def test_rows_are_padded_with_a_segment_of_their_own():
    batch = collated([row_of(([5, 6], [False, True]), ([7], [False])), row_of(([8, 9, 10, 11], [False] * 4))])
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.in_loss.tolist() == [[False, True, False, False], [False] * 4]
    assert batch.segments.tolist() == [[0, 0, 1, 2], [0] * 4]


@pytest.mark.parametrize("field", ["tokens", "in_loss", "segments"])
def test_the_digest_of_a_batch_changes_with_every_tensor(field):
    batch = collated([row_of(([5, 6, 7], [False, True, True]))])
    tensor = getattr(batch, field).clone()
    tensor[0, 1] = 0 if field == "in_loss" else 1 + tensor[0, 1]
    assert replace(batch, **{field: tensor}).digest != batch.digest
    assert Batch(*(getattr(batch, name) for name in ("tokens", "in_loss", "segments"))).digest == batch.digest


@pytest.fixture
def rows_path(tmp_path):
    rows = [row_of(([10 + index] * (2 + index), [False] + [True] * (1 + index))) for index in range(7)]
    path = tmp_path / "rows.parquet"
    schema = pa.schema(list(ROW_COLUMNS.items()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    return path


def test_every_row_is_read_once_in_file_order_whatever_the_row_groups(rows_path):
    batches = list(training.read_batches(rows_path, 3, first_step=0))
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[10, 11, 12], [13, 14, 15], [16]]


def test_a_resumed_part_starts_at_the_step_it_stopped_before(rows_path):
    whole = list(training.read_batches(rows_path, 3, first_step=0))
    rest = list(training.read_batches(rows_path, 3, first_step=1))
    assert [batch.digest for batch in rest] == [batch.digest for batch in whole[1:]]


def test_the_learning_rate_warms_up_and_falls_in_a_straight_line():
    config = resolved(Config(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4), "stage1_sft", "training")
    rates = [training.learning_rate_at(step, 14, config) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1, rel=1e-15)
    falls = [before - after for before, after in pairwise(rates[3:])]
    assert falls == pytest.approx([0.09] * 10, rel=1e-12)


def test_without_warmup_the_first_step_is_just_below_the_peak():
    config = resolved(Config(learning_rate=1.0, min_learning_rate=0.0, warmup_steps=0), "stage1_sft", "training")
    assert [training.learning_rate_at(step, 4, config) for step in range(4)] == pytest.approx([0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", ["batch_sequences", "learning_rate", "checkpoint_every_steps", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be greater than 0 and finite"):
        Config(**{name: value})
