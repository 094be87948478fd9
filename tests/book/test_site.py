"""The site, made from a few published notebooks and opened from disk: by machine, and in a browser without network."""

import html
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse

import pytest

from dipp_core.book import executed, site, slides
from dipp_core.book.site import chapters
from dipp_core.files import InputError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser here ({', '.join(BROWSERS)})")
QUIET = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync", "hide-scrollbars", "allow-file-access-from-files", "dump-dom"]
QUIET += ["enable-logging=stderr", "virtual-time-budget=60000", "window-size=1400,900"]
STEMS = ("01_scores_and_one_step_generators", "05_score_divergence", "23_alignment")


def run_of(checkout: pathlib.Path, stem: str) -> dict:
    """A notebook as if it had run: its set-up printed, and every cell that draws showed a picture."""
    notebook = json.loads((checkout / "notebooks" / f"{stem}.ipynb").read_text())
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if "report.figure(" in cell["source"]:
            picture = {"image/png": "iVBORw0KGgo=", "text/plain": "<Image>"}
            about = {"image/png": {"alt": "a picture", "width": 800}}
            cell["outputs"] = [{"output_type": "execute_result", "data": picture, "metadata": about}]
        elif cell["cell_type"] == "code":
            cell["outputs"] = [
                {"output_type": "stream", "name": "stderr", "text": " 50%|#####     | 1/2\r"},
                {"output_type": "stream", "name": "stdout", "text": "one line\n"},
                {"output_type": "stream", "name": "stdout", "text": "another\n"},
            ]
    return notebook


@pytest.fixture(scope="module")
def reports(checkout, tmp_path_factory):
    """The reports of a checkout with three chapters, and the site made from them."""
    root = tmp_path_factory.mktemp("site") / "a book"
    (root / "reports/notebooks").mkdir(parents=True)
    (root / "dipp_core").mkdir()
    for name in ("data", "docs", "notebooks", "TEACHING.md", "README.md", "params.yaml", "environment.yml"):
        (root / name).symlink_to(checkout / name)
    for name in ("__init__.py", "files.py"):
        shutil.copyfile(checkout / "dipp_core" / name, root / "dipp_core" / name)
    for name in ("method", "models", "rewards", "worlds"):
        shutil.copytree(checkout / "dipp_core" / name, root / "dipp_core" / name)
    for name in ("figures", "tables", "metrics"):
        (root / "reports" / name).symlink_to(checkout / "reports" / name)
    for stem in STEMS:
        text = executed.published(run_of(checkout, stem), checkout / "reports/figures" / stem, "mini")
        (root / f"reports/notebooks/{stem}.ipynb").write_text(text)
    (root / "reports/site").mkdir()
    (root / "reports/site/gone.html").write_text("of an earlier build")
    site.build(root)
    return root / "reports"


def test_a_published_notebook_is_stable_and_bare(checkout, tmp_path):
    run = run_of(checkout, STEMS[0])
    text = executed.published(run, tmp_path, "mini")
    for cell in run["cells"]:
        cell["metadata"] |= {"papermill": {"start_time": "now"}, "execution": {"iopub.execute_input": "now"}}
        cell["id"] = "changes"
    assert executed.published(run, tmp_path, "mini") == text
    printed = [out for cell in json.loads(text)["cells"] for out in cell.get("outputs", []) if "name" in out]
    assert {(out["name"], out["text"]) for out in printed} == {("stdout", "one line\nanother")}


def test_a_published_picture_is_referred_to(tmp_path):
    folder = tmp_path / "02_x"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    output = {"data": {"image/png": "iVBORw0KGgo="}, "metadata": {"image/png": {"alt": 'a "b"', "width": 8}}}
    run = {"cells": [{"cell_type": "code", "metadata": {}, "source": "x", "outputs": [output | {"output_type": "x"}]}]}
    (cell,) = json.loads(executed.published(run, folder, "mini"))["cells"]
    shown = '<img src="../figures/02_x/a.png" alt="a &quot;b&quot;" width="8">'
    assert cell["outputs"][0]["data"] == {"text/html": shown, "text/plain": 'a "b"'}


def test_links_lead_to_pages_to_the_api_and_to_files():
    def linked(text):
        return chapters.linked(text, "reports/notebooks", {"02_integral_kl"})

    assert linked("[a](02_integral_kl.ipynb#two)") == "[a](02_integral_kl.ipynb#two)"
    assert (
        linked("[`b`](../../dipp_core/method/scores.py)") == '<a href="api/dipp_core/method/scores/index.html">`b`</a>'
    )
    assert linked("[c](../../params.yaml)") == '<a href="../../params.yaml">c</a>'
    assert linked("[d](https://arxiv.org/abs/2410.18881)") == "[d](https://arxiv.org/abs/2410.18881)"


def test_what_cannot_be_built_from_is_said_in_a_line(tmp_path):
    with pytest.raises(InputError, match=r"no notebooks in .*run them first"):
        site.build(tmp_path)


