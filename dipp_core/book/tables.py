"""Every table of `data/reported` with our rows under it, the claims, and the figures: as CSV, Markdown and LaTeX.

Kinds of rows are never mixed: what the papers report, what others report of them, the miniature on either network, and
full scale, where "not run here" stands until somebody has run it. In CSV every number is a row of its own with its
source (`results`); in Markdown and LaTeX the kinds stand one under the other, each with its own columns.

    .venv/bin/python -m dipp_core.book.tables       write the tables of README.md and docs/running.md anew
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dipp_core.book import claims, results
from dipp_core.book.claims import (
    COMPARATORS,
    CONTRADICTED,
    CONTROL,
    LAST,
    MET,
    METHODS,
    NETS,
    SUPPORTED,
    Bounds,
    Check,
    all_claims,
    judged,
    read_claims,
)
from dipp_core.book.config import section
from dipp_core.book.report import Report
from dipp_core.book.results import MISSING, Book, Number, in_words, number
from dipp_core.files import InputError, root, write_whole

NOTHING = "\N{EN DASH}"
KINDS = (COMPARATORS, tuple(NETS.values()), tuple(METHODS.values()), ("w = one", "w = sigma2"))  # of a cell of a test
RAW = ("notebooks", "figure")  # columns that hold links
Block = tuple[str, pd.DataFrame]  # a heading and a frame of text: what must not be mixed has blocks of its own
COMMAND = "python -m dipp_core.book.tables"
PAPERS = ("dipp", "distar_v1", "distar_readme")  # the authors' own sources; the others are of other people
NUMBERS = ("reward", "gold", "style", "accuracy", "frechet_data", "diversity")
NAMES = {
    "reference": "reference in many steps",
    "start": "one-step start",
    "diff_instruct": "control: Diff-Instruct continued",
    "dipp": "DI++",
    "sim": "control: SIM continued",
    "distar_in": "DI*",
    "reward_only": "reward alone, no leash",
}
GAINS = {
    "diff_instruct over start": "no reward: Diff-Instruct continued less start",
    "dipp over diff_instruct": "DI++ less its control",
    "sim over start": "no reward: SIM continued less start",
    "distar_in over sim": "DI* less its control",
    "distar_in over diff_instruct": "DI* less Diff-Instruct continued",
    "reward_only over diff_instruct": "reward alone less Diff-Instruct continued",
}
CAPTIONS = {
    "test captions": "table.{net}.{name}.gold",
    "held out": "robust.{net}.held out.{name}.gold",
    "reordered": "robust.{net}.reordered.{name}.gold",
    "unknown words": "robust.{net}.unknown words.{name}.gold",
}
# a reward's name in the metrics of full scale, and in data/reported
FULL_NAMES = {"hpsv2": "hpsv2_0", "hpsv2.0": "hpsv2_0", "hpsv2.1": "hpsv2_1"} | {
    name: name for name in ("image_reward", "aesthetic", "pickscore", "clipscore", "hpsv2_0", "hpsv2_1", "fid")
}
PAIRED = {  # gains that README.md shows, and what it calls them
    GAINS["dipp over diff_instruct"]: "DI++",
    GAINS["distar_in over sim"]: "DI*",
    GAINS["reward_only over diff_instruct"]: "the reward without a divergence",
}
PARTS = {
    "theory": ("00", "06"),
    "the plane": ("10", "14"),
    "the miniature": ("20", "24"),
    "full scale, with a GPU and public weights": ("30", "40"),
}
# LaTeX for what is not a letter or digit of ASCII; what is not here stays as it is
LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "é": r"\'e",
    NOTHING: "--",
}


@dataclass(frozen=True)
class Row:
    """One model of one kind: what it is called, and its numbers by metric, None where there is none."""

    kind: str
    labels: Mapping[str, str]
    cells: Mapping[str, Number | None]
    scale: str = ""


@dataclass(frozen=True)
class Table:
    """A reported table and our rows for it."""

    name: str
    title: str
    note: str
    rows: tuple[Row, ...]


# Rows, by kind


def reported_rows(book: Book, source: str, table: str) -> list[Row]:
    """The rows of one reported table, in its own order; a metric names its prompts where there are several."""
    frame = book.reported.query("source == @source and table == @table")
    several = frame["prompts"].nunique() > 1
    names = ["model", "steps", *(name for name in ("alpha_rew", "alpha_cfg") if (frame[name] != "").any())]
    rows = []
    for labels, group in frame.groupby(names, sort=False):
        cells: dict[str, Number | None] = {}
        for row in group.to_dict("records"):
            metric = f"{row['metric']}, {row['prompts']}" if several else row["metric"]
            cells[metric] = Number(float(row["value"]), source=results.reported_source(row))
        kind = "reported by the papers" if source in PAPERS else "reported by others"
        rows.append(Row(kind, dict(zip(names, labels, strict=True)), cells))
    return rows


def _miniature(book: Book, net: str, model: str, keys: Mapping[str, str]) -> Row:
    cells = {metric: number(book, f"{LAST}:{key}") for metric, key in keys.items()}
    return Row(f"miniature ({NETS[net]})", {"model": model}, cells, book.scales.get(LAST, "unknown"))


def standings(book: Book, names: Sequence[str]) -> list[Row]:
    """The miniature's methods by `NUMBERS`; "reference" stands for all references that were drawn."""
    rows = []
    for net in NETS:
        known = book.metrics.get(LAST, {}).get("table", {}).get(net, {})
        for name in names:
            models = {name: NAMES[name]}
            if name == "reference":
                keys = (key for key in known if key.startswith(name))
                models = {key: f"{NAMES[name]}, guidance {key.partition(' ')[2]}" for key in keys}
            for key, label in models.items():
                rows.append(_miniature(book, net, label, {n: f"table.{net}.{key}.{n}" for n in NUMBERS}))
    return rows


