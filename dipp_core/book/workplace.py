"""Where a long run of a notebook is kept while it is under way.

The name of the folder says what the run depends on. Killed and started again, it finds its own checkpoints; with
another setting, other inputs or other code it finds none, and begins anew instead of being refused.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dipp_core.book import sources
from dipp_core.files import root, write_whole


def workplace(stage: str, name: str, settings: dict, inputs: Iterable[Tensor]) -> pathlib.Path:
    """.work/long/STAGE/NAME_DIGEST, of settings (JSON), input tensors, code, threads and torch; not made here.

    The code is that of the notebook and of all files of dipp_core that it imports; prose may change. Who is done
    removes the folder, so that the next run starts fresh.
    """
    code = sources.code_of(sources.read_notebook(sources.notebook_path(stage)))
    facts = {"settings": settings, "torch": torch.__version__, "threads": torch.get_num_threads(), "code": code}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in sources.imports(code):
        digest.update(sources.code_hash((root() / file).read_text()).encode())
    for tensor in inputs:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return root() / ".work" / "long" / stage / f"{name}_{digest.hexdigest()[:12]}"


def kept(path: pathlib.Path, make: Callable[[], dict]) -> dict:
    """What make() gave, from its file if there is one: a dict of tensors, numbers, texts, lists and dicts."""
    if not path.is_file():
        content = io.BytesIO()
        torch.save(make(), content)
        write_whole(path, content.getvalue())
    return torch.load(path, weights_only=True)
