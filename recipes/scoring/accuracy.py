"""Share of right answers, together with its standard error and the share that guessing would reach."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of the questions asked, kept as counts so that nothing is rounded."""

    num_right: int
    num_asked: int
    chance_level: float
    """Expected share of right answers from random guessing."""

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_asked

    @property
    def standard_error(self) -> float:
        """Standard error of a binomial share: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_asked)

    def metrics(self, name: str) -> dict[str, float]:
        """Four metrics named `name`/..., for an artifact."""
        return {
            f"{name}/accuracy": self.accuracy,
            f"{name}/standard_error": self.standard_error,
            f"{name}/chance_level": self.chance_level,
            f"{name}/num_asked": float(self.num_asked),
        }
