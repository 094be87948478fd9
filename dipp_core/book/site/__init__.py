"""The site: `reports/index.html` and `reports/site/`, made by Sphinx from the notebooks and numbers in `reports/`.

It opens from disk and asks nothing of a network: formulas are set by the MathJax in `_static/mathjax` (Apache-2.0), the
search runs in the page, and figures are shown from `reports/figures`, where they lie anyway.
"""

import io
import os
import pathlib
import re
import shutil
from typing import Any

from dipp_core.book.site import chapters, landing
from dipp_core.files import InputError, write_whole

HERE = pathlib.Path(__file__).parent
QUIET = ("enableSpeech", "enableBraille", "enableEnrichment", "enableComplexity", "enableExplorer", "enableMenu")
MATHJAX: dict[str, Any] = {
    "loader": {"paths": {"fonts": "[mathjax]/fonts"}, "load": ["a11y/assistive-mml"]},
    "output": {"displayOverflow": "linebreak", "linebreaks": {"inline": True}, "mtextInheritFont": True},
    # formulas are read out from MathML; speech would need a worker, which a page from disk cannot start
    "options": {
        "ignoreHtmlClass": ".*",
        "processHtmlClass": "math",
        "enableAssistiveMml": True,
        "menuOptions": {
            "settings": {"speech": False, "braille": False, "enrich": False, "collapsible": False, "assistiveMml": True}
        },
    }
    | dict.fromkeys(QUIET, False),
}
DOOR = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Diff-Instruct++ companion</title>
<meta http-equiv="refresh" content="0; url=site/index.html"></head>
<body><p><a href="site/index.html">Open the book</a></p></body></html>
"""
PLAIN = re.compile(r'<span class="(?:n|p|o|w|nn|fm|vm|si)">([^<]*)</span>')  # code without a colour: half of a page
UNWANTED = {".buildinfo", "objects.inv", "_sources", "debug.css"}


def write_sources(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Everything that Sphinx reads, in one folder; files that have not changed keep their time."""
    reports = root / "reports"
    found = chapters.read_all(reports / "notebooks")
    stems = {chapter.stem for chapter in found}
    made = {f"{chapter.stem}.ipynb": chapters.source(chapter, reports / "site", stems) for chapter in found}
    pages = [*sorted((root / "docs").glob("*.md")), root / "TEACHING.md"]
    for page in pages:
        text = chapters.cited(page.read_text(), chapters.works())
        made[page.name.lower()] = chapters.linked(text, page.parent.relative_to(root).as_posix(), stems)
    made["code.md"] = landing.code(root / "dipp_core")
    more = sorted(name.removesuffix(".md") for name in made if name.endswith(".md"))
    made["index.md"] = landing.page(found, more, reports, reports / "site")
    for path in folder.glob("*.*") if folder.is_dir() else ():
        if path.is_file() and path.name not in made:
            path.unlink()
    for name, text in made.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            write_whole(folder / name, text)


def build(root: pathlib.Path) -> None:
    """Write the site of a checkout; files of an earlier one that are no longer made are removed."""
    from sphinx.application import Sphinx

    work, site = root / ".work" / "site", root / "reports" / "site"
    shutil.rmtree(work, ignore_errors=True)
    site.mkdir(parents=True, exist_ok=True)  # pictures are found from here
    write_sources(root, work / "source")
    said = io.StringIO()
    (work / "html").mkdir(parents=True)
    ours = {"autoapi_dirs": [str(root / "dipp_core")]}
    folders = work / "source", HERE, work / "html", work / "doctrees"
    app = Sphinx(*folders, "html", confoverrides=ours, status=None, warning=said, parallel=2)
    app.build()
    lines = re.findall(r"^.*(?:WARNING|ERROR).*", re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()), re.MULTILINE)
    faults = [line for line in lines if str(work / "source" / "api") not in line]  # a docstring breaks no page
    if app.statuscode or faults:
        raise InputError(f"site: {len(faults)} faults, the first: {faults[0] if faults else 'Sphinx failed'}")
    made = {path.relative_to(work / "html") for path in (work / "html").rglob("*") if path.is_file()}
    made = {path for path in made if not UNWANTED & set(path.parts)}
    for path in sorted(made):
        if path.suffix == ".html":
            page = work / "html" / path
            page.write_text(PLAIN.sub(r"\1", page.read_text()))
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / "html" / path, site / path)
    for path in sorted(site.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(site) not in made:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    write_whole(root / "reports" / "index.html", DOOR)
