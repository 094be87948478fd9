"""Every notebook, at smoke scale, through the runner that the pipeline uses."""

import json
import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import nbformat
import pandas as pd
import pytest

from dipp_core.book import pipeline, sources

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def needed(stage: str) -> list[str]:
    """The stages whose saved runs a stage loads."""
    code = sources.code_of(sources.read_notebook(sources.notebook_path(stage)))
    return sorted(set(re.findall(r'(?:load_tensors|find_folder)\(\s*"(\w+)"', code)))


def run_notebook(pool: ProcessPoolExecutor, stage: str, reports: pathlib.Path, before: list[Future]) -> str:
    """Run a notebook by the command of its stage, after others; returns what is wrong if it failed."""
    if any(future.result() for future in before):
        return f"{stage}: a notebook that it needs has failed"
    words = ["run", stage, "--set", "scale=smoke", "--set", "threads=1", "--reports", str(reports)]
    try:
        pool.submit(pipeline.command, words).result()
    except BaseException as error:  # a failed cell ends its process, with SystemExit
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """All notebooks that are tested, and those they need, two at a time: (folder of the results, stage -> future)."""
    here = [item for item in request.session.items if item.path == pathlib.Path(__file__) and hasattr(item, "callspec")]
    wanted, later = set(), {item.callspec.params["run"] for item in here if "run" in item.callspec.params}
    while later:
        wanted |= later
        later = {name for stage in later for name in needed(stage)} - wanted
    # one folder for all, since later ones load what earlier ones saved; in order, so that nothing waits for ever
    reports, futures = tmp_path_factory.mktemp("reports"), {}
    forks = multiprocessing.get_context("forkserver")  # the runner is imported once, and every run has its own process
    forks.set_forkserver_preload(["papermill", "dipp_core.book.pipeline"])
    with ProcessPoolExecutor(2, mp_context=forks, max_tasks_per_child=1) as pool, ThreadPoolExecutor(2) as threads:
        for stage in sorted(wanted):
            before = [futures[name] for name in needed(stage)]
            futures[stage] = threads.submit(run_notebook, pool, stage, reports, before)
        yield reports, futures


@pytest.fixture(scope="module", params=STAGES)
def run(request, runs):
    """One notebook after its run: (stage, folder of the results)."""
    reports, futures = runs
    if printed := futures[request.param].result():
        pytest.fail(printed)
    return request.param, reports


def notebook_of(run) -> dict:
    stage, reports = run
    return json.loads((reports / f"notebooks/{stage}.ipynb").read_text())


def outputs_of(run) -> list[dict]:
    """Everything that the published notebook shows."""
    return [output for cell in notebook_of(run)["cells"] for output in cell.get("outputs", [])]


def test_a_notebook_publishes_figures_tables_metrics_and_its_manifest(run):
    stage, reports = run
    pictures = {
        kind: {path.stem for path in (reports / "figures" / stage).glob(f"*{kind}")} for kind in (".png", ".pdf")
    }
    assert pictures[".png"] == pictures[".pdf"] != set()
    tables = list((reports / "tables" / stage).glob("*.csv"))
    assert tables
    assert all(len(pd.read_csv(path)) for path in tables)
    metrics = json.loads((reports / f"metrics/{stage}.json").read_text(), parse_constant=pytest.fail)  # NaN, Infinity
    assert metrics
    manifest = json.loads((reports / f"manifests/{stage}.json").read_text())
    assert (manifest["stage"], manifest["scale"]) == (stage, "smoke")


def test_the_published_notebook_is_valid_and_says_nothing_of_the_time(run):
    nbformat.validate(notebook_of(run))
    cells = notebook_of(run)["cells"]
    assert {key for cell in cells for key in cell["metadata"]} <= {"tags"}
    assert [cell for cell in cells if cell.get("execution_count") or "id" in cell] == []


def test_its_pictures_are_the_published_ones_and_have_words(run):
    stage, reports = run
    shown = "\n".join(output["data"].get("text/html", "") for output in outputs_of(run) if "data" in output)
    pictures = re.findall(r'<img src="([^"]+)" alt="([^"]*)"', shown)
    published = {f"../figures/{stage}/{path.name}" for path in (reports / "figures" / stage).glob("*.[pg][ni][gf]")}
    assert published <= {source for source, _ in pictures}
    assert [source[:80] for source, alt in pictures if not alt] == []


def test_its_links_lead_somewhere(run):
    """Into the checkout, to another notebook, or to the web."""
    text = "\n".join(cell["source"] for cell in notebook_of(run)["cells"] if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)\s]+\.[^)\s]+)\)", text):
        path = link.partition("#")[0]
        if path.endswith(".ipynb") and "/" not in path:
            assert path.removesuffix(".ipynb") in STAGES, link
        elif "/" in path and not path.startswith(("https://", "../tables/")):
            assert (ROOT / "reports/notebooks" / path).resolve().exists(), link


def test_it_shows_no_error_and_no_warning(run):
    found = outputs_of(run)
    assert [output for output in found if output["output_type"] == "error"] == []
    printed = "\n".join(output.get("text", "") for output in found)
    assert re.findall(r"Traceback \(most recent.*|\w+Warning: .*", printed) == []


@pytest.mark.parametrize("run", ["23_alignment"], indirect=True)
def test_a_run_is_the_same_to_the_bit_whichever_other_runs_there_are(run, tmp_path):
    """So the seeds of scale mini are seeds of scale long."""
    stage, reports = run
    for name in needed(stage):
        shutil.copytree(reports / "runs" / name, tmp_path / "runs" / name)
    settings = ["scale=smoke", "threads=1", "seeds={unet: [3, 2, 1], dit: [1, 2]}", "other_starts=[]"]
    more = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "dipp_core.book.pipeline", "run", stage, *more, "--reports", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made, again = ({path.name: path for path in (r / "runs" / stage).glob("*_start_*")} for r in (reports, tmp_path))
    assert set(made) < set(again)
    assert [name for name, path in made.items() if path.read_bytes() != again[name].read_bytes()] == []
