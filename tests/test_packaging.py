"""The wheel holds what the clone holds, under the right names, and a step runs from it in an empty directory."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import nemotron
from nemotron.lineage import DISTRIBUTION

ROOT = Path(__file__).parents[1]
SOURCES = {"nemotron": "nemotron", "recipes": "nemotron/recipes", "golden": "nemotron/golden"}


def run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this Python; its output is in the failure message."""
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, without the network."""
    directory = tmp_path_factory.mktemp("wheel")
    copy = directory / "copy"
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "..", str(copy), cwd=copy)
    (path,) = directory.glob("nemotron_recipes-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel, unpacked by pip into a fresh directory."""
    target = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


def test_the_wheel_holds_every_module_and_golden_and_nothing_else(wheel):
    expected = {
        f"{arrives_as}/{path.relative_to(ROOT / name).as_posix()}"
        for name, arrives_as in SOURCES.items()
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".json", ".md", ".typed", ".html", ".css", ".yaml")
        and not {"__pycache__", "outputs"} & set(path.parts)
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_puts_nothing_beside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {"nemotron", f"nemotron_recipes-{version}.dist-info"}


def test_the_metadata_has_the_license_and_pins_the_packages_that_are_raw_text(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    headers = HeaderParser().parsestr(archive.read(metadata).decode())
    assert headers["Name"] == DISTRIBUTION == "nemotron-recipes"
    assert headers["Version"] == nemotron.__version__
    assert headers["License-Expression"] == "Apache-2.0"
    assert metadata.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    pinned = {line for line in headers.get_all("Requires-Dist", []) if "==" in line and "extra" not in line}
    assert {line.split("==")[0] for line in pinned} == {"sympy", "networkx", "mpmath", "jinja2"}


def test_nothing_tells_anybody_to_install_the_package_of_another_project():
    """`nemotron` on PyPI is not ours: install, uses of its metadata, requirements and wheels name nemotron-recipes."""
    name = r"""['"\s]nemotron(?:\[[^]]*\])?(?:[=<>~!]=[^'"\s]*)?(?=['"\s`)]|$)"""
    wrong = re.compile(
        rf"""\binstall\b[^\n]*?{name}|(?:version|requires|metadata|distribution|files)\(\s*['"]nemotron['"]"""
        rf"""|\bnemotron\[\w|\bnemotron-(?:\d|\*)|pypi\.org/project/nemotron(?![\w-])"""
    )
    hidden = {path for path in ROOT.iterdir() if path.name.startswith(".") and path.name not in (".ci", ".github")}
    ignored = hidden | {ROOT / "outputs", ROOT / "build", Path(__file__)}
    kinds = (".py", ".md", ".toml", ".txt", ".yml", ".ini", "")
    found = []
    for path in ROOT.rglob("*"):
        if path.suffix in kinds and not ignored & {path, *path.parents} and path.is_file():
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            found += [f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in lines if wrong.search(line)]
    assert not found, "\n".join(found)


def test_the_constraints_pin_every_version_exactly_and_agree_with_the_project():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") - line.count('=="') - line.count('== "') >= 1 for line in lines)
    assert not [line for line in lines if "+" in line or "://" in line]
    for pin in ("sympy==1.14.0", "networkx==3.6.1", "mpmath==1.3.0", "Jinja2==3.1.6", "syrupy==7.0.2"):
        assert pin in lines


def test_an_installed_step_runs_in_an_empty_directory(installed, tmp_path):
    """And it is the installed one: in an editable environment the clone would be at hand too."""
    path = str(installed)
    where = (
        "import nemotron, nemotron.recipes as r, nemotron.golden as g; print(nemotron.__file__, r.__file__, g.__file__)"
    )
    files = run("-c", where, cwd=tmp_path, PYTHONPATH=path).stdout.split()
    assert [Path(file).is_relative_to(installed) for file in files] == [True] * 3
    step = "nemotron.recipes.nano2.stage0_pretrain.data_curation"
    done = run("-m", step, "--scale", "tiny", cwd=tmp_path, PYTHONPATH=path)
    (line,) = done.stdout.splitlines()
    dataset = json.loads(line)["dataset"]
    assert Path(dataset["path"]) == tmp_path / "outputs" / "nano2" / "tiny" / "stage0_pretrain" / "data_curation"
    assert [entry.name for entry in tmp_path.iterdir()] == ["outputs"]


def test_the_installed_orchestrators_have_help(installed, tmp_path):
    for module in ("nemotron.recipes.nano2", "nemotron.recipes.nano2.stage0_pretrain"):
        assert "--scale" in run("-m", module, "--help", cwd=tmp_path, PYTHONPATH=str(installed)).stdout
