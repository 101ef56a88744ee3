"""Package text matches RECORD, is sampled by whole modules, and is the same on every machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron.recipes.sources.documents import Document
from nemotron.recipes.sources.packages import (
    PACKAGES,
    decode,
    installed_package,
    installed_packages,
    is_test,
    package_documents,
    package_test_texts,
)

MIT_LICENCE = "Permission is hereby granted, free of charge, to any person obtaining a copy"
SMALL_PACKAGES = {"jinja2": PACKAGES["jinja2"], "mpmath": PACKAGES["mpmath"]}

Files = dict[str, bytes | str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], Path]:
    """Installs a package "fake" 1.0 with the given files into an empty directory on the path."""

    def install_files(files: Files) -> Path:
        info = "fake-1.0.dist-info"
        files = {
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n",
            f"{info}/licenses/LICENSE": MIT_LICENCE,
            **files,
        }
        rows = [f"{info}/RECORD,,", "fake/__pycache__/a.pyc,,"]
        for name, given in files.items():
            content = given.encode() if isinstance(given, str) else given
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f'"{name}",sha256={digest},{len(content)}')
        (tmp_path / info / "RECORD").write_text("\n".join(rows))
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return install_files


FAKE = {"fake": "1.0"}

# Recorded with CPython 3.11.7, 3.12.1 and 3.13.0.
TINY_SAMPLE_DIGEST = "86dc42a55e3817fa0655340720e22cf7aca39cdabea3dde984c84ccf3f3f3bda"


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    """The documents that a tiny run reads."""
    documents, unreadable = package_documents(750)
    assert unreadable == []
    return documents


# Documents ------------------------------------------------------------------------------------------------------------


def test_a_module_becomes_documents_of_its_docstrings_and_its_source(install: Callable[[Files], Path]) -> None:
    source = '"""What for."""\n__all__ = ["f"]\n\n\ndef f():\n    """Does it.\n\n    >>> f()\n    """\n    return 1\n'
    install({"fake/a.py": source})
    documents, unreadable = package_documents(100, FAKE)
    assert unreadable == []
    assert documents == [
        Document("fake/a.py::__doc__", "fake/a.py", "academic", "What for.", "MIT", "fake 1.0", False, None),
        Document("fake/a.py::f", "fake/a.py", "academic", "Does it.", "MIT", "fake 1.0", True, True),
        Document("fake/a.py", "fake/a.py", "code", '__all__ = ["f"]\n\n\ndef f():\n    return 1', "MIT", "fake 1.0"),
    ]


def test_an_object_that_the_package_lists_is_exported(install: Callable[[Files], Path]) -> None:
    install({
        "fake/__init__.py": "from .a import f\n__all__ = ['f']\n",
        "fake/a.py": "def f():\n    'Does it.'\ndef _g():\n    'Helps.'\ndef h():\n    'Waits.'\n",
    })  # fmt: skip
    documents, _unreadable = package_documents(100, FAKE)
    assert {d.id: d.exported for d in documents if d.category == "academic"} == {
        "fake/a.py::f": True,
        "fake/a.py::_g": False,
        "fake/a.py::h": None,
    }


def test_tests_and_other_files_do_not_become_documents(install: Callable[[Files], Path]) -> None:
    install({
        "fake/core/a.py": "x = 1\n",
        "fake/core/tests/test_a.py": "def test_a():\n    'Claims.'\n",
        "fake/core/tests/data.py": "y = 2\n",
        "fake/conftest.py": "z = 3\n",
        "fake/notes.txt": "notes",
        "other/b.py": "w = 4\n",
    })  # fmt: skip
    documents, unreadable = package_documents(100, FAKE)
    assert ([d.id for d in documents], unreadable) == (["fake/core/a.py"], [])


def test_a_module_without_code_has_no_source_document(install: Callable[[Files], Path]) -> None:
    install({"fake/__init__.py": "", "fake/a.py": '"""Only words."""\n'})
    documents, unreadable = package_documents(100, FAKE)
    assert ([d.id for d in documents], unreadable) == (["fake/a.py::__doc__"], [])


def test_a_file_may_state_its_own_license(install: Callable[[Files], Path]) -> None:
    install({"fake/a.py": "# This file is GPLv3\nx = 1\n", "fake/b.py": "y = 1\n"})
    documents, _unreadable = package_documents(100, FAKE)
    assert {d.id: d.licence for d in documents} == {"fake/a.py": "GPL", "fake/b.py": "MIT"}


def test_a_file_that_cannot_be_decoded_or_parsed_is_reported_with_a_reason(install: Callable[[Files], Path]) -> None:
    install({
        "fake/a.py": b"x = '\xff'\n",
        "fake/b.py": "def f(:\n",
        "fake/c.py": "# -*- coding: no-such-code -*-\n",
        "fake/d.py": "x = 1\n",
        "fake/e.py": b"# -*- coding: latin-1 -*-\nx = '\xfc'\n",
    })  # fmt: skip
    documents, unreadable = package_documents(100, FAKE)
    assert {d.id: d.text for d in documents} == {
        "fake/d.py": "x = 1",
        "fake/e.py": "# -*- coding: latin-1 -*-\nx = 'ü'",
    }
    reasons = {u.id: u.reason for u in unreadable}
    assert set(reasons) == {"fake/a.py", "fake/b.py", "fake/c.py"}
    assert "decoded" in reasons["fake/a.py"]
    assert "parsed: line 1" in reasons["fake/b.py"]
    assert "no-such-code" in reasons["fake/c.py"]


def test_an_unreadable_init_file_is_reported_once_and_does_not_stop_labeling(install: Callable[[Files], Path]) -> None:
    install({"fake/__init__.py": "def f(:\n", "fake/a.py": "def f():\n    'Does it.'\n"})
    documents, unreadable = package_documents(100, FAKE)
    assert [u.id for u in unreadable] == ["fake/__init__.py"]
    assert documents[0].exported is None


def test_line_endings_are_normalized_and_byte_order_marks_removed() -> None:
    assert decode(b"\xef\xbb\xbfx = 1\r\ny = 2\rz = 3\n") == "x = 1\ny = 2\nz = 3\n"


# Verification ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fake/a.py", "fake/__init__.py"])
def test_a_changed_file_raises_a_value_error(install: Callable[[Files], Path], name: str) -> None:
    root = install({"fake/__init__.py": "y = 1\n", "fake/a.py": "def f():\n    'Does it.'\n"})
    (root / name).write_text("def f():\n    'Does at.'\n")
    with pytest.raises(ValueError, match=r"as fake 1\.0 lists it .* pip install .* fake==1\.0$"):
        package_documents(100, FAKE)


def test_a_missing_file_raises_a_value_error(install: Callable[[Files], Path]) -> None:
    (install({"fake/a.py": "x = 1\n"}) / "fake/a.py").unlink()
    with pytest.raises(ValueError, match=r"a\.py is missing, but fake 1\.0 lists it .* run: pip install"):
        package_documents(100, FAKE)


def test_a_file_without_a_digest_raises_a_value_error(install: Callable[[Files], Path]) -> None:
    record = install({"fake/a.py": "x = 1\n"}) / "fake-1.0.dist-info/RECORD"
    record.write_text("fake/a.py,,\n")
    with pytest.raises(ValueError, match="not any as fake"):
        package_documents(100, FAKE)


def test_a_missing_or_empty_record_raises_a_value_error(install: Callable[[Files], Path]) -> None:
    record = install({"fake/a.py": "x = 1\n"}) / "fake-1.0.dist-info/RECORD"
    record.write_text("")
    with pytest.raises(ValueError, match="no RECORD"):
        installed_package("fake", "1.0")
    record.unlink()
    with pytest.raises(ValueError, match="no RECORD"):
        installed_package("fake", "1.0")


def test_another_version_raises_a_value_error(install: Callable[[Files], Path]) -> None:
    install({"fake/a.py": "x = 1\n"})
    with pytest.raises(ValueError, match=r"fake 1\.0 is installed, the corpus needs 2\.0; run: pip .* fake==2\.0"):
        package_documents(100, {"fake": "2.0"})


def test_a_package_that_is_not_installed_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"not installed; run: pip install --force-reinstall --no-deps no-such==1"):
        package_documents(100, {"no-such": "1"})


def test_a_number_of_documents_below_one_raises_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_documents=0 must be at least 1"):
        package_documents(0)


def test_one_document_is_the_first_module(install: Callable[[Files], Path]) -> None:
    install({"fake/b.py": '"""One."""\n', "fake/a.py": '"""Two."""\n'})
    (module,) = {document.module for document in package_documents(1, FAKE)[0]}
    assert len({document.module for document in package_documents(100, FAKE)[0]}) > 1
    assert module in {document.module for document in package_documents(100, FAKE)[0]}


def test_a_file_that_is_not_sampled_is_not_read(install: Callable[[Files], Path]) -> None:
    root = install({f"fake/m{number}.py": f"x = {number}\n" for number in range(9)})
    sampled = [d.id for d in package_documents(3, FAKE)[0]]
    for number in range(9):
        if f"fake/m{number}.py" not in sampled:
            (root / f"fake/m{number}.py").unlink()
    assert [d.id for d in package_documents(3, FAKE)[0]] == sampled


def test_versions_are_those_pinned_by_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    pinned = dict(d.split("==") for d in project["project"]["dependencies"] if "==" in d)
    assert PACKAGES.items() <= pinned.items()


# Tests of the packages ------------------------------------------------------------------------------------------------


def test_tests_named_after_the_sampled_modules_are_returned(install: Callable[[Files], Path]) -> None:
    install({
        "fake/core/a.py": "x = 1\n",
        "fake/core/tests/test_a.py": "beside\n",
        "fake/core/tests/test_b.py": "another\n",
        "fake/tests/test_a.py": "above\n",
        "fake/other/tests/test_a.py": "elsewhere\n",
        "fake/core/tests/test_bad.py": b"\xff\n",
    })  # fmt: skip
    texts, unreadable = package_test_texts(["fake/core/a.py"], FAKE)
    assert [(t.id, t.text, t.category) for t in texts] == [
        ("fake/core/tests/test_a.py", "beside\n", "package-tests"),
        ("fake/tests/test_a.py", "above\n", "package-tests"),
    ]
    assert unreadable == []
    texts, unreadable = package_test_texts(None, FAKE)
    assert (len(texts), [u.id for u in unreadable]) == (4, ["fake/core/tests/test_bad.py"])


# The real packages ----------------------------------------------------------------------------------------------------


def test_the_corpus_consists_of_these_files() -> None:
    modules = {name: package.modules for name, package in installed_packages(PACKAGES).items()}
    assert {name: (len(paths), sum(map(is_test, paths))) for name, paths in modules.items()} == {
        "jinja2": (25, 0),
        "mpmath": (87, 36),
        "networkx": (580, 293),
        "sympy": (1532, 679),
    }


def test_every_package_has_an_spdx_license() -> None:
    assert {package.licence for package in installed_packages(PACKAGES).values()} == {"BSD-3-Clause"}


def test_the_smaller_packages_give_these_documents() -> None:
    documents, unreadable = package_documents(10_000, SMALL_PACKAGES)
    assert unreadable == []
    assert Counter((d.origin, d.category) for d in documents) == {
        ("jinja2 3.1.6", "academic"): 489,
        ("jinja2 3.1.6", "code"): 25,
        ("mpmath 1.3.0", "academic"): 427,
        ("mpmath 1.3.0", "code"): 51,
    }
    assert len({d.id for d in documents}) == len(documents)


def test_a_sample_has_whole_modules_and_is_a_prefix_of_a_larger_one(sample: list[Document]) -> None:
    smaller, _unreadable = package_documents(200)
    assert smaller == sample[: len(smaller)]
    assert len(smaller) >= 200
    last = smaller[-1].module
    assert len(smaller) - sum(d.module == last for d in smaller) < 200
    assert all(d.module != last for d in sample[len(smaller) :])


def test_a_tiny_sample_represents_the_corpus(sample: list[Document]) -> None:
    assert {d.origin for d in sample} == {f"{name} {version}" for name, version in PACKAGES.items()}
    assert {d.licence for d in sample} == {"BSD-3-Clause", "CC-BY-SA-3.0", "MIT"}
    assert {d.module for d in sample if d.licence == "CC-BY-SA-3.0"} == {"networkx/algorithms/bipartite/matching.py"}
    assert {d.category for d in sample} == {"academic", "code"}
    academic = [d for d in sample if d.category == "academic"]
    assert min(Counter(d.has_example for d in academic).values()) >= 20
    assert min(Counter(d.exported for d in academic).values()) >= 100


def test_source_has_no_labels(sample: list[Document]) -> None:
    assert {(d.has_example, d.exported) for d in sample if d.category == "code"} == {(None, None)}


def test_no_text_has_a_prompt_or_mentions_its_own_exported_object(sample: list[Document]) -> None:
    for document in sample:
        if document.category == "academic":
            assert ">>>" not in document.text, document.id
            if document.exported is not None:
                assert document.id.rpartition("::")[2].rpartition(".")[2] not in document.text.split(), document.id


def test_the_tests_of_a_sample_are_found(sample: list[Document]) -> None:
    texts, unreadable = package_test_texts(sorted({d.module for d in sample}))
    assert unreadable == []
    assert len(texts) >= 30
    assert all(is_test(t.id) for t in texts)


def test_documents_do_not_depend_on_the_hash_seed_or_the_directory(tmp_path: Path) -> None:
    program = (
        "import hashlib; from nemotron.recipes.sources.packages import package_documents as read;"
        "print(hashlib.sha256(repr(read(60)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C"},
            cwd=directory,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, directory in (("1", tmp_path), ("2", Path(__file__).parent))
    }
    assert len(digests) == 1


def test_a_tiny_sample_has_these_ids_and_texts(sample: list[Document]) -> None:
    assert len(sample) == 781
    told = json.dumps([[d.id, d.text, d.has_example, d.exported] for d in sample])
    assert hashlib.sha256(told.encode()).hexdigest() == TINY_SAMPLE_DIGEST


def test_reading_a_package_does_not_import_it() -> None:
    program = (
        "import sys; from nemotron.recipes.sources.packages import package_documents as read; read(100);"
        "print([name for name in sys.modules if name.split('.')[0] in ('sympy', 'networkx', 'mpmath', 'jinja2')])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
