"""The pictures of a report as SVG: the same text for the same numbers, small, with text as text.

In: numbers. Out: SVG that a page shows as an image, in which nothing runs and nothing is loaded.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nemotron.terminal import printable

MAX_POINTS = 250  # our choice: of a line, about one for three pixels; more are averaged
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "nemotron",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titley": 1.04,  # computing a place for each title takes a tenth of the time
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,
}
LINES = ("#1f5fa8", "#b3541e", "#2e7d4f", "#8a3c94", "#7a6a12", "#a3263e", "#2b7a86", "#5c5c5c")
"""Colors of lines, dark enough for thin ones; the page turns them around in the dark."""
GREY = "#6b6b6b"


def svg_of(figure: Figure) -> str:
    """A figure as SVG without a date, a preamble and needless digits."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts show the text, not ours
        figure.patch.set_visible(False)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(d|x|y|x1|x2|y1|y2|points)="[^"]*"', lambda match: rounded(match[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def rounded(attribute: str) -> str:
    """The numbers of an attribute to two digits, which is less than a pixel."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute)


def binned(values: Sequence[float], size: int) -> list[float]:
    """The mean of each `size` values in a row."""
    return [sum(part) / len(part) for part in (values[start : start + size] for start in range(0, len(values), size))]


def curve_svg(
    curve: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], numbers: Sequence[str]
) -> str:
    """Training and validation loss over the steps, phases marked; then the other numbers of the loop, small.

    A number that never changes has no panel, but for the learning rate; the table beside the plot has it.
    """
    changing = [name for name in numbers if name == "learning_rate" or len({row[name] for row in curve}) > 1]
    others = [name for name in changing if name != "loss"]
    rows = -(-len(others) // 3)
    height = 2.75 + 1.3 * rows
    size = -(-len(curve) // MAX_POINTS)
    steps = [step + 1 for step in binned([row["step"] for row in curve], size)]
    marker = "." if len(steps) < 20 else ""  # one point has no line
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, height))  # fixed margins in inches: a computed layout takes twice the time
        right = 7.2 - (1.6 if validation else 0.15)
        top = figure.add_axes((0.6 / 7.2, 1 - 2.2 / height, (right - 0.6) / 7.2, 1.9 / height))
        top.plot(steps, binned([row["loss"] for row in curve], size), color=GREY, marker=marker, linewidth=1,
                 label="training")  # fmt: skip
        for index, category in enumerate(sorted({printable(row["category"]) for row in validation})):
            of_category = [row for row in validation if printable(row["category"]) == category]
            places, losses = [row["step"] for row in of_category], [row["loss"] for row in of_category]
            color = LINES[index % len(LINES)]
            top.plot(places, losses, "o-", markersize=3, linewidth=1, color=color, label=f"validation, {category}")
        phases = [printable(row["phase"]) for row in curve]
        firsts = {phase: phases.index(phase) for phase in dict.fromkeys(phases)}
        if 1 < len(firsts) <= 6:
            for phase, first in firsts.items():
                top.axvline(first + 0.5, color="0.8", linewidth=0.8, zorder=0)
                top.text(first + 0.5, 1.0, f" {phase}", transform=top.get_xaxis_transform(), fontsize=7, va="bottom")
        else:
            top.set_title("loss", loc="left")
        top.set_ylabel("loss")
        top.set_xlabel("step")
        if validation:
            top.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        panels: list[Axes] = [top]
        for index, name in enumerate(others):
            bottom = height - 2.75 - 1.3 * (index // 3) - 1.05
            axes = figure.add_axes(((0.6 + 2.25 * (index % 3)) / 7.2, bottom / height, 1.65 / 7.2, 0.8 / height))
            axes.plot(steps, binned([row[name] for row in curve], size), color=LINES[0], marker=marker, linewidth=1)
            axes.set_title(name.replace("_", " "), loc="left", fontsize=8)
            axes.tick_params(labelsize=7)
            panels.append(axes)
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(6 if axes is top else 3))
            axes.yaxis.set_major_formatter("{x:.4g}")
    return svg_of(figure)


BOX = (160, 40)
GAP = (26, 34)
LEFT = 8


def graph_svg(rows: Sequence[tuple[str, Sequence[tuple[str, str]]]], edges: Sequence[tuple[int, int, int, int]]) -> str:
    """Boxes in rows with arrows between them.

    Args:
        rows: the title of a row, and two lines of text for each of its boxes.
        edges: row and place of the box where an arrow begins, and of the one where it ends.
    """
    (width, height), (across, down) = BOX, GAP
    step_x, step_y = width + across, height + down + 14
    total_width = 2 * LEFT + max(len(boxes) for _, boxes in rows) * step_x - across
    total_height = len(rows) * step_y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width}" height="{total_height}" '
        f'viewBox="0 0 {total_width} {total_height}" font-family="sans-serif" font-size="12" fill="#222">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
    ]

    def place(row: int, column: int) -> tuple[int, int]:
        return LEFT + column * step_x, row * step_y + 20

    for row, (title, boxes) in enumerate(rows):
        parts.append(f'<text x="{LEFT}" y="{row * step_y + 14}" font-weight="bold">{escape(printable(title))}</text>')
        for column, (first, second) in enumerate(boxes):
            x, y = place(row, column)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="#eef3f9" stroke="#1f5fa8"/>'
                f'<text x="{x + 8}" y="{y + 16}">{escape(printable(first))}</text>'
                f'<text x="{x + 8}" y="{y + 32}" fill="#444">{escape(printable(second))}</text>'
            )
    for from_row, from_column, to_row, to_column in edges:
        (x, y), (to_x, to_y) = place(from_row, from_column), place(to_row, to_column)
        if from_row == to_row and to_column == from_column + 1:
            path = f"M{x + width} {y + height // 2}L{to_x} {to_y + height // 2}"
        elif from_row == to_row:
            below, out, into = y + height + 14, x + width // 2, to_x + 20
            path = f"M{out} {y + height}C{out} {below} {into} {below} {into} {to_y + height}"
        else:
            middle = (y + height + to_y) // 2 - 8
            path = f"M{x + width - 24} {y + height}V{middle}H{to_x + width - 24}V{to_y}"
        parts.append(f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#tip)"/>')
    return "\n".join([*parts, "</svg>"])