def gains(book: Book) -> list[Row]:
    """What a method of the miniature has more than another, with the strength of the reward that was chosen for it."""
    rows = []
    for net in NETS:
        for pair, label in GAINS.items():
            row = _miniature(book, net, label, {n: f"gains.{net}.{pair}.{n}" for n in NUMBERS})
            strength = number(book, f"23_alignment:chosen_alpha.{net}.{pair.split(' over ')[0]}")
            if strength is not None:
                row = dataclasses.replace(row, cells={"alpha_rew here": strength, **row.cells})
            rows.append(row)
    return rows


def by_captions(book: Book) -> list[Row]:
    """The gold score by kind of caption: what stands here for styles of prompts."""
    rows = []
    for net in NETS:
        for name in ("diff_instruct", "dipp", "sim", "distar_in"):
            keys = {f"gold score, {text}": key.format(net=net, name=name) for text, key in CAPTIONS.items()}
            rows.append(_miniature(book, net, NAMES[name], keys))
    return rows


def full_scale_rows(book: Book) -> list[Row]:
    """What notebooks 30, 31 and 40 measured, if they were run at scale `full`, and with true weights.

    Any mapping in their metrics that holds known rewards by name is a model, called by the path to it. Metrics that say
    `"run": "not run here"`, or `"random_weights": 1`, hold no result.
    """
    rows = []
    for stage in results.FULL:
        content, scale = book.metrics.get(stage, {}), book.scales.get(stage)
        if scale != "full" or content.get("run") == MISSING or content.get("random_weights"):
            continue
        for path, inner in results.leaves(content):
            sources = {FULL_NAMES[key]: f"{stage}:{'.'.join((*path, key))}" for key in inner if key in FULL_NAMES}
            cells = {metric: number(book, source) for metric, source in sources.items()}
            cells = {metric: found for metric, found in cells.items() if found is not None}
            if cells:
                rows.append(Row("full scale", {"model": ", ".join(path) or stage}, cells, scale))
    return rows


def full_or_not(book: Book, metrics: Sequence[str]) -> list[Row]:
    """The rows of full scale that have any of these metrics, or the one row that says that there are none."""
    wanted = [metric.split(",")[0] for metric in metrics]
    rows = [Row(r.kind, r.labels, {m: r.cells.get(m) for m in wanted}, r.scale) for r in full_scale_rows(book)]
    rows = [row for row in rows if any(row.cells.values())]
    return rows or [Row("full scale", {"model": "SD1.5, PixArt-alpha"}, dict.fromkeys(wanted))]


# The tables


