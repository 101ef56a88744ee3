"""Heuristic rules: cheap measures of a text, each with a bound and the place where the bound comes from.

In: documents. Out: those that satisfy every rule for their kind of text.
Sources: Gopher (arXiv 2112.11446, appendix A.1) for prose; Codex (arXiv 2107.03374, section 3.1) and OpenCoder (arXiv
2411.04905), whose heuristics the paper names in section 2.2, for code. Bounds that were written for web pages and for
all of GitHub do not fit docstrings and library modules; one that differs is marked as our choice.

Nemotron-CC applies such rules only to the pages that its scorers rank low. Here every document passes through them.
Left out: rules that drop nothing from the offline corpus, such as those against menus and cookie notices.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from nemotron.recipes.curation.filters import CODE, PROSE, Filter
from nemotron.recipes.sources.dataframes import daft

WORD = re.compile(r"\S+")
IMPORT_LINE = re.compile(r"\s*(?:from|import)\b")
LETTER = re.compile(r"[^\W\d_]")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


@dataclass(frozen=True)
class Rule:
    """A measure of a text with the smallest and the largest value that pass."""

    name: str
    measure: Callable[[str], float]
    categories: tuple[str, ...]
    origin: str
    minimum: float = -math.inf
    maximum: float = math.inf

    def passes(self, text: str) -> bool:
        return self.minimum <= self.measure(text) <= self.maximum


def num_words(text: str) -> float:
    return len(WORD.findall(text))


def mean_word_length(text: str) -> float:
    words = WORD.findall(text)
    return sum(map(len, words)) / max(1, len(words))


def share_of_words_with_a_letter(text: str) -> float:
    words = WORD.findall(text)
    return sum(1 for word in words if LETTER.search(word)) / max(1, len(words))


def num_stop_words(text: str) -> float:
    """How many of Gopher's eight stop words occur."""
    return len(STOP_WORDS & set(text.lower().split()))


def symbols_per_word(text: str) -> float:
    """Hash signs and ellipses per word."""
    return (text.count("#") + text.count("...") + text.count("…")) / max(1, num_words(text))


def share_of_top_bigram(text: str) -> float:
    """Characters in the most frequent pair of neighbouring words, of all characters in words."""
    words = WORD.findall(text)
    pairs = Counter(pairwise(words))
    covered = max((count * (len(pair[0]) + len(pair[1])) for pair, count in pairs.items() if count > 1), default=0)
    return covered / max(1, sum(map(len, words)))


def longest_line(text: str) -> float:
    """Characters in the longest line."""
    return max(map(len, text.splitlines()), default=0)


def share_of_letters(text: str) -> float:
    return sum(map(str.isalpha, text)) / max(1, len(text))


def share_of_import_lines(text: str) -> float:
    """Lines that begin an import statement, of all lines that are not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(1 for line in lines if IMPORT_LINE.match(line)) / max(1, len(lines))


RULES = (
    Rule("words", num_words, PROSE, "our choice; Gopher has 50 to 100,000 for web pages", minimum=5, maximum=100_000),
    Rule("mean word length", mean_word_length, PROSE, "Gopher", minimum=3, maximum=10),
    Rule("words with a letter", share_of_words_with_a_letter, PROSE, "Gopher", minimum=0.8),
    Rule("stop words", num_stop_words, PROSE, "our choice; Gopher has 2 for web pages", minimum=1),
    Rule("symbols per word", symbols_per_word, PROSE, "Gopher", maximum=0.1),
    Rule("top bigram", share_of_top_bigram, PROSE, "Gopher", maximum=0.2),
    Rule("longest line", longest_line, CODE, "our choice; Codex has 1,000 for all of GitHub", maximum=250),
    Rule("letters", share_of_letters, CODE, "our choice; Codex asks for 'alphanumeric' without a number", minimum=0.4),
    Rule("import lines", share_of_import_lines, CODE, "our choice, on a measure of OpenCoder's", maximum=0.8),
)


def bounds(rule: Rule) -> str:
    """The bounds of a rule in words, with their origin."""
    parts = [f"at least {rule.minimum:g}"] if rule.minimum > -math.inf else []
    parts += [f"at most {rule.maximum:g}"] if rule.maximum < math.inf else []
    kind = "code" if rule.categories == CODE else "prose"
    return f"{rule.name}: {' and '.join(parts)}, {kind} only ({rule.origin})"


def quality_filters() -> list[Filter]:
    """One filter a rule. Documents of another kind than the rule's pass it."""
    return [_rule_filter(rule) for rule in RULES]


def _rule_filter(rule: Rule) -> Filter:
    @daft.func.batch(return_dtype=daft.DataType.float64(), use_process=False)
    def measured(text: daft.Series, category: daft.Series) -> list[float | None]:
        rows = zip(text.to_pylist(), category.to_pylist(), strict=True)
        return [rule.measure(document) if kind in rule.categories else None for document, kind in rows]

    within = (daft.col("value") >= daft.lit(rule.minimum)) & (daft.col("value") <= daft.lit(rule.maximum))
    return Filter(
        name=f"quality: {rule.name}",
        threshold=bounds(rule),
        value=measured(daft.col("text"), daft.col("category")),
        keep=daft.col("value").is_null() | within,
    )
