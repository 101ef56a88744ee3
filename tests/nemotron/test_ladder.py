"""The one writer of ladder.json."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydantic.dataclasses import dataclass

from nemotron import Artifact
from nemotron.artifact import working_directory
from nemotron.config import ScaledConfig, at_every_scale, input_path, switch
from nemotron.ladder import Ladder
from nemotron.testing.compare import read_ladder


@dataclass
class Config(ScaledConfig):
    """Of a step."""

    output_dir: Path = Path("somewhere")
    """A place."""
    dataset_path: Path | None = input_path()
    """Another place."""
    sources: tuple[str, ...] = ("a", "b")
    """Texts."""
    num_steps: int = 3
    """A number."""
    dtype: Literal["float64"] = "float64"
    """Arithmetic."""
    batch_tokens: int = at_every_scale(9, recorded=False)
    """Speed only."""
    resume: bool = switch()
    """How it runs."""


def test_entries_keep_their_order():
    ladder = Ladder()
    ladder.add("inputs", num_documents=3, sha256="ab")
    ladder.add("filters", {"exact duplicates": {"num_seen": 3, "num_dropped": 1}})
    ladder.add("curve", loss=0.5, at_step=7)
    assert ladder.entries == [
        {"rung": "inputs", "name": "num_documents", "step": 0, "value": 3},
        {"rung": "inputs", "name": "sha256", "step": 0, "value": "ab"},
        {"rung": "filters", "name": "exact duplicates", "step": 0, "value": {"num_seen": 3, "num_dropped": 1}},
        {"rung": "curve", "name": "loss", "step": 7, "value": 0.5},
    ]


def test_a_misspelled_rung_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="unknown rung 'input'; use one of package versions, config, inputs"):
        Ladder().add("input", num_documents=3)


def test_an_entry_that_is_there_already_is_refused():
    ladder = Ladder()
    ladder.add("curve", loss=1.0)
    ladder.add("curve", loss=1.0, at_step=1)
    with pytest.raises(ValueError, match="already has curve, loss, step 1; give each entry another name"):
        ladder.add("curve", loss=2.0, at_step=1)


def test_a_config_is_recorded_without_places_and_speed():
    ladder = Ladder()
    ladder.add_config(Config(seed=7, resume=True))
    values = {entry["name"]: entry["value"] for entry in ladder.entries}
    assert values == {"scale": "tiny", "seed": 7, "sources": ["a", "b"], "num_steps": 3, "dtype": "float64"}


@pytest.mark.parametrize(
    "value",
    [float("nan"), [1, float("inf")], {"a": {"b": float("nan")}}, (1, 2), np.float64(1), Path("a"), {1: 2}],
    ids=str,
)
def test_a_value_that_json_would_change_or_refuse_is_refused_when_it_is_added(value):
    ladder = Ladder()
    fault = r"(is not equal to any number|has type \w+; a ladder|is not a string)"
    with pytest.raises(ValueError, match=rf"^curve, loss, step 3.*{fault}"):
        ladder.add("curve", loss=value, at_step=3)
    assert ladder.entries == []


def test_an_artifact_is_saved_with_its_ladder(tmp_path):
    class Words(Artifact):
        """Of a step."""

    with working_directory(tmp_path / "words", Words) as work:
        ladder = Ladder()
        ladder.add("inputs", num_documents=3)
        Words(path=work).save(Config(), ladder)
    assert "ladder.json" in Words.load(tmp_path / "words").files
    assert read_ladder(tmp_path / "words") == json.loads(json.dumps(ladder.entries))
