"""Goldens as syrupy snapshots: golden/<recipe>/<stage>.json, compared by `compare.py`, not as text.

In: the document of a run (`compare.run_document`) and the name of its stage. Out: equal or not, and where it departs.
Run: pytest -k stage0                      compare
     pytest -k stage0 --snapshot-update    write the golden if there is none; `bless.py` replaces one that there is

What syrupy would do otherwise, and why each method is overridden: it would compare text, store beside the test, warn
that it cannot relate the golden's place to the test, and with --snapshot-update replace a golden that differs and
delete one that no test of the session used. Goldens that nothing compared are the plugin's business (`plugin.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode
from syrupy.location import PyTestLocation

from nemotron.testing.compare import GoldenError, Policy, compare, encode_golden, parse_golden, write_golden
from nemotron.testing.plugin import COMPARES_GOLDEN
from nemotron.testing.report import Report, report_of


class GoldenExtension(SingleFileSnapshotExtension):
    """Stores the golden of a stage under the name that the test gives: `golden(name="nano2/stage0_pretrain")`."""

    file_extension = "json"
    _write_mode = WriteMode.TEXT
    # The `golden` fixture of plugin.py sets these three, in a subclass for its test.
    directory: Path
    """Where the goldens are."""
    reports: dict[str, Report]
    """Stage -> what the comparison found."""
    properties: list[tuple[str, object]]
    """Of the test."""

    def serialize(self, data: Any, **kwargs: Any) -> str:
        """The golden that this run would be; raises GoldenError if it cannot be compared."""
        return encode_golden(data, Policy())

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
        return str(cls.directory / f"{index}.json")

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
        """Write a golden that was missing."""
        document, _ = parse_golden(str(next(iter(snapshot_collection)).data))
        write_golden(Path(snapshot_collection.location), document)


class GoldenAssertion(SnapshotAssertion):
    """What the `golden` fixture is: one sentence instead of a traceback, and a report of whatever happens.

    A test that asked for a golden and compared nothing with it leaves a report that says so, and the session is red.
    """

    def __call__(self, *, name: Any = None, **kwargs: Any) -> "SnapshotAssertion":
        """The golden of the stage `name`, to be compared with the stage's document."""
        location = self._location(name)
        error = f"the test that asked for {location.name} ended before it compared a run with it"
        self._golden.reports[name] = Report(name, error=error)
        return super().__call__(name=name, **kwargs)

    def __eq__(self, document: Any) -> bool:
        """Whether the run reproduces the golden; fails the test with a sentence if that cannot be said."""
        path, reports = self._location(self._custom_index), self._golden.reports
        name = str(self._custom_index)
        stage = document.get("stage") if isinstance(document, dict) and "ladder" in document else None
        try:
            if stage != name:
                what = f"a run of {stage}" if stage else f"{type(document).__name__}, no document of a run"
                raise GoldenError(f"the test compares golden(name={name!r}) with {what}; take the document of {name}")
            reports[name] = report_of(path.read_bytes() if path.exists() else None, document)
        except GoldenError as error:
            reports[name] = Report(name, error=str(error))
            pytest.fail(str(error), pytrace=False)
        self._golden.properties.append((COMPARES_GOLDEN, name))
        return super().__eq__(document)

    __hash__ = None  # type: ignore[assignment]

    @property
    def _golden(self) -> GoldenExtension:
        assert isinstance(self.extension, GoldenExtension)
        return self.extension

    def _location(self, name: Any) -> Path:
        try:
            return Path(self.extension.get_location(test_location=self.test_location, index=name))
        except GoldenError as error:
            pytest.fail(str(error), pytrace=False)


def _is_name(part: str) -> bool:
    return part.isascii() and part.isidentifier()
