"""No argument is lost or taken for another, and every program of the project checks its arguments."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemotron.command_line import check_arguments, checked_arguments

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["--sources", "a", "--sources", "b"], "--sources"),
        (["--data.sources", "a", "--seed", "1", "--data.sources", "b"], "--data.sources"),
        (["--data.sources=a", "--data.sources=b"], "--data.sources"),
        (["--data.sources", "a", "--data.sources=b"], "--data.sources"),
        (["--text-column", "a", "--text_column", "b"], "--text-column"),
        (["--seed", "1", "--seed", "2"], "--seed"),
        (["--resume", "--resume"], "--resume"),
    ],
)
def test_a_flag_given_twice_is_refused(args: list[str], flag: str) -> None:
    with pytest.raises(ValueError, match=f"^{flag} is given 2 times; give it once, with all its values after it$"):
        check_arguments(args)


@pytest.mark.parametrize(("yes", "no"), [("--resume", "--no-resume"), ("--train.resume", "--train.no-resume")])
def test_a_switch_that_is_set_both_ways_is_refused(yes: str, no: str) -> None:
    with pytest.raises(ValueError, match=f"^{yes} and {no} are both given; give one of them$"):
        check_arguments([yes, no])
    check_arguments([no])


def test_other_arguments_are_returned_as_they_are() -> None:
    args = ["path", "--sources", "a", "b", "a", "--data.sources=--x", "-h", "--system", "two\nlines", "--", "-1"]
    assert checked_arguments(args) == args
    assert checked_arguments(["--only", "a", "--only", "b"], repeatable=["--only"]) == ["--only", "a", "--only", "b"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("caf\udce9.txt", r"argument=caf\xe9.txt is not UTF-8 text; rename the file or directory"),
        ("\x1b]0;X\x07", r"the argument \x1b]0;X\x07 holds a control character; remove it, or rename the file"),
        ("a\u202eb", r"the argument a\u202eb holds a control character; remove it, or rename the file"),
    ],
)
def test_an_argument_that_cannot_be_shown_or_recorded_is_refused(
    argument: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        checked_arguments(["--sources", argument])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.parametrize(
    "args",
    [["--sources"], ["--sources", "--seed", "1"], ["--data.sources", "--data.seed=1"], ["--sources", "-h"]],
)
def test_a_flag_of_several_values_without_any_is_refused(args: list[str]) -> None:
    sentence = f"{args[0]} names nothing; give at least one value after it, or leave the flag out"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        check_arguments(args, several=["--sources", "--data.sources"])


def test_a_flag_of_several_values_with_one_is_read() -> None:
    check_arguments(["--sources", "-", "--data.sources=a", "--resume"], several=["--sources", "--data.sources"])


@pytest.mark.posix
@pytest.mark.parametrize(
    "program",
    ["nemotron.recipes.nano2", "nemotron.recipes.nano2.stage1_sft.data_curation", "nemotron.recipes.nano2.chat_cli"],
)
def test_help_whose_reader_ends_early_is_one_sentence(program: str, tmp_path: Path) -> None:
    """The reader has ended before anything is written, so short help is caught as well as long help."""
    command = f"set -o pipefail; {{ sleep 0.3; exec {sys.executable} -m {program} --help; }} | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence = "the reader of stdout ended before everything was written; write it to a file instead"
    assert done.stderr == f"error: {sentence}\n"


@pytest.mark.posix
def test_output_without_any_reader_is_an_exit_code(tmp_path: Path) -> None:
    command = f"{{ sleep 0.3; {sys.executable} -m nemotron.recipes.nano2 --help; echo $? > code; }} 2>&1 | true"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "code").read_text() == "2\n"


PROGRAMS = sorted(
    path.relative_to(ROOT)
    for folder in ("recipes", "nemotron", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
    and path.name != "template_process.py"  # has no flags: the chat starts it and asks it line by line
)


def test_the_programs_are_found() -> None:
    names = {path.as_posix() for path in PROGRAMS}
    assert names >= {
        "recipes/nano2/__main__.py", "recipes/nano2/chat_cli.py", "recipes/nano2/stage1_sft/data_curation.py",
        "recipes/nano2/stage2_rlvr/training.py",
        "nemotron/testing/bless.py", "benchmarks/generation.py",
    }  # fmt: skip


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.as_posix())
def test_every_program_refuses_a_flag_given_twice(path: Path, tmp_path: Path) -> None:
    module = path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
    module = f"nemotron.{module}" if path.parts[0] == "recipes" else module
    command = [str(ROOT / path)] if path.parts[0] == "benchmarks" else ["-m", module]
    done = subprocess.run(
        [sys.executable, *command, "--seed", "1", "--seed", "2"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: --seed is given 2 times; give it once, with all its values after it"


BENCHMARKS = [path for path in PROGRAMS if path.parts[0] == "benchmarks"]


def refusal(
    path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """What a benchmark says on stderr before it ends with exit code 2."""
    monkeypatch.setattr("sys.argv", [str(ROOT / path), *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    said = capfd.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    return said.err


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.as_posix())
def test_a_benchmark_refuses_numbers_below_the_least_and_missing_files_in_one_sentence(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = runpy.run_path(str(ROOT / path))["Config"]
    given: dict[str, list[str]] = {"dataset_path": ["--dataset-path", "missing"]}
    needed = [word for item in fields(config) if item.default is MISSING for word in given[item.name]]
    for item in fields(config):
        flag, default = f"--{item.name.replace('_', '-')}", item.default
        first = default[0] if isinstance(default, tuple) else default
        if isinstance(first, int | float) and not isinstance(first, bool):
            for value in (-1, 0) if first else (-1,):
                said = refusal(path, [*needed, flag, str(value)], monkeypatch, capfd)
                assert re.fullmatch(rf"error: {item.name}(\.0)?={value}(\.0)?: Input should be greater than .*\n", said)
        elif item.name.endswith("_path"):
            said = refusal(path, [flag, "missing"], monkeypatch, capfd)
            assert re.fullmatch(r"error: [^\n]*missing[^\n]*\n", said)
    assert not list(tmp_path.iterdir())


def peers_of(path: Path) -> set[str]:
    """The packages that a benchmark imports and that are no dependency of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    imported: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.partition(".")[0] for name in names}
    return {
        name
        for name in imported - sys.stdlib_module_names - {"nemotron"}
        if not declared & {*map(canonicalize_name, packages_distributions().get(name, [name]))}
    }


