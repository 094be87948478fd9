"""The tables of README.md that are made from results: what was found, and what it took.

python -m dipp_core.book.paper_tables       write them anew
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable

import pandas as pd

from dipp_core.book import config, paper_formats, paper_numbers, paper_rows, paper_rule, paper_tables
from dipp_core.book.config import section
from dipp_core.book.paper_numbers import Book, Number
from dipp_core.book.paper_rule import Bounds

METHODS = ("start", "diff_instruct", "dipp", "sim", "distar_in", "reward_only")
HEADLINES = (("dipp", "headline"), ("distar_v1", "headline"))
PARTS = {
    "theory": ("00", "06"),
    "the plane": ("10", "14"),
    "the miniature": ("20", "24"),
    "full scale, with a GPU and public weights": ("30", "40"),
}
COMMAND = "python -m dipp_core.book.paper_tables"


def marks(name: str) -> tuple[str, str]:
    """Where a table that is made by the command begins and ends in README.md."""
    return f"<!-- {name}: made by `{COMMAND}` -->", f"<!-- /{name} -->"


def plus_minus(found: Number | None) -> str:
    """A number with half the width of its interval, "0.763 ± 0.025"."""
    if found is None or found.low is None:
        return paper_rule.MISSING if found is None else paper_numbers.in_words(found)
    n = paper_numbers.digits_of(found)
    return f"{found.value:.{n}f} ± {(found.high - found.low) / 2:.{n}f}"


def used(book: Book) -> list[Number]:
    """Every number of the table of methods, with its source."""
    return [one for row in paper_rows.standings(book, METHODS) for one in row.cells.values() if one is not None]


def methods(book: Book) -> str:
    """The miniature's methods, one table a network."""
    parts = []
    for net, name in paper_tables.paper_claims.NETS.items():
        rows = [row for row in paper_rows.standings(book, METHODS) if row.kind == f"miniature ({name})"]
        frame = pd.DataFrame(
            {"method": row.labels["model"]}
            | {paper_numbers.metric_name(key): plus_minus(one) for key, one in row.cells.items()}
            for row in rows
        )
        parts.append(f"*Miniature, {name}* (`table.{net}`, scale {rows[0].scale}):")
        parts.append(paper_formats.markdown_rows(frame))
    return "\n\n".join(parts)


def headlines(book: Book) -> str:
    """What the papers report for PixArt-alpha."""
    rows = [row for place in HEADLINES for row in paper_rows.reported_rows(book, *place)]
    table = paper_tables.Table("headlines", "", "", tuple(rows))
    return paper_formats.markdown_rows(paper_tables.blocks(table)[0][1])


def results(book: Book, bounds: Bounds) -> str:
    """All that README.md tells of the results."""
    claims = paper_tables.claims(book, bounds, base="", short=True)
    claims = claims[["claim", "verdict", "evidence here (met of asked)", "notebooks"]]
    metrics = f"reports/metrics/{paper_tables.paper_claims.LAST}.json"
    return "\n\n".join(
        [
            paper_formats.markdown_rows(claims, paper_tables.RAW),
            f"Means over seeds ± half the width of the 95% interval, on captions that alignment did not see, from\n"
            f"[{metrics}]({metrics}):",
            methods(book),
            "*Reported by the papers*, on other prompts, other judges and other scales, for PixArt-alpha:",
            headlines(book),
        ]
    )


def manifests() -> list[dict]:
    """The manifest of every stage that was run."""
    folder = config.root() / "reports" / "manifests"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]


def times(found: list[dict]) -> str:
    """What each part of the book took on the machine that made its results."""
    rows = []
    for part, (first, last) in PARTS.items():
        runs = [run for run in found if first <= run["stage"][:2] <= last]
        runs = [run for run in runs if first < "30" or run["scale"] == "full"]
        row = {"part": f"{part} ({first} to {last})"}
        if not runs:
            rows.append(
                row | dict.fromkeys(("scale", "wall time", "CPU time", "most memory", "on"), paper_rule.MISSING)
            )
            continue
        minutes = {key: sum(run[key] for run in runs) / 60 for key in ("wall_seconds", "cpu_seconds")}
        machines = dict.fromkeys(f"{run['machine']}, {run['device']}" for run in runs)
        rows.append(
            row
            | {"scale": ", ".join(dict.fromkeys(run["scale"] for run in runs))}
            | {"wall time": f"{minutes['wall_seconds']:.0f} min", "CPU time": f"{minutes['cpu_seconds']:.0f} min"}
            | {
                "most memory": f"{max(run['peak_memory_mib'] for run in runs) / 1024:.1f} GiB",
                "on": "; ".join(machines),
            }
        )
    return paper_formats.markdown_rows(pd.DataFrame(rows))


def bounds() -> Bounds:
    """The bounds of params.yaml."""
    p = section("41_paper_and_here")
    return Bounds(**{field.name: getattr(p, field.name) for field in dataclasses.fields(Bounds)})


def replaced(text: str, name: str, make: Callable[[], str]) -> str:
    """README.md with one of its tables made anew; a lost mark is an error."""
    first, last = marks(name)
    if text.count(first) != 1 or text.count(last) != 1:
        raise paper_numbers.BookError(f"README.md needs the marks {first} and {last}, once each")
    before, rest = text.split(first)
    return f"{before}{first}\n{make()}\n{last}{rest.split(last)[1]}"


def main() -> int:
    """Write all tables of README.md anew."""
    readme: pathlib.Path = config.root() / "README.md"
    try:
        book, text = paper_numbers.read(), readme.read_text()
        text = replaced(text, "results", lambda: results(book, bounds()))
        readme.write_text(replaced(text, "times", lambda: times(manifests())))
    except (paper_numbers.BookError, config.ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
