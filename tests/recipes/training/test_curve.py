"""The plot of a training run, as a person sees it."""

from itertools import pairwise
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nemotron.recipes.training import curve
from nemotron.recipes.training.state import Record

NOTED = ("learning_rate", "loss", "reward", "groups_with_signal", "sampler_difference", "verifier_faults", "grad_norm")


def test_the_names_of_the_numbers_do_not_overlap(tmp_path: Path, monkeypatch) -> None:
    """A loop with many numbers has a low panel for each of them."""
    drawn: list[Figure] = []
    monkeypatch.setattr(curve, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [{"step": s, "phase": "rollouts", "batch": "", "tokens": 5, **dict.fromkeys(NOTED, 0.1 * s)} for s in (0, 1)]
    curve.plot_curve(Record(weights={}, curve=rows), tmp_path / "loss.svg")
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    labels = [axes.yaxis.label.get_window_extent(canvas.get_renderer()) for axes in drawn[0].axes]
    assert len(labels) == len(NOTED)
    for upper, lower in pairwise(labels):
        assert upper.y0 > lower.y1
