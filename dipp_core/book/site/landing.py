"""The first page in Markdown. Every number is read from `reports/`; what has not been made is left out."""

import ast
import csv
import html
import itertools
import json
import pathlib

from dipp_core.book.site.chapters import Chapter, card, figure

START = """# The Diff-Instruct++ companion

A *one-step* text-to-image generator draws a picture in a single pass of a network. Two papers teach it what people
like, without a single training image: Diff-Instruct++ {{cite:p}}`luo2025dipp` and Diff-Instruct\\*
{{cite:p}}`luo2025distar`. This is an open implementation of both, as a book of notebooks that run. Begin with {begin},
look at the [results](#results), read [the code](code.md), or see how to [run it yourself](running.md). The
[glossary](glossary.md) explains the words.
"""
LEASH = (
    "The idea, computed in a world where every quantity is known. Left: the score of the frozen reference diffusion "
    "points to where pictures should be. Middle: the score of the assistant points to where the generator is now. "
    "Right: their difference (orange) holds the generator while the reward (pink) pulls."
)
# claim, the metric that measures it, what it is held to
CHECKED = (
    ("The DI++ loss has the gradient of the integral KL", "02_integral_kl", "ikl_grad_rel_err_exact", "below 1e-10"),
    ("A staged backward is the joint backward", "03_aligning_with_a_reward", "staged_grad_rel_err", "below 1e-12"),
    ("Guidance is a reward, sample by sample", "04_guidance_is_a_reward", "cfg_identity_rel_err", "below 1e-10"),
    (
        "The DI* loss has the semi-gradient of its divergence",
        "05_score_divergence",
        "score_div_l2_grad_rel_err_exact",
        "below 1e-10",
    ),
    ("Descent lands on the closed-form optima", "06_where_is_the_optimum", "optimum_gd_abs_err", "below 1e-3"),
    ("Exact optima in the plane carry a certificate", "11_alignment_2d", "duality_gap", "below 0.05"),
)
METHODS = ("one-step start", "control", "DI++", "control (SIM)", "DI*", "reward only")
COLUMNS = {"gold": "gold score", "reward": "learned reward", "accuracy": "caption accuracy", "diversity": "diversity"}


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('DI*', 'DI&ast;') for cell in line)} |" for line in lines)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []


def link(stems: dict[str, str], number: str, text: str) -> str:
    """A link to a chapter, if it is there."""
    return f"[{text}]({stems[number]}.ipynb)" if number in stems else text


def claims(reports: pathlib.Path, stems: dict[str, str]) -> str:
    """What the papers claim, and how far it was seen here."""
    rows = []
    for row in read_rows(reports / "tables/41_paper_and_here/claims.csv"):
        where = ", ".join(link(stems, number, number) for number in row["notebooks"].split(", "))
        rows.append([row["claim"], f"**{row['verdict']}**", where])
    if not rows:
        return ""
    return f"""(results)=
## What the papers claim, and what was found here

Each claim of the papers was written as questions with a bar, and asked of worlds small enough to know.

{table(["Claim", "Verdict", "Shown in"], rows)}

The evidence for every verdict, and the papers' own tables, are in {link(stems, "41", "chapter 41")}.
"""


def with_interval(row: dict[str, str], name: str) -> str:
    value, low, high = (f"{float(row[name + end]):.3f}" for end in ("", "_low", "_high"))
    return f"{value} <small>[{low}, {high}]</small>"


