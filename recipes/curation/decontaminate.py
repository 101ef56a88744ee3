"""Drop training documents that share 13 words in a row with an evaluation set.

In: the texts of every evaluation set by name. Out: a rule that drops documents with such an overlap.
Source: 13 words as in GPT-3 (arXiv 2005.14165, appendix C). GPT-3 cuts the overlap out of the document; we drop the
whole document, which is simpler and stricter. We do not know in detail how Nemotron Nano 2 was decontaminated.

Words are runs of letters, digits and underscores in lower case; punctuation and layout do not hide an overlap.
Left out: paraphrases, which a word overlap cannot find.
"""

import re
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources import Document

OVERLAP_WORDS = 13
WORD = re.compile(r"\w+")
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+\S+[ \t]+import\b(?:[ \t]*\([^)]*\)|(?:[^\n\\]|\\\n)*)|import\b(?:[^\n\\]|\\\n)*)",
    re.MULTILINE,
)
# An odd multiplier: products wrap at 2**64, so each run of words becomes one 64-bit number.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def without_imports(source: str) -> str:
    """Python source without its import statements.

    Imports are not part of what a test asks. With them, 157 of 725 sampled modules share 13 words with a test, mostly
    ones like "from sympy core add import add from sympy core basic import basic"; without them, 28 do.
    """
    return IMPORT.sub("", source)


def run_hashes(words: list[str]) -> np.ndarray:
    """(n,) uint64, one hash for each run of 13 words; empty for fewer words. Equal runs have equal hashes."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    num_runs = max(0, len(words) - OVERLAP_WORDS + 1)
    runs = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(OVERLAP_WORDS):
        runs = (runs ^ (runs >> np.uint64(29))) * MULTIPLIER + hashes[offset : offset + num_runs]
    return runs


def evaluation_runs(texts: Iterable[str]) -> np.ndarray:
    """(n,) uint64, the sorted distinct hashes of all runs of 13 words in an evaluation set."""
    runs = [run_hashes(words_of(text)) for text in texts]
    return np.unique(np.concatenate(runs)) if runs else np.zeros(0, dtype=np.uint64)


def decontamination_rule(evaluation_sets: Mapping[str, Iterable[str]]) -> Rule[Document]:
    """Drops documents that share 13 words in a row with an evaluation set.

    Args:
        evaluation_sets: name of each set -> its texts.
    """
    runs_of_sets = {name: evaluation_runs(texts) for name, texts in evaluation_sets.items()}
    return Rule(
        name="decontamination",
        threshold=f"no {OVERLAP_WORDS} words in a row that are also in: {', '.join(runs_of_sets)} (GPT-3)",
        fault=lambda document: first_overlap(document.text, runs_of_sets),
    )


def first_overlap(text: str, runs_of_sets: Mapping[str, np.ndarray]) -> str | None:
    """ "<set>: <13 words>" for the first set that shares a run of 13 words with the text; None if no set does."""
    words = words_of(text)
    runs = run_hashes(words)
    for name, known in runs_of_sets.items():
        if not len(known):
            continue
        places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        found = np.flatnonzero(known[places] == runs)
        if len(found):
            return f"{name}: {' '.join(words[found[0] : found[0] + OVERLAP_WORDS])}"
    return None
