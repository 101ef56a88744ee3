"""The command that chats with a Nano 2 checkpoint; the program is tested in tests/recipes/chat/test_program.py."""

import io
import runpy
from importlib.util import find_spec

import pytest


def run(monkeypatch, *arguments):
    """Exit code of the command."""
    monkeypatch.setattr("sys.argv", ["chat_cli.py", *arguments])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(find_spec("nemotron.recipes.nano2.chat_cli").origin, run_name="__main__")
    return stopped.value.code


def test_help_describes_every_default(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert "(default: none)" in text
    assert "(default: context)" in text
    assert "None" not in text


def test_an_error_names_the_command_that_makes_a_checkpoint(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, str(tmp_path)) == 2
    assert "has no checkpoint; make one with python -m nemotron.recipes.nano2.stage1_sft" in capsys.readouterr().err
