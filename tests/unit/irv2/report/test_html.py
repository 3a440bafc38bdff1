"""The page's markup: whatever a name holds, it stays text, and nothing is loaded."""

from page_tags import Tags

from irv2.report.html import document, facts, table, tag


def test_text_and_attributes_are_escaped():
    page = document('<script>alert("1")</script>', tag("p", "a & <b>", title='"><script>'))
    found = Tags(page).found
    assert [name for name, _ in found] == [
        *("html", "head", "meta", "meta", "meta", "meta", "title", "style", "body", "main", "p"),
    ]
    assert found[-1] == ("p", {"title": '"><script>'})
    assert b"a &amp; &lt;b&gt;" in page


def test_control_characters_and_names_that_are_not_unicode_are_spelt_out():
    page = document("t", tag("p", "a\nb\0c", "\udcff"))
    assert b"a\\nb\\x00c\\udcff" in page


def test_text_stands_before_between_and_after_elements():
    [paragraph] = [tag("p", "a", "b", tag("i", "c"), "d", tag("b"), "e")]
    assert "".join(paragraph.itertext()) == "abcde"


def test_the_page_needs_neither_script_nor_network():
    text = document("t").decode()
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text


def test_a_table_names_its_columns_and_rows_to_a_screen_reader():
    region = table("Errors", ["file", "error"], [["a", "1"], ["b", "2"]], numbers=[1])
    assert region.get("aria-label") == "Errors"
    assert [th.get("scope") for th in region.iter("th")] == ["col", "col", "row", "row"]
    assert [td.get("class") for td in region.iter("td")] == ["number", "number"]
    assert facts("Facts", [("a", "1")]).get("aria-label") == "Facts"
