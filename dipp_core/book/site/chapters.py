"""Published notebooks as the sources of Sphinx: folded cells, numbered figures and equations, links that hold."""

import html
import json
import pathlib
import posixpath
import re
from dataclasses import dataclass

from PIL import Image
from pybtex.database import parse_file

from dipp_core.files import InputError, read_json, root

PARTS = {
    "0": "Theory",
    "1": "The plane",
    "2": "The miniature",
    "3": "Full scale",
    "4": "The papers and this book",
    "9": "Your turn",
}
SMOKE = """<p class="warning">Made at scale <b>smoke</b>, which only checks that everything runs. The text describes
what is seen at scale mini; the figures and numbers here do not show it.</p>"""
IMAGE = re.compile(r'<img src="([^"]+)" alt="([^"]*)"( width="\d+")?>')


@dataclass(frozen=True)
class Chapter:
    """One published notebook: `stem` as in 02_integral_kl, `image` the tag of its first figure."""

    stem: str
    title: str
    about: str
    image: str
    scale: str
    notebook: dict

    @property
    def part(self) -> str:
        return PARTS.get(self.stem[0], "More")


def read(path: pathlib.Path) -> Chapter:
    notebook = read_json(path, f"run the stage {path.stem} again")
    text = "\n\n".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    title = re.search(r"^# (.+)", text, re.MULTILINE)
    if not title:
        raise InputError(f"{path.name} has no title; its first cell must begin with `# `")
    about = re.search(r"\*\*What you will see\.\*\*(.+?[.!?])(?=\s)", text, re.DOTALL)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    images = (IMAGE.search(output.get("data", {}).get("text/html", "")) for output in outputs)
    image = next((found.group() for found in images if found), "")
    short = " ".join(about[1].split()) if about else ""
    return Chapter(path.stem, title[1], short, image, notebook["metadata"]["dipp"]["scale"], notebook)


def read_all(folder: pathlib.Path) -> list[Chapter]:
    """All chapters in order."""
    if found := [read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]:
        return found
    raise InputError(f"no notebooks in {folder}: run them first (`make repro`)")


def parts_of(image: str) -> tuple[str, str, str]:
    """Source, words and width of the tag of an image."""
    found = IMAGE.fullmatch(image)
    assert found, image
    return found[1], found[2], found[3] or ""


def sized(image: str, folder: pathlib.Path) -> str:
    """An image with its size in pixels, so that text does not jump when it arrives; `folder` is that of the page."""
    source, alt, width = parts_of(image)
    if source.startswith("data:") or not (folder / source).is_file():
        return f'<img src="{source}" alt="{alt}"{width} loading="lazy">'
    with Image.open(folder / source) as picture:
        wide, high = picture.size
    shown = int(re.sub(r"\D", "", width)) if width else wide
    return f'<img src="{source}" alt="{alt}" width="{shown}" height="{round(high * shown / wide)}" loading="lazy">'


def figure(image: str, number: str, folder: pathlib.Path, caption: str = "") -> str:
    """An image with its caption, by default the words that stand for it; without a number outside the chapters."""
    source, alt, _ = parts_of(image)
    link = f'<a href="{source}">{sized(image, folder)}</a>' if not source.startswith("data:") else sized(image, folder)
    name = f"figure-{number.replace('.', '-')}"
    numbered = f'<b><a class="reference" href="#{name}">Figure {number}</a></b> ' if number else ""
    text = (caption or alt).rstrip(".") + "."
    named = f' id="{name}"' if number else ""
    return f'<figure class="numbered"{named}>{link}<figcaption>{numbered}{text}</figcaption></figure>'


