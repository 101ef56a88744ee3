import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.recipes.nemotron_h.model import ModelConfig, NemotronH, initialize
from nemotron.recipes.scoring.likelihood import group_losses, score_rows

VOCAB_SIZE = 16


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        hybrid_override_pattern="M*-",
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        ssm_state_size=8,
        chunk_size=4,
    )
    model = NemotronH(config, dtype=torch.float64)
    initialize(model, seed=0)
    return model


class Successor(torch.nn.Module):
    """Predicts token + 1 after each token with probability `sure`, and the other tokens evenly."""

    def __init__(self, sure):
        super().__init__()
        self.logits = torch.full((VOCAB_SIZE, VOCAB_SIZE), math.log((1 - sure) / (VOCAB_SIZE - 1)), dtype=torch.float64)
        for token in range(VOCAB_SIZE):
            self.logits[token, (token + 1) % VOCAB_SIZE] = math.log(sure)

    def forward(self, input_ids):
        return self.logits[input_ids]


def test_scores_of_a_hand_written_model():
    (scores,) = score_rows(Successor(0.5), [[3, 4, 5, 7]], batch_tokens=64)
    np.testing.assert_allclose(scores.losses, [math.log(2), math.log(2), math.log(30)], rtol=1e-12)
    assert scores.is_greedy.tolist() == [True, True, False]


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20), min_size=1, max_size=6),
    batch_tokens=st.integers(1, 60),
)
def test_neither_batch_nor_padding_changes_a_score(model, rows, batch_tokens):
    together = score_rows(model, rows, batch_tokens=batch_tokens)
    for row, scores in zip(rows, together, strict=True):
        (alone,) = score_rows(model, [row], batch_tokens=1)
        np.testing.assert_allclose(scores.losses, alone.losses, rtol=1e-11)
        assert scores.losses.shape == scores.is_greedy.shape == (len(row) - 1,)


def test_scores_equal_the_log_softmax_of_one_position_at_a_time(model):
    row = [1, 5, 2, 9, 9, 0, 3]
    (scores,) = score_rows(model, [row], batch_tokens=64)
    for place in range(1, len(row)):
        log_probabilities = model(torch.tensor([row[:place]]))[0, -1].log_softmax(-1)
        assert scores.losses[place - 1] == pytest.approx(-log_probabilities[row[place]].item(), rel=1e-10)
        assert scores.is_greedy[place - 1] == (log_probabilities.argmax().item() == row[place])


def test_losses_of_a_bfloat16_model_are_computed_in_float32():
    model = Successor(0.5).to(torch.bfloat16)
    model.logits = model.logits.to(torch.bfloat16)
    (scores,) = score_rows(model, [[0, 1]], batch_tokens=64)
    logits = model.logits[0].double()
    assert scores.losses[0] == pytest.approx((logits.logsumexp(0) - logits[1]).item(), rel=1e-6)


def test_the_precision_is_entered_around_every_forward_pass(model):
    rows = [[1, 2, 3]] * 3
    precision = torch.autocast("cpu", torch.bfloat16)
    single = model.to(torch.float32)
    low = score_rows(single, rows, batch_tokens=3, precision=precision)
    high = score_rows(single, rows, batch_tokens=3)
    model.to(torch.float64)
    assert all((a.losses != b.losses).any() for a, b in zip(low, high, strict=True))


def test_no_rows_give_no_scores(model):
    assert score_rows(model, [], batch_tokens=8) == []


def test_an_empty_row_is_refused(model):
    with pytest.raises(ValueError, match="row 1 is empty; leave it out"):
        score_rows(model, [[1, 2], []], batch_tokens=8)


def successor_score(rows):
    return score_rows(Successor(0.5), rows, batch_tokens=64)


def test_a_group_loss_is_the_mean_over_its_tokens_that_count():
    """ln 2 for a token that follows its number, ln 30 for any other; rows of unequal length weigh by their tokens."""
    rows = [[3, 4, 5, 7], [1, 2, 3], [9, 9]]
    in_loss = [[False, True, True, True], [False, False, True], [False, True]]
    losses = group_losses(successor_score, rows, in_loss, ["math", "math", "code"])
    assert list(losses) == ["math", "code"]
    assert losses["math"] == pytest.approx((3 * math.log(2) + math.log(30)) / 4, rel=1e-12)
    assert losses["code"] == pytest.approx(math.log(30), rel=1e-12)


def test_what_does_not_count_changes_no_group_loss():
    mask = [[False, False, True]]
    losses = [group_losses(successor_score, [[first, 4, 5]], mask, ["math"]) for first in (3, 7)]
    assert losses[0] == losses[1] == {"math": pytest.approx(math.log(2), rel=1e-12)}


@pytest.mark.parametrize("mask", [[False, True], [False, True, True, True], [True, True, True]])
def test_a_mask_that_does_not_fit_its_row_is_refused(mask):
    with pytest.raises(ValueError, match=f"in_loss of {len(mask)} tokens does not fit a row of 3 tokens"):
        group_losses(successor_score, [[3, 4, 5]], [mask], ["math"])


def test_a_group_without_a_token_that_counts_is_refused():
    with pytest.raises(ValueError, match="no token of the group 'code' counts"):
        group_losses(successor_score, [[3, 4], [3, 4]], [[False, True], [False, False]], ["math", "code"])
