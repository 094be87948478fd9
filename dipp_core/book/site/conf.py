"""Sphinx's settings for the site; `site.build` writes the sources and calls it. Nothing is loaded from a network."""

import pathlib
import re

from astroid.astroid_manager import MANAGER
from astroid.manager import AstroidManager
from sphinx.application import Sphinx

from dipp_core.book.site import MATHJAX


class Foreign(set):
    """Packages that the parser of the API leaves closed: all but ours and what named tuples are made of.

    It would read the whole of torch.
    """

    def __contains__(self, name: object) -> bool:
        return not str(name).startswith(("dipp_core", "collections"))


MANAGER.module_denylist = AstroidManager.brain["module_denylist"] = Foreign()
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
SERIF = "Georgia, 'Times New Roman', 'DejaVu Serif', serif"
SANS = "system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

project, html_title, language = "Diff-Instruct++ companion", "Diff-Instruct++ companion", "en"
extensions = ["myst_nb", "autoapi.extension", "sphinx.ext.viewcode", "sphinxcontrib.bibtex", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
bibtex_bibfiles, bibtex_reference_style = [str(ROOT / "data" / "references.bib")], "author_year"
copybutton_exclude = ".linenos, .gp, .go"

autoapi_dirs, autoapi_root = [str(ROOT / "dipp_core")], "api"
autoapi_ignore = [str(HERE / "conf.py")]
autoapi_options = ["members", "undoc-members", "show-module-summary"]
autoapi_add_toctree_entry = toc_object_entries = False
viewcode_follow_imported_members = False  # following them imports torch
suppress_warnings = ["toc.not_included", "ref.python", "autoapi.python_import_resolution", "toc.duplicate_entry"]

html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["book.css"]
html_copy_source = html_show_sphinx = html_show_copyright = html_use_index = html_domain_indices = False
mathjax_path = "mathjax/tex-svg.js"
myst_update_mathjax = False
mathjax4_config = MATHJAX
pygments_style, pygments_dark_style = "friendly", "nord-darker"
html_theme_options = {
    "light_css_variables": {
        "font-stack": SERIF,
        "font-stack--headings": SANS,
        "font-stack--monospace": MONO,
        "color-brand-primary": "#0b5394",
        "color-brand-content": "#0b5394",
        "color-brand-visited": "#0b5394",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8ebcff",
        "color-brand-content": "#8ebcff",
        "color-brand-visited": "#8ebcff",
    },
}


def as_rst(text: str) -> str:
    """A line of plain text for reStructuredText: `names` become links, and what would be markup there is shown."""

    def marked(match: re.Match) -> str:
        code, emphasis, sign = match.groups()
        if code:
            return f":py:obj:`.{code}`\\ " if re.fullmatch(r"[A-Za-z_][\w.]*", code) else f"``{code}``\\ "
        return emphasis or "\\" + sign

    return re.sub(r"`([^`]+)`|(?<![\w*(])(\*\w+\*)(?![\w*])|([*|\\]|_(?!\w))", marked, text)


def plain_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: formulas hold `*` and `|`, and what is indented under a text is shown as it is."""
    text, made, literal, item = "\n".join(lines), [], False, False
    for line in text.split("\n"):
        item = line.startswith("- ") or (item and (line.startswith("  ") or not line))
        if line.startswith("  ") and not item:
            made += [] if literal else ["", "::", ""]
            literal = True
        elif line:
            made += [""] if literal or (line.startswith("- ") and made and not made[-1].startswith("- ")) else []
            literal = False
        made.append(line if literal or line.startswith(">>>") else as_rst(line))
    lines[:] = made


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", plain_docstring)
