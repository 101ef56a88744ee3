import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.curation.normalise import normalise_text, normalised
from nemotron.recipes.sources.dataframes import daft

# Precomposed letters and combining accents, line ends, spaces, and characters that are removed.
MESSY = st.text(alphabet="ae \u0301\u0308é\n\r\t\x00\x0b\x0c\x1f\x85\u200b\ufeff\u2028\xa0\u1100\u1161#")


@given(st.one_of(st.text(), MESSY))
def test_normalizing_twice_changes_nothing(text):
    once = normalise_text(text)
    assert normalise_text(once) == once


@given(st.one_of(st.text(), MESSY))
def test_a_normalized_text_is_nfc_without_control_characters(text):
    result = normalise_text(text)
    assert unicodedata.is_normalized("NFC", result)
    assert not {"\x00", "\r", "\x0b", "\x0c", "\u200b", "\ufeff"} & set(result)


WHITE_SPACE = "".join(character for character in map(chr, range(0x110000)) if character.isspace())


@given(st.sampled_from(WHITE_SPACE))
def test_words_that_white_space_parts_stay_parted(character):
    assert normalise_text(f"one{character}two").split() == ["one", "two"]


@given(st.text())
def test_letters_and_digits_stay_in_order(text):
    def letters(value):
        return [character for character in unicodedata.normalize("NFC", value) if character.isalnum()]

    assert letters(normalise_text(text)) == letters(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a \t\nb\xa0\nc", "a\nb\nc"),
        ("def f():\n    return 1  \n\n", "def f():\n    return 1"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n\n    indented first line", "    indented first line"),
        ("a\u200bb", "ab"),
        ("a\x00b", "ab"),
        *((f"Title{control}Subtitle", "Title\nSubtitle") for control in "\x0b\x0c\x1c\x1d\x1e\x85"),
        ("name\x1fvalue", "name value"),
        ("end\n\x0cclass A:\n    x", "end\n\nclass A:\n    x"),
        ("  \n\t\n", ""),
    ],
)
def test_texts_normalized_by_hand(text, expected):
    assert normalise_text(text) == expected


def test_a_column_is_normalized_row_by_row():
    frame = daft.from_pydict({"text": ["a \n", "", "e\u0301"]})
    assert frame.select(normalised(daft.col("text"))).to_pydict() == {"text": ["a", "", "é"]}
