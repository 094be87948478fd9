"""Prompts encoded once and kept on the disk, so that millions of them need no memory and no encoder a second time.

    prompts = stored_prompts("encoded_prompts", folder, texts, dtype=torch.bfloat16, load_encoder=..)
    cond = prompts.draw((8,), generator)

gives what `Prompts` gives, row for row and draw for draw; what it holds in memory is the texts themselves and 8 bytes
for each. The cache is a folder that any number of runs share: prompts are found by their text under a name for the
encoder (`prompt_files.identity`). Encoding that was stopped, however hard, goes on where its last whole file ended.
"""

import pathlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dipp_core.method.scores import Cond
from dipp_core.models import prompt_files
from dipp_core.models.latent_files import PIXART_TOKENS
from dipp_core.models.prompt_files import PromptFileError
from dipp_core.models.prompts import Prompts, TextEncoder

SHARD = 256  # prompts of a file; what is lost at most when a process is killed


@dataclass(frozen=True)
class StoredPrompts(Prompts):
    """A table of prompts whose leaves are on the disk: `leaves` is empty, rows are read when they are asked for.

    files: of the store. places: file and row of every prompt, (n, 2). empty: the empty prompt in main memory.
    """

    files: tuple[pathlib.Path, ...]
    places: np.ndarray
    empty: dict[str, Tensor]

    def rows(self, index: Tensor) -> Cond:
        """The condition of some rows; index (B,), where -1 is the empty prompt."""
        if len(self) and int(index.max()) >= len(self):
            raise IndexError(f"there is no prompt {int(index.max())}: the table has {len(self)}")
        found = [self._row(number) for number in index.flatten().tolist()]
        chosen = {
            name: torch.stack([row[name] for row in found]).unflatten(0, index.shape).to(leaf.device)
            for name, leaf in self.null.items()
        }
        return chosen | {"prompt": index.to(self.null["tokens"].device)}

    def _row(self, number: int) -> dict[str, Tensor]:
        """The leaves of one prompt, in main memory, padded as the encoder pads."""
        if number < 0:
            return {name: leaf[0] for name, leaf in self.empty.items()}
        file, row = self.places[number]
        kept = prompt_files.read_row(self.files[file], int(row))
        found = {name: value.to(self.empty[name].dtype) for name, value in kept.items()}
        if "mask" in self.empty:
            mask, length = self.empty["mask"][0], len(kept["tokens"])
            found["mask"] = (torch.arange(len(mask)) < length).to(mask.dtype)
            tokens = found["tokens"].new_zeros(len(mask), found["tokens"].shape[1])
            tokens[:length] = found["tokens"]
            found["tokens"] = tokens
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "StoredPrompts":
        """The table with its conditions on a device; floating leaves in `dtype` where it is given."""
        empty = {
            k: leaf.to(dtype if dtype and leaf.is_floating_point() else leaf.dtype) for k, leaf in self.empty.items()
        }
        return replace(self, empty=empty, null={name: leaf.to(device) for name, leaf in empty.items()})


def stored_prompts(
    cache: pathlib.Path | str,
    folder: pathlib.Path | str,
    texts: Sequence[str],
    *,
    load_encoder: Callable[[], TextEncoder],
    dtype: torch.dtype,
    kept: torch.dtype | None = None,
    batch: int = 64,
    shard: int = SHARD,
    progress: bool | None = None,
    say: Callable[[str], None] = print,
) -> StoredPrompts:
    """The table of these prompts under the encoder of a model's folder; what is not in the cache is encoded first.

    load_encoder is called only if something is missing. dtype: what it computes in. kept: the dtype on the disk, the
    same if none is given. batch: prompts encoded at once. progress: a bar; by default where there is a terminal.
    """
    if not texts:
        raise ValueError("no prompts were given: the list is empty")
    kept = kept or dtype
    place = pathlib.Path(cache) / prompt_files.identity(folder, dtype=dtype, kept=kept)
    keys = prompt_files.as_keys(b"".join(map(prompt_files.key_of, texts)))
    if len(_missing(place, keys)) or not _null_file(place).exists():
        _make(place)
        with prompt_files.alone(place, say):
            new = [texts[number] for number in _missing(place, keys)]
            if new or not _null_file(place).exists():
                _fill(place, load_encoder(), new, kept=kept, sizes=(batch, shard), progress=progress, say=say)
    files, known, where = prompt_files.listed(place)
    null, places = _read_null(place), where[np.searchsorted(known, keys)]
    return StoredPrompts(tuple(texts), {}, null, files, places, null)


