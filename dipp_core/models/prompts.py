"""Prompts encoded once: what the denoisers of SD1.5, SDXL, PixArt-alpha and the miniature are told, looked up by row.

A condition is a dict whose leaves have the batch as first axis: "tokens" (B, L, d), "mask" (B, L) where the model looks
at a mask, "pooled" (B, d') where it is told of the prompt as a whole, and "prompt" (B,), the row in the table. Networks
ignore "prompt"; rewards find the text by it.

A few prompts are a table in memory, `encode_prompts`. Millions are kept on the disk, so that they need no memory, and
no encoder a second time:

    prompts = stored_prompts("encoded_prompts", folder, texts, dtype=torch.bfloat16, load_encoder=..)
    cond = prompts.draw((8,), generator)

gives what the table gives, row for row and draw for draw. The cache is a folder that any number of runs share: prompts
are found by their text, under a name for what encoded them. Encoding that was stopped, however hard, goes on where its
last whole file ended.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipp_core.files import InputError, check_weights, code_hash, first_line, only_one, read_json, write_whole
from dipp_core.method.scores import Cond

FORMAT = 2
PIXART_TOKENS = 120  # the length to which its pipeline pads; its mask hides the padding
NULL = "null.safetensors"  # the empty prompt
BATCH = 64  # prompts encoded at once
SHARD = 256  # prompts of a file; what is lost at most when a process is killed
AGAIN = "delete it and start again, its prompts are then encoded again"
WHOLE = 2**24  # bytes of a file that are hashed one and all; of larger ones, blocks spread over the file
BLOCK, BLOCKS = 2**14, 256


@dataclass
class TextEncoder:
    """A tokenizer and its encoder, under the convention of the pipeline they came from; every prompt is encoded once.

    masked: as in PixArt, the prompt is stripped and in lower case, and padding is 0 and hidden by a mask; else, as in
    Stable Diffusion, padding is part of the prompt. second: SDXL's other encoder; the tokens are then the last hidden
    states but one of both, side by side, and "pooled" is the second's vector for the whole prompt. zero_null: the empty
    prompt is zeros, not its encoding; as a prompt among others it is encoded.
    """

    tokenizer: Any
    encoder: Any
    max_length: int
    masked: bool = False
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    second: "TextEncoder | None" = None
    zero_null: bool = False

    def _tokenized(self, texts: list[str]) -> Any:
        options = {"padding": "max_length", "max_length": self.max_length, "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(texts, **options).to(self.encoder.device)

    @torch.no_grad()
    def encode_batch(self, texts: list[str]) -> dict[str, Tensor]:
        """The leaves of these prompts, (n, ...), straight from the encoder."""
        if self.second is not None:
            ones = (self, self.second)
            found = [one.encoder(one._tokenized(texts)["input_ids"], output_hidden_states=True) for one in ones]
            return {"tokens": torch.cat([one.hidden_states[-2] for one in found], dim=-1), "pooled": found[1][0]}
        if self.masked:
            texts = [text.lower().strip() for text in texts]
        found = self._tokenized(texts)
        mask = found["attention_mask"]
        looks = self.masked or getattr(self.encoder.config, "use_attention_mask", False)
        tokens = self.encoder(found["input_ids"], attention_mask=mask if looks else None)[0]
        return {"tokens": tokens * mask.unsqueeze(-1).to(tokens), "mask": mask} if self.masked else {"tokens": tokens}

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The leaves of these prompts, a row each; only those not met before go through the encoder."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            leaves = self.encode_batch(some)
            for row, text in enumerate(some):
                self.known[text] = {name: leaf[row].cpu() for name, leaf in leaves.items()}
        rows = [self.known[text] for text in texts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def null(self) -> dict[str, Tensor]:
        """The leaves of the empty prompt, (1, ...)."""
        leaves = self.encode([""])
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()} if self.zero_null else leaves

    def parts(self) -> dict[str, Any]:
        """What a pipeline is made of, by its own names."""
        found = {"tokenizer": self.tokenizer, "text_encoder": self.encoder}
        if self.second is None:
            return found
        more = {"tokenizer_2": self.second.tokenizer, "text_encoder_2": self.second.encoder}
        return found | more | {"force_zeros_for_empty_prompt": self.zero_null}


def _moved(leaves: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Leaves on a device; floating ones in `dtype` where it is given."""
    return {name: leaf.to(device, dtype if leaf.is_floating_point() else None) for name, leaf in leaves.items()}


