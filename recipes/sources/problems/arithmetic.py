"""Arithmetic and word problems with worked steps."""

from nemotron.recipes.sources.problems import Problem, Split, problem_text, seeded_random, split_of

__all__ = ["Problem", "check_answer", "generate_problems", "problem_text"]


def generate_problems(num_problems: int, seed: int, *, split: Split, difficulty: int = 1) -> list[Problem]:
    """`num_problems` different problems of one split."""
    problems: list[Problem] = []
    attempt = 0
    while len(problems) < num_problems:
        draw = seeded_random("arithmetic", seed, split, attempt)
        attempt += 1
        left, right = int(draw.random() * 10 ** (difficulty + 1)), int(draw.random() * 10 ** (difficulty + 1))
        canonical = f"{left} + {right}"
        if split_of(canonical) != split:
            continue
        answer = left + right
        correct = int(draw.random() * 4)
        choices = tuple(str(answer + index - correct) for index in range(4))
        prefix = "math" if split == "train" else "evaluation"
        problems.append(
            Problem(
                id=f"{prefix}/arithmetic/{len(problems):06d}",
                family="arithmetic",
                question=f"What is {canonical}?",
                steps=f"{canonical} = {answer}",
                answer=str(answer),
                choices=choices,
                correct=correct,
                canonical=canonical,
            )
        )
    return problems


def check_answer(problem: Problem, answer: str) -> bool:
    """Whether `answer` is the number that the problem asks for."""
    return answer.strip() == problem.answer
