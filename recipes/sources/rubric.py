"""A rubric for replies in a conversation: five rules that stand in for the judgment of people in HelpSteer3.

In: an exercise (its question, and in its details what a right reply states) and a reply, without its thought. Out: five
parts from 0 to 1, and their weighted mean.

    helpful    it states an answer of the kind that is asked for: a number, or one of the words in question
    correct    the share of the answers it states that are right: "It is 7 or 9." earns a half
    concise    at most 8 words, or as many less than all as it has more; and no sentence twice
    language   English, the language of every context: the share of its words that are among the frequent words of
               English below, or in the question. A bare number has no word and earns a half. From 20 words on,
               py3langid decides
    tone       a half for a whole sentence (an upper-case letter first, a full stop, "!" or "?" last), and a half for no
               shouting and no rude word

A prompt of the user has no answer to compare with; it is judged by the last three parts. An empty reply earns nothing.

    python -c "from nemotron.recipes.sources.rubric import *; print(language_part('Es ist 9.', 'What is 4 + 5?'))"

HelpSteer3 (arXiv 2505.11475) has one preference for each pair, of helpfulness as a whole; the parts and their weights
are our choice. Left out: whether a sentence makes sense, which no rule can check.
"""

import json
import re
from collections.abc import Mapping

from nemotron.recipes.sources.exercises.exercise import Exercise
from nemotron.recipes.sources.languages import likeliest_language

WEIGHTS = {"helpful": 2, "correct": 4, "concise": 1, "language": 2, "tone": 1}
"""Of each part in the total, our choice: a wrong answer in the best form is worse than a right one in a poor form."""
MAX_WORDS = 8  # our choice: twice the words of "It is 9."
IDENTIFIED_WORDS = 20  # our choice: below it, py3langid recognizes few texts
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+(?: |$)")  # tried once a run: a policy may write thousands of "!"
RUDE = {"dumb", "duh", "idiot", "lazy", "obviously", "shut", "stupid", "whatever"}
FREQUENT = """
    a about after again agreed all allowed also am an and answer any are as ask at be because been before both but by
    call can cannot code could day did do does each enter equals ever find first for from get give glad go good great
    had has have he hello help her here hi him his how i if in is it its it's just key know last let like lift long made
    make many may me more most must my need new next no not now number obviously of on one only open or other our out
    over password please press question right said same say see she should so some sorry such sure take tell than thank
    thanks that the their them then there these they thing think this time to too true turn two up us use very want was
    way we welcome well were what when where which who will with word words would yes you your
    """
"""Words of English, with those that replies to the exercises use."""
ENGLISH = {*FREQUENT.split()}


def rubric_parts(exercise: Exercise, reply: str) -> dict[str, float]:
    """The parts that a reply earns, in the order of `WEIGHTS`; only the last three without an answer in the details."""
    details = json.loads(exercise.details)
    text = " ".join(reply.split())
    question = exercise.messages[-1]["content"]
    parts: dict[str, float] = {}
    if "value" in details:
        stated = stated_values(text, details["candidates"])
        parts["helpful"] = float(bool(stated))
        parts["correct"] = (details["value"] in stated) / max(1, len(stated))
    parts["concise"] = concise_part(text)
    parts["language"] = language_part(text, question)
    parts["tone"] = tone_part(text)
    return parts if text else dict.fromkeys(parts, 0.0)


def rubric_total(parts: Mapping[str, float]) -> float:
    """The weighted mean of the parts, rounded so that replies that deserve the same get the same."""
    weights = [WEIGHTS[name] for name in parts]
    return round(sum(w * part for w, part in zip(weights, parts.values(), strict=True)) / sum(weights), 12)


def stated_values(text: str, candidates: list[str]) -> set[str]:
    """The different answers that a text states: the candidates among its words or, if there are none, its numbers."""
    if candidates:
        return {word.casefold() for word in WORD.findall(text)} & set(candidates)
    return set(re.findall(r"[0-9]+", text))


def concise_part(text: str) -> float:
    """1 up to MAX_WORDS words; then the limit's share of the words. Repeated sentences count as one of all."""
    sentences = [sentence.strip().casefold() for sentence in SENTENCE_END.split(text) if sentence.strip()]
    return min(1.0, MAX_WORDS / max(1, len(text.split()))) * len(set(sentences)) / max(1, len(sentences))


def language_part(text: str, question: str) -> float:
    """How far a text is English."""
    words = [word.casefold() for word in WORD.findall(text)]
    if len(words) >= IDENTIFIED_WORDS:
        return float(likeliest_language(text) == "en")
    known = ENGLISH | {word.casefold() for word in WORD.findall(question)}
    return sum(word in known for word in words) / len(words) if words else 0.5


def tone_part(text: str) -> float:
    """A half for a whole sentence, and a half for politeness."""
    words = WORD.findall(text)
    is_sentence = text[:1].isupper() and text.endswith((".", "!", "?"))
    shouts = any(len(word) > 1 for word in words) and text == text.upper()
    is_rude = any(word.casefold() in RUDE for word in words)
    return (is_sentence + (not shouts and not is_rude)) / 2
