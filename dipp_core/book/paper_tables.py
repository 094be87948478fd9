"""Every table of `data/reported` with our rows under it, the claims, and the figures: as CSV, Markdown and LaTeX.

Kinds of rows are never mixed: what the papers report, what others report of them, the miniature on either network, and
full scale, where "not run here" stands until somebody has run it. In CSV every number is a row of its own with its
source (`paper_numbers`); in Markdown and LaTeX the kinds stand one under the other, each with its own columns.

    python -m dipp_core.book.paper_tables       write the tables of results and times in README.md anew
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from dipp_core.book import config, paper_claims, paper_formats, paper_numbers, paper_rule
from dipp_core.book.paper_numbers import Book, in_words
from dipp_core.book.paper_rows import (
    BEYOND,
    Row,
    by_captions,
    full_or_not,
    full_scale_rows,
    gains,
    reported_rows,
    standings,
)
from dipp_core.book.report import Report
from dipp_core.files import write_whole

NOT_RUN, NOTHING = paper_rule.MISSING, "\N{EN DASH}"
RAW = ("notebooks", "figure")  # columns that hold links


@dataclass(frozen=True)
class Table:
    """A reported table and our rows for it."""

    name: str
    title: str
    note: str
    rows: tuple[Row, ...]


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
    yield "r0_rerun", "r0_v1", "table 1", again, standings(book, ("reference", "dipp", "reward_only"))


def tables(book: Book) -> list[Table]:
    """Every table of data/reported, each with our rows of every kind."""
    found = []
    for name, source, table, note, ours in _specified(book):
        rows = reported_rows(book, source, table)
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.cells))
        prompts = book.reported[(book.reported["source"] == source) & (book.reported["table"] == table)]["prompts"]
        title = f"{book.origins[source]}: {table}"
        title += f", {prompts.iloc[0]}" if prompts.nunique() == 1 else ""
        found.append(Table(name, title, note, (*rows, *ours, *full_or_not(book, metrics))))
    return found


def long(table: Table) -> pd.DataFrame:
    """A table with one number a row, and the source of each."""
    rows = []
    for row in table.rows:
        for metric, found in row.cells.items():
            numbers = {"value": None, "low": None, "high": None, "source": NOT_RUN}
            if found is not None:
                numbers = {"value": found.value, "low": found.low, "high": found.high, "source": found.source}
            head = {"kind": row.kind, "scale": row.scale, "model": row.labels["model"]}
            labels = {name: row.labels.get(name, "") for name in ("steps", "alpha_rew", "alpha_cfg")}
            rows.append(head | labels | {"metric": metric} | numbers)
    return pd.DataFrame(rows)


def blocks(table: Table) -> list[paper_formats.Block]:
    """A table as frames of text, one a kind."""
    found = []
    for kind in dict.fromkeys(row.kind for row in table.rows):
        rows = [row for row in table.rows if row.kind == kind]
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.cells))
        frame = pd.DataFrame([{**row.labels} | {_heading(m): _cell(row, m) for m in metrics} for row in rows])
        scale = "" if not rows[0].scale else f", scale {rows[0].scale}"
        found.append((f"{kind}{scale}", frame.fillna(NOTHING).replace("", NOTHING)))
    return found


def _cell(row: Row, metric: str) -> str:
    if metric not in row.cells:
        return NOTHING
    return NOT_RUN if row.cells[metric] is None else in_words(row.cells[metric])


def _heading(metric: str) -> str:
    name, _, rest = metric.partition(", ")
    return paper_numbers.metric_name(name) + (f", {rest}" if rest else "")


# --------------------------------------------------------------------------------------------------- claims and figures


def linked(stages: Sequence[str], base: str) -> str:
    """Links to notebooks; base leads from the page to the root of the checkout, "../" from a notebook itself."""
    folder = "" if base == "../" else f"{base}notebooks/"
    return ", ".join(f"[{stage[:2]}]({folder}{stage}.ipynb)" for stage in stages)


def evidence(book: Book, bounds: paper_rule.Bounds) -> pd.DataFrame:
    """One number a row: what the papers report for a claim, and every check of it with its outcome."""
    rows = []
    for claim in paper_claims.claims(book, bounds):
        found, verdict = paper_rule.judged(claim, book)
        head = {"claim": claim.name, "verdict": verdict}
        for label, source in claim.reported:
            one = paper_numbers.number(book, source)
            rows.append(head | {"kind": "reported by the papers", "about": label} | _row(one, source))
        for check, one, outcome in found:
            asked = f"{check.rule} {check.bound:g}" + (f", by more than {check.slack:g}" if check.slack else "")
            row = head | {"kind": "here", "about": check.about, "what": check.what, "asked": asked, "outcome": outcome}
            rows.append(row | _row(one, check.source))
    columns = ["claim", "verdict", "kind", "about", "what", "asked", "outcome", "value", "low", "high", "source"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _row(found: paper_numbers.Number | None, source: str) -> dict:
    if found is None:
        return {"value": None, "low": None, "high": None, "source": source}
    return {"value": found.value, "low": found.low, "high": found.high, "source": source}


def told(found: list, *, short: bool) -> str:
    """The evidence of one claim in words: what was asked, the values (`short`: their range), and how many met it."""
    lines = []
    for about in dict.fromkeys(check.about for check, _, _ in found):
        group = [(one, outcome) for check, one, outcome in found if check.about == about]
        values = sorted((one for one, _ in group if one is not None), key=lambda one: one.value)
        words = [in_words(dataclasses.replace(one, low=None, high=None)) for one in values]
        if short:
            words = list(dict.fromkeys([*words[:1], *words[-1:]]))
        text = " to ".join(words) if short else ", ".join(words)
        met = sum(outcome == paper_rule.MET for _, outcome in group)
        lines.append(f"{about}: {text or NOT_RUN} ({met} of {len(group)})")
    return "; ".join(lines)


def claims(book: Book, bounds: paper_rule.Bounds, *, base: str | None, short: bool = False) -> pd.DataFrame:
    """The table of claims, one a row; base: see `linked`, None for plain numbers of notebooks."""
    rows = []
    for claim in paper_claims.claims(book, bounds):
        found, verdict = paper_rule.judged(claim, book)
        where = ", ".join(stage[:2] for stage in claim.stages) if base is None else linked(claim.stages, base)
        text = told(found, short=short) + (f". {claim.note}" if claim.note and not short else "")
        rows.append({"claim": claim.text, "evidence here (met of asked)": text, "verdict": verdict, "notebooks": where})
    return pd.DataFrame(rows)


def figures(*, base: str | None) -> pd.DataFrame:
    """Figures and tables of the papers, how far they are known, and what is drawn here instead."""
    root, rows = config.root(), []
    frame = pd.read_csv(root / "data" / "reported" / "figures.csv", dtype=str, keep_default_na=False)
    for row in frame.to_dict("records"):
        stage, name = row["stage"], f"reports/figures/{row['stage']}/{row['figure']}.png"
        there = base is not None and (root / "notebooks" / f"{stage}.ipynb").is_file()
        drawn = there and row["figure"]
        rows.append(
            {"paper": row["paper"], "there": row["what"], "how far it is known": row["known"], "here": row["here"]}
            | {"notebooks": linked([stage], base) if there else stage[:2] or NOTHING}
            | {"figure": f"[{row['figure']}]({base}{name})" if drawn else row["figure"] or NOTHING}
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------------- publishing


def publish(report: Report, book: Book, bounds: paper_rule.Bounds) -> list[Table]:
    """Write everything under reports/tables as CSV, Markdown and LaTeX; returns the tables."""
    found, base = tables(book), "../../../"
    for table in found:
        report.table(long(table), table.name)
        _texts(report, table.name, (table.title, table.note), blocks(table), blocks(table))
    report.table(evidence(book, bounds), "evidence")
    report.table(beyond(book).drop(columns=["notebooks", "found"]), "beyond")
    report.table(claims(book, bounds, base=None), "claims")
    report.table(figures(base=None), "figures")
    note = "Every number with its interval and its source is in evidence.csv."
    note += "" if full_scale_rows(book) else f" At full scale: {NOT_RUN}."
    title = ("What the papers claim, and what was found here", note)
    _texts(report, "claims", title, [("", claims(book, bounds, base=base))], [("", claims(book, bounds, base=None))])
    title = ("Figures and tables of the papers, and what is drawn here instead", "")
    _texts(report, "figures", title, [("", figures(base=base))], [("", figures(base=None))])
    return found


def beyond(book: Book) -> pd.DataFrame:
    """What was found here and is no claim of the papers, one number a row."""
    rows = []
    for text, numbers, stages in BEYOND:
        for label, source in numbers:
            found = paper_numbers.number(book, source)
            words = NOT_RUN if found is None else in_words(found)
            where = {"notebooks": linked(stages, "../"), "found": words}
            rows.append({"what": text, "number": label} | where | _row(found, source))
    return pd.DataFrame(rows)


def _texts(report: Report, name: str, head: tuple[str, str], linking: list, plain: list) -> None:
    """A table as Markdown, with links, and as LaTeX, without."""
    folder = report.root / "tables" / report.stage
    write_whole(folder / f"{name}.md", paper_formats.markdown(*head, linking, RAW).encode())
    write_whole(folder / f"{name}.tex", paper_formats.latex(*head, plain).encode())


if __name__ == "__main__":
    from dipp_core.book import paper_readme

    sys.exit(paper_readme.main())
