"""A lecture of the theory chapters: `reports/slides/index.html`, one file that opens anywhere without network.

Every section of a chapter becomes a few slides: the first sentence of each paragraph, its formulas, figures and tables.
The whole text is kept as notes for the speaker (key n). How much fits on a slide is estimated here and measured by a
test in a browser. The slides of nbconvert load reveal.js from a server, which a lecture hall may not reach.
"""

import base64
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from bs4 import BeautifulSoup, Tag

from dipp_core.book import site
from dipp_core.book.chapters import Chapter, read_all
from dipp_core.files import write_whole

THEORY = "0"  # the first digit of the chapters that are lectures
ROOM = 540  # pixels for the content of a slide of 1280 x 720
LINE, SIGNS = 40, 80  # height of a line of text, and how many signs fit into one
FIGURE = 300  # the least height of a figure; it takes what the text leaves
ENOUGH = 70  # signs: a paragraph gives its first sentences up to this length, one at least
NOT_SAID = ("How long it takes.",)
NOT_SHOWN = ("Is your environment the tested one?", "What can this machine run?")  # sections that no hall needs
NO_BREAK = r'<span class="kept">\1\2</span>'  # a formula and the sign after it
SHORT = r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)"  # a full stop here ends no sentence


@dataclass(frozen=True)
class Item:
    """Something on a slide and the pixels that it needs."""

    html: str
    height: int


@dataclass(frozen=True)
class Slide:
    title: str
    body: str
    notes: str = ""
    kind: str = "text"
    lecture: str = ""


def sentences(text: str) -> list[str]:
    """Sentences of a piece of HTML; formulas and code in it are never cut."""
    kept: list[str] = []

    def keep(match: re.Match) -> str:
        kept.append(match.group())
        return f"\0{len(kept) - 1}\0"

    hidden = re.sub(r"<(math|code)\b.*?</\1>", keep, " ".join(text.split()), flags=re.DOTALL)
    parts = re.split(rf"{SHORT}(?<=[.!?])((?:</\w+>)*)\s+(?=[A-Z\0<(\"])", hidden)
    joined = [part + (parts[i + 1] if i + 1 < len(parts) else "") for i, part in enumerate(parts) if i % 2 == 0]
    return [re.sub(r"\0(\d+)\0", lambda m: kept[int(m.group(1))], part).strip() for part in joined if part.strip()]


def gist(text: str) -> str:
    """The first sentences of a paragraph, and the last where it leads to a formula; tags that were cut are closed."""
    found = sentences(text)
    chosen: list[str] = []
    while found and length(" ".join(chosen)) < ENOUGH:
        chosen.append(found.pop(0))
    if found and not re.search(r"[.!?)](?:</\w+>)*$", found[-1]):
        chosen.append(found[-1])
    return BeautifulSoup(" ".join(chosen), "html.parser").decode()


def length(text: str) -> int:
    """Signs of a piece of HTML as they are read, a formula by its letters."""
    return len(" ".join(re.sub(r"<[^>]+>|&\w+;", "", text).split()))


