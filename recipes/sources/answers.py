"""Replies as a person reads them: marks of Markdown and LaTeX taken off, numbers parsed strictly.

In: the text of a reply. Out: the same text without what only decorates it, or the number that it is. Verifiers of all
families use both, so a right answer in another form counts, and a wrong one does not pass by accident.

    python -c "from nemotron.recipes.sources.answers import *;print(parse_number(r'$\\boxed{12,000}$.'))"

Left out: numbers in words, decimal commas, units other than the one that a question asks for.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

SAME_CHARACTERS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "−": "-", "\u00a0": " ", "\u202f": " ",
                                 "\u2009": " "})  # fmt: skip
NO_BREAK_GROUPS = re.compile("(?<![0-9])[0-9]{1,3}(?:[\u00a0\u202f\u2009][0-9]{3}){1,9}(?![0-9])")
FENCE = re.compile(r"```[a-z]{0,10}\n([^`]*)\n```")
DECORATIONS = (
    re.compile(r"\*\*([^*\n]+)\*\*"),  # Markdown: bold, code
    re.compile(r"`([^`\n]+)`"),
    re.compile(r"\$\$\n([^$\n]+)\n\$\$"),  # LaTeX: formulas
    re.compile(r"\$\$?([^$\n]+)\$\$?"),
    re.compile(r"\\\(([^\n\\]+|[^\n]{1,200}?)\\\)"),
    re.compile(r"\\\[([^\n\\]+|[^\n]{1,200}?)\\\]"),
    re.compile(r"\\\[\n([^\n]{1,200})\n\\\]"),
    re.compile(r"\\(?:boxed|text|mathrm|mathbf)\{([^{}\n]+)\}"),
)
DECORATED = re.compile(r"[*_`$\\]")
WHOLE = re.compile(r"([*_])([^*_]+)\1")  # italics, only around everything
FRACTION = re.compile(r"\\[dt]?frac\{([0-9]{1,40})\}\{([0-9]{1,40})\}")
SAID_BEFORE = r"(?:so,? )?(?:(?:the )?answer(?: is|:)|it is|it's) "


@lru_cache(maxsize=8)  # the search for the chance level asks about one reply many times
def plain(reply: str) -> str:
    """The reply without surrounding white space, Markdown, LaTeX, typographic characters and one final period."""
    text = unicodedata.normalize("NFC", reply)
    text = NO_BREAK_GROUPS.sub(lambda groups: re.sub("[^0-9]", "", groups[0]), text)
    text = text.translate(SAME_CHARACTERS).strip()
    text, ended = text.removesuffix("."), text.endswith(".")
    if not DECORATED.search(text):
        return text
    for _ in range(3):  # **$\boxed{9}$** has three layers
        before = text
        for decoration in (FENCE, *DECORATIONS):
            text = decoration.sub(r"\1", text)
        if whole := WHOLE.fullmatch(text):
            text = whole[2]
        text = FRACTION.sub(r"\1/\2", text).strip()  # \boxed{ 9 }
        if text == before:
            break
        if not ended:  # **9.**
            text, ended = text.removesuffix("."), text.endswith(".")
    return text


def parse_number(text: str, *, unit: str = "", group: str = ",", before: str = SAID_BEFORE) -> Fraction | None:
    """The number that a reply is, or None: "12,000", "$9$", "9.0", "-3/4", with or without "The answer is".

    Args:
        unit: may follow the number, with or without a space.
        group: parts groups of three digits; with one anywhere else, the reply is not a number.
        before: a pattern of what may be said before the number, in upper or lower case.
    Returns:
        None for a fraction that can be reduced too: 36/12 only repeats the question 12x = 36 (our choice).
    """
    text = plain(text)
    if said := re.match(before, text, re.IGNORECASE):
        text = text[said.end() :].lstrip()
    if unit and text.endswith(unit):
        text = text.removesuffix(unit).rstrip()
    separator = re.escape(group)
    whole = rf"([+-]?)([0-9]{{1,3}}(?:{separator}[0-9]{{3}}){{1,12}}|[0-9]{{1,40}}|(?=\.[0-9]))"
    match = re.fullmatch(rf"{whole}(?:(\.[0-9]{{1,40}})|\s?/\s?([1-9][0-9]{{0,39}}))?", text)
    if not match or (group == "." and match[3]):
        return None
    sign, digits, decimals, denominator = match.groups(default="")
    digits = digits.replace(group, "")
    value = Fraction(f"{sign}{digits or 0}{decimals}") / int(denominator or 1)
    if denominator and str(value) != f"{sign.replace('+', '')}{int(digits)}/{denominator}":
        return None
    return value
