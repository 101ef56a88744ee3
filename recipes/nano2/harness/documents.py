"""The documents of the task files beside this module, and the grade of a reply. lm-eval reads this file by its path.

In: the directory of a model, the number of documents of each family, and a seed, which lm-eval passes as `--metadata`.
Out: problems with choices, exercises as prompts, and right replies, all from the evaluation split, which no stage
trains on. Prompts have no wish for thinking: a greedy reply without a thought is short, and nothing is drawn.
"""

from pathlib import Path
from typing import Any

import datasets

from nemotron.recipes.chat.template import format_of
from nemotron.recipes.curation.tokenizer import END_OF_DOCUMENT, SPECIAL_TOKENS
from nemotron.recipes.nano2.chat import CHAT
from nemotron.recipes.sources.exercises.exercise import Exercise, exercise_from_row, exercise_to_row
from nemotron.recipes.sources.exercises.families import VERIFIERS, exam_exercises
from nemotron.recipes.sources.problems.families import generate_problems


def split_of(documents: list[dict[str, Any]]) -> dict[str, datasets.Dataset]:
    """The documents as lm-eval reads them."""
    return {"test": datasets.Dataset.from_list(documents)}


def problems(number: int = 32, seed: int = 0, **_: Any) -> dict[str, datasets.Dataset]:
    """Problems of stage 0. A choice ends with the end of the document: else "1" is always likelier than "12"."""
    end = SPECIAL_TOKENS[END_OF_DOCUMENT]
    return split_of(
        [
            {
                "id": problem.id,
                "prompt": f"Question: {problem.question}\nAnswer:" if problem.steps else problem.question,
                "choices": [f" {choice}{end}" for choice in problem.choices],
                "correct": problem.correct,
            }
            for problem in generate_problems(number, seed, "evaluation")
        ]
    )


def exercises(pretrained: str, number: int = 8, seed: int = 0, **_: Any) -> dict[str, datasets.Dataset]:
    """Exercises of the later stages: prompts up to where a reply begins, and right replies with the end of the turn."""
    chat = format_of(CHAT, Path(pretrained))
    documents = []
    for exercise in exam_exercises(number, seed):
        asked = chat.with_flag(exercise.messages, thinking=False)
        prompt = chat.render(asked, exercise.tools, add_generation_prompt=True)
        right = {"role": "assistant", "content": chat.reply_prefixes[False] + exercise.answer}
        pieces = chat.pieces([*asked, right], exercise.tools, add_generation_prompt=False)
        reply = "".join(piece.text for piece in pieces if piece.in_loss)
        documents.append({"id": exercise.id, "prompt": prompt, "reply": reply, "exercise": exercise_to_row(exercise)})
    return split_of(documents)


def grade(document: dict[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether a reply is right, by the verifier of its family. lm-eval has removed the special tokens."""
    exercise: Exercise = exercise_from_row(document["exercise"])
    reply = CHAT.parse_reply(replies[0], thinking=False)
    answer = replies[0].strip()
    return {"exact_match": float(not reply.errors and VERIFIERS[exercise.family].check_answer(exercise, answer))}
