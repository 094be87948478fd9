"""The commands behind dvc.yaml and the Makefile: take a cleaned notebook, run it, publish what it made.

    make repro [STAGE=..]    make what is out of date, or one stage with what it needs
    make repro-long          make the worlds' stages at scale `long`, into reports/long
    make strip, make lint    remove outputs from notebooks before a commit; check what every notebook must be
    make slides              write the lectures, reports/slides/index.html
    make times, make keep    what all stages took; put the networks of 91 and 92 into the repository

For the stages of dvc.yaml, and by hand, `.venv/bin/python -m dipp_core.book.pipeline` takes a command:

    clean          write what the stages depend on (first stage of the pipeline)
    run STAGE      run one notebook and publish under reports/
    site           write the site, reports/index.html (last stage of the pipeline)

A run works on copies: what is edited while it runs changes nothing in it, and the next `make repro` runs it again.
Results are collected in a folder of their own and renamed into `reports/` only when the whole notebook has succeeded.
Whatever stops a run half-way leaves the published results as they were; only a kill during the renaming itself can
leave a mixture, which the next `make repro` replaces, since DVC has not recorded the stage as done.
"""

import argparse
import datetime
import errno
import hashlib
import importlib
import json
import math
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from dipp_core.book import config, executed, machine, networks, sources
from dipp_core.files import InputError, only_one, root, write_whole

DISK_FULL = os.strerror(errno.ENOSPC)
PUBLISHED = "reports/manifests"
INPUTS = ("dipp_core", "notebooks", "data", "params.yaml", "requirements.lock", "dvc.yaml")
PACKAGES = ("torch", "numpy", "matplotlib", "pandas", "diffusers", "transformers")


def kernel_environment(work: pathlib.Path, reports: pathlib.Path, threads: int) -> dict[str, str]:
    """What its process must know: where code, checkout, its results and earlier ones are, and the thread count."""
    return {
        "DIPP_ROOT": str(root()),
        "DIPP_REPORTS": str(work / "reports"),
        "DIPP_RESULTS": str(reports),
        "PYTHONPATH": str(work / "code"),
        "IPYTHONDIR": str(work / "ipython"),  # an empty profile: nothing of the user's own start-up files
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait are slow on a machine that does other work
    }


