"""`import dipp_core; help(dipp_core)` is where a reader begins: it names what is there, and its example runs."""

import doctest
import pathlib
import re
import subprocess
import sys

import dipp_core


def test_the_example_runs_and_prints_what_it_says():
    found = doctest.testmod(dipp_core)
    assert found.attempted >= 15
    assert found.failed == 0


def test_the_rooms_are_the_folders(checkout):
    rooms = re.findall(r"^- `(\w+)`, ", dipp_core.__doc__, re.MULTILINE)
    assert sorted(rooms) == sorted(path.parent.name for path in (checkout / "dipp_core").glob("*/__init__.py"))


def test_every_file_that_the_map_names_is_there(checkout):
    """Names in backticks in the list of rooms are files of that room, or names of such a file."""
    for room, text in re.findall(r"^- `(\w+)`, (.*(?:\n  .*)*)", dipp_core.__doc__, re.MULTILINE):
        files = {path.stem: path.read_text() for path in (checkout / "dipp_core" / room).glob("*.py")}
        for name in re.findall(r"`(\w+)`", text):
            assert name in files or any(f"\ndef {name}(" in code for code in files.values()), f"{room}: {name}"


def test_the_functions_that_it_names_in_full_are_there(checkout):
    for name in re.findall(r"`dipp_core\.([\w.]+)`", dipp_core.__doc__):
        place, _, last = name.rpartition(".")
        code = pathlib.Path(checkout / "dipp_core" / f"{place.replace('.', '/')}.py").read_text()
        assert re.search(rf"^(def|class) {last}\b", code, re.MULTILINE), name


def test_importing_it_imports_nothing_heavy():
    code = "import sys, dipp_core; print([name for name in ('torch', 'numpy', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