def miniature(reports: pathlib.Path, stems: dict[str, str], folder: pathlib.Path) -> str:
    """The one-step generators of the miniature, before and after alignment."""
    found = read_rows(reports / "tables/24_miniature_results/results.csv")
    rows = [
        [f"{row['architecture']}, " + (f"**{row['method']}**" if row["method"].startswith("DI") else row["method"])]
        + [with_interval(row, name) for name in COLUMNS]
        for row in found
        if row["method"] in METHODS
    ]
    if not rows:
        return ""
    alt = "Pictures of the same captions by the one-step start, the control, DI++, DI* and the reward alone"
    picture = "../figures/24_miniature_results/gallery.png"
    shown = figure(f'<img src="{picture}" alt="{alt}">', "", folder, alt) if (folder / picture).is_file() else ""
    return f"""## In the miniature

Text to image, small enough for two CPU cores: pictures of 32 × 32 pixels that show a coloured shape, as a caption asks,
and of which a hidden preference likes some better. One-step generators are aligned with a reward learned from that
preference, and judged by the preference itself, the gold score, which training never sees. A control takes as many
steps without the reward.

{table(["Generator", *COLUMNS.values()], rows)}

In brackets 95% intervals over captions and seeds. All of it in {link(stems, "24", "chapter 24")}.

{shown}
"""


def checked(reports: pathlib.Path, stems: dict[str, str]) -> str:
    """What theory says, and how exactly the code does it."""
    rows = []
    for claim, stem, key, bar in CHECKED:
        path = reports / "metrics" / f"{stem}.json"
        values = json.loads(path.read_text()) if path.is_file() else {}
        if key in values:
            found = f"{values[key]:.0e}" if 0 < values[key] < 1e-3 else f"{values[key]:.3g}"
            rows.append([claim, found, bar, link(stems, stem[:2], stem[:2])])
    if not rows:
        return ""
    return f"""## Checked by machine

Relative errors in worlds where the answer is known in closed form. Tests hold these numbers, and every other that the
book publishes a bar for, to their bars.

{table(["Claim", "Found", "Held to", "Chapter"], rows)}
"""


def contents(chapters: list[Chapter], more: list[str], folder: pathlib.Path) -> str:
    """The chapters as cards, and all pages as the menu beside every page."""
    cards, menus = [], []
    for part, group in itertools.groupby(chapters, key=lambda chapter: chapter.part):
        members = list(group)
        cards += [f"### {part}", "", '<ul class="cards">', *(card(chapter, folder) for chapter in members), "</ul>", ""]
        entries = "\n".join(f"{chapter.stem[:2]} {chapter.title} <{chapter.stem}>" for chapter in members)
        menus.append(f"```{{toctree}}\n:hidden:\n:caption: {part}\n\n{entries}\n```")
    menus.append("```{toctree}\n:hidden:\n:caption: Beside the text\n\n" + "\n".join(more) + "\n```")
    return "\n".join(["## The chapters", "", *cards]) + "\n" + "\n\n".join(menus) + "\n"


def page(chapters: list[Chapter], more: list[str], reports: pathlib.Path, folder: pathlib.Path) -> str:
    """`index.md`; `more` names the pages that are no chapters, `folder` is where pages and pictures refer from."""
    leash = "../figures/00_start_here/the_leash.png"
    alt = "Three fields of arrows in the plane: reference, assistant, and their difference beside the reward"
    hero = figure(f'<img src="{leash}" alt="{alt}">', "", folder, LEASH) if (folder / leash).is_file() else ""
    stems = {chapter.stem[:2]: chapter.stem for chapter in chapters}
    start = START.format(begin=link(stems, "00", "chapter 00"))
    parts = [start, hero, claims(reports, stems), miniature(reports, stems, folder), checked(reports, stems)]
    return "\n\n".join([*filter(None, parts), contents(chapters, more, folder)])


def code(package: pathlib.Path) -> str:
    """`code.md`: every file of the library with its first line, and a link to its documentation.

    The documentation stands in no menu, which would carry its hundred entries into every page.
    """
    lines = ["# The code", "", "The library, room by room; every page links into the source.", ""]
    for path in sorted(package.rglob("*.py")):
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        parts = path.relative_to(package.parent).with_suffix("").parts
        room, name = parts[-1] == "__init__", ".".join(part for part in parts if part != "__init__")
        if path.name != "conf.py" and about:
            entry = f'<a href="api/{name.replace(".", "/")}/index.html"><code>{name}</code></a>'
            lines += ["", f"**{entry}** {html.escape(about)}", ""] if room else [f"- {entry} {html.escape(about)}"]
    return "\n".join(lines) + "\n"
