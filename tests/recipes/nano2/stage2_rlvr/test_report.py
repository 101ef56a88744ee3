"""What a person reads of stage 2: the table, the plot of training and the page of rollouts."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemotron.recipes.nano2.stage2_rlvr.report import (
    FEW_STEPS,
    PANELS,
    plot_training,
    results_table,
    rollouts_page,
    smoothed,
)
from nemotron.recipes.scoring.chance import Chance
from nemotron.recipes.scoring.rewards import Prompt
from nemotron.recipes.sources.exercises.exercise import user_exercise
from nemotron.recipes.sources.exercises.families import FAMILIES

METRICS = {
    **{f"{name}/tuned": 0.25 for name in ("reward", "strict_prompt", "strict_instruction")},
    **{f"{name}/policy": 0.75 for name in ("reward", "strict_prompt", "strict_instruction")},
    **{f"loose_{name}/{model}": 0.8 for name in ("prompt", "instruction") for model in ("tuned", "policy")},
    **{f"pass@{k}/{model}": k / 10 for k in (1, 4) for model in ("tuned", "policy")},
    "reward_difference": 0.5,
    "reward_difference_error": 0.0625,
    "reward/best_constant": 0.125,
    "reward/best_copying": 0.375,
    **{f"{name}/{family}/tuned": 0.5 for name in ("exact_match", "standard_error") for family in [*FAMILIES, "all"]},
    **{f"{name}/{family}/policy": 0.625 for name in ("exact_match", "standard_error") for family in [*FAMILIES, "all"]},
    **{f"{name}/{family}": 0.125 for name in ("difference", "difference_error", "chance") for family in FAMILIES},
    **{f"{name}/all": 0.125 for name in ("difference", "difference_error", "chance")},
    **{f"obeyed/{model}/{mode}": 0.625 for model in ("tuned", "policy") for mode in ("think", "no_think")},
}
CONSTANT, COPYING = Chance("a\nb", 0.125), Chance("its last word", 0.375)
CHECKPOINT = SimpleNamespace(num_parameters=1234, num_steps=56)


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of(tmp_path)


def checkpoint_of(tmp_path, num_steps=3):
    """A Checkpoint of some steps with tables as training writes them."""

    def write(name, rows):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")

    names = [name for panel in PANELS.values() for name in panel]
    write("curve", [{"step": step, "reward": 0.1 * step, **dict.fromkeys(names, 0.5)} for step in range(num_steps)])
    write(
        "rewards",
        [
            {"step": step, "verifier": family, "part": part, "replies": 4, "mean": 0.5}
            for step in range(num_steps)
            for family in ("instruction_following", "math", "ifeval")
            for part in ("all", "form")
        ],
    )
    write(
        "rollouts",
        [
            {
                "step": step, "prompt": f"sft/math/{prompt}", "asked": f"What is {prompt} + 1?",
                "thinking": prompt == 1, "tokens": "5 6", "text": text, "reward": reward, "advantage": reward - 0.5,
            }
            for step in (0, 2)
            for prompt in (1, 2)
            for text, reward in (("worse", 0.25), ("better", 0.75))
        ],
    )  # fmt: skip
    return SimpleNamespace(curve_path=tmp_path / "curve.parquet", tables_path=tmp_path)


# --- the table ---


def test_the_table_has_both_models_beside_each_other():
    table = results_table(CHECKPOINT, METRICS, CONSTANT, COPYING)
    assert "1,234 parameters, 56 steps." in table
    assert "| held-out instructions | fine-tuned | policy |" in table
    assert "| reward | 25.0% | 75.0% |" in table
    assert "| all constraints, loose | 80.0% | 80.0% |" in table
    assert "| right in 1 try | 10.0% | 10.0% |" in table
    assert "| right in 4 tries | 40.0% | 40.0% |" in table
    assert "| exact match | fine-tuned | policy | difference, points | chance level |" in table
    assert "| math | 50.0% ± 50.0% | 62.5% ± 62.5% | +12.5 ± 12.5 | 12.5% |" in table
    assert table.count("| **all but long_context** |") == 1
    assert all(f"| {family} |" in table for family in FAMILIES)


def test_replies_that_could_not_be_judged_have_a_row_if_there_are_some():
    assert "not judged" not in results_table(CHECKPOINT, METRICS, CONSTANT, COPYING)
    some = METRICS | {"verifier_faults/tuned": 0.0, "verifier_faults/policy": 0.25}
    table = results_table(CHECKPOINT, some, CONSTANT, COPYING)
    assert "| not judged, because the verifier failed | 0.0% | 25.0% |" in table


def test_the_table_says_what_gaming_the_verifiers_earns():
    table = results_table(CHECKPOINT, METRICS, CONSTANT, COPYING)
    assert "changed by +50.0 points (standard error 6.2, paired by question)" in table
    assert "The best constant reply earns 12.5% (`'a\\nb'`)" in table
    assert "the best of 10 ways of copying from the question 37.5% (its last word)" in table


# --- the plot of training ---


def test_the_plot_has_the_same_bytes_for_the_same_numbers(checkpoint, tmp_path):
    for name in ("first", "second"):
        plot_training(checkpoint, METRICS, tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


@pytest.mark.parametrize("name", ["reward", *(name for panel in PANELS.values() for name in panel)])
def test_the_plot_of_training_shows(name, checkpoint, tmp_path):
    plot_training(checkpoint, METRICS, tmp_path / "one.svg")
    rows = pq.read_table(checkpoint.curve_path).to_pylist()
    rows[1][name] = 0.9
    pq.write_table(pa.Table.from_pylist(rows), checkpoint.curve_path)
    plot_training(checkpoint, METRICS, tmp_path / "other.svg")
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "other.svg").read_bytes()


def test_the_plot_of_training_names_its_lines_and_axes(checkpoint, tmp_path):
    """Comments beside the outlines of the letters."""
    plot_training(checkpoint, METRICS, tmp_path / "one.svg")
    text = (tmp_path / "one.svg").read_text()
    reward = "reward, mean of the last five values"  # of a family: of the last five steps with a prompt of it
    for label in ("instruction_following", "math", "ifeval", "all prompts", "best constant reply,", reward, *PANELS):
        assert f"<!-- {label} -->" in text
    assert "<!-- safety -->" not in text  # no prompt of it


def test_a_long_training_has_lines_without_points(tmp_path):
    """Warnings are errors here, those of matplotlib too."""
    points = []
    for num_steps in (FEW_STEPS - 1, FEW_STEPS):
        plot_training(checkpoint_of(tmp_path, num_steps), METRICS, tmp_path / "one.svg")
        text = (tmp_path / "one.svg").read_text()
        assert "<!-- instruction_following -->" in text
        points.append(text.count("<use "))
    assert points[0] - points[1] > 3 * (FEW_STEPS - 2)  # of three families


def test_the_smoothed_line_is_the_mean_of_the_last_values():
    assert smoothed([1.0, 2.0, 3.0, 4.0], window=2) == [1.0, 1.5, 2.5, 3.5]
    assert smoothed([1.0, 2.0, 3.0], window=5) == [1.0, 1.5, 2.0]


# --- the page of rollouts ---


WRITE = user_exercise("math", "Write one word.", "", "word", "write one word.")
PAIRS = [(Prompt(WRITE, False, (1,)), {"tuned": ("two words", 0.125), "policy": ("word\n", 1.0)})]


def test_the_page_begins_with_held_out_replies_before_and_after(checkpoint):
    page = rollouts_page(checkpoint, PAIRS).partition("## Step 1")[0]
    parts = ("Write one word.", "fine-tuned, reward 0.12:", "two words", "policy, reward 1.00:", "\nword\n```")
    assert [page.index(part) for part in parts] == sorted(page.index(part) for part in parts)


def test_the_page_has_each_prompt_once_and_its_replies_from_the_best_to_the_worst(checkpoint):
    page = rollouts_page(checkpoint, PAIRS)
    assert [line for line in page.splitlines() if line.startswith("## Step")] == ["## Step 1", "## Step 3"]
    assert page.count("### sft/math/1, with thinking\n") == page.count("What is 1 + 1?") == 2
    _, _, first = page.partition("### sft/math/1, with thinking\n")
    first = first.partition("###")[0]
    assert (
        first.index("Reward 0.75, advantage +0.25:") < first.index("better") < first.index("Reward 0.25, advantage -0")
    )


def test_the_page_says_of_each_prompt_whether_it_asks_for_thinking(checkpoint):
    """The same questions are asked in both ways, and what is expected of the replies differs."""
    page = rollouts_page(checkpoint, [*PAIRS, (Prompt(WRITE, True, (1,)), {})])
    headings = [line.partition(", ")[2] for line in page.splitlines() if line.startswith("### ")]
    assert headings == ["without thinking", "with thinking", *["with thinking", "without thinking"] * 2]


def test_the_page_of_an_earlier_run_does_not_say_whether_prompts_ask_for_thinking(checkpoint):
    rows = pq.read_table(checkpoint.tables_path / "rollouts.parquet").drop(["thinking"])
    pq.write_table(rows, checkpoint.tables_path / "rollouts.parquet")
    assert "\n### sft/math/1\n" in rollouts_page(checkpoint, PAIRS)


def test_an_id_cannot_begin_a_heading_in_the_page(checkpoint):
    rows = pq.read_table(checkpoint.tables_path / "rollouts.parquet").to_pylist()
    rows[0]["prompt"] = "a\n# Not a heading"
    pq.write_table(pa.Table.from_pylist(rows), checkpoint.tables_path / "rollouts.parquet")
    page = rollouts_page(checkpoint, [])
    assert "### a\\x0a# Not a heading, with thinking\n" in page
    assert "\n# Not" not in page


def test_a_reply_cannot_end_its_block_in_the_page(checkpoint):
    rows = pq.read_table(checkpoint.tables_path / "rollouts.parquet").to_pylist()
    rows[0]["text"] = "```\n# Not a heading\x1b[31m"
    pq.write_table(pa.Table.from_pylist(rows), checkpoint.tables_path / "rollouts.parquet")
    page = rollouts_page(checkpoint, [])
    assert "\n````\n```\n# Not a heading" in page
    assert "\x1b" not in page
