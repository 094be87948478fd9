"""What the first page of the site shows: the figure at the top, the results in tables, a card for every chapter.

Every number is read from `reports/metrics` and `reports/tables`; what has not been made is left out.
"""

import csv
import html
import json
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from dipp_core.book.chapters import Chapter, Picture, picture_size

HERO = "figures/00_start_here/the_leash.png"
# claim, the metric that measures it, what it is held to
CHECKED = (
    ("The DI++ loss has the gradient of the integral KL", "02_integral_kl", "ikl_grad_rel_err_exact", "below 1e-10"),
    ("A staged backward is the joint backward", "03_aligning_with_a_reward", "staged_grad_rel_err", "below 1e-12"),
    (
        "Guidance is a reward, sample by sample",
        "04_guidance_is_a_reward",
        "cfg_identity_rel_err",
        "below 1e-10",
    ),
    (
        "The DI* loss has the semi-gradient of its divergence",
        "05_score_divergence",
        "score_div_l2_grad_rel_err_exact",
        "below 1e-10",
    ),
    ("Descent lands on the closed-form optima", "06_where_is_the_optimum", "optimum_gd_abs_err", "below 1e-3"),
    ("Exact optima in the plane carry a certificate", "11_alignment_2d", "duality_gap", "below 0.05"),
)
PAPERS = "41_paper_and_here"
MINIATURE = "24_miniature_results"
METHODS = ("one-step start", "control", "DI++", "control (SIM)", "DI*", "reward only")
ALIGNED = {name: f"<strong>{name}</strong>" for name in ("DI++", "DI*")}
COLUMNS = {"gold": "gold score", "reward": "learned reward", "accuracy": "caption accuracy", "diversity": "diversity"}


@dataclass(frozen=True)
class Result:
    """A table with its words; the first cell of a row names it. Cells and `after` are HTML."""

    title: str
    before: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    after: str
    figure: Picture | None = None


@dataclass(frozen=True)
class Card:
    """A chapter on the first page."""

    url: str
    label: str
    about: str
    part: str
    figure: Picture | None


def card(chapter: Chapter) -> Card:
    return Card(f"site/{chapter.stem}.html", chapter.label, chapter.about, chapter.part, chapter.figure)


def hero(reports: pathlib.Path, chapters: Collection[Chapter]) -> Picture | None:
    """The figure at the top: the leash, or the first there is."""
    for chapter in chapters:
        if found := re.search(rf'<img src="\.\./{re.escape(HERO)}" alt="([^"]*)">', chapter.body):
            return Picture(HERO, html.unescape(found.group(1)), picture_size(reports / HERO))
    return next((chapter.figure for chapter in chapters if chapter.figure), None)


def number(text: str | float) -> str:
    """Three digits after the point, or a power of ten where that would show nothing."""
    value = float(text)
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}".rstrip("0").rstrip(".")


def chapter_link(stem: str, text: str) -> str:
    return f'<a href="site/{stem}.html">{html.escape(text)}</a>'


def checked(reports: pathlib.Path, stems: Collection[str]) -> Result | None:
    """What theory says, and how exactly the code does it."""
    rows = []
    for claim, stem, key, bar in CHECKED:
        path = reports / "metrics" / f"{stem}.json"
        values = json.loads(path.read_text()) if path.is_file() and stem in stems else {}
        if key in values:
            rows.append((html.escape(claim), number(values[key]), bar, chapter_link(stem, stem[:2])))
    before = "Relative errors in worlds where the answer is known in closed form."
    columns = ("Claim", "Found", "Held to", "Chapter")
    after = "Tests hold these numbers, and every other that the book publishes a bar for, to their bars."
    return Result("Checked by machine", before, columns, tuple(rows), after) if rows else None


def with_interval(row: dict[str, str], name: str) -> str:
    value, low, high = (f"{float(row[name + end]):.3f}" for end in ("", "_low", "_high"))
    return f"{value} <small>[{low}, {high}]</small>"


def miniature(reports: pathlib.Path, stems: Collection[str]) -> Result | None:
    """The one-step generators of the miniature, before and after alignment."""
    path = reports / "tables" / MINIATURE / "results.csv"
    if not path.is_file() or MINIATURE not in stems:
        return None
    with open(path, newline="") as file:
        found = [row for row in csv.DictReader(file) if row["method"] in METHODS]
    rows = tuple(
        (
            html.escape(f"{row['architecture']}, ") + ALIGNED.get(row["method"], html.escape(row["method"])),
            *(with_interval(row, name) for name in COLUMNS),
        )
        for row in found
    )
    picture = reports / "figures" / MINIATURE / "gallery_unet.png"
    alt = "Pictures of ten prompts by the reference, the one-step start, the controls, DI++, DI* and the reward alone"
    figure = Picture(f"figures/{MINIATURE}/{picture.name}", alt, picture_size(picture)) if picture.is_file() else None
    before = (
        "Text to image, small enough for two CPU cores: one-step generators aligned with a learned reward, judged by a "
        "gold score that training never sees. A control takes the same steps without the reward."
    )
    after = f"In brackets 95% intervals over captions and seeds. All of it in {chapter_link(MINIATURE, 'chapter 24')}."
    return Result("In the miniature", before, ("Generator", *COLUMNS.values()), rows, after, figure)


def claims(reports: pathlib.Path, stems: Collection[str]) -> Result | None:
    """What the papers claim, and how far it was seen here."""
    path = reports / "tables" / PAPERS / "claims.csv"
    if not path.is_file() or PAPERS not in stems:
        return None
    chapters = {stem[:2]: stem for stem in stems}
    with open(path, newline="") as file:
        rows = tuple(
            (
                html.escape(row["claim"]),
                f'<span class="verdict">{html.escape(row["verdict"])}</span>',
                ", ".join(chapter_link(chapters[n], n) for n in row["notebooks"].split(", ") if n in chapters),
            )
            for row in csv.DictReader(file)
        )
    before = "Each claim of the papers was written as questions with a bar, and asked of worlds small enough to know."
    after = f"The evidence for every verdict, and the papers' own tables, are in {chapter_link(PAPERS, 'chapter 41')}."
    return Result(
        "What the papers claim, and what was found here", before, ("Claim", "Verdict", "Shown in"), rows, after
    )


def results(reports: pathlib.Path, stems: Collection[str]) -> list[Result]:
    """The tables of the first page, as far as their chapters have been made."""
    return [result for result in (claims(reports, stems), miniature(reports, stems), checked(reports, stems)) if result]
