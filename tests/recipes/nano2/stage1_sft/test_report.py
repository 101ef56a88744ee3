"""What a person reads of stage 1's evaluation."""

from types import SimpleNamespace

from nemotron.recipes.nano2.stage1_sft.report import MODES, plot_results, results_table, samples_page
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.sources.exercises.exercise import user_exercise

FAMILIES = ["math", "tool_calling"]
METRICS = {
    **{f"exact_match/{family}/{mode}": 0.25 for family in [*FAMILIES, "all"] for mode in MODES},
    **{f"reply_loss/{family}/base": 4.567 for family in [*FAMILIES, "all"]},
    **{f"reply_loss/{family}/tuned": 1.234 for family in [*FAMILIES, "all"]},
    **{f"{name}/{mode}": 0.5 for name in ("obeyed", "format_errors", "stopped") for mode in MODES},
    **{f"thought_tokens/{mode}": 7.25 for mode in MODES},
    "valid_tool_calls/think": 1.0,
    **{f"chance/{family}": 0.125 for family in [*FAMILIES, "all"]},
    "always_refusing/safety": 0.5,
    "within_budget": 1.0,
    "num_closed_by_budget": 3,
    "num_exercises": 16,
}
CHANCE = {"math": Chance("4", 0.125), "tool_calling": Chance("a\nb", 0.125)}


def test_the_table_has_a_row_for_each_family_and_a_dash_for_what_was_not_measured():
    table = results_table(SimpleNamespace(num_parameters=1234, num_steps=56), METRICS, FAMILIES, CHANCE)
    assert "1,234 parameters, 56 steps, 16 exercises" in table
    assert "| math | 25% | 25% | 25% | 25% | 12% |" in table
    assert "| **all but long_context** | 25% |" in table
    assert "| nats per token of the right reply | base model | fine-tuned |" in table
    assert "| math | 4.57 | 1.23 |" in table
    assert "| **all but long_context** | 4.57 | 1.23 |" in table
    assert "| tool calls that fit their tools | - | 100% | - | - |" in table
    assert "| tokens of thought | 7.2 |" in table
    assert "the budget closed 3 of them" in table


def test_replies_that_could_not_be_judged_have_a_row_if_there_are_some():
    checkpoint = SimpleNamespace(num_parameters=1, num_steps=1)
    assert "not judged" not in results_table(checkpoint, METRICS, FAMILIES, CHANCE)
    some = METRICS | {f"verifier_faults/{mode}": share for mode, share in zip(MODES, (0, 0.25, 0, 0.5), strict=True)}
    table = results_table(checkpoint, some, FAMILIES, CHANCE)
    assert "| not judged, because the verifier failed | 0% | 25% | 0% | 50% |" in table


def test_the_table_says_which_constant_reply_gets_the_chance_level():
    table = results_table(SimpleNamespace(num_parameters=1, num_steps=1), METRICS, FAMILIES, CHANCE)
    assert "| exact match | base model | thinking | not thinking | thinking within a budget | chance level |" in table
    assert "what the best constant reply gets: `'4'` (math), `'a\\nb'` (tool_calling)." in table
    assert "Refusing every safety request, with the owner's name, gets 50%." in table


def test_the_plot_has_the_same_bytes_for_the_same_numbers(tmp_path):
    for name in ("first", "second"):
        plot_results(METRICS, FAMILIES, tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert "tool" in (tmp_path / "first.svg").read_text()


def test_the_plot_shows_the_loss_of_the_right_reply(tmp_path):
    plot_results(METRICS, FAMILIES, tmp_path / "one.svg")
    plot_results({**METRICS, "reply_loss/math/tuned": 3.0}, FAMILIES, tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "other.svg").read_bytes()
    assert "nats per token" in (tmp_path / "one.svg").read_text()  # a comment beside the outlines of the letters


def test_the_samples_show_the_question_once_and_each_reply_with_its_verdict():
    exercise = user_exercise("math", "What is 1 + 2?", "1 + 2 = 3", "3", "1+2")
    page = samples_page([("think", exercise, "<think>\n3", True), ("no_think", exercise, "<think></think>4", False)])
    assert page.count("user: What is 1 + 2?") == 1
    assert "thinking, right:" in page
    assert "not thinking, wrong:" in page


def test_a_reply_cannot_end_its_block_in_the_samples():
    exercise = user_exercise("math", "What is 1 + 2?", "1 + 2 = 3", "3", "1+2")
    reply = "```\n![](http://a.b)"
    assert f"\n````\n{reply}\n````\n" in samples_page([("no_think", exercise, reply, False)])
