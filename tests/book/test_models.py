"""Folders of models, handed from notebook to notebook."""

import pytest

from dipp_core.book import models
from dipp_core.book.report import Report
from dipp_core.book.saved import SavedRunError


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_RESULTS", str(tmp_path))
    return Report("20_world", tmp_path)


def test_a_folder_is_found_with_its_facts(report):
    folder = models.new(report, "parts", scale="mini", steps=3)
    (folder / "config.json").write_text("{}")
    found, facts = models.find("20_world", "parts", scale="mini")
    assert found == folder
    assert facts == {"scale": "mini", "steps": 3}


def test_a_missing_folder_is_one_line_with_what_to_run(report):
    with pytest.raises(SavedRunError, match=r"parts is missing: run `dvc repro 20_world`"):
        models.find("20_world", "parts", scale="mini")


def test_another_scale_is_refused(report):
    models.new(report, "parts", scale="smoke")
    with pytest.raises(SavedRunError, match="made at scale 'smoke', this notebook runs at 'mini'"):
        models.find("20_world", "parts", scale="mini")


def test_broken_facts_are_one_line(report):
    (models.new(report, "parts", scale="mini") / "facts.json").write_text("{")
    with pytest.raises(SavedRunError, match="cannot be read; remove"):
        models.find("20_world", "parts", scale="mini")
