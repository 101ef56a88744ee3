"""The measures of held-out pairs; those of tries and the exam are tested in tests/recipes/training and scoring."""

import json

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nano2.stage3_dpo import evaluation
from nemotron.recipes.nano2.stage3_dpo.evaluation import Config
from nemotron.recipes.nemotron_h.generate import Continuation
from nemotron.recipes.nemotron_h.model import NemotronH, initialize
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.training.tries import Try, Turn


def model_of(seed):
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, seed)
    return model


@pytest.fixture(scope="module")
def models():
    return {"start": model_of(0), "policy": model_of(1)}


def one_try(task, number, written, *, right):
    exercise = Exercise(task, "workplace", (), (), "", "", "", json.dumps({"kind": "look_up"}))
    turn = Turn((20, 21), Continuation(list(written), [0.0] * len(written), [False] * len(written), "stop"))
    return Try(Prompt(exercise, False, (20, 21)), number, [], {}, [turn], right=right, ended=True)


def logprob(model, written):
    tokens = torch.tensor([[20, 21, *written]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens)[0, 1:-1], dim=-1)
    return logprobs.gather(1, tokens[0, 2:, None]).sum().item()


def test_accuracy_and_margin_are_those_of_the_policy_against_the_start(models):
    texts = {"a": ((30, 12), (31, 32, 12)), "b": ((33, 12), (34, 12)), "c": ((35, 36, 12), (37, 12))}
    tries = [
        one_try(task, number, written, right=number == 0)
        for task, pair in texts.items()
        for number, written in enumerate(pair)
    ]
    ratio = {
        written: logprob(models["policy"], written) - logprob(models["start"], written)
        for pair in texts.values()
        for written in pair
    }
    margins = [ratio[chosen] - ratio[rejected] for chosen, rejected in texts.values()]
    for micro in (1, 8):
        found = evaluation.preferences(models, tries, Config(micro_batch_pairs=micro), graded=False)
        assert found["held_out_pairs"] == 3
        assert found["preference_margin"] == pytest.approx(sum(margins) / 3, rel=1e-9)
        assert found["preference_accuracy"] == sum(margin > 0 for margin in margins) / 3


def test_a_policy_that_has_not_moved_prefers_nothing(models):
    tries = [one_try("a", 0, (30, 12), right=True), one_try("a", 1, (31, 12), right=False)]
    same = {"start": models["start"], "policy": models["start"]}
    found = evaluation.preferences(same, tries, Config(), graded=False)
    assert found == {"held_out_pairs": 1.0, "preference_accuracy": 0.0, "preference_margin": 0.0}


def test_without_a_pair_there_is_nothing_to_prefer(models):
    tries = [one_try("a", 0, (30, 12), right=True), one_try("a", 1, (31, 12), right=True)]
    found = evaluation.preferences(models, tries, Config(), graded=True)
    assert found == {"held_out_pairs": 0.0, "preference_accuracy": 0.0, "preference_margin": 0.0}


@pytest.mark.parametrize("name", ["tries", "batch_replies", "max_new_tokens", "max_turns", "micro_batch_pairs"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: Input should be greater than"):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_what_sampling_refuses_is_refused_before_any_work(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        Config(**{name: value})
