"""The pipeline, as `dvc` runs it, in a small checkout under git whose dvc.yaml has the form of the real one.

The checkout is built the hard way, once: its first run is refused a rival, killed in the middle of the second
notebook, and continued by the next run. Every test then works on a copy of its own.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from dipp_core.book import sources


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait(condition, seconds: float = 60) -> bool:
    """Whether the condition came true in time; generous, since nothing here measures speed."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def number_in(path: pathlib.Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


@pytest.fixture(scope="module")
def story(small_checkout, tmp_path_factory):
    """The first run of a new checkout and what became of it: `root`, and what was seen on the way."""
    small = small_checkout(tmp_path_factory.mktemp("pipeline"))
    small.git("init", "-q")
    for name in ("metrics/02_count.json", "figures/02_count/dots.txt"):
        (small / "reports" / name).parent.mkdir(parents=True)
        (small / "reports" / name).write_text("old")
    seen = types.SimpleNamespace(small=small)

    (small / "gate").mkdir()
    first = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=small.root,
        env=small.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait(lambda: number_in(small / "gate/kernel"), 120), "the second notebook never began to count"
        runner, kernel = number_in(small / ".work/runs/02_count.lock"), number_in(small / "gate/kernel")
        seen.rival = small.dvc("repro")
        seen.both_ran = alive(runner) and alive(kernel)
    finally:
        os.killpg(first.pid, signal.SIGKILL)  # dvc and the runner; the kernel has a session of its own
        first.wait()
    seen.ended = wait(lambda: not alive(runner)), wait(lambda: not alive(kernel))
    seen.after_kill = small.published()

    shutil.rmtree(small / "gate")
    seen.next = small.dvc("repro")
    small.git("add", "-A")
    small.git("commit", "-qm", "all results")
    return seen


@pytest.fixture
def small(story, tmp_path):
    """A copy of the finished checkout."""
    folder = tmp_path / story.small.root.name
    shutil.copytree(story.small.root, folder, symlinks=True)
    return type(story.small)(folder)


def stale(small, monkeypatch) -> set[str]:
    """The stages that `dvc status` calls changed."""
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_SITE_CACHE_DIR", small.environment()["DVC_SITE_CACHE_DIR"])
    monkeypatch.chdir(small.root)
    with Repo() as repo:
        return {stage.split("@")[-1] for stage in repo.status()}


def test_a_second_run_is_refused_in_so_many_words(story):
    assert story.both_ran
    assert story.rival.returncode != 0
    assert re.search(r"is busy, it is being blocked by:\s+\(PID \d+\).*repro", story.rival.stderr)


def test_killing_a_run_ends_its_kernel_keeps_what_is_done_and_leaves_nothing_half_written(story):
    assert story.ended == (True, True)
    done = {name for name in story.after_kill if "01_draw" in name}
    assert done == {
        "figures/01_draw/curve.pdf",
        "figures/01_draw/curve.png",
        "manifests/01_draw.json",
        "metrics/01_draw.json",
        "notebooks/01_draw.ipynb",
        "tables/01_draw/curve.csv",
    }
    old = {name: content for name, content in story.after_kill.items() if name not in done}
    assert old == {"metrics/02_count.json": b"old", "figures/02_count/dots.txt": b"old"}


def test_the_run_after_a_killed_one_does_only_the_rest(story, stages_run):
    assert (story.next.returncode, stages_run(story.next.stdout)) == (0, ["02_count"])
    assert json.loads(story.small.published()["metrics/02_count.json"]) == {"count": 10}


def test_a_second_run_does_nothing_also_after_opening_running_and_saving_notebooks(
    small, stages_run, saved_by_an_editor
):
    times = {path: path.stat().st_mtime_ns for path in (small / "reports").rglob("*")}
    done = small.dvc("repro")
    assert (done.returncode, stages_run(done.stdout)) == (0, [])
    assert small.git("status", "--porcelain") == ""
    for path in (small / "notebooks").glob("*.ipynb"):
        saved_by_an_editor(path)
    shutil.rmtree(small / ".work/code")  # and lost work is made again without running a notebook
    done = small.dvc("repro")
    assert (done.returncode, stages_run(done.stdout)) == (0, ["sources"])
    assert {path: path.stat().st_mtime_ns for path in (small / "reports").rglob("*")} == times


