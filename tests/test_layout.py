"""The shape of the house: who imports whom, and that notebooks, parameters and pipeline say the same."""

import ast
import functools
import json
import pathlib
import sys

import pytest
from ruamel.yaml import YAML

from dipp_core.book import config, pipeline, sources
from dipp_core.book.section_types import Globals
from dipp_core.book.sections import SECTIONS

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dipp_core").rglob("*.py"))
STAGES = sources.stages()
PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())

# The rooms, from the ground up, and what each may import of dipp_core beside itself
ROOMS = {
    "files": set(),
    "description": set(),  # of a training at full scale: a schema for the book, a type for training
    "method": set(),
    "worlds": {"files", "method"},
    "rewards": {"files", "method", "worlds"},
    "models": {"files", "method", "worlds", "rewards"},
    "training": {"files", "description", "method", "worlds", "rewards", "models"},
    "evaluation": {"files", "method", "worlds", "rewards", "models"},
    "book": {"files", "description", "method", "worlds", "rewards", "models", "evaluation"},
    "classroom": {"files", "description", "method", "worlds", "rewards", "models", "training", "evaluation", "book"},
}


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def room(name: str) -> str:
    """'dipp_core/method/scores.py' -> 'method'; 'dipp_core/files.py' -> 'files'."""
    return pathlib.PurePath(name).parts[1].removesuffix(".py")


@functools.cache
def imported(name: str) -> frozenset[str]:
    """The files of dipp_core that a file imports itself, anywhere in it, packages on the way aside."""
    found = sources.files_of((ROOT / name).read_text())
    return frozenset(other for other in found if not other.endswith("__init__.py") and other != name)


def test_imports_run_one_way():
    known = [name for name in FILES if room(name) in ROOMS]
    pairs = [(name, other) for name in known for other in imported(name)]
    assert [pair for pair in pairs if room(pair[1]) not in ROOMS[room(pair[0])] | {room(pair[0])}] == []


def test_the_method_and_the_one_file_need_torch_alone():
    for name in (name for name in FILES if room(name) in ("method", "one_file")):
        modules = {alias.name for node in ast.walk(tree(name)) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(tree(name)) if isinstance(node, ast.ImportFrom)}
        packages = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
        own = {"dipp_core"} if room(name) == "method" else {"matplotlib"}  # for the picture at the end, if it is there
        assert packages <= {"torch"} | own, name


def test_no_files_import_each_other_in_a_circle():
    left: dict[str, frozenset[str]] = {name: imported(name) & set(FILES) for name in FILES}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_a_file_says_what_it_is_for_and_importing_it_only_defines():
    """At the top of a file stand imports, definitions, values, and what runs only as a command."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for name in FILES:
        assert ast.get_docstring(tree(name)), name
        for node in tree(name).body[1:]:
            command = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
            assert isinstance(node, allowed) or command, f"{name}, line {node.lineno}: {ast.unparse(node)}"
            assert not getattr(node, "level", 0), f"{name}: a relative import hides what the pipeline must know"


def entries() -> dict[str, dict]:
    """Stage -> what dvc.yaml says of it, names filled in."""
    found = {}
    for entry in PIPELINE["stages"].values():
        filled = entry.get("foreach", {})
        if "vars" in entry:
            filled = {entry["vars"][0]["key"]: entry["vars"][0]["item"]}
        for key, item in filled.items():
            text = json.dumps(entry.get("do", entry)).replace("${key}", key).replace("${item}", item)
            found[key] = json.loads(text)
    return found


ENTRIES = entries()


def loads(stage: str) -> set[str]:
    """The stages whose saved runs a notebook loads."""
    code = ast.parse(sources.code_of(sources.read_notebook(sources.notebook_path(stage))))
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    return {ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func) in ("load_tensors", "find_folder")}


def saves(stage: str) -> bool:
    code = sources.code_of(sources.read_notebook(sources.notebook_path(stage)))
    return "report.save(" in code or "report.new_folder(" in code


def test_every_notebook_has_its_stage_and_its_section_and_no_other_is_there():
    sections = [config.section_name(stage) for stage in STAGES]
    assert sorted(ENTRIES) == STAGES
    assert pipeline.stages().keys() == {"sources", *STAGES, "site"}
    assert list(SECTIONS) == sections
    assert [name.split("/")[2] for name in PIPELINE["plots"]] == STAGES
    assert [name for name in config.read() if name not in Globals.model_fields] == sections


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_one_form(stage):
    """It depends on its text, its code, its section and the runs that it loads, and publishes what a notebook makes."""
    entry = ENTRIES[stage]
    assert entry["cmd"] == f"python -m dipp_core.book.pipeline run {stage}"
    assert entry["params"] == ["scale", "seed", "threads", config.section_name(stage)]
    text = ".work/sources" if stage == "00_start_here" else f".work/sources/{stage}.ipynb"  # the map of all notebooks
    assert {text, f".work/code/{stage}"} <= set(entry["deps"])
    runs = {name for name in entry["deps"] if name.startswith("reports/runs/")}
    assert runs == {f"reports/runs/{name}" for name in loads(stage)}
    outs = {name: how for out in entry["outs"] for name, how in out.items()}
    assert (f"reports/runs/{stage}" in outs) == saves(stage)
    assert all(how["persist"] and how.get("cache", True) == ("/runs/" in name) for name, how in outs.items())


def test_a_stage_depends_on_exactly_the_metrics_that_it_reads():
    """The one that puts all results beside the papers reads those of earlier stages, full scale where it is there."""
    from dipp_core.book import results

    for stage in STAGES:
        declared = {name for name in ENTRIES[stage]["deps"] if name.startswith("reports/metrics/")}
        read = [*results.METRICS, *results.FULL] if stage == "41_paper_and_here" else []
        assert declared == {f"reports/metrics/{name}.json" for name in read if name in STAGES}


def test_what_a_stage_reads_is_in_the_repository_or_made_by_an_earlier_stage():
    """And carries no times: manifests have dates in them and never hash equal."""
    made: list[str] = []
    for stage in STAGES:
        entry = ENTRIES[stage]
        for name in entry["deps"]:
            own = name.startswith(".work/") or ((ROOT / name).exists() and not name.startswith("reports/"))
            assert own or name in made, f"{stage}: {name}"
        made += [name for out in entry["outs"] + entry["metrics"] for name in out]
    assert not any("manifests" in name for name in made)


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_keeps_the_rules_of_all_notebooks(stage):
    cells = sources.read_notebook(sources.notebook_path(stage))["cells"]
    words = {"markdown": 0, "code": 0}
    for cell in cells:
        words[cell["cell_type"]] += len("".join(cell["source"]).split())
    code = ast.parse(sources.code_of({"cells": cells}))
    assert pipeline.lint(stage) == []
    assert [node.name for node in code.body if isinstance(node, ast.ClassDef)] == [], "it belongs in the library"
    assert words["markdown"] >= words["code"] / 2, "as much prose as code; half as much is still called as much"
