"""Parts of a step that outlive it: they come back bit for bit, and only where they belong."""

from functools import partial

import pytest

from nemotron.directory import mark_as_own
from nemotron.recipes.training.finished_parts import FOLDER, FinishedParts

parts_of = partial(FinishedParts, flag="--here.resume")

IDENTITY = {"dataset": "d" * 64, "config": {"steps": 3, "rate": 0.1}, "code": "c" * 64}
VALUE = {"kl": 0.1 + 0.2, "curve": [{"step": 0, "loss": 5e-324, "tokens": 12}, {"step": 1, "loss": 1 / 3, "tokens": 7}]}


@pytest.fixture
def work(tmp_path):
    """The working directory of a run that was killed after one part, and while it wrote its model."""
    mark_as_own(tmp_path)
    assert parts_of(tmp_path, IDENTITY, resume=False).add("candidate 1: M*", VALUE) is VALUE
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"half")
    (tmp_path / "table").write_bytes(b"half")
    (tmp_path / FOLDER / "0.partial").write_bytes(b"half")
    return tmp_path


def test_a_part_comes_back_bit_for_bit_and_all_else_is_deleted(work, capsys):
    parts = parts_of(work, IDENTITY, resume=False)
    assert parts.get("candidate 1: M*") == VALUE
    assert list(parts.get("candidate 1: M*")["curve"][0]) == ["step", "loss", "tokens"]
    assert parts.get("candidate 2: M*") is None
    assert sorted(entry.name for entry in work.iterdir()) == [FOLDER, "metadata.json.partial"]
    assert len(list((work / FOLDER).iterdir())) == 1
    assert "candidate 1: M* was finished before, and is not computed again" in capsys.readouterr().err
    parts.delete()
    assert [entry.name for entry in work.iterdir()] == ["metadata.json.partial"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "e" * 64}, "a dataset with digest 'dddddddddddd', not eeeeeeeeeeee"),
        ({"config": {"steps": 4, "rate": 0.1}}, "steps=3, not 4"),
        ({"config": {"steps": 3, "rate": 0.1, "new": 1}}, "new=None, not 1"),
    ],
)
def test_a_part_of_another_run_is_computed_again_or_refused(work, capsys, change, said):
    with pytest.raises(ValueError, match=rf"was begun with {said}; use the same, or drop --here.resume to start over"):
        parts_of(work, IDENTITY | change, resume=True)
    assert parts_of(work, IDENTITY | change, resume=False).get("candidate 1: M*") is None
    assert f"candidate 1: M* is computed again: it was begun with {said}\n" in capsys.readouterr().err
    parts_of(work, IDENTITY | change, resume=True)  # nothing of the other run is left


def test_a_part_that_other_code_found_is_used_only_with_resume(work, capsys):
    changed = IDENTITY | {"code": "f" * 64}
    assert parts_of(work, changed, resume=False).get("candidate 1: M*") is None
    assert "it was begun with other code, and --here.resume is not given" in capsys.readouterr().err
    assert parts_of(work, changed, resume=True).get("candidate 1: M*") == VALUE


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-20], lambda b: b.replace(b"12", b"13"), lambda b: b"\xff" + b],
    ids=["cut", "another number", "a byte more"],
)
def test_a_damaged_part_is_reported_and_computed_again(work, capsys, change):
    (file,) = (work / FOLDER).glob("*.json")
    file.write_bytes(change(file.read_bytes()))
    parts = parts_of(work, IDENTITY, resume=False)
    assert parts.get("candidate 1: M*") is None
    assert f"warning: {file} is damaged; that part is computed again" in capsys.readouterr().err
    parts.add("candidate 1: M*", VALUE)
    assert parts_of(work, IDENTITY, resume=False).get("candidate 1: M*") == VALUE
