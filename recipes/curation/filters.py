"""One filter: what it measures, what it keeps, and a report of what it dropped.

In: a Daft dataframe of documents. Out: the documents that were kept, and a `FilterReport`.
Every filter of curation goes through `apply_filter`, so that none can drop a document without saying so.

Left out: filters that change a text instead of dropping it.
"""

from dataclasses import dataclass

from daft import DataFrame, Expression, col
from pydantic import BaseModel, Field
from rich.console import Console

MAX_EXAMPLES = 5

# What kind of text a category of the blend holds decides which filters make sense for it.
PROSE = ("academic", "crawl++", "crawl-high", "crawl-medium", "crawl-medium-high", "syn-crawl-high",
         "syn-crawl-medium-high", "wiki")  # fmt: skip
CODE = ("code", "nemotron-cc-code")
PROCEDURAL = "procedural"  # origin of generated problems: right by construction and alike on purpose


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

    @property
    def num_kept(self) -> int:
        return self.num_seen - self.num_dropped


@dataclass(frozen=True)
class Filter:
    """A named rule over a dataframe of documents."""

    name: str
    threshold: str
    value: Expression
    """What is measured; shown, as text, beside a dropped document."""
    keep: Expression
    """True where the document stays; may refer to the measured value as `col("value")`. Null counts as False."""


def apply_filter(documents: DataFrame, rule: Filter, reports: dict[str, FilterReport]) -> DataFrame:
    """The documents that `rule` keeps; its report is added to `reports` and shown as one line on stderr.

    Raises:
        ValueError: if no document is left.
    """
    measured = documents.with_column("value", rule.value).with_column("keep", rule.keep.fill_null(False)).collect()
    num_seen = measured.count_rows()
    dropped = measured.where(~col("keep")).select(col("id"), col("value").cast(str).alias("value")).sort("id")
    num_dropped = dropped.count_rows()
    report = FilterReport(
        threshold=rule.threshold,
        num_seen=num_seen,
        num_dropped=num_dropped,
        examples=[DroppedDocument(**row) for row in dropped.limit(MAX_EXAMPLES).to_pylist()],
    )
    reports[rule.name] = report
    Console(stderr=True, highlight=False).print(
        f"{rule.name:<28} {num_seen:>9,} -> {report.num_kept:>9,} ({num_dropped:,} dropped)"
    )
    if not report.num_kept:
        raise ValueError(
            f"the filter {rule.name!r} ({rule.threshold}) dropped all {num_seen} documents, "
            f"for instance {report.examples[0].id} with {report.examples[0].value!r}; bring other or more sources"
        )
    return measured.where(col("keep")).exclude("value", "keep")
