"""What the evaluations of the earlier stages measure, of every model that compression compares.

In: the models, and the Dataset of compression. Out: metrics, and digests of what the models wrote.

    stage 0    bits per byte of held-out text
    stage 2    the reward of held-out instructions, and how many are followed
    stage 3    the success of tries at held-out tasks with tools, by the state of the database
    stage 4    the rubric of held-out conversations

The exercises are the first of those that each stage holds out, with the default difficulties and lengths of that stage
at this scale; the measures are its functions. Every model gets the same prompts and the same uniform numbers; one reply
to a prompt.
Stage 1 measures the exam, which evaluation.py takes.
Left out: stage 0's problems, recall and n-gram model, and the exam within a thinking budget, which stage 1 takes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from nemotron.recipes.curation.digests import falls_into_share, sha256_of
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.nano2.stage2_rlvr import data_curation as instructions_data
from nemotron.recipes.nano2.stage2_rlvr import evaluation as instructions_evaluation
from nemotron.recipes.nano2.stage3_dpo import data_curation as tools_data
from nemotron.recipes.nano2.stage3_dpo import evaluation as tools_evaluation
from nemotron.recipes.nano2.stage4_rlhf import data_curation as chat_data
from nemotron.recipes.nano2.stage4_rlhf import evaluation as chat_evaluation
from nemotron.recipes.nano2.stage5_compress.data_curation import PRETRAINING, Dataset
from nemotron.recipes.nemotron_h.checkpoint import load_tokenizer
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.scoring.bits_per_byte import bits_per_byte, token_byte_lengths
from nemotron.recipes.scoring.exam import MODES
from nemotron.recipes.scoring.judge import Judge
from nemotron.recipes.scoring.likelihood import score_rows
from nemotron.recipes.scoring.rewards import Verifier
from nemotron.recipes.sources.exercises import instructions
from nemotron.recipes.sources.exercises.exercise import of_every_difficulty
from nemotron.recipes.training.rollouts import draw_replies
from nemotron.recipes.training.tries import draw_tries, try_metrics


class Found(NamedTuple):
    """What was measured."""

    metrics: dict[str, float]
    """Measure/model -> number."""
    digests: dict[str, str]
    """Stage and model -> sha256 of the tokens that it wrote."""


def text_metrics(models: Mapping[str, NemotronH], dataset: Dataset, tokenizer_path: Path, config: Any) -> Found:
    """Stage 0: bits per byte of the held-out text of pretraining."""
    rows = [row["tokens"] for row in pq.read_table(dataset.validation_path, columns=["source", "tokens"]).to_pylist()
            if row["source"] == PRETRAINING]  # fmt: skip
    byte_lengths = token_byte_lengths(load_tokenizer(tokenizer_path))
    metrics = {}
    for name, model in models.items():
        scores = score_rows(model, rows, batch_tokens=config.batch_tokens, device=config.device)
        measured = bits_per_byte([one.losses for one in scores], rows, byte_lengths)
        metrics[f"bits_per_byte/{name}"] = measured.bits_per_byte
    return Found(metrics, {})


def instruction_metrics(models: Mapping[str, NemotronH], verify: Verifier, config: Any) -> Found:
    """Stage 2: the reward of held-out instructions, asked with and without thinking."""
    of_stage = instructions_data.Config(scale=config.scale)
    held_out = of_every_difficulty(
        instructions.generate_exercises, config.held_out, config.seed, "evaluation", of_stage.max_difficulty
    )
    prompts = [verify.prompt_of(one, thinking=thinking) for thinking in MODES.values() for one in held_out]
    max_new_tokens = instructions_evaluation.Config(scale=config.scale).max_new_tokens
    free = Sampling(max_new_tokens, verify.chat.stop_ids, 1.0)
    found = Found({}, {})
    for name, model in models.items():
        replies = draw_replies(model, prompts, 1, free, ("held out", config.seed), num_slots=config.batch_replies)
        rewards = verify(prompts, replies)
        found.metrics.update(instructions_evaluation.held_out_metrics(name, prompts, rewards, 1))
        found.digests[f"instructions/{name}"] = digest(reply.tokens for reply in replies)
    return found


def tool_metrics(models: Mapping[str, NemotronH], verify: Verifier, config: Any) -> Found:
    """Stage 3: tries at held-out tasks with tools, judged by the database that they leave behind."""
    of_stage = tools_data.Config(scale=config.scale, seed=config.seed)
    settings = tools_evaluation.Config(scale=config.scale)
    tasks = tools_data.tasks_of_every_difficulty(config.held_out, of_stage, "evaluation")
    prompts = [
        verify.prompt_of(one, thinking=falls_into_share(of_stage.thinking_share, "thinking", config.seed, one.id))
        for one in tasks
    ]
    free = Sampling(settings.max_new_tokens, verify.chat.stop_ids, 1.0)
    found, tries = Found({}, {}), {}
    for name, model in models.items():
        purpose = ("held out", config.seed)
        tries[name] = draw_tries(model, verify, prompts, 1, free, purpose, max_turns=settings.max_turns)
        found.digests[f"tools/{name}"] = digest(written for one in tries[name] for written in one.tokens)
    first, *others = tries
    for name in others:  # try_metrics compares two models; what it says of each is kept, the differences are not
        both = try_metrics({first: tries[first], name: tries[name]}, 1)
        found.metrics.update({key: value for key, value in both.items() if key.endswith((f"/{first}", f"/{name}"))})
    return found


def chat_metrics(models: Mapping[str, NemotronH], judge: Judge, config: Any) -> Found:
    """Stage 4: the rubric of held-out conversations, asked with and without thinking; no reward model."""
    of_stage = chat_data.Config(scale=config.scale, seed=config.seed)
    held_out = chat_data.conversations(config.held_out, of_stage, "evaluation")
    prompts = [judge.prompt_of(one, thinking=thinking) for thinking in MODES.values() for one in held_out]
    questions = [place % len(held_out) for place in range(len(prompts))]
    max_new_tokens = chat_evaluation.Config(scale=config.scale).max_new_tokens
    free = Sampling(max_new_tokens, judge.chat.stop_ids, 1.0)
    found = Found({}, {})
    for name, model in models.items():
        replies = draw_replies(model, prompts, 1, free, ("held out", config.seed), num_slots=config.batch_replies)
        measured = chat_evaluation.chat_metrics(name, judge(prompts, replies), questions)
        del measured[f"score/{name}"]  # without a reward model, the rubric once more
        found.metrics.update(measured)
        found.digests[f"conversations/{name}"] = digest(reply.tokens for reply in replies)
    return found


def digest(replies: Iterable[Sequence[int]]) -> str:
    """sha256 of the tokens of all replies."""
    return sha256_of(str(token) for tokens in replies for token in [*tokens, -1])


def earlier_evaluations(models: Mapping[str, NemotronH], dataset: Dataset, tokenizer_path: Path, config: Any) -> Found:
    """All of them, of every model.

    Args:
        models: two or more, the teacher first.
        tokenizer_path: directory of the tokenizer, which all models share.
        config: of the evaluation: scale, seed, device, held_out, batch_replies and batch_tokens.
    """
    verify = Verifier(CHAT, tokenizer_path)
    parts = [
        text_metrics(models, dataset, tokenizer_path, config),
        instruction_metrics(models, verify, config),
        tool_metrics(models, verify, config),
        chat_metrics(models, Judge(CHAT, tokenizer_path), config),
    ]
    metrics = {key: value for part in parts for key, value in part.metrics.items()}
    return Found(metrics, {key: value for part in parts for key, value in part.digests.items()})