class Page(html.parser.HTMLParser):
    """What a page holds: names, links, what it loads, and pictures without words."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.ids, self.links, self.loads, self.wordless = set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if found.get("id") else set()
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        place = found.get("src") or (found.get("href") if found.get("rel") in ("stylesheet", "icon") else None)
        if tag in ("img", "script", "iframe", "link") and place:
            self.loads.append(place)
        if tag == "img" and not (found.get("alt") or "").strip():
            self.wordless.append(found.get("src"))


@pytest.fixture(scope="module")
def pages(reports):
    return {path: Page(path) for path in [reports / "index.html", *sorted((reports / "site").rglob("*.html"))]}


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(pages, reports):
    wrong = []
    for path, page in pages.items():
        wrong += [load for load in page.loads if re.match(r"(?!data:)[a-z]+:|//", load)]
        for link in page.links + page.loads:
            place, _, name = urllib.parse.unquote(link.partition("?")[0]).partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = pathlib.Path(os.path.normpath(path.parent / place)) if place else path
            if not target.exists() or (name and target in pages and name not in pages[target].ids):
                wrong.append(f"{path.name}: {link}")
    assert sorted(set(wrong)) == []


def test_pictures_have_words_numbers_and_captions(pages, reports):
    assert {path.name: page.wordless for path, page in pages.items() if page.wordless} == {}
    text = (reports / "site/05_score_divergence.html").read_text()
    assert re.search(r'<figure class="numbered" id="figure-5-1">.*?Figure 5.1</a></b> a picture\.</figcaption>', text)


def test_a_link_to_a_work_is_a_citation(reports):
    text = (reports / "site/05_score_divergence.html").read_text()
    assert re.search(r'href="bibliography.html#[^"]+" title="Peter J. Huber', text)
    assert 'id="term-Leash"' in (reports / "site/glossary.html").read_text()


def test_cells_are_folded_and_old_pages_are_removed(reports):
    text = (reports / "site/05_score_divergence.html").read_text()
    assert len(re.findall(r"tag_hide-input", text)) >= 3
    assert re.search(r"tag_hide-cell.{0,900}import", text, re.DOTALL)
    assert not (reports / "site/gone.html").exists()


MEASURE = """<!doctype html><body><pre id="measured"></pre><script>
var found = {}, left = CASES.length;
function done() {
  if (!--left) document.getElementById("measured").textContent = "JSON" + JSON.stringify(found) + "END";
}
CASES.forEach(function (one) {
  var frame = document.createElement("iframe");
  frame.style.cssText = "border:0;height:900px;width:" + one[1] + "px";
  frame.src = one[0];
  frame.onload = function () { setTimeout(function () {
    var page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
    var formulas = Array.from(page.querySelectorAll("mjx-container"));
    found[one[0].split("site/").pop() + " " + one[1]] = {
      over: root.scrollWidth - width, formulas: formulas.length, results: page.querySelectorAll("ul.search li").length,
      clipped: Array.from(page.querySelectorAll("div.highlight pre, div.cell_output pre"))
        .filter(function (f) { return f.scrollWidth > f.clientWidth + 1; }).length,
      wide: formulas.filter(function (f) { return f.getBoundingClientRect().right > width + 1; }).length,
      raw: page.querySelectorAll(".math").length - page.querySelectorAll(".math mjx-container").length,
      errors: page.querySelectorAll("[data-mjx-error], [data-mml-node=merror]").length,
      outside: frame.contentWindow.performance.getEntriesByType("resource").map(function (e) { return e.name; })
        .filter(function (name) { return !/^(file|data|blob):/.test(name); })};
    done();
  }, 12000); };
  document.body.appendChild(frame);
});
</script></body>"""


def look(cases: list[tuple[str, int]], folder: pathlib.Path) -> tuple[dict, list[str]]:
    """What pages measure at widths, and what the browser complained of (errors of scripts, files not found)."""
    page = folder / "measure.html"
    page.write_text(MEASURE.replace("CASES", json.dumps(cases)))
    command = [BROWSER, *(f"--{word}" for word in QUIET), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    measured = re.search(r'id="measured">JSON(.*?)END', done.stdout, re.DOTALL)
    assert measured, f"the browser measured nothing: {done.stderr[-500:]}"
    return json.loads(html.unescape(measured[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_pages_show_their_formulas_at_both_widths_search_and_ask_nothing_of_a_network(reports, tmp_path):
    names = [f"{stem}.html" for stem in STEMS]
    names += [
        "index.html",
        "glossary.html",
        "running.html",
        "bibliography.html",
        "api/dipp_core/method/scores/index.html",
    ]
    names += ["search.html?q=tilted", "search.html?q=xyzzyx"]
    cases = [(f"{(reports / 'site').as_uri()}/{name}", width) for name in names for width in (1400, 400)]
    found, complaints = look(cases, tmp_path)
    assert complaints == []
    assert all(found[f"{stem}.html {width}"]["formulas"] > 5 for stem in STEMS for width in (1400, 400))
    assert found["search.html?q=tilted 1400"]["results"] >= 1
    assert found["search.html?q=xyzzyx 1400"]["results"] == 0
    clean = {"over": 0, "wide": 0, "clipped": 0, "raw": 0, "errors": 0, "outside": []}
    assert {case: values for case, values in found.items() if {key: values[key] for key in clean} != clean} == {}


def test_lectures_follow_the_sessions_and_keep_what_was_printed(reports):
    slides.build(reports.parent)
    names = {path.name for path in (reports / "slides").glob("*.html")}
    assert {"index.html", "lecture.html", "lab.html", "day_1.html", "day_5.html"} <= names
    text = (reports / "slides/day_1.html").read_text()
    assert "one line\nanother</pre>" in text
    page = Page(reports / "slides/day_1.html")
    assert [load for load in page.loads if not load.startswith("data:")] == ["../site/_static/mathjax/tex-svg.js"]
    assert page.wordless == []
