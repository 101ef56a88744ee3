"""How far a run is: counts, estimates, and the display of a terminal."""

import io
import sys

import pytest

from nemotron.process import process
from nemotron.terminal import print_line, print_markdown
from nemotron.view import View, duration, shown


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is told."""
    now = [100.0]
    monkeypatch.setattr("nemotron.view.time.perf_counter", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_steps_so_far(clock):
    view = View()
    view.open("one", 2)
    view.open("two", 3)
    view.begin("one", "one 1/2")
    assert view.words() == ""  # nothing is known yet
    clock[0] += 10
    view.end(was_run=True)
    assert view.words() == "  about 10 s left of the stage, 40 s of the whole run"
    view.begin("one", "one 2/2")
    clock[0] += 5
    view.advance(0.5)
    assert view.seconds_left() == (5, 35)


def test_a_step_that_was_current_takes_no_time(clock):
    view = View()
    view.open("one", 3)
    view.begin("one", "one 1/3")
    clock[0] += 1
    view.end(was_run=False)
    assert view.words() == ""
    view.begin("one", "one 2/3")
    clock[0] += 10
    view.end(was_run=True)
    assert view.seconds_left() == (10, 10)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (130, "2 min"), (5900, "98 min"), (9000, "2.5 h")]
)
def test_a_duration_is_said_in_its_unit(seconds, text):
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_one_display_shows_the_step_and_lines_go_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with shown() as view:
        view.open("stage1_sft", 3)
        view.begin("stage1_sft", "stage1_sft 1/3 data_curation")
        print_line("a line")
        print_markdown("| a | b |\n|---|---|\n| one | two |")
        view.end(was_run=True)
        with shown() as inner:
            assert inner is view
    text = terminal.getvalue()
    assert "stage1_sft 1/3 data_curation" in text
    assert "1/3" in text
    assert "left of the stage" in text
    assert "a line\n" in text
    assert "one" in text
    assert process.view is None


def test_elsewhere_there_is_no_display(capsys):
    with shown() as view:
        view.open("one", 1)
        view.begin("one", "one 1/1")
        view.end(was_run=True)
    assert view.bar is None
    assert capsys.readouterr() == ("", "")


def test_after_an_error_the_view_is_gone():
    with pytest.raises(ValueError, match="no"), shown():
        raise ValueError("no")
    assert process.view is None
