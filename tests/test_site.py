"""The site and the lecture, made from the published results: every link resolves, every figure has words, nothing is
asked of a network, and a browser shows them without complaint, on a screen and on a phone."""

import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse

import pytest

from dipp_core.book import site, slides

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser here ({', '.join(BROWSERS)})")
QUIET = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync", "hide-scrollbars", "allow-file-access-from-files", "dump-dom"]
QUIET += ["enable-logging=stderr", "virtual-time-budget=20000", "window-size=1280,800"]


@pytest.fixture(scope="module")
def root(checkout, tmp_path_factory):
    """A checkout that shares everything with this one but what the site writes."""
    made = tmp_path_factory.mktemp("site") / "book"
    (made / "reports").mkdir(parents=True)
    for path in checkout.iterdir():
        if path.name not in ("reports", ".git", ".work", ".venv"):
            (made / path.name).symlink_to(path)
    for path in (checkout / "reports").iterdir():
        if path.name not in ("index.html", "site", "slides"):
            (made / "reports" / path.name).symlink_to(path)
    site.build(made)
    return made


@pytest.fixture(scope="module")
def lecture(root):
    slides.build(root)
    return root / "reports" / "slides" / "index.html"


# --------------------------------------------------------------------------------------------------- read as a machine


class Page(html.parser.HTMLParser):
    """What a page holds: names, links, what it loads, pictures without words, and its headings in order."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.ids, self.links, self.loads, self.wordless, self.levels, self.inside = [], [], [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "a" and found.get("href") is not None:
            if "a" in self.inside:
                self.wordless.append(f"link in a link: {found['href']}")
            self.links.append(found["href"])
            self.inside.append("a")
        if tag in ("img", "script", "source", "iframe", "link") and (source := found.get("src") or found.get("href")):
            self.loads.append(source)
        if tag == "img" and not (found.get("alt") or "").strip():
            self.wordless.append(found.get("src"))
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))

    def handle_endtag(self, tag):
        if tag == "a" and self.inside:
            self.inside.pop()


@pytest.fixture(scope="module")
def pages(root):
    reports = root / "reports"
    return {path: Page(path) for path in [reports / "index.html", *sorted((reports / "site").rglob("*.html"))]}


def dead_links(path, page, pages) -> list[str]:
    dead = []
    for link in page.links + [load for load in page.loads if not load.startswith("data:")]:
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        place, _, name = urllib.parse.unquote(link).partition("#")
        target = pathlib.Path(os.path.normpath(path.parent / place)) if place else path
        known = pages.get(target)
        if name and known is None and target.suffix == ".html" and target.exists():
            known = Page(target)
        if not target.exists() or (name and known is not None and name not in known.ids):
            dead.append(f"{path.name}: {link}")
    return dead


def test_there_is_a_page_for_every_chapter_and_every_file_of_the_library(root, pages):
    names = {path.relative_to(root / "reports").as_posix() for path in pages}
    chapters = {path.name for path in (root / "reports/notebooks").glob("[0-9]*.html")}
    assert {f"site/{name}" for name in chapters} <= names
    assert {"index.html", "site/api/index.html", "site/api/method.algorithm.html"} <= names


def test_every_link_leads_somewhere(pages):
    assert [link for path, page in pages.items() for link in dead_links(path, page, pages)] == []


def test_nothing_is_loaded_from_elsewhere(root, pages):
    loads = {load for page in pages.values() for load in page.loads if not load.startswith("data:")}
    assert [load for load in loads if re.match(r"[a-z]+:|//", load)] == []
    sheets = (root / "reports/site/site.css").read_text() + (root / "reports/site/site.js").read_text()
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest", sheets)


def test_links_to_elsewhere_are_safe(pages):
    outside = {link for page in pages.values() for link in page.links if re.match(r"[a-z]+:", link)}
    assert [link for link in outside if not link.startswith("https://")] == []


def test_every_picture_has_words(pages):
    assert {path.name: page.wordless for path, page in pages.items() if page.wordless} == {}


def test_every_name_on_a_page_is_given_once(pages):
    doubles = {path.name: {n for n in page.ids if page.ids.count(n) > 1} for path, page in pages.items()}
    assert {name: found for name, found in doubles.items() if found} == {}


def test_headings_come_in_order(pages):
    """One first heading a page, and no level is left out on the way down."""
    for path, page in pages.items():
        assert page.levels[0] == 1, path.name
        assert page.levels.count(1) == 1, path.name
        assert all(b - a <= 1 for a, b in zip(page.levels, page.levels[1:], strict=False)), path.name


def test_the_same_results_give_the_same_bytes(root):
    files = [root / "reports/index.html", *sorted((root / "reports/site").rglob("*.html"))]
    before = {path: path.read_bytes() for path in files}
    site.build(root)
    assert {path: path.read_bytes() for path in files} == before


def test_what_is_no_longer_made_is_removed(root):
    old = root / "reports/site/api/gone.html"
    old.write_text("old")
    site.build(root)
    assert not old.exists()


# ------------------------------------------------------------------------------------------------- read with a browser

MEASURE = """<!doctype html><body><pre id="measured"></pre><script>
var found = {}, left = CASES.length;
CASES.forEach(function (one) {
  var frame = document.createElement("iframe");
  frame.style.cssText = "border:0;height:800px;width:" + one[1] + "px";
  frame.src = one[0];
  frame.onload = function () { setTimeout(function () {
    var root = frame.contentDocument.documentElement;
    var empty = Array.from(frame.contentDocument.images).filter(function (i) { return i.complete && !i.naturalWidth; });
    found[one[0].split("/").slice(-2).join("/") + " " + one[1]] = [root.scrollWidth - root.clientWidth, empty.length];
    if (!--left) document.getElementById("measured").textContent = "JSON" + JSON.stringify(found) + "END";
  }, 50); };
  document.body.appendChild(frame);
});
</script></body>"""

FITS = """<pre id="measured"></pre><script>addEventListener("load", function () {
  document.body.className = "";
  var bad = {};
  document.querySelectorAll(".slide").forEach(function (slide) {
    var frame = slide.getBoundingClientRect();
    slide.querySelectorAll(".body *:not(math *), h1, h2").forEach(function (part) {
      var box = part.getBoundingClientRect();
      if (box.right > frame.right - 40 || box.bottom > frame.bottom - 40 || part.scrollWidth > part.clientWidth + 1 &&
          part.className === "formula") bad[slide.id] = part.tagName + " " + part.textContent.slice(0, 50);
    });
  });
  document.getElementById("measured").textContent = "JSON" + JSON.stringify(bad) + "END";
});</script></body>"""


def opened(path: pathlib.Path, folder: pathlib.Path) -> tuple[dict, list[str]]:
    """What a page measured, and what the browser complained of (errors of scripts, files that it did not find)."""
    command = [BROWSER, *(f"--{word}" for word in QUIET), f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    measured = re.search(r'id="measured">JSON(.*?)END', done.stdout, re.DOTALL)
    assert measured, f"the browser measured nothing: {done.stderr[-500:]}"
    return json.loads(html.unescape(measured.group(1))), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


def look(cases: list[tuple[pathlib.Path, int]], folder: pathlib.Path) -> tuple[dict, list[str]]:
    page = folder / "measure.html"
    text = json.dumps([(path.as_uri(), width) for path, width in cases])
    page.write_text(MEASURE.replace("CASES", text))
    return opened(page, folder)


@needs_browser
def test_pages_show_without_complaint_and_never_scroll_sideways(root, tmp_path):
    reports = root / "reports"
    names = ["index.html", "site/05_score_divergence.html", "site/24_miniature_results.html"]
    names += ["site/api/index.html", "site/api/method.algorithm.html"]
    cases = [(reports / name, width) for name in names for width in (1280, 390)]
    found, complaints = look(cases, tmp_path)
    assert complaints == []
    assert len(found) == len(cases)
    assert {case: values for case, values in found.items() if values != [0, 0]} == {}


@needs_browser
def test_the_browser_would_have_complained(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="missing.png" alt="x"><div style="width:2000px">x</div><script>throw Error("no")</script>')
    found, complaints = look([(bad, 390)], tmp_path)
    ((too_wide, not_found),) = found.values()
    assert too_wide > 1000
    assert not_found == 1
    assert any("Error: no" in line for line in complaints)


@needs_browser
def test_every_slide_fits(lecture, tmp_path):
    copy = tmp_path / "lecture.html"
    copy.write_text(lecture.read_text().replace("</body>", FITS))
    bad, complaints = opened(copy, tmp_path)
    assert bad == {}
    assert complaints == []


@needs_browser
def test_a_slide_that_does_not_fit_is_seen(lecture, tmp_path):
    copy = tmp_path / "lecture.html"
    long = (
        '<section class="slide" id="long"><h2>T</h2><div class="body">' + "<p>much</p>" * 30 + "</div></section></main>"
    )
    text = re.sub(r"<img[^>]*>", "", lecture.read_text())
    copy.write_text(text.replace("</main>", long).replace("</body>", FITS))
    assert set(opened(copy, tmp_path)[0]) == {"long"}


def test_the_lecture_is_one_file(lecture):
    page = Page(lecture)
    assert [load for load in page.loads if not load.startswith("data:")] == []
    assert [link for link in page.links if not (link.startswith("#") and link[1:] in page.ids)] == []
    assert page.wordless == []


def test_every_theory_chapter_is_in_the_lecture(lecture, root):
    text = lecture.read_text()
    chapters = [path for path in (root / "reports/notebooks").glob("0*.html")]
    assert all(f">{path.stem[:2]} " in text for path in chapters)
    assert len(re.findall('class="slide ', text)) >= 8 * len(chapters)