def _specified(book: Book) -> Iterator[tuple[str, str, str, str, list[Row]]]:
    """Name, source, table, note and our rows of every table of data/reported."""
    ours = "Below, the miniature's own judges on the miniature's own captions: no scale is shared."
    v0, v1 = "HPSv2.0, not to be compared with HPSv2.1.", "HPSv2.1, not to be compared with HPSv2.0."
    family = ("reference", "start", "diff_instruct", "dipp", "sim", "distar_in", "reward_only")
    yield "dipp_headline", "dipp", "headline", f"{ours} {v0}", standings(book, ("start", "diff_instruct", "dipp"))
    star = standings(book, ("start", "dipp", "sim", "distar_in"))
    yield "distar_headline", "distar_v1", "headline", f"{ours} {v0}", star
    yield "distar_parti", "distar_readme", "table 1", ours, standings(book, family)
    styles = f"Styles of prompts above, kinds of captions below. {v1}"
    yield "distar_hpsv2_1", "distar_readme", "table 2", styles, by_captions(book)
    dose = "One change at a time: above single values, below differences, with their own strengths of the reward."
    yield "distar_ablation", "distar_readme", "table 3", dose, gains(book)
    board = f"{v0} The miniature has no HPSv2: nothing of it can stand here."
    yield "hpsv2_0_leaderboard", "hpsv2_readme", "leaderboard", board, []
    again = f"Re-run by others. {ours} {v1}"
    yield "didr_rerun", "didr_readme", "1024px", again, standings(book, ("start", "diff_instruct", "dipp", "distar_in"))
    flow = (
        "Few-step models on flow matching, by others; HPSv2 there is HPSv2.1. Nothing of the miniature shares a scale."
    )
    yield "rtdmd_sd3", "rtdmd_readme", "SD3-M", flow, []
    yield "rtdmd_flux2", "rtdmd_readme", "FLUX.2", flow, []
    yield "didr_zimage", "didr_readme", "Z-Image", flow, []
    yield "r0_rerun", "r0_v1", "table 1", again, standings(book, ("reference", "dipp", "reward_only"))


def tables(book: Book) -> list[Table]:
    """Every table of data/reported, each with our rows of every kind."""
    found = []
    for name, source, table, note, ours in _specified(book):
        rows = reported_rows(book, source, table)
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.cells))
        prompts = book.reported.query("source == @source and table == @table")["prompts"].unique()
        title = f"{book.origins[source]}: {table}" + (f", {prompts[0]}" if len(prompts) == 1 else "")
        found.append(Table(name, title, note, (*rows, *ours, *full_or_not(book, metrics))))
    return found


def _numbers(found: Number | None, source: str) -> dict:
    """Value, interval and source of a number as cells of a CSV."""
    return dataclasses.asdict(found or Number(math.nan, source=source))


def long(table: Table) -> pd.DataFrame:
    """A table with one number a row, and the source of each."""
    rows = []
    for row in table.rows:
        head = {"kind": row.kind, "scale": row.scale, "model": row.labels["model"]}
        head |= {name: row.labels.get(name, "") for name in ("steps", "alpha_rew", "alpha_cfg")}
        rows += [head | {"metric": metric} | _numbers(found, MISSING) for metric, found in row.cells.items()]
    return pd.DataFrame(rows)


def blocks(table: Table) -> list[Block]:
    """A table as frames of text, one a kind."""
    found = []
    for kind in dict.fromkeys(row.kind for row in table.rows):
        rows = [row for row in table.rows if row.kind == kind]
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.cells))
        told = [{metric: in_words(one) for metric, one in row.cells.items()} for row in rows]
        frame = pd.DataFrame([{**row.labels, **cells} for row, cells in zip(rows, told, strict=True)])
        frame = frame[[*rows[0].labels, *metrics]].rename(columns=results.metric_name)
        scale = f", scale {rows[0].scale}" if rows[0].scale else ""
        found.append((f"{kind}{scale}", frame.fillna(NOTHING).replace("", NOTHING)))
    return found


# Claims and figures


def linked(stages: Sequence[str], base: str | None) -> str:
    """Links to notebooks; base leads from the page to the root of the checkout, "../" from a notebook itself.

    None: their numbers alone.
    """
    if base is None:
        return ", ".join(stage[:2] for stage in stages)
    folder = "" if base == "../" else f"{base}notebooks/"
    return ", ".join(f"[{stage[:2]}]({folder}{stage}.ipynb)" for stage in stages)


