"""The map of the book is read from the code."""

import json

import pytest

from dipp_core.book import map


def notebook(*codes: str) -> str:
    cells = [
        {"cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": None} for code in codes
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty checkout with room for code and notebooks."""
    (tmp_path / "dipp_core" / "method").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    return tmp_path


def test_every_line_is_shown_in_a_notebook_with_a_figure():
    for entry in map.entries():
        assert any(where.figure for where in entry.shown), f"line {entry.line} ({entry.function}) is shown nowhere"


def test_a_line_claimed_twice_is_an_error(bare):
    code = 'def one():\n    """x\n\n    Algorithm 1, line 4.\n    """\n'
    (bare / "dipp_core/method/a.py").write_text(code + code.replace("one", "two"))
    with pytest.raises(ValueError, match="line 4 of Algorithm 1 is claimed by one and two"):
        map.claims()


def test_a_function_is_shown_by_the_first_figure_after_its_first_use(bare):
    code = ["import f", 'report.figure(fig, "before", "")', "f(x)", 'report.figure(fig, "after", "")']
    (bare / "notebooks/07_x.ipynb").write_text(notebook(*code))
    assert map.shown_in("07_x", map.cells("07_x"), "f") == map.Shown("07_x", "after")
    assert map.shown_in("07_x", map.cells("07_x"), "unused") is None
