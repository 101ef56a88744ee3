"""Right answers in another form are read, and other numbers are not taken for them."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.answers import parse_number, plain


@pytest.mark.parametrize(
    "reply",
    ["9", " 9\n", "9.", "**9**", "**9.**", "**9**.", "*9*", "_9_", "`9`", "```\n9\n```", "```python\n9\n```", "$9$",
     "$$9$$", r"\(9\)", r"\[9\]", r"\boxed{9}", r"$\boxed{9}$", r"$\boxed{9}$.", r"**$\boxed{9}$**", r"\(\boxed{9}\)",
     r"\text{9}"],
)  # fmt: skip
def test_what_only_decorates_is_taken_off(reply: str) -> None:
    assert plain(reply) == "9"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("It is **9**.", "It is 9"),
        ("C’est 9.", "C'est 9"),
        ("I can’t", "I can't"),
        ("−5", "-5"),
        ("9..", "9."),
        ("** 9", "** 9"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("gro\u0308ß", "größ"),
        ("a\u00a0b", "a b"),
        ("12\u202f000", "12000"),
        ("1\u202f2", "1 2"),
        ("", ""),
        (".", ""),
    ],
)
def test_plain_on_written_cases(reply: str, text: str) -> None:
    assert plain(reply) == text


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("1471", 1471), ("1,471", 1471), ("1471.", 1471), ("+1471", 1471), ("1471.0", 1471), ("$1{,}471$", None),
        ("12,000", 12_000), ("1,234,567", 1_234_567), ("-12,000.5", Fraction(-24_001, 2)), ("$12,000$", 12_000),
        ("12\u202f000", 12_000), ("−5", -5), (".5", Fraction(1, 2)), ("0.50", Fraction(1, 2)), ("007", 7),
        ("3/4", Fraction(3, 4)), ("-3 / 4", Fraction(-3, 4)), (r"\frac{3}{4}", Fraction(3, 4)),
        (r"$\dfrac{3}{4}$", Fraction(3, 4)), (r"$-\frac{3}{4}$", Fraction(-3, 4)), ("+3/4", Fraction(3, 4)),
        ("The answer is 9.", 9), ("Answer: 9", 9), ("the answer: **9**", 9), ("It is 9.", 9),
        (r"\boxed{ 9 }", 9), ("$ 9 $", 9), ("** 9 **", 9), ("` 9 `", 9), (r"\( 9 \)", 9), (r"\text{ 9 }", 9),
        (r"** $\boxed{ 9 }$ **", 9), ("The answer is ** 9 **.", 9), ("** 9. **", 9), ("_ 9 _", 9),
        ("\\[\n9\n\\]", 9), ("$$\n9\n$$", 9), ("$5\n$6", None),
        ("So the answer is 9.", 9), ("So, the answer is **9**.", 9), ("so it's 9", 9),
        ("So 9", None), ("So so the answer is 9", None), ("Also the answer is 9", None),
        ("1,4,7,1", None), ("1,47", None), ("14,71", None), ("1,4711", None), ("1471,", None), (",471", None),
        ("0001,471", None), ("1,471,", None), ("1,,471", None), ("1 471", None), ("1.471.000", None),
        ("6/8", None), ("8/1", None), ("3/0", None), ("3/-4", None), ("1/2/3", None), ("3//4", None),
        ("9 or 10", None), ("9, 10", None), ("9 9", None), ("9\n10", None), ("9!", None), ("9%", None), ("--9", None),
        ("1e3", None), ("0x9", None), ("nine", None), ("９", None), ("٩", None), ("", None), (".", None), ("-", None),
        ("1471 apples", None), ("9" * 5000, None), ("0." + "9" * 5000, None), ("inf", None), ("nan", None),
        ("x = 9", None), ("9 = 9", None), ("It is It is 9", None), ("not 9", None),
    ],
)  # fmt: skip
def test_parse_number_on_written_cases(reply: str, value) -> None:
    assert parse_number(reply) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [("1,471 apples", 1471), ("1471apples.", 1471), ("**1471** apples", 1471), ("1471", 1471), ("apples", None),
     ("1471 pears", None), ("apples 1471", None), ("1471 apples apples", None), ("1471. apples", None)],
)  # fmt: skip
def test_the_unit_that_was_asked_for_may_follow(reply: str, value) -> None:
    assert parse_number(reply, unit="apples") == value


@pytest.mark.parametrize(("group", "right", "wrong"), [(".", "12.000", "12,000"), (" ", "12 000", "12.0.0")])
def test_groups_are_parted_as_in_the_language(group: str, right: str, wrong: str) -> None:
    assert parse_number(right, group=group) == 12_000
    assert parse_number(wrong, group=group) is None


def test_where_a_period_parts_groups_it_is_not_a_decimal_point() -> None:
    assert parse_number("1.471", group=".") == 1471
    assert parse_number("1.5", group=".") is None


@given(value=st.integers(-(10**12), 10**12))
def test_every_integer_is_read_with_and_without_groups(value: int) -> None:
    assert parse_number(str(value)) == parse_number(f"{value:,}") == parse_number(f"**{value:,}**.") == value


@given(value=st.fractions(-1000, 1000, max_denominator=500))
def test_every_reduced_fraction_is_read(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    if value.denominator > 1:
        assert parse_number(f"{value.numerator * 2}/{value.denominator * 2}") is None


@given(reply=st.text() | st.text("0123456789.,/+-*$\\{}()[]boxedfrac_` \n\u202f", max_size=40))
def test_any_text_is_a_number_or_none(reply: str) -> None:
    assert isinstance(plain(reply), str)
    assert isinstance(parse_number(reply), Fraction | None)


@pytest.mark.parametrize(
    "piece", ["9", "*", "**", "$", "`", "\\(", "\\boxed{", "1,000,", "_a", "9\u202f", " ", "```\n", "\\[", "$$\n"]
)
def test_a_very_long_reply_is_read_in_no_time(piece: str) -> None:
    started = time.process_time()
    parse_number(piece * (200_000 // len(piece)))
    assert time.process_time() - started < 2
