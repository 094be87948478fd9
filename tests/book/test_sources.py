"""What a notebook is made of: the cleaned text, and the files of dipp_core that running it reads."""

import json
import subprocess
import sys

import nbformat
import pytest

from dipp_core.book import config, sources


@pytest.fixture
def package(tmp_path):
    """Makes a package `dipp_core` from {file: code}; returns what a piece of code imports from it."""

    def closure(files, code):
        for name, text in ({"__init__.py": ""} | files).items():
            path = tmp_path / "dipp_core" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return [name.removeprefix("dipp_core/") for name in sources.imports(code, tmp_path)]

    return closure


def saved_by_an_editor(path):
    """Run, in another front end, saved: outputs, counters, times, ids, widget state, all that editors add."""
    notebook = nbformat.read(path, as_version=4)
    notebook.nbformat_minor = 5
    notebook.metadata = {
        "kernelspec": {"name": "other", "display_name": "My own", "language": "python"},
        "language_info": {"name": "python", "version": "3.12.1"},
        "widgets": {"state": {}},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"random{number}"
        cell.metadata |= {"collapsed": False, "editable": True, "execution": {"iopub.status.busy": "2024-01-01"}}
        if cell.cell_type == "code":
            cell.execution_count = 10 + number
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="3.14\n")]
    notebook.cells.append(nbformat.v4.new_code_cell(""))
    nbformat.write(notebook, path)


# -------------------------------------------------------------------------------------------------- the cleaned text


@pytest.mark.parametrize("stage", ["01_draw", "02_count"])
def test_saving_with_outputs_does_not_change_the_cleaned_text(small, stage):
    path = sources.notebook_path(stage)
    before, cleaned = path.read_bytes(), sources.cleaned_text(path)
    saved_by_an_editor(path)
    assert path.read_bytes() != before
    assert sources.cleaned_text(path) == cleaned


