"""The rules that drop pairs of replies, and the label of a pair that a rubric compares.

In: pairs with labels from -3 to 3. Out: a `Rule` for each thing that makes a pair useless, for `apply_to_list`.

    remaining = apply_to_list(pairs, preference_rules(lengths, 512), reports)

Left out: pairs that contradict each other; agreement between annotators.
"""

from collections.abc import Mapping

from nemotron.recipes.curation.rules import Rule
from nemotron.recipes.sources.preferences import ENGLISH, Preference

LANGUAGE, EQUAL, TIE, TOO_LONG = "language", "equal replies", "no preference", "length"
"""The rules, in order."""
SLIGHTLY, CLEARLY = 0.15, 0.35  # our choice: differences of the rubric up to which a label is 1 or 2; above, it is 3


def label_of(difference: float) -> int:
    """The label, from -3 to 3, of a pair whose second reply has so much more of the rubric than the first.

    The difference is rounded, so that equal differences get equal labels: 0.8 - 0.45 in floats is not 0.9 - 0.55.
    """
    difference = round(difference, 12)
    strength = (difference != 0) + (abs(difference) > SLIGHTLY) + (abs(difference) > CLEARLY)
    return strength if difference > 0 else -strength


def preference_rules(lengths: Mapping[str, int], capacity: int) -> list[Rule[Preference]]:
    """What makes a pair useless.

    Args:
        lengths: the id of each pair -> tokens of its longer reply, with the context.
        capacity: the most that they may be.
    """

    def foreign(pair: Preference) -> str | None:
        return None if pair.language == ENGLISH else f"its language is {pair.language}"

    def equal(pair: Preference) -> str | None:
        first, second = (" ".join(text.split()) for text in pair.responses)
        return "chosen and rejected are the same text" if first == second else None

    def tie(pair: Preference) -> str | None:
        if pair.fault:
            return f"the rubric failed: {pair.fault}"
        return None if pair.label else "both replies are equally good"

    def too_long(pair: Preference) -> str | None:
        return f"{lengths[pair.id]} tokens" if lengths[pair.id] > capacity else None

    return [
        Rule(LANGUAGE, "the context is in English (published)", foreign),
        Rule(EQUAL, "the two replies differ", equal, "collect or draw replies that differ"),
        Rule(TIE, "one reply is better than the other", tie, "collect preferences that are not 0"),
        Rule(TOO_LONG, f"at most {capacity} tokens (our choice)", too_long, "raise --max-pair-tokens"),
    ]
