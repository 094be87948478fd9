"""The runner: what a run publishes, and everything that makes it stop without publishing."""

import errno
import json
import os
import shutil
import signal
import types

import pytest

from dipp_core.book import pipeline, sources
from dipp_core.files import InputError, only_one

COUNTED = {
    "figures/02_count/dots.txt",
    "manifests/02_count.json",
    "metrics/02_count.json",
    "notebooks/02_count.ipynb",
    "tables/02_count/count.csv",
}


@pytest.fixture
def run(small, capfd):
    """Runs a command of the runner; returns its exit code and its lines on stderr, progress bars aside."""

    def call(*arguments):
        capfd.readouterr()
        try:
            code = pipeline.main(["run", *arguments])
            failed = []
        except SystemExit as error:
            code, failed = 1, [error.code]
        err = capfd.readouterr().err
        return code, [line for line in err.splitlines() if line.strip() and "%|" not in line] + failed

    return call


@pytest.fixture
def old_results(small):
    """Results of an earlier run, which must not be touched by one that fails."""
    for name in COUNTED:
        path = small / "reports" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return small.published()


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
        edit = "path = config.root() / 'dipp_core/beta.py'\npath.write_text(path.read_text() + 'EDITED = True\\n')\n"
        small.set_cell("02_count", 5, edit + "assert '.work' in beta.__file__\ntotal = beta.count(params.steps)")
        assert pipeline.main(["run", "02_count", "--set", "scale=smoke", "--set", "seed=3"]) == 0
        yield small


def test_a_run_publishes_all_removes_what_its_stage_no_longer_makes_and_nothing_else(finished):
    assert finished.published().keys() == COUNTED | {"figures/03_other/kept.png"}
    assert json.loads(finished.published()["metrics/02_count.json"]) == {"count": 21}
    assert [path.name for path in (finished / ".work/runs").iterdir()] == ["02_count.lock"]


def test_what_is_edited_while_a_notebook_runs_changes_nothing_in_it_and_is_noticed(finished, capsys):
    """The run above worked on a copy; the pipeline recorded the copy's sources and so finds the edit."""
    sources.write_all()
    assert capsys.readouterr().out == "02_count: dipp_core/beta.py changed\n"


def test_the_manifest_says_where_the_numbers_come_from(finished):
    content = json.loads(finished.published()["manifests/02_count.json"])
    assert (content["scale"], content["seed"], content["threads"]) == ("smoke", 3, 1)
    assert content["params"] == {"scale": "smoke", "seed": 3, "steps": 7}
    assert content["peak_memory_mib"] > 10
    assert {"commit", "params_sha256", "device", "wall_seconds", "cpu_seconds"} <= set(content)


def test_what_every_stage_took_is_told_in_a_line_and_the_sum_in_the_last(finished, capsys):
    place = finished / "reports/manifests"
    one = json.loads((place / "02_count.json").read_text())
    (place / "03_other.json").write_text(json.dumps(one | {"stage": "03_other", "cpu_seconds": 1000.0}))
    assert pipeline.main(["times"]) == 0
    (place / "03_other.json").unlink()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["02_count", "03_other", "together"]
    assert "50.0 %" in lines[1]
    assert lines[-1].endswith(f" {one['cpu_seconds'] + 1000:.0f} s")


def test_a_stage_that_begins_is_told_with_its_place_and_the_time_left():
    """DVC's own lines stay; what is left counts every stage that it has not come to."""
    printed = [
        "Stage 'sources' didn't change, skipping\n",
        "Running stage 'theory@02_count':\n",
        "> python -m dipp_core.book.pipeline run 02_count\n",
        "Stage '03_old' didn't change, skipping\n",
        "Running stage '04_new':\n",
    ]
    known, ticks = {"02_count": 60.0, "03_old": 120.0, "05_last": 50.0}, iter([0.0, 70.0, 70.0, 75.0])
    lines = list(pipeline.progress(printed, known, 5, lambda: next(ticks)))
    assert [line for line in lines if f"{line}\n" not in printed] == [
        "[2 of 5] 02_count, about 60 s; at most about 4 min left in all",
        "02_count took 70 s",
        "[4 of 5] 04_new; at most about 1 min left in all",
        "04_new took 5 s",
    ]
    assert [line for line in lines if f"{line}\n" in printed] == [line.rstrip() for line in printed]
    assert next(pipeline.progress(printed[1:2], known, 0, lambda: 0.0)) == "02_count, about 60 s"


def test_a_run_with_other_values_elsewhere_leaves_the_reports_alone(small, run, tmp_path, old_results, monkeypatch):
    """And a variable of the reader's shell reaches the notebook."""
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    small.set_cell("02_count", 5, "import os\ntotal = beta.count(params.steps) * (os.environ['MKL_CBWR'] != '')")
    assert run("02_count", "--set", "steps=4", "--reports", str(tmp_path / "else")) == (0, [])
    assert json.loads((tmp_path / "else/metrics/02_count.json").read_text()) == {"count": 6}
    assert small.published() == old_results


def test_a_stage_is_found_by_its_number_or_its_name(small):
    assert pipeline.target("02") == pipeline.target("02_count") == "theory@02_count"
    assert pipeline.target("sources") == "sources"
    with pytest.raises(InputError, match=r"there is no stage 02_cuont; .* did you mean '02_count'\?"):
        pipeline.target("02_cuont")


