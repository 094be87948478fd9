"""The shape of the house: who imports whom, and that notebooks and pipeline say the same."""

import ast
import json
import pathlib
import re
import sys

import pytest
from ruamel.yaml import YAML

from dipp_core.book import config, pipeline, sources

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dipp_core").rglob("*.py"))
STAGES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PIPELINE = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())

# Which rooms of dipp_core a room may import, beside itself; None: also any other package
ROOMS = ("method", "worlds", "rewards", "models")  # each may import those before it
MAY_IMPORT = {"method": {"torch"}} | {
    own: {*ROOMS[:n], "files", None} for n, own in enumerate(ROOMS) if own != "method"
}
# What a stage reads without importing it
READS = {
    # the map of the book reads all notebooks and all of the method; the environment check reads the lock
    "00_start_here": {".work/sources", "data/reported", "dipp_core/method", "requirements.lock"},
}


def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def imported(name: str) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import hides what the pipeline must know; write it in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    """'dipp_core.method.scores' -> 'method'; 'torch.nn' -> 'torch' where it matters, else None."""
    parts = module.split(".")
    if parts[0] == "dipp_core":
        return parts[1] if len(parts) > 1 else ""
    return "torch" if parts[0] == "torch" else None


# ------------------------------------------------------------------------------------------------------- the library


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name):
    own = pathlib.PurePath(name).parts[1]
    modules = {module for module in imported(name) if module.split(".")[0] not in sys.stdlib_module_names}
    if own in MAY_IMPORT:
        allowed = MAY_IMPORT[own] | {own} | ({"torch"} if None in MAY_IMPORT[own] else set())
        assert {module for module in modules if room(module) not in allowed} == set()


@pytest.mark.parametrize("name", FILES)
def test_importing_a_file_only_defines(name):
    """At the top of a file stand imports, definitions, values, and what runs only as a command."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree(name).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        as_command = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        assert isinstance(node, allowed) or docstring or as_command, f"{name}, line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_is_for(name):
    assert ast.get_docstring(tree(name))


# ----------------------------------------------------------------------------------- notebooks, parameters, pipeline


def calls(stage: str) -> list[ast.Call]:
    """All calls in a notebook's code."""
    code = sources.code_of(sources.read_notebook(ROOT / f"notebooks/{stage}.ipynb"))
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]


def saves_runs(stage: str) -> bool:
    return any(ast.unparse(call.func) in ("report.save", "models.new") for call in calls(stage))


def loads_runs(stage: str) -> set[str]:
    """The stages whose saved runs a notebook loads."""
    loading = ("saved.load", "models.find")
    return {ast.literal_eval(call.args[0]) for call in calls(stage) if ast.unparse(call.func) in loading}


def test_every_notebook_has_its_stage_and_every_stage_its_notebook():
    assert list(PIPELINE["stages"]) == ["sources", *STAGES, "site"]


