"""Lectures: a deck for every session that TEACHING.md plans, `reports/slides/NAME.html`, without network.

A slide gives the first sentence of every paragraph, its formulas, what the code printed, and one figure; the whole text
is in the speaker's notes (key s). The decks run on reveal.js, which lies in `site/reveal` (MIT); formulas
are set by the site's MathJax, so a deck travels in the folder `reports`.
"""

import base64
import html
import json
import pathlib
import re
from collections.abc import Iterator

from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from dipp_core.book.site import HERE, MATHJAX
from dipp_core.book.site.chapters import IMAGE, Chapter, parts_of, read_all
from dipp_core.files import InputError, write_whole

ROOM, SIGNS, LONGEST = 13, 78, 14  # lines that fit on a slide, signs in one, and lines of a print that are shown
LEFT_OUT = ("Exercises", "Your environment, compared with the tested one", "What this machine can run")
SENTENCE = re.compile(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<=[.!?])\*{0,2}\s+(?=[A-Z$*`(\"])")
Shown = tuple[str, range]  # the first two digits of a notebook, and the numbers of its sections; none for all
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head><body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script>{reveal}</script><script>{notes}</script>
<script>
window.MathJax = {mathjax};
Reveal.initialize({{width: 1280, height: 720, margin: 0.03, center: false, hash: true, slideNumber: "c/t",
  transition: "none", plugins: [RevealNotes]}});
</script>
<script src="../site/_static/mathjax/tex-svg.js"></script>
</body></html>
"""


def sessions(teaching: str) -> list[tuple[str, str, list[Shown]]]:
    """Name, title and content of every deck: lecture, lab and the days of the week, from the tables of TEACHING.md."""

    def chapters(cell: str) -> list[Shown]:
        found = []
        for number, first, last in re.findall(r"\[(\d\d)\]\([^)]*\)(?:, sections? (\d+)(?: (?:to|and) (\d+))?)?", cell):
            found.append((number, range(int(first), int(last or first) + 1) if first else range(0)))
        return [entry for entry in found if entry[0] < "90"]  # exercises and their solutions are on no slide

    lecture, lab, week = [], [], []
    for line in re.findall(r"^\| \d+ \|.*", teaching, re.MULTILINE):
        cells = [cell.strip(" |") for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and chapters(cells[1]):
            week.append((f"day_{cells[0]}", f"Day {cells[0]}: {cells[3]}", chapters(cells[1])))
        elif len(cells) == 4:
            lecture += chapters(cells[2])
            lab += chapters(cells[3])
    if not week or not lecture:
        raise InputError("slides: TEACHING.md has no table of a lecture or of a week")
    return [("lecture", "One step, and what people like", lecture), ("lab", "Shown in the lab", lab), *week]


def gist(block: str) -> str:
    """The first sentence of a paragraph, and of every entry of a list; formulas, tables and quotes whole."""
    if block.startswith(("$$", "|", ">", "```", "#")):
        return block
    if re.match(r"([-*]|\d+\.) ", block):
        return "\n".join(SENTENCE.split(entry)[0] for entry in re.split(r"\n(?=(?:[-*]|\d+\.) )", block))
    return SENTENCE.split(block)[0]


def lines(block: str) -> float:
    """How many lines of a slide a block of Markdown takes, about."""
    if block.startswith("$$"):
        return 2.2 + 1.2 * block.count(r"\\")
    if block.startswith(("|", "-", "#")):
        return sum(1 + len(line) // SIGNS for line in block.split("\n") if line) + 0.5
    return len(block) / SIGNS + 1.3


def shown(output: dict) -> tuple[str, float]:
    """What a cell printed or showed, as HTML, and the lines that it takes."""
    if output["output_type"] == "error":
        return f"<pre>{html.escape(output['ename'] + ': ' + output['evalue'])}</pre>", 1.5
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="table">{data["text/html"]}</div>', 1.0 + 0.9 * data["text/html"].count("<tr")
    if "text/markdown" in data:
        return markdown2html_mistune(data["text/markdown"]), lines(data["text/markdown"])
    text = (output.get("text") or data.get("text/plain", "")).split("\n")
    text = text[:LONGEST] + (["…"] if len(text) > LONGEST else [])
    return f"<pre>{ansi2html(chr(10).join(text))}</pre>", 0.8 + 0.8 * len(text)


def figure(image: str, folder: pathlib.Path) -> str:
    """A published picture inside the deck; `folder` is that of the notebooks."""
    source, alt, _ = parts_of(image)
    if not source.startswith("data:"):
        path = folder / source
        source = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'


def pieces(chapter: Chapter, folder: pathlib.Path) -> Iterator[tuple[str, float, str, str]]:
    """A chapter in order: (HTML, lines, the heading if it is one, the whole text if it is a paragraph)."""
    setup = True
    for cell in chapter.notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for block in re.split(r"\n\s*\n", cell["source"].strip()):
                heading = re.match(r"##? (.+)", block)
                if heading:
                    setup = setup and block.startswith("# ")
                    yield "", 0, heading[1], ""
                    block = block[heading.end() :].strip()
                if block and "**How long it takes.**" not in block:
                    yield markdown2html_mistune(gist(block)), lines(gist(block)), "", block
            continue
        for output in [] if setup or ".metrics(" in cell["source"] else cell.get("outputs", []):
            image = IMAGE.fullmatch(output.get("data", {}).get("text/html", ""))
            yield (figure(image.group(), folder), ROOM, "", "") if image else (*shown(output), "", "")


def deck(chapter: Chapter, wanted: range, folder: pathlib.Path) -> Iterator[str]:
    """The slides of a chapter; of numbered sections only the `wanted` ones, if any are named."""
    title, keep = chapter.title, True
    stack = [f"<section><h1>{html.escape(title)}</h1></section>"]
    page, room = "", float(ROOM)
    notes: list[str] = []

    def turn() -> None:
        nonlocal page, notes, room
        if page:
            said = f'<aside class="notes">{markdown2html_mistune(chr(10).join(notes))}</aside>' if notes else ""
            stack.append(f"<section><h2>{html.escape(title, quote=False)}</h2>{page}{said}</section>")
        page, notes, room = "", [], float(ROOM)

    for text, needed, heading, whole in [*pieces(chapter, folder), ("", 0, chapter.title, "")]:
        if heading:
            turn()
            if keep and stack:
                yield f"<section>{''.join(stack)}</section>"
            stack, title = [], heading
            number = re.match(r"(\d+)\.", heading)
            asked = not wanted or heading == chapter.title or bool(number and int(number[1]) in wanted)
            keep = asked and heading not in LEFT_OUT
            continue
        if needed > room:
            turn()
        page, room = page + text, room - needed
        notes += [whole, ""] if whole else []


def build(root: pathlib.Path) -> None:
    """Write the decks of a checkout, and a page that lists them."""
    folder, reports = root / "reports" / "notebooks", root / "reports"
    chapters = {chapter.stem[:2]: chapter for chapter in read_all(folder)}
    read = {name: (HERE / "reveal" / name).read_text() for name in ("reveal.js", "notes.js", "reveal.css", "deck.css")}
    delimiters = {"inlineMath": [["$", "$"]], "displayMath": [["$$", "$$"]]}
    options = MATHJAX["options"] | {"ignoreHtmlClass": "none", "processHtmlClass": "reveal"}
    mathjax = json.dumps(MATHJAX | {"tex": delimiters, "options": options})
    items = ""
    for name, title, content in sessions((root / "TEACHING.md").read_text()):
        slides = [f"<section><h1>{html.escape(title)}</h1></section>"]
        for stem, wanted in content:
            slides += deck(chapters[stem], wanted, folder) if stem in chapters else []
        text = PAGE.format(
            title=html.escape(title),
            css=read["reveal.css"] + read["deck.css"],
            slides="\n".join(slides),
            reveal=read["reveal.js"],
            notes=read["notes.js"],
            mathjax=mathjax,
        )
        write_whole(reports / "slides" / f"{name}.html", text)
        items += f'<li><a href="{name}.html">{html.escape(title)}</a></li>\n'
    head = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Lectures</title>\n<h1>Lectures</h1>'
    write_whole(reports / "slides" / "index.html", f"{head}\n<ul>\n{items}</ul></html>\n")
