"""Tables as Markdown and as LaTeX, from frames of text.

A table is a list of blocks, (heading, frame): a block has its own columns, so that what must not be mixed is not.
"""

import math
from collections.abc import Sequence

import pandas as pd

Block = tuple[str, pd.DataFrame]
# in this order nothing is escaped twice: each sign is replaced by itself
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "\N{NO-BREAK SPACE}": "~",
    "é": r"\'e",
    "–": "--",
}
WIDE = 32  # characters; a column with longer cells is set as a paragraph


def escape_latex(text: str) -> str:
    """Text for LaTeX; a sign that is neither ASCII nor known here is refused, since it would vanish or stop a run."""
    if unknown := [sign for sign in text if not sign.isascii() and sign not in LATEX]:
        raise ValueError(f"{unknown[0]!r} in {text!r} has no LaTeX here: add it to paper_formats.LATEX")
    return "".join(LATEX.get(sign, sign) for sign in text)


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


def _columns(frame: pd.DataFrame) -> str:
    """The column specification of a tabular: paragraphs share seven tenths of the width of the text."""
    longest = [max([len(str(name)), *frame[name].astype(str).str.len()]) for name in frame.columns]
    total = sum(math.sqrt(length) for length in longest if length > WIDE)
    return "".join(f"p{{{0.7 * math.sqrt(n) / total:.2f}\\textwidth}}" if n > WIDE else "l" for n in longest)


def latex(title: str, note: str, blocks: Sequence[Block]) -> str:
    """A whole table as LaTeX: one tabular a block, in one table environment; needs the package booktabs."""
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering\\small"]
    lines.append(f"\\caption{{{escape_latex(f'{title}. {note}'.strip())}}}")
    for heading, frame in blocks:
        if heading:
            lines.append(f"\\par\\medskip\\textbf{{{escape_latex(heading)}}}\\par")
        lines += [f"\\begin{{tabular}}{{{_columns(frame)}}}", "\\toprule"]
        lines += [" & ".join(map(escape_latex, map(str, frame.columns))) + r" \\", "\\midrule"]
        lines += [" & ".join(map(escape_latex, map(str, row))) + r" \\" for row in frame.itertuples(index=False)]
        lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, "\\end{table}"]) + "\n"
