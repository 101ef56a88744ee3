"""The sections that the report of any recipe has, from what every artifact records.

In: the stages of a run. Out: sections: what went into each step and what its filters dropped, its curves, the pages
that it wrote, its metrics; the lineage, the times, the environment, and how closely the run reproduces its goldens.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from nemotron.published import PUBLISHED
from nemotron.report.blocks import Block, Code, Folded, Page, Plot, Section, Table, Text, beginning
from nemotron.report.plots import curve_svg, graph_svg
from nemotron.report.run import Stage, Step
from nemotron.testing.compare import parse_json
from nemotron.testing.stage import reproduction

CURVE_COLUMNS = ("step", "phase", "batch", "tokens")  # of a curve, those that the loop did not measure
MAX_PAGE_CHARACTERS = 12_000  # our choice: of a page that a step wrote; the whole page is beside the artifact
OPEN_LINES = 60  # our choice: a longer page is folded


class Recipe(Protocol):
    """What a recipe adds: its module `report`."""

    TITLE: str
    CAPTIONS: Mapping[str, str]
    """Name of a field of an artifact -> what a reader calls it."""

    @staticmethod
    def sections(stages: Sequence[Stage]) -> list[Section]:
        """What is about several stages; shown before them."""

    @staticmethod
    def step_blocks(step: Step) -> list[Block]:
        """What is about one step; shown after what every step has."""


def shown(value: object) -> str:
    """A number or a text as a cell."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)


def words(name: str) -> str:
    """A name of the code as a reader reads it."""
    return name.removesuffix("_path").removeprefix("num_").replace("_", " ")


# Overview -------------------------------------------------------------------------------------------------------------


def overview(stages: Sequence[Stage]) -> Section:
    """What was run, and what is missing."""
    rows: list[list[str]] = []
    blocks: list[Block] = []
    for stage in stages:
        trained = [step for step in stage.steps if "num_parameters" in step.metadata.fields]
        fields = trained[-1].metadata.fields if trained else {}
        found = [fields.get(name) for name in ("num_parameters", "num_steps", "training_loss")]
        rows.append([stage.name, ", ".join(words(step.name) for step in stage.steps) or "-", *map(shown, found)])
    blocks.append(Table(["stage", "steps", "parameters", "training steps", "last loss"], rows))
    for stage in stages:
        if stage.unfinished:
            blocks.append(Text(f"Not finished in {stage.name}: {', '.join(stage.unfinished)}."))
    missing = [
        f"{words(field)} of {stage.name}, {step.name}"
        for stage in stages
        for step in stage.steps
        for field, reference in step.metadata.inputs.items()
        if reference.type != PUBLISHED
        and reference.digest not in {one.metadata.digest for other in stages for one in other.steps}
    ]
    if missing:
        blocks.append(Text(f"Not in this directory, or changed since: {'; '.join(missing)}."))
    return Section("Overview", blocks)


# One stage ------------------------------------------------------------------------------------------------------------


def stage_section(stage: Stage, recipe: Recipe | None, drawn: set[str]) -> Section:
    """Every step of a stage.

    Args:
        drawn: sha256 of the curves that are in the report; those of this stage are added.
    """
    parts = []
    for step in stage.steps:
        blocks = [*field_blocks(step, recipe.CAPTIONS if recipe else {}), *curve_blocks(step, drawn)]
        blocks += [*page_blocks(step), *(recipe.step_blocks(step) if recipe else []), *detail_blocks(step)]
        parts.append(Section(words(step.name), blocks))
    return Section(stage.name, [], parts)


def field_blocks(step: Step, captions: Mapping[str, str]) -> Iterator[Block]:
    """The fields of an artifact as tables, those of its filters first."""
    fields = {name: value for name, value in step.metadata.fields.items() if not is_path(step, value)}
    filters = fields.pop("filters", None)
    facts = {name: value for name, value in fields.items() if value not in (None, []) and not has_rows(value)}
    if facts:
        yield Table(
            ["what", "value"], [[captions.get(name, words(name)), shown(value)] for name, value in facts.items()]
        )
    if isinstance(filters, dict) and filters:
        yield from filter_blocks(filters)
    for entry in (entry for entry in step.ladder if entry["rung"] == "tokens"):
        fields.setdefault("tokens", {})[entry["name"]] = entry["value"]
    for name, value in fields.items():
        if has_rows(value):
            yield Table(*table_of(value), captions.get(name, words(name)))


