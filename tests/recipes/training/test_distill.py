"""The divergence from teacher to student: against arithmetic by hand, slopes by differences, and torch's own."""

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nemotron.recipes.curation.tokenizer import save_tokenizer, train_tokenizer
from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.nemotron_h.plan import bytes_saved_for_backward
from nemotron.recipes.training import distill
from nemotron.recipes.training.batches import collate
from nemotron.recipes.training.distill import (
    batch_kl_sum,
    check_same_tokenizer,
    held_out_divergences,
    held_out_losses,
    kl_sum,
)

TOKENS, VOCABULARY, STUDENT, TEACHER = 13, 29, 5, 7


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def models():
    """Hidden states and output matrix of a student and of a wider teacher."""
    return (
        drawn(TOKENS, STUDENT, seed=1).requires_grad_(),
        drawn(VOCABULARY, STUDENT, seed=2).requires_grad_(),
        drawn(TOKENS, TEACHER, seed=3),
        drawn(VOCABULARY, TEACHER, seed=4),
    )


def naive(hidden, head, teacher_hidden, teacher_head, temperature):
    """Token by token, entry by entry."""
    total = 0.0
    for token in range(len(hidden)):
        logits = [
            (one[token] @ matrix.t()).tolist() for one, matrix in ((teacher_hidden, teacher_head), (hidden, head))
        ]
        p, q = ([math.exp(value / temperature) for value in row] for row in logits)
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        total += sum(one * (math.log(one) - math.log(other)) for one, other in zip(p, q, strict=True))
    return total * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_is_the_divergence_from_the_teacher_to_the_student(models, temperature):
    found = kl_sum(*models, temperature=temperature, chunk_tokens=4)
    assert found.item() == pytest.approx(naive(*models, temperature), rel=1e-12)