def execute(stage: str, params: dict, work: pathlib.Path) -> dict:
    """Run the copied notebook with papermill; a failing cell ends all with its trace and a line that names it."""
    profile = work / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'CRITICAL'\n")
    os.environ.pop("MPLBACKEND", None)
    import papermill  # here, since it takes a second, which `clean` and `lint` need not wait
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    try:
        return papermill.execute_notebook(
            work / "source.ipynb",
            work / "executed.ipynb",
            parameters={"overrides": params},
            kernel_name="python3",
            cwd=root() / "notebooks",
            progress_bar={"desc": stage, "unit": "cell", "leave": False} if sys.stderr.isatty() else False,
            log_output=False,
        )
    except papermill.PapermillExecutionError as error:
        kept = root() / ".work" / "failed" / f"{stage}.ipynb"
        write_whole(kept, (work / "executed.ipynb").read_bytes())
        print(str(error).strip(), file=sys.stderr)
        what = " ".join(f"{error.ename}: {error.evalue}".split())
        if DISK_FULL in what:
            raise OSError(DISK_FULL) from None
        cells = sources.read_notebook(work / "source.ipynb")["cells"]
        given = next(n for n, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
        number = error.cell_index + (error.cell_index <= given)  # papermill counts from 0, and its own cell after this
        raise SystemExit(f"{stage}: cell {number} failed with {what} (kept: {kept.relative_to(root())})") from None
    except (DeadKernelError, CellTimeoutError):
        raise SystemExit(f"{stage}: its process died (out of memory, or killed); nothing was published") from None


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(path: pathlib.Path, stage: str, params: dict, threads: int, start: float, used: str) -> None:
    """Where the published numbers come from: commit, parameters, sources (`used`, their text), machine, cost.

    Times, dates and the machine live here and only here, and nothing in the pipeline depends on it.
    """
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    content = {
        "stage": stage,
        "commit": machine.command_output("git", "rev-parse", "--verify", "--quiet", "HEAD") or None,
        "uncommitted_changes": bool(machine.command_output("git", "status", "--porcelain", "--", *INPUTS)),
        "scale": params["scale"],
        "seed": params["seed"],
        "params": params,
        "params_sha256": digest(json.dumps(params, sort_keys=True)),
        "sources_sha256": digest(used),
        "versions": {"python": platform.python_version()} | {name: machine.version(name) for name in PACKAGES},
        "device": "cuda" if machine.gpus() else "cpu",
        "machine": machine.describe(),
        "system": platform.system(),
        "threads": threads,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")


def publish(stage: str, work: pathlib.Path, reports: pathlib.Path) -> None:
    """Rename the results into place, file by file, and remove those that the stage no longer makes."""
    made = {path.relative_to(work / "reports") for path in (work / "reports").rglob("*") if path.is_file()}
    for name in sorted(made):
        (reports / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / "reports" / name, reports / name)
    if reports == (root() / "reports").resolve():  # tells DVC that this checkout has made the stage itself
        write_whole(root() / ".work" / "made" / stage, "made here\n")
    for folder in (reports / kind / stage for kind in ("figures", "tables", "runs")):
        for path in folder.rglob("*"):
            if path.is_file() and path.relative_to(reports) not in made:
                path.unlink()


def run(stage: str, overrides: dict, reports: pathlib.Path | None = None) -> None:
    """Run one notebook and publish its figures, tables, metrics, executed notebook and manifest."""
    start, threads = time.time(), overrides.get("threads", config.read()["threads"])
    overrides = {key: value for key, value in overrides.items() if key != "threads"}
    before = values, _ = config.section(stage, overrides), config.read()["threads"]
    work = (root() / ".work" / "runs" if reports is None else reports.resolve() / ".work") / stage
    reports = (reports or root() / "reports").resolve()
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{reports} is no folder that can be written to ({error.strerror}): give another") from None
    with only_one(work.with_suffix(".lock"), stage):
        shutil.rmtree(work, ignore_errors=True)  # what an interrupted run left behind
        source, code = sources.write(stage)
        used = source.read_text() + code.read_text()
        shutil.copytree(root() / "dipp_core", work / "code" / "dipp_core", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(source, work / "source.ipynb")
        os.environ.update(kernel_environment(work, reports, threads))
        notebook = execute(stage, values.model_dump(), work)
        text = executed.published(notebook, work / "reports" / "figures" / stage, values.scale)
        write_whole(work / "reports" / "notebooks" / f"{stage}.ipynb", text)
        place = work / "reports" / "manifests" / f"{stage}.json"
        write_manifest(place, stage, values.model_dump(), threads, start, used)
        if (config.section(stage, overrides), config.read()["threads"]) != before:
            raise InputError(f"{stage}: params.yaml changed while it ran; nothing was published, run it again")
        publish(stage, work, reports)
        shutil.rmtree(work, ignore_errors=True)


def stages() -> dict[str, str]:
    """The stages of dvc.yaml: short name -> what DVC calls it, 'theory@03_..' for one of a group."""
    from ruamel.yaml import YAML

    names: dict[str, str] = {}
    for name, entry in YAML(typ="safe").load((root() / "dvc.yaml").read_text())["stages"].items():
        names |= {key: f"{name}@{key}" for key in entry["foreach"]} if "foreach" in entry else {name: name}
    return names


def target(stage: str) -> str:
    """What DVC calls a stage: '12' -> '12_pareto_2d', '03_aligning_with_a_reward' -> 'theory@03_..'."""
    names = stages()
    found = [name for key, name in names.items() if stage in (key, name) or re.match(rf"{stage}_", key)]
    if len(found) != 1:
        raise InputError(f"there is no stage {stage}; there are {', '.join(names)}{config.nearest(stage, names)}")
    return found[0]


def repro(stage: str | None) -> int:
    """`make repro`, once params.yaml is known to be right; tells where it is, and at the end what every stage took.

    One stage at a time, as DVC has it. The long stages use both cores themselves (`training.run.each`); a second
    `dvc repro` beside the first would use the core that a short stage leaves idle, but DVC waits three seconds for the
    other's lock and then fails, which is no way to begin half an hour of work.
    """
    config.check()
    lock = root() / "dvc.lock"
    if lock.is_file() and "\n<<<<<<< " in f"\n{lock.read_text()}":
        cure = "`git checkout --ours dvc.lock` takes one side, and what is then out of date is made again"
        raise InputError(f"dvc.lock holds the marks of a merge: {cure}")
    words, folder = [sys.executable, "-m", "dvc", "repro", *([target(stage)] if stage else [])], root() / PUBLISHED
    known = {one["stage"]: one["wall_seconds"] for one in manifests(folder) if one["scale"] == config.read()["scale"]}
    with subprocess.Popen(words, cwd=root(), stdout=subprocess.PIPE, text=True) as dvc:
        for line in progress(dvc.stdout or [], known, 0 if stage else len(stages())):
            print(line, flush=True)
    if not dvc.returncode:
        print(shares(folder))
    return dvc.returncode


def progress(
    lines: Iterable[str], known: dict[str, float], count: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[str]:
    """What DVC prints, and of every stage which it is, how long it and the others will take, how long it has taken.

    known: seconds of a stage's last run. count: of all stages, 0 if only some are asked for, of which DVC does not say
    how many. What is left is an upper bound, since DVC may find later stages up to date.
    """
    left, number, begun = dict(known), 0, None
    for line in lines:
        if found := re.match(r"(Running stage|Stage) '(?:\w+@)?(\w+)'", line):
            if begun:
                yield f"{begun[0]} took {clock() - begun[1]:.0f} s"
            number, stage, all_left = number + 1, found[2], sum(left.values())
            seconds = left.pop(stage, None)
            begun = (stage, clock()) if found[1] == "Running stage" else None
            if begun:
                told = f"{stage}, about {seconds:.0f} s" if seconds else stage
                whole = f"; at most about {math.ceil(all_left / 60)} min left in all" if count and left else ""
                yield (f"[{number} of {count}] " if count else "") + told + whole
        yield line.rstrip("\n")
    if begun:
        yield f"{begun[0]} took {clock() - begun[1]:.0f} s"


def manifests(folder: pathlib.Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def is_made(stage: str, values: dict, manifest: pathlib.Path, *, after: str) -> bool:
    """Whether a manifest is of this stage with these values and of today's sources, finished not before `after`."""
    if not manifest.is_file():
        return False
    made, used = json.loads(manifest.read_text()), sources.cleaned_text(stage) + sources.code_text(stage)
    same = made["params"] == json.loads(json.dumps(values)) and made["sources_sha256"] == digest(used)
    return same and made["finished"] >= after


def repro_long() -> int:
    """`make repro-long`: the plane's and the miniature's stages at scale `long`, those that are not made already."""
    config.check()
    reports, last = root() / "reports" / "long", {"1": "", "2": ""}  # of either world, when its last stage was made
    for stage in (name for name in sources.stages() if name[0] in last):
        manifest = reports / "manifests" / f"{stage}.json"
        values = config.section(stage, {"scale": "long"}).model_dump()
        if not is_made(stage, values, manifest, after=last[stage[0]]):
            print(f"{stage}: running at scale long", flush=True)
            words = [sys.executable, "-m", "dipp_core.book.pipeline", "run", stage, "--set", "scale=long"]
            if code := subprocess.run([*words, "--reports", str(reports)], cwd=root()).returncode:
                return code
        last[stage[0]] = json.loads(manifest.read_text())["finished"]
    print(shares(reports / "manifests"))
    return 0


def shares(folder: pathlib.Path) -> str:
    """A line for every stage that has a manifest: wall time of its last run, share of the sum, CPU time, memory."""
    found = manifests(folder)
    total, cpu_total = (sum(one[key] for one in found) for key in ("wall_seconds", "cpu_seconds"))
    lines = [f"{'last run of each stage':36s} {'wall':>8s} {'share':>6s} {'CPU':>8s} {'memory':>9s}  scale"]
    for one in found:
        share, wall, cpu = 100 * one["wall_seconds"] / total, one["wall_seconds"], one["cpu_seconds"]
        memory = f"{one['peak_memory_mib'] / 1024:5.1f} GiB"
        lines.append(f"{one['stage']:36s} {wall:6.0f} s {share:4.1f} % {cpu:6.0f} s {memory}  {one['scale']}")
    return "\n".join([*lines, f"{'together':36s} {total / 60:4.1f} min {'':6s} {cpu_total:6.0f} s"])


def lint(stage: str) -> list[str]:
    """What a notebook must be, one line per fault."""
    cells = list(enumerate(sources.read_notebook(sources.notebook_path(stage))["cells"], start=1))
    code = [(number, cell) for number, cell in cells if cell["cell_type"] == "code"]
    faults = []
    if any(cell["outputs"] or cell["execution_count"] is not None for _, cell in code):
        faults.append(f"{stage}: has outputs; `make strip` removes them")
    if sum("parameters" in cell["metadata"].get("tags", []) for _, cell in code) != 1:
        faults.append(f"{stage}: needs exactly one cell tagged `parameters`")
    if not code or ".metrics(" not in "".join(code[-1][1]["source"]):
        faults.append(f"{stage}: its last code cell must write the metrics")
    for number, cell in code:
        if len("".join(cell["source"]).splitlines()) > 30:
            faults.append(f"{stage}: cell {number} has more than 30 lines of code")
    return faults


def command(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog=".venv/bin/python -m dipp_core.book.pipeline", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("clean", "keep", "lint", "long", "site", "slides", "strip", "times"):
        commands.add_parser(name)
    commands.add_parser("repro").add_argument("stage", nargs="?")
    one = commands.add_parser("run")
    one.add_argument("stage")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value than params.yaml's")
    one.add_argument("--reports", type=pathlib.Path, help="publish here instead of under reports/")
    args = parser.parse_args(arguments)
    if args.command == "repro":
        return repro(args.stage)
    if args.command == "long":
        return repro_long()
    if args.command == "run":
        sources.read_notebook(sources.notebook_path(args.stage))
        config.check()
        run(args.stage, config.read_pairs(args.set), args.reports)
    elif args.command == "clean":
        sources.write_all()
    elif args.command in ("times", "keep"):
        print(shares(root() / PUBLISHED) if args.command == "times" else networks.keep())
    elif args.command == "strip":
        for stage in sources.stages():
            sources.strip(stage)
    elif args.command == "lint":
        if faults := [fault for stage in sources.stages() for fault in lint(stage)]:
            raise InputError("\n".join(faults))
    else:  # site, slides: each takes a second to import
        importlib.import_module(f"dipp_core.book.{args.command}").build(root())
    return 0


def main(arguments: list[str] | None = None) -> int:
    try:
        return command(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing of this stage was published, earlier stages are kept", file=sys.stderr)
        return 130
    except OSError as error:
        if DISK_FULL not in str(error):  # the text, since shutil.copytree wraps the error that it met
            raise
        print("the disk is full: free some space and run again; nothing of this stage was published", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
