"""The files of encoded prompts: whole or not there, told apart by what encoded them, read row by row from the disk.

A file holds a few hundred prompts as plain safetensors: the kept tokens of all of them one after another, (sum of
lengths, d); where each begins; a vector each, where the model has one; the key of each text; and a checksum of each.
Of a prompt whose padding is hidden by a mask only the tokens that it has are kept: PixArt-alpha's T5 takes 1 MB for
120 tokens and about 0.2 MB for those of a common prompt. Where padding is part of the prompt, all tokens are kept.

A file is written under another name and renamed when it is whole, so that no half of one is ever read.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipp_core.models import latent_files

FORMAT = 1
AGAIN = "delete it and start again, its prompts are then encoded again"
WHOLE = 2**24  # bytes of a file that are hashed one and all; of larger ones, blocks spread over the file
BLOCK, BLOCKS = 2**14, 256


class PromptFileError(latent_files.ModelError):
    """One line that says which file of encoded prompts is wrong, and what to do."""


# ----------------------------------------------------------------------------------------------------- what encoded it


def identity(folder: pathlib.Path | str, *, dtype: torch.dtype, kept: torch.dtype) -> str:
    """A name for all that decides how a model's folder encodes a prompt: tokenizers, weights, masking rule, dtypes.

    Of large files the size, the first bytes (with the header) and blocks spread over the whole are looked at, which
    tells a fine-tuned encoder from the one it came from without reading 20 GB.
    """
    folder = pathlib.Path(folder)
    index = latent_files.read_json(folder / "model_index.json", "it names the classes of a folder")
    rule = [FORMAT, index.get("_class_name"), index.get("force_zeros_for_empty_prompt", True)]
    rule += [latent_files.PIXART_TOKENS, str(dtype), str(kept)]
    found = hashlib.sha256(json.dumps(rule).encode())
    places = ["tokenizer", "text_encoder", *(name for name in ("tokenizer_2", "text_encoder_2") if name in index)]
    for place in places:
        if place.startswith("text_encoder"):
            latent_files.read_json(folder / place / "config.json", "it says how large the network is")
            latent_files.check_weights(folder / place)
        for file in sorted(path for path in (folder / place).glob("*") if path.is_file()):
            if place.startswith("tokenizer") or file.name == "config.json" or file.suffix == ".safetensors":
                found.update(f"{place}/{file.name} {file.stat().st_size}".encode())
                found.update(_looked_at(file))
    entry = index.get("text_encoder")
    return f"{entry[1] if isinstance(entry, list) else entry}-{found.hexdigest()[:24]}"


def _looked_at(path: pathlib.Path) -> bytes:
    """A file's content, or blocks of it where it is large."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return file.read()
        blocks = [file.read(2**20)]
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            blocks.append(file.read(BLOCK))
    return b"".join(blocks)


def key_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def as_keys(joined: bytes) -> np.ndarray:
    """Keys, one after another, as an array that can be sorted."""
    return np.frombuffer(joined, dtype="S16")


# ------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def alone(place: pathlib.Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within the context no other process writes here; the lock of one that died is gone with it.

    What a dead process left half-written is removed. Where the disk has no locks, two may encode the same prompts.
    """
    with (place / "lock").open("w") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another process encodes prompts for the same cache: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            for left in place.glob("*.part"):
                left.unlink(missing_ok=True)
        except (ImportError, OSError):
            pass
        yield


def write(path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file and give it its name when it is on the disk as a whole."""
    from safetensors.torch import save_file

    part = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:  # the library has its own exception for a disk that is full
        part.unlink(missing_ok=True)
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise PromptFileError(f"{path} cannot be written ({why}): what was encoded before is kept") from None


def write_shard(place: pathlib.Path, texts: Sequence[str], leaves: dict[str, Tensor]) -> pathlib.Path:
    """Write the leaves (n, ...) of some prompts; the name of the file is that of its texts."""
    tokens, joined = leaves["tokens"], b"".join(map(key_of, texts))
    lengths = torch.full((len(tokens),), tokens.shape[1])
    if "mask" in leaves:
        lengths = leaves["mask"].sum(1)
        if not torch.equal(leaves["mask"].bool(), torch.arange(tokens.shape[1]) < lengths[:, None]):
            raise PromptFileError("the tokenizer pads in front: only prompts that are padded at their end can be kept")
    rows = [{"tokens": row[:length]} for row, length in zip(tokens, lengths.tolist(), strict=True)]
    tensors = {"tokens": torch.cat([row["tokens"] for row in rows]), "keys": torch.tensor(list(joined)).byte()}
    if "pooled" in leaves:
        tensors["pooled"] = leaves["pooled"]
        rows = [row | {"pooled": one} for row, one in zip(rows, leaves["pooled"], strict=True)]
    tensors["starts"] = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tensors["checks"] = torch.tensor([_check(row) for row in rows])
    path = place / f"prompts-{hashlib.blake2b(joined, digest_size=12).hexdigest()}.safetensors"
    write(path, tensors)
    return path


def _check(row: dict[str, Tensor]) -> int:
    """A checksum of one prompt's leaves."""
    found = 0
    for name in sorted(row):
        found = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy(), found)
    return found


# ------------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Whatever is wrong with a file within the context is told in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.exists() else "it is gone"
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise PromptFileError(f"{path} is no whole file of encoded prompts ({size}: {why}): {AGAIN}") from None


def listed(place: pathlib.Path) -> tuple[tuple[pathlib.Path, ...], np.ndarray, np.ndarray]:
    """All files of a place; the keys of all prompts, sorted, (n,); and file and row of each, (n, 2)."""
    from safetensors import safe_open

    files, keys, where = (
        tuple(sorted(place.glob("prompts-*.safetensors"))),
        [as_keys(b"")],
        [np.empty((0, 2), np.int32)],
    )
    for number, path in enumerate(files):
        with _named(path), safe_open(path, framework="pt") as file:
            keys.append(as_keys(file.get_tensor("keys").numpy().tobytes()))
        rows = np.arange(len(keys[-1]), dtype=np.int32)
        where.append(np.stack([np.full_like(rows, number), rows], axis=1))
    found, first = np.unique(np.concatenate(keys), return_index=True)
    return files, found, np.concatenate(where)[first]


@functools.lru_cache(maxsize=64)
def _opened(path: pathlib.Path) -> tuple[Any, Tensor, Tensor, bool]:
    """A file whose content stays on the disk, with what is needed to find a prompt in it."""
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    return file, file.get_tensor("starts"), file.get_tensor("checks"), "pooled" in file.keys()  # noqa: SIM118


def read_row(path: pathlib.Path, row: int) -> dict[str, Tensor]:
    """The leaves of one prompt as they are kept, "tokens" (length, d) and perhaps "pooled" (d',)."""
    with _named(path):
        file, starts, checks, has_pooled = _opened(path)
        first, last = starts[row].item(), starts[row + 1].item()
        found = {"tokens": file.get_slice("tokens")[first:last]}
        if has_pooled:
            found["pooled"] = file.get_slice("pooled")[row]
    if _check(found) != checks[row].item():
        raise PromptFileError(f"{path} is damaged (prompt {row} of it has changed): {AGAIN}")
    return found
