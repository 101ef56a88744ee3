"""Losses of tokens by chunks, against the logits of all tokens at once."""

import pytest
import torch
import torch.nn.functional as F

from nemotron.recipes.nemotron_h import losses
from nemotron.recipes.nemotron_h.losses import logits_of, token_losses
from nemotron.recipes.nemotron_h.model import Linear
from nemotron.recipes.nemotron_h.plan import bytes_saved_for_backward

n, d, v = 23, 8, 40


@pytest.fixture
def chunks_of_five(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_A_TIME", 5 * v + 3)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    head = Linear(d, v, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(v, (n,), generator=generator)


def losses_and_gradients(head, hidden, found):
    weights = torch.linspace(-1, 2, n, dtype=found.dtype)
    return found.detach(), *torch.autograd.grad((found * weights).sum(), (hidden, head.weight))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_losses_and_gradients_of_chunks_are_those_of_all_tokens_at_once(chunks_of_five, temperature):
    head, hidden, tokens = inputs()
    whole = F.cross_entropy(hidden @ head.weight.T / temperature, tokens, reduction="none")
    expected = losses_and_gradients(head, hidden, whole)
    found = losses_and_gradients(head, hidden, token_losses(head, hidden, tokens, temperature=temperature))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_under_autocast_the_chunks_have_the_losses_and_gradients_of_all_tokens_at_once(monkeypatch):
    head, hidden, tokens = inputs(torch.float32)

    def found():
        with torch.autocast("cpu", torch.bfloat16):
            return losses_and_gradients(head, hidden, token_losses(head, hidden, tokens))

    expected = found()
    monkeypatch.setattr(losses, "LOGITS_AT_A_TIME", 5 * v)
    losses_found, hidden_slope, head_slope = found()
    torch.testing.assert_close((losses_found, hidden_slope), expected[:2], rtol=0, atol=0)
    rounding = 5 * 2**-9 * expected[2].abs().max().item()  # a sum over tokens, which bfloat16 rounds once a chunk
    torch.testing.assert_close(head_slope, expected[2], rtol=0, atol=rounding)


def test_the_logits_of_no_more_than_a_chunk_are_in_memory(chunks_of_five):
    head, hidden, tokens = inputs()
    seen = []
    head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = token_losses(head, hidden, tokens)
    assert seen == [5, 5, 5, 5, 3]
    found.sum().backward()
    assert seen == [5, 5, 5, 5, 3, 3, 5, 5, 5, 5]  # again, from the last to the first


def test_no_logits_are_kept_for_the_backward_pass(chunks_of_five):
    head, hidden, tokens = inputs()
    kept = bytes_saved_for_backward(lambda hidden: token_losses(head, hidden, tokens), hidden)
    assert kept <= hidden.nbytes + tokens.nbytes
    assert bytes_saved_for_backward(lambda hidden: token_losses(head, hidden, tokens[:5]), hidden[:5]) > 5 * v * 8


def test_a_vocabulary_larger_than_a_chunk_goes_token_by_token(monkeypatch):
    head, hidden, tokens = inputs()
    expected = token_losses(head, hidden, tokens)
    monkeypatch.setattr(losses, "LOGITS_AT_A_TIME", v - 1)
    torch.testing.assert_close(token_losses(head, hidden, tokens), expected, rtol=1e-14, atol=1e-14)


def test_no_tokens_have_no_losses():
    head, hidden, tokens = inputs()
    found = token_losses(head, hidden[:0], tokens[:0])
    assert found.shape == (0,)
    found.sum().backward()
    assert not hidden.grad.any()


def test_logits_are_computed_in_at_least_float32():
    head, hidden, _ = inputs(torch.bfloat16)
    assert logits_of(head, hidden).dtype == torch.float32
    torch.testing.assert_close(logits_of(head, hidden, 0.5), 2 * logits_of(head, hidden), rtol=0, atol=0)