@dataclass(frozen=True)
class Prompts:
    """A table of prompts: texts, their leaves (n, ...), and those of the empty prompt, (1, ...)."""

    texts: tuple[str, ...]
    leaves: dict[str, Tensor]
    null: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def null_cond(self) -> Cond:
        """The condition of the empty prompt, of batch 1; its "prompt" is -1."""
        return self.null | {"prompt": torch.tensor([-1], device=self.null["tokens"].device)}

    def rows(self, index: Tensor) -> Cond:
        """The condition of some rows; index (B,), where -1 is the empty prompt."""
        if int(index.max()) >= len(self):
            raise IndexError(f"there is no prompt {int(index.max())}: the table has {len(self)}")
        return self._leaves_of(index) | {"prompt": index.to(self.null["tokens"].device)}

    def _leaves_of(self, index: Tensor) -> dict[str, Tensor]:
        index = index.to(self.null["tokens"].device)
        chosen = {name: leaf[index.clamp(min=0)] for name, leaf in self.leaves.items()}
        for name, leaf in chosen.items():
            leaf[index < 0] = self.null[name].to(leaf)
        return chosen

    def draw(self, batch_shape: tuple[int, ...], generator: torch.Generator, *, drop: float = 0.0) -> Cond:
        """Rows drawn evenly, as `align` wants its prompts; a share `drop` of them is the empty prompt."""
        index = torch.randint(len(self), batch_shape, generator=generator, device=generator.device)
        if drop:
            dropped = torch.rand(batch_shape, generator=generator, device=generator.device) < drop
            index = torch.where(dropped, -1, index)
        return self.rows(index)

    def texts_of(self, cond: Cond) -> list[str]:
        """The texts of a condition."""
        return ["" if row < 0 else self.texts[row] for row in cond["prompt"].tolist()]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Prompts":
        """The table on a device; floating leaves in `dtype` where it is given."""
        return Prompts(self.texts, _moved(self.leaves, device, dtype), _moved(self.null, device, dtype))


def encode_prompts(text: TextEncoder, texts: Sequence[str]) -> Prompts:
    """The table of these prompts and of the empty one."""
    if not texts:
        raise ValueError("no prompts were given: the list is empty")
    return Prompts(tuple(texts), text.encode(texts), text.null())


@dataclass(frozen=True)
class EncodedPrompts(Prompts):
    """Prompts that are encoded whenever they are asked for: no room on the disk, and the encoder stays in memory."""

    encoder: TextEncoder

    def _leaves_of(self, index: Tensor) -> dict[str, Tensor]:
        rows = index.flatten().tolist()
        found = self.encoder.encode_batch(["" if row < 0 else self.texts[row] for row in rows])
        for name, leaf in found.items():
            leaf[index.flatten() < 0] = self.null[name].to(leaf)
        return {name: leaf.unflatten(0, index.shape) for name, leaf in found.items()}


def prompts_of(encoder: TextEncoder, texts: Sequence[str]) -> EncodedPrompts:
    """The table of these prompts, on the device of their encoder."""
    device = encoder.encoder.device
    return EncodedPrompts(tuple(texts), {}, _moved(encoder.null(), device, None), encoder)


# ---------------------------------------------------------------------------------------------------------- on the disk


@dataclass(frozen=True)
class StoredPrompts(Prompts):
    """A table of prompts whose leaves are on the disk: `leaves` is empty, rows are read when they are asked for.

    files: of the store. places: file and row of every prompt, (n, 2). empty: the empty prompt in main memory.
    """

    files: tuple[pathlib.Path, ...]
    places: np.ndarray
    empty: dict[str, Tensor]

    def _leaves_of(self, index: Tensor) -> dict[str, Tensor]:
        found = [self._row(number) for number in index.flatten().tolist()]
        leaves = {name: torch.stack([row[name] for row in found]).unflatten(0, index.shape) for name in self.null}
        device = self.null["tokens"].device
        if device.type == "cuda":  # so that the copy need not wait for the work that the GPU still has
            return {name: leaf.pin_memory().to(device, non_blocking=True) for name, leaf in leaves.items()}
        return {name: leaf.to(device) for name, leaf in leaves.items()}

    def _row(self, number: int) -> dict[str, Tensor]:
        """The leaves of one prompt, in main memory, padded as the encoder pads."""
        if number < 0:
            return {name: leaf[0] for name, leaf in self.empty.items()}
        file, row = self.places[number]
        found = {name: leaf.to(self.empty[name].dtype) for name, leaf in _read(self.files[file], int(row)).items()}
        if "mask" in self.empty:
            mask, tokens = self.empty["mask"][0], torch.zeros_like(self.empty["tokens"][0])
            length = len(found["tokens"])
            tokens[:length] = found["tokens"]
            found |= {"tokens": tokens, "mask": (torch.arange(len(mask)) < length).to(mask.dtype)}
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "StoredPrompts":
        """The table with its conditions on a device; floating leaves in `dtype` where it is given."""
        empty = _moved(self.empty, "cpu", dtype)
        return replace(self, empty=empty, null=_moved(empty, device, None))


