"""Rows of token ids to batches, in the order of their files."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nemotron.recipes.curation.rows import Phase
from nemotron.recipes.training.batches import Batch, TrainingPhase, batches, collate

TOKENS = pa.list_(pa.int32())


def phase_of(directory, name, first, num_sequences, length=8):
    """A phase whose rows begin with first, first + 10, ..."""
    rows = [list(range(start, start + length + 1)) for start in range(first, first + 10 * num_sequences, 10)]
    table = pa.table({"category": ["x"] * num_sequences, "tokens": pa.array(rows, TOKENS)})
    phase = Phase(name=name, num_files=2, num_sequences=num_sequences, sequence_length=length)
    (directory / name).mkdir()
    for path, part in zip(phase.paths(directory), (table.slice(0, 5), table.slice(5)), strict=True):
        pq.write_table(part, path, row_group_size=3)
    return phase


@pytest.fixture
def phases(tmp_path):
    first, second = phase_of(tmp_path, "first", 0, 10), phase_of(tmp_path, "second", 1000, 4)
    return [TrainingPhase(first, 4, 2), TrainingPhase(second, 2, 2)]


def starts(pairs):
    return [(phase.name, batch.tokens[:, 0].tolist()) for phase, batch in pairs]


def test_batches_come_in_the_order_of_the_files_whatever_their_row_groups(tmp_path, phases):
    assert starts(batches(tmp_path, phases)) == [
        ("first", [0, 10, 20, 30]),
        ("first", [40, 50, 60, 70]),
        ("first", [80, 90]),
        ("second", [1000, 1010]),
        ("second", [1020, 1030]),
    ]
    assert [phase.num_steps for phase in phases] == [3, 2]


@pytest.mark.parametrize("first_step", range(6))
def test_a_resumed_run_starts_at_the_step_it_stopped_before(tmp_path, phases, first_step):
    assert starts(batches(tmp_path, phases, first_step)) == starts(batches(tmp_path, phases))[first_step:]


def test_cut_rows_predict_the_same_tokens(tmp_path, phases):
    whole = next(batches(tmp_path, phases))[1]
    cut = next(batches(tmp_path, [TrainingPhase(phases[0].data, 4, 2, cut_to=4)]))[1]
    assert cut.tokens.shape == (8, 5)
    assert cut.tokens[:, 1:].flatten().tolist() == whole.tokens[:, 1:].flatten().tolist()
    assert cut.num_in_loss == whole.num_in_loss == 32


def test_a_batch_splits_into_pieces_that_hold_every_row_once(tmp_path, phases):
    batch = next(batches(tmp_path, phases))[1]
    pieces = list(batch.split(3))
    assert [len(piece.tokens) for piece in pieces] == [3, 1]
    assert torch.equal(torch.cat([piece.tokens for piece in pieces]), batch.tokens)
    assert sum(piece.num_in_loss for piece in pieces) == batch.num_in_loss


CHATS = pa.table(
    {
        "tokens": pa.array([[5, 6, 7, 8, 9], [4, 3]], TOKENS),
        "in_loss": pa.array([[False, True, False, True, True], [False, True]], pa.list_(pa.bool_())),
        "segments": pa.array([[0, 0, 1, 1, 1], [0, 0]], TOKENS),
    }
)


def test_shorter_rows_are_padded_with_what_counts_nowhere():
    batch = collate(CHATS)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch.in_loss.tolist() == [[False, True, False, True, True], [False, True, False, False, False]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.num_in_loss == 4


def test_rows_with_masks_split_with_them():
    first, second = collate(CHATS).split(1)
    assert (first.num_in_loss, second.num_in_loss) == (3, 1)
    assert second.segments.tolist() == [[0, 0, 1, 1, 1]]


def test_rows_of_a_slice_are_collated_like_rows_of_a_table():
    assert torch.equal(collate(CHATS.slice(1, 1)).tokens, torch.tensor([[4, 3]]))


def test_the_digest_covers_tokens_mask_and_segments():
    batch = collate(CHATS)
    assert batch.digest == collate(CHATS).digest
    tokens, in_loss, segments = batch.tokens, batch.in_loss, batch.segments
    for other in (
        Batch(tokens + 1, in_loss, segments),
        Batch(tokens, ~in_loss, segments),
        Batch(tokens, in_loss, segments + 1),
    ):
        assert other.digest != batch.digest


def test_a_batch_in_which_every_token_counts_is_identified_by_its_tokens(tmp_path, phases):
    batch = next(batches(tmp_path, phases))[1]
    assert batch.in_loss.all()
    assert batch.segments.unique().tolist() == [0]
    assert batch.digest == hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()[:16]


ROW = {"tokens": [1, 2, 3], "in_loss": [False, True, True], "segments": [0, 0, 1]}


@pytest.mark.parametrize("fault", [{"in_loss": [True, True]}, {"segments": None}, {"tokens": None}])
def test_a_row_whose_columns_do_not_fit_is_refused(fault):
    """The mask would slide to the next row."""
    types = {"tokens": TOKENS, "in_loss": pa.list_(pa.bool_()), "segments": TOKENS}
    schema = pa.schema(list(types.items()))
    assert collate(pa.Table.from_pylist([ROW, ROW], schema=schema)).num_in_loss == 4
    with pytest.raises(ValueError, match=f"a row has no {next(iter(fault))}, or another number of them"):
        collate(pa.Table.from_pylist([ROW, ROW | fault], schema=schema))


def test_segments_belong_to_the_content_also_if_every_token_counts():
    tokens, in_loss = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    one = Batch(tokens, in_loss, torch.tensor([[0, 0, 0]]))
    two = Batch(tokens, in_loss, torch.tensor([[0, 1, 1]]))
    assert one.digest != two.digest


def test_a_gpu_copies_a_batch_from_pinned_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: calls.append((device, non_blocking)) or self
    )
    tensor = torch.zeros(1, 3)
    Batch(tensor, tensor, tensor).to("cuda:1")
    Batch(tensor, tensor, tensor).to("cpu")
    assert calls == ["pinned", ("cuda:1", True)] * 3 + [("cpu", False)] * 3