def test_the_teacher_is_the_one_that_is_averaged_over():
    """The teacher gives 3 of 4 chances to the first of two tokens; a student without an opinion is ln 2 - H away."""
    teacher = torch.tensor([[math.log(3.0)], [0.0]], dtype=torch.float64)
    student = torch.zeros(2, 1, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert kl_sum(one, student, one, teacher, chunk_tokens=1).item() == pytest.approx(math.log(2) - entropy, rel=1e-12)
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_sum(one, teacher, one, student, chunk_tokens=1).item() == pytest.approx(reverse, rel=1e-12)


def test_it_is_that_of_torch(models):
    hidden, head, teacher_hidden, teacher_head = models
    for temperature in (1.0, 2.0):
        log_q, log_p = (
            F.log_softmax(one @ matrix.t() / temperature, dim=-1)
            for one, matrix in ((hidden, head), (teacher_hidden, teacher_head))
        )
        theirs = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
        ours = kl_sum(*models, temperature=temperature, chunk_tokens=5)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
        for mine, other in zip(
            torch.autograd.grad(ours, (hidden, head)), torch.autograd.grad(theirs, (hidden, head)), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_slopes_are_those_of_differences(models, temperature):
    hidden, head, *teacher = models
    assert torch.autograd.gradcheck(
        lambda one, matrix: kl_sum(one, matrix, *teacher, temperature=temperature, chunk_tokens=4), (hidden, head)
    )


def test_a_factor_of_the_loss_is_a_factor_of_its_slopes(models):
    whole = torch.autograd.grad(kl_sum(*models, chunk_tokens=4), models[:2])
    half = torch.autograd.grad(kl_sum(*models, chunk_tokens=4) / 2, models[:2])
    for one, other in zip(whole, half, strict=True):
        torch.testing.assert_close(one / 2, other, rtol=1e-15, atol=0)


def test_equal_models_have_no_divergence_and_no_slope(models):
    _, _, hidden, head = models
    copies = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = kl_sum(*copies, hidden, head, chunk_tokens=3)
    assert abs(loss.item()) < 1e-12
    assert all(slope.abs().max() < 1e-12 for slope in torch.autograd.grad(loss, copies))


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, TOKENS - 1, TOKENS, 10 * TOKENS])
def test_the_chunk_does_not_change_the_result(models, chunk_tokens):
    expected = kl_sum(*models, chunk_tokens=TOKENS)
    found = kl_sum(*models, chunk_tokens=chunk_tokens)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, models[:2]), torch.autograd.grad(expected, models[:2]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_logits_are_never_whole():
    tokens, size, vocabulary, chunk = 64, 3, 400, 4
    hidden, head = drawn(tokens, size).requires_grad_(), drawn(vocabulary, size).requires_grad_()
    with Largest() as largest:
        kl_sum(hidden, head, drawn(tokens, 4), drawn(vocabulary, 4), chunk_tokens=chunk).backward()
    assert largest.elements == vocabulary * max(chunk, 4)  # a chunk's logits, or the teacher's matrix
    saved = bytes_saved_for_backward(lambda one: kl_sum(one, head, hidden, head, chunk_tokens=chunk), hidden)
    assert saved == 8 * (tokens + vocabulary) * size


def test_the_teacher_learns_nothing(models):
    hidden, head, *teacher = models
    teacher = [one.requires_grad_() for one in teacher]
    kl_sum(hidden, head, *teacher, chunk_tokens=4).backward()
    assert [one.grad for one in teacher] == [None, None]


def test_without_a_slope_to_compute_it_gives_the_same(models):
    with torch.no_grad():
        assert kl_sum(*models, chunk_tokens=4).item() == kl_sum(*models, chunk_tokens=4).item()
    assert kl_sum(models[0], models[1].detach(), *models[2:], chunk_tokens=4).requires_grad


def test_products_in_bfloat16_are_close_and_give_float32_slopes():
    given = [one.float() for one in (drawn(64, 8), drawn(50, 8, seed=1), drawn(64, 6, seed=2), drawn(50, 6, seed=3))]
    given[0].requires_grad_()
    given[1].requires_grad_()
    exact = kl_sum(*given, chunk_tokens=16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = kl_sum(*given, chunk_tokens=16)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    slopes = torch.autograd.grad(rounded, given[:2])
    assert [one.dtype for one in slopes] == [torch.float32] * 2
    for one, other in zip(slopes, torch.autograd.grad(exact, given[:2]), strict=True):
        assert (one - other).norm() < 0.03 * other.norm()


def test_other_tokens_or_another_vocabulary_are_refused(models):
    hidden, head, teacher_hidden, teacher_head = models
    sentence = r"^the student has 13 tokens and a vocabulary of 29, the teacher 12 and 29; give both models the same"
    with pytest.raises(ValueError, match=sentence):
        kl_sum(hidden, head, teacher_hidden[:-1], teacher_head, chunk_tokens=4)
    with pytest.raises(ValueError, match="the teacher 13 and 28"):
        kl_sum(hidden, head, teacher_hidden, teacher_head[:-1], chunk_tokens=4)


# --- models and rows ---


def model_of(seed, **changes):
    model = NemotronH(replace(MODELS["tiny"], vocab_size=40, **changes), dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def teacher():
    return model_of(0)


@pytest.fixture(scope="module")
def student():
    return model_of(1, hidden_size=48, intermediate_size=128, hybrid_override_pattern="M*-")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Rows of different lengths from two sources; of some, only the end counts."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate((9, 5, 7, 12, 4)):
        tokens = torch.randint(0, 40, (length,), generator=generator).tolist()
        counts = [place > number for place in range(length)]
        source = "a" if number < 3 else "b"
        rows.append({"source": source, "tokens": tokens, "in_loss": counts, "segments": [0] * length})
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path, rows


def logprobs(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)


def test_a_batch_has_the_divergence_of_its_texts_read_one_by_one(student, teacher):
    """Two texts in one row and one in another, padded; the first token of a text does not count."""
    texts = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
    table = pa.table({
        "tokens": [texts[0] + texts[1], texts[2]],
        "in_loss": [[True] * 5 + [False, True, True], [True] * 7],
        "segments": [[0] * 5 + [1] * 3, [0] * 7],
    })  # fmt: skip
    expected = 0.0
    for text in texts:
        log_q, log_p = logprobs(student, text), logprobs(teacher, text)
        expected += (log_p.exp() * (log_p - log_q)).sum().item()
    found = batch_kl_sum(student, teacher, collate(table), temperature=1.0, chunk_tokens=3)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_only_the_student_gets_a_gradient(teacher):
    learner = model_of(2)
    table = pa.table({"tokens": [[3, 1, 4, 1, 5]]})
    batch_kl_sum(learner, teacher, collate(table), temperature=1.0, chunk_tokens=3).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_step_against_the_gradient_brings_the_student_nearer(teacher):
    learner = model_of(2)
    batch = collate(pa.table({"tokens": [[3, 1, 4, 1, 5, 9, 2, 6]]}))
    before = batch_kl_sum(learner, teacher, batch, temperature=1.0, chunk_tokens=100)
    before.backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    assert batch_kl_sum(learner, teacher, batch, temperature=1.0, chunk_tokens=100) < before


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_held_out_losses_are_means_over_the_tokens_that_count(student, held_out, batch_tokens):
    path, rows = held_out
    found = held_out_losses(student, path, {"a": 0.75, "b": 0.25}, batch_tokens=batch_tokens, dtype="float64",
                            device="cpu")  # fmt: skip
    for source in ("a", "b"):
        losses = []
        for row in rows:
            if row["source"] == source:
                logs = logprobs(student, row["tokens"])
                targets = enumerate(row["tokens"][1:])
                losses += [-logs[place, token].item() for place, token in targets if row["in_loss"][place + 1]]
        assert found[source] == pytest.approx(sum(losses) / len(losses), rel=1e-10)
    assert found["all"] == pytest.approx(0.75 * found["a"] + 0.25 * found["b"])


@pytest.mark.parametrize("batch_rows", [1, 2, 8])
def test_held_out_divergences_are_too(student, teacher, held_out, batch_rows, monkeypatch):
    monkeypatch.setattr(distill, "BATCH_ROWS", batch_rows)
    path, rows = held_out
    found = held_out_divergences(student, teacher, path, {"a": 0.75, "b": 0.25}, chunk_tokens=3, dtype="float64",
                                 device="cpu")  # fmt: skip
    for source in ("a", "b"):
        terms = []
        for row in rows:
            if row["source"] == source:
                log_q, log_p = logprobs(student, row["tokens"]), logprobs(teacher, row["tokens"])
                each = (log_p.exp() * (log_p - log_q)).sum(-1)
                terms += each[torch.tensor(row["in_loss"][1:])].tolist()
        assert found[source] == pytest.approx(sum(terms) / len(terms), rel=1e-10)
    assert found["all"] == pytest.approx(0.75 * found["a"] + 0.25 * found["b"])


def test_a_tokenizer_is_compared_by_what_it_does(tmp_path):
    for name, text in (("one", "some text of one kind"), ("same", "some text of one kind"), ("other", "another text")):
        save_tokenizer(train_tokenizer([text * 20], 300), tmp_path / name)
    check_same_tokenizer(tmp_path / "one", tmp_path / "same")
    with pytest.raises(ValueError, match=r"^the teacher .*one and the student .*other have different tokenizers; dis"):
        check_same_tokenizer(tmp_path / "one", tmp_path / "other")
