"""The rules that drop conversations.

In: conversations. Out: a `Rule` for each thing that can be wrong with one, for `apply_to_files`. An exercise is a
conversation with its right reply.
Sources: the Nano 2 paper (arXiv 2508.14444), and Nemotron 3 Nano as proxy; most thresholds name their source.

    rules = [structure_rule(check), repetition_rule(), answer_language_rule()]
    paths = apply_to_files(paths, rules, reports, directory / "first", document_conversation)
    rules = [duplicate_rule(paths), contamination_rule(questions)]
    paths = apply_to_files(paths, rules, reports, directory / "second", document_conversation)

Left out: judging an answer by a language model.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nemotron.recipes.curation.decontaminate import evaluation_runs, first_overlap, words_of
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources.conversations import Conversation, stored_conversations
from nemotron.recipes.sources.dataframes import Task, run_tasks
from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.languages import likeliest_language

REPEATED_WORDS = 8
MAX_REPETITIONS = 3
MESSAGE_NUMBER = re.compile(r"messages\[([0-9]+)\]")
DIGEST_DIGITS = 32  # of a digest, what is compared: 128 bits, so that no two texts have the same
MIN_ANSWER_WORDS = 20  # our choice: a shorter answer does not show its language


def split_reply(content: str) -> tuple[str, str]:
    """The thought and the answer of an assistant turn that begins with <think>."""
    thought, _, answer = content.strip().removeprefix("<think>").partition("</think>")
    return thought.strip(), answer.strip()


def asked(messages: Iterable[dict[str, Any]]) -> str:
    """What is asked: every text but the assistant's, without layout and case."""
    texts = (message["content"] for message in messages if message["role"] != "assistant")
    return " | ".join(" ".join(text.split()).casefold() for text in texts)


def conversation_of(exercise: Exercise) -> Conversation:
    """The exercise with its right reply, thought included."""
    reply = f"<think>\n{exercise.reasoning}\n</think>\n\n{exercise.answer}"
    return Conversation(
        id=exercise.id,
        category=exercise.family,
        reasoning=True,
        messages=(*exercise.messages, {"role": "assistant", "content": reply}),
        tools=exercise.tools,
        licence="Apache-2.0",
        origin="procedural",
    )


def structure_rule(check: Callable[[Conversation], None]) -> Rule[Conversation]:
    """Drops conversations that the chat format cannot express, and those that do not end with a reply.

    A fault numbers the messages as in the source's row, which lacks the system message that the reader may add.

    Args:
        check: raises a ValueError that says what is wrong with a conversation.
    """

    def fault(conversation: Conversation) -> str | None:
        try:
            check(conversation)
        except ValueError as error:
            number = MESSAGE_NUMBER.match(str(error))
            if number is None:
                return str(error)
            index = max(0, int(number[1]) - conversation.num_added_messages)
            return f"messages[{index}]{str(error)[number.end() :]}"
        return None if conversation.messages[-1]["role"] == "assistant" else "it does not end with a reply"

    return Rule("structure", "the chat template can express it (proxy: Nemotron 3 Nano)", fault, prints_reasons=True)


def repetition_fault(conversation: Conversation) -> str | None:
    """The first run of 8 words that one assistant turn holds more than 3 times."""
    for message in conversation.messages:
        if message["role"] != "assistant":
            continue
        words = words_of(message["content"])
        counts: Counter[tuple[str, ...]] = Counter()
        for start in range(len(words) - REPEATED_WORDS + 1):
            run = tuple(words[start : start + REPEATED_WORDS])
            counts[run] += 1
            if counts[run] > MAX_REPETITIONS:
                return " ".join(run)
    return None


def repetition_rule() -> Rule[Conversation]:
    """Drops conversations in which an assistant turn repeats itself."""
    threshold = (
        f"no {REPEATED_WORDS} words in a row more than {MAX_REPETITIONS} times in one reply "
        f"(proxy: Nemotron 3 Nano drops repeated n-grams)"
    )
    return Rule("repetition", threshold, repetition_fault)


