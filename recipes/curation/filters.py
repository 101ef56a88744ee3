"""One filter: what it measures, what it keeps, and a report of what it dropped.

In: a Daft dataframe of documents. Out: the documents that were kept, and a `FilterReport`.
Every filter of curation goes through `apply_filter`, so that none can drop a document without saying so.

Left out: filters that change a text instead of dropping it.
"""

from dataclasses import dataclass

from pydantic import BaseModel, Field
from rich.console import Console

from nemotron.recipes.sources.dataframes import daft

MAX_EXAMPLES = 5
MAX_VALUE_CHARACTERS = 200

# What kind of text a category of the blend holds decides which filters make sense for it. Mathematics, questions and
# answers, and other languages are neither prose nor code to the rules that were written for English web pages.
PROSE = (
    "academic",
    "crawl++",
    "crawl-high",
    "crawl-medium",
    "crawl-medium-high",
    "syn-crawl-high",
    "syn-crawl-medium-high",
    "wiki",
)
CODE = ("code", "nemotron-cc-code")

progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class DroppedDocument(BaseModel):
    """A document that failed, and the value that made it fail."""

    id: str
    value: str


class FilterReport(BaseModel):
    """What one filter did."""

    threshold: str
    """What a document had to fulfil, and where that rule comes from."""
    num_seen: int = Field(ge=0)
    num_dropped: int = Field(ge=0)
    examples: list[DroppedDocument] = Field(max_length=MAX_EXAMPLES)
    """The first dropped documents in the order of their ids."""


@dataclass(frozen=True)
class Filter:
    """A named rule over a dataframe of documents."""

    name: str
    threshold: str
    value: daft.Expression
    """What is measured; shown beside a dropped document."""
    keep: daft.Expression
    """True where the document stays; refers to the measured value as `col("value")`. Null counts as False."""


def apply_filter(documents: daft.DataFrame, rule: Filter, reports: dict[str, FilterReport]) -> daft.DataFrame:
    """The documents that `rule` keeps; its report is added to `reports` and shown as one line on stderr.

    Raises:
        ValueError: if no document is left.
    """
    measured = documents.with_column("value", rule.value).with_column("keep", rule.keep.fill_null(False)).collect()
    num_seen = measured.count_rows()
    dropped = measured.where(~daft.col("keep")).select("id", "value").sort("id").to_pylist()
    num_kept = num_seen - len(dropped)
    progress.print(f"{rule.name:<28} {num_seen:>9,} -> {num_kept:>9,} ({len(dropped):,} dropped)")
    report = FilterReport(
        threshold=rule.threshold,
        num_seen=num_seen,
        num_dropped=len(dropped),
        examples=[DroppedDocument(id=row["id"], value=in_words(row["value"])) for row in dropped[:MAX_EXAMPLES]],
    )
    if not num_kept:
        example = f", {report.examples[0].id} for instance with {report.examples[0].value!r}" if dropped else ""
        raise ValueError(
            f"the filter {rule.name!r} ({rule.threshold}) leaves none of {num_seen} documents{example}; "
            f"bring other or more sources"
        )
    reports[rule.name] = report
    return measured.where(daft.col("keep")).exclude("value", "keep")


def in_words(value: object) -> str:
    """A measured value as text: four digits of a float, the beginning of a long text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:MAX_VALUE_CHARACTERS]
