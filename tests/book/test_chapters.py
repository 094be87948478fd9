"""A page of a notebook, fitted to the site."""

import struct

import pytest

from dipp_core.book import chapters

PAGE = """<!doctype html>
<title>Two &amp; two</title>
<main>
<section>
<h1 id="two">Two</h1>
<p><strong>What you will see.</strong> A <em>law</em> of <math display="inline"><mi>x</mi></math>. And more.</p>
<h2 id="part">Part <a href="x">one</a></h2>
</section>
<figure><img src="../figures/02_two/a.png" alt="a &quot;law&quot;"></figure>
<div class=table><div><style scoped>td {}</style>
<table border="1" class="dataframe"><tr><td>1</td></tr></table></div></div>
<p><a href="../../dipp_core/worlds/law.py">law</a> and <a href="../../dipp_core/none.py">none</a></p>
</main>
"""
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 640, 480)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures/02_two").mkdir(parents=True)
    (tmp_path / "figures/02_two/a.png").write_bytes(PNG)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/02_two.html").write_text(PAGE)
    return tmp_path / "notebooks"


def chapter(folder, said=None):
    return chapters.read_chapter(folder / "02_two.html", said or {})


def test_title_first_sentence_and_figure_are_found(folder):
    found = chapter(folder)
    assert (found.label, found.about, found.part) == ("02 Two & two", "A law of", "Theory")
    assert found.figure == chapters.Picture("figures/02_two/a.png", 'a "law"', ' width="640" height="480"')


def test_the_words_of_the_readme_come_first(folder):
    readme = "| [02 Two](notebooks/02_two.ipynb) | what `it` [shows](x.md), twice |\n"
    assert chapter(folder, chapters.descriptions(readme)).about == "What it shows, twice"


def test_figures_get_size_and_link_and_code_its_documentation(folder):
    body = chapters.decorated(chapter(folder), folder, {"dipp_core/worlds/law.py": "worlds.law.html"})
    assert '<a href="../figures/02_two/a.png"><img src="../figures/02_two/a.png"' in body
    assert 'alt="a &quot;law&quot;" width="640" height="480" loading="lazy"' in body
    assert 'href="api/worlds.law.html"' in body
    assert 'href="../../dipp_core/none.py"' in body


def test_wide_things_get_a_box(folder):
    body = chapters.boxed(chapter(folder).body)
    assert '<div class="scroll" role="region" tabindex="0" aria-label="Table 1"><table class="dataframe">' in body
    assert "<style" not in body
    assert '<span class="equation"><math display="block">x</math></span>' in chapters.boxed(
        '<p><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">x</math></p>'
    )


@pytest.mark.parametrize(("letters", "after", "kind"), [(3, ",", "kept"), (30, "", "m"), (30, ".", "m")])
def test_a_formula_in_a_line_keeps_its_sign_and_a_long_one_may_scroll(letters, after, kind):
    math = f'<math display="inline">{"<mi>x</mi>" * letters}</math>'
    assert chapters.boxed(f"{math}{after} so") == f'<span class="{kind}">{math}{after}</span> so'


def test_a_short_formula_alone_stays_as_it_is():
    assert chapters.boxed("<math><mi>x</mi></math> so") == "<math><mi>x</mi></math> so"


def test_headings_are_listed_without_links(folder):
    assert chapters.headings(chapter(folder).body) == [chapters.Heading(2, "part", "Part one")]


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"text", b"GIF8"])
def test_a_broken_picture_has_no_size(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert chapters.picture_size(tmp_path / "a.png") == ""


def test_an_animation_has_a_size(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 30, 20) + b"..")
    assert chapters.picture_size(tmp_path / "a.gif") == ' width="30" height="20"'


def test_a_page_that_is_none_and_a_folder_without_pages_are_refused(folder, tmp_path):
    (folder / "03_bad.html").write_text("<p>half a page")
    with pytest.raises(chapters.SiteError, match=r"03_bad\.html is not a page of this book; run its stage again"):
        chapters.read_all(folder, tmp_path / "README.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(chapters.SiteError, match="no pages in empty/: run the notebooks first"):
        chapters.read_all(tmp_path / "empty", tmp_path / "README.md")


def test_headings_go_down_one_level_at_a_time():
    assert chapters.stepwise('<h1>a</h1><h2>b</h2><h4 id="c">c</h4><h4>d</h4><h2>e</h2>') == (
        '<h1>a</h1><h2>b</h2><h3 id="c">c</h3><h3>d</h3><h2>e</h2>'
    )
