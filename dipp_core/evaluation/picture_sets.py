"""A folder of pictures drawn for prompts: what made it, which are there, which process draws which.

    folder/made_by.json          the settings, and what they were run with; the folder takes no others
    folder/00012_3.png           the picture of prompt 12 with seed 3, written whole or not at all
    folder/scores/NAME/0of4.csv  what a judge says of the share of process 0 of 4 (see `evaluation`)

A picture depends on its prompt, its seed and the settings. Batches are cut from the whole list, whatever is there
already and whichever process draws, so that killed and resumed, or shared by processes, the bytes are the same.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import write_whole

Item = tuple[int, int]  # a prompt's place in its list, and a seed
RECORD = "made_by.json"


class PictureError(RuntimeError):
    """One line that says what is wrong with a folder of pictures, and what to do."""


# ------------------------------------------------------------------------------------------------- what is to be drawn


def items(prompts: Iterable[Prompt], seeds: Sequence[int]) -> list[Item]:
    """Every prompt with every seed, prompt by prompt."""
    return [(prompt.index, seed) for prompt in prompts for seed in seeds]


def batches(whole: Sequence[Item], size: int, shard: tuple[int, int] = (0, 1)) -> list[list[Item]]:
    """Process i's part of n, shard = (i, n): every n-th of the batches of the whole."""
    return [list(whole[k : k + size]) for k in range(0, len(whole), size)][shard[0] :: shard[1]]


def read_shard(text: str) -> tuple[int, int]:
    """ "0/4" -> (0, 4)."""
    first, slash, count = text.partition("/")
    if not slash or not first.isdigit() or not count.isdigit() or not int(first) < int(count):
        raise PictureError(f"--shard {text}: write it as i/n with i from 0 to n - 1, as in 0/4")
    return int(first), int(count)


def generator_of(item: Item) -> torch.Generator:
    """The randomness of one picture, from (seed, place of its prompt) and nothing else; on the CPU, whatever draws."""
    digest = hashlib.sha256(f"{item[1]}/{item[0]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def digest_of(prompts: Iterable[Prompt]) -> str:
    """Which prompts these are, at which places."""
    text = json.dumps([(prompt.index, prompt.text) for prompt in prompts], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------- what made it


def digest_of_files(place: pathlib.Path) -> str:
    """Which files these are: names and contents of a folder of weights, or of one file."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(place)
        if not any(part.startswith(".") for part in name.parts):  # the hub's notes on downloads
            digest.update(name.as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _flat(facts: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    found = {}
    for name, value in facts.items():
        found |= _flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {f"{place}{name}": value}
    return found


def agree(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Write the facts beside what they made, or refuse to go on where others are written."""
    facts = json.loads(json.dumps(facts))
    if not path.is_file():
        write_whole(path, (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())
    try:
        known = _flat(json.loads(path.read_text()))
    except (ValueError, AttributeError):
        raise PictureError(f"{path} cannot be read: remove {path.parent} and begin again") from None
    for name, value in _flat(facts).items():
        if name not in known or known[name] != value:
            was = f"{name} {known.get(name)!r}, not {value!r}"
            raise PictureError(f"{path.parent} was made with {was}: go back, give another folder, or remove this one")


# --------------------------------------------------------------------------------------------------------- pictures


def path_of(folder: pathlib.Path, item: Item) -> pathlib.Path:
    return folder / f"{item[0]:05d}_{item[1]}.png"


def missing(folder: pathlib.Path, wanted: Iterable[Item]) -> list[Item]:
    return [item for item in wanted if not path_of(folder, item).is_file()]


def write(folder: pathlib.Path, item: Item, picture: np.ndarray) -> None:
    """A picture (H, W, 3) in [0, 1] as PNG; what a killed process left half-written of it goes."""
    if not np.isfinite(picture).all():
        raise PictureError(f"the picture of prompt {item[0]} with seed {item[1]} is not finite: try dtype fp32 or bf16")
    path, buffer = path_of(folder, item), io.BytesIO()
    PIL.Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    for partial in folder.glob(f".{path.name}.*"):
        partial.unlink(missing_ok=True)
    write_whole(path, buffer.getvalue())


def read(path: pathlib.Path) -> Tensor:
    """A picture as a tensor (3, H, W) in [0, 1]."""
    try:
        with PIL.Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(
            f"{path} is no whole picture ({type(error).__name__}): remove it and draw it again"
        ) from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def read_all(folder: pathlib.Path, wanted: Sequence[Item]) -> Tensor:
    """Pictures of one size, (n, 3, H, W)."""
    found = [read(path_of(folder, item)) for item in wanted]
    if len(sizes := {tuple(picture.shape) for picture in found}) > 1:
        raise PictureError(f"the pictures in {folder} have {len(sizes)} sizes: remove it and draw them again")
    return torch.stack(found)
