"""What a notebook is made of: its cleaned text and the files of `dipp_core` that it imports, directly or not.

A stage of the pipeline depends on exactly these, so saving a notebook with outputs changes nothing, and editing a file
of the library re-runs only the notebooks that import it.
"""

import ast
import hashlib
import json
import os
import pathlib

from dipp_core.book import config


def notebook_path(stage: str) -> pathlib.Path:
    return config.root() / "notebooks" / f"{stage}.ipynb"


def stages() -> list[str]:
    """All notebooks, in reading order."""
    return sorted(path.stem for path in (config.root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def clean(notebook: dict) -> dict:
    """The notebook without what changes when it is merely opened, run or saved.

    Dropped: outputs, execution counts, editor metadata, attachments of the front end and cell ids (an id differs
    between clones). Kept: the order, kind and text of the cells, and their tags.
    """
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
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def read_notebook(path: pathlib.Path) -> dict:
    try:
        notebook = json.loads(path.read_text())
        if not all("cell_type" in cell and "source" in cell for cell in notebook["cells"]) or not notebook["cells"]:
            raise KeyError
    except FileNotFoundError:
        known = stages()
        raise SystemExit(f"{path.name}: no such notebook; there are {', '.join(known)}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise SystemExit(f"{path}: not a notebook (broken JSON or no cells); restore it with git") from None
    return notebook


def cleaned_text(path: pathlib.Path) -> str:
    """The canonical text of a notebook: equal bytes mean equal content."""
    return json.dumps(clean(read_notebook(path)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_cleaned(stage: str) -> pathlib.Path:
    """The cleaned source under .work/sources, which the pipeline tracks; untouched where it is already right."""
    folder = config.root() / ".work" / "sources"
    path, text = folder / f"{stage}.ipynb", cleaned_text(notebook_path(stage))
    if not path.is_file() or path.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f"{stage}.partial")  # not inside: the pipeline tracks the whole folder
        partial.write_text(text)
        os.replace(partial, path)
    return path


def write_all_cleaned() -> None:
    """The cleaned sources of all notebooks, and of no others; a notebook that the pipeline names must be there."""
    for name in sorted(set(filter(lambda stage: stage[:2].isdigit(), _pipeline())) - set(stages())):
        raise SystemExit(f"notebooks/{name}.ipynb: missing, though dvc.yaml names it; restore it with git")
    wanted = {write_cleaned(stage) for stage in stages()}
    for path in (config.root() / ".work" / "sources").glob("*"):
        if path not in wanted:
            path.unlink()


def strip(stages: list[str]) -> None:
    """Remove outputs and editor metadata from notebooks in place."""
    for stage in stages:
        path = notebook_path(stage)
        notebook = clean(read_notebook(path)) | {"nbformat_minor": 5}
        for number, cell in enumerate(notebook["cells"]):
            cell["id"] = f"cell-{number:02d}"
            cell["source"] = cell["source"].splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if text != path.read_text():
            path.write_text(text)


def code_of(notebook: dict) -> str:
    """The Python of a notebook: its code cells without IPython's own lines."""
    cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))


def _imported(code: str, package: pathlib.Path) -> set[pathlib.Path]:
    """Files of dipp_core that this code names in an import statement, and the packages on the way to them."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != package.name:
            continue
        for depth in range(1, len(parts) + 1):
            base = package.joinpath(*parts[1:depth])
            files |= {path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()}
    return files


def imports(code: str, root: pathlib.Path | None = None) -> list[str]:
    """Every file of dipp_core that running this code reads, as paths relative to the checkout, sorted."""
    root = root or config.root()
    package = root / "dipp_core"
    found, open_files = set(), _imported(code, package)
    while open_files:
        path = open_files.pop()
        found.add(path)
        open_files |= _imported(path.read_text(), package) - found
    return sorted(path.relative_to(root).as_posix() for path in found)


def _pipeline() -> dict[str, dict]:
    """The stages of dvc.yaml."""
    from ruamel.yaml import YAML

    path = config.root() / "dvc.yaml"
    return YAML(typ="safe").load(path.read_text()).get("stages", {}) if path.is_file() else {}


def declared(stage: str) -> list[str]:
    """The dependencies that dvc.yaml declares for a stage and that people edit: code, data and notebooks."""
    entry = _pipeline().get(stage, {})
    edited = ("dipp_core", "data/", "requirements.lock", ".work/sources")
    return [name for name in entry.get("deps", []) if name.startswith(edited)]


def _files(name: str) -> list[pathlib.Path]:
    """The files behind a declared dependency; a cleaned notebook stands for its source."""
    path = config.root() / name
    if name == ".work/sources":
        return [notebook_path(stage) for stage in stages()]
    if name.startswith(".work/sources/"):
        return [notebook_path(path.stem)]
    if path.is_dir():
        return sorted(found for found in path.rglob("*") if found.is_file() and "__pycache__" not in found.parts)
    if not path.is_file():
        raise SystemExit(f"{name}: missing, though dvc.yaml declares it; `git checkout -- {name}` or run its stage")
    return [path]


def fingerprint(stage: str) -> dict[str, str]:
    """The sources of one stage with their hashes; compared before and after a run, and kept in its manifest."""
    root = config.root()
    own = notebook_path(stage)
    files = {own} | {root / name for name in imports(code_of(read_notebook(own)))}
    files |= {path for name in declared(stage) for path in _files(name)}
    hashes = {}
    for path in sorted(files):
        content = cleaned_text(path).encode() if path.suffix == ".ipynb" else path.read_bytes()
        hashes[path.relative_to(root).as_posix()] = hashlib.sha256(content).hexdigest()[:16]
    return hashes


if __name__ == "__main__":  # the dependencies that dvc.yaml must name, stage by stage
    for name in stages():
        print(f"{name}:", *imports(code_of(read_notebook(notebook_path(name)))), sep="\n      - ")
