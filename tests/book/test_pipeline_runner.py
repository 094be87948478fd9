"""The runner: what a run publishes, and everything that makes it stop without publishing."""

import errno
import json
import os
import re
import shutil
import signal

import pytest

from dipp_core.book import manifest, pipeline, sources

COUNTED = {
    "figures/02_count/dots.txt",
    "manifests/02_count.json",
    "metrics/02_count.json",
    "notebooks/02_count.html",
    "tables/02_count/count.csv",
}


@pytest.fixture
def run(small, capfd):
    """Runs a command of the runner; returns its exit code and its lines on stderr, progress bars aside."""

    def call(*arguments):
        capfd.readouterr()
        code = pipeline.main(["run", *arguments])
        err = capfd.readouterr().err
        return code, [line for line in err.splitlines() if line.strip() and "%|" not in line]

    return call


@pytest.fixture
def old_results(small):
    """Results of an earlier run, which must not be touched by one that fails."""
    for name in COUNTED:
        path = small / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return small.published()


# ---------------------------------------------------------------------------------------------------- a run that works


@pytest.fixture(scope="module")
def finished(small_checkout, adopted, tmp_path_factory):
    """A checkout after one run, at smoke scale, over old results and the leftovers of an interrupted run."""
    with adopted(small_checkout(tmp_path_factory.mktemp("finished"))) as small:
        old = ["metrics/02_count.json", "figures/02_count/gone.png", "figures/03_other/kept.png"]
        for path in [
            *(small / f"reports/{name}" for name in old),
            small / ".work/runs/02_count/reports/tables/half.csv",
        ]:
            path.parent.mkdir(parents=True)
            path.write_text("old")
        small.edit("params.yaml", "steps: 5", "steps: 7")
        assert pipeline.main(["run", "02_count", "--set", "scale=smoke", "--set", "seed=3"]) == 0
        yield small


def test_a_run_publishes_figures_tables_metrics_page_and_manifest(finished):
    assert {name for name in finished.published() if "02_count" in name} == COUNTED


def test_a_run_takes_its_values_from_params_yaml(finished):
    assert json.loads(finished.published()["metrics/02_count.json"]) == {"count": 21}


def test_what_a_stage_no_longer_makes_is_removed_and_nothing_else(finished):
    assert finished.published().keys() - COUNTED == {"figures/03_other/kept.png"}


def test_a_run_leaves_no_unfinished_work(finished):
    assert [path.name for path in (finished / ".work/runs").iterdir()] == ["02_count.lock"]


def test_the_page_shows_the_values_of_the_run(finished):
    page = finished.published()["notebooks/02_count.html"].decode()
    assert re.search(r"The values of this run, from params.yaml.*steps.*7.*beta", page, re.DOTALL)


def test_the_manifest_says_where_the_numbers_come_from(finished):
    content = json.loads(finished.published()["manifests/02_count.json"])
    assert (content["scale"], content["seed"], content["threads"]) == ("smoke", 3, 1)
    assert content["params"] == {"scale": "smoke", "seed": 3, "steps": 7}
    assert content["sources_sha256"] == sources.fingerprint("02_count")
    assert content["peak_memory_mib"] > 10
    assert {"commit", "params_sha256", "device", "wall_seconds"} <= set(content)


