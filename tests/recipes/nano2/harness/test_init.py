"""lm-eval and our own evaluation read the same model by different code, and agree."""

import math
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from nemotron.config import parse_command_line
from nemotron.recipes.chat.tokenizer import load_chat_tokenizer
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT
from nemotron.recipes.nano2 import __main__ as nano2
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.harness import ALIGNED, BASE, TASK_FILES, HarnessConfig, run_harness
from nemotron.recipes.nano2.stage1_sft import evaluation as stage1_evaluation
from nemotron.recipes.nemotron_h.checkpoint import load_checkpoint
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.scoring.exercises import Mode, ask
from nemotron.recipes.scoring.likelihood import score_rows
from nemotron.recipes.scoring.multiple_choice import Question, choice_accuracy, pick_choices
from nemotron.recipes.sources.exercises.families import exam_exercises
from nemotron.recipes.sources.problems.families import generate_problems

ROOT = Path(__file__).parents[4]
STAGES = (ROOT / "recipes" / "nano2").glob("stage*")
EVALUATIONS = [import_module(f"nemotron.recipes.nano2.{stage.name}.evaluation") for stage in sorted(STAGES)]
OURS = ("nemotron_problems", "nemotron_replies", "nemotron_exercises")
NUMBER = 8  # documents; 2 for the exercises, because transformers writes a reply in seconds
pytestmark = pytest.mark.filterwarnings("default")  # of lm-eval and the libraries that it imports


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def model_path(stage1) -> Path:
    return stage1.checkpoint.checkpoint_path


def config_with(*tasks, harness="lm-eval"):
    return stage1_evaluation.Config(harness=harness, tasks=tasks)


@pytest.fixture(scope="module")
def metrics(model_path, tmp_path_factory):
    work = tmp_path_factory.mktemp("lm_eval")
    found = run_harness(config_with(OURS[2]), model_path, work, {"number": 2})
    found |= run_harness(config_with(*OURS[:2]), model_path, work, {"number": NUMBER})
    return found | {"table": (work / "lm_eval.md").read_text()}


def test_the_accuracy_on_problems_equals_ours(model_path, metrics):
    model, tokenizer = load_checkpoint(model_path), load_chat_tokenizer(CHAT, model_path)
    questions = [
        Question(f"Question: {one.question}\nAnswer:" if one.steps else one.question, one.choices, one.correct)
        for one in generate_problems(NUMBER, 0, "evaluation")
    ]
    score = partial(score_rows, model, batch_tokens=2048)
    picked = pick_choices(score, questions, lambda text: tokenizer.encode(text).ids, END_OF_DOCUMENT)
    accuracy = choice_accuracy(questions, picked)
    assert metrics["lm_eval/nemotron_problems/acc"] == pytest.approx(accuracy.accuracy, abs=1e-9)


def test_the_likelihood_of_right_replies_equals_ours(model_path, metrics):
    model, tokenizer = load_checkpoint(model_path), load_chat_tokenizer(CHAT, model_path)
    rows, counted = [], []
    for exercise in exam_exercises(NUMBER, 0):
        right = {"role": "assistant", "content": f"<think></think>{exercise.answer}"}
        encoded = CHAT.encode(tokenizer, [*CHAT.with_flag(exercise.messages, thinking=False), right], exercise.tools)
        rows.append(encoded.ids)
        counted.append(encoded.in_loss)
    losses = [
        sum(loss for loss, counts in zip(scores.losses, in_loss[1:], strict=True) if counts)
        for scores, in_loss in zip(score_rows(model, rows, batch_tokens=2048), counted, strict=True)
    ]
    # lm-eval reports exp of the mean negative log-likelihood of a reply.
    assert math.log(metrics["lm_eval/nemotron_replies/perplexity"]) == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


def test_the_accuracy_on_exercises_equals_ours(model_path, metrics):
    model, tokenizer = load_checkpoint(model_path), load_chat_tokenizer(CHAT, model_path)
    mode = Mode("no_think", Sampling(max_new_tokens=64), thinking=False)
    answered = ask(model, tokenizer, CHAT, exam_exercises(2, 0), mode, seed=0, batch_replies=64)
    right = sum(one.right for one in answered) / len(answered)
    assert metrics["lm_eval/nemotron_exercises/exact_match"] == pytest.approx(right, abs=1e-9)


def test_the_table_has_a_line_for_each_metric(metrics):
    lines = metrics["table"].splitlines()
    assert lines[0] == "| task | metric | this model | published, percent | shots | seeds |"
    assert {line.split(" | ")[0] for line in lines[2:]} == {f"| {task}" for task in OURS[:2]}


@pytest.mark.parametrize("module", EVALUATIONS, ids=lambda module: module.__name__.split(".")[-2])
def test_every_evaluation_step_has_the_flags_and_runs_the_harness(module):
    assert issubclass(module.Config, HarnessConfig)
    assert "run_harness(config, " in Path(module.__file__).read_text(encoding="utf-8")


def test_the_flags_of_an_evaluation_step_add_the_metrics_of_lm_eval(stage1, tmp_path):
    flags = ["--harness", "lm-eval", "--tasks", "nemotron_problems", "nemotron_replies"]
    config = parse_command_line(stage1_evaluation.Config, [*flags, "--output-dir", str(tmp_path / "evaluation")])
    results = stage1_evaluation.main(replace(config, checkpoint_path=stage1.checkpoint.path))
    added = {name: value for name, value in results.metrics.items() if name.startswith("lm_eval/")}
    assert {*added} >= {"lm_eval/nemotron_problems/acc", "lm_eval/nemotron_replies/perplexity"}
    assert {name: value for name, value in results.metrics.items() if name not in added} == stage1.results.metrics
    assert (results.path / "lm_eval.md").is_file()


def test_nothing_runs_without_the_flag(tmp_path):
    assert run_harness(config_with(harness="none"), tmp_path, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("harness", "tasks", "sentence"),
    [
        ("none", ("gsm8k",), "tasks=gsm8k have no effect without --harness lm-eval; add it"),
        ("lm-eval", (), "--harness lm-eval runs nothing without --tasks; name at least one"),
        ("lm-eval", ("no_such_task",), "lm-eval has no task no_such_task; `lm-eval ls tasks` lists them"),
    ],
)
def test_a_mistake_is_one_sentence(harness, tasks, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        config_with(*tasks, harness=harness)


def test_a_missing_lm_eval_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'^lm-eval is not installed; run pip install "nemotron-recipes'):
        config_with(OURS[0])


@pytest.mark.parametrize("module", EVALUATIONS, ids=lambda module: module.__name__.split(".")[-2])
def test_a_mistake_is_refused_before_any_work_of_any_stage(module):
    with pytest.raises(ValueError, match="--harness lm-eval runs nothing without --tasks"):
        module.Config(harness="lm-eval")


def test_the_whole_command_refuses_an_unknown_task(tmp_path, capsys):
    flags = ["--output-dir", str(tmp_path / "out"), "--rlhf.eval.harness", "lm-eval", "--rlhf.eval.tasks", "no_such"]
    with pytest.raises(SystemExit):
        parse_command_line(nano2.Config, flags)
    assert "lm-eval has no task no_such" in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_one_sentence(model_path, tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    # As with the environment variable HF_HUB_OFFLINE, which both read when they are imported.
    for place in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(place, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="lm-eval cannot read the data of piqa: "):
        run_harness(config_with("piqa"), model_path, tmp_path)


def test_every_published_benchmark_is_a_task_of_lm_eval():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager(include_path=str(TASK_FILES)).all_tasks)
    assert {*BASE, *ALIGNED, *OURS} <= known
