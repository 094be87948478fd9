"""A small checkout that obeys every rule of the real one: two notebooks of a second each, over two small modules.

`01_draw` uses `alpha.py` and the figures and tables of the library; `02_count` uses `beta.py` alone.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from unittest import mock

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; before torch is imported

FILES = {
    "params.yaml": """\
        # the numbers of a small pipeline
        scale: mini
        seed: 0
        threads: 1

        draw:
          points: {smoke: 3, mini: 5, full: 9}

        count:
          steps: 5  # how far to count
        """,
    "dipp_core/__init__.py": "",
    "dipp_core/alpha.py": """\
        def curve(points):
            return [x * x for x in range(points)]
        """,
    "dipp_core/beta.py": """\
        import json
        import os
        import pathlib
        import time

        from dipp_core.book import config


        def count(steps):
            gate = config.root() / "gate"  # while this folder is there, counting takes for ever
            end = time.monotonic() + 120
            while gate.is_dir() and time.monotonic() < end:
                (gate / "kernel").write_text(str(os.getpid()))
                time.sleep(0.05)
            return sum(range(steps))


        class Plain:
            \"\"\"Publishes without matplotlib, which takes a second to import.\"\"\"

            def write(self, name, text):
                path = pathlib.Path(os.environ["DIPP_REPORTS"]) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

            def metrics(self, values):
                self.write("figures/02_count/dots.txt", "." * values["count"])
                self.write("tables/02_count/count.csv", f"count\\n{values['count']}\\n")
                self.write("metrics/02_count.json", json.dumps(values) + "\\n")
        """,
    "dipp_core/unused.py": "",
    "dipp_core/book/sections.py": """\
        from typing import Annotated

        from pydantic import Field

        from dipp_core.book.section_types import Section


        class Draw(Section):
            points: Annotated[int, Field(ge=2)]


        class Count(Section):
            steps: Annotated[int, Field(ge=1, le=100)]


        SECTIONS = {"draw": Draw, "count": Count}
        """,
}

NOTEBOOKS = {
    "01_draw": [
        "# Drawing\n\nA curve: $y = x^2$.",
        "from dipp_core import alpha\nfrom dipp_core.book import config, report",
        "overrides = {}",
        'params = config.section("01_draw", overrides)\npaper = report.open_report("01_draw")',
        "import matplotlib.pyplot as plt\nimport pandas as pd\n\n"
        "values = alpha.curve(params.points)\nfig, ax = plt.subplots()\n_ = ax.plot(values)",
        'paper.table(pd.DataFrame({"y": values}), "curve")',
        'paper.figure(fig, "curve", "a parabola")',
        'paper.metrics({"last": values[-1]})',
    ],
    "02_count": [
        "# Counting",
        "from dipp_core import beta\nfrom dipp_core.book import config",
        "overrides = {}",
        'params = config.section("02_count", overrides)',
        "total = beta.count(params.steps)  # counts",
        'beta.Plain().metrics({"count": total})',
    ],
}


def as_notebook(cells: list[str]) -> dict:
    """Texts as the cells of a notebook: Markdown where they begin with a heading, the parameters cell tagged."""
    found = []
    for text in cells:
        kind = "markdown" if text.startswith("# ") else "code"
        metadata = {"tags": ["parameters"]} if text == "overrides = {}" else {}
        outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
        found.append({"cell_type": kind, "metadata": metadata, "source": text} | outputs)
    return {"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}


def pipeline() -> dict:
    """dvc.yaml of the small checkout: two stages of the real one, with other names."""
    from ruamel.yaml import YAML

    real = YAML(typ="safe").load((CHECKOUT / "dvc.yaml").read_text())["stages"]
    theory = real["theory"] | {"foreach": {stage: stage[3:] for stage in NOTEBOOKS}}
    return {
        "stages": {"sources": real["sources"], "theory": theory},
        "plots": ["reports/figures/01_draw/curve.png"],
    }


def make_small_checkout(root: pathlib.Path) -> pathlib.Path:
    """Write its files into an empty folder."""
    skipped = shutil.ignore_patterns("__pycache__", "site")  # three megabytes that no test of a small checkout needs
    shutil.copytree(CHECKOUT / "dipp_core/book", root / "dipp_core/book", ignore=skipped)
    shutil.copyfile(CHECKOUT / "dipp_core/files.py", root / "dipp_core/files.py")
    (root / ".dvc").mkdir()
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(CHECKOUT / name, root / name)
    for name, text in FILES.items():
        (root / name).write_text(textwrap.dedent(text))
    (root / "notebooks").mkdir()
    for stage, cells in NOTEBOOKS.items():
        (root / "notebooks" / f"{stage}.ipynb").write_text(json.dumps(as_notebook(cells)))
    (root / "dvc.yaml").write_text(json.dumps(pipeline(), indent=2))
    return root


@dataclasses.dataclass(frozen=True)
class Checkout:
    """A checkout and what a reader does in it."""

    root: pathlib.Path

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.root / name

    def environment(self) -> dict[str, str]:
        """The variables of a reader's shell in the project's environment, and none of the reader's git settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIPP_", "GIT_", "DVC_"))}
        kept.pop("PYTHONPATH", None)
        kept |= {f"GIT_{role}_{what}": "test@test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        kept |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return kept | {"PATH": path, "DVC_SITE_CACHE_DIR": str(self.root.parent / "dvc")}

    def command(self, *words: str, **options) -> subprocess.CompletedProcess:
        """Run a command in the checkout."""
        options = {"capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(words, cwd=self.root, env=self.environment(), **options)

    def dvc(self, *words: str) -> subprocess.CompletedProcess:
        return self.command(sys.executable, "-m", "dvc", *words)

    def git(self, *words: str) -> str:
        return self.command("git", *words, check=True).stdout

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))

    def set_cell(self, stage: str, number: int, text: str) -> None:
        """Replace the text of one cell, counted from 1 as a reader counts."""
        path = self.root / "notebooks" / f"{stage}.ipynb"
        notebook = json.loads(path.read_text())
        notebook["cells"][number - 1]["source"] = text
        path.write_text(json.dumps(notebook))

    def published(self) -> dict[str, bytes]:
        """Everything under reports/, hidden files too."""
        found = (path for path in (self.root / "reports").rglob("*") if path.is_file())
        return {path.relative_to(self.root / "reports").as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="session")
