"""The site: `reports/index.html` and `reports/site/`, made from the pages, figures and numbers that lie in `reports/`.

A visitor opens `reports/index.html` from disk; nothing is loaded from elsewhere. Every page of `reports/notebooks/` is
shown again between a contents list and links to its neighbours; the library's documentation comes from its source.

Pages are set by Jinja, which nbconvert brings. Jupyter Book and MyST fetch their theme when they build; Sphinx needs a
theme, a reader of notebooks and a formula script of megabytes, all to show again what `lab/page.py` has rendered to
MathML, which needs no script.
"""

import functools
import itertools
import pathlib
from dataclasses import dataclass

import jinja2

from dipp_core.book import api, landing
from dipp_core.book.chapters import Chapter, Heading, decorated, headings, read_all
from dipp_core.files import write_whole

THEME = pathlib.Path(__file__).with_name("theme")
BOOK = "Diff-Instruct++ companion"


@dataclass(frozen=True)
class Link:
    url: str
    label: str


@functools.cache
def templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(THEME),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def page(template: str, kind: str, title: str, **values) -> str:
    """One page; `base` leads from it to `reports/site/`, `menu` is (part, links) after (part, links)."""
    empty: dict[str, object] = {
        "base": "",
        "menu": [],
        "url": "",
        "outline": [],
        "before": None,
        "after": None,
        "about": title,
    }
    return templates().get_template(template).render(book=BOOK, kind=kind, title=title, **(empty | values))


def chapter_pages(chapters: list[Chapter], pages: pathlib.Path, code: dict[str, str]) -> dict[str, str]:
    """Every chapter with its neighbours and the contents of the book."""
    links = [Link(f"{chapter.stem}.html", chapter.label) for chapter in chapters]
    groups = itertools.groupby(zip(chapters, links, strict=True), key=lambda pair: pair[0].part)
    menu = [(part, [link for _, link in pairs]) for part, pairs in groups]
    made = {}
    for chapter, before, link, after in zip(chapters, [None, *links], links, [*links[1:], None], strict=False):
        body = decorated(chapter, pages, code)
        made[link.url] = page(
            "layout.html",
            "chapter",
            chapter.label,
            about=chapter.about,
            body=body,
            menu=menu,
            url=link.url,
            outline=headings(body),
            before=before,
            after=after,
        )
    return made


def api_pages(modules: list[api.Module], chapters: list[Chapter]) -> dict[str, str]:
    """The documentation: one page a file, and the way into them."""
    prose = functools.partial(api.prose, links=api.index(modules))
    shown = api.shown_in({chapter.stem: chapter.body for chapter in chapters})
    rooms = [(room, list(group)) for room, group in itertools.groupby(modules, key=lambda module: module.room)]
    links = {room: [Link(module.page, module.name or "dipp_core") for module in group] for room, group in rooms}
    links[""] = [Link("index.html", "Overview"), *links.get("", [])]
    menu = [(room or "dipp_core", links[room]) for room in api.ROOMS if room in links]
    common = {"base": "../", "menu": menu, "prose": prose, "coloured": api.coloured}
    said = [(room, api.ROOMS.get(room, ""), group) for room, group in rooms]
    made = {
        "api/index.html": page("api.html", "api", "The code", url="index.html", modules=modules, rooms=said, **common)
    }
    for module in modules:
        outline = [Heading(2, entry.name, entry.name) for entry in module.entries]
        made[f"api/{module.page}"] = page(
            "module.html",
            "api",
            module.title,
            about=module.summary,
            url=module.page,
            module=module,
            outline=outline,
            used=shown.get(module.name, []),
            listing=api.source(module),
            **common,
        )
    return made


def landing_page(chapters: list[Chapter], reports: pathlib.Path) -> str:
    """`index.html`: what this is, one figure, what was found, and the chapters."""
    cards = [landing.card(chapter) for chapter in chapters]
    parts = itertools.groupby(cards, key=lambda card: card.part)
    return page(
        "landing.html",
        "landing",
        BOOK,
        base="site/",
        about="An open implementation of Diff-Instruct++ and Diff-Instruct*, written as a book that runs.",
        chapters=cards,
        parts=[(part, list(group)) for part, group in parts],
        hero=landing.hero(reports, chapters),
        smoke=any("class=warning" in chapter.body for chapter in chapters),
        results=landing.results(reports, {chapter.stem for chapter in chapters}),
    )


def build(root: pathlib.Path) -> None:
    """Write the site of a checkout; files of an earlier one that are no longer made are removed."""
    reports = root / "reports"
    site, chapters = reports / "site", read_all(reports / "notebooks", root / "README.md")
    modules = api.read_all(root / "dipp_core")
    code = {module.path: module.page for module in modules}
    made = {name: (THEME / name).read_text() for name in ("site.css", "site.js")}
    made |= chapter_pages(chapters, reports / "notebooks", code) | api_pages(modules, chapters)
    index = landing_page(chapters, reports)  # made before anything is written
    for name, text in made.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(site / name, text.encode())
    write_whole(reports / "index.html", index.encode())
    for path in [path for path in site.rglob("*") if path.is_file() and path.relative_to(site).as_posix() not in made]:
        path.unlink()