BESIDE_A_PEER = [(path, peer) for path in BENCHMARKS for peer in sorted(peers_of(path))]


def test_the_peers_are_found() -> None:
    assert {(path.stem, peer) for path, peer in BESIDE_A_PEER} == {
        *((name, "transformers") for name in ("generation", "gpu", "rollouts", "training_step")),
        ("curation", "datatrove"),
        ("near_duplicates", "datasketch"),
    }


LEAVES_THE_PEER_OUT = {"datatrove": "--parts step filters", "datasketch": "--no-peer"}


@pytest.mark.parametrize(("path", "peer"), BESIDE_A_PEER, ids=str)
def test_a_benchmark_without_its_peer_says_what_to_install_before_any_work(
    path: Path, peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, peer, None)  # as if it were not installed
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    (install,) = re.findall(r"pip install .*? -c constraints\.txt", text)
    flags = LEAVES_THE_PEER_OUT.get(peer, "")
    otherwise = f", or leave it out with {flags}" if flags else ""
    assert flags in text
    said = refusal(path, ["--try-out"] if path.stem == "gpu" else [], monkeypatch, capfd)
    assert said == f"error: {peer} is not installed; run {install}{otherwise}\n"
    assert not list(tmp_path.iterdir())


PACKAGES = {"nemotron": ROOT / "nemotron", "nemotron.recipes": ROOT / "recipes"}


def test_every_parser_knows_the_command_that_was_typed() -> None:
    calls = [
        ast.unparse(node)
        for folder in PACKAGES.values()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("argparse.ArgumentParser", "tyro.cli")
    ]
    assert len([call for call in calls if "prog=program_name()" in call]) >= 5
    assert [call for call in calls if "prog=program_name()" not in call and "add_help=False" not in call] == []


@pytest.mark.parametrize(
    "program",
    ["nemotron.recipes.nano2", "nemotron.recipes.nano2.chat_cli", "nemotron.report", "nemotron.testing.bless"],
)
def test_usage_names_the_command_that_was_typed(program: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", program]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"usage: python -m {program} ")
    refused = subprocess.run([*command, "--no-such"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"python -m {program}" in refused.stderr
    assert str(ROOT) not in shown + refused.stderr
