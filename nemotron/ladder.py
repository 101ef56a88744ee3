"""ladder.json: the numbers that a step must reproduce, in the order in which it computes them.

In: numbers, as a step computes them. Out: a list of {"rung", "name", "step", "value"}, which tests compare with
golden/<recipe>/<stage>.json. The first entry that differs names the cause, because everything above it is still equal.

    ladder = Ladder()
    ladder.add_config(config)
    ladder.add("inputs", num_documents=len(documents))
    Dataset(path=work, ...).save(config, ladder)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from nemotron.config import recorded_values
from nemotron.strict import check_exact

Rung = Literal[
    "package versions", "config", "inputs", "alphabet", "conversations", "exercises", "filters", "emptied traces",
    "length filters", "cut traces", "tries", "prompts", "scorers", "bucket filter", "documents", "split", "tokenizer",
    "tokens", "blend", "token ids", "importance", "candidates", "batch order", "parameters", "initial weights",
    "rollouts", "rewards", "learning_rate", "loss", "grad_norm", "first step", "weights after step 1", "curve",
    "final weights", "validation",
    "predictions", "replies", "log-probabilities", "metrics", "headline",
]  # fmt: skip
"""What an entry is about. Entries of "headline" are shown in golden/CHANGES.md."""


class Ladder:
    """The entries of one step, in order."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._labels: set[tuple[str, str, int]] = set()

    def add(self, rung: Rung, values: Mapping[str, Any] | None = None, /, *, at_step: int = 0, **named: Any) -> None:
        """Add one entry for each value.

        Args:
            rung: what the values are about.
            values: name -> number, string (such as the sha256 of ids), or lists and dicts of these; no time, no path.
            at_step: optimizer step that the values belong to, from 0.
            named: more values, by keyword.
        Raises:
            ValueError: for an unknown rung, a repeated entry, or a value that JSON cannot represent exactly.
        """
        if rung not in get_args(Rung):
            raise ValueError(f"unknown rung {rung!r}; use one of {', '.join(get_args(Rung))}")
        if at_step < 0:
            raise ValueError(f"{rung}: at_step={at_step} must be 0 or more")
        for name, value in {**(values or {}), **named}.items():
            if (rung, name, at_step) in self._labels:
                raise ValueError(f"the ladder already has {rung}, {name}, step {at_step}; give each entry another name")
            check_exact(value, f"{rung}, {name}, step {at_step}")
            self._labels.add((rung, name, at_step))
            self.entries.append({"rung": rung, "name": name, "step": at_step, "value": value})

    def add_config(self, config: Any) -> None:
        """Add the fields of a Config that the step's result depends on."""
        for name, value in recorded_values(config).items():
            self.add("config", {name: list(value) if isinstance(value, tuple) else value})

    def write(self, directory: Path) -> None:
        """Write ladder.json into a step's directory; `Artifact.save` calls this."""
        text = json.dumps(self.entries, indent=1, allow_nan=False)
        (directory / "ladder.json").write_text(text, encoding="ascii", newline="\n")
