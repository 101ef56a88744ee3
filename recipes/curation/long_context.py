"""Long-context training rows, and test rows that measure how far back a model can recall a fact.

In: documents as token ids, each with its module (such as the source file of a docstring). Out: rows of token ids.
Source: arXiv 2508.14444, section 2.6: academic documents above 32k tokens are cut into chunks of 1,024 tokens, a
language model writes questions and answers about a random 10 % of the chunks, and all pairs are appended to the end of
the document.

Offline there is no language model to write questions, so facts ("key -> three digits") are planted in the drawn chunks,
and the questions ask for them. Short documents are joined into one that fills a row. Shorter rows have shorter chunks.
From the first row to the last, facts become more and lie further back from the questions. These are our choices.
Training and evaluation use disjoint sets of keys.

Left out: questions about the document's own content.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemotron.config import our_choice, published
from nemotron.recipes.curation.digests import digest_of
from nemotron.recipes.sources.problems.lookup import draw_facts, fact_sentence, question_sentence
from nemotron.recipes.sources.problems.problem import draw_several, seeded_random

CHUNK_SHARE: float = published(0.1, "Nemotron Nano 2, section 2.6").value
CHUNK_TOKENS: int = published(1024, "Nemotron Nano 2, section 2.6").value
CHUNKS_PER_ROW: int = our_choice(512, "what a published row of 524,288 tokens has; so shorter rows differ less").value
MIN_CHUNK_TOKENS: int = our_choice(64, "long enough for the facts of a chunk").value
MAX_FACTS_PER_CHUNK: int = our_choice(4, "we do not know how many questions the published prompt asks for").value

RECALL_FACTS: int = our_choice(4, "facts in a test row, of which one is asked for").value
MIN_RECALL_DISTANCE: int = our_choice(64, "long enough for a fact and a question").value

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class RecallRow:
    """A text that states facts and ends with a question about one of them, and its answer."""

    tokens: list[int]
    answer_start: int
    """Index in `tokens` of the first digit of the answer; the answer is the last three tokens."""
    distance: int
    """Tokens from the first digit of the fact's value to the first digit of the answer."""
    num_facts: int
    """Facts in the row, each about a different key."""


class LongDocuments(Sequence[list[int]]):
    """Documents of equal length, joined from shorter ones of the same module; one is put together when it is asked for.

    The first document of every long module comes first, then the second of every module that has one, and so on; then
    the documents from several modules. The last tokens, too few for another document, are left out.

    Args:
        documents: (module, token ids without end-of-document) pairs; the documents of a module keep their order.
        separator: token ids between two documents, such as those of a blank line.
        seed: picks the order of the modules.
        length: tokens of each long document.
    """

    def __init__(
        self, documents: Sequence[tuple[str, Sequence[int]]], *, separator: list[int], seed: int, length: int
    ) -> None:
        self.documents, self.separator, self.length = documents, separator, length
        members: dict[str, list[int]] = {}
        for index, (module, _) in enumerate(documents):
            members.setdefault(module, []).append(index)
        modules = sorted(members, key=lambda module: digest_of(seed, module))
        # Module by module, each with a separator after it, documents are one text; a long document is a part of it.
        self.order = np.array([index for module in modules for index in members[module]], dtype=np.int64)
        sizes = np.array([len(documents[index][1]) + len(separator) for index in self.order], dtype=np.int64)
        self.ends = np.cumsum(sizes)
        last = np.cumsum([len(members[module]) for module in modules], dtype=np.int64) - 1
        stops = self.ends[last]
        starts = np.concatenate([[0], stops]).astype(np.int64)[: len(stops)]
        wholes = (stops - starts) // length
        # Long documents within a module, by their number in it and then by module.
        number = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.arange, wholes)])
        within = np.repeat(starts, wholes) + number * length
        self.within = within[np.argsort(number, kind="stable")]
        # What is left of each module, joined.
        self.rest_starts = starts + wholes * length
        self.rest_ends = np.cumsum(stops - self.rest_starts)

    def __len__(self) -> int:
        num_rest = int(self.rest_ends[-1]) // self.length if len(self.rest_ends) else 0
        return len(self.within) + num_rest

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index < len(self.within):
            return self._text(int(self.within[index]), self.length)
        tokens: list[int] = []
        place = (index - len(self.within)) * self.length  # in what is left of all modules
        module = int(np.searchsorted(self.rest_ends, place, side="right"))
        while len(tokens) < self.length:
            before = int(self.rest_ends[module - 1]) if module else 0
            offset = place + len(tokens) - before
            number = min(self.length - len(tokens), int(self.rest_ends[module]) - before - offset)
            tokens += self._text(int(self.rest_starts[module]) + offset, number)
            module += 1
        return tokens

    def _text(self, start: int, number: int) -> list[int]:
        """The next `number` tokens from a place of the whole text on."""
        tokens: list[int] = []
        place = int(np.searchsorted(self.ends, start, side="right"))
        while len(tokens) < number:
            _, document = self.documents[int(self.order[place])]
            offset = start + len(tokens) - (int(self.ends[place]) - len(document) - len(self.separator))
            room = number - len(tokens)
            tokens += [*document[offset : offset + room], *self.separator[max(0, offset - len(document)) :]][:room]
            place += 1
        return tokens


