"""What a notebook is made of: its text, and the files of `dipp_core` that it imports, directly or not.

`write` puts both under .work, where the pipeline tracks them: .work/sources/STAGE.ipynb is the notebook without what
changes when it is opened, run or saved, and .work/code/STAGE names the files of the library with hashes of their code.
So saving a notebook makes nothing stale, nor does a comment or docstring; an edit of code makes stale exactly the
notebooks that use the file.
"""

import ast
import functools
import json
import pathlib
import re

from dipp_core.files import InputError, code_hash, root, write_whole

# Not code of a notebook: schemas have no defaults, so they can refuse a run but never change its result.
SCHEMAS = "dipp_core/book/sections.py"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebook_path(stage: str) -> pathlib.Path:
    return root() / "notebooks" / f"{stage}.ipynb"


def stages() -> list[str]:
    """All notebooks, in reading order."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def read_notebook(path: pathlib.Path) -> dict:
    try:
        notebook = json.loads(path.read_text())
        if not all("cell_type" in cell and "source" in cell for cell in notebook["cells"]) or not notebook["cells"]:
            raise KeyError
    except FileNotFoundError:
        raise InputError(f"{path.name}: no such notebook; there are {', '.join(stages())}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a notebook (broken JSON or no cells); restore it with git") from None
    return notebook


def clean(notebook: dict) -> dict:
    """Order, kind, text and tags of the cells; no outputs, counters, editor metadata or ids, which differ by clone."""
    cells = []
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        kept = {
            "cell_type": cell["cell_type"],
            "metadata": {"tags": sorted(tags)} if tags else {},
            "source": "".join(cell["source"]).rstrip(),
        }
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        if kept["source"]:
            cells.append(kept)
    return {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 4}


def _text(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def cleaned_text(stage: str) -> str:
    """The canonical text of a notebook: equal bytes mean equal content."""
    return _text(clean(read_notebook(notebook_path(stage))))


def strip(stage: str) -> None:
    """Remove outputs and editor metadata from a notebook in place."""
    path = notebook_path(stage)
    notebook = clean(read_notebook(path)) | {"nbformat_minor": 5}
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number:02d}"
        cell["source"] = cell["source"].splitlines(keepends=True)
    if _text(notebook) != path.read_text():
        write_whole(path, _text(notebook))


def code_of(notebook: dict) -> str:
    """The Python of a notebook: its code cells without IPython's own lines."""
    cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


@functools.lru_cache(maxsize=512)
def modules(code: str) -> frozenset[str]:
    """Names of dipp_core that this code imports, anywhere in it; `from a import b` may mean the module a.b."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == "dipp_core")


def files_of(code: str) -> set[str]:
    """The files that this code imports itself, and the packages on the way to them, as paths below the checkout."""
    parts = [name.split(".") for name in modules(code)]
    bases = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}
    paths = {f"{base}{end}" for base in bases for end in ("/__init__.py", ".py")}
    return {path for path in paths if (root() / path).is_file()} - {SCHEMAS}


def imports(code: str) -> list[str]:
    """Every file of dipp_core that running this code reads, as paths below the checkout, sorted."""
    found: set[str] = set()
    left = files_of(code)
    while left:
        found |= left
        left = {other for path in left for other in files_of((root() / path).read_text())} - found
    return sorted(found)


def code_text(stage: str) -> str:
    """A line for every file of the library that a notebook uses: hash and path."""
    files = imports(code_of(read_notebook(notebook_path(stage))))
    return "".join(f"{code_hash((root() / file).read_text())}  {file}\n" for file in files)


def write(stage: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The cleaned notebook and the list of its code under .work; untouched where they are already right."""
    paths = root() / ".work" / "sources" / f"{stage}.ipynb", root() / ".work" / "code" / stage
    for path, text in zip(paths, (cleaned_text(stage), code_text(stage)), strict=True):
        old = path.read_text() if path.is_file() else None
        if old is not None and path.parent.name == "code" and old != text:
            changed = sorted({line.split("  ")[1] for line in set(old.splitlines()) ^ set(text.splitlines())})
            print(f"{stage}: {', '.join(changed)} changed")
        if old != text:
            write_whole(path, text)
    return paths


def write_all() -> None:
    """`write` for all notebooks, and nothing else there; a notebook that the pipeline names must be there."""
    pipeline = root() / "dvc.yaml"
    named = set(re.findall(r'^ +"?(\d\d_\w+)"?:', pipeline.read_text(), re.M)) if pipeline.is_file() else set()
    for name in sorted(named - set(stages())):
        raise InputError(f"notebooks/{name}.ipynb: missing, though dvc.yaml names it; restore it with git")
    wanted = {path for stage in stages() for path in write(stage)}
    for path in [*(root() / ".work" / "sources").glob("*"), *(root() / ".work" / "code").glob("*")]:
        if path not in wanted:
            path.unlink()
