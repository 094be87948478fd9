"""The documentation of `dipp_core`, read from its source: for every file its docstring, what it defines, its code.

The source is parsed, never imported. So the packages of a reward or of text to image need not be there, nothing runs,
and the same source gives the same pages. (Tools such as pdoc and Sphinx import what they document and take docstrings
for Markdown or reStructuredText, where the `*`, `_` and `|` of a formula are markup. Ours are plain text.)
"""

import ast
import html
import pathlib
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOMS = {
    "": "the package",
    "method": "what the papers say",
    "worlds": "where it is tried",
    "rewards": "what is wanted",
    "lab": "how it is run",
}
IMPORT = r"^from dipp_core\.?([\w.]*) import (?:\(([^)]*)\)|([\w, ]+))"


@dataclass(frozen=True)
class Entry:
    """A function, class or method: how it is written, what it says of itself, and the line where it begins."""

    name: str
    kind: str
    signature: str
    doc: str
    line: int
    members: tuple["Entry", ...] = ()


@dataclass(frozen=True)
class Module:
    """A file of the library: `name` as in `method.scores`, empty for the package itself."""

    name: str
    path: str
    doc: str
    entries: tuple[Entry, ...]
    source: str

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        return f"dipp_core.{self.name}" if self.name else "dipp_core"

    @property
    def page(self) -> str:
        return f"{self.name or 'dipp_core'}.html"

    @property
    def summary(self) -> str:
        return first_line(self.doc)


def first_line(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split())