def stored_prompts(
    cache: pathlib.Path | str,
    folder: pathlib.Path | str,
    texts: Sequence[str],
    *,
    load_encoder: Callable[[], TextEncoder],
    dtype: torch.dtype,
    say: Callable[[str], None] = print,
) -> StoredPrompts:
    """The table of these prompts under the encoder of a model's folder; what is not in the cache is encoded first.

    load_encoder is called only if something is missing. dtype: what it computes in, and that of the files.
    """
    from safetensors.torch import load_file

    if not texts:
        raise ValueError("no prompts were given: the list is empty")
    place = pathlib.Path(cache) / identity(folder, dtype)
    if _missing(place, texts) or not (place / NULL).exists():
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise InputError(f"{place} cannot be made ({why}): give a folder that can be written to") from None
        with only_one(place / "lock", f"the cache of prompts {place}", wait=say):
            for left in place.glob(".*.safetensors.*"):  # what a process that died had half written
                left.unlink(missing_ok=True)
            new = _missing(place, texts)  # another process may have written some of them meanwhile
            if new or not (place / NULL).exists():
                _fill(place, load_encoder(), new, dtype, say)
    files, known, where = _listed(place)
    with _named(place / NULL):
        null = load_file(place / NULL)
    return StoredPrompts(tuple(texts), {}, null, files, where[np.searchsorted(known, _keys(texts))], null)


def identity(folder: pathlib.Path | str, dtype: torch.dtype) -> str:
    """A name for all that decides how a model's folder encodes a prompt: tokenizers, weights, masking rule, dtype.

    Of large files the size, the first bytes (with the header) and blocks spread over the whole are looked at, which
    tells a fine-tuned encoder from the one it came from without reading 20 GB.
    """
    folder, cure = pathlib.Path(folder), "fetch or make the model again"
    index = read_json(folder / "model_index.json", cure)
    zeros = index.get("force_zeros_for_empty_prompt", True)
    rules = [
        FORMAT,
        index.get("_class_name"),
        zeros,
        PIXART_TOKENS,
        str(dtype),
        code_hash(inspect.getsource(TextEncoder)),
    ]
    found = hashlib.sha256(json.dumps(rules).encode())
    for place in ("tokenizer", "text_encoder", *(name for name in ("tokenizer_2", "text_encoder_2") if name in index)):
        if place.startswith("text_encoder"):
            read_json(folder / place / "config.json", cure)
            check_weights(folder / place)
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


def _fill(
    place: pathlib.Path, text: TextEncoder, new: list[str], dtype: torch.dtype, say: Callable[[str], None]
) -> None:
    """Encode what is new, a file at a time."""
    from tqdm.auto import tqdm

    if not (place / NULL).exists():
        _write(place / NULL, _moved(text.null(), "cpu", dtype))
    if len(new) > SHARD:
        say(f"encoding {len(new):,} prompts")
    with tqdm(total=len(new), desc="encoding", unit="prompt", leave=False, disable=None) as bar:
        for start in range(0, len(new), SHARD):
            some, parts = new[start : start + SHARD], []
            for first in range(0, len(some), BATCH):
                parts.append(_moved(text.encode_batch(some[first : first + BATCH]), "cpu", dtype))
                bar.update(len(parts[-1]["tokens"]))
            _write_shard(place, some, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def guessed_tokens(texts: Sequence[str]) -> float:
    """The mean number of tokens of prompts under a mask, before any tokenizer is there: one for 3 letters is plenty."""
    return sum(min(PIXART_TOKENS, len(text) / 3 + 2) for text in texts) / max(1, len(texts))


# ---------------------------------------------------------------------------------------------------------------- files
# A file holds a few hundred prompts as plain safetensors: the kept tokens of all of them one after another, (sum of
# lengths, d); where each begins; a vector each, where the model has one; the key of each text; and a checksum of each.
# Of a prompt whose padding is hidden by a mask only the tokens that it has are kept: PixArt-alpha's T5 takes 1 MB for
# 120 tokens and about 0.2 MB for those of a common prompt. Where padding is part of the prompt, all tokens are kept.


def _keys(texts: Sequence[str]) -> np.ndarray:
    """16 bytes that stand for each text, as an array that can be sorted, (n,)."""
    return _as_keys(b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts))