def long_document_qa(
    documents: Sequence[tuple[str, Sequence[int]]],
    encode: Encode,
    *,
    end_of_document: int,
    seed: int,
    length: int,
    num_sequences: int,
) -> Iterator[list[int]]:
    """Training rows: a long document with facts planted in a tenth of its chunks, then all questions and answers.

    With many rows, the first has one fact, in its last chunk; the last row has `MAX_FACTS_PER_CHUNK` facts in each of
    a tenth of all its chunks. If there are more rows than long documents, documents are reused with other facts.

    Args:
        documents: (module, token ids without end-of-document) pairs of the training split.
        encode: text -> token ids, without special tokens and with every digit a separate token.
        end_of_document: last token of every row.
        seed: picks modules, chunks, keys and values.
        length: predicted tokens of a row: the model's long-context length.
        num_sequences: number of rows.
    Yields:
        `num_sequences` rows of length + 1 token ids.
    Raises:
        ValueError: if the documents together are shorter than one row, or if a row has no room for its facts.
    """
    if num_sequences == 0:
        return
    bodies = _require_long_documents(documents, encode("\n\n"), seed, length + 1)
    chunk_tokens = max(MIN_CHUNK_TOKENS, min(CHUNK_TOKENS, length // CHUNKS_PER_ROW))
    num_chunks = length // chunk_tokens
    generator = seeded_random("long-document-qa", seed)
    for index in range(num_sequences):
        hardness = (index + 1) / num_sequences
        reach = max(1, round(hardness * num_chunks))  # facts are in the last `reach` chunks
        drawn_chunks = draw_several(
            generator, range(num_chunks - reach, num_chunks), max(1, round(reach * CHUNK_SHARE))
        )
        facts_per_chunk = max(1, round(hardness * MAX_FACTS_PER_CHUNK))
        facts = draw_facts(generator, "train", len(drawn_chunks) * facts_per_chunk)
        questions = [encode(_question_line(key, value)) for key, value in draw_several(generator, facts, len(facts))]
        appended = [*encode("\n"), *(token for question in questions for token in question), end_of_document]
        planted = {
            chunk: encode("\n" + "".join(f"{fact_sentence(*fact)}\n" for fact in facts[part :: len(drawn_chunks)]))
            for part, chunk in enumerate(drawn_chunks)
        }
        room = length + 1 - len(appended) - sum(map(len, planted.values()))
        if room < num_chunks:
            raise ValueError(
                f"long_context_length={length} leaves {room} tokens of document beside {len(facts)} facts and "
                f"questions, fewer than {num_chunks}; use a larger long_context_length or vocab_size"
            )
        body = bodies[index % len(bodies)]
        row: list[int] = []
        for chunk in range(num_chunks):
            start, end = room * chunk // num_chunks, room * (chunk + 1) // num_chunks
            middle = start + int(generator.random() * (end - start))
            row += [*body[start:middle], *planted.get(chunk, []), *body[middle:end]]
        yield row + appended


def recall_distances(sequence_length: int, long_context_length: int) -> list[int]:
    """Distances to test, in tokens: 1/4, 1/2, 1, 2, ... times `sequence_length`, then the longest that fits a row."""
    longest = long_context_length * 15 // 16  # the rest is for the text before the fact
    num_doubled = (4 * long_context_length // sequence_length).bit_length()
    doubled = [sequence_length * 2**power // 4 for power in range(num_doubled)]
    return [distance for distance in doubled if MIN_RECALL_DISTANCE <= distance < longest] + [longest]


def recall_rows(
    documents: Sequence[tuple[str, Sequence[int]]],
    encode: Encode,
    *,
    seed: int,
    sequence_length: int,
    long_context_length: int,
    rows_per_distance: int,
) -> list[RecallRow]:
    """Test rows: held-out text with up to four facts, and a question about one of them at a known distance.

    The number of other facts after that fact is drawn for each row, as far as they fit there, so neither the first
    nor the last number of a row is a good guess. Sentences and separators are the same as in training rows; keys are
    different.

    Args:
        documents: (module, token ids without end-of-document) pairs of the held-out split.
        encode: text -> token ids, without special tokens and with every digit a separate token.
        seed: picks text, keys, values and places.
        sequence_length: predicted tokens of a row before the long-context phase.
        long_context_length: predicted tokens of a row in the long-context phase; no test row is longer.
        rows_per_distance: number of rows for each of `recall_distances`.
    Raises:
        ValueError: if the held-out documents are shorter than one row, if digits are not single tokens, or if a
            distance is too short for a fact and a question.
    """
    texts = _require_long_documents(documents, encode("\n\n"), seed, long_context_length + 1)
    generator = seeded_random("recall", seed)
    rows = []
    for distance in recall_distances(sequence_length, long_context_length):
        for _ in range(rows_per_distance):
            text = texts[int(generator.random() * len(texts))]
            facts = draw_facts(generator, "evaluation", RECALL_FACTS)
            (key, value), others = facts[0], facts[1:]
            target, value_start = _encode_with_value(encode, f"\n{fact_sentence(key, value)}\n", value)
            question, answer_start = _encode_with_value(encode, "\n" + _question_line(key, value), value)
            distractors = [encode(f"\n{fact_sentence(other, number)}\n") for other, number in others]
            gap = distance - (len(target) - value_start) - answer_start
            room = long_context_length + 1 - len(target) - gap - answer_start - 3
            if gap < 0 or room < 0:
                raise ValueError(
                    f"sequence_length={sequence_length} and long_context_length={long_context_length} have no room for "
                    f"a fact of {len(target)} and a question of {len(question)} tokens at a distance of {distance}; "
                    f"use larger lengths or a larger vocab_size"
                )
            behind: list[list[int]] = []
            num_behind = int(generator.random() * RECALL_FACTS)
            while len(behind) < num_behind and sum(map(len, behind)) + len(distractors[0]) <= gap:
                behind.append(distractors.pop(0))
            while sum(map(len, distractors)) > room:
                distractors.pop()
            num_before = min(MIN_CHUNK_TOKENS, room - sum(map(len, distractors)))
            num_between = gap - sum(map(len, behind))
            first = int(generator.random() * (len(text) - num_before - num_between + 1))
            filler = iter(text[first:])
            tokens = [
                *_scatter(generator, filler, num_before, distractors),
                *target,
                *_scatter(generator, filler, num_between, behind),
                *question[: answer_start + 3],
            ]
            rows.append(RecallRow(tokens, len(tokens) - 3, distance, 1 + len(behind) + len(distractors)))
    return rows


def _question_line(key: str, value: int) -> str:
    """A question with its answer."""
    return f"{question_sentence(key)} {value:03d}\n"


def _require_long_documents(
    documents: Sequence[tuple[str, Sequence[int]]], separator: list[int], seed: int, length: int
) -> LongDocuments:
    """`LongDocuments`; raises a ValueError if there are none."""
    bodies = LongDocuments(documents, separator=separator, seed=seed, length=length)
    if not bodies:
        tokens = sum(len(document) for _, document in documents)
        raise ValueError(
            f"the {len(documents)} documents have {tokens} tokens, fewer than one long row of {length}; "
            f"use more sources or a smaller long_context_length"
        )
    return bodies


def _encode_with_value(encode: Encode, text: str, value: int) -> tuple[list[int], int]:
    """Token ids of `text`, and the index in them of the first of the three digits of `value`."""
    tokens = encode(text)
    digits = [token for digit in f"{value:03d}" for token in encode(digit)]
    places = [place for place in range(len(tokens) - 2) if tokens[place : place + 3] == digits]
    if len(digits) != 3 or not places:
        raise ValueError(
            f"the tokenizer does not encode {value:03d} in {text!r} as three single digits; "
            f"train one that makes every digit a separate token"
        )
    return tokens, places[-1]


def _scatter(generator: random.Random, filler: Iterator[int], num_filler: int, facts: list[list[int]]) -> list[int]:
    """`num_filler` tokens of the filler, with the facts in order at random places between them."""
    places = sorted(int(generator.random() * (num_filler + 1)) for _ in facts)
    tokens: list[int] = []
    taken = 0
    for place, fact in zip(places, facts, strict=True):
        tokens += [next(filler) for _ in range(place - taken)]
        tokens += fact
        taken = place
    tokens += [next(filler) for _ in range(num_filler - taken)]
    return tokens
