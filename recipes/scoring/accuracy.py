"""A share of right answers, which means nothing without its standard error and the share that guessing gets."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """Counts, so that nothing is rounded before it is reported."""

    num_right: int
    num_asked: int
    chance_level: float
    """Expected share of right answers of a guess that knows nothing."""

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_asked

    @property
    def standard_error(self) -> float:
        """Of a binomial share: sqrt(p (1 - p) / n)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_asked)

    def metrics(self, name: str) -> dict[str, float]:
        """The four numbers under `name`/..., as an artifact's metrics hold them."""
        return {
            f"{name}/accuracy": self.accuracy,
            f"{name}/standard_error": self.standard_error,
            f"{name}/chance_level": self.chance_level,
            f"{name}/num_asked": float(self.num_asked),
        }