def evidence(book: Book, bounds: Bounds) -> pd.DataFrame:
    """One number a row: what the papers report for a claim, and every test of it with its outcome."""
    rows = []
    for claim in all_claims(bounds):
        found, verdict = judged(claim, book)
        head = {"claim": claim.name, "verdict": verdict}
        for label, source in claim.reported:
            one = number(book, source)
            rows.append(head | {"kind": "reported by the papers", "about": label} | _numbers(one, source))
        for check, one, outcome in found:
            row = head | {"kind": "here", "about": check.about, "what": check.what, "outcome": outcome}
            rows.append(row | {"asked": f"{check.rule} {check.bound:g}"} | _numbers(one, check.source))
    columns = ["claim", "verdict", "kind", "about", "what", "asked", "outcome", "value", "low", "high", "source"]
    return pd.DataFrame(rows).reindex(columns=columns)


def told(found: claims.Evidence) -> str:
    """The evidence of one claim in words: each question, its answer, how many of its tests are met, and the values."""
    lines = []
    for about, answer in claims.answers(found).items():
        group = [(one, outcome) for check, one, outcome in found if check.about == about]
        met = sum(outcome == MET for _, outcome in group)
        found_here = sorted((one for one, _ in group if one), key=lambda one: one.value)
        shown = found_here if len(found_here) <= 4 else [found_here[0], found_here[-1]]
        values = (" to " if len(found_here) > 4 else "; ").join(map(in_words, shown)) or MISSING
        lines.append(f"{about}: {answer} ({met} of {len(group)} tests met): {values}")
    return ". ".join(lines)


def claims_table(book: Book, bounds: Bounds, *, base: str | None) -> pd.DataFrame:
    """The table of claims, one a row; base: see `linked`, None for plain numbers of notebooks."""
    rows = []
    for claim in all_claims(bounds):
        found, verdict = judged(claim, book)
        where = linked(claim.stages, base)
        text = told(found) + (f". {claim.note}" if claim.note else "")
        rows.append({"claim": claim.text, "questions and answers": text, "verdict": verdict, "notebooks": where})
    return pd.DataFrame(rows)


def turned(book: Book, bounds: Bounds) -> pd.DataFrame:
    """Every verdict that turns when a bound moves, or when one comparator, network or method is left out or alone."""
    rows = []

    def compare(what: str, moved: Bounds, asked: Callable[[Check], bool] = lambda check: True) -> None:
        for claim, again in zip(all_claims(bounds), all_claims(moved), strict=True):
            before, after = judged(claim, book)[1], judged(again, book, asked)[1]
            if after != before and any(asked(check) for check in claim.checks):
                rows.append({"claim": claim.text, "is": before, "with": what, "becomes": after})

    def without(*names: str) -> Callable[[Check], bool]:
        return lambda check: not set(names) & set(check.cell)

    for name, times in itertools.product(Bounds.__dataclass_fields__, (0, 0.5, 2)):
        compare(f"{name} x {times:g}", dataclasses.replace(bounds, **{name: times * getattr(bounds, name)}))
    groups = {"reference at": COMPARATORS, "": (*NETS.values(), *METHODS.values(), "w = one", "w = sigma2")}
    for words, group in groups.items():
        for one in group:
            others = set(next(kind for kind in KINDS if one in kind)) - {one}
            compare(f"{words} {one} alone".strip(), bounds, without(*others))
            compare(f"{words} {one} left out".strip(), bounds, without(one))
    return pd.DataFrame(rows, columns=["claim", "is", "with", "becomes"])


def figures_table(*, base: str | None) -> pd.DataFrame:
    """Figures and tables of the papers, how far they are known, and what is drawn here instead."""
    rows = []
    frame = pd.read_csv(root() / "data" / "reported" / "figures.csv", dtype=str, keep_default_na=False)
    for row in frame.itertuples():
        there = (root() / "notebooks" / f"{row.stage}.ipynb").is_file()
        figure = row.figure
        if figure and there and base is not None:
            figure = f"[{figure}]({base}reports/figures/{row.stage}/{figure}.png)"
        rows.append(
            {
                "paper": row.paper,
                "there": row.what,
                "how far it is known": row.known,
                "here": row.here,
                "notebooks": linked([row.stage], base if there else None) or NOTHING,
                "figure": figure or NOTHING,
            }
        )
    return pd.DataFrame(rows)