def checkout() -> pathlib.Path:
    """The real checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def small_checkout(tmp_path_factory):
    """Makes a small checkout: `small_checkout(folder)`; the space in its path must not matter."""
    model = make_small_checkout(tmp_path_factory.mktemp("model"))
    return lambda folder: Checkout(shutil.copytree(model, folder / "a paper companion"))


@pytest.fixture(scope="session")
def adopted():
    """`with adopted(small): ..` the library in this process takes a small checkout for its own."""

    @contextlib.contextmanager
    def adopt(small: Checkout):
        from dipp_core.book import config

        spec = importlib.util.spec_from_file_location("small_sections", small / "dipp_core/book/sections.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sections = mock.patch.dict(config.SECTIONS, module.SECTIONS, clear=True)
        with sections, mock.patch.dict(os.environ, {"DIPP_ROOT": str(small.root)}):
            yield small

    return adopt


@pytest.fixture
def small(small_checkout, adopted, tmp_path):
    """A small checkout, adopted for one test."""
    with adopted(small_checkout(tmp_path)) as made:
        yield made


@pytest.fixture(scope="session")
def stages_run():
    """The stages that `make repro` ran, in order, from what it printed."""
    return lambda output: re.findall(r"Running stage '(?:\w+@)?(\w+)'", output)


@pytest.fixture(scope="session")
def saved_by_an_editor():
    """`saved_by_an_editor(path)` does to a notebook what running and saving it in another front end does."""
    import nbformat

    def save(path):
        """Run, in another front end, saved: outputs, counters, times, ids, widget state, all that editors add."""
        notebook = nbformat.read(path, as_version=4)
        notebook.nbformat_minor = 5
        notebook.metadata = {
            "kernelspec": {"name": "other", "display_name": "My own", "language": "python"},
            "language_info": {"name": "python", "version": "3.12.1"},
            "widgets": {"state": {}},
        }
        for number, cell in enumerate(notebook.cells):
            cell.id = f"random{number}"
            cell.metadata |= {"collapsed": False, "editable": True, "execution": {"iopub.status.busy": "2024-01-01"}}
            if cell.cell_type == "code":
                cell.execution_count = 10 + number
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="3.14\n")]
        notebook.cells.append(nbformat.v4.new_code_cell(""))
        nbformat.write(notebook, path)

    return save
