"""The library's documentation from its source: what is shown, how docstrings read, and the way to the code and back."""

import pathlib
import textwrap

import pytest

from dipp_core.book import api

CODE = '''\
"""A file.

More of it, with `Law` and `law.draw`, and *stress*:

    python -m it  # a command

- one `thing`
  that goes on
- two, x < y
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """A law."""

    mean: float = 0.0  # the middle
    spread: float = 1.0

    @property
    def width(self) -> float:
        """How wide."""
        return 2 * self.spread

    def _hidden(self):
        pass


def draw(
    law: Law,
    n: int = 3,
) -> list[float]:
    """n draws of `Law`, see `nothing`."""
    return [law.mean] * n


def _private():
    pass
'''


@pytest.fixture
def module(tmp_path):
    (tmp_path / "lib" / "worlds").mkdir(parents=True)
    (tmp_path / "lib" / "worlds" / "law.py").write_text(CODE)
    (tmp_path / "lib" / "worlds" / "__init__.py").write_text('"""Worlds."""\n')
    (found,) = [made for made in api.read_all(tmp_path / "lib") if made.name == "worlds.law"]
    return found


def test_a_file_is_read_without_being_run(tmp_path):
    (tmp_path / "lib").mkdir()
    path = tmp_path / "lib" / "bad.py"
    path.write_text("import nothing_of_this_name\n\n\ndef f():\n    raise SystemExit\n\n\nf()\n")
    assert [entry.name for entry in api.read(path, tmp_path / "lib").entries] == ["f"]


def test_what_is_public_is_shown_in_order_and_nothing_else(module):
    assert [(entry.kind, entry.name) for entry in module.entries] == [("class", "Law"), ("function", "draw")]
    assert [entry.name for entry in module.entries[0].members] == ["Law.width"]


def test_a_definition_is_shown_as_it_is_written(module):
    law, draw = module.entries
    expected = "@dataclass(frozen=True)\nclass Law:\n    mean: float = 0.0  # the middle\n    spread: float = 1.0"
    assert law.signature.replace("  # the middle", "") == expected.replace("  # the middle", "")
    assert law.members[0].signature == "@property\ndef width(self) -> float"
    assert draw.signature == "def draw(\n    law: Law,\n    n: int = 3,\n) -> list[float]"


def test_prose_keeps_what_is_indented_and_makes_lists(module):
    html = api.prose(module.doc)
    assert "<em>stress</em>" in html
    assert "<pre class=code>python -m it  # a command</pre>" in html
    assert "<ul><li>one <code>thing</code>\n  that goes on</li><li>two, x &lt; y</li></ul>" in html


@pytest.mark.parametrize("text", ["a * b * c", "(*t, sample) -> (*t)", "**options", "x_0 and x_t"])
def test_formulas_are_not_taken_for_markup(text):
    assert api.prose(text) == f"<p>{text}</p>".replace("->", "-&gt;")


def test_names_lead_to_their_place_where_there_is_one(module):
    links = api.index([module])
    assert links["Law"] == links["law.Law"] == "worlds.law.html#Law"
    assert '<a href="worlds.law.html#Law"><code>Law</code></a>, see <code>nothing</code>' in api.prose(
        module.entries[1].doc, links
    )


def test_a_name_that_is_two_things_leads_nowhere(module, tmp_path):
    other = api.Module("worlds.other", "lib/worlds/other.py", "", module.entries, "")
    assert "Law" not in api.index([module, other])


def test_every_line_of_the_source_has_its_number_and_definitions_a_way_back(module):
    lines = api.source(module).split("\n")
    assert len(lines) == len(CODE.splitlines())
    assert all(line.startswith(f'<span class=line id="L{n}">') for n, line in enumerate(lines, start=1))
    back = {n for n, line in enumerate(lines, start=1) if "class=back" in line}
    assert back == {entry.line for entry in (*module.entries, *module.entries[0].members)}
    assert CODE.splitlines()[module.entries[1].line - 1].startswith("def draw(")


def test_colours_are_kept_for_words_that_have_one():
    assert api.coloured("x = 'a'") == "x = <span class=\"s1\">'a'</span>"


def test_chapters_that_import_a_file_are_named():
    body = textwrap.dedent("""\
        <pre><span class="kn">from</span> dipp_core.method <span class="kn">import</span> algorithm, schedule
        <span class="kn">from</span> dipp_core.book.report <span class="kn">import</span> open_report</pre>""")
    shown = api.shown_in({"02_b": body, "01_a": body, "03_c": "prose: from dipp_core.method import scores"})
    assert shown["method.algorithm"] == ["01_a", "02_b"]
    assert shown["book.report"] == ["01_a", "02_b"]
    assert "method.scores" not in shown


def test_the_library_itself_is_documented(checkout):
    modules = {module.name: module for module in api.read_all(pathlib.Path(checkout / "dipp_core"))}
    assert [modules[room].room for room in ("method", "worlds", "rewards", "book")]
    undocumented = [
        f"{name}.{entry.name}"
        for name, module in modules.items()
        for entry in module.entries
        if name.startswith("method.") and not entry.doc and entry.kind == "function"
    ]
    assert undocumented == []
