"""One rule for links and hidden files, in directories, globs and addresses; nothing is skipped without a word."""

import os
from pathlib import Path

import pytest

from nemotron.recipes.sources import listing
from nemotron.recipes.sources.files import read_sources
from nemotron.recipes.sources.listing import local_files, split_category


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.name)
    return path


def listed(source: str) -> tuple[list[str], dict[str, str]]:
    """The ids of the documents, and the reasons for what was not read."""
    documents, unreadable = read_sources([source])
    return [one.id for one in documents], {one.id: one.reason for one in unreadable}


HIDDEN = "hidden; spell its name out to read it"
LOCATIONS = ["{}/data", "{}/data/", "{}/data/**", "{}/data/*", "file://{}/data", "file://{}/data/**"]


def test_the_local_files_of_sources_are_those_that_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.jsonl", ".hidden.txt", "notes.md", "deep/c.txt"):
        write(tmp_path / "data" / name)
    sources = (
        "code=data",
        "data/b.txt",
        f"file://{tmp_path}/data/deep/c.txt",
        "s3://elsewhere/x.txt",
        "hf://datasets/a",
    )
    assert local_files(sources) == [
        "data/a.jsonl",
        "data/b.txt",
        "data/deep/c.txt",
        f"{tmp_path}/data/deep/c.txt",
    ]
    assert local_files(()) == []
    with pytest.raises(FileNotFoundError, match=r"typo\.txt does not exist"):
        local_files(["typo.txt"])


def names(location: str, *relative: str) -> list[str]:
    """The names in ids: those of a directory begin with its own."""
    return [name if "*" in location or "://" in location else f"data/{name}" for name in relative]


@pytest.mark.parametrize("location", LOCATIONS)
def test_links_are_followed_and_hidden_names_are_counted(tmp_path: Path, location: str) -> None:
    write(tmp_path / "data/a.txt")
    write(tmp_path / "data/.hidden.txt")
    write(tmp_path / "data/.git/b.txt")
    write(tmp_path / "data/deep/.c.txt")
    write(tmp_path / "elsewhere/d.txt")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/e.txt").symlink_to(write(tmp_path / "f.txt"))
    (tmp_path / "data/broken.txt").symlink_to(tmp_path / "nowhere")
    ids, reasons = listed(location.format(tmp_path))
    assert ids == names(location, "a.txt", "e.txt", "linked/d.txt")
    hidden = names(location, ".git", ".hidden.txt", "deep/.c.txt")
    assert reasons == {**dict.fromkeys(hidden, HIDDEN), names(location, "broken.txt")[0]: "a link that leads nowhere"}


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_file_or_folder_behind_two_names_is_read_once_under_its_own(tmp_path: Path, location: str) -> None:
    write(tmp_path / "data/z/own.txt")
    (tmp_path / "data/a").symlink_to(tmp_path / "data/z")
    (tmp_path / "data/b.txt").symlink_to(tmp_path / "data/z/own.txt")
    ids, reasons = listed(location.format(tmp_path))
    own, folder = names(location, "z/own.txt", "z")
    assert ids == [own]
    a, b = names(location, "a", "b.txt")
    assert reasons == {a: f"the same folder as {folder}", b: f"the same file as {own}"}


@pytest.mark.parametrize("location", LOCATIONS)
def test_links_in_a_circle_end(tmp_path: Path, location: str) -> None:
    write(tmp_path / "data/a.txt")
    write(tmp_path / "data/deep/b.txt")
    for name in ("up", "up2", "up3", "deep/up"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to("self")
    ids, reasons = listed(location.format(tmp_path))
    assert ids == names(location, "a.txt", "deep/b.txt")
    assert reasons[names(location, "self")[0]] == "a link that leads nowhere"
    assert {one.split(" as ")[0] for one in reasons.values()} <= {
        "a link that leads nowhere", "the same folder", "the same file",
    }  # fmt: skip
    assert len(reasons) <= 10


def test_links_to_links_do_not_multiply(tmp_path: Path) -> None:
    """Twenty folders, each with two links to the next, have a million paths to the last."""
    write(tmp_path / "data/20/a.txt")
    for level in range(20):
        for name in ("left", "right"):
            (tmp_path / f"data/{level}").mkdir(exist_ok=True, parents=True)
            (tmp_path / f"data/{level}" / name).symlink_to(tmp_path / f"data/{level + 1}")
    assert listed(f"{tmp_path}/data/0/**/*.txt")[0] == ["left/" * 20 + "a.txt"]
    assert listed(f"{tmp_path}/data")[0] == ["data/20/a.txt"]


def test_a_source_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write(tmp_path / f"data/{number}.txt")
    assert len(listed(f"{tmp_path}/data")[0]) == 4
    monkeypatch.setattr(listing, "MAX_LISTED", 3)
    with pytest.raises(
        ValueError, match=r"data/3\.txt is one of more than 3 files and folders; name a smaller directory"
    ):
        listed(f"{tmp_path}/data")


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "deep/b.txt"]),
        ("*/*.txt", ["deep/b.txt"]),
        ("*/b.txt", ["deep/b.txt"]),
        ("d??p", ["deep/b.txt"]),
        ("[ab].txt", ["a.txt"]),
        (".h*", [".hidden/c.txt", ".hidden/d/e.txt"]),
        (".hidden/*.txt", ["c.txt"]),
        (".hidden/**", ["c.txt", "d/e.txt"]),
        ("**/d/*.txt", []),
        ("**/.hidden/*.txt", [".hidden/c.txt"]),
    ],
)
def test_a_glob_matches_hidden_names_only_where_it_spells_them_out(
    tmp_path: Path, scheme: str, pattern: str, expected: list[str]
) -> None:
    for name in ("a.txt", "deep/b.txt", ".hidden/c.txt", ".hidden/d/e.txt"):
        write(tmp_path / name)
    if expected:
        assert listed(f"{scheme}{tmp_path}/{pattern}")[0] == expected
    else:
        with pytest.raises(ValueError, match=r"holds no file .*; found \.hidden, which is not read: hidden; spell"):
            listed(f"{scheme}{tmp_path}/{pattern}")


