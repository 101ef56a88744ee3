"""The whole report: the same bytes, nothing that runs or is loaded, headings in order, words for every picture."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from nemotron.report import recipe_of, write_report
from nemotron.report.run import Stage

VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def page(hostile_run):
    return Page(write_report(hostile_run).read_text(encoding="utf-8"))


def test_equal_artifacts_give_equal_bytes_wherever_they_are(hostile_run):
    names = ("report.html", "report.md")
    write_report(hostile_run)
    first = [(hostile_run / name).read_bytes() for name in names]
    moved = hostile_run.rename(hostile_run.with_name("moved"))
    assert write_report(moved) == moved / "report.html"
    assert [(moved / name).read_bytes() for name in names] == first
    assert sorted(path.name for path in moved.iterdir()) == ["report.html", "report.md", "stage1_sft"]


def test_a_report_is_written_again_only_if_what_it_is_made_from_has_changed(hostile_run):
    html = write_report(hostile_run, only_if_changed=True)
    source = re.search("sha256 [0-9a-f]{64}", html.read_text(encoding="utf-8"))[0]
    html.write_text(f"mine, {source}", encoding="utf-8")
    write_report(hostile_run, only_if_changed=True)
    assert html.read_text(encoding="utf-8").startswith("mine")
    write_report(hostile_run)
    assert not html.read_text(encoding="utf-8").startswith("mine")
    metadata = next(hostile_run.glob("*/*/metadata.json"))
    html.write_text(f"mine, {source}", encoding="utf-8")
    metadata.write_bytes(metadata.read_bytes() + b"\n")
    write_report(hostile_run, only_if_changed=True)
    assert not html.read_text(encoding="utf-8").startswith("mine")


def test_text_from_documents_stays_text(page, hostile):
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "ul", "li", "a",
               "p", "h1", "h2", "h3", "h4", "h5", "h6", "div", "table", "thead", "tbody", "tr", "th", "td", "figure",
               "img", "details", "summary", "pre", "code", "strong"}  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>") > 20


def test_nothing_is_loaded(page):
    assert all(attributes["src"].startswith("data:image/svg+xml,") for attributes in page.named("img"))
    assert all(attributes["href"].startswith("#") for attributes in page.named("a"))
    assert not page.named("link", "script", "iframe", "object")
    policy = next(one["content"] for one in page.named("meta") if "http-equiv" in one)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_headings_skip_no_level_and_links_lead_to_them(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {attributes["href"][1:] for attributes in page.named("a")} <= set(ids)


def test_every_picture_has_words(page):
    assert len(page.named("img")) == 3  # the exam, a curve, the lineage
    assert all(attributes["alt"] for attributes in page.named("img"))


def test_every_part_is_there_in_both_files(page, hostile_run):
    markdown = (hostile_run / "report.md").read_text(encoding="utf-8")
    for title in ("Overview", "What each stage did to every ability", "The same prompts after each stage", "stage1_sft",
                  "What each filter dropped", "Rollouts of step 1 with their rewards", "Lineage", "Reproduction",
                  "Times", "Environment"):  # fmt: skip
        assert title in page.text
        assert title in markdown


def test_an_artifact_that_lacks_what_is_shown_is_one_sentence(tmp_path, step):
    step(tmp_path / "stage0" / "data", "mine.stage0.data", fields={"filters": {"length": {"num_seen": 3}}})
    with pytest.raises(ValueError, match="an artifact lacks 'num_dropped', which the report reads"):
        write_report(tmp_path)


def test_a_recipe_of_another_package_has_the_generic_parts(tmp_path, step):
    step(tmp_path / "stage0_count" / "data", "mine.stage0_count.data", fields={"num_documents": 3})
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "mine: report" in page.text
    assert "Environment" in page.text


@pytest.mark.parametrize("name", ["json.tool", "nemotron.testing", "nemotron.recipes.nano2.stage0_pretrain",
                                  "nemotron.recipes.missing", "nemotron.recipes.chat", ""])  # fmt: skip
def test_only_recipes_of_this_package_are_imported(name):
    assert recipe_of([Stage("stage0", name, [], [])]) is None


def test_the_recipe_of_this_package_is_found():
    assert recipe_of([Stage("stage0", "nemotron.recipes.nano2", [], [])]).TITLE == "Nemotron Nano 2"