def findings(book: Book, kind: str) -> pd.DataFrame:
    """What was found here beside the claims, one number a row; kind: negatives or beyond."""
    rows = []
    for one in read_claims()[kind]:
        for label, source in one["numbers"]:
            for net, method in itertools.product(
                NETS if "{net}" in source else [""], METHODS if "{method}" in source else [""]
            ):
                place = source.format(net=net, method=method, control=CONTROL.get(method))
                found = number(book, place)
                what = label.format(network=NETS.get(net), method=METHODS.get(method))
                row = {"what": one["text"], "number": what, "notebooks": linked(one["stages"], "../")}
                rows.append(row | {"found": in_words(found)} | _numbers(found, place))
    return pd.DataFrame(rows)


def questions(book: Book, *, base: str | None) -> pd.DataFrame:
    """The papers' open questions: what was executed here, with what result, and what is only written."""
    frame = pd.read_csv(root() / "data" / "reported" / "questions.csv", dtype=str, keep_default_na=False)
    rows = []
    for row in frame.to_dict("records"):
        sources = [source for source in row["sources"].split("; ") if source]
        told = "; ".join(f"{source.partition(':')[2]} {in_words(number(book, source))}" for source in sources)
        where = linked(row["stages"].split("; "), base)
        cells = {"question": row["question"], "executed here": row["executed"], "result": told or NOTHING}
        rows.append(cells | {"only written": row["written"] or NOTHING, "notebooks": where})
    return pd.DataFrame(rows)


# As text


def escape_markdown(text: str) -> str:
    """Text for a cell of a Markdown table."""
    signs = {"|": "&#124;", "<": "&lt;", ">": "&gt;", "*": r"\*", "\n": " "}
    return "".join(signs.get(sign, sign) for sign in text)


