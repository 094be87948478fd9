"""The map of the book: line of Algorithm 1 -> function -> notebook -> figure, read from the code itself.

A function claims its lines in its docstring; a notebook shows a function by using it, and the figure is the first one
that the notebook publishes from that cell on. Nothing here is typed by hand, so the map cannot go stale.

    .venv/bin/python -m dipp_core.book.map       rewrite the map in README.md
"""

import ast
import dataclasses
import html
import pathlib
import re

from dipp_core.book import config, sources

MARKS = ("<!-- map: made by `python -m dipp_core.book.map` -->", "<!-- /map -->")


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


def _uses(code: str) -> set[str]:
    """Names that a cell calls or refers to, imports aside."""
    nodes = [node for node in ast.walk(ast.parse(code)) if not isinstance(node, ast.Import | ast.ImportFrom)]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def _figures(code: str) -> list[str]:
    """Names of the figures that a cell publishes: `report.figure(fig, "name", ..)`."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = [c.args[1] for c in calls if getattr(c.func, "attr", "") == "figure" and len(c.args) > 1]
    return [str(name.value) for name in names if isinstance(name, ast.Constant)]


def shown_in(stage: str, function: str) -> Shown | None:
    notebook = sources.read_notebook(sources.notebook_path(stage))
    cells = [sources.code_of({"cells": [cell]}) for cell in notebook["cells"]]
    using = [number for number, code in enumerate(cells) if function in _uses(code)]
    if not using:
        return None
    figures = [name for code in cells[using[0] :] for name in _figures(code)]
    return Shown(stage, figures[0] if figures else None)


def entries() -> list[Entry]:
    """The whole map, in the order of Algorithm 1."""
    from dipp_core.method.algorithm import ALGORITHM_1

    claimed = claims()
    if set(claimed) != set(ALGORITHM_1):
        raise ValueError(
            f"claimed but not listed, or listed but not claimed: {sorted(set(claimed) ^ set(ALGORITHM_1))}"
        )
    found = []
    for line, text in ALGORITHM_1.items():
        function, path = claimed[line]
        shown = (shown_in(stage, function) for stage in sources.stages())
        found.append(Entry(line, text, function, path, tuple(filter(None, shown))))
    return found


def markdown(base: str) -> str:
    """The map as a Markdown table; `base` leads from the page to the root of the checkout ('' or '../')."""
    rows = ["| line | Algorithm 1 | function | shown in |", "|---|---|---|---|"]
    for entry in entries():
        shown = []
        for where in entry.shown:
            figure = f" ([figure]({base}reports/figures/{where.stage}/{where.figure}.png))" if where.figure else ""
            link = f"{where.stage}.ipynb" if base == "../" else f"{base}notebooks/{where.stage}.ipynb"
            shown.append(f"[{where.stage[:2]}]({link}){figure}")
        text = html.escape(entry.text.strip(), quote=False).replace("|", "&#124;")
        rows.append(
            f"| {entry.line} | <code>{text}</code> | [`{entry.function}`]({base}{entry.path}) | {', '.join(shown)} |"
        )
    return "\n".join(rows)


def readme_with_map(text: str) -> str:
    """README.md with its map made anew."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{markdown('')}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    readme: pathlib.Path = config.root() / "README.md"
    readme.write_text(readme_with_map(readme.read_text()))