def _as_keys(joined: bytes) -> np.ndarray:
    return np.frombuffer(joined, dtype="S16")


def _write(path: pathlib.Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    try:
        write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({first_line(error)}): what was encoded before is kept") from None


def _write_shard(place: pathlib.Path, texts: Sequence[str], leaves: dict[str, Tensor]) -> None:
    """Write the leaves (n, ...) of some prompts; the name of the file is that of its texts."""
    tokens, joined = leaves["tokens"], _keys(texts).tobytes()
    lengths = torch.full((len(tokens),), tokens.shape[1])
    if "mask" in leaves:
        lengths = leaves["mask"].sum(1)
        if not torch.equal(leaves["mask"].bool(), torch.arange(tokens.shape[1]) < lengths[:, None]):
            raise InputError("the tokenizer pads in front: only prompts that are padded at their end can be kept")
    rows = [{"tokens": row[:length]} for row, length in zip(tokens, lengths.tolist(), strict=True)]
    tensors = {"tokens": torch.cat([row["tokens"] for row in rows]), "keys": torch.tensor(list(joined)).byte()}
    if "pooled" in leaves:
        tensors["pooled"] = leaves["pooled"]
        rows = [row | {"pooled": one} for row, one in zip(rows, leaves["pooled"], strict=True)]
    tensors["starts"] = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tensors["checks"] = torch.tensor([_check(row) for row in rows])
    _write(place / f"prompts-{hashlib.blake2b(joined, digest_size=12).hexdigest()}.safetensors", tensors)


def _check(row: dict[str, Tensor]) -> int:
    """A checksum of one prompt's leaves."""
    found = 0
    for name in sorted(row):
        found = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy().data, found)
    return found


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Whatever is wrong with a file within the context is told in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.exists() else "it is gone"
        raise InputError(f"{path} is no whole file of prompts ({size}: {first_line(error)}): {AGAIN}") from None


def _listed(place: pathlib.Path) -> tuple[tuple[pathlib.Path, ...], np.ndarray, np.ndarray]:
    """All files of a place; the keys of all prompts, sorted, (n,); and file and row of each, (n, 2)."""
    from safetensors import safe_open

    files = tuple(sorted(place.glob("prompts-*.safetensors")))
    keys, where = [_as_keys(b"")], [np.empty((0, 2), np.int32)]
    for number, path in enumerate(files):
        with _named(path), safe_open(path, framework="pt") as file:
            keys.append(_as_keys(file.get_tensor("keys").numpy().tobytes()))
        rows = np.arange(len(keys[-1]), dtype=np.int32)
        where.append(np.stack([np.full_like(rows, number), rows], axis=1))
    found, first = np.unique(np.concatenate(keys), return_index=True)
    return files, found, np.concatenate(where)[first]


def _missing(place: pathlib.Path, texts: Sequence[str]) -> list[str]:
    """Those texts that are not in the store, each once, in their order."""
    found, first = np.unique(_keys(texts), return_index=True)
    return [texts[number] for number in np.sort(first[~np.isin(found, _listed(place)[1])])]


@functools.lru_cache(maxsize=64)
def _opened(path: pathlib.Path) -> tuple[Any, Tensor, Tensor, bool]:
    """A file whose content stays on the disk, with what is needed to find a prompt in it."""
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    return file, file.get_tensor("starts"), file.get_tensor("checks"), "pooled" in file.keys()  # noqa: SIM118


def _read(path: pathlib.Path, row: int) -> dict[str, Tensor]:
    """The leaves of one prompt as they are kept, "tokens" (length, d) and perhaps "pooled" (d',)."""
    with _named(path):
        file, starts, checks, has_pooled = _opened(path)
        found = {"tokens": file.get_slice("tokens")[starts[row].item() : starts[row + 1].item()]}
        if has_pooled:
            found["pooled"] = file.get_slice("pooled")[row]
    if _check(found) != checks[row].item():
        raise InputError(f"{path} is damaged (prompt {row} of it has changed): {AGAIN}")
    return found
