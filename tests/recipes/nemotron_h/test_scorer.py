"""A reward model's score: at the last token that is not padding, after the final norm, the same in any batch."""

import copy
import shutil
from pathlib import Path

import pytest
import torch

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.scorer import HEAD_FILE, Scorer, load_scorer, padded, save_scorer, scores_of

ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [5, 6, 7, 0]]


def language_model(seed=0):
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def scorer():
    scorer = Scorer(language_model(), seed=3)
    torch.manual_seed(0)
    with torch.no_grad():  # a norm of ones would hide a head that is applied before it
        scorer.backbone.norm_f.weight.copy_(1 + torch.rand(scorer.config.hidden_size, dtype=torch.float64))
    return scorer


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([Path(__file__).read_text()], 300), path)
    return path


def test_the_score_is_read_at_the_last_token_after_the_final_norm(scorer):
    for row in ROWS:
        with torch.no_grad():
            stream = scorer.backbone.embeddings(torch.tensor([row]))
            for layer in scorer.backbone.layers:
                stream = layer(stream)
            last = stream[0, -1]
        normed = last / torch.sqrt((last**2).mean() + scorer.config.layer_norm_epsilon) * scorer.backbone.norm_f.weight
        found = scorer.score(*padded([row]))
        assert found.item() == pytest.approx((scorer.lm_head.weight[0] @ normed).item(), rel=1e-12)


def test_padding_and_the_batch_change_no_score(scorer):
    with torch.no_grad():
        alone = torch.cat([scorer.score(*padded([row])) for row in ROWS])
        together = scorer.score(*padded(ROWS))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    for batch_rows in (1, 2, 3, 100):
        torch.testing.assert_close(scores_of(scorer, ROWS, batch_rows=batch_rows), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_have_the_same_score_to_the_last_bit(scorer, dtype):
    """A group of equal replies has no advantage; rounding that differs by batch would be divided by itself."""
    scorer = copy.deepcopy(scorer).to(dtype)
    rows = [[(17 * place + row) % 300 for place in range(length)] for row, length in enumerate((13, 29, 51, 64))]
    repeated = [row for row in rows for _ in range(5)]
    for batch_rows in (3, 4, 7):
        scores = scores_of(scorer, repeated, batch_rows=batch_rows).view(4, 5)
        assert (scores == scores[:, :1]).all(), batch_rows
        assert len(set(scores[:, 0].tolist())) == 4


def test_the_score_is_not_rounded_to_bfloat16():
    """Under autocast, where the matrices of the backbone are in bfloat16; the head is not."""
    scorer = Scorer(language_model()).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = scorer.score(*padded(ROWS))
    assert scores.dtype == torch.float32
    assert (scores != scores.to(torch.bfloat16)).all()
    torch.testing.assert_close(scores, scorer.score(*padded(ROWS)), rtol=0.05, atol=0.05)


def test_a_token_with_the_number_of_the_padding_counts(scorer):
    """[5, 6, 7] and [5, 6, 7, 0] are two texts; the length decides, not the id."""
    first, *_, last = scores_of(scorer, ROWS, batch_rows=4).tolist()
    assert first != last


def test_every_token_of_the_text_moves_the_score(scorer):
    before = scores_of(scorer, [[5, 6, 7, 8]], batch_rows=1)
    for place in range(4):
        row = [5, 6, 7, 8]
        row[place] = 20
        assert (scores_of(scorer, [row], batch_rows=1) - before).abs() > 1e-9


def test_the_gradient_reaches_backbone_and_head_and_nothing_else():
    scorer = Scorer(language_model())
    scorer.score(*padded(ROWS)).sum().backward()
    without = [name for name, parameter in scorer.named_parameters() if parameter.grad is None]
    assert without == []
    assert [name for name, _ in scorer.named_parameters() if "head" in name] == ["lm_head.weight"]
    assert scorer.lm_head.weight.shape == (1, scorer.config.hidden_size)


def test_the_head_depends_on_the_seed_alone():
    first, same, other = (Scorer(language_model(), seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(MODELS["tiny"].initial_std, rel=0.3)


def test_a_saved_reward_model_loads_with_the_same_bits(scorer, tokenizer_path, tmp_path):
    save_scorer(scorer, language_model(1), tokenizer_path, tmp_path / "model")
    loaded = load_scorer(tmp_path / "model")
    for (name, ours), (_, theirs) in zip(scorer.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(scores_of(loaded, ROWS, batch_rows=4), scores_of(scorer, ROWS, batch_rows=4))
    assert load_checkpoint(tmp_path / "model").lm_head.weight.shape[0] == scorer.config.vocab_size


def test_a_checkpoint_of_a_language_model_is_no_reward_model(tokenizer_path, tmp_path):
    save_checkpoint(language_model(), tokenizer_path, tmp_path / "model")
    with pytest.raises(
        ValueError, match=rf"has no {HEAD_FILE}, so it is not a reward model; train one, or name another"
    ):
        load_scorer(tmp_path / "model")


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(1, 3)},
        {"bias": torch.zeros(1, MODELS["tiny"].hidden_size)},
        {"weight": torch.full((1, MODELS["tiny"].hidden_size), torch.nan)},
    ],
)
def test_a_damaged_head_is_refused(scorer, tokenizer_path, tmp_path, tensors):
    save_scorer(scorer, language_model(1), tokenizer_path, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / HEAD_FILE, ignore_errors=True)
    save_tensors(tensors, tmp_path / "model" / HEAD_FILE)
    with pytest.raises(ValueError, match=r"is not a finite head of shape \(1, \d+\); train it again"):
        load_scorer(tmp_path / "model")


def test_an_empty_row_has_no_score():
    with pytest.raises(ValueError, match="row 1 is empty; a score is read at the last token, so give at least one"):
        padded([[1], []])
