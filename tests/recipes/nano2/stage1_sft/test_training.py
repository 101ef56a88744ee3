"""The loss, the parts and the schedule of fine-tuning, each against a slower or a hand-written way."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.curation.chats import ROW_COLUMNS
from nemotron.recipes.curation.rows import planned_phase
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage1_sft import training
from nemotron.recipes.nano2.stage1_sft.training import Config
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.training.batches import collate


@pytest.fixture(scope="module")
def model():
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, 0)
    return model


def row_of(*conversations):
    """A row of (token ids, marks) pairs, as curation writes it."""
    return {
        "tokens": [token for tokens, _ in conversations for token in tokens],
        "in_loss": [counts for _, in_loss in conversations for counts in in_loss],
        "segments": [number for number, (tokens, _) in enumerate(conversations) for _ in tokens],
    }


def batch_of(*rows):
    return collate(pa.Table.from_pylist(rows, schema=pa.schema(list(ROW_COLUMNS.items()))))


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
def test_packed_loss_and_gradient_equal_those_of_each_conversation_alone(model, conversations):
    if not any(any(in_loss) for _, in_loss in conversations):
        conversations[0][1][-1] = True
    packed, packed_gradients = gradients(model, [batch_of(row_of(*conversations))])
    alone, alone_gradients = gradients(model, [batch_of(row_of(one)) for one in conversations if any(one[1])])
    assert packed == pytest.approx(alone, rel=1e-10)
    for ours, theirs in zip(packed_gradients, alone_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_padding_changes_neither_loss_nor_gradient(model):
    short = row_of(([5, 6, 7], [False, True, True]))
    long = row_of((list(range(20, 60)), [False] * 40))
    padded = gradients(model, [batch_of(short, long)])
    alone = gradients(model, [batch_of(short)])
    assert padded[0] == pytest.approx(alone[0], rel=1e-12)
    for ours, theirs in zip(padded[1], alone[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_prompt_tokens_are_read_and_not_learned(model):
    """The loss is that of the marked tokens alone, and it depends on the prompt."""
    tokens, in_loss = [5, 6, 7, 8, 9], [False, False, False, True, True]
    loss = training.loss_sum(model, batch_of(row_of((tokens, in_loss)))).item()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([tokens]))[0], dim=-1)
    assert loss == pytest.approx(-(logprobs[2, 8] + logprobs[3, 9]).item(), rel=1e-12)
    other = training.loss_sum(model, batch_of(row_of(([5, 60, 7, 8, 9], in_loss)))).item()
    assert other != pytest.approx(loss, rel=1e-6)


def test_a_token_of_a_long_answer_weighs_as_much_as_one_of_a_short_answer():
    batch = batch_of(row_of(([5, 6], [False, True])), row_of(([5] * 30, [False] + [True] * 29)))
    assert batch.num_in_loss == 30
    assert sum(piece.num_in_loss for piece in batch.split(1)) == 30


def test_every_part_reads_each_of_its_rows_once_in_batches_of_its_own_size():
    """Conversations that have a row to themselves are short, so more rows go into a step."""
    phases = [planned_phase(name, 13, 8) for name in ("everything", "tools", "long_context")]
    config = Config(batch_sequences=4, unpacked_batch_sequences=6, micro_batch_sequences=2)
    parts = training.training_parts(config, phases)
    assert [part.data for part in parts] == phases
    assert [part.batch_sequences for part in parts] == [4, 6, 4]
    assert [part.micro_batch_sequences for part in parts] == [2, 2, 2]
    assert [part.num_steps for part in parts] == [4, 3, 4]


def test_a_warmup_as_long_as_the_run_is_refused():
    phases = [planned_phase("everything", 20, 8)]
    config = Config(batch_sequences=4, warmup_steps=5)
    with pytest.raises(ValueError, match="warmup_steps=5, and the dataset has rows for 5 steps; give fewer"):
        training.training_parts(config, phases)
    assert training.training_parts(Config(batch_sequences=4, warmup_steps=4), phases)[0].num_steps == 5


def test_the_validation_loss_of_a_family_is_the_mean_over_its_first_conversations(model, tmp_path):
    rows = [
        {**row_of(([5, 6, 7 + number], [False, True, True])), "family": family}
        for family in ("math", "code")
        for number in range(3)
    ]
    schema = pa.schema([*ROW_COLUMNS.items(), ("family", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "validation.parquet")
    validation = training.validation_batches(SimpleNamespace(validation_path=tmp_path / "validation.parquet"), 2)
    assert list(validation) == ["code", "math"]
    assert validation["math"].tokens[:, -1].tolist() == [7, 8]
    losses = training.validation_losses(model, validation, Config(micro_batch_sequences=1))
    expected = training.loss_sum(model, batch_of(*rows[:2])).item() / 4
    assert losses == {name: pytest.approx(expected, rel=1e-12) for name in ("code", "math")}


def test_the_learning_rate_warms_up_and_falls_in_a_straight_line():
    config = Config(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4)
    rates = [training.learning_rate_at(step, 14, config) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(0.1, rel=1e-15)
    falls = [before - after for before, after in pairwise(rates[3:])]
    assert falls == pytest.approx([0.09] * 10, rel=1e-12)


def test_without_warmup_the_first_step_is_just_below_the_peak():
    config = Config(learning_rate=1.0, min_learning_rate=0.0, warmup_steps=0)
    assert [training.learning_rate_at(step, 4, config) for step in range(4)] == pytest.approx([0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", ["batch_sequences", "learning_rate", "checkpoint_every_steps", "max_grad_norm"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_sizes_must_be_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be "):
        Config(**{name: value})


def test_the_learning_rate_does_not_fall_upwards():
    assert Config(learning_rate=0.5, min_learning_rate=0.5).min_learning_rate == 0.5
    with pytest.raises(ValueError, match=r"^min_learning_rate=1.0 is above learning_rate=0.5, from which"):
        Config(learning_rate=0.5, min_learning_rate=1.0)
