"""Rules that drop documents and conversations, and the report of what each rule dropped.

In: documents in a Daft dataframe, conversations in files or other items in a list, and the rules in order. Out: the
items that no rule dropped, and a `FilterReport` for each rule. All filtering goes through `apply_to_dataframe`,
`apply_to_files` or `kept_by`, so no item is dropped without a report.

    remaining = apply_to_list(pairs, preference_rules(lengths, 512), reports)

Left out: rules that change a text instead of dropping it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from nemotron.recipes.curation.digests import sha256_of
from nemotron.recipes.curation.rows import num_rows
from nemotron.recipes.sources import Document, Unreadable
from nemotron.recipes.sources.dataframes import BATCH_ROWS, Task, daft, run_tasks, written
from nemotron.recipes.sources.documents import documents_table, read_documents, write_document_files
from nemotron.terminal import print_line

MAX_EXAMPLES = 5
MAX_VALUE_CHARACTERS = 200
OTHER_SOURCES = "use other or more sources"
NUMBER = re.compile("[0-9]+")


class Progress:
    """Lines on stderr; an id or a reason from the user's data can neither begin a new line nor style one."""

    def print(self, line: str) -> None:
        """Print one line."""
        print_line(line)


progress = Progress()


class HasId(Protocol):
    """Anything that rules apply to."""

    @property
    def id(self) -> str:
        """Unique among the items."""


Item = TypeVar("Item", bound=HasId)


@dataclass(frozen=True)
class Rule(Generic[Item]):
    """A named rule that keeps or drops an item."""

    name: str
    threshold: str
    """What an item must satisfy, and where the rule comes from."""
    fault: Callable[[Item], str | None]
    """What is wrong with an item, in a few words; None if the item stays."""
    remedy: str = OTHER_SOURCES
    """What the user can do if the rule drops every item."""
    prints_reasons: bool = False
    """Whether the faults of the dropped items are printed, because each of them is a mistake in the user's data."""


class DroppedItem(BaseModel):
    """An item that a rule dropped, or that a source could not read."""

    id: str
    value: str
    """What is wrong with it."""


class FilterReport(BaseModel):
    """What one rule did."""

    threshold: str
    """What an item had to satisfy, and where the rule comes from."""
    num_seen: int = Field(ge=0)
    """Items that the rules before this one kept."""
    num_dropped: int = Field(ge=0)
    examples: list[DroppedItem] = Field(max_length=MAX_EXAMPLES)
    """The first dropped items by id."""
    dropped_sha256: str
    """One sha256 of the ids of all dropped items, sorted: it shows whether two runs dropped the same ones."""

    def recorded(self) -> dict[str, int | str]:
        """What a run must reproduce: how many items, and which."""
        return self.model_dump(include={"num_seen", "num_dropped", "dropped_sha256"})


def to_dataframe(documents: Sequence[Document]) -> daft.DataFrame:
    """One row per document, one column per field of `Document`."""
    return daft.from_arrow(documents_table(documents))


def apply_to_dataframe(
    documents: daft.DataFrame,
    rules: Sequence[Rule[Document]],
    reports: dict[str, FilterReport],
    directory: Path | None = None,
) -> daft.DataFrame:
    """Apply the rules to the documents, in one pass.

    Args:
        documents: a column for each field of `Document`; optional fields may be missing.
        rules: applied in this order; a rule sees only the documents that the rules before it kept.
        reports: gets a report for each rule, by its name; each report is also one line on stderr.
        directory: where the documents are written between two passes; without it they are held in memory.
    Returns:
        The documents that no rule dropped, with the same columns.
    Raises:
        ValueError: if a rule leaves no document.
    """

    @daft.func.batch(
        return_dtype=daft.DataType.struct({"rule": daft.DataType.int64(), "fault": daft.DataType.string()}),
        use_process=False,
        batch_size=BATCH_ROWS,
    )
    def first_faults(rows: daft.Series) -> list[dict[str, Any] | None]:
        faults = (first_fault(Document(**row), rules) for row in rows.to_pylist())
        return [None if found is None else {"rule": found[0], "fault": found[1]} for found in faults]

    columns = [daft.col(field.name) for field in fields(Document) if field.name in documents.column_names]
    found = first_faults(daft.functions.to_struct(*columns))
    checked = documents.with_column("found", found)
    checked = checked.collect() if directory is None else written(checked, directory / f"pass{len(reports)}")
    dropped = checked.where(daft.col("found").not_null()).select("id", "found").to_pylist()
    faults = ((row["found"]["rule"], row["id"], row["found"]["fault"]) for row in dropped)
    add_reports(rules, checked.count_rows(), faults, reports)
    return checked.where(daft.col("found").is_null()).exclude("found")


