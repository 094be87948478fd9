"""An executed notebook as one HTML page that needs no network and no script: MathML formulas, coloured code.

Figures that the notebook published are linked (`../figures/..`), any other picture is embedded. Times, counters and
progress bars are left out, so the same results give the same page.
"""

import base64
import hashlib
import html
import pathlib
import re

from latex2mathml.converter import convert
from nbconvert.filters.ansi import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


class PageError(ValueError):
    """Something on the page that a browser without network could not show."""


def formula(tex: str, display: str) -> str:
    """One formula as MathML; what the converter or a browser does not know is an error, not a blot on the page."""
    try:
        mathml = convert(tex.strip(), display=display)
    except Exception as error:  # the converter has a dozen kinds of error and no common one
        raise PageError(f"this formula is not valid TeX ({type(error).__name__}): {tex.strip()}") from None
    mathml = mathml.replace("<mo>&#x23DF;", '<mo stretchy="true">&#x23DF;')
    # log, exp and their like are operators, with the space around them that TeX gives
    mathml = re.sub(r"<mi>([a-z]{2,})</mi>", r'<mo form="prefix" lspace="0.17em" rspace="0.17em">\1</mo>', mathml)
    if re.search(r"\\|<mi>&</mi>|linebreak=", re.sub(r"<annotation.*?</annotation>", "", mathml, flags=re.DOTALL)):
        raise PageError(f"this formula cannot be shown without network; write it in simpler TeX: {tex.strip()}")
    return mathml


class Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML and links that hold from `reports/notebooks/`."""

    def inline_math(self, body):
        return formula(body, "inline")

    def block_math(self, body):
        return formula(body, "block")

    def latex_environment(self, name, body):
        return formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def heading(self, text, level, **attrs):
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"<math.*?</math>|<.*?>", "", text, flags=re.DOTALL).lower()).strip(
            "-"
        )
        return f'<h{level} id="{slug}">{text}</h{level}>\n'

    def link(self, text, url, title=None):
        return super().link(text, moved_link(url), title)

    def image(self, text, url, title=None):
        return super().image(text, moved_link(url), title)


def moved_link(url: str) -> str:
    """A link written for `notebooks/`, as it must read in `reports/notebooks/`."""
    if re.fullmatch(r"\d\d_\w+\.ipynb(#.*)?", url):
        return url.replace(".ipynb", ".html")
    if url.startswith("../reports/"):
        return "../" + url.removeprefix("../reports/")
    return "../" + url if url.startswith("../") else url


def markdown(text: str) -> str:
    return MarkdownWithMath(Renderer(escape=False)).render(text)


def _stream(text: str) -> str:
    """Printed text without progress bars (lines that were overwritten in place)."""
    lines = [line for line in text.split("\n") if "\r" not in line and not re.search(r"\d+%\|", line)]
    text = "\n".join(lines).strip("\n")
    return f"<pre class=out>{ansi2html(text)}</pre>" if text else ""


def _picture(data: str, kind: str, alt: str, figures: dict[str, str]) -> str:
    content = base64.b64decode(data)
    published = figures.get(hashlib.sha256(content).hexdigest())
    source = published or f"data:{kind};base64," + base64.b64encode(content).decode()
    return f'<img src="{source}" alt="{html.escape(alt, quote=True)}">'


def _output(output: dict, figures: dict[str, str]) -> str:
    if output["output_type"] == "stream":
        return _stream(output["text"])
    if output["output_type"] == "error":
        return f"<pre class=out>{ansi2html(chr(10).join(output['traceback']))}</pre>"
    data, metadata = output["data"], output.get("metadata", {})
    if kind := next((kind for kind in ("image/png", "image/gif") if kind in data), None):
        alt = metadata.get("alt") or metadata.get(kind, {}).get("alt", "")
        return f"<figure>{_picture(data[kind], kind, alt, figures)}</figure>"
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""
    if "text/html" in data:
        return f"<div class=table>{data['text/html']}</div>"
    if "text/markdown" in data:
        return markdown(data["text/markdown"])
    return f"<pre class=out>{html.escape(data.get('text/plain', ''))}</pre>"


def _cell(cell: dict, figures: dict[str, str]) -> str:
    if cell["cell_type"] == "markdown":
        return f"<section>\n{markdown(cell['source'])}</section>"
    if cell["cell_type"] != "code":
        return ""
    tags = cell.get("metadata", {}).get("tags", [])
    note = "<p class=note>The values of this run, from params.yaml:</p>" if "injected-parameters" in tags else ""
    source = re.sub(r"^# Parameters\n", "", cell["source"])
    code = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()
    outputs = "\n".join(filter(None, (_output(output, figures) for output in cell["outputs"])))
    return f"{note}<pre class=code>{code}</pre>\n{outputs}"


SMOKE = """<p class=warning>Made at scale <b>smoke</b>, which only checks that everything runs. The text describes what
is seen at scale mini; the figures and numbers here do not show it.</p>
"""


def render(notebook: dict, figures_folder: pathlib.Path | None = None, scale: str = "mini") -> str:
    """The page of one executed notebook; `figures_folder` holds the figures that it published."""
    found = sorted(figures_folder.glob("*.[pg][ni][gf]")) if figures_folder and figures_folder.is_dir() else []
    figures = {
        hashlib.sha256(path.read_bytes()).hexdigest(): f"../figures/{path.parent.name}/{path.name}" for path in found
    }
    cells = [cell for cell in notebook["cells"] if "hide" not in cell.get("metadata", {}).get("tags", [])]
    body = (SMOKE if scale == "smoke" else "") + "\n".join(_cell(cell, figures) for cell in cells)
    title = next((m.group(1) for c in cells if (m := re.match(r"# (.+)", c["source"]))), "notebook")
    css = pathlib.Path(__file__).with_name("page.css").read_text()
    colours = HtmlFormatter(style="friendly").get_style_defs("pre")
    return PAGE.format(title=html.escape(re.sub(r"\$", "", title)), css=(css + colours).strip(), body=body)
