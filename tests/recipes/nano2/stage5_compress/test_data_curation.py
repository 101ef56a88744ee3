"""The numbers of curation, and the streams of rows; whole runs: tests/pipelines/test_compress_runs.py."""

import numpy as np
import pytest

from nemotron.recipes.nano2.stage5_compress import data_curation
from nemotron.recipes.nano2.stage5_compress.data_curation import Config, Rows


def stream(*lengths):
    """A stream of texts of these lengths: its tokens are 0, 1, 2, ..."""
    documents = np.repeat(np.arange(len(lengths)), lengths)
    return {"a": np.arange(len(documents), dtype=np.int32)}, {"a": documents}


def rows_of(found, name):
    return [row[name].tolist() for row in found]


def test_rows_are_read_on_and_start_over_at_the_end():
    rows = Rows("sft", {"a": 1.0}, *stream(3, 4))
    assert rows_of(rows.next_rows(2, 3), "tokens") == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert rows.epochs == pytest.approx(6 / 7)
    assert rows_of(rows.next_rows(1, 3), "tokens") == [[6, 0, 1, 2]]


def test_each_text_of_a_row_has_its_own_segment_and_its_first_token_does_not_count():
    found = list(Rows("sft", {"a": 1.0}, *stream(3, 4)).next_rows(2, 3))
    assert rows_of(found, "segments") == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert rows_of(found, "in_loss") == [[True, True, True, False], [True] * 4]


def test_two_ends_of_one_stream_are_two_texts():
    (row,) = Rows("sft", {"a": 1.0}, *stream(2, 2)).next_rows(1, 5)
    assert row["tokens"].tolist() == [0, 1, 2, 3, 0, 1]
    assert row["segments"].tolist() == [0, 0, 1, 1, 2, 2]


def test_categories_are_read_in_their_shares():
    tokens = {"a": np.zeros(5, np.int32), "b": np.ones(5, np.int32)}
    documents = {name: np.zeros(5, np.int64) for name in tokens}
    found = list(Rows("pretraining", {"a": 0.75, "b": 0.25}, tokens, documents).next_rows(8, 2))
    assert [row["tokens"][0] for row in found].count(0) == 6


def test_the_published_schedule_of_lengths():
    config = Config(scale="full")
    assert config.lengths == (8192, 49_152, 262_144)
    assert (config.calibration_samples, config.reasoning_share) == (1024, 0.7)
    phases = data_curation.planned_phases(config)
    assert [phase.sequence_length for phase in phases] == [8192, 49_152, 262_144]


@pytest.mark.parametrize(("share", "source"), [(0.25, "sft"), (0.7, "pretraining")])
@pytest.mark.parametrize("changes", [{"sequences": (64, 8, 1)}, {"calibration_samples": 1}])
def test_a_share_that_gives_a_source_no_row_is_refused(share, source, changes):
    sentence = rf"^reasoning_share={share} gives no row of {source} among 1; give more rows, or another share$"
    with pytest.raises(ValueError, match=sentence):
        Config(reasoning_share=share, **changes)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_source_alone_may_be_asked_for(share):
    assert Config(reasoning_share=share, calibration_samples=1).reasoning_share == share


@pytest.mark.parametrize("number", [0, -1])
def test_an_empty_calibration_set_is_refused(number):
    with pytest.raises(ValueError, match=f"^calibration_samples={number}: Input should be greater than 0$"):
        Config(calibration_samples=number)


@pytest.mark.parametrize("changes", [{"lengths": (128, 256)}, {"sequences": (1,)}, {"lengths": (), "sequences": ()}])
def test_lengths_and_sequences_name_the_same_parts(changes):
    with pytest.raises(ValueError, match=r"^lengths=.* and sequences=.* must name the same parts, at least one; give"):
        Config(**changes)


@pytest.mark.parametrize("lengths", [(256, 128, 512), (128, 128, 512)])
def test_lengths_grow(lengths):
    with pytest.raises(ValueError, match=r"^lengths=.* must be different, from the shortest up$"):
        Config(lengths=lengths)
