"""The families of exercises, in the order in which training data and evaluation use them."""

from types import ModuleType

from nemotron.recipes.sources.exercises import (
    algebra,
    code_output,
    ifeval,
    instructions,
    long_context,
    multilingual,
    safety,
    science,
    tool_calling,
)
from nemotron.recipes.sources.exercises.exercise import Exercise

FAMILIES: dict[str, ModuleType] = {
    family.FAMILY: family
    for family in (
        algebra,
        code_output,
        science,
        tool_calling,
        instructions,
        long_context,
        multilingual,
        safety,
    )
}

VERIFIERS: dict[str, ModuleType] = {**FAMILIES, ifeval.FAMILY: ifeval}
"""Every family whose replies can be judged: those above, and the user's prompts, which no family generates."""


def exam_exercises(number: int, seed: int, difficulty: int = 1) -> list[Exercise]:
    """Evaluation exercises, so many of each family, in the order of the families."""
    return [
        exercise
        for family in FAMILIES.values()
        for exercise in family.generate_exercises(number, seed, split="evaluation", difficulty=difficulty)
    ]
