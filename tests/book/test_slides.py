"""What of a chapter comes onto the slides of a lecture."""

import pytest
from bs4 import BeautifulSoup

from dipp_core.book import slides
from dipp_core.book.chapters import Chapter

MATH = '<math display="inline"><mi>x</mi><mo>.</mo></math>'


def tag(text):
    return next(iter(BeautifulSoup(text, "html.parser").find_all(True, recursive=False)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two? Three", ["One.", "Two?", "Three"]),
        (f"Of {MATH} A law. Then", [f"Of {MATH} A law.", "Then"]),
        ("See e.g. This. And", ["See e.g. This.", "And"]),
        ("<em>One.</em> Two.", ["<em>One.</em>", "Two."]),
        ("Call <code>a. B</code> now. So", ["Call <code>a. B</code> now.", "So"]),
    ],
)
def test_sentences_are_told_apart(text, parts):
    assert slides.sentences(text) == parts


def test_the_gist_is_the_first_sentences_and_what_leads_to_a_formula():
    long = "A sentence that is quite long enough to stand on a slide for itself, and says so."
    assert slides.gist(f"{long} Left out. Also left out.") == long
    assert slides.gist(f"{long} Left out. The law is") == f"{long} The law is"
    assert slides.gist("Short. Next one.") == "Short. Next one."
    assert slides.gist(f"<strong>{long} And</strong> more. Out.").count("strong") in (0, 2)


def test_a_long_formula_is_set_smaller():
    short, long = (tag(f'<math display="block">{"<mi>x</mi><mo>+</mo>" * n}</math>') for n in (3, 60))
    assert "font-size" not in slides.formula_item(short).html
    assert "font-size: 1" in slides.formula_item(long).html


def test_a_paragraph_is_cut_at_its_formulas():
    found = list(slides.items(tag(f'<p>The law <math display="block"><mi>x</mi></math> of {MATH} holds.</p>'), None))
    assert [item.html[:4] for item in found] == ["<p>T", "<div", "<p>o"]


def test_row_numbers_of_a_table_are_left_out_and_a_large_table_too():
    rows = "".join(f"<tr><th>{n}</th><td>a{n}</td></tr>" for n in range(3))
    small = slides.table_item(tag(f"<table><tr><th></th><th>name</th></tr>{rows}</table>"))
    assert BeautifulSoup(small.html, "html.parser").get_text(" ", strip=True) == "name a0 a1 a2"
    assert slides.table_item(tag("<table>" + "<tr><td>1</td></tr>" * 13 + "</table>")) is None
    named = slides.table_item(tag("<table><tr><th></th><th>v</th></tr><tr><th>kl</th><td>1</td></tr></table>"))
    assert "kl" in named.html


def test_no_slide_holds_more_than_there_is_room_for_and_all_is_kept():
    items = [slides.Item(f"<p>{n}</p>", 150) for n in range(10)]
    pages = list(slides.packed(items))
    assert [item for page in pages for item in page] == items
    assert max(sum(item.height for item in page) for page in pages) <= slides.ROOM


def test_what_leads_to_a_formula_is_not_left_behind():
    text, formula = slides.Item("<p>so</p>", 60), slides.Item("<div>x</div>", 100)
    pages = list(slides.packed([slides.Item("<p>first</p>", slides.ROOM - 100), text, formula]))
    assert [len(page) for page in pages] == [1, 2]


def test_a_chapter_becomes_slides_with_notes_and_without_code():
    body = (
        "<section><h1>T</h1><p>About it.</p><p><strong>How long it takes.</strong> A minute.</p></section>"
        "<pre class=code>code()</pre><section><p>End of first.</p><h2>Next</h2><p>Text <a href='x'>there</a>.</p>"
        "</section>"
    )
    found = list(slides.lecture(Chapter("02_t", "T", "", None, body), None))
    assert [(slide.title, slide.kind) for slide in found] == [("T", "title"), ("Next", "text")]
    assert "How long" not in found[0].body
    assert "End of first." in found[0].body
    assert "Text there." in found[1].body
    assert "A minute" in found[0].notes
    assert "code()" not in "".join(slide.body + slide.notes for slide in found)
