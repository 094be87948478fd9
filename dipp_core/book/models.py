"""Folders of models that one notebook makes and later ones load, beside the tensors of `report.save` and `saved.load`.

Such a folder is an ordinary folder of `save_pretrained`; the facts that go along stand in its `facts.json`.
"""

import json
import os
import pathlib

from dipp_core.book import config
from dipp_core.book.report import Report, plain
from dipp_core.book.saved import SavedRunError
from dipp_core.files import write_whole


def new(report: Report, name: str, *, scale: str, **facts) -> pathlib.Path:
    """A folder for one model among the saved runs of a stage; `facts` (JSON) go along."""
    folder = report.root / "runs" / report.stage / name
    text = json.dumps(plain({"scale": scale} | facts), sort_keys=True, allow_nan=False)
    write_whole(folder / "facts.json", text.encode())
    return folder


def find(stage: str, name: str, *, scale: str) -> tuple[pathlib.Path, dict]:
    """The folder that a stage made under this name, and the facts that went along; `scale` is that of who asks."""
    reports = config.root() / "reports"
    own = pathlib.Path(os.environ.get("DIPP_RESULTS") or reports / "scratch")
    folders = [place / "runs" / stage / name for place in (own, reports)]
    folder = next((place for place in folders if (place / "facts.json").is_file()), None)
    how = f"run `dvc repro {stage}`, or the notebook {stage} by hand, first"
    if folder is None:
        raise SavedRunError(f"{folders[-1]} is missing: {how}")
    try:
        facts = json.loads((folder / "facts.json").read_text())
        made = facts["scale"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SavedRunError(f"{folder / 'facts.json'} cannot be read; remove {folder} and {how}") from None
    if made != scale:
        hint = f"`scale: {scale}`"
        raise SavedRunError(f"{folder} was made at scale '{made}', this notebook runs at '{scale}': {how} with {hint}")
    return folder, facts