def linked(text: str, base: str, stems: set[str]) -> str:
    """Markdown with the links to files of the repository as they must read on the site; `base` is the text's folder."""

    def place(match: re.Match) -> str:
        label, url = match.groups()
        path, _, anchor = url.partition("#")
        target = posixpath.normpath(f"{base}/{path}").lstrip("/")
        stem = posixpath.basename(target).removesuffix(".ipynb")
        if target.endswith(".ipynb") and stem in stems:
            return f"[{label}]({stem}.ipynb{'#' + anchor if anchor else ''})"
        if target.startswith("dipp_core/") and target.endswith(".py"):
            return f'<a href="api/{target.removesuffix(".py").removesuffix("/__init__")}/index.html">{label}</a>'
        if target.startswith("docs/") or target == "TEACHING.md":
            return f"[{label}]({posixpath.basename(target).lower()}{'#' + anchor if anchor else ''})"
        target = target.removeprefix("reports/") if target.startswith("reports/notebooks/") else target  # not made here
        return f'<a href="../../{target}">{label}</a>'

    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(((?:\.\./)*[\w./-]+\.[\w#-]+|(?:\.\./)+[\w./-]+)\)", place, text)


def works() -> dict[str, tuple[str, str]]:
    """Address of every work in `data/references.bib` -> its key and the surname of its first author."""
    entries = parse_file(str(root() / "data" / "references.bib")).entries
    first = {key: str(entry.persons["author"][0].rich_last_names[0]) for key, entry in entries.items()}
    return {entry.fields["url"]: (key, first[key]) for key, entry in entries.items()}


def cited(text: str, known: dict[str, tuple[str, str]]) -> str:
    """Markdown whose links to works of the bibliography are citations: "Vincent [2011]", "DMD2 [Yin et al., 2024]"."""

    def cite(match: re.Match) -> str:
        label, url = match.groups()
        if url not in known:
            return match.group()
        key, surname = known[url]
        if surname in label:
            return f"{{cite:t}}`{key}`"
        return f"{re.sub(r' [(]?[0-9]{4}[)]?$', '', label)} {{cite:p}}`{key}`"

    return re.sub(r"\[([^\[\]]+)\]\((https://[^)\s]+)\)", cite, text)


def equations(text: str, chapter: int, count: int) -> tuple[str, int]:
    """Displayed formulas with labels, which give them numbers."""

    def label(match: re.Match) -> str:
        nonlocal count
        count += 1
        return f"{match.group().rstrip()} (eq-{chapter}-{count})"

    return re.sub(r"^ *\$\$.+?\$\$[ ]*$", label, text, flags=re.DOTALL | re.MULTILINE), count


def folding(cells: list[dict], index: int) -> list[str]:
    """What is folded away: parameters and set-up, the code of figures, the metrics. Tags of the notebook win."""
    source, tags = cells[index]["source"], cells[index]["metadata"].get("tags", [])
    code = [number for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    setup = next((n for n in code if re.search("^(from|import) ", cells[n]["source"], re.MULTILINE)), -1)
    if any(tag.startswith(("hide-", "remove-")) for tag in tags):
        return tags
    if "injected-parameters" in tags or "parameters" in tags or index == setup or ".metrics(" in source:
        return [*tags, "hide-cell"]
    drawn = any("<img " in out.get("data", {}).get("text/html", "") for out in cells[index]["outputs"])
    return [*tags, "hide-input"] if drawn else tags


def source(chapter: Chapter, folder: pathlib.Path, stems: set[str]) -> str:
    """The notebook that Sphinx reads; `folder` is where its page and the published notebook refer to pictures from."""
    number, figures, formulas, cells = int(chapter.stem[:2]), 0, 0, []
    tags = [cell["metadata"].get("tags", []) for cell in chapter.notebook["cells"]]
    replaced = "parameters" if any("injected-parameters" in names for names in tags) else None  # by those of this run
    kept = [cell for cell, names in zip(chapter.notebook["cells"], tags, strict=True) if replaced not in names]
    known = works()
    for index, cell in enumerate(kept):
        made = dict(cell)
        if cell["cell_type"] == "markdown":
            text, formulas = equations(
                linked(cited(cell["source"], known), "reports/notebooks", stems), number, formulas
            )
            made["source"] = text + (f"\n\n{SMOKE}" if index == 0 and chapter.scale == "smoke" else "")
        elif cell["cell_type"] == "code":
            made["metadata"] = {"tags": folding(kept, index)}
            made["outputs"] = json.loads(json.dumps(cell["outputs"]))
            for output in made["outputs"]:
                data = output.get("data", {})
                if "text/html" in data and IMAGE.fullmatch(data["text/html"]):
                    figures += 1
                    data["text/html"] = figure(data["text/html"], f"{number}.{figures}", folder)
                if "text/markdown" in data:
                    data["text/markdown"] = linked(data["text/markdown"], "notebooks", stems)
        cells.append(made)
    return json.dumps(chapter.notebook | {"cells": cells})


def card(chapter: Chapter, folder: pathlib.Path) -> str:
    """A chapter on the first page."""
    image = sized(re.sub(r' width="\d+"', "", chapter.image), folder) if chapter.image else ""
    about = re.sub(r"[$`*]|\[([^\]]*)\]\([^)]*\)", r"\1", chapter.about)
    label = html.escape(f"{chapter.stem[:2]} {chapter.title}")
    link = f'<a href="{chapter.stem}.html">{image}<strong>{label}</strong></a>'
    return f'<li class="card">{link}<p>{html.escape(about)}</p></li>'