def _make(place: pathlib.Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise PromptFileError(f"{place} cannot be made ({why}): give a folder that can be written to") from None


def _missing(place: pathlib.Path, keys: np.ndarray) -> np.ndarray:
    """Where in a list of keys those stand that are not in the store, each once."""
    found, first = np.unique(keys, return_index=True)
    return np.sort(first[~np.isin(found, prompt_files.listed(place)[1])])


def _null_file(place: pathlib.Path) -> pathlib.Path:
    return place / "null.safetensors"


def _read_null(place: pathlib.Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _null_file(place)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        why = str(error).strip().splitlines()[0][:120]
        raise PromptFileError(f"{path} is no whole file ({why}): {prompt_files.AGAIN}") from None


def _fill(
    place: pathlib.Path,
    text: TextEncoder,
    new: list[str],
    *,
    kept: torch.dtype,
    sizes: tuple[int, int],
    progress: bool | None,
    say: Callable[[str], None],
) -> None:
    """Encode what is new, a file at a time. sizes: prompts of a batch and of a file."""
    from tqdm.auto import tqdm

    batch, shard = sizes

    def on_disk(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: leaf.cpu().to(kept if leaf.is_floating_point() else leaf.dtype) for k, leaf in leaves.items()}

    if not _null_file(place).exists():
        prompt_files.write(_null_file(place), on_disk(text.null()))
    if new:
        null = _read_null(place)
        size, free = estimate(text, new, null), shutil.disk_usage(place).free
        if size > free:
            raise PromptFileError(
                f"{len(new):,} prompts need about {size / 1e9:.1f} GB in {place}, {free / 1e9:.1f} GB are free: "
                "free some, or give a folder on another disk"
            )
        if len(new) > shard:
            say(f"encoding {len(new):,} prompts, about {size / 1e9:.2f} GB on the disk")
    form = {"desc": "encoding", "unit": "prompt", "leave": False, "disable": None if progress is None else not progress}
    with tqdm(total=len(new), **form) as bar:
        for start in range(0, len(new), shard):
            some, parts = new[start : start + shard], []
            for first in range(0, len(some), batch):
                parts.append(on_disk(text.encode_batch(some[first : first + batch])))
                bar.update(len(parts[-1]["tokens"]))
            leaves = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            prompt_files.write_shard(place, some, leaves)


def estimate(text: TextEncoder, new: Sequence[str], null: dict[str, Tensor], sample: int = 512) -> float:
    """Bytes that these prompts will take on the disk, from the number of tokens that some of them have."""
    tokens = float(null["tokens"].shape[1])
    if text.masked:
        some = [one.lower().strip() for one in new[:: max(1, len(new) // sample)]]
        cut = text.tokenizer(some, max_length=text.max_length, truncation=True)
        tokens = sum(map(len, cut["input_ids"])) / len(some)
    value = null["tokens"].element_size()
    pooled = null["pooled"].shape[1] if "pooled" in null else 0
    return len(new) * (value * (tokens * null["tokens"].shape[2] + pooled) + 16 + 8 + 8)


def guessed_tokens(texts: Sequence[str], most: int = PIXART_TOKENS) -> float:
    """The mean number of tokens of prompts under a mask, before any tokenizer is there: one for 3 letters is plenty."""
    return sum(min(most, len(text) / 3 + 2) for text in texts) / max(1, len(texts))
