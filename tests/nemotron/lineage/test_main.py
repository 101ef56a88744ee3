"""python -m nemotron.lineage: the tree, what made it, and every kind of break by its name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron import Artifact
from nemotron.directory import Metadata
from nemotron.lineage.__main__ import Config, all_nodes, main, mermaid_text, read_tree


class Dataset(Artifact):
    attribution: list[dict[str, str | int]]
    text_path: Path
    base_path: Path | None = None


class Checkpoint(Artifact):
    dataset_path: Path
    base_path: Path | None = None


def dataset(path: Path, base: Path | None = None, **counts: int) -> Path:
    path.mkdir(parents=True)
    (path / "text").write_text(path.name)
    rows = [{"origin": f"of {licence}", "licence": licence, "num_documents": n} for licence, n in counts.items()]
    return Dataset(path=path, text_path=path / "text", attribution=rows, base_path=base).save({"seed": 7}).path


@pytest.fixture
def recipe(tmp_path):
    """Two stages: the second Checkpoint was made from a Dataset that was made with the first one."""
    first = Checkpoint(path=tmp_path / "one" / "train", dataset_path=dataset(tmp_path / "one" / "data", MIT=3, ISC=2))
    second_data = dataset(tmp_path / "two" / "data", first.save().path, MIT=4)
    return Checkpoint(path=tmp_path / "two" / "train", dataset_path=second_data, base_path=first.path).save().path


def printed(capsys, path, **options):
    """Number of broken artifacts, and what is printed."""
    return main(Config(path, **options)), capsys.readouterr().out


def edit(path: Path, **changes) -> None:
    """Change metadata.json with a matching digest, as another run would."""
    values = json.loads((path / "metadata.json").read_text()) | changes
    values["digest"] = Metadata.model_validate(values).compute_digest()
    (path / "metadata.json").write_text(json.dumps(values))


def test_a_whole_lineage_is_shown_with_documents_licences_and_code(recipe, capsys):
    broken, text = printed(capsys, recipe)
    assert broken == 0
    lines = text.splitlines()
    assert lines[0].startswith(f"checkpoint {Checkpoint.load(recipe).digest[:12]}  {recipe}  by ")
    assert lines[1].startswith("├─ dataset_path: dataset ")
    assert lines[2].startswith("│  └─ base_path: checkpoint ")
    assert lines[3].startswith("│     └─ dataset_path: dataset ")
    assert lines[4].startswith("└─ base_path: checkpoint ")
    assert lines[4].endswith("(its inputs are shown above)")
    counts = lines[lines.index("licenses, with the number of documents") + 1 :][:2]
    assert [line.split() for line in counts] == [["ISC", "2"], ["MIT", "7"]]
    producer = Checkpoint.load(recipe).producer
    assert f"  {producer['step']}: {producer['code_version']}  {producer['code_digest'][:12]}" in lines
    assert lines[-1] == "4 artifacts, every digest checked: nothing is broken"


def change_a_byte(place):
    (place / "text").write_text("date")  # of the same length


def change_metadata(place):
    file = place / "metadata.json"
    file.write_text(file.read_text().replace("of MIT", "of mit"))


def replace_it(place):
    shutil.rmtree(place)
    dataset(place, MIT=9)


def make_it_circular(place):
    """The Dataset names the Checkpoint above it as its input; digests cannot agree in a circle."""
    above = place.parent / "train"
    reference = {"type": "checkpoint", "digest": "0" * 64, "path": os.path.relpath(above, place)}
    edit(place, inputs={"base_path": reference})


BREAKS = {
    "missing": (shutil.rmtree, "missing: nothing is there"),
    "changed": (change_a_byte, "changed: .*the file text has sha256"),
    "changed metadata": (change_metadata, "changed: .*does not match its content"),
    "changed, not JSON": (lambda place: (place / "metadata.json").write_text("{"), "changed: .*not valid JSON"),
    "replaced": (replace_it, "replaced: another dataset is there now"),
    "circular": (make_it_circular, "circular: it is among its own inputs"),
}


@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("place", ["one/data", "two/data"])
def test_a_break_anywhere_is_named(recipe, what, place, capsys):
    damage, sentence = BREAKS[what]
    damage(recipe.parents[1] / place)
    broken, text = printed(capsys, recipe)
    assert broken
    found = [line for line in text.splitlines() if line.startswith("broken: ")]
    assert len(found) == broken
    assert any(re.search(sentence, line) for line in found)
    assert "nothing is broken" not in text
    _, page = printed(capsys, recipe, json=True)
    assert json.loads(page)["is_whole"] is False
    _, graph = printed(capsys, recipe, mermaid=True)
    assert ":::broken" in graph


def test_json_has_the_tree(recipe, capsys):
    _, page = printed(capsys, recipe, json=True)
    content = json.loads(page)
    assert content["is_whole"] is True
    assert content["artifact"]["digest"] == Checkpoint.load(recipe).digest
    assert [one["name"] for one in content["artifact"]["inputs"]] == ["dataset_path", "base_path"]


def test_the_graph_has_one_box_for_an_artifact_and_an_arrow_for_each_use(recipe, capsys):
    _, graph = printed(capsys, recipe, mermaid=True)
    lines = graph.splitlines()
    assert lines[0] == "flowchart BT"
    assert sum('["' in line for line in lines) == 4
    assert sum("-->" in line for line in lines) == 4


@given(st.text())
def test_no_text_can_end_a_box_of_the_graph(text):
    assert not set(mermaid_text(text).replace("<br>", "")) & set("\"'<>[](){}|`\n\r\t&")


def test_two_formats_at_once_are_refused(recipe):
    with pytest.raises(ValueError, match="--json and --mermaid are both given; give one of them"):
        main(Config(recipe, json=True, mermaid=True))


def test_it_runs_as_a_program_without_torch_and_its_exit_code_tells(recipe):
    def run(*arguments):
        program = "import runpy, sys; runpy.run_module('nemotron.lineage', run_name='__main__', alter_sys=True)"
        check = (
            f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {program}"
        )
        done = subprocess.run(
            [sys.executable, "-c", check, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False
        )
        return done.returncode, done.stdout, done.stderr.splitlines()

    code, page, errors = run(recipe)
    assert (code, errors) == (0, ["False"])
    assert "nothing is broken" in page
    change_a_byte(recipe.parents[1] / "one" / "data")
    assert run(recipe)[0] == 1
    code, page, errors = run(recipe.parents[1] / "nowhere")
    assert (code, page) == (2, "")
    assert errors[0].endswith("nowhere is not a directory; name the directory of an artifact")


def test_the_module_runs_without_a_warning(recipe):
    done = subprocess.run(
        [sys.executable, "-m", "nemotron.lineage", str(recipe)], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(edges=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8, unique=True))
def test_any_graph_of_references_ends(edges, tmp_path_factory):
    """Also with circles and diamonds; a circle is always named."""
    folder = tmp_path_factory.mktemp("graph")
    for number in range(5):
        dataset(folder / str(number))
    for number in range(5):
        targets = [to for begin, to in edges if begin == number]
        edit(folder / str(number), inputs={
            f"input{to}": {"type": "dataset", "digest": "0" * 64, "path": f"../{to}"} for to in targets
        })  # fmt: skip
    reached, waiting = set(), [(0, ())]
    has_circle = False
    while waiting:
        number, above = waiting.pop()
        if number in above:
            has_circle = True
            continue
        reached.add(number)
        waiting += [(to, (*above, number)) for begin, to in edges if begin == number]
    nodes = list(all_nodes(read_tree(folder / "0")))
    assert {int(Path(node.path).name) for node in nodes} == reached
    assert any(node.broken.startswith("circular") for node in nodes) == has_circle
