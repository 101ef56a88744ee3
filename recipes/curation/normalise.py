"""Normalize texts: Unicode NFC, plain line ends, no trailing spaces, no stray invisible characters.

In: any string. Out: the same text with one representation of each character, so that equal texts have equal bytes.
Source: Unicode Standard Annex 15 for NFC; the rules for whitespace and control characters are our choice.
"""

import re
import unicodedata

from nemotron.recipes.sources.dataframes import BATCH_ROWS, daft

LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85]")
"""What `str.splitlines` counts as a line end among the control characters, such as the vertical tab in a title."""
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0e-\x1b\x7f\ufeff\u200b]")
TRAILING_SPACE = re.compile(r"[^\S\n]+$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n{4,}")


def normalise_text(text: str) -> str:
    """Apply NFC, make \\n the only line end, and remove control characters, trailing spaces and outer blank lines.

    Control characters that are white space separate words, so they become line ends, and the unit separator a space.

    At most two blank lines in a row remain. Indentation and spaces inside a line stay, because they have meaning in
    source code. Applying the function twice changes nothing.
    """
    text = LINE_ENDS.sub("\n", text).replace("\x1f", " ")
    text = CONTROL_CHARACTERS.sub("", text)
    # After the control characters are removed, because one of them may separate a letter from its accent.
    text = unicodedata.normalize("NFC", text)
    text = TRAILING_SPACE.sub("", text)
    text = BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


@daft.func.batch(return_dtype=daft.DataType.string(), use_process=False, batch_size=BATCH_ROWS)
def normalised(text: daft.Series) -> list[str]:
    """`normalise_text` on a column."""
    return [normalise_text(document) for document in text.to_pylist()]