def test_what_every_stage_took_is_told_in_a_line(finished):
    lines = manifest.shares(finished / "reports" / "manifests").splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["02_count"]
    shares = [float(line.split("%")[0].split()[-1]) for line in lines[1:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert lines[-1].startswith("together")


def test_a_run_with_other_values_elsewhere_leaves_the_reports_alone(small, run, tmp_path, old_results):
    assert run("02_count", "--set", "steps=4", "--reports", str(tmp_path / "else")) == (0, [])
    assert json.loads((tmp_path / "else/metrics/02_count.json").read_text()) == {"count": 6}
    assert small.published() == old_results


# ------------------------------------------------------------------------------------------------- a run that must stop


def test_a_failing_cell_is_named_with_its_error(small, run, old_results):
    small.set_cell("02_count", 5, "total = 1\nraise ValueError('two\\nlines')")
    code, lines = run("02_count")
    assert code == 1
    assert lines[-1] == "02_count: cell 5 failed with ValueError: two lines (kept: .work/failed/02_count.ipynb)"
    assert any("raise ValueError" in line for line in lines)
    assert "ValueError" in (small / ".work/failed/02_count.ipynb").read_text()
    assert small.published() == old_results


@pytest.mark.parametrize(("index", "number"), [(1, 2), (2, 3), (4, 4), (6, 6)])
def test_cells_are_counted_as_in_the_notebook(small, index, number):
    """papermill counts from 0, and the cell that it injects after the third one too."""
    assert pipeline.cell_number(index, sources.notebook_path("02_count")) == number


def test_a_notebook_whose_process_dies_is_named(small, run, old_results):
    small.set_cell("02_count", 5, "import os\nos.kill(os.getpid(), 9)")
    code, lines = run("02_count")
    assert code == 1
    assert lines[-1] == "02_count: its process died (out of memory, or killed); nothing was published"
    assert small.published() == old_results


def test_a_library_edited_during_a_run_is_named(small, run, old_results):
    small.set_cell("02_count", 4, "path = config.root() / 'dipp_core/beta.py'\npath.write_text(path.read_text() + '#')")
    small.set_cell("02_count", 5, "assert '.work' in beta.__file__  # the run itself works on a copy\ntotal = 1")
    code, lines = run("02_count")
    assert code == 1
    assert lines == ["02_count: dipp_core/beta.py changed while it ran; nothing was published, run it again"]
    assert small.published() == old_results


EDITS = {
    "notebooks/02_count.ipynb": ("# counts", "# counts on", ["notebooks/02_count.ipynb"]),
    "dipp_core/book/config.py": ("SCALES =", "SCALES  =", ["dipp_core/book/config.py"]),
    "dipp_core/alpha.py": ("range", "range ", []),
    "params.yaml": ("steps: 5", "steps: 6", ["steps"]),
}
VALUES = {
    "seed: 0": ("seed: 1", ["seed"]),
    "scale: mini": ("scale: smoke", ["scale"]),
    "threads: 1": ("threads: 2", ["threads"]),
    "# how far": ("# up to where", []),
    "mini: 5": ("mini: 6", []),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_a_source_counts_and_of_another_file_does_not(small, name):
    before = pipeline.state("02_count", {})
    old, new, expected = EDITS[name]
    small.edit(name, old, new)
    assert pipeline.changes(before, pipeline.state("02_count", {})) == expected


@pytest.mark.parametrize("old", VALUES)
def test_an_edit_of_a_value_counts_and_of_another_stages_does_not(small, old):
    before = pipeline.state("02_count", {})
    new, expected = VALUES[old]
    small.edit("params.yaml", old, new)
    assert pipeline.changes(before, pipeline.state("02_count", {})) == expected


def test_a_second_run_of_a_stage_is_refused(small, run, old_results):
    with pipeline.only_one("02_count", small / ".work/runs/02_count"):
        assert run("02_count") == (1, [f"02_count: is already running (process {os.getpid()}); wait for it"])
    assert small.published() == old_results


def test_the_lock_of_a_stage_ends_with_its_run(small):
    for _ in range(2):
        with pipeline.only_one("02_count", small / ".work/runs/02_count"):
            pass


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, as in a program of its own; the workers of a parallel test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupting_publishes_nothing(small, run, old_results):
    small.set_cell("02_count", 5, "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)")
    code, lines = run("02_count")
    assert code == 130
    assert lines[-1] == "interrupted; nothing of this stage was published, earlier stages are kept"
    assert small.published() == old_results


def test_a_formula_that_cannot_be_shown_stops_before_the_work(small, run, old_results):
    small.set_cell("02_count", 1, r"# Counting $\notacommand x$")
    small.set_cell("02_count", 5, "config.root().joinpath('ran').touch()")
    code, lines = run("02_count")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith(r"\notacommand x")
    assert not (small / "ran").exists()
    assert small.published() == old_results


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 5", "steps: many", "params.yaml: count.steps: found 'many' (str); allowed: a valid integer"),
        ("steps: 5", "stepz: 5", "params.yaml: count.stepz: unknown key; allowed: steps; did you mean 'steps'?"),
        ("scale: mini", "scale: tiny", "params.yaml: scale: found 'tiny' (str); allowed: 'smoke'"),
    ],
)
def test_wrong_parameters_end_with_2_before_the_work(small, run, old_results, old, new, line):
    small.edit("params.yaml", old, new)
    code, lines = run("02_count")
    assert code == 2
    assert any(found.startswith(line) for found in lines)
    assert small.published() == old_results


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        ("steps=0", "params.yaml: count.steps: found 0 (int); allowed: greater than or equal to 1"),
        ("stepz=1", "params.yaml: count.stepz: unknown key; allowed: steps; did you mean 'steps'?"),
        ("scale=large", "params.yaml: scale: found 'large' (str); allowed: 'smoke', 'mini' or 'full'"),
        ("steps", "--set steps: write it as key=value"),
        ("steps=[1", "--set steps=[1: write it as key=value"),
    ],
)
def test_wrong_values_on_the_command_line_end_with_2(run, pair, line):
    assert run("02_count", "--set", pair) == (2, [line])


