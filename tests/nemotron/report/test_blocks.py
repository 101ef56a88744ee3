"""The Markdown of a report: nothing in it can leave its place."""

from markdown_it import MarkdownIt

from nemotron.report.blocks import (
    Beside,
    Code,
    Folded,
    Page,
    Plot,
    Section,
    Table,
    Text,
    beginning,
    in_markdown,
    is_number,
    lower_headings,
    section_lines,
)

AS_BROWSERS_SEE_IT = MarkdownIt("commonmark", {"html": True}).enable("table")


def kinds(markdown: str) -> list[str]:
    """The kinds of everything in a text, as a reader of Markdown that allows HTML finds them."""
    tokens = AS_BROWSERS_SEE_IT.parse(markdown)
    return [one.type for token in tokens for one in (token, *(token.children or []))]


def test_a_cell_cannot_end_its_row_or_be_markup(hostile):
    table = Table(["a", "b"], [[hostile, "1"], ["c", "2"]], hostile)
    found = kinds("\n".join(section_lines(Section(hostile, [Text(hostile), table]))))
    assert found.count("tr_open") == 3
    assert found.count("td_open") == 4
    assert not {"html_inline", "html_block", "link_open", "image", "strong_open", "code_inline", "fence"} & set(found)


def test_a_reply_cannot_end_its_block(hostile):
    found = kinds("\n".join(section_lines(Section("a", [Folded(hostile, [Code(hostile, hostile)])]))))
    assert found.count("fence") == 1
    assert not {"html_inline", "html_block", "link_open", "image"} & set(found)


def test_texts_side_by_side_are_below_each_other_in_markdown():
    beside = section_lines(Section("a", [Beside([Code("1", "b"), Code("2", "c")])]))
    assert beside == section_lines(Section("a", [Code("1", "b"), Code("2", "c")]))


def test_a_page_holds_no_html_link_or_picture(hostile):
    page = f"# A\n\n| a |\n|---|\n| {hostile.splitlines()[0]} |\n\n`<b>` <b>\n\n{hostile}"
    found = kinds("\n".join(section_lines(Section("a", [Page(page)]))))
    assert not {"html_inline", "html_block", "link_open", "image"} & set(found)
    assert "code_inline" in found


def test_headings_of_a_page_are_below_the_step():
    page = "# A\n\n```\n# a comment\n```\n\n## B\n\n###### C"
    assert lower_headings(page, 3) == "#### A\n\n```\n# a comment\n```\n\n##### B\n\n###### C"


def test_a_long_page_is_cut_between_its_blocks():
    page = "# A\n\n```\none\n\ntwo\n```\n\nlast"
    assert beginning(page, 1000) == page
    assert beginning(page, 21) == "# A\n\n```\none\n\ntwo\n```"
    assert beginning(page, 20) == "# A"


def test_columns_of_numbers_are_aligned_to_the_right():
    table = Table(["a", "b", "c"], [["x", "1,000", "1"], ["y", "-", "y"]])
    assert table.right == [False, True, False]
    assert "| --- | ---: | --- |" in section_lines(Section("a", [table]))
    assert all(map(is_number, ["+1.0 ± 0.5 *", "8.3% ± 1.0%", "1e-05", "-0.3", ""]))
    assert not any(map(is_number, ["1 of 2", "a1", "--"]))


def test_a_graph_is_mermaid_and_a_plot_its_words_and_numbers():
    graph, plot = Plot("<svg/>", "words", mermaid="graph LR"), Plot("<svg/>", "words", table=Table(["a"], [["1"]]))
    assert section_lines(Section("a", [graph]))[2:] == ["```mermaid", "graph LR", "```", ""]
    assert section_lines(Section("a", [plot]))[2:] == ["words", "", "| a |", "| ---: |", "| 1 |", ""]


def test_parts_are_one_level_deeper():
    assert section_lines(Section("a", [], [Section("b")])) == ["## a", "", "### b", ""]


def test_a_name_with_underscores_stays_readable():
    assert in_markdown("stage0_pretrain _a_") == "stage0_pretrain \\_a\\_"
