"""Pairs of tries as rows: what is paired with what, which tokens count, and nothing that depends on grouping."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.workplace import FAMILY, Ran
from nemotron.recipes.training.dpo import dpo_objective
from nemotron.recipes.training.pairs import (
    ROW_COLUMNS,
    Pairs,
    by_task,
    check_pairs,
    measured,
    pair_rows,
    pairs_of,
    pairs_of_round,
    try_logprobs,
    write_round,
)
from nemotron.recipes.training.tries import Try, Turn

DETAILS = json.dumps({"kind": "look_up", "database": {}, "wanted": {}, "solution": []})


def turn(prompt, written, *, ran=(), finish="stop"):
    return Turn(tuple(prompt), Continuation(list(written), [-1.0] * len(written), [False] * len(written), finish), ran)


def one_try(number, *, right=False, broken=False, called=False, fault="", task="sft/workplace/0", turns=None):
    exercise = Exercise(task, FAMILY, ({"role": "user", "content": "Hello"},), (), "", "", task, DETAILS)
    ran = (Ran({"name": "get_stock", "arguments": {}}, "{}", failed=False),) if called else ()
    turns = turns or [turn([20, 21], [30 + number, 12], ran=ran)]
    return Try(Prompt(exercise, False, (20, 21)), number, [], {}, turns, broken, not broken, right, fault)


def numbers(pairs):
    return [(chosen.number, rejected.number) for chosen, rejected in pairs]


# --- what is paired ---


def test_right_tries_are_paired_with_wrong_ones_one_to_one():
    tries = [one_try(0), one_try(1, right=True), one_try(2, right=True), one_try(3), one_try(4, right=True)]
    assert numbers(pairs_of(tries, graded=False, at_most=9)) == [(1, 0), (2, 3)]
    assert numbers(pairs_of(tries, graded=False, at_most=1)) == [(1, 0)]


def test_the_wrong_try_that_got_least_far_is_rejected_first():
    tries = [one_try(0, called=True), one_try(1, right=True), one_try(2, broken=True), one_try(3)]
    assert numbers(pairs_of(tries, graded=False, at_most=9)) == [(1, 2)]


@pytest.mark.parametrize("graded", [True, False])
def test_a_task_that_is_always_or_never_solved_alike_has_no_pair(graded):
    for kind in ({"right": True}, {"right": False}, {"broken": True}):
        assert pairs_of([one_try(number, **kind) for number in range(3)], graded=graded, at_most=9) == []


def test_only_graded_pairs_have_two_wrong_tries_the_furthest_and_the_least_far():
    tries = [one_try(0), one_try(1, called=True), one_try(2, broken=True), one_try(3, called=True)]
    assert pairs_of(tries, graded=False, at_most=9) == []
    assert numbers(pairs_of(tries, graded=True, at_most=9)) == [(1, 2)]


def test_a_right_try_is_chosen_before_any_that_only_got_far():
    tries = [one_try(0, called=True), one_try(1, broken=True), one_try(2, right=True)]
    assert numbers(pairs_of(tries, graded=True, at_most=9)) == [(2, 1)]


def test_a_try_that_could_not_be_judged_is_in_no_pair():
    tries = [one_try(0, fault="TimeoutError: no result"), one_try(1, right=True)]
    assert pairs_of(tries, graded=True, at_most=9) == []


def test_two_tries_that_say_the_same_and_are_judged_differently_are_refused():
    same = [turn([20], [30, 12])]
    tries = [one_try(0, turns=same, right=True), one_try(1, turns=same)]
    with pytest.raises(
        ValueError, match=r"^tries 0 and 1 of sft/workplace/0 say the same, and one is judged to be better"
    ):
        pairs_of(tries, graded=False, at_most=1)


def test_tries_are_grouped_by_their_task():
    tries = [one_try(0, task="a"), one_try(1, task="a"), one_try(0, task="b")]
    assert {id: len(members) for id, members in by_task(tries).items()} == {"a": 2, "b": 1}


# --- rows ---


LONG = [turn([20, 21, 22], [30, 12]), turn([20, 21, 23, 24, 25], [31, 32, 12])]
SHORT = [turn([20, 21], [33, 34, 35, 12])]


def pairs(*given):
    rows = [row for chosen, rejected in given for row in pair_rows([(chosen, rejected)])]
    return Pairs.from_table(pa.Table.from_pylist(rows, schema=pa.schema(list(ROW_COLUMNS.items()))))


@pytest.fixture
def two():
    """Two pairs: the chosen try of the first has two turns."""
    return pairs(
        (one_try(0, right=True, turns=LONG), one_try(1, turns=SHORT)),
        (one_try(0, right=True, task="b"), one_try(1, task="b")),
    )


def test_only_what_the_policy_wrote_counts_its_end_of_turn_included(two):
    counted = [tokens[mask].tolist() for tokens, mask in zip(two.batch.tokens, two.batch.in_loss, strict=True)]
    assert counted == [[30, 12, 31, 32, 12], [33, 34, 35, 12], [30, 12], [31, 12]]
    assert two.num_written.tolist() == [5, 4, 2, 2]
    assert two.lengths.tolist() == [13, 6, 4, 4]


def test_each_turn_is_a_segment_and_padding_another(two):
    assert two.batch.segments[0].tolist() == [0] * 5 + [1] * 8
    assert two.batch.segments[1].tolist() == [0] * 6 + [1] * 7


def test_some_of_the_pairs_are_cut_to_their_longest(two):
    second = two.take(torch.tensor([1]))
    assert second.batch.tokens.tolist() == [[20, 21, 30, 12], [20, 21, 31, 12]]
    assert len(second) == 1
    assert two.take(torch.tensor([1, 0])).batch.tokens[2:].tolist() == two.batch.tokens[:2].tolist()


def test_steps_share_the_pairs_in_order_and_may_be_empty(two):
    assert [len(step) for step in two.optimizer_steps(3)] == [1, 1, 0]
    assert [int(step.batch.tokens[0, 2]) for step in two.optimizer_steps(2)] == [22, 30]
    empty = pairs()
    assert (len(empty), [len(step) for step in empty.optimizer_steps(2)], list(empty.by_length(4))) == (0, [0, 0], [])


def test_forward_passes_have_all_pairs_once_shorter_ones_first(two):
    assert [piece.tolist() for piece in two.by_length(1)] == [[1], [0]]
    assert [piece.tolist() for piece in two.by_length(5)] == [[1, 0]]


# --- what is read ---


def given_rows(**changed):
    """The rows of a pair; `changed` are the columns of the rejected try that differ."""
    chosen, rejected = pair_rows([(one_try(0, right=True), one_try(1))])
    return [chosen, rejected | changed]


NO_PAIRS = {
    "half a pair": (given_rows()[:1], r"^the pairs have 1 rows, and a pair has two; curate the data again$"),
    "another task": (given_rows(id="b"), r"pairs a try of sft/workplace/0 with one of b; curate the data again$"),
    "the same text": (given_rows(tokens=[20, 21, 30, 12]), "has a chosen and a rejected try that say the same; curate"),
    "as good": (given_rows(level=3), "has a chosen try that got no further than the rejected one; curate"),
    "an unknown token": (
        given_rows(tokens=[20, 21, 40, 12]),
        "has a token id that is none of the 40 of the model; cur",
    ),
    "a negative token": (
        given_rows(tokens=[20, -1, 31, 12]),
        "has a token id that is none of the 40 of the model; cur",
    ),
    "nothing written": (given_rows(in_loss=[False] * 4), "has a try of which no token counts; curate"),
}


@pytest.mark.parametrize(("rows", "sentence"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_rows_that_are_no_pair_to_learn_from_are_refused(rows, sentence):
    schema = pa.schema(list(ROW_COLUMNS.items()))
    check_pairs(pa.Table.from_pylist(given_rows(), schema=schema), vocab_size=40)
    with pytest.raises(ValueError, match=sentence):
        check_pairs(pa.Table.from_pylist([*given_rows(), *rows], schema=schema).slice(2), vocab_size=40)


# --- log-probabilities ---


@pytest.fixture(scope="module")
def model():
    found = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(found, 0)
    return found


def naive(model, turns):
    """Token by token, each turn by itself."""
    total = 0.0
    for one in turns:
        for place in range(len(one.reply.tokens)):
            before = [*one.prompt, *one.reply.tokens[:place]]
            with torch.no_grad():
                logprobs = torch.log_softmax(model(torch.tensor([before]))[0, -1], dim=-1)
            total += logprobs[one.reply.tokens[place]].item()
    return total


@pytest.mark.parametrize("per_token", [False, True])
def test_the_log_probability_of_a_try_is_that_of_all_its_turns_each_after_its_own_prompt(model, two, per_token):
    with torch.no_grad():
        found = try_logprobs(model, two.batch, per_token=per_token)
    expected = [naive(model, LONG) / (5 if per_token else 1), naive(model, SHORT) / (4 if per_token else 1)]
    assert found[:2].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_pair_has_the_same_log_probabilities_alone_and_among_others(model, two):
    with torch.no_grad():
        together = try_logprobs(model, two.batch, per_token=False)
        alone = [try_logprobs(model, two.take(torch.tensor([pair])).batch, per_token=False) for pair in (0, 1)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=0)


# --- what is written down ---


def test_a_step_measures_means_over_its_pairs_and_rounding_is_no_preference(two):
    reference = torch.tensor([-10.0, -20.0, -30.0, -40.0], dtype=torch.float64)
    given = replace(two, reference=reference)
    logprobs = torch.tensor([-8.0, -24.0, -30.0, -40.0 - 1e-9], dtype=torch.float64)
    terms = [
        dpo_objective(*logprobs[2 * pair : 2 * pair + 2, None], *reference[2 * pair : 2 * pair + 2, None], beta=0.5)
        for pair in (0, 1)
    ]
    found = measured(given, terms, 0.5)
    assert found["accuracy"] == 0.5
    assert found["margin"] == pytest.approx(0.5 * (2 + 4) / 2)
    assert (found["chosen_reward"], found["rejected_reward"]) == (pytest.approx(0.5), pytest.approx(-1.0))
    assert (found["chosen_logprob"], found["rejected_logprob"]) == (pytest.approx(-19), pytest.approx(-32))
    assert (found["chosen_tokens"], found["rejected_tokens"], found["pairs"]) == (3.5, 3, 2)
    assert found["loss"] == found["preference_loss"] == pytest.approx((0.04858735157 + 0.69314718) / 2)


def test_a_step_without_pairs_measures_0():
    assert set(measured(pairs(), [], 0.05).values()) == {0.0}


class FakeRun:
    """Keeps what is noted."""

    def __init__(self):
        self.tables = {}

    def note_rows(self, table, rows):
        self.tables.setdefault(table, []).extend(rows)


def test_tasks_without_a_pair_are_counted_and_named(capsys):
    tries = [one_try(0, task="a", right=True), one_try(1, task="a"), one_try(0, task="b"), one_try(1, task="b")]
    run = FakeRun()
    table = pairs_of_round(run, tries, 2, graded=False, at_most=1)
    assert table["id"].to_pylist() == ["a", "a"]
    assert table["number"].to_pylist() == [0, 1]
    assert [(row["task"], row["levels"], row["right"], row["pairs"]) for row in run.tables["tries"]] == [
        ("a", "3 1", 1, 1), ("b", "1 1", 0, 0),
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "round 2: 25% of 4 tries are right" in said
    assert "round 2: 1 of 2 tasks have no pair, the first is b" in said


def test_a_round_without_any_pair_is_reported_in_one_sentence(capsys):
    table = pairs_of_round(FakeRun(), [one_try(0), one_try(1)], 3, graded=True, at_most=1)
    assert len(table) == 0
    assert (
        "round 3: no task has both a better and a worse try, so nothing is learned from them" in capsys.readouterr().err
    )


def test_the_pairs_of_a_round_are_written_down_and_shown_if_asked():
    tries = [one_try(0, task="a", right=True), one_try(1, task="a")]
    table = pa.Table.from_pylist(pair_rows([tuple(tries)]), schema=pa.schema(list(ROW_COLUMNS.items())))
    for shown in (False, True):
        run = FakeRun()
        write_round(run, table, lambda ids: " ".join(map(str, ids)), is_shown=shown)
        assert run.tables["rewards"] == [
            {"task": "a", "chosen": 0, "rejected": 1, "chosen_level": 3, "rejected_level": 1}
        ]
        assert [row["text"] for row in run.tables.get("rollouts", [])] == (
            ["20 21 30 12", "20 21 31 12"] if shown else []
        )
