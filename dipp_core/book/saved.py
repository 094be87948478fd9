"""What an earlier notebook saved, found where the pipeline or the reader's own run put it."""

import json
import os
import pathlib

from torch import Tensor

from dipp_core.book import config
from dipp_core.files import InputError


class SavedRunError(InputError):
    """One line that says which saved run is missing or broken, and what to do."""


def places(stage: str, name: str) -> list[pathlib.Path]:
    """Where to look, first to last: beside this run's own results, then the published ones.

    By hand, a reader's own run of the earlier notebook is beside his own results, in reports/scratch.
    """
    reports = config.root() / "reports"
    own = os.environ.get("DIPP_RESULTS") or reports / "scratch"
    file = pathlib.Path("runs", stage, f"{name}.safetensors")
    return list(dict.fromkeys([pathlib.Path(own) / file, reports / file]))


def load(stage: str, name: str, *, scale: str) -> tuple[dict[str, Tensor], dict]:
    """The tensors that a stage saved under this name, and the facts that went along.

    `scale` is that of the notebook that asks: results of different scales are not mixed.
    """
    from safetensors import SafetensorError, safe_open

    how = f"run `dvc repro {stage}`, or the notebook {stage} by hand, first"
    found = next((path for path in places(stage, name) if path.is_file()), None)
    if found is None:
        raise SavedRunError(f"{places(stage, name)[-1]} is missing: {how}")
    try:
        with safe_open(found, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise SavedRunError(f"{found} cannot be read ({type(error).__name__}); remove it and {how}") from None
    if facts["scale"] != scale:
        made, hint = facts["scale"], f"`scale: {scale}`"
        raise SavedRunError(f"{found} was made at scale '{made}', this notebook runs at '{scale}': {how} with {hint}")
    if "DIPP_REPORTS" not in os.environ:
        print(f"using {found}")
    return tensors, facts
