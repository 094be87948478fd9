"""The site's pages; tests/test_site.py reads the real ones, by machine and in a browser."""

import shutil

import pytest

from dipp_core.book import chapters, pipeline, site


@pytest.fixture
def book(tmp_path, checkout):
    pages = tmp_path / "reports/notebooks"
    pages.mkdir(parents=True)
    for stem, title in (("01_one", "One"), ("02_two", "Two"), ("10_plane", "Plane")):
        text = f"<title>{title}</title>\n<main>\n<h1>{title}</h1><h2 id='p'>P</h2>\n</main>"
        (pages / f"{stem}.html").write_text(text.replace("'", '"'))
    (tmp_path / "dipp_core/method").mkdir(parents=True)
    shutil.copyfile(checkout / "dipp_core/method/guidance.py", tmp_path / "dipp_core/method/guidance.py")
    (tmp_path / "dipp_core/__init__.py").write_text('"""The package."""\n')
    site.build(tmp_path)
    return tmp_path / "reports"


def test_chapters_know_their_neighbours_and_their_own_parts(book):
    first, second = ((book / f"site/{name}.html").read_text() for name in ("01_one", "02_two"))
    assert 'rel="next" href="02_two.html"' in first
    assert 'rel="prev"' not in first
    assert 'rel="prev" href="01_one.html"' in second
    assert 'rel="next" href="10_plane.html"' in second
    assert '<a href="#p">P</a>' in second
    assert second.count('aria-current="page"') == 1
    assert "<summary>The plane</summary>" in second


def test_the_first_page_leads_to_every_chapter_and_to_the_code(book):
    text = (book / "index.html").read_text()
    for name in ("01_one.html", "02_two.html", "10_plane.html", "api/index.html", "site.css", "site.js"):
        assert f'"site/{name}"' in text
        assert (book / "site" / name).is_file()


def test_a_page_has_its_landmarks(book):
    for name in ("index.html", "site/01_one.html", "site/api/method.guidance.html"):
        text = (book / name).read_text()
        assert '<html lang="en">' in text
        assert 'class="skip" href="#page-text"' in text
        assert all(f"<{part}" in text for part in ("header", "nav", "main", "footer"))


def test_the_site_is_as_it_was_when_it_cannot_be_made(book):
    before = (book / "index.html").read_bytes()
    (book / "notebooks/02_two.html").write_text("half")
    with pytest.raises(chapters.SiteError):
        site.build(book.parent)
    assert (book / "index.html").read_bytes() == before


@pytest.mark.parametrize("command", ["site", "slides"])
def test_the_command_says_in_one_line_what_is_missing(small, capsys, command):
    (small / "reports/notebooks").mkdir(parents=True)
    assert pipeline.main([command]) == 1
    line = f"{command}: no pages in notebooks/: run the notebooks first (`make repro`)\n"
    assert capsys.readouterr().err == line