def test_a_hidden_source_is_read_if_it_is_named(tmp_path: Path) -> None:
    write(tmp_path / ".hidden/a.txt")
    assert listed(f"{tmp_path}/.hidden") == ([".hidden/a.txt"], {})
    assert listed(f"{tmp_path}/.hidden/a.txt") == (["a.txt"], {})


def test_a_broken_link_that_is_named_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a\.txt does not exist; check the path or address"):
        listed(f"{tmp_path}/a.txt")


def test_one_file_of_two_sources_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "data/a.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "data/a.txt")
    sources = [f"{tmp_path}/link.txt", f"{tmp_path}/data", f"file://{tmp_path}/data"]
    assert [one.id for one in read_sources(sources)[0]] == ["link.txt"]


def test_a_file_whose_name_is_not_utf8_is_read_under_a_name_that_is(tmp_path: Path) -> None:
    write(tmp_path / "data" / os.fsdecode(b"caf\xe9.txt"), "coffee")
    write(tmp_path / "data" / os.fsdecode(b"th\xe9.csv"), "tea")
    documents, unreadable = read_sources([f"{tmp_path}/data"])
    assert [(one.id, one.text) for one in documents] == [(r"data/caf\xe9.txt", "coffee")]
    assert [one.id for one in unreadable] == [r"data/th\xe9.csv"]
    write(tmp_path / "data/a.txt")
    assert listed(f"file://{tmp_path}/data") == (
        ["a.txt"],
        dict.fromkeys([r"caf\xe9.txt", r"th\xe9.csv"], "not UTF-8; name its directory without file://"),
    )
    with pytest.raises(ValueError, match=r"^source=\S*/caf\\xe9\.txt is not UTF-8 text; rename the file or directory$"):
        read_sources([str(tmp_path / "data" / os.fsdecode(b"caf\xe9.txt"))])


@pytest.mark.parametrize("name", [".x/a.parquet", "x/.a.parquet"])
def test_hidden_files_of_an_address_follow_the_same_rule(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Daft's listing is replaced by a fixed one."""

    class Border:
        exceptions = listing.daft.exceptions

        def from_glob_path(self, _pattern: str, io_config: object) -> object:
            return listing.daft_itself.from_pydict({"path": [f"s3://b/d/{one}" for one in (name, "b.parquet")]})  # type: ignore[attr-defined]

    monkeypatch.setattr(listing, "daft_itself", listing.daft, raising=False)
    monkeypatch.setattr(listing, "daft", Border())
    assert listing.list_uri("s3://b/d") == ([("s3://b/d/b.parquet", "b.parquet")], [(name, HIDDEN)])
    spelled_out, _skipped = listing.list_uri("s3://b/d/**/.*/*")
    assert {uri for uri, _ in spelled_out} == {f"s3://b/d/{name}", "s3://b/d/b.parquet"}


@pytest.mark.parametrize(
    ("source", "category", "location"),
    [
        ("notes.txt", None, "notes.txt"),
        ("code=a.txt", "code", "a.txt"),
        ("syn-crawl-high=hf://datasets/x/y/*.parquet", "syn-crawl-high", "hf://datasets/x/y/*.parquet"),
        ("crawl++=a.txt", "crawl++", "a.txt"),
        ("math=a=b.txt", "math", "a=b.txt"),
        ("data/year=2024/a.txt", None, "data/year=2024/a.txt"),
        ("s3://bucket/year=2024/*.parquet", None, "s3://bucket/year=2024/*.parquet"),
    ],
)
def test_the_category_is_before_the_first_equals_sign(source: str, category: str, location: str) -> None:
    assert split_category(source) == (category, location)


def test_a_path_that_exists_is_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    assert split_category("year=2024") == (None, "year=2024")
