"""The chapters of the book, taken from the pages of `reports/notebooks/` and fitted to a site.

Such a page is complete by itself. Here its inside is taken out, wide things get a box in which they scroll, pictures
their size and a link to themselves, and code its documentation.
"""

import html
import itertools
import pathlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dipp_core.book import api

PARTS = {
    "0": "Theory",
    "1": "The plane",
    "2": "The miniature",
    "3": "Full scale",
    "4": "The papers and this book",
    "9": "Your turn",
}
LONG = 20  # letters and signs of a formula inside a line that a phone may not have room for


class SiteError(ValueError):
    """One line that says what the site cannot be made from."""


@dataclass(frozen=True)
class Picture:
    source: str
    alt: str
    size: str = ""


@dataclass(frozen=True)
class Heading:
    level: int
    id: str
    text: str


@dataclass(frozen=True)
class Chapter:
    """One executed notebook: `stem` as in 02_integral_kl, `body` the inside of its page's <main>."""

    stem: str
    title: str
    about: str
    figure: Picture | None
    body: str

    @property
    def label(self) -> str:
        return f"{self.stem[:2]} {self.title}"

    @property
    def part(self) -> str:
        return PARTS.get(self.stem[0], "More")


def picture_size(path: pathlib.Path) -> str:
    """`width` and `height` of a PNG or GIF as attributes, so that text does not jump when a picture arrives."""
    head = path.read_bytes()[:24] if path.is_file() else b""
    if head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
    elif head.startswith(b"GIF8") and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    else:
        return ""
    return f' width="{width}" height="{height}"'


def plain(text: str) -> str:
    """HTML as a line of text; formulas are left out."""
    text = re.sub(r"<math.*?</math>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


def descriptions(readme: str) -> dict[str, str]:
    """What the README's list of notebooks says of each, as plain text with a capital letter."""
    rows = re.findall(r"^\| \[\d\d [^\]]*\]\(notebooks/(\d\d_\w+)\.ipynb\) \| (.+?) \|$", readme, re.MULTILINE)
    said = {stem: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "") for stem, text in rows}
    return {stem: text[:1].upper() + text[1:] for stem, text in said.items()}


def read_chapter(path: pathlib.Path, said: dict[str, str]) -> Chapter:
    """A page of `reports/notebooks/`, taken apart."""
    text = path.read_text()
    title, body = re.search(r"<title>(.*?)</title>", text), re.search(r"<main>\n(.*)\n</main>", text, re.DOTALL)
    if not title or not body:
        raise SiteError(f"{path.name} is not a page of this book; run its stage again")
    about = re.search(r"<strong>What you will see\.</strong>(.*?)</p>", body.group(1), re.DOTALL)
    short = said.get(path.stem) or (plain(about.group(1)).split(". ")[0].strip() if about else "")
    found = re.search(r'<img src="(\.\./figures/[^"]+\.png)" alt="([^"]*)">', body.group(1))
    figure = None
    if found:
        figure = Picture(
            found.group(1).removeprefix("../"),
            html.unescape(found.group(2)),
            picture_size(path.parent / found.group(1)),
        )
    return Chapter(path.stem, plain(title.group(1)), short, figure, body.group(1))


def headings(body: str) -> list[Heading]:
    found = re.findall(r'<h([23]) id="([^"]+)">(.*?)</h\1>', body, re.DOTALL)
    return [Heading(int(level), name, re.sub(r"</?a\b[^>]*>", "", text)) for level, name, text in found]


def boxed(body: str) -> str:
    """Wide things in boxes of their own that scroll: tables, formulas of a line, and long ones inside a line."""
    count = itertools.count(1)
    body = re.sub(r"<style scoped>.*?</style>\n?", "", body, flags=re.DOTALL)
    body = re.sub(
        r"<table\b.*?</table>",
        lambda m: f'<div class="scroll" role="region" tabindex="0" aria-label="Table {next(count)}">{m.group()}</div>',
        body,
        flags=re.DOTALL,
    )
    body = body.replace('<table border="1" class="dataframe">', '<table class="dataframe">')
    body = body.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")

    def formula(match: re.Match) -> str:
        if 'display="block"' in match.group(1):
            return f'<span class="equation">{match.group()}</span>'
        if len(re.findall("<m[ion][ >]", match.group())) > LONG:
            return f'<span class="m">{match.group()}</span>'
        return f'<span class="kept">{match.group()}</span>' if match.group(2) else match.group()

    # a sign that follows a formula stays on its line
    return re.sub(r"<math\b([^>]*)>.*?</math>([,.;:)]*)", formula, body, flags=re.DOTALL)


def stepwise(body: str) -> str:
    """Headings that go down one level at a time, as those who hear a page need them."""
    above: list[int] = []  # the headings that this one stands under, as they were written

    def heading(match: re.Match) -> str:
        while above and above[-1] >= int(match.group(1)):
            above.pop()
        above.append(int(match.group(1)))
        return f"<h{len(above)}{match.group(2)}</h{len(above)}>"

    return re.sub(r"<h([1-6])(\b.*?)</h\1>", heading, body, flags=re.DOTALL)


def decorated(chapter: Chapter, folder: pathlib.Path, code: Mapping[str, str]) -> str:
    """The inside of a chapter's page; `folder` is the page's, `code` says where files are documented."""

    def picture(match: re.Match) -> str:
        source, alt = match.group(1), match.group(2)
        image = f'<img src="{source}" alt="{alt}"{picture_size(folder / source)} loading="lazy">'
        return f'<figure><a href="{source}">{image}</a></figure>'

    def place(match: re.Match) -> str:
        return f'href="api/{code[match.group(1)]}"' if match.group(1) in code else match.group()

    body = re.sub(r'<figure><img src="(\.\./[^"]+)" alt="([^"]*)"></figure>', picture, stepwise(boxed(chapter.body)))
    return api.plainer(re.sub(r'href="\.\./\.\./(dipp_core/[^"#]+\.py)"', place, body))


def read_all(pages: pathlib.Path, readme: pathlib.Path) -> list[Chapter]:
    """All chapters in order."""
    said = descriptions(readme.read_text()) if readme.is_file() else {}
    chapters = [read_chapter(path, said) for path in sorted(pages.glob("[0-9][0-9]_*.html"))]
    if not chapters:
        raise SiteError(f"no pages in {pages.name}/: run the notebooks first (`make repro`)")
    return chapters
