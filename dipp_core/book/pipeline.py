"""The one command of every stage: take a cleaned notebook, run it on fixed sources, publish what it made.

    python -m dipp_core.book.pipeline clean             write the cleaned sources (first stage of the pipeline)
    python -m dipp_core.book.pipeline run STAGE         run one notebook and publish under reports/
    python -m dipp_core.book.pipeline strip [STAGE ..]  remove outputs from notebooks before a commit
    python -m dipp_core.book.pipeline site              write the site, reports/index.html (last stage of the pipeline)
    python -m dipp_core.book.pipeline slides            write the lecture, reports/slides/index.html
    python -m dipp_core.book.pipeline lint              check what every notebook must be

A run works on copies: the code and the notebook are copied first, results are collected in a folder of their own and
renamed into `reports/` only when the whole notebook has succeeded and its sources are still what they were. Whatever
stops a run half-way leaves the published results as they were; only a kill during the renaming itself can leave a
mixture, which the next `dvc repro` replaces, since DVC has not recorded the stage as done.
"""

import argparse
import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import sys
import time

from dipp_core.book import config, manifest, sources

DISK_FULL = os.strerror(errno.ENOSPC)


class StageError(RuntimeError):
    """One line that says what went wrong in a stage and what to do."""


@contextlib.contextmanager
def only_one(stage: str, work: pathlib.Path):
    """Refuse a second run of the same stage; the lock vanishes with its process, however that ends."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with open(work.with_suffix(".lock"), "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise StageError(f"{stage}: is already running (process {handle.read().strip()}); wait for it") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def state(stage: str, overrides: dict) -> dict:
    """Everything a run depends on; equal before and after, or the run is refused."""
    params, threads = config.section(stage, overrides).model_dump(), config.read()["threads"]
    return {"params": params, "threads": threads, "sources": sources.fingerprint(stage)}


def changes(before: dict, after: dict) -> list[str]:
    """Names of the sources and parameters that differ between two states."""
    old, new = ({**s["sources"], **s["params"], "threads": s["threads"]} for s in (before, after))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def cell_number(index: int, source: pathlib.Path) -> int:
    """The number of a failed cell in the reader's notebook, where papermill counts the injected cell too."""
    cells = sources.read_notebook(source)["cells"]
    first = next((n for n, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])), -1)
    return index if index > first else index + 1


def kernel_environment(work: pathlib.Path, reports: pathlib.Path) -> dict[str, str]:
    """What its process must know: where code, checkout, its results and earlier ones are, and the thread count."""
    threads = str(config.read()["threads"])
    return {
        "DIPP_ROOT": str(config.root()),
        "DIPP_REPORTS": str(work / "reports"),
        "DIPP_RESULTS": str(reports),
        "PYTHONPATH": str(work / "code"),
        "IPYTHONDIR": str(work / "ipython"),  # an empty profile: nothing of the user's own start-up files
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait are slow on a machine that does other work
    }


def execute(stage: str, params: dict, work: pathlib.Path, reports: pathlib.Path) -> dict:
    """Run the copied notebook with papermill; a failing cell becomes one error that shows the cell and its trace."""
    os.environ.update(kernel_environment(work, reports))
    profile = work / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'CRITICAL'\n")
    os.environ.pop("MPLBACKEND", None)
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    executed = work / "executed.ipynb"
    try:
        notebook = papermill.execute_notebook(
            work / "source.ipynb",
            executed,
            parameters={"overrides": params},
            kernel_name="python3",
            cwd=config.root() / "notebooks",
            progress_bar={"desc": stage, "unit": "cell", "leave": False} if sys.stderr.isatty() else False,
            log_output=False,
        )
    except papermill.PapermillExecutionError as error:
        kept = config.root() / ".work" / "failed" / f"{stage}.ipynb"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed, kept)
        print(str(error).strip(), file=sys.stderr)
        what = " ".join(f"{error.ename}: {error.evalue}".split())
        if DISK_FULL in what:
            raise OSError(DISK_FULL) from None
        number = cell_number(error.cell_index, work / "source.ipynb")
        place = kept.relative_to(config.root())
        raise StageError(f"{stage}: cell {number} failed with {what} (kept: {place})") from None
    except (DeadKernelError, CellTimeoutError):
        raise StageError(f"{stage}: its process died (out of memory, or killed); nothing was published") from None
    return notebook