NOTHING = "nothing was published"
FULL = "the disk is full: free some space and run again; nothing of this stage was published"
STOPS = {
    "a failing cell": (
        "total = 1\nraise ValueError('two\\nlines')",
        "02_count: cell 5 failed with ValueError: two lines (kept: .work/failed/02_count.ipynb)",
    ),
    "a process that dies": (
        "import os\nos.kill(os.getpid(), 9)",
        f"02_count: its process died (out of memory, or killed); {NOTHING}",
    ),
    "a full disk in a cell": ("raise OSError(28, 'No space left on device')", FULL),
    "parameters edited": (
        "path = config.root() / 'params.yaml'\npath.write_text(path.read_text().replace('steps: 5', 'steps: 6'))"
        "\ntotal = 1",
        f"02_count: params.yaml changed while it ran; {NOTHING}, run it again",
    ),
    "ctrl-c": (
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)",
        "interrupted; nothing of this stage was published, earlier stages are kept",
    ),
}


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, as in a program of its own; the workers of a parallel test run ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("what", STOPS)
def test_what_stops_a_run_is_one_line_and_publishes_nothing(small, run, old_results, what):
    cell, line = STOPS[what]
    small.set_cell("02_count", 5, cell)
    code, lines = run("02_count")
    assert (code, lines[-1]) == ({"parameters edited": 2, "ctrl-c": 130}.get(what, 1), line)
    assert small.published() == old_results
    if what == "a failing cell":
        assert any("raise ValueError" in line for line in lines)
        assert "ValueError" in (small / ".work/failed/02_count.ipynb").read_text()


def test_a_second_run_of_a_stage_is_refused(small, run, old_results):
    with only_one(small / ".work/runs/02_count.lock", "02_count"):
        assert run("02_count") == (2, [f"02_count: is already running (process {os.getpid()}); wait for it"])
    assert small.published() == old_results


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        ("steps=0", "params.yaml: count.steps: found 0 (int); allowed: greater than or equal to 1"),
        ("steps", "--set steps: write it as key=value"),
        ("steps=[1", "--set steps=[1: write it as key=value"),
    ],
)
def test_wrong_values_on_the_command_line_end_with_2(run, pair, line):
    assert run("02_count", "--set", pair) == (2, [line])


def test_wrong_parameters_end_with_2_before_the_work(small, run, old_results):
    small.edit("params.yaml", "steps: 5", "stepz: 5")
    line = "params.yaml: count.stepz: unknown key; allowed: steps; did you mean 'steps'?"
    assert run("02_count") == (2, [line])
    assert small.published() == old_results


def test_an_unknown_notebook_names_the_known_ones(run):
    assert run("03_more") == (2, ["03_more.ipynb: no such notebook; there are 01_draw, 02_count"])


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (shutil, "copytree"), (pipeline, "write_manifest")])
def test_a_full_disk_is_one_line(run, monkeypatch, old_results, small, module, name):
    """Wherever the runner itself meets it: cleaning, copying the code, publishing."""
    monkeypatch.setattr(pipeline, "execute", lambda *_: {"cells": []})
    monkeypatch.setattr(module, name, full)
    assert run("02_count") == (1, [FULL])
    assert small.published() == old_results


FAULTS = {
    "has outputs": lambda cells: cells[4].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "x"}]),
    "needs exactly one cell tagged `parameters`": lambda cells: cells[2].update(metadata={}),
    "its last code cell must write the metrics": lambda cells: cells.pop(),
    "cell 5 has more than 30 lines of code": lambda cells: cells[4].update(source="pass\n" * 31),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_lint_names_notebook_and_fault(small, capsys, fault):
    assert pipeline.main(["lint"]) == 0
    path = sources.notebook_path("02_count")
    content = json.loads(path.read_text())
    FAULTS[fault](content["cells"])
    path.write_text(json.dumps(content))
    assert pipeline.main(["lint"]) == 2
    assert f"02_count: {fault}" in capsys.readouterr().err


def test_a_night_of_long_runs_goes_on_where_it_stopped(monkeypatch, tmp_path):
    texts, ran, broken = dict.fromkeys(("01_theory", "10_plane", "20_world", "21_more"), "code"), [], ["21_more"]

    def run(words, **_):
        stage = words[words.index("run") + 1]
        ran.append(stage)
        made = {"params": {"steps": 5}, "sources_sha256": pipeline.digest(texts[stage]), "finished": f"{len(ran):03d}"}
        path = tmp_path / "reports/long/manifests" / f"{stage}.json"
        if stage not in broken:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made))
        return types.SimpleNamespace(returncode=int(stage in broken))

    monkeypatch.setattr(pipeline, "root", lambda: tmp_path)
    monkeypatch.setattr(pipeline, "shares", lambda folder: "")
    monkeypatch.setattr(pipeline.subprocess, "run", run)
    monkeypatch.setattr(pipeline.config, "check", lambda: None)
    values = types.SimpleNamespace(model_dump=lambda: {"steps": 5})
    monkeypatch.setattr(pipeline.config, "section", lambda stage, given: values)
    monkeypatch.setattr(pipeline.sources, "stages", lambda: list(texts))
    monkeypatch.setattr(pipeline.sources, "cleaned_text", texts.get)
    monkeypatch.setattr(pipeline.sources, "code_text", lambda stage: "")

    def runs_of_a_night():
        ran_before = len(ran)
        return pipeline.repro_long(), ran[ran_before:]

    assert runs_of_a_night() == (1, ["10_plane", "20_world", "21_more"])
    broken.clear()
    assert runs_of_a_night() == (0, ["21_more"])
    assert runs_of_a_night() == (0, [])
    texts["20_world"] = "other code"
    assert runs_of_a_night() == (0, ["20_world", "21_more"])
