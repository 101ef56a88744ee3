"""The report of a run: one page that shows what went in, what each step did, and what came out.

In: the output directory of a recipe, of which the artifacts alone are read. Out: report.html, one file that loads and
runs nothing, and report.md, with the same numbers. Equal artifacts give equal bytes.
Every recipe has the same generic sections. A recipe of this package adds its own in its module `report`
(recipes/nano2/report.py), another one by calling `write_report` with it.
Run: python -m nemotron.report outputs/nano2/tiny
"""

import hashlib
import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from nemotron.code import digest_of, modules_of
from nemotron.directory import METADATA
from nemotron.report.blocks import PARSER, Section, is_number, lower_headings, section_lines
from nemotron.report.run import Stage, read_run
from nemotron.report.sections import (
    Recipe,
    environment_section,
    golden_of,
    lineage_section,
    overview,
    reproduction_section,
    stage_section,
    times_section,
)
from nemotron.terminal import LINES, printable

OWN_RECIPE = re.compile(r"nemotron\.recipes\.[a-z0-9_]+")
"""Recipes whose module `report` is imported. No other name is: it comes from the artifacts, which anybody may write."""

HEADER_CELL = re.compile("<th(?=[ >])")
CELL = re.compile("<td([^>]*)>([^<]*)</td>")


def write_report(output_dir: Path, recipe: Recipe | None = None, *, only_if_changed: bool = False) -> Path:
    """Write report.html and report.md into the output directory of a recipe; return the path of report.html.

    Args:
        recipe: what the recipe adds; left out, the module `report` of the recipe, if it is one of this package.
        only_if_changed: leave both files as they are if they were made from the same artifacts by the same code.
    Raises:
        ValueError: if the directory holds no finished step, or a file of one is missing or has changed.
    """
    stages = read_run(output_dir)
    recipe = recipe or recipe_of(stages)
    title = (
        recipe.TITLE if recipe else next(filter(None, (one.recipe for one in stages)), "").rpartition(".")[2] or "run"
    )
    html, source = output_dir / "report.html", source_of(stages, recipe)
    if only_if_changed and html.exists() and html.with_suffix(".md").exists() and source.encode() in html.read_bytes():
        return html
    try:
        sections = sections_of(stages, recipe)
    except LookupError as error:
        raise ValueError(
            f"{output_dir}: an artifact lacks {error}, which the report reads; run its step again with this version"
        ) from error
    pages = {"report.html": html_page(title, source, sections), "report.md": markdown_page(title, sections)}
    for name, text in pages.items():
        partial = output_dir / f"{name}.partial"
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, output_dir / name)
    return html


def source_of(stages: Sequence[Stage], recipe: Recipe | None) -> str:
    """One sha256 for what a report is made from: the artifacts, the goldens and the code."""
    modules = modules_of("nemotron.report") | modules_of(getattr(recipe, "__name__", ""))
    found = hashlib.sha256(digest_of(modules).encode())
    for stage in stages:
        found.update(repr((stage.name, stage.unfinished)).encode() + golden_of(stage)[1])
        for step in stage.steps:
            found.update(step.name.encode() + (step.directory / METADATA).read_bytes())
    return found.hexdigest()


def recipe_of(stages: Sequence[Stage]) -> Recipe | None:
    """The module `report` of the recipe that made the stages, if it is one of this package and has one."""
    for name in dict.fromkeys(stage.recipe for stage in stages):
        if OWN_RECIPE.fullmatch(name) and importlib.util.find_spec(name) and importlib.util.find_spec(f"{name}.report"):
            module: Any = importlib.import_module(f"{name}.report")
            return module
    return None


def sections_of(stages: Sequence[Stage], recipe: Recipe | None) -> list[Section]:
    """All sections, in the order of the report."""
    drawn: set[str] = set()
    return [
        overview(stages),
        *(recipe.sections(stages) if recipe else []),
        *(stage_section(stage, recipe, drawn) for stage in stages if stage.steps),
        lineage_section(stages),
        reproduction_section(stages),
        times_section(stages),
        environment_section(stages),
    ]


def html_page(title: str, source: str, sections: Sequence[Section]) -> str:
    """The report as one file of HTML. What is not marked as safe here is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nemotron.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value, keep=LINES) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_url"] = svg_url
    environment.filters["as_html"] = page_html
    return environment.get_template("page.html").render(title=title, source=source, sections=sections)


def svg_url(svg: str) -> Markup:
    """A picture as the value of an attribute in double quotes, which are escaped like the rest; < and > may stay."""
    return Markup(f"data:image/svg+xml,{quote(svg, safe=' /:=;,.()+*!@$-_~?<>{}')}")


def page_html(markdown: str, level: int) -> Markup:
    """A page of Markdown as HTML, below a heading of this level; it holds no HTML, link or picture of the page's."""
    html = str(PARSER.render(lower_headings(markdown, level)))
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    html = CELL.sub(lambda cell: f'<td class="w"{cell[1]}>{cell[2]}</td>' if is_number(cell[2]) else cell[0], html)
    return Markup(HEADER_CELL.sub('<th scope="col"', html))


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown."""
    lines = [f"# {title}: report", ""]
    for section in sections:
        lines += section_lines(section)
    return "\n".join(lines)