EDITS = {
    "a code cell": ("notebooks/02_count.ipynb", "# counts", "# counts on", {"02_count"}),
    "a file that one imports": ("dipp_core/alpha.py", "x * x", "x**2", {"01_draw"}),
    "layout of code": ("dipp_core/alpha.py", "x * x", "x*x", set()),
    "a file that both import": ("dipp_core/book/config.py", "SCALES =", "SCALES: tuple =", {"01_draw", "02_count"}),
    "a schema": ("dipp_core/book/sections.py", "le=100", "le=101", set()),
    "a section": ("params.yaml", "steps: 5", "steps: 6", {"02_count"}),
    "a value of another scale": ("params.yaml", "smoke: 3", "smoke: 4", {"01_draw"}),
    "the seed": ("params.yaml", "seed: 0", "seed: 1", {"01_draw", "02_count"}),
    "a comment in params.yaml": ("params.yaml", "# how far", "# up to where", set()),
    "a manifest": ("reports/manifests/01_draw.json", "wall_seconds", "seconds", set()),
    "a result": ("reports/tables/01_draw/curve.csv", "1", "2", {"01_draw"}),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_makes_stale_what_uses_it_and_nothing_else(small, monkeypatch, what):
    name, old, new, stages = EDITS[what]
    small.edit(name, old, new)
    monkeypatch.setenv("DIPP_ROOT", str(small.root))
    sources.write_all()  # as the first stage does
    assert stale(small, monkeypatch) - {"sources"} == stages


def test_a_fresh_clone_makes_everything_itself(small, tmp_path):
    """The published results are there, but this machine has not made them yet."""
    small.git("clone", "-q", str(small.root), str(tmp_path / "clone"))
    status = small.command(sys.executable, "-m", "dvc", "--cd", str(tmp_path / "clone"), "status").stdout
    assert all(f".work/made/{stage}" in status for stage in ("01_draw", "02_count"))


def test_the_same_commit_run_again_gives_the_same_bytes_in_git_and_none_in_the_cache(small, stages_run):
    """Git sees no difference in any figure, table, metric or page, nor in dvc.lock: only the manifests carry times."""
    shutil.rmtree(small / "reports")
    small.git("checkout", "--", "reports/*02_count*")
    done = small.dvc("repro", "--force", "--single-item", "theory@01_draw")
    assert (done.returncode, stages_run(done.stdout)) == (0, ["01_draw"])
    assert set(small.git("ls-files", "reports").split()) == {f"reports/{name}" for name in small.published()}
    assert small.git("diff", "--name-only").split() == ["reports/manifests/01_draw.json"]
    assert not (small / ".dvc/cache/files").exists()


def test_an_experiment_changes_a_value_for_one_run(small, stages_run):
    done = small.dvc("exp", "run", "-S", "count.steps=4", "theory@02_count")
    assert (done.returncode, stages_run(done.stdout)) == (0, ["02_count"])
    assert "  steps: 4  # how far to count" in (small / "params.yaml").read_text()
    difference = json.loads(small.dvc("metrics", "diff", "--json").stdout)
    assert difference == {"reports/metrics/02_count.json": {"count": {"old": 10, "new": 6, "diff": -4}}}


def test_plots_shows_the_figures_without_network(small):
    done = small.dvc("plots", "show")
    assert done.returncode == 0
    shown = re.search(r"src=\"(static/[^\"]+\.png)\"", (small / "dvc_plots/index.html").read_text())
    assert (small / "dvc_plots" / shown[1]).read_bytes() == (small / "reports/figures/01_draw/curve.png").read_bytes()
