"""Real steps on sources whose names, ids, columns and licenses try to control the terminal that shows them."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from nemotron.artifact import Artifact
from nemotron.lineage.__main__ import read_tree, tree_lines

HOSTILE = "\x1b]0;X\x07\x9b2J\x7f\u202e[red][/]:smile:\r"
STAGE = "nemotron.recipes.nano2.stage0_pretrain"
SMALL = "--vocab-size 400 --sequence-length 64 --long-context-length 256 --num-sequences 80 --long-context-sequences 6"


def run(module: str, *arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, input=stdin, capture_output=True, check=False
    )


def check_shown(done: subprocess.CompletedProcess[bytes], exit_code: int = 0) -> str:
    """The stderr of a step, after checking that no byte of its output controls a terminal."""
    assert done.returncode == exit_code, done.stderr.decode()
    for stream in (done.stdout, done.stderr):
        obeyed = {character for character in stream.decode() if not character.isprintable()} - {"\n"}
        assert not obeyed, stream.decode()
    shown = done.stderr.decode()
    assert "Traceback" not in shown
    return shown


WORDS = {
    "noun": ("graph", "matrix", "field", "group", "series", "parser", "kernel", "vector", "module", "filter", "tree"),
    "verb": ("returns", "computes", "transforms", "checks", "reduces", "expands", "prints", "compares", "copies"),
}


def prose(number: int) -> str:
    """Sentences that the filters keep."""
    draw = random.Random(number)
    noun, verb = ((lambda kind=kind: draw.choice(WORDS[kind])) for kind in WORDS)
    return " ".join(
        f"The {noun()} {verb()} the {noun()} of a {noun()} and {verb()} {number} of them." for _ in range(8)
    )


def code(number: int) -> str:
    names = prose(number).replace(".", "").lower().split()[:40]
    return "\n".join(f"def {one}_{number}({two}):\n    return {two} + {number}" for one, two in pairwise(names))


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_curation_of_hostile_sources_shows_them_escaped(tmp_path: Path) -> None:
    home = tmp_path / f"home{HOSTILE.replace('/', '')}"
    rows: list[dict[str, object]] = [
        {"id": f"{number}{HOSTILE}", "text": prose(number), "license": "MIT"} for number in range(80)
    ]
    rows += [{"id": f"bad\n{HOSTILE}", "text": None}, {"id": "no", "text": "x", "license": f"GPL-3.0-only{HOSTILE}"}]
    write_rows(home / f"data/{HOSTILE.replace('/', '')}.jsonl", rows)
    write_rows(home / f"data/{HOSTILE.replace('/', '')}.csv", rows[:1])
    write_rows(home / "code.jsonl", [{"id": HOSTILE, "text": code(number)} for number in range(40)])
    math = [f"Question: What is {number} + {number}?\nAnswer: {2 * number}" for number in range(300)]
    write_rows(home / "math.jsonl", [{"id": HOSTILE, "text": text} for text in math])
    sources = ("data", "code=code.jsonl", "math=math.jsonl")
    (home / f"data/.{HOSTILE.replace('/', '')}").mkdir()
    done = run(f"{STAGE}.data_curation", "--sources", *sources, "--output-dir", "out", *SMALL.split(), cwd=home)
    shown = check_shown(done)
    assert r"the first is bad\x0a\x1b]0;X\x07\x9b2J\x7f\u202e[red][/]:smile:\x0d: 'text' is null, not text" in shown
    assert r"\x1b]0;X\x07\x9b2J\x7f\u202e[red][]:smile:\x0d.csv: not one of .txt" in shown
    assert "hidden; spell its name out to read it" in shown
    assert json.loads(done.stdout)["dataset"]["path"] == str(home / "out")
    for line in tree_lines(read_tree(home / "out")):
        assert line.isprintable()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{f"body{HOSTILE}": "a"}], r"has no column 'text', only body\x1b]0;X\x07\x9b2J\x7f\u202e[red][/]:smile:"),
        ([{"id": HOSTILE, "text": ""}], r"1 unreadable, the first is \x1b]0;X\x07\x9b2J\x7f\u202e[red][/]:smile:"),
    ],
)
def test_an_error_about_hostile_sources_shows_them_escaped(tmp_path: Path, rows: list, sentence: str) -> None:
    write_rows(tmp_path / "a.jsonl", rows)
    done = run(f"{STAGE}.data_curation", "--sources", "a.jsonl", cwd=tmp_path)
    assert sentence in check_shown(done, 2)


def test_a_hostile_line_from_the_pipe_is_shown_escaped(tmp_path: Path) -> None:
    entry = {"type": "dataset", "path": f"/{HOSTILE}", "digest": HOSTILE}
    shown = check_shown(run(f"{STAGE}.training", cwd=tmp_path, stdin=json.dumps({HOSTILE: entry}).encode()), 2)
    assert shown.startswith(r"error: /\x1b]0;X\x07\x9b2J\x7f\u202e[red][/]:smile:\x0d does not exist; correct the path")


@pytest.mark.parametrize(("module", "place"), [("data_curation", "output_dir"), ("training", "cwd")])
def test_a_place_that_is_not_utf8_is_refused_before_any_work(tmp_path: Path, module: str, place: str) -> None:
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    bad.mkdir()
    cwd, output = (bad, "out") if place == "cwd" else (tmp_path, str(bad / "out"))
    done = run(f"{STAGE}.{module}", "--output-dir", output, cwd=cwd)
    shown = check_shown(done, 2)
    assert shown.count("\n") == 1
    assert r"caf\xe9/out is not UTF-8 text; rename the file or directory" in shown
    assert list(bad.iterdir()) == []


def test_an_input_whose_directory_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    bad = tmp_path / os.fsdecode(b"caf\xe9")
    bad.mkdir()
    (tmp_path / "link").symlink_to(bad)
    with pytest.raises(ValueError, match=r"caf\\xe9 is not UTF-8 text"):
        Artifact.load(tmp_path / "link")
    with pytest.raises(ValueError, match=r"caf\\xe9 is not UTF-8 text"):
        Artifact(path=tmp_path / "link").save()
    assert list(bad.iterdir()) == []
