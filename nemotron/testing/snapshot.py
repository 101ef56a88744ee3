"""Goldens as syrupy snapshots: golden/<recipe>/<stage>.json, compared by `compare.py` instead of as text.

In: the document of a run (`compare.run_document`) and the name of its stage. Out: equal or not, and the differences.
Run: pytest -k stage0                      compare
     pytest -k stage0 --snapshot-update    write a missing golden; `bless.py` replaces an existing one

Methods are overridden because syrupy would compare text, store goldens next to the test, warn that it cannot assign
the golden's path to the test, and with --snapshot-update replace goldens that differ and delete those that no test of
the session used. `plugin.py` reports goldens that no test compared.
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
from nemotron.testing.report import COMPARES_GOLDEN, Report, report_of


class GoldenExtension(SingleFileSnapshotExtension):
    """Stores the golden of a stage under the name given by the test: `golden(name="nano2/stage0_pretrain")`."""

    file_extension = "json"
    _write_mode = WriteMode.TEXT
    # The `golden` fixture of plugin.py sets these three in a subclass per test.
    directory: Path
    """The directory of all goldens."""
    reports: dict[str, Report]
    """Stage -> its report."""
    properties: list[tuple[str, object]]
    """User properties of the test."""

    def serialize(self, data: Any, **kwargs: Any) -> str:
        """The run in the format of a golden; raises GoldenError if it cannot be compared."""
        return encode_golden(data, Policy())

    def matches(self, *, serialized_data: Any, snapshot_data: Any) -> bool:
        """Whether the run agrees with the golden within its policy; raises GoldenError if the golden is invalid."""
        return compare(snapshot_data, parse_golden(serialized_data)[0]).equal

    def diff_lines(self, serialized_data: Any, snapshot_data: Any) -> Iterator[str]:
        """The lines shown at the failed test; the whole report is at the end of the session (plugin.py)."""
        yield from self.reports[parse_golden(serialized_data)[0]["stage"]].summary()

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: Any) -> str:
        """golden/<index>.json; raises GoldenError if `index` is not the name of a stage."""
        if not isinstance(index, str) or len(index.split("/")) != 2 or not all(map(_is_name, index.split("/"))):
            raise GoldenError(f"golden name={index!r} must be recipe and stage, such as nano2/stage0_pretrain")
        return str(cls.directory / f"{index}.json")

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: Any = 0) -> str:
        """The test's name and the stage; syrupy requires the test's name."""
        return AbstractSyrupyExtension.get_snapshot_name(test_location=test_location, index=index)

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        """The directory of all goldens, for every test."""
        return str(cls.directory)

    @classmethod
    def matches_test_location(cls, *, test_location: PyTestLocation, snapshot_location: str) -> bool:
        """Any test may compare any golden."""
        return Path(snapshot_location).is_relative_to(cls.directory)

    def discover_snapshots(self, **kwargs: Any) -> SnapshotCollections:
        """An empty collection, because syrupy deletes discovered snapshots that no test used."""
        return SnapshotCollections()

    @classmethod
    def write_snapshot_collection(cls, *, snapshot_collection: SnapshotCollection, **kwargs: Any) -> None:
        """Write a missing golden."""
        document, _ = parse_golden(str(next(iter(snapshot_collection)).data))
        write_golden(Path(snapshot_collection.location), document)


class GoldenAssertion(SnapshotAssertion):
    """The value of the `golden` fixture: fails with one sentence instead of a traceback, and always leaves a report.

    If a test requests a golden but does not compare a run with it, the report says so and the session fails.
    """

    def __call__(self, *, name: Any = None, **kwargs: Any) -> "SnapshotAssertion":
        """The golden of the stage `name`, to compare with the stage's document."""
        location = self._location(name)
        error = f"the test that requested {location.name} ended before it compared a run with it"
        self._golden.reports[name] = Report(name, error=error)
        return super().__call__(name=name, **kwargs)

    def __eq__(self, document: Any) -> bool:
        """Whether the run reproduces the golden; fails the test with a sentence if they cannot be compared."""
        path, reports = self._location(self._custom_index), self._golden.reports
        name = str(self._custom_index)
        stage = document.get("stage") if isinstance(document, dict) and "ladder" in document else None
        try:
            if stage != name:
                other = f"a run of {stage}" if stage else f"a {type(document).__name__}, not the document of a run"
                raise GoldenError(f"the test compares golden(name={name!r}) with {other}; use the document of {name}")
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