def rendered(stage: str, notebook: dict, *place) -> str:
    """The page of a notebook (imported here: nbconvert takes two seconds, which `clean` and `lint` need not wait)."""
    from dipp_core.book import page

    try:
        return page.render(notebook, *place)
    except page.PageError as error:
        raise StageError(f"{stage}: {error}") from None


def publish(stage: str, work: pathlib.Path, reports: pathlib.Path) -> None:
    """Rename the results into place, file by file, and remove those that the stage no longer makes."""
    made = {path.relative_to(work / "reports") for path in (work / "reports").rglob("*") if path.is_file()}
    for name in sorted(made):
        (reports / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / "reports" / name, reports / name)
    if reports == (config.root() / "reports").resolve():
        note = config.root() / ".work" / "made" / stage  # tells DVC that this checkout has made the stage itself
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("made here\n")
    for folder in (reports / kind / stage for kind in ("figures", "tables", "runs")):
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.is_file() and path.relative_to(reports) not in made:
                path.unlink()


def run(stage: str, overrides: dict | None = None, reports: pathlib.Path | None = None) -> None:
    """Run one notebook and publish its figures, tables, metrics, page and manifest."""
    overrides, root = overrides or {}, config.root()
    work = (root / ".work" / "runs" if reports is None else reports.resolve() / ".work") / stage
    reports = (reports or root / "reports").resolve()
    with only_one(stage, work):
        shutil.rmtree(work, ignore_errors=True)  # what an interrupted run left behind
        before, start = state(stage, overrides), time.time()
        source = sources.write_cleaned(stage)
        shutil.copytree(root / "dipp_core", work / "code" / "dipp_core", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(source, work / "source.ipynb")
        rendered(stage, sources.read_notebook(source))  # faults of the page show before the long run
        notebook = execute(stage, before["params"], work, reports)
        page = rendered(stage, notebook, work / "reports" / "figures" / stage, before["params"]["scale"])
        (work / "reports" / "notebooks").mkdir(parents=True)
        (work / "reports" / "notebooks" / f"{stage}.html").write_text(page)
        manifest.write(stage, before, start, work / "reports" / "manifests" / f"{stage}.json")
        if changed := ", ".join(changes(before, state(stage, overrides))):
            raise StageError(f"{stage}: {changed} changed while it ran; nothing was published, run it again")
        publish(stage, work, reports)
        shutil.rmtree(work, ignore_errors=True)


def write_site(command: str) -> None:
    """`site`: reports/index.html and reports/site; `slides`: reports/slides."""
    from dipp_core.book import chapters, site, slides

    try:
        {"site": site.build, "slides": slides.build}[command](config.root())
    except chapters.SiteError as error:
        raise StageError(f"{command}: {error}") from None


def lint(stages: list[str]) -> list[str]:
    """What a notebook must be, one line per fault."""
    faults = []
    for stage in stages:
        cells = sources.read_notebook(sources.notebook_path(stage))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        if any(cell["outputs"] or cell["execution_count"] is not None for cell in code):
            faults.append(f"{stage}: has outputs; `make strip` removes them")
        if sum("parameters" in cell["metadata"].get("tags", []) for cell in code) != 1:
            faults.append(f"{stage}: needs exactly one cell tagged `parameters`")
        if not code or ".metrics(" not in "".join(code[-1]["source"]):
            faults.append(f"{stage}: its last code cell must write the metrics")
        faults += [
            f"{stage}: cell {number} has more than 30 lines of code"
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code" and len("".join(cell["source"]).splitlines()) > 30
        ]
    return faults


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dipp_core.book.pipeline", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("clean", "site", "slides", "lint"):
        commands.add_parser(name)
    commands.add_parser("strip").add_argument("stages", nargs="*")
    one = commands.add_parser("run")
    one.add_argument("stage")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value than params.yaml's")
    one.add_argument("--reports", type=pathlib.Path, help="publish here instead of under reports/")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        if args.command == "run":
            sources.read_notebook(sources.notebook_path(args.stage))
            config.check()
            run(args.stage, config.read_pairs(args.set), args.reports)
        elif args.command == "clean":
            sources.write_all_cleaned()
        elif args.command in ("site", "slides"):
            write_site(args.command)
        elif args.command == "strip":
            sources.strip(args.stages or sources.stages())
        elif faults := lint(sources.stages()):
            raise StageError("\n".join(faults))
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing of this stage was published, earlier stages are kept", file=sys.stderr)
        return 130
    except OSError as error:
        if DISK_FULL not in str(error):  # the text, since shutil.copytree wraps the error that it met
            raise
        print("the disk is full: free some space and run again; nothing of this stage was published", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