def apply_to_files(
    paths: Sequence[Path],
    rules: Sequence[Rule[Item]],
    reports: dict[str, FilterReport],
    directory: Path,
    item_of: Callable[[Document], Item],
) -> list[Path]:
    """`apply_to_dataframe` for files of documents, each of them by itself; the documents keep their order.

    Args:
        directory: where the remaining documents are written, in files of a bounded size.
        item_of: what the rules look at.
    Returns:
        The files of the remaining documents.
    """

    def apply(task: Task) -> Task:
        faults: list[tuple[int, str, str]] = []

        def kept() -> Iterator[Document]:
            for document in read_documents([Path(task["path"])]):
                fault = first_fault(item_of(document), rules)
                if fault is None:
                    yield document
                else:
                    faults.append((fault[0], document.id, fault[1][:MAX_VALUE_CHARACTERS]))

        written = write_document_files(Path(task["directory"]), kept())
        return {"paths": list(map(str, written)), "faults": faults}

    tasks = [{"path": str(path), "directory": str(directory / f"{index:05d}")} for index, path in enumerate(paths)]
    done = run_tasks(apply, tasks)
    add_reports(rules, num_rows(paths), (fault for result in done for fault in result["faults"]), reports)
    return [Path(path) for result in done for path in result["paths"]]


def apply_to_list(items: Sequence[Item], rules: Sequence[Rule[Item]], reports: dict[str, FilterReport]) -> list[Item]:
    """`apply_to_dataframe` for a list; the items keep their order."""
    return list(compress(items, kept_by(items, rules, reports)))


def kept_by(items: Iterable[Item], rules: Sequence[Rule[Item]], reports: dict[str, FilterReport]) -> np.ndarray:
    """(n,) bool, whether no rule drops an item; reports as `apply_to_dataframe`."""
    faults: list[tuple[int, str, str]] = []
    kept: list[bool] = []
    for item in items:
        fault = first_fault(item, rules)
        kept.append(fault is None)
        if fault is not None:
            faults.append((fault[0], item.id, fault[1]))
    add_reports(rules, len(kept), faults, reports)
    return np.array(kept, dtype=bool)


def first_fault(item: Item, rules: Sequence[Rule[Item]]) -> tuple[int, str] | None:
    """The index of the first rule that drops the item, and the fault that it found; None if the item stays."""
    for index, rule in enumerate(rules):
        fault = rule.fault(item)
        if not isinstance(fault, str | None):
            raise TypeError(f"the filter {rule.name!r} says {fault!r} of {item.id}; return what is wrong, or None")
        if fault is not None:
            return index, fault
    return None


def print_reasons(what: str, items: Iterable[tuple[str, str]]) -> None:
    """Print on stderr the most frequent reasons, each with its number of items and the first of these items.

    Args:
        what: the start of each line, such as "unreadable".
        items: (id, reason) of each; reasons that differ only in numbers count as the same.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for id, reason in items:
        kind = NUMBER.sub("0", reason)
        counts[kind] += 1
        first.setdefault(kind, f"{id}: {reason[:MAX_VALUE_CHARACTERS]}")
    frequent = counts.most_common(MAX_EXAMPLES)
    for kind, count in frequent:
        progress.print(f"{what}: {count:,}, the first is {first[kind]}")
    if others := len(counts) - len(frequent):
        num_left = counts.total() - sum(count for _, count in frequent)
        progress.print(f"{what}: {num_left:,} for {others:,} other reasons")


def report_unreadable(unreadable: Sequence[Unreadable]) -> list[DroppedItem]:
    """Print on stderr why rows are unreadable, and return the first of them."""
    print_reasons("unreadable", ((item.id, item.reason) for item in unreadable))
    return [DroppedItem(id=item.id, value=item.reason[:MAX_VALUE_CHARACTERS]) for item in unreadable[:MAX_EXAMPLES]]


def add_reports(
    rules: Sequence[Rule[Item]],
    num_items: int,
    faults: Iterable[tuple[int, str, str]],
    reports: dict[str, FilterReport],
) -> None:
    """Add a report for each rule and print it on stderr.

    Args:
        num_items: items before the first rule.
        faults: for each dropped item the index of the rule that dropped it, its id and its fault.
    Raises:
        ValueError: if a rule leaves no item, or two rules have the same name.
    """
    for index, rule in enumerate(rules):
        if rule.name in reports or rule.name in [earlier.name for earlier in rules[:index]]:
            raise ValueError(f"two filters are named {rule.name!r}, and one report would be lost; rename one")
    dropped: list[list[tuple[str, str]]] = [[] for _ in rules]
    for index, id, fault in faults:
        dropped[index].append((id, fault))
    num_seen = num_items
    for rule, dropped_here in zip(rules, dropped, strict=True):
        num_kept = num_seen - len(dropped_here)
        progress.print(f"{rule.name:<28} {num_seen:>9,} -> {num_kept:>9,} ({len(dropped_here):,} dropped)")
        if rule.prints_reasons:
            print_reasons(rule.name, dropped_here)
        examples = [
            DroppedItem(id=id, value=fault[:MAX_VALUE_CHARACTERS]) for id, fault in sorted(dropped_here)[:MAX_EXAMPLES]
        ]
        if not num_kept:
            example = f", for example {examples[0].id} ({examples[0].value!r})" if examples else ""
            raise ValueError(
                f"the filter {rule.name!r} leaves none of {num_seen} items{example}; its threshold is "
                f"{rule.threshold!r}; {rule.remedy}"
            )
        reports[rule.name] = FilterReport(
            threshold=rule.threshold,
            num_seen=num_seen,
            num_dropped=len(dropped_here),
            examples=examples,
            dropped_sha256=sha256_of(sorted(id for id, _ in dropped_here)),
        )
        num_seen = num_kept
