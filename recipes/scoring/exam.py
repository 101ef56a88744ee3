"""The exam: every ability of several models, on the same exercises, with what each number must be compared with.

In: models in the order in which they were trained, and held-out exercises of every family. Out: the replies, and
metrics: exact match by family, model and mode with standard errors; the paired difference between a model and the one
before it; the chance level, which is what the best constant reply gets.
Every stage from reinforcement learning on asks it of its own model and of the one it started from, so that the tables
of the stages side by side show what each stage did to each ability.

Left out: the stage that teaches the format (fine-tuning), whose model before it knows neither mode; it has its own
measures in exercises.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from nemotron.recipes.chat.format import ChatFormat
from nemotron.recipes.curation.digests import sha256_of
from nemotron.recipes.nemotron_h.generate import Sampling
from nemotron.recipes.nemotron_h.model import NemotronH
from nemotron.recipes.scoring.chance import Chance, chance_levels, chance_metrics
from nemotron.recipes.scoring.exercises import Answered, Mode, ask, fault_metrics, share, write_replies
from nemotron.recipes.scoring.pass_at_k import paired_difference
from nemotron.recipes.sources.exercises import long_context
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.exercises.families import FAMILIES

MODES = {"think": True, "no_think": False}
"""Name of a mode -> whether the model is asked to think."""


@dataclass(frozen=True)
class Exam:
    """The replies of every model in both modes, and what they are worth."""

    answered: Mapping[tuple[str, str], Sequence[Answered]]
    """Model and mode -> its replies, in the order of the exercises."""
    chance: Mapping[str, Chance]
    """Family -> the constant reply that is right most often."""
    metrics: dict[str, float]
    """Those of `exam_metrics` and of `chance_metrics`."""

    def digests(self) -> dict[str, str]:
        """For a ladder: by "model/mode", the digest of the tokens of all replies."""
        return {f"{model}/{mode}": reply_digest(replies) for (model, mode), replies in self.answered.items()}

    def write_replies(self, path: Path) -> None:
        """Write all replies as Parquet; the mode is "model/mode"."""
        write_replies({f"{model}/{mode}": replies for (model, mode), replies in self.answered.items()}, path)


def take_exam(
    models: Mapping[str, NemotronH],
    tokenizer: Tokenizer,
    chat: ChatFormat,
    exercises: Sequence[Exercise],
    sampling: Sampling,
    *,
    num_answers: int,
    seed: int,
    batch_replies: int,
) -> Exam:
    """Ask every model every exercise in both modes.

    Args:
        models: name -> model, each after the one that it was trained from.
        sampling: how replies with thinking are drawn; those without are greedy, of the same length at most.
        num_answers: training exercises of each family whose right replies are tried as constant replies.
        seed: of the draws, the same for every model, and of the constant replies that are tried.
        batch_replies: replies that are written side by side; changes memory and speed, not the replies.
    """
    modes = [
        Mode(name, sampling if thinking else Sampling(sampling.max_new_tokens), thinking=thinking)
        for name, thinking in MODES.items()
    ]
    answered = {
        (name, mode.name): ask(model, tokenizer, chat, exercises, mode, seed=seed, batch_replies=batch_replies)
        for name, model in models.items()
        for mode in modes
    }
    chance = chance_levels(exercises, num_answers=num_answers, seed=seed)
    return Exam(answered, chance, exam_metrics(answered) | chance_metrics(chance, exercises))


def exam_metrics(answered: Mapping[tuple[str, str], Sequence[Answered]]) -> dict[str, float]:
    """Exact match by family, model and mode with standard errors, and the paired differences between the models.

    A model's share right is the mean over both modes, and so is each exercise's score behind the standard errors.
    `all` is over all families but long context. `difference/<family>` is that of the last model to the one before it;
    where there are more models, `difference/<family>/<model>` is that of an earlier one. If a verifier failed,
    `verifier_faults/exam/<model>` is the share of the replies that it could not judge.

    Args:
        answered: model and mode -> replies to the same exercises; the models in the order in which they were trained.
    """
    metrics: dict[str, float] = {}
    models = list(dict.fromkeys(model for model, _ in answered))
    exercises = [one.exercise for one in next(iter(answered.values()))]
    asked = [family for family in FAMILIES if any(one.family == family for one in exercises)]
    short = [family for family in asked if family != long_context.FAMILY]
    for family in [*asked, "all"] if short else asked:
        families = short if family == "all" else [family]
        chosen = [index for index, one in enumerate(exercises) if one.family in families]
        scores = {model: [0.0] * len(chosen) for model in models}
        for (model, mode), replies in answered.items():
            right = [float(replies[index].right) for index in chosen]
            metrics[f"exact_match/{family}/{model}/{mode}"] = sum(right) / len(right)
            scores[model] = [mean + one / len(MODES) for mean, one in zip(scores[model], right, strict=True)]
        for model, values in scores.items():
            metrics[f"exact_match/{family}/{model}"] = sum(values) / len(values)
            metrics[f"standard_error/{family}/{model}"] = paired_difference(values, [0.0] * len(values)).standard_error
        for before, after in pairwise(models):
            change = paired_difference(scores[after], scores[before])
            name = f"{family}{difference_suffix(after, models)}"
            metrics[f"difference/{name}"], metrics[f"difference_error/{name}"] = change
    obeyed = {
        f"obeyed/{model}/{mode}": share([one.obeyed for one in found]) for (model, mode), found in answered.items()
    }
    faults: dict[str, list[str]] = {f"exam/{model}": [] for model in models}
    for (model, _), found in answered.items():
        faults[f"exam/{model}"] += [one.fault for one in found]
    return metrics | obeyed | fault_metrics(faults)


def difference_suffix(model: str, models: Sequence[str]) -> str:
    """What follows the family in the name of a model's difference to the one before it: nothing for the last model."""
    return "" if model == models[-1] else f"/{model}"


def reply_digest(replies: Sequence[Answered]) -> str:
    """The digest of the tokens of all replies, in their order."""
    return sha256_of(str(token) for one in replies for token in [*one.continuation.tokens, -1])
