"""Replies of a policy as tensors: every number at its token, and nothing that depends on how rows are grouped."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Continuation, Sampling
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.scoring.rewards import Prompt, Reward
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_to_row, user_exercise
from nemotron.recipes.training.grpo import TokenTerms, grpo_objective
from nemotron.recipes.training.rollouts import (
    Experience,
    draw_replies,
    experience_of,
    logprobs_and_entropies,
    measured,
    prompt_batches,
    reward_rows,
    rollout_rows,
    token_logprobs,
    token_states,
)

STOP = 12
PROMPTS = ([20, 30, 40], [50], [60, 70, 80, 90, 100])


@pytest.fixture(scope="module")
def policy() -> NemotronH:
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, 0)
    return model


def prompt(name: str, tokens: Sequence[int], family: str = "math") -> Prompt:
    exercise = user_exercise(family, f"What is {name}?", "", "1", name)
    return Prompt(Exercise(**{**vars(exercise), "id": name}), False, tuple(tokens))


def prompts_of(*rows: Sequence[int]) -> list[Prompt]:
    return [prompt(f"sft/math/{index}", tokens) for index, tokens in enumerate(rows)]


def reply(*tokens: int, finish="stop") -> Continuation:
    return Continuation(list(tokens), [-0.5 * (n + 1) for n in range(len(tokens))], [False] * len(tokens), finish)


# --- drawing ---


SAMPLING = Sampling(8, (STOP,), temperature=1.0, logprobs_at_temperature=True)


def test_the_replies_of_a_prompt_are_next_to_each_other_and_differ(policy) -> None:
    replies = draw_replies(policy, prompts_of(*PROMPTS), 3, SAMPLING, ("rollout", 1, 0))
    assert len(replies) == 9
    alone = [draw_replies(policy, [one], 3, SAMPLING, ("rollout", 1, 0)) for one in prompts_of(*PROMPTS)]
    assert [one.tokens for one in replies] == [one.tokens for group in alone for one in group]
    assert len({tuple(one.tokens) for one in replies}) == 9


def test_a_reply_depends_on_its_prompt_and_number_and_on_no_neighbor(policy) -> None:
    prompts = prompts_of(*PROMPTS)
    purpose = ("rollout", 1, 0)
    first, second, third = (draw_replies(policy, [one], 2, SAMPLING, purpose) for one in prompts)
    reordered = draw_replies(policy, prompts[::-1], 4, SAMPLING, purpose)
    assert [reordered[row].tokens for row in (0, 1, 4, 5, 8, 9)] == [
        one.tokens for group in (third, second, first) for one in group
    ]


def test_the_same_tokens_under_another_id_or_purpose_get_other_replies(policy) -> None:
    same = [prompt(name, PROMPTS[0]) for name in ("sft/math/1", "sft/math/11")]
    found = draw_replies(policy, same, 2, SAMPLING, ("rollout", 1, 0))
    found += draw_replies(policy, same, 2, SAMPLING, ("rollout", 1, 1))
    found += draw_replies(policy, same, 2, SAMPLING, ("rollout", 2, 1))
    assert len({tuple(one.tokens) for one in found}) == 12
    again = draw_replies(policy, same, 2, SAMPLING, ("rollout", 1, 1))
    assert [one.tokens for one in again] == [one.tokens for one in found[4:8]]


def test_the_prompts_of_a_step_come_in_the_order_of_the_file_and_as_they_were_written(tmp_path) -> None:
    written = [replace(prompt(f"sft/math/{index}", range(index + 1)), thinking=index % 2 == 0) for index in range(5)]
    rows = [
        {**exercise_to_row(one.exercise), "thinking": one.thinking, "tokens": list(one.tokens), "solved": 0.5}
        for one in written
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    batches = list(prompt_batches(tmp_path / "prompts.parquet", 2, first_step=0))
    assert batches == [written[0:2], written[2:4], written[4:5]]
    assert list(prompt_batches(tmp_path / "prompts.parquet", 2, first_step=1)) == batches[1:]


# --- the tensors ---


def test_a_small_experience_written_out() -> None:
    """The end of turn counts, the padding does not."""
    prompts = prompts_of([5, 6, 7], [8])
    replies = [reply(21, 22, STOP), reply(23, finish="length"), reply(24, STOP), reply(finish="length")]
    found = experience_of(prompts, replies, torch.tensor([1.0, -2.0, 3.0, -4.0]), learn_from_cut=True)
    assert found.prompts.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert found.prompt_lengths.tolist() == [3, 1]
    assert found.tokens.tolist() == [[21, 22, STOP], [23, 0, 0], [24, STOP, 0], [0] * 3]
    assert found.counts.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0] * 3]
    assert found.lengths.tolist() == [3, 1, 2, 0]
    assert found.advantages.tolist() == [[1, 1, 1], [-2, 0, 0], [3, 3, 0], [0] * 3]
    assert found.sampled_logprobs.tolist() == [[-0.5, -1, -1.5], [-0.5, 0, 0], [-0.5, -1, 0], [0] * 3]
    assert found.old_logprobs.tolist() == found.reference_logprobs.tolist() == [[0] * 3] * 4
    assert found.num_tokens == 6
    found.old_logprobs[0, 0] = 1.0
    assert found.reference_logprobs.tolist() == [[0] * 3] * 4  # not the same memory


def test_replies_that_the_length_limit_ended_can_be_left_out_of_the_loss() -> None:
    replies = [reply(21, STOP), reply(22, 23, finish="length")]
    found = experience_of(prompts_of([5, 6]), replies, torch.ones(2), learn_from_cut=False)
    assert found.counts.int().tolist() == [[1, 1], [0, 0]]
    assert found.advantages.tolist() == [[1, 1], [0, 0]]
    assert found.tokens.tolist() == [[21, STOP], [22, 23]]
    assert found.num_tokens == 2


def experience(policy: NemotronH, temperature: float, *, learn_from_cut: bool = True) -> Experience:
    """Of drawn replies of unequal length and an empty one."""
    sampling = Sampling(9, (STOP, *range(256, 300)), temperature, logprobs_at_temperature=True)
    replies = draw_replies(policy, prompts_of(*PROMPTS), 4, sampling, ("rollout", 0))
    replies[1] = reply(finish="length")
    assert len({len(one.tokens) for one in replies}) > 3
    assert {one.finish for one in replies} == {"stop", "length"}
    return experience_of(prompts_of(*PROMPTS), replies, torch.linspace(-1, 1, 12), learn_from_cut=learn_from_cut)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_learner_computes_the_log_probabilities_of_the_sampler(policy, temperature) -> None:
    found = experience(policy, temperature)
    with torch.no_grad():
        logprobs, (_, tokens) = token_logprobs(policy, found, temperature), token_states(policy, found)
        again, entropies = logprobs_and_entropies(policy, found, temperature)
    assert tokens.tolist() == found.tokens[found.counts].tolist()
    sampled = found.sampled_logprobs[found.counts]
    assert len(sampled) > 40
    torch.testing.assert_close(logprobs, sampled, rtol=0, atol=1e-10)
    torch.testing.assert_close(logprobs, logprobs_row_by_row(policy, found, temperature), rtol=0, atol=1e-10)
    torch.testing.assert_close(again, logprobs, rtol=0, atol=0)
    assert ((entropies > 0) & (entropies < math.log(MODELS["tiny"].vocab_size))).all()


def logprobs_row_by_row(policy: NemotronH, found: Experience, temperature: float) -> torch.Tensor:
    """Of the tokens that count, each prompt read again with each of its replies, and nothing padded."""
    logprobs = []
    for row, length in enumerate(found.lengths.tolist()):
        group = row // found.replies_per_prompt
        prompt = found.prompts[group, : found.prompt_lengths[group]]
        logits = policy(torch.cat([prompt, found.tokens[row, :length]])[None])[0, len(prompt) - 1 : -1] / temperature
        of_tokens = logits.log_softmax(-1).gather(-1, found.tokens[row, :length, None])[:, 0]
        logprobs.append(of_tokens[found.counts[row, :length]])
    return torch.cat(logprobs)


def test_the_gradient_is_that_of_each_reply_read_alone(policy) -> None:
    """So nothing is lost where the replies to a prompt part."""
    found = experience(policy, 0.7)
    weights = torch.linspace(-1, 2, found.num_tokens, dtype=torch.float64)
    gradients = []
    for alone in (False, True):
        policy.zero_grad()
        logprobs = (logprobs_row_by_row if alone else token_logprobs)(policy, found, 0.7)
        (logprobs * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in policy.parameters()])
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-11)


replies_of = st.tuples(st.integers(0, 6), st.booleans())
shapes = st.integers(1, 3).flatmap(
    lambda size: st.lists(
        st.tuples(st.integers(1, 5), st.lists(replies_of, min_size=size, max_size=size)), min_size=1, max_size=6
    )
)


def numbered(shape: list[tuple[int, list[tuple[int, bool]]]]) -> Experience:
    """Prompts of these lengths with replies of these lengths, every token and number another one."""
    asked = [prompt(str(g), range(100 * g + 1, 100 * g + 1 + length)) for g, (length, _) in enumerate(shape)]
    flat = [each for _, group in shape for each in group]
    replies = [
        reply(*range(1000 + 10 * row, 1000 + 10 * row + length), finish="stop" if ended else "length")
        for row, (length, ended) in enumerate(flat)
    ]
    found = experience_of(asked, replies, torch.arange(1.0, len(flat) + 1), learn_from_cut=False)
    cells = torch.arange(found.counts.numel(), dtype=torch.float64).view(found.counts.shape)
    return replace(found, old_logprobs=cells, reference_logprobs=-cells)


def assert_same_prompts(found: Experience, expected: Experience, chosen: list[int]) -> None:
    """The prompts of `expected` with their replies, without padding that all of them have."""
    size = expected.replies_per_prompt
    rows = [size * prompt + number for prompt in chosen for number in range(size)]
    width, longest = max(expected.prompt_lengths[chosen].tolist()), max(expected.lengths[rows].tolist())
    assert found.prompts.tolist() == expected.prompts[chosen, :width].tolist()
    assert found.prompt_lengths.tolist() == expected.prompt_lengths[chosen].tolist()
    assert found.lengths.tolist() == expected.lengths[rows].tolist()
    assert not expected.counts[rows, longest:].any()
    for item in fields(Experience):
        if item.name not in ("prompts", "prompt_lengths", "lengths"):
            assert getattr(found, item.name).tolist() == getattr(expected, item.name)[rows, :longest].tolist()


@given(shapes, st.integers(1, 8))
def test_optimizer_steps_are_the_prompts_in_order_in_so_many_pieces(shape, number) -> None:
    whole = numbered(shape)
    pieces = list(whole.optimizer_steps(number))
    assert len(pieces) == min(number, len(shape))
    sizes = [len(piece.prompts) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    start = 0
    for piece, size in zip(pieces, sizes, strict=True):
        assert_same_prompts(piece, whole, list(range(start, start + size)))
        start += size
    assert start == len(shape)
    assert sum(piece.num_tokens for piece in pieces) == whole.num_tokens


def test_six_prompts_make_four_optimizer_steps() -> None:
    """torch.chunk makes three of them."""
    pieces = numbered([(1, [(2, True)])] * 6).optimizer_steps(4)
    assert [len(piece.prompts) for piece in pieces] == [2, 2, 1, 1]


@given(shapes, st.integers(1, 7))
def test_forward_passes_hold_each_prompt_once_and_their_values_go_back_to_their_places(shape, size) -> None:
    whole = numbered(shape)
    passes = list(whole.micro_batches(size))
    assert sorted(prompt for chosen in passes for prompt in chosen.tolist()) == list(range(len(shape)))
    assert all(len(chosen) == size for chosen in passes[:-1])
    assert len(passes[-1]) <= size
    longest = [max(length for length, _ in shape[prompt][1]) for chosen in passes for prompt in chosen.tolist()]
    assert longest == sorted(longest)
    back = torch.full_like(whole.old_logprobs, -1.0)
    for chosen in passes:
        micro = whole.of_prompts(chosen)
        assert_same_prompts(micro, whole, chosen.tolist())
        whole.put(back, chosen, micro.old_logprobs[micro.counts])
    assert back[whole.counts].tolist() == whole.old_logprobs[whole.counts].tolist()
    assert (back[~whole.counts] == -1).all()


def gradient_of(policy: NemotronH, whole: Experience, size: int) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient of the objective over the whole experience, `size` prompts at a time."""
    policy.zero_grad()
    total = 0.0
    for chosen in whole.micro_batches(size):
        micro = whole.of_prompts(chosen)
        terms = grpo_objective(
            token_logprobs(policy, micro, 0.7),
            micro.old_logprobs[micro.counts],
            micro.advantages[micro.counts],
            micro.reference_logprobs[micro.counts],
            clip_low=0.2,
            clip_high=0.3,
            kl_weight=0.1,
        )
        loss = terms.loss.sum() / whole.num_tokens
        loss.backward()
        total += loss.item()
    return total, [parameter.grad.clone() for parameter in policy.parameters()]