def test_every_notebook_has_its_section_and_every_section_its_notebook():
    sections = [config.section_name(stage) for stage in STAGES]
    assert list(config.sections()) == sections
    assert [name for name in config.read(ROOT / "params.yaml") if name not in config.Globals.model_fields] == sections


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_one_form(stage):
    entry = PIPELINE["stages"][stage]
    assert entry["desc"]
    assert entry["cmd"] == f"python -m dipp_core.book.pipeline run {stage}"
    assert entry["params"] == ["scale", "seed", "threads", config.section_name(stage)]
    small = [f"reports/figures/{stage}", f"reports/tables/{stage}", f"reports/notebooks/{stage}.html"]
    kept = {"cache": False, "persist": True}
    runs = [{f"reports/runs/{stage}": {"persist": True}}] if saves_runs(stage) else []
    found = [out for out in entry["outs"] if next(iter(out)).startswith("reports/")]
    assert found == [{name: kept} for name in small] + runs
    assert entry["metrics"] == [{f"reports/metrics/{stage}.json": kept}]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_notebook_and_on_exactly_the_code_that_it_imports(stage):
    declared = set(PIPELINE["stages"][stage]["deps"])
    reads = READS.get(stage, set())
    needed = set(sources.imports(sources.code_of(sources.read_notebook(ROOT / f"notebooks/{stage}.ipynb")), ROOT))
    needed = {name for name in needed if not any(name.startswith(f"{folder}/") for folder in reads)}
    notebook = set() if ".work/sources" in reads else {f".work/sources/{stage}.ipynb"}
    code = {name for name in declared if name.startswith(("dipp_core", ".work/"))}
    others = {name for name in reads if name.startswith(("dipp_core", ".work/"))}
    assert sorted(code) == sorted(needed | notebook | others)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_saved_runs_that_it_loads(stage):
    declared = {name for name in PIPELINE["stages"][stage]["deps"] if name.startswith("reports/runs/")}
    assert declared == {f"reports/runs/{name}" for name in loads_runs(stage)}
    assert all(saves_runs(name) for name in loads_runs(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_metrics_that_it_reads(stage):
    """The one that puts all results beside the papers reads those of earlier stages, full scale where it is there."""
    from dipp_core.book import results

    declared = {name for name in PIPELINE["stages"][stage]["deps"] if name.startswith("reports/metrics/")}
    read = [*results.METRICS, *results.FULL] if stage == "41_paper_and_here" else []
    assert declared == {f"reports/metrics/{name}.json" for name in read if name in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_depends_on_what_carries_times(stage):
    """Manifests and executed notebooks have dates in them and never hash equal."""
    forbidden = ("reports/manifests", "reports/notebooks", ".work/runs", "notebooks")
    assert [name for name in PIPELINE["stages"][stage]["deps"] if name.startswith(forbidden)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_beside_code_is_in_the_repository_or_made_by_an_earlier_stage(stage):
    earlier = STAGES[: STAGES.index(stage)]
    made = [path for name in earlier for out in PIPELINE["stages"][name]["outs"] for path in out]
    made += [path for name in earlier for out in PIPELINE["stages"][name]["metrics"] for path in out]
    for name in PIPELINE["stages"][stage]["deps"]:
        own = name.startswith(".work/sources") or ((ROOT / name).exists() and not name.startswith("reports/"))
        assert own or any(name == path or name.startswith(f"{path}/") for path in made), name


def test_the_pipeline_plots_a_figure_of_every_notebook():
    shown = [name for entry in PIPELINE.get("plots", []) for name in ([entry] if isinstance(entry, str) else entry)]
    stages = {name.split("/")[2] for name in shown if name.startswith("reports/figures/") and name.endswith(".png")}
    assert sorted(stages) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_keeps_the_rules_of_all_notebooks(stage):
    assert pipeline.lint([stage]) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_defines_nothing_that_belongs_in_the_library(stage):
    code = ast.parse(sources.code_of(json.loads((ROOT / f"notebooks/{stage}.ipynb").read_text())))
    assert [node.name for node in code.body if isinstance(node, ast.ClassDef)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_has_as_much_prose_as_code(stage):
    """In words, formulas aside; half as much is still called as much."""
    cells = sources.read_notebook(ROOT / f"notebooks/{stage}.ipynb")["cells"]
    words = {"markdown": 0, "code": 0}
    for cell in cells:
        words[cell["cell_type"]] += len("".join(cell["source"]).split())
    assert words["markdown"] >= words["code"] / 2


def test_the_readme_leads_nowhere_that_is_not_there():
    """Every relative link of the README is a file of the repository, and no number was left to be filled in."""
    text = (ROOT / "README.md").read_text()
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")}
    assert sorted(link for link in links if not (ROOT / link).exists()) == []
    assert re.findall(r"\b[A-Z]+_(?:TIME|TABLE)\b", text) == []
