"""What kind of text each category of the pretraining blend holds, and how curation treats it.

The kind of each category, and the heuristic rules that apply to it, are our choice. The rules were written for English
web pages and for code, so none apply to mathematics, questions and answers, and other languages.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["prose", "code", "math"]


@dataclass(frozen=True)
class Category:
    """One category of the blend."""

    kind: Kind
    """The blend keeps the total share of each kind, even if some categories of that kind have no documents."""
    rules: Literal["prose", "code"] | None = None
    """Which language and quality rules apply; None if neither applies."""
    templated: bool = False
    """A chat template already rendered the documents, so no end-of-document token follows them."""


CATEGORIES = {
    "academic": Category("prose", rules="prose"),
    "code": Category("code", rules="code"),
    "code-sft": Category("code", templated=True),
    "crawl++": Category("prose", rules="prose"),
    "crawl-high": Category("prose", rules="prose"),
    "crawl-medium": Category("prose", rules="prose"),
    "crawl-medium-high": Category("prose", rules="prose"),
    "general-sft": Category("prose", templated=True),
    "math": Category("math"),
    "multilingual": Category("prose"),
    "nemotron-cc-code": Category("code", rules="code"),
    "stem-sft": Category("math", templated=True),
    "syn-crawl-high": Category("prose", rules="prose"),
    "syn-crawl-medium-high": Category("prose", rules="prose"),
    "wiki": Category("prose", rules="prose"),
}
PROSE_RULES = tuple(name for name, category in CATEGORIES.items() if category.rules == "prose")
"""Categories that the rules for prose apply to."""
CODE_RULES = tuple(name for name, category in CATEGORIES.items() if category.rules == "code")
"""Categories that the rules for code apply to."""
TEMPLATED = {name for name, category in CATEGORIES.items() if category.templated}
"""Categories whose documents get no end-of-document token."""


def kind_of(category: str) -> Kind:
    """The kind of a category; "prose" for a name that is not in the table."""
    return CATEGORIES[category].kind if category in CATEGORIES else "prose"