def _head(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    """A definition as it stands in the file, decorators included, up to its body."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = max(node.body[0].lineno - 1, node.lineno)
    return textwrap.dedent("\n".join(lines[first - 1 : last])).rstrip().removesuffix(":")


def _fields(node: ast.ClassDef, lines: list[str]) -> str:
    """The annotated fields of a class, as they stand in the file."""
    spans = [(item.lineno, item.end_lineno) for item in node.body if isinstance(item, ast.AnnAssign)]
    return "\n".join(textwrap.dedent("\n".join(lines[a - 1 : b])) for a, b in spans)


def _entry(node: ast.AST, lines: list[str], prefix: str = "") -> Entry | None:
    """What a public definition says; None for anything else."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return None
    name, doc = prefix + node.name, ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        return Entry(name, "method" if prefix else "function", _head(node, lines), doc, node.lineno)
    fields = _fields(node, lines)
    signature = _head(node, lines) + (":\n" + textwrap.indent(fields, "    ") if fields else "")
    members = tuple(filter(None, (_entry(item, lines, f"{name}.") for item in node.body)))
    return Entry(name, "class", signature, doc, node.lineno, members)


def read(path: pathlib.Path, package: pathlib.Path) -> Module:
    """One file of the package."""
    text, parts = path.read_text(), path.relative_to(package).with_suffix("").parts
    tree, lines = ast.parse(text), text.splitlines()
    entries = tuple(filter(None, (_entry(node, lines) for node in tree.body)))
    name = ".".join(part for part in parts if part != "__init__")
    place = path.relative_to(package.parent).as_posix()
    return Module(name, place, ast.get_docstring(tree) or "", entries, text)


def read_all(package: pathlib.Path) -> list[Module]:
    """All files of the package, room by room; those that only mark a folder as a package are left out."""
    found = [read(path, package) for path in sorted(package.rglob("*.py"))]
    found = [module for module in found if module.entries or module.name in ROOMS]
    order = list(ROOMS)
    return sorted(found, key=lambda module: (order.index(module.room) if module.room in order else 99, module.name))


def index(modules: list[Module]) -> dict[str, str]:
    """Where a name is documented: of modules (`scores`, `method.scores`), and of definitions that are unique."""
    places: dict[str, set[str]] = {}
    for module in modules:
        stem = module.name.rpartition(".")[2]
        for name in {module.name, stem, module.path, module.title} - {""}:
            places.setdefault(name, set()).add(module.page)
        for entry in module.entries:
            place = f"{module.page}#{entry.name}"
            for name in (entry.name, f"{stem}.{entry.name}", f"{module.title}.{entry.name}"):
                places.setdefault(name, set()).add(place)
            for member in entry.members:
                places.setdefault(member.name, set()).add(f"{module.page}#{member.name}")
    return {name: next(iter(found)) for name, found in places.items() if len(found) == 1}


def prose(doc: str, links: Mapping[str, str] | None = None) -> str:
    """A docstring as HTML: paragraphs; what is indented stays as it is; `names` in backticks lead to their place."""

    def marked(match: re.Match) -> str:
        code, stressed = match.groups()
        if stressed:
            return f"<em>{stressed}</em>"
        target = (links or {}).get(html.unescape(code).removesuffix("(...)").removesuffix("(..)"))
        return f'<a href="{target}"><code>{code}</code></a>' if target else f"<code>{code}</code>"

    blocks = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        for indented, lines in _runs(block.split("\n")):
            text = html.escape("\n".join(lines), quote=False)
            if indented:
                blocks.append(f"<pre class=code>{textwrap.dedent(text)}</pre>")
                continue
            text = re.sub(r"`([^`]+)`|(?<![\w*(])\*(\w+)\*(?![\w*])", marked, text)
            if text.startswith("- "):
                items = "".join(f"<li>{item.strip()}</li>" for item in re.split(r"(?m)^- ", text)[1:])
                blocks.append(f"<ul>{items}</ul>")
            else:
                blocks.append(f"<p>{text}</p>")
    return "\n".join(blocks)


def _runs(lines: list[str]) -> list[tuple[bool, list[str]]]:
    """Lines in groups, those that are indented apart; the second line of a list's item belongs to the item."""
    groups: list[tuple[bool, list[str]]] = []
    for line in lines:
        in_list = bool(groups) and groups[-1][1][0].startswith("- ")
        indented = line.startswith("  ") and not in_list
        starts_list = line.startswith("- ") and not in_list
        if groups and groups[-1][0] == indented and not starts_list:
            groups[-1][1].append(line)
        else:
            groups.append((indented, [line]))
    return groups


def coloured(code: str) -> str:
    return plainer(highlight(code, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip())


def plainer(code: str) -> str:
    """Coloured code without the marks of names, signs and spaces, which have no colour: less than half the length."""
    return re.sub(r'<span class="(?:n|p|o|w|nn|fm|vm|si)">([^<]*)</span>', r"\1", code)


def source(module: Module) -> str:
    """The code of a file with a number and a name for every line, and a way back at every documented definition."""
    lines = coloured(module.source.rstrip("\n")).split("\n")
    lead = len(module.source) - len(module.source.lstrip("\n"))  # Pygments drops empty lines at the top
    entries = [*module.entries, *(member for entry in module.entries for member in entry.members)]
    back = {entry.line - lead: entry.name for entry in entries}
    rows = []
    for number, line in enumerate(lines, start=1):
        name = back.get(number)
        link = f' <a class=back href="#{name}" aria-label="documentation of {name}">doc</a>' if name else ""
        rows.append(f'<span class=line id="L{number + lead}">{line}{link}</span>')
    return "\n".join(rows)


def shown_in(chapters: Mapping[str, str]) -> dict[str, list[str]]:
    """For every module the pages that import it; `chapters` maps the name of a page to its HTML."""
    found: dict[str, list[str]] = {}
    for page, body in chapters.items():
        text = html.unescape(re.sub(r"<[^>]+>", "", body))
        names = set()
        for room, listed, line in re.findall(IMPORT, text, re.MULTILINE):
            names |= {room} | {f"{room}.{name}".strip(".") for name in re.findall(r"\w+", listed or line)}
        for name in names:
            found.setdefault(name, []).append(page)
    return {name: sorted(pages) for name, pages in found.items()}
