from types import SimpleNamespace

import numpy as np
import pytest

from nemotron.recipes.nano2.stage0_pretrain.report import plot_results, results_table
from nemotron.recipes.scoring.accuracy import Accuracy
from nemotron.recipes.scoring.recall import Recall

TEXT = {"code": {"model": 1.5, "kneser_ney": 2.0, "unigram": 3.0}}
RECALL = {64: Recall(Accuracy(4, 16, 0.001), Accuracy(24, 48, 0.1), 3.25)}
METRICS = {
    "num_bytes/code": 12345,
    "num_baseline_tokens": 67890,
    "long_loss/within_base_length": 3.5,
    "long_loss/beyond_base_length": 3.25,
}
TABLE = """\
# The base model on held-out data

1,234,567 parameters, 105 steps.

## Text: bits per byte

| category | bytes | model | Kneser-Ney | unigram | model to Kneser-Ney | model to unigram |
|---|---:|---:|---:|---:|---:|---:|
| code | 12,345 | 1.500 | 2.000 | 3.000 | -25.0% | -50.0% |

The baselines read the model's own training text, 67,890 tokens.

## Long documents: loss by position

| positions | nats per token |
|---|---:|
| within the base length | 3.500 |
| beyond it | 3.250 |

## Recall: three digits, by the number of tokens between fact and question

| distance | rows | right | digits right | nats per answer |
|---:|---:|---:|---:|---:|
| 64 | 16 | 25.0% ± 10.8% | 50.0% ± 7.2% | 3.25 |
| by chance | | 0.1% | 10.0% | 6.91 |

## Problems: the likeliest choice, without worked steps

| family | problems | right | by chance |
|---|---:|---:|---:|
| lookup | 25 | 80.0% ± 8.0% | 25.0% |

| the first problems | answer | picked |
|---|---|---|
| a \\| b c | 1 | 2 |
"""


def test_the_table_of_hand_written_results():
    table = results_table(
        SimpleNamespace(num_parameters=1_234_567, num_steps=105),
        TEXT,
        METRICS,
        RECALL,
        {"lookup": Accuracy(20, 25, 0.25)},
        [{"question": "a | b\nc", "answer": "1", "picked": "2"}],
    )
    assert table == TABLE


def test_the_plot_has_the_same_bytes_each_time_and_no_date(tmp_path):
    for name in ("first.svg", "second.svg"):
        plot_results(TEXT, np.linspace(4, 3, 512), 128, RECALL, tmp_path / name)
    plot = (tmp_path / "first.svg").read_bytes()
    assert plot == (tmp_path / "second.svg").read_bytes()
    assert b"date" not in plot


@pytest.mark.parametrize("num_positions", [128, 200, 512])
def test_long_documents_of_any_length_are_plotted(tmp_path, num_positions):
    plot_results(TEXT, np.linspace(4, 3, num_positions), 128, RECALL, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000