def text_item(text: str) -> Item:
    return Item(f"<p>{text}</p>", LINE * (length(text) // SIGNS + 1) + 18)


def width(tag: Tag) -> float:
    """How wide a piece of MathML is, in ems, roughly."""
    parts = [width(child) for child in tag.children if isinstance(child, Tag) and child.name != "annotation"]
    if tag.name in ("mi", "mn", "mo", "mtext", "ms"):
        text = tag.get_text()
        return len(text) * (0.5 if text.isalnum() else 0.42) + 0.6 * (
            text in "=+-\u2212<>\u2264\u2265\u2248\u2192\u221d"
        )
    if tag.name == "mspace":
        return float((re.match(r"[\d.]+(?=em)", tag.get("width", "")) or ["0"])[0])
    if tag.name in ("mfrac", "munder", "mover", "munderover", "mtable"):
        return max(parts, default=0) + 0.2
    if tag.name in ("msub", "msup"):
        return parts[0] + 0.7 * parts[1]
    if tag.name == "msubsup":
        return parts[0] + 0.7 * max(parts[1:])
    return sum(parts)


def formula_item(math: Tag) -> Item:
    """A displayed formula; a long one is set smaller."""
    size = max(12, min(30, int(800 / max(width(math), 1))))
    rows, tall = len(math.find_all("mtr")), bool(math.find(["mfrac", "munderover", "munder"]))
    style = f' style="font-size: {size}px"' if size < 30 else ""
    return Item(f'<div class="formula"{style}>{math.decode()}</div>', 60 + 45 * tall + 62 * rows)


def figure_item(image: Tag, folder: pathlib.Path) -> Item:
    source = image["src"]
    if not source.startswith("data:"):
        path = folder / source
        code = base64.b64encode(path.read_bytes()).decode()
        source = f"data:image/{path.suffix[1:]};base64,{code}"
    alt = BeautifulSoup("", "html.parser").new_tag("img", src=source, alt=image.get("alt", ""))
    return Item(f"<figure>{alt.decode()}<figcaption>{image.get('alt', '')}</figcaption></figure>", FIGURE)


def table_item(table: Tag) -> Item | None:
    """A table that a hall can read, without the numbers of its rows; a larger one stays in the chapter."""
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    if all(row and row[0].get_text(strip=True) in ("", str(number)) for number, row in enumerate(rows, start=-1)):
        for row in rows:
            row.pop(0).extract()
    wide = max(sum(min(length(str(cell)), 34) + 3 for cell in row) for row in rows)
    if len(rows) > 12 or wide > 120:
        return None
    table.attrs = {"class": "dense"} if wide > 80 else {}
    broken = sum(max(length(str(cell)) for cell in row) // 60 for row in rows)
    return Item(table.decode(), (34 if wide > 80 else 42) * (len(rows) + broken) + 30)


def paragraph(tag: Tag) -> Iterator[Item]:
    """A paragraph, cut at its displayed formulas."""
    pieces: list[str | Tag] = [""]
    for child in tag.children:
        if isinstance(child, Tag) and child.name == "math" and child.get("display") == "block":
            pieces += [child, ""]
        else:
            pieces[-1] = f"{pieces[-1]}{child}"
    for piece in pieces:
        if isinstance(piece, Tag):
            yield formula_item(piece)
        elif length(piece) > 2 and not any(label in piece for label in NOT_SAID):
            yield text_item(gist(piece))


def items(tag: Tag, folder: pathlib.Path) -> Iterator[Item]:
    """What a piece of a chapter gives to the slides."""
    if tag.name == "p":
        yield from paragraph(tag)
    elif tag.name == "h3":
        yield Item(f"<h3>{tag.decode_contents()}</h3>", LINE + 18)
    elif tag.name in ("ul", "ol"):
        for number, entry in enumerate(tag.find_all("li", recursive=False), start=1):
            mark = f"{number}." if tag.name == "ol" else "&bull;"
            item = text_item(gist(entry.decode_contents().replace("<p>", " ").replace("</p>", " ")))
            yield Item(f'<div class="entry"><span>{mark}</span>{item.html}</div>', item.height)
    elif tag.name == "table":
        yield from filter(None, [table_item(tag)])
    elif tag.name == "img":
        yield figure_item(tag, folder)
    elif tag.name in ("figure", "div", "blockquote"):
        for child in tag.find_all(True, recursive=False):
            yield from items(child, folder)


def packed(found: list[Item]) -> Iterator[list[Item]]:
    """Items in slides: in order, as many as there is room for; a text that leads to something else stays with it."""
    page: list[Item] = []
    for item, after in zip(found, [*found[1:], None], strict=True):
        leads = item.html.startswith("<h3>") or item.html.startswith("<p>")
        follows = after is not None and not (item.html.startswith("<p>") and after.html.startswith("<p>"))
        needed = item.height + (after.height if after and leads and follows else 0)
        if page and sum(entry.height for entry in page) + needed > ROOM:
            yield page
            page = []
        page.append(item)
    if page:
        yield page


def sections(chapter: Chapter) -> Iterator[tuple[str, list[Tag]]]:
    """The parts of a chapter under its headings, with everything but the code."""
    soup = BeautifulSoup(re.sub(r"<style scoped>.*?</style>", "", chapter.body, flags=re.DOTALL), "html.parser")
    for link in soup.find_all("a"):
        link.unwrap()  # a lecture is carried about; its chapters may not be
    title = chapter.title
    tags: list[Tag] = []
    for cell in soup.find_all(True, recursive=False):
        for tag in cell.find_all(True, recursive=False) if cell.name == "section" else [cell]:
            if tag.name in ("h1", "h2"):
                if tags:
                    yield title, tags
                title, tags = tag.decode_contents(), []
            elif tag.name != "pre" and "note" not in tag.get("class", []):
                tags.append(tag)
    yield title, tags


def lecture(chapter: Chapter, folder: pathlib.Path) -> Iterator[Slide]:
    """The slides of one chapter; the first is its title."""
    kind = "title"
    for title, tags in sections(chapter):
        if title in NOT_SHOWN:
            continue
        notes = "".join(tag.decode() for tag in tags if tag.name in ("p", "ul", "ol"))
        for page in packed([item for tag in tags for item in items(tag, folder)]):
            body = re.sub(
                r"(<math\b[^>]*inline(?:(?!</math>).)*</math>)([,.;:)]+)",
                NO_BREAK,
                "\n".join(item.html for item in page),
            )
            yield Slide(title, body, notes, kind, chapter.label)
            kind, notes = "text", ""


def build(root: pathlib.Path) -> None:
    """Write the lecture of a checkout."""
    pages = root / "reports" / "notebooks"
    chapters = [chapter for chapter in read_all(pages, root / "README.md") if chapter.stem.startswith(THEORY)]
    slides = [slide for chapter in chapters for slide in lecture(chapter, pages)]
    starts = {slide.lecture: number for number, slide in reversed(list(enumerate(slides, start=2)))}
    text = (
        site.templates()
        .get_template("deck.html")
        .render(
            book=site.BOOK,
            slides=slides,
            lectures=[(chapter, starts[chapter.label]) for chapter in chapters],
            css=(site.THEME / "deck.css").read_text(),
            script=(site.THEME / "deck.js").read_text(),
        )
    )
    path = root / "reports" / "slides" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