def answer_language_fault(conversation: Conversation) -> str | None:
    """The language of the last answer, if it is not the one that the category names.

    Categories are those of the released datasets, such as multilingual_de.
    """
    _, named, language = conversation.category.partition("multilingual_")
    answer = split_reply(conversation.messages[-1]["content"])[1]
    if not named or len(words_of(answer)) < MIN_ANSWER_WORDS:
        return None
    found = likeliest_language(answer)
    return None if found == language else f"the answer is {found}, not {language}"


def answer_language_rule() -> Rule[Conversation]:
    """Drops conversations whose answer is not in the language of their category."""
    threshold = "the answer is in the language of its category (published: language ID for the multilingual set)"
    return Rule("language", threshold, answer_language_fault)


def duplicate_rule(paths: Sequence[Path]) -> Rule[Conversation]:
    """Drops conversations that ask and answer the same as an earlier one, in every turn and with the same tools.

    Args:
        paths: files of all conversations, in order; of each, a digest is held while duplicates are looked for.
    """

    def digests(task: Task) -> Task:
        keys = map(asked_and_answered, stored_conversations([Path(task["path"])]))
        return {"digests": [digest_of(key)[:DIGEST_DIGITS] for key in keys]}

    found = run_tasks(digests, [{"path": str(path)} for path in paths])
    keys = np.array([key for result in found for key in result.pop("digests")], dtype=f"S{DIGEST_DIGITS}")
    _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
    ids = pa.chunked_array([pq.read_table(path, columns=["id"])["id"].combine_chunks() for path in paths], pa.string())
    repeated = np.flatnonzero(first[kind] != np.arange(len(keys)))
    dropped = {ids[index].as_py(): ids[first[kind[index]]].as_py() for index in repeated}

    def fault(conversation: Conversation) -> str | None:
        earlier = dropped.get(conversation.id)
        return None if earlier is None else f"the same as {earlier}"

    return Rule("duplicates", "no earlier conversation asks and answers the same", fault)


def asked_and_answered(conversation: Conversation) -> str:
    """A key that is equal for two conversations if they are duplicates of each other."""
    turns = [
        message if message["role"] == "assistant" else {"role": message["role"], "asked": asked([message])}
        for message in conversation.messages
    ]
    return json.dumps([turns, conversation.tools], sort_keys=True)


class Length(NamedTuple):
    """How long a conversation is."""

    id: str
    num_tokens: int
    """In the longest of the rows that it becomes."""


def length_rule(name: str, threshold: str, capacity: int) -> Rule[Length]:
    """Drops conversations with more than `capacity` tokens."""

    def fault(length: Length) -> str | None:
        return f"{length.num_tokens} tokens" if length.num_tokens > capacity else None

    return Rule(name, threshold, fault, remedy="raise --sequence-length or --long-context-length")


def contamination_rule(evaluation_questions: Set[str]) -> Rule[Conversation]:
    """Drops conversations that ask a question of the evaluation or share 13 words in a row with one.

    Generated exercises share their wording with the evaluation but, by construction, none of its tasks, so one is
    dropped only if it asks the very same question.

    Args:
        evaluation_questions: what `asked` returns for each evaluation exercise.
    """
    in_words = {" ".join(words_of(question)) for question in evaluation_questions}
    runs = {"evaluation": evaluation_runs(evaluation_questions)}

    def fault(conversation: Conversation) -> str | None:
        text = asked(conversation.messages)
        if text in evaluation_questions:
            return f"asked in evaluation: {text}"
        if conversation.origin == "procedural":
            return None
        if " ".join(words_of(text)) in in_words:
            return f"asked in evaluation, except for punctuation: {text}"
        return first_overlap(text, runs)

    threshold = "asks no question of the evaluation and shares no 13 words in a row with one (GPT-3)"
    return Rule("decontamination", threshold, fault)
