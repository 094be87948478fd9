"""Every number of the results tables stands where its source says: in a metrics file, or in data/reported."""

import csv
import json
import math
import subprocess

import pandas as pd
import pytest

from dipp_core.book import results, tables
from dipp_core.files import InputError

STAGE = "41_paper_and_here"


@pytest.fixture(scope="module")
def book():
    return results.read()


@pytest.fixture(scope="module")
def folder(checkout):
    found = checkout / "reports" / "tables" / STAGE
    assert found.is_dir(), f"run `make repro STAGE={STAGE}`"
    return found


def find(checkout, source):
    """The number that a source names, read by this test's own few lines; with its interval where there is one."""
    for word in (" less ", " as a share of "):
        if word in source:
            a, b = (find(checkout, part) for part in source.split(word))
            if word != " less ":
                return (a[0] / b[0], None, None)
            if a[1] is None or b[1] is None:
                return (a[0] - b[0], None, None)
            value = a[0] - b[0]
            return (value, value - math.hypot(a[0] - a[1], b[2] - b[0]), value + math.hypot(a[2] - a[0], b[0] - b[1]))
    place, key = source.split(":", 1)
    if place == "reported":
        names = ("source", "table", "model", "alpha_rew", "alpha_cfg", "metric")
        wanted = dict(zip(names, key.split(" / "), strict=True))
        with open(checkout / "data/reported/reported.csv", newline="") as file:
            (row,) = [row for row in csv.DictReader(file) if all(row[name] == wanted[name] for name in names)]
        return (float(row["value"]), None, None)
    value = descend(json.loads((checkout / f"reports/metrics/{place}.json").read_text()), key.split("."))
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        if "se" in value:
            return (value["mean"], value["mean"] - 2 * value["se"], value["mean"] + 2 * value["se"])
        return (value["value"], value["low"], value["high"])
    return (value, None, None)


def descend(value, parts):
    if not parts:
        return value
    for n in range(1, len(parts) + 1):
        if ".".join(parts[:n]) in value:
            return descend(value[".".join(parts[:n])], parts[n:])
    raise KeyError(parts)


def numeric_columns(frame):
    return [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any()]


def test_every_number_of_the_published_tables_stands_where_its_source_says(checkout, folder):
    count = 0
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path, dtype={"steps": str, "alpha_rew": str, "alpha_cfg": str})
        if "source" not in frame:
            assert numeric_columns(frame) == [], f"{path.name} has numbers without a source"
            continue
        assert set(numeric_columns(frame)) <= {"value", "low", "high"}, path.name
        for row in frame[frame["value"].notna()].to_dict("records"):
            found = find(checkout, row["source"])
            for name, value in zip(("value", "low", "high"), found, strict=True):
                if value is None:
                    assert pd.isna(row[name]), f"{path.name}: {row['source']} has no {name}"
                else:
                    assert row[name] == pytest.approx(value, rel=2e-5, abs=1e-12), f"{path.name}: {row['source']}"
                    count += 1
    assert count > 500


def test_what_names_a_reported_row_is_as_it_was_reported(checkout, folder):
    reported = pd.read_csv(checkout / "data/reported/reported.csv", dtype=str, keep_default_na=False)
    known = {results.reported_source(row): row for row in reported.to_dict("records")}
    for path in folder.glob("*.csv"):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "steps" not in frame:
            continue
        for row in frame.to_dict("records"):
            if row["source"] in known:
                assert all(
                    row[name] in ("", known[row["source"]][name]) for name in ("steps", "alpha_rew", "alpha_cfg")
                )
                assert row["model"] == known[row["source"]]["model"]
                assert row["kind"].startswith("reported")
            else:
                assert (row["steps"], row["alpha_rew"], row["alpha_cfg"]) == ("", "", "")


def own_results(checkout):
    """Whether the metrics differ from the committed ones: a reader's own, of which README.md does not tell."""
    words = ["git", "-C", str(checkout), "status", "--porcelain", "--", "reports/metrics", "params.yaml"]
    found = subprocess.run(words, capture_output=True, text=True)
    return found.returncode != 0 or bool(found.stdout)


def test_the_readme_tells_the_current_results(checkout, book):
    if own_results(checkout):
        pytest.skip(f"reports/metrics are not the committed ones; `{tables.COMMAND}` writes them into README.md")
    text = (checkout / "README.md").read_text()
    assert tables.replaced(text, "results", tables.results_text(book, tables.bounds())) == text, tables.COMMAND


def test_times_are_summed_by_part_and_full_scale_counts_only_at_full_scale():
    run = {"scale": "mini", "wall_seconds": 60.0, "cpu_seconds": 90.0, "peak_memory_mib": 1024, "machine": "m"}
    runs = [run | {"stage": name, "device": "cpu"} for name in ("01_a", "02_b", "30_sd15")]
    text = tables.times(runs)
    assert "| theory (00 to 06) | mini | 2 min | 3 min | 1.0 GiB | m, cpu |" in text
    assert text.splitlines()[-1].count("not run here") == 5
    runs[-1] |= {"scale": "full", "device": "cuda"}
    assert tables.times(runs).splitlines()[-1].endswith("| full | 1 min | 2 min | 1.0 GiB | m, cuda |")


def test_lost_marks_are_one_line():
    with pytest.raises(InputError, match="once each"):
        tables.replaced("no marks", "results", "")