@pytest.mark.parametrize("size", [1, 2])
def test_loss_and_gradient_do_not_depend_on_the_prompts_of_a_forward_pass(policy, size) -> None:
    whole = experience(policy, 0.7, learn_from_cut=False)
    noise = torch.randn(2, *whole.counts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    old, reference = whole.sampled_logprobs + 0.2 * noise
    whole = replace(whole, old_logprobs=old, reference_logprobs=reference)
    loss, gradient = gradient_of(policy, whole, 3)
    found, other = gradient_of(policy, whole, size)
    assert found == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-14)


def test_a_step_in_which_no_token_counts_has_a_loss_and_a_gradient_of_0(policy) -> None:
    cut = [reply(21, 22, finish="length"), reply(23, finish="length")]
    whole = experience_of(prompts_of([5, 6]), cut, torch.tensor([1.0, -1.0]), learn_from_cut=False)
    logprobs, counts = token_logprobs(policy, whole, 1.0), whole.counts
    terms = grpo_objective(
        logprobs, whole.old_logprobs[counts], whole.advantages[counts],
        clip_low=0.2, clip_high=0.2, kl_weight=0.0,
    )  # fmt: skip
    policy.zero_grad()
    terms.loss.sum().backward()
    assert logprobs.shape == (0,)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())
    numbers = measured(prompts_of([5, 6]), cut, [Reward(0.0)] * 2, whole, [terms])
    assert (numbers["loss"], numbers["kl"], numbers["sampler_difference"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_log_probabilities_are_computed_in_at_least_float32(dtype) -> None:
    model = NemotronH(MODELS["tiny"], dtype=dtype)
    initialize(model, 0)
    found = experience_of(prompts_of([5, 6]), [reply(21, STOP)], torch.ones(1), learn_from_cut=True)
    assert token_logprobs(model, found, 0.7).dtype == torch.float32


def test_the_digest_of_the_batch_changes_with_the_tokens_and_with_the_mask() -> None:
    def digest(*replies: Continuation, learn_from_cut: bool = True) -> str:
        return experience_of(
            prompts_of([5, 6]), replies, torch.ones(len(replies)), learn_from_cut=learn_from_cut
        ).as_batch().digest  # fmt: skip

    stopped, cut = reply(21, STOP), reply(22, 23, finish="length")
    found = [
        digest(stopped, cut),
        digest(stopped, cut, learn_from_cut=False),
        digest(cut, stopped),
        digest(stopped, reply(22, 24, finish="length")),
        digest(stopped, reply(22, finish="length")),
        digest(stopped, reply(22, 0, finish="length")),  # a token 0 is not padding
    ]
    assert len(set(found)) == 6
    assert digest(stopped, cut) == found[0]


def test_the_batch_counts_what_the_experience_counts() -> None:
    whole = numbered([(3, [(4, True), (6, False)]), (1, [(2, True), (0, True)])])
    batch = whole.as_batch()
    assert batch.num_in_loss == whole.num_tokens == 6
    assert batch.in_loss[:, 3:].tolist() == whole.counts.tolist()
    assert not batch.in_loss[:, :3].any()
    present = [[1] * 3 + [1] * 4 + [0] * 2, [1] * 9, [1] + [0] * 2 + [1] * 2 + [0] * 4, [1] + [0] * 8]
    assert batch.segments.tolist() == [[1 - one for one in row] for row in present]


# --- what is written down ---


def terms_of(number: int, **values: Sequence[float]) -> TokenTerms:
    columns = {name: [0.0] * number for name in TokenTerms._fields} | values
    return TokenTerms(*(torch.tensor(columns[name]) for name in TokenTerms._fields))


def test_the_numbers_of_a_step() -> None:
    prompts = prompts_of([5], [6], [7])
    replies = [reply(21, STOP), reply(22, 23, 24, finish="length"), reply(STOP), reply(STOP), reply(STOP), reply(STOP)]
    rewards = [
        Reward(1.0),
        Reward(0.05),
        Reward(0.1),
        Reward(0.1),
        Reward(0.0, fault="TimeoutError: no result"),
        Reward(0.1),
    ]
    whole = experience_of(prompts, replies, torch.zeros(6), learn_from_cut=False)
    old = whole.sampled_logprobs.clone()
    old[0, 1] += 0.25
    old[1, 0] += 9.0  # does not count
    old[0, 2] += 9.0  # padding
    terms = [
        terms_of(1, loss=[4.0], kl=[0.5], clipped_low=[True]),
        terms_of(3, loss=[0.0, 2.0, 2.0], clipped_high=[1, 1, 0]),
    ]
    assert measured(prompts, replies, rewards, replace(whole, old_logprobs=old), terms) == {
        "loss": 2.0,  # every token weighs the same, not every forward pass
        "reward": pytest.approx(1.35 / 6),
        "groups_with_signal": pytest.approx(2 / 3),
        "kl": 0.125,
        "clipped_low": 0.25,
        "clipped_high": 0.5,
        "reply_tokens": 1.5,
        "replies_cut": pytest.approx(1 / 6),
        "verifier_faults": pytest.approx(1 / 6),
        "sampler_difference": 0.25,
    }


def test_rewards_by_verifier_and_part() -> None:
    prompts = [prompt("a", [5], "math"), prompt("b", [6], "instruction_following"), prompt("c", [7], "math")]
    rewards = [
        Reward(1.0, 1.0, {"right": 1.0}, True), Reward(0.1, 1.0, {"right": 0.0}),
        Reward(0.55, 1.0, {"count": 1.0, "end": 0.0}), Reward(0.05, 0.5, {"count": 0.0, "end": 0.0}),
        Reward(0.0, fault="it hangs"), Reward(0.1, 1.0, {"right": 0.0}),
    ]  # fmt: skip
    found = {(row["verifier"], row["part"]): (row["replies"], row["mean"]) for row in reward_rows(prompts, rewards)}
    assert list(found) == sorted(found)
    assert found == {
        ("math", "all"): (4, pytest.approx(0.3)), ("math", "form"): (4, 0.75),
        ("math", "right"): (3, pytest.approx(1 / 3)),
        ("instruction_following", "all"): (2, pytest.approx(0.3)), ("instruction_following", "form"): (2, 0.75),
        ("instruction_following", "count"): (2, 0.5), ("instruction_following", "end"): (2, 0.0),
    }  # fmt: skip


def test_a_row_for_each_reply() -> None:
    replies = [reply(21, STOP), reply(finish="length"), reply(22), reply(23)]
    rewards = [Reward(0.25 * n) for n in range(4)]
    rows = rollout_rows(
        prompts_of([5], [6]), replies, rewards, torch.tensor([-1.0, 1.0, -2.0, 2.0]), lambda ids: f"<{ids}>"
    )
    assert rows[0] == {
        "prompt": "sft/math/0", "asked": "What is sft/math/0?", "thinking": False, "tokens": f"21 {STOP}",
        "text": f"<[21, {STOP}]>", "reward": 0.0, "advantage": -1.0,
    }  # fmt: skip
    assert [row["prompt"] for row in rows] == ["sft/math/0"] * 2 + ["sft/math/1"] * 2
    assert [row["tokens"] for row in rows] == [f"21 {STOP}", "", "22", "23"]
    assert [row["reward"] for row in rows] == [0.0, 0.25, 0.5, 0.75]
    assert [row["advantage"] for row in rows] == [-1, 1, -2, 2]