def has_rows(value: object) -> bool:
    """Whether a field is a table rather than one value or a list of them."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(row, dict) for row in value))


def is_path(step: Step, value: object) -> bool:
    """Whether a field names a file of the artifact."""
    return isinstance(value, str) and step.metadata.owns(value)


def filter_blocks(filters: Mapping[str, Mapping[str, Any]]) -> Iterator[Block]:
    """What every filter saw and dropped, and the first items that it dropped."""
    rows, examples = [], []
    for name, found in filters.items():
        seen, dropped = found["num_seen"], found["num_dropped"]
        rows.append([name, str(found["threshold"]), shown(seen), shown(dropped), f"{dropped / max(1, seen):.1%}"])
        examples += [[name, str(one["id"]), str(one["value"])] for one in found["examples"]]
    yield Table(["filter", "what an item must satisfy", "seen", "dropped", "share"], rows, "What each filter dropped")
    if examples:
        yield Folded("Examples of what was dropped", [Table(["filter", "item", "why"], examples)])


def table_of(value: object) -> tuple[list[str], list[list[str]]]:
    """Header and rows of nested values.

    {"High": 3} gives a row; {"phase1": {"code": {"weight": 0.2}}} gives a row for phase1, code.
    """
    rows: list[dict[str, Any]] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            parts = inner if isinstance(inner, dict) else {"value": inner}
            nested = {part: deeper for part, deeper in parts.items() if isinstance(deeper, dict)}
            rows += [{"name": name, "part": part, **deeper} for part, deeper in nested.items()]
            rows += [] if nested else [{"name": name, **parts}]
    elif isinstance(value, list):
        rows = [row if isinstance(row, dict) else {"value": row} for row in value]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [words(name) for name in names], [[shown(row.get(name)) for name in names] for row in rows]


def curve_blocks(step: Step, drawn: set[str]) -> Iterator[Block]:
    """The curves of a loop, unless an earlier step has the same."""
    name = step.metadata.fields.get("curve_path")
    if not isinstance(name, str) or not step.has(name) or step.metadata.files[name].sha256 in drawn:
        return
    drawn.add(step.metadata.files[name].sha256)
    curve = step.rows(name)
    if not curve:
        return
    numbers = [column for column in curve[0] if column not in CURVE_COLUMNS]
    validation_name = step.metadata.fields.get("validation_curve_path")
    validation = step.rows(validation_name) if isinstance(validation_name, str) and step.has(validation_name) else []
    last = len(curve) - 1
    places = sorted({0, last // 4, last // 2, 3 * last // 4, last})
    table = Table(
        ["step", *(f"{place + 1:,}" for place in places)],
        [[words(number), *(shown(curve[place][number]) for place in places)] for number in numbers],
    )
    others = ", ".join(words(number) for number in numbers if number != "loss")
    alt = (
        f"Curves of {len(curve):,} steps: loss from {shown(curve[0]['loss'])} to {shown(curve[-1]['loss'])}"
        f"{', with the validation loss' if validation else ''}; {others}."
    )
    yield Plot(curve_svg(curve, validation, numbers), alt, "", table)


def page_blocks(step: Step) -> Iterator[Block]:
    """The pages of Markdown and of plain text that a step wrote, long ones folded."""
    for name in sorted(step.metadata.files, key=lambda name: (name != "results.md", name)):
        if "/" in name or not name.endswith((".md", ".txt")):
            continue
        text = step.text(name)
        block: Block
        if name.endswith(".txt"):
            block, cut = Code(text[:MAX_PAGE_CHARACTERS]), len(text) > MAX_PAGE_CHARACTERS
        else:
            part = beginning(text, MAX_PAGE_CHARACTERS)
            block, cut = Page(part), part.rstrip() != text.rstrip()
        blocks = [block, *([Text(f"The rest is in {step.name}/{name}.")] if cut else [])]
        if name != "results.md" and (text.count("\n") > OPEN_LINES or "\n```" in text or name.endswith(".txt")):
            yield Folded(f"{words(name.rpartition('.')[0])}, as the step wrote it", blocks)
        else:
            yield from blocks


def detail_blocks(step: Step) -> Iterator[Block]:
    """All metrics and the config, folded."""
    if step.metrics:
        rows = [[name, shown(value)] for name, value in step.metrics.items()]
        yield Folded(f"All metrics ({len(rows)})", [Table(["metric", "value"], rows)])
    config = {
        name: value for name, value in step.config.items()
        if not name.endswith(("_dir", "_path")) and not isinstance(value, dict)
    }  # fmt: skip
    if config:
        rows = [[name, shown(value)] for name, value in config.items()]
        yield Folded(f"Config ({len(rows)} values)", [Table(["field", "value"], rows)])


# Where it comes from --------------------------------------------------------------------------------------------------


def lineage_section(stages: Sequence[Stage]) -> Section:
    """Which artifact was made from which."""
    places = {
        step.metadata.digest: (row, column)
        for row, stage in enumerate(stages)
        for column, step in enumerate(stage.steps)
    }
    boxes = [
        (stage.name, [(words(step.name), f"{step.metadata.type} {step.metadata.digest[:8]}") for step in stage.steps])
        for stage in stages
    ]
    edges, rows = [], []
    for stage in stages:
        for step in stage.steps:
            sources = []
            for reference in step.metadata.inputs.values():
                source = places.get(reference.digest)
                if source is None:
                    place = "" if reference.type == PUBLISHED else ", not here"
                    sources.append(f"{reference.type} {reference.digest[:12]}{place}")
                    continue
                edges.append((*source, *places[step.metadata.digest]))
                made = stages[source[0]]
                sources.append(made.steps[source[1]].name + ("" if made is stage else f" of {made.name}"))
            code = str(step.metadata.producer.get("code_version", "-"))
            rows.append([stage.name, step.name, step.metadata.digest[:12], ", ".join(sources) or "raw data", code])
    names = {place: f"s{place[0]}_{place[1]}" for place in places.values()}
    mermaid = ["graph LR"]
    for (row, column), name in names.items():
        step = stages[row].steps[column]
        mermaid.append(f'  {name}["{plain(stages[row].name)}<br>{plain(step.name)}<br>{step.metadata.digest[:8]}"]')
    mermaid += [f"  {names[edge[:2]]} --> {names[edge[2:]]}" for edge in edges]
    table = Table(["stage", "step", "digest", "made from", "code"], rows)
    alt = f"Graph of {len(places)} artifacts; the table below names what each was made from."
    return Section("Lineage", [Plot(graph_svg(boxes, edges), alt, mermaid="\n".join(mermaid)), table])


def plain(text: str) -> str:
    """A name without what a graph in Mermaid would obey."""
    return "".join(letter if letter.isalnum() or letter in "_- ." else "?" for letter in text)


def times_section(stages: Sequence[Stage]) -> Section:
    """When each step was finished, and what it used, as far as the artifacts say."""
    rows = []
    for stage in stages:
        for step in stage.steps:
            producer = step.metadata.producer
            seconds, memory = producer.get("seconds"), producer.get("peak_memory_bytes")
            rows.append([
                stage.name,
                step.name,
                step.metadata.created_at.isoformat(sep=" "),
                duration(seconds) if isinstance(seconds, int | float) else "-",
                f"{memory / 1e9:.2f} GB" if isinstance(memory, int) else "-",
            ])  # fmt: skip
    note = (
        "The time is that of the process that finished the step, and the memory is the most that this process had used "
        "by then, also in steps before. A dash means that an earlier version of the step recorded neither."
    )
    return Section("Times", [Table(["stage", "step", "finished", "time", "peak memory"], rows), Text(note)])


def duration(seconds: float) -> str:
    """Seconds as a reader reads them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def environment_section(stages: Sequence[Stage]) -> Section:
    """Scale, seed, code and libraries; where steps differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for step in (step for stage in stages for step in stage.steps):
        producer, config = step.metadata.producer, step.config
        values = {"scale": config.get("scale"), "seed": producer.get("seed"), "code": producer.get("code_version")}
        libraries = producer.get("libraries")
        values |= libraries if isinstance(libraries, dict) else {}
        for name, value in values.items():
            if value is not None:
                found.setdefault(str(name), {})[str(value)] = None
    rows = [[name, ", ".join(values)] for name, values in found.items()]
    return Section("Environment", [Table(["what", "value"], rows)])


def golden_of(stage: Stage) -> tuple[str, bytes]:
    """The name of a stage's golden, "nano2/stage0_pretrain", and what this package ships of it; empty if nothing."""
    name = f"{stage.recipe.rpartition('.')[2]}/{stage.name}"
    shipped = resources.files("nemotron.golden").joinpath(f"{name}.json")
    return name, shipped.read_bytes() if shipped.is_file() else b""


def reproduction_section(stages: Sequence[Stage]) -> Section:
    """How closely each stage at tiny scale reproduces the golden that this package ships."""
    rows = []
    for stage in stages:
        name, golden = golden_of(stage)
        if not all(step.config.get("scale") == "tiny" for step in stage.steps):
            rows.append([stage.name, "recorded at tiny only"])
        elif not golden:
            rows.append([stage.name, "nothing is recorded"])
        else:
            steps = list(parse_json(golden, name)["ladder"])
            lacking = [step for step in steps if stage.step(step) is None]
            if lacking:
                rows.append([stage.name, f"not compared: {', '.join(lacking)} not finished"])
                continue
            for one in stage.steps:
                _ = one.ladder  # refuses a file that has changed
            line = reproduction(name, stage.steps[0].directory.parent)
            rows.append([stage.name, line.partition(": ")[2]])
    return Section("Reproduction", [Table(["stage", "has the numbers of its golden"], rows)])
