"""Problems of all families in one list."""

from nemotron.recipes.sources.problems import arithmetic, lookup
from nemotron.recipes.sources.problems.problem import Problem, Split


def generate_problems(num_problems: int, seed: int, split: Split) -> list[Problem]:
    """`num_problems` problems, first arithmetic and then lookup, half each; the two splits share no task."""
    half = num_problems // 2
    problems = arithmetic.generate_problems(num_problems - half, seed, split=split)
    return problems + lookup.generate_problems(half, seed, split=split)
