"""The executed notebook as it is published: `reports/notebooks/STAGE.ipynb`. Site and slides are made from these.

The same results give the same bytes: execution times, counters, cell ids and progress bars are left out. Pictures that
lie under `reports/figures` are referred to, not stored again, and links hold from `reports/notebooks/`.
"""

import base64
import hashlib
import html
import json
import pathlib
import re

from dipp_core.book.sources import KERNEL

PICTURES = ("image/png", "image/gif")
LINK = re.compile(r"(\]\()(\.\./[^)\s]+)(\))")


def moved(url: str) -> str:
    """A link of `notebooks/` to a file of the repository, as it must read in `reports/notebooks/`."""
    return "../" + url.removeprefix("../reports/") if url.startswith("../reports/") else "../" + url


def picture(output: dict, kind: str, figures: dict[str, str]) -> dict:
    """A picture by reference if it was published; any other stays in the notebook."""
    data, about = output["data"][kind], output.get("metadata", {})
    about = about | about.get(kind, {})
    content = base64.b64decode(data)
    source = figures.get(hashlib.sha256(content).hexdigest())
    source = source or f"data:{kind};base64,{base64.b64encode(content).decode()}"
    alt, width = html.escape(about.get("alt", "")), about.get("width")
    size = f' width="{width}"' if width else ""
    return {"text/html": f'<img src="{source}" alt="{alt}"{size}>', "text/plain": about.get("alt", "")}


def printed(text: str) -> str:
    """Printed text without progress bars, which are overwritten in place."""
    lines = [line for line in text.split("\n") if "\r" not in line and not re.search(r"\d+%\|", line)]
    return "\n".join(lines).strip("\n")


def outputs(cell: dict, figures: dict[str, str]) -> list[dict]:
    """What a cell printed and showed."""
    found: list[dict] = []
    for output in cell["outputs"]:
        kind = output["output_type"]
        if kind == "stream":
            if not (text := printed(output["text"])):
                continue
            if found and found[-1].get("name") == output["name"]:
                found[-1]["text"] += "\n" + text  # how a process cuts its text differs from run to run
            else:
                found.append({"output_type": kind, "name": output["name"], "text": text})
        elif kind == "error":
            found.append({key: output[key] for key in ("output_type", "ename", "evalue")} | {"traceback": []})
        else:
            shown = next((kind for kind in PICTURES if kind in output["data"]), None)
            if not shown and "application/vnd.jupyter.widget-view+json" in output["data"]:
                continue  # a widget needs a kernel; one that brings a picture is shown as that
            data = picture(output, shown, figures) if shown else dict(output["data"])
            if "text/html" in data:
                data["text/html"] = re.sub(r"<style scoped>.*?</style>\n?", "", data["text/html"], flags=re.DOTALL)
            found.append({"output_type": "display_data", "data": data, "metadata": {}})
    return found


def published(notebook: dict, figures_folder: pathlib.Path, scale: str) -> str:
    """The text of the published notebook; `figures_folder` holds the figures that this run has made."""
    figures = {
        hashlib.sha256(path.read_bytes()).hexdigest(): f"../figures/{figures_folder.name}/{path.name}"
        for path in sorted(figures_folder.glob("*"))
        if path.suffix in (".png", ".gif")
    }
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "hide" in tags:
            continue
        made = {"cell_type": cell["cell_type"], "metadata": {"tags": tags} if tags else {}, "source": cell["source"]}
        if cell["cell_type"] == "code":
            made |= {"execution_count": None, "outputs": outputs(cell, figures)}
        else:
            made["source"] = LINK.sub(lambda m: m[1] + moved(m[2]) + m[3], cell["source"])
        cells.append(made)
    metadata = {"dipp": {"scale": scale}, "kernelspec": KERNEL, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