def markdown_rows(frame: pd.DataFrame, raw: Sequence[str] = ()) -> str:
    """A frame of text as a Markdown table; columns in `raw` hold Markdown already."""
    heads = [escape_markdown(name) for name in frame.columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for _, row in frame.iterrows():
        cells = [str(cell) if name in raw else escape_markdown(str(cell)) for name, cell in row.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(title: str, note: str, blocks: Sequence[Block], raw: Sequence[str] = ()) -> str:
    """A whole table as Markdown: its title, what to know, and every block under its heading."""
    parts = [f"# {title}", escape_markdown(note)]
    for heading, frame in blocks:
        parts += ([f"**{escape_markdown(heading)}**"] if heading else []) + [markdown_rows(frame, raw)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(title: str, note: str, blocks: Sequence[Block]) -> str:
    """A whole table as LaTeX: one tabular a block; needs the package booktabs.

    Columns with cells of more than 32 characters are paragraphs, which share seven tenths of the width of the text.
    """
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering\\small"]
    lines.append(f"\\caption{{{_latex(f'{title}. {note}'.strip())}}}")
    for heading, frame in blocks:
        lines += [f"\\par\\medskip\\textbf{{{_latex(heading)}}}\\par"] if heading else []
        longest = [max(len(name), *frame[name].str.len()) for name in frame.columns]
        total = sum(math.sqrt(length) for length in longest if length > 32)
        shares = [f"p{{{0.7 * math.sqrt(n) / total:.2f}\\textwidth}}" if n > 32 else "l" for n in longest]
        cells = frame.rename(columns=_latex).map(_latex)
        lines.append(cells.to_latex(index=False, column_format="".join(shares)).rstrip())
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


# Publishing


def publish(report: Report, book: Book, bounds: Bounds) -> list[Table]:
    """Write everything under reports/tables as CSV, Markdown and LaTeX; returns the tables."""
    found, base = tables(book), "../../../"
    for table in found:
        report.table(long(table), table.name)
        _texts(report, table.name, (table.title, table.note), blocks(table), blocks(table))
    report.table(evidence(book, bounds), "evidence")
    for kind in ("negatives", "beyond"):
        report.table(findings(book, kind).drop(columns=["notebooks", "found"]), kind)
    report.table(turned(book, bounds), "turned")
    report.table(questions(book, base=None), "questions")
    report.table(claims_table(book, bounds, base=None), "claims")
    report.table(figures_table(base=None), "figures")
    note = "Every number with its interval and its source is in evidence.csv."
    note += "" if full_scale_rows(book) else f" At full scale: {MISSING}."
    title = ("What the papers claim, and what was found here", note)
    linking, plain = (claims_table(book, bounds, base=leads) for leads in (base, None))
    _texts(report, "claims", title, [("", linking)], [("", plain)])
    title = ("Figures and tables of the papers, and what is drawn here instead", "")
    _texts(report, "figures", title, [("", figures_table(base=base))], [("", figures_table(base=None))])
    return found


def _texts(report: Report, name: str, head: tuple[str, str], linking: list, plain: list) -> None:
    """A table as Markdown, with links, and as LaTeX, without."""
    folder = report.root / "tables" / report.stage
    write_whole(folder / f"{name}.md", markdown(*head, linking, RAW).encode())
    write_whole(folder / f"{name}.tex", latex(*head, plain).encode())


# README.md and docs/running.md


def results_text(book: Book, bounds: Bounds) -> str:
    """What README.md tells of the results: the verdicts, and the paired gains of the miniature."""
    rows = []
    for claim in all_claims(bounds):
        found, verdict = judged(claim, book)
        met = f"{sum(outcome == MET for _, _, outcome in found)} of {len(found)}"
        rows.append(
            {"claim": claim.text, "verdict": verdict, "tests met": met, "notebooks": linked(claim.stages, None)}
        )
    frame = pd.DataFrame(rows).replace({"verdict": {one: f"**{one}**" for one in (SUPPORTED, CONTRADICTED)}})
    paired = [row for row in gains(book) if row.labels["model"] in PAIRED]
    told = [
        {
            "miniature": f"{PAIRED[row.labels['model']]}, {row.kind.removeprefix('miniature (').removesuffix(')')}",
            **{results.metric_name(name): in_words(row.cells[name]) for name in NUMBERS if name != "frechet_data"},
        }
        for row in paired
    ]
    return "\n\n".join(
        [
            markdown_rows(frame, (*RAW, "verdict")),
            f"What the reward added over the control in the miniature, paired by seed and caption, with 95% intervals\n"
            f"(`gains` in [{LAST}.json](reports/metrics/{LAST}.json)):",
            markdown_rows(pd.DataFrame(told)),
        ]
    )


def times(manifests: list[dict]) -> str:
    """What each part of the book took on the machine that made its results."""
    rows = []
    for part, (first, last) in PARTS.items():
        runs = pd.DataFrame([run for run in manifests if first <= run["stage"][:2] <= last])
        if first >= "30" and len(runs):
            runs = runs[runs["scale"] == "full"]
        cells = dict.fromkeys(("scale", "wall time", "CPU time", "most memory", "on"), MISSING)
        if len(runs):
            cells["scale"] = ", ".join(runs["scale"].unique())
            cells["wall time"] = f"{runs['wall_seconds'].sum() / 60:.0f} min"
            cells["CPU time"] = f"{runs['cpu_seconds'].sum() / 60:.0f} min"
            cells["most memory"] = f"{runs['peak_memory_mib'].max() / 1024:.1f} GiB"
            cells["on"] = "; ".join((runs["machine"] + ", " + runs["device"]).unique())
        rows.append({"part": f"{part} ({first} to {last})"} | cells)
    return markdown_rows(pd.DataFrame(rows))


def bounds() -> Bounds:
    """The bounds of params.yaml."""
    p = section("41_paper_and_here")
    return Bounds(p.identity, p.near, p.accuracy, p.share, p.settled)


def replaced(text: str, name: str, made: str) -> str:
    """A page with one of its tables made anew; a lost mark is an error."""
    first, last = f"<!-- {name}: made by `{COMMAND}` -->", f"<!-- /{name} -->"
    if text.count(first) != 1 or text.count(last) != 1:
        raise InputError(f"the page needs the marks {first} and {last}, once each")
    before, rest = text.split(first)
    return f"{before}{first}\n{made}\n{last}{rest.split(last)[1]}"


def main() -> int:
    """Write the tables of README.md and docs/running.md anew."""
    readme, running = root() / "README.md", root() / "docs" / "running.md"
    manifests = [json.loads(path.read_text()) for path in sorted((root() / "reports/manifests").glob("[0-9]*.json"))]
    try:
        made = {
            readme: replaced(readme.read_text(), "results", results_text(results.read(), bounds())),
            running: replaced(running.read_text(), "times", times(manifests)),
        }
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
