"""Goldens as syrupy snapshots: golden/<recipe>/<stage>.json, compared by `compare.py`, not as text.

In: the document of a run (`compare.run_document`) and the name of its stage. Out: equal or not, and where it departs.
Run: pytest -k stage0                      compare
     pytest -k stage0 --snapshot-update    write the golden if, and only if, the run is not within its policy

What syrupy would do otherwise, and why each method is overridden: it would compare text, store beside the test, warn
that it cannot relate the golden's place to the test, and with --snapshot-update delete every golden that no test of the
session used. Goldens that nothing compared are the plugin's business (`plugin.py`).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode
from syrupy.location import PyTestLocation

from nemotron.testing.compare import GoldenError, Policy, compare, encode_golden, parse_golden
from nemotron.testing.report import Report, report_of


class GoldenExtension(SingleFileSnapshotExtension):
    """Stores the golden of a stage under the name that the test gives: `golden(name="nano2/stage0_pretrain")`."""

    file_extension = "json"
    _write_mode = WriteMode.TEXT
    # The `golden` fixture of plugin.py sets these three, in a subclass for its session.
    directory: Path
    """Where the goldens are."""
    reports: dict[str, Report]
    """Stage -> what the comparison found."""
    compared: set[Path]
    """The goldens that a test asked for."""

    def serialize(self, data: Any, **kwargs: Any) -> str:
        """The golden that this run would be; raises GoldenError if run or golden cannot be compared."""
        text = encode_golden(data, Policy())
        path = self.directory / f"{data['stage']}.json"
        recorded = path.read_bytes() if path.exists() else None
        self.reports[data["stage"]] = report_of(recorded, data, self.reports.values())
        return text

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        """Whether the run is within the golden's policy; raises GoldenError if the golden is unusable."""
        return compare(snapshot_data, parse_golden(serialized_data)[0]).equal

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """What a failed comparison shows below the test's name; the whole report ends the session (plugin.py)."""
        yield from self.reports[parse_golden(serialized_data)[0]["stage"]].lines()[:2]

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: Any) -> str:
        """golden/<index>.json; raises GoldenError unless the test named its stage."""
        if not isinstance(index, str) or len(index.split("/")) != 2 or not all(map(_is_name, index.split("/"))):
            raise GoldenError(f"a golden is named after recipe and stage, as in nano2/stage0_pretrain, not {index!r}")
        path = cls.directory / f"{index}.json"
        cls.compared.add(path)
        return str(path)

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: Any = 0) -> str:
        """The test's name and the stage: syrupy checks that the former is in it."""
        return AbstractSyrupyExtension.get_snapshot_name(test_location=test_location, index=index)

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        """Where all goldens are, whichever test asks."""
        return str(cls.directory)

    @classmethod
    def matches_test_location(cls, *, test_location: PyTestLocation, snapshot_location: str) -> bool:
        """Any test may own any golden: it names it."""
        return Path(snapshot_location).is_relative_to(cls.directory)

    def discover_snapshots(self, **kwargs: Any) -> SnapshotCollections:
        """None: what syrupy discovers and no test used, it deletes."""
        return SnapshotCollections()

    @classmethod
    def write_snapshot_collection(cls, *, snapshot_collection: SnapshotCollection, **kwargs: Any) -> None:
        """Write a golden in one go, with the policy of the one that it replaces."""
        path = Path(snapshot_collection.location)
        text = str(next(iter(snapshot_collection)).data)
        if path.exists():
            document, _ = parse_golden(text)
            _, policy = parse_golden(path.read_bytes())
            text = encode_golden(document, policy)
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="ascii", newline="\n")
        os.replace(partial, path)


def _is_name(part: str) -> bool:
    return part.isascii() and part.isidentifier()
