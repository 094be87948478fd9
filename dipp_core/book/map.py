"""The map of the book: line of Algorithm 1 -> function -> notebook -> figure, read from the code itself.

A function claims its lines in its docstring; a notebook shows a function by using it, and the figure is the first one
that the notebook publishes from that cell on. Nothing here is typed by hand, so the map cannot go stale.
"""

import ast
import dataclasses
import html
import re

from dipp_core.book import config, sources


@dataclasses.dataclass(frozen=True)
class Shown:
    """Where a function is shown: the notebook, and the first figure from there on (None where it draws none)."""

    stage: str
    figure: str | None


@dataclasses.dataclass(frozen=True)
class Entry:
    line: str
    text: str
    function: str
    path: str
    shown: tuple[Shown, ...]


def claims() -> dict[str, tuple[str, str]]:
    """Line of Algorithm 1 -> (function, file) from the docstrings of `dipp_core/method`; a second claim is an error."""
    found: dict[str, tuple[str, str]] = {}
    root = config.root()
    for path in sorted((root / "dipp_core" / "method").glob("*.py")):
        for owner in ast.walk(ast.parse(path.read_text())):
            if not isinstance(owner, ast.FunctionDef | ast.ClassDef):
                continue
            for lines in re.findall(r"^\s*Algorithm 1, lines? ([\w, ]+)\.$", ast.get_docstring(owner) or "", re.M):
                for line in re.split(r",\s*", lines):
                    if line in found:
                        raise ValueError(f"line {line} of Algorithm 1 is claimed by {found[line][0]} and {owner.name}")
                    found[line] = (owner.name, path.relative_to(root).as_posix())
    return found


def cells(stage: str) -> list[tuple[set[str], list[str]]]:
    """Of every cell of a notebook: the names that it uses, imports aside, and the figures that it publishes."""
    found = []
    for cell in sources.read_notebook(sources.notebook_path(stage))["cells"]:
        names, figures = set(), []
        for node in ast.walk(ast.parse(sources.code_of({"cells": [cell]}))):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif (
                isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "figure"
            ):  # report.figure(fig, "name", ..)
                figures += [str(name.value) for name in node.args[1:2] if isinstance(name, ast.Constant)]
        found.append((names, figures))
    return found


def shown_in(stage: str, cells: list[tuple[set[str], list[str]]], function: str) -> Shown | None:
    using = next((number for number, (names, _) in enumerate(cells) if function in names), None)
    if using is None:
        return None
    figures = (name for _, names in cells[using:] for name in names)
    return Shown(stage, next(figures, None))


def entries() -> list[Entry]:
    """The whole map, in the order of Algorithm 1."""
    from dipp_core.method.algorithm import ALGORITHM_1

    claimed, notebooks = claims(), {stage: cells(stage) for stage in sources.stages()}
    if wrong := sorted(set(claimed) ^ set(ALGORITHM_1)):
        raise ValueError(f"claimed but not listed, or listed but not claimed: {wrong}")
    found = []
    for line, text in ALGORITHM_1.items():
        function, path = claimed[line]
        shown = (shown_in(stage, cells, function) for stage, cells in notebooks.items())
        found.append(Entry(line, text, function, path, tuple(filter(None, shown))))
    return found


def markdown() -> str:
    """The map as a Markdown table, for a page in `notebooks/`."""
    rows = ["| line | Algorithm 1 | function | shown in |", "|---|---|---|---|"]
    for entry in entries():
        shown = []
        for where in entry.shown:
            figure = f" ([figure](../reports/figures/{where.stage}/{where.figure}.png))" if where.figure else ""
            shown.append(f"[{where.stage[:2]}]({where.stage}.ipynb){figure}")
        text = html.escape(entry.text.strip(), quote=False).replace("|", "&#124;")
        rows.append(
            f"| {entry.line} | <code>{text}</code> | [`{entry.function}`](../{entry.path}) | {', '.join(shown)} |"
        )
    return "\n".join(rows)
