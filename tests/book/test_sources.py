"""What a notebook is made of: the cleaned text, and the files of dipp_core that running it reads."""

import json
import subprocess
import sys

import nbformat
import pytest

from dipp_core.book import sources
from dipp_core.files import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package `dipp_core` from {file: code}; returns what a piece of code imports from it."""

    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))

    def closure(files, code):
        for name, text in ({"__init__.py": ""} | files).items():
            path = tmp_path / "dipp_core" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return [name.removeprefix("dipp_core/") for name in sources.imports(code)]

    return closure


def test_saving_with_outputs_does_not_change_the_cleaned_text(small, saved_by_an_editor):
    cleaned = sources.cleaned_text("02_count")
    saved_by_an_editor(sources.notebook_path("02_count"))
    assert sources.cleaned_text("02_count") == cleaned


CHANGES = {
    "a comment": lambda cells: cells[4].update(source=cells[4]["source"].replace("# counts", "# counts all")),
    "prose": lambda cells: cells[0].update(source="# Counting again"),
    "a tag": lambda cells: cells[5].update(metadata={"tags": ["hide"]}),
    "the kind of a cell": lambda cells: cells[5].update(cell_type="markdown"),
    "the order": lambda cells: cells.reverse(),
    "a cell less": lambda cells: cells.pop(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_reader_changes_changes_the_cleaned_text(small, what):
    path, cleaned = sources.notebook_path("02_count"), sources.cleaned_text("02_count")
    notebook = json.loads(path.read_text())
    CHANGES[what](notebook["cells"])
    path.write_text(json.dumps(notebook))
    assert sources.cleaned_text("02_count") != cleaned


def test_what_the_pipeline_tracks_is_valid_and_is_not_written_again(small):
    before = [path.stat() for path in sources.write("01_draw")]
    notebook, code = sources.write("01_draw")
    nbformat.validate(nbformat.read(notebook, as_version=4))
    assert [line.split()[1] for line in code.read_text().splitlines()] == [
        "dipp_core/__init__.py",
        "dipp_core/alpha.py",
        "dipp_core/book/__init__.py",
        "dipp_core/book/config.py",
        "dipp_core/book/report.py",
        "dipp_core/book/section_types.py",
        "dipp_core/files.py",
    ]
    assert [(now.st_mtime_ns, now.st_ino) for now in (notebook.stat(), code.stat())] == [
        (old.st_mtime_ns, old.st_ino) for old in before
    ]


def test_an_edit_of_a_used_file_shows_under_its_name_and_of_another_does_not(small, capsys):
    (_, draw), (_, count) = sources.write("01_draw"), sources.write("02_count")
    old = draw.read_text(), count.read_text()
    for name in ("beta", "unused", "book/sections"):  # schemas have no defaults: they change no result
        with open(small / f"dipp_core/{name}.py", "a") as file:
            file.write("EDITED = True\n")
    sources.write_all()
    assert capsys.readouterr().out == "02_count: dipp_core/beta.py changed\n"
    assert (draw.read_text() == old[0], count.read_text() == old[1]) == (True, False)


def test_comments_docstrings_and_layout_are_no_change_of_the_code(small, capsys):
    path, (_, listed) = small / "dipp_core/beta.py", sources.write("02_count")
    before, code = listed.read_text(), path.read_text()
    path.write_text(f'"""Another docstring."""\n\n\n{code.replace("):", "):  # why")}\n\n\nclass A:\n    """Said."""\n')
    assert sources.write("02_count")[1].read_text() != before
    path.write_text(f'"""Yet another docstring."""\n{code}class A:\n    """Said otherwise."""\n')
    known = listed.read_text()
    sources.write("02_count")
    assert listed.read_text() == known
    path.write_text(f"# a comment\n{code}")
    sources.write("02_count")
    assert listed.read_text() == before


def test_what_is_tracked_is_that_of_the_notebooks_and_of_no_others(small):
    sources.write_all()
    (small / "notebooks/02_count.ipynb").unlink()
    with pytest.raises(InputError, match=r"02_count\.ipynb: missing, though dvc\.yaml names it"):
        sources.write_all()
    (small / "dvc.yaml").write_text("stages: {}")
    sources.write_all()
    assert [path.name for path in (small / ".work/sources").iterdir()] == ["01_draw.ipynb"]
    assert [path.name for path in (small / ".work/code").iterdir()] == ["01_draw"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": []}', '{"cells": [{}]}'])
def test_a_broken_notebook_is_one_line(small, text):
    (small / "notebooks/01_draw.ipynb").write_text(text)
    with pytest.raises(InputError, match=r"01_draw\.ipynb: not a notebook"):
        sources.cleaned_text("01_draw")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import dipp_core.a", ["__init__.py", "a.py"]),
        ("from dipp_core import a as short", ["__init__.py", "a.py"]),
        ("def later():\n    from dipp_core.a import name", ["__init__.py", "a.py"]),
        ("import dipp_core.b", ["__init__.py", "a.py", "b.py", "c.py"]),  # followed, and circles end
        ("import dipp_core.room.d", ["__init__.py", "a.py", "room/__init__.py", "room/d.py"]),  # packages on the way
        ("text = 'import dipp_core.a'  # import dipp_core.b\nimport os, dipp_core_else", []),
    ],
)
def test_every_form_of_import_is_seen_and_followed(package, code, found):
    files = {"b.py": "from dipp_core import c", "c.py": "import dipp_core.a, dipp_core.b"}
    assert package(files | {"a.py": "", "room/__init__.py": "import dipp_core.a", "room/d.py": ""}, code) == found


def test_lines_for_ipython_are_left_out():
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import dipp_core\n", "!ls"]},
        {"cell_type": "markdown", "source": "import nothing"},
    ]
    assert sources.code_of({"cells": cells}) == "import dipp_core"


def test_the_closure_of_a_real_import_is_what_python_loads(checkout):
    """Against the interpreter: the files found by reading are the files that importing loads, schemas aside."""
    code = "import dipp_core.book.sources, dipp_core.book.report"
    loaded = "m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'dipp_core'"
    show = f"; import sys; print(*({loaded}), sep=chr(10))"
    loaded = subprocess.run([sys.executable, "-c", code + show], cwd=checkout, capture_output=True, text=True)
    names = {name.removeprefix(f"{checkout}/") for name in loaded.stdout.splitlines()}
    assert names
    schemas = {"dipp_core/book/sections.py", "dipp_core/description.py"}
    assert names - schemas == set(sources.imports(code)) - schemas


def test_strip_removes_outputs_keeps_the_cleaned_text_and_writes_once(small, saved_by_an_editor):
    path, cleaned = sources.notebook_path("02_count"), sources.cleaned_text("02_count")
    saved_by_an_editor(path)
    sources.strip("02_count")
    before = path.stat().st_mtime_ns
    sources.strip("02_count")
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert "3.14" not in path.read_text()
    assert (sources.cleaned_text("02_count"), path.stat().st_mtime_ns) == (cleaned, before)
