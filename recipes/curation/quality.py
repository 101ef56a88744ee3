"""Heuristic quality rules: cheap measures of a text, each with bounds and their source.

In: documents. Out: a rule for each measure. Each rule applies to prose or to code, and drops documents whose
measure is out of bounds.
Sources: Gopher (arXiv 2112.11446, appendix A.1) for prose; for code Codex (arXiv 2107.03374, section 3.1) and OpenCoder
(arXiv 2411.04905), whose heuristics the Nano 2 paper names (arXiv 2508.14444, section 2.2). Some of their bounds were
made for web pages and for all of GitHub, and do not fit docstrings and library modules; a bound that differs from
theirs is marked as our choice.

Nemotron-CC applies such rules only to pages that its scorers rank low. Here they apply to every document.
Left out: rules that drop nothing from the offline corpus, such as those against menus and cookie notices.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from nemotron.recipes.curation.categories import CODE_RULES, PROSE_RULES
from nemotron.recipes.curation.rules import OTHER_SOURCES, Rule
from nemotron.recipes.sources import Document

WORD = re.compile(r"\S+")
IMPORT_LINE = re.compile(r"\s*(?:from|import)\b")
LETTER = re.compile(r"[^\W\d_]")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


@dataclass(frozen=True)
class Heuristic:
    """A measure of a text, with the smallest and the largest value that pass."""

    name: str
    measure: Callable[[str], float]
    categories: tuple[str, ...]
    """The categories that the measure applies to; documents of other categories pass."""
    origin: str
    """Where the bounds come from."""
    minimum: float = -math.inf
    maximum: float = math.inf
    remedy: str = OTHER_SOURCES
    """What the user can do if no document passes."""

    def fault(self, document: Document) -> str | None:
        """The measured value, if it is out of bounds."""
        if document.category not in self.categories:
            return None
        value = self.measure(document.text)
        return None if self.minimum <= value <= self.maximum else f"{value:.4g}"

    @property
    def threshold(self) -> str:
        """The bounds in words, with their origin."""
        parts = [f"at least {self.minimum:g}"] if self.minimum > -math.inf else []
        parts += [f"at most {self.maximum:g}"] if self.maximum < math.inf else []
        kind = "code" if self.categories == CODE_RULES else "prose"
        return f"{self.name}: {' and '.join(parts)}, {kind} only ({self.origin})"


def num_words(text: str) -> float:
    """Number of words: runs of characters between white space."""
    return len(WORD.findall(text))


def mean_word_length(text: str) -> float:
    """Characters per word."""
    words = WORD.findall(text)
    return sum(map(len, words)) / max(1, len(words))


def share_of_words_with_a_letter(text: str) -> float:
    """The share of the words that contain a letter."""
    words = WORD.findall(text)
    return sum(1 for word in words if LETTER.search(word)) / max(1, len(words))


def num_stop_words(text: str) -> float:
    """How many of Gopher's eight stop words the text contains."""
    return len(STOP_WORDS & set(text.lower().split()))


def symbols_per_word(text: str) -> float:
    """Hash signs and ellipses per word."""
    return (text.count("#") + text.count("...") + text.count("…")) / max(1, num_words(text))


def share_of_top_bigram(text: str) -> float:
    """The share of the characters in words that the most frequent pair of adjacent words covers."""
    words = WORD.findall(text)
    pairs = Counter(pairwise(words))
    covered = max((count * (len(pair[0]) + len(pair[1])) for pair, count in pairs.items() if count > 1), default=0)
    return covered / max(1, sum(map(len, words)))


def longest_line(text: str) -> float:
    """Characters in the longest line."""
    return max(map(len, text.splitlines()), default=0)


def share_of_letters(text: str) -> float:
    """The share of the characters that are letters."""
    return sum(map(str.isalpha, text)) / max(1, len(text))


def share_of_import_lines(text: str) -> float:
    """The share of the lines, blank ones aside, that begin an import statement."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(1 for line in lines if IMPORT_LINE.match(line)) / max(1, len(lines))


HEURISTICS = (
    Heuristic(
        "words",
        num_words,
        PROSE_RULES,
        "our choice; Gopher has 50 to 100,000 for web pages",
        minimum=5,
        maximum=100_000,
        remedy="cut a longer text into several .txt files, for example with split -l 500 --additional-suffix=.txt, and "
        "name their directory",
    ),
    Heuristic("mean word length", mean_word_length, PROSE_RULES, "Gopher", minimum=3, maximum=10),
    Heuristic("words with a letter", share_of_words_with_a_letter, PROSE_RULES, "Gopher", minimum=0.8),
    Heuristic("stop words", num_stop_words, PROSE_RULES, "our choice; Gopher has 2 for web pages", minimum=1),
    Heuristic("symbols per word", symbols_per_word, PROSE_RULES, "Gopher", maximum=0.1),
    Heuristic("top bigram", share_of_top_bigram, PROSE_RULES, "Gopher", maximum=0.2),
    Heuristic("longest line", longest_line, CODE_RULES, "our choice; Codex has 1,000 for all of GitHub", maximum=250),
    Heuristic(
        "letters",
        share_of_letters,
        CODE_RULES,
        "our choice; Codex asks for 'alphanumeric' without a number",
        minimum=0.4,
    ),
    Heuristic(
        "import lines", share_of_import_lines, CODE_RULES, "our choice, on a measure of OpenCoder's", maximum=0.8
    ),
)


def quality_rules() -> list[Rule[Document]]:
    """One rule for each heuristic."""
    return [
        Rule(f"quality: {heuristic.name}", heuristic.threshold, fault=heuristic.fault, remedy=heuristic.remedy)
        for heuristic in HEURISTICS
    ]