def test_an_unknown_stage_names_the_known_ones(run):
    with pytest.raises(SystemExit, match=r"03_more\.ipynb: no such notebook; there are 01_draw, 02_count"):
        run("03_more")


# ------------------------------------------------------------------------------------------------------- a full disk

FULL = "the disk is full: free some space and run again; nothing of this stage was published"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"), [(os, "replace"), (shutil, "copyfile"), (manifest, "write"), (pipeline, "execute")]
)
def test_a_full_disk_is_one_line(run, monkeypatch, old_results, small, module, name):
    """Wherever the runner itself meets it: cleaning, copying the code, executing, publishing."""
    small.set_cell("02_count", 5, "total = 1")
    if name in ("replace", "write"):
        monkeypatch.setattr(pipeline, "execute", lambda *_: {"cells": []})
    monkeypatch.setattr(module, name, full)
    assert run("02_count") == (1, [FULL])
    assert small.published() == old_results


def test_a_full_disk_in_a_cell_is_one_line_after_the_trace(small, run, old_results):
    small.set_cell("02_count", 5, "raise OSError(28, 'No space left on device')")
    code, lines = run("02_count")
    assert (code, lines[-1]) == (1, FULL)
    assert small.published() == old_results


# ----------------------------------------------------------------------------------------------------- strip and lint


def test_strip_removes_outputs_and_keeps_the_cleaned_text(small):
    path = sources.notebook_path("02_count")
    content = json.loads(path.read_text())
    content["cells"][4] |= {"execution_count": 3, "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
    path.write_text(json.dumps(content))
    cleaned = sources.cleaned_text(path)
    assert pipeline.main(["strip", "02_count"]) == 0
    assert pipeline.lint(["02_count"]) == []
    assert sources.cleaned_text(path) == cleaned


def test_strip_of_a_stripped_notebook_writes_nothing(small):
    path = sources.notebook_path("02_count")
    sources.strip(["02_count"])
    before = path.stat().st_mtime_ns
    sources.strip(["02_count"])
    assert path.stat().st_mtime_ns == before


def test_a_stripped_notebook_is_valid_in_its_format(small):
    import nbformat

    sources.strip(["02_count"])
    for stage in sources.stages():
        nbformat.validate(nbformat.read(sources.notebook_path(stage), as_version=nbformat.NO_CONVERT))


FAULTS = {
    "has outputs": lambda cells: cells[4].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "x"}]),
    "has outputs;": lambda cells: cells[4].update(execution_count=1),
    "needs exactly one cell tagged `parameters`": lambda cells: cells[2].update(metadata={}),
    "its last code cell must write the metrics": lambda cells: cells.pop(),
    "cell 5 has more than 30 lines of code": lambda cells: cells[4].update(source="pass\n" * 31),
}


def test_the_small_notebooks_have_no_faults(small):
    assert pipeline.main(["lint"]) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_lint_names_notebook_and_fault(small, capsys, fault):
    path = sources.notebook_path("02_count")
    content = json.loads(path.read_text())
    FAULTS[fault](content["cells"])
    path.write_text(json.dumps(content))
    assert pipeline.main(["lint"]) == 1
    assert f"02_count: {fault}" in capsys.readouterr().err