CHANGES = {
    "a comment": lambda cells: cells[4].update(source=cells[4]["source"].replace("# counts", "# counts all")),
    "prose": lambda cells: cells[0].update(source="# Counting again"),
    "a tag": lambda cells: cells[5].update(metadata={"tags": ["hide"]}),
    "the kind of a cell": lambda cells: cells[5].update(cell_type="markdown"),
    "the order": lambda cells: cells.reverse(),
    "a cell more": lambda cells: cells.append(cells[0]),
    "a cell less": lambda cells: cells.pop(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_reader_changes_changes_the_cleaned_text(small, what):
    path = sources.notebook_path("02_count")
    cleaned, notebook = sources.cleaned_text(path), json.loads(path.read_text())
    CHANGES[what](notebook["cells"])
    path.write_text(json.dumps(notebook))
    assert sources.cleaned_text(path) != cleaned


def test_a_cleaned_notebook_is_a_valid_notebook_and_stays_as_it_is(small):
    path = sources.write_cleaned("01_draw")
    nbformat.validate(nbformat.read(path, as_version=4))
    assert sources.cleaned_text(path) == path.read_text()


def test_a_right_cleaned_copy_is_not_written_again(small):
    path = sources.write_cleaned("01_draw")
    before = path.stat()
    assert sources.write_cleaned("01_draw").stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_cleaned_copies_are_those_of_the_notebooks_and_no_others(small):
    sources.write_all_cleaned()
    (small / "notebooks/02_count.ipynb").unlink()
    with pytest.raises(SystemExit, match=r"02_count\.ipynb: missing, though dvc\.yaml names it"):
        sources.write_all_cleaned()
    (small / "dvc.yaml").write_text("stages: {}")
    sources.write_all_cleaned()
    assert [path.name for path in (small / ".work/sources").iterdir()] == ["01_draw.ipynb"]


def test_notebooks_are_listed_in_reading_order(small):
    (small / "notebooks/scratch.ipynb").write_text("{}")
    assert sources.stages() == ["01_draw", "02_count"]


def test_an_unknown_notebook_names_the_known_ones(small):
    with pytest.raises(SystemExit, match=r"03_none\.ipynb: no such notebook; there are 01_draw, 02_count"):
        sources.read_notebook(sources.notebook_path("03_none"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"cells": []}', '{"cells": [{}]}'])
def test_a_broken_notebook_is_one_line(small, text):
    (small / "notebooks/01_draw.ipynb").write_text(text)
    with pytest.raises(SystemExit, match=r"01_draw\.ipynb: not a notebook"):
        sources.read_notebook(sources.notebook_path("01_draw"))


# ------------------------------------------------------------------------------------------------ the imported files


@pytest.mark.parametrize(
    "code",
    [
        "import dipp_core.a",
        "import dipp_core.a as short",
        "from dipp_core import a",
        "from dipp_core.a import name",
        "def later():\n    from dipp_core.a import name",
    ],
)
def test_every_form_of_import_is_seen(package, code):
    assert package({"a.py": "", "b.py": ""}, code) == ["__init__.py", "a.py"]


def test_imports_are_followed(package):
    files = {"a.py": "from dipp_core import b", "b.py": "import dipp_core.c", "c.py": "", "d.py": ""}
    assert package(files, "import dipp_core.a") == ["__init__.py", "a.py", "b.py", "c.py"]


def test_imports_in_a_circle_end(package):
    files = {"a.py": "from dipp_core import b", "b.py": "from dipp_core import a"}
    assert package(files, "import dipp_core.a") == ["__init__.py", "a.py", "b.py"]


def test_packages_on_the_way_belong_to_it_with_their_own_imports(package):
    files = {"room/__init__.py": "import dipp_core.b", "room/a.py": "", "room/other.py": "", "b.py": ""}
    assert package(files, "import dipp_core.room.a") == ["__init__.py", "b.py", "room/__init__.py", "room/a.py"]


@pytest.mark.parametrize("code", ["text = 'import dipp_core.a'", "# import dipp_core.a", "import os, dipp_core_else"])
def test_text_comments_and_other_packages_are_not_imports(package, code):
    assert package({"a.py": ""}, code) == []


def test_lines_for_ipython_are_left_out():
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import dipp_core\n", "!ls"]},
        {"cell_type": "markdown", "source": "import nothing"},
    ]
    assert sources.code_of({"cells": cells}) == "import dipp_core"


def test_the_closure_of_a_real_import_is_what_python_loads(checkout):
    """Against the interpreter: the files found by reading are the files that importing loads."""
    code = "import dipp_core.book.sections, dipp_core.book.sources"
    loaded = "m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'dipp_core'"
    show = f"; import sys; print(*({loaded}), sep=chr(10))"
    loaded = subprocess.run([sys.executable, "-c", code + show], cwd=checkout, capture_output=True, text=True)
    names = {name.removeprefix(f"{checkout}/") for name in loaded.stdout.splitlines()}
    assert names
    assert names == set(sources.imports(code, checkout))


# ------------------------------------------------------------------------------------------------- what a run rests on


def test_a_fingerprint_names_notebook_and_imports(small):
    assert list(sources.fingerprint("02_count")) == [
        "dipp_core/__init__.py",
        "dipp_core/beta.py",
        "dipp_core/book/__init__.py",
        "dipp_core/book/config.py",
        "dipp_core/files.py",
        "notebooks/02_count.ipynb",
    ]


def changed(before: dict, after: dict) -> list[str]:
    return [name for name in before | after if before.get(name) != after.get(name)]


@pytest.mark.parametrize("name", ["dipp_core/beta.py", "dipp_core/book/config.py"])
def test_an_edit_of_an_imported_file_shows_under_its_name(small, name):
    before = sources.fingerprint("02_count")
    (small / name).write_text((small / name).read_text() + "# edited\n")
    assert changed(before, sources.fingerprint("02_count")) == [name]


def test_an_edit_elsewhere_does_not_show(small):
    before = sources.fingerprint("02_count")
    (small / "dipp_core/alpha.py").write_text("# edited\n")
    (small / "dipp_core/unused.py").write_text("# edited\n")
    assert changed(before, sources.fingerprint("02_count")) == []


def test_saving_a_notebook_does_not_show(small):
    before = sources.fingerprint("02_count")
    saved_by_an_editor(sources.notebook_path("02_count"))
    assert changed(before, sources.fingerprint("02_count")) == []


def declare(small, *names):
    pipeline = json.loads((small / "dvc.yaml").read_text())
    pipeline["stages"]["02_count"]["deps"] += names
    (small / "dvc.yaml").write_text(json.dumps(pipeline))


def test_declared_data_belongs_to_it(small):
    (small / "data").mkdir()
    (small / "data/words.csv").write_text("a\n")
    declare(small, "data/words.csv")
    before = sources.fingerprint("02_count")
    (small / "data/words.csv").write_text("b\n")
    assert changed(before, sources.fingerprint("02_count")) == ["data/words.csv"]


def test_declared_folders_belong_to_it_file_by_file(small):
    declare(small, "dipp_core", ".work/sources")
    before = sources.fingerprint("02_count")
    small.set_cell("01_draw", 1, "# Drawing\n\nOther words.")
    (small / "dipp_core/unused.py").write_text("# edited\n")
    assert changed(before, sources.fingerprint("02_count")) == ["dipp_core/unused.py", "notebooks/01_draw.ipynb"]


def test_missing_declared_data_is_one_line(small):
    declare(small, "data/words.csv")
    with pytest.raises(SystemExit, match=r"data/words\.csv: missing, though dvc\.yaml declares it"):
        sources.fingerprint("02_count")


def test_the_stage_of_a_section_and_its_name(small):
    assert [config.section_name(stage) for stage in sources.stages()] == ["draw", "count"]
