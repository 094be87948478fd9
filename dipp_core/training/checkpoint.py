"""Checkpoints of a long run: whole or absent, checked before use, in safetensors and JSON only.

    folder/step_00001200/manifest.json     steps done, settings, checksums, and all state that is no tensor
    folder/step_00001200/gen.safetensors   the tensors of one part (see `parts`), and so on for every part

A checkpoint is written under another name, flushed to the disk and renamed: under its own name it is always whole. One
that was truncated all the same, by a copy or a broken disk, is named, and the one before it used.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dipp_core.training.parts import CheckpointError, GlobalRandom, Parts, difference, form, load_state, state_of

FORMAT = "dipp_core checkpoint 1"


class DamagedError(CheckpointError):
    """A checkpoint that is no longer what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint: its folder, the steps done, the settings of its run, facts that went along, its parts."""

    path: pathlib.Path | None
    step: int
    settings: dict
    facts: dict
    parts: dict


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Refuse a second run in the same folder; the lock vanishes with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = f"process {handle.read().strip()}"
            raise CheckpointError(f"{folder}: another run works here ({owner}); wait for it, or stop it") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _flush(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: pathlib.Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as handle:
        while size := handle.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def _seal(manifest: dict) -> str:
    """The checksum of the manifest itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _json(values: dict, what: str) -> dict:
    """The values as JSON gives them back."""
    plain = {}
    for name, value in values.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=lambda tensor: tensor.tolist()))
        except (AttributeError, TypeError, ValueError):
            raise CheckpointError(f"{what} hold numbers, text and lists: {name} is a {type(value).__name__}") from None
    return plain


def _everything(parts: Parts) -> dict[str, Any]:
    """The parts and the global random states."""
    if wrong := [name for name in parts if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "random"]:
        raise CheckpointError(f"a part cannot be called {wrong[0]!r}: lower-case letters, digits, _; 'random' is taken")
    return dict(parts) | {"random": GlobalRandom()}


def _write_part(path: pathlib.Path, part: Any) -> dict:
    """Write the tensors of one part; returns its entry in the manifest."""
    from safetensors.torch import save_file

    state, tensors = state_of(part)
    entry = {"state": state, "form": form(part, tensors)}
    if not tensors:
        return entry
    seen = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()  # of tied weights it is the same, which safetensors refuses
        tensors[name] = tensor.clone().contiguous() if storage in seen else tensor.contiguous()
        seen.add(storage)
    save_file(tensors, path)
    path.chmod(path.parent.stat().st_mode & 0o666)
    _flush(path)
    return entry | {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write(partial: pathlib.Path, head: dict, parts: Parts) -> None:
    """Write the files of a checkpoint, and wait until they are on the disk."""
    partial.mkdir(parents=True)
    entries = {name: _write_part(partial / f"{name}.safetensors", part) for name, part in parts.items()}
    manifest = _json(head | {"parts": entries}, "manifests")
    (partial / "manifest.json").write_text(json.dumps(manifest | {"sha256": _seal(manifest)}))
    _flush(partial / "manifest.json")
    _flush(partial)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in a folder, intact or not, oldest first."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))


def _remove(path: pathlib.Path) -> None:
    """Remove a checkpoint; half removed it no longer has its name."""
    partial = path.with_name(f".partial_{path.name}_old")
    shutil.rmtree(partial, ignore_errors=True)
    os.rename(path, partial)
    shutil.rmtree(partial, ignore_errors=True)


def save(
    folder: pathlib.Path,
    step: int,
    parts: Parts,
    settings: dict,
    *,
    keep_last: int = 2,
    keep_every: int = 0,
    facts: dict | None = None,
) -> pathlib.Path:
    """Write the checkpoint of a run that has done `step` steps, then remove old ones.

    The last `keep_last` stay, and those of steps divisible by `keep_every`. `facts` (JSON) come back on resuming.
    """
    from safetensors import SafetensorError

    partial, path = folder / f".partial_step_{step:08d}", folder / f"step_{step:08d}"
    head = {"format": FORMAT, "step": step, "settings": _json(settings, "settings"), "facts": facts or {}}
    older = [old for old in _folders(folder) if old.name < path.name]
    for left in folder.glob(".partial_*"):  # by a run that was killed while it wrote or removed
        shutil.rmtree(left, ignore_errors=True)
    try:
        _write(partial, head, _everything(parts))
        if path.exists():
            _remove(path)  # a damaged one: an intact one would have been continued
        os.rename(partial, path)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = getattr(error, "strerror", None) or re.sub(r"^.*I/O error: | \(os error \d+\)$", "", str(error))
        kept = f"{older[-1].name} is kept" if older else "there is none before it"
        raise CheckpointError(f"{path} was not written ({why}); {kept}; cure that and run the same again") from None
    for old in older[: max(0, len(older) + 1 - keep_last)]:
        if not keep_every or int(old.name[5:]) % keep_every:
            _remove(old)
    return path


def read(path: pathlib.Path) -> Checkpoint:
    """The checkpoint in this folder, every byte of it checked."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise DamagedError(f"{path} is damaged: manifest.json is {what}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project ({FORMAT}); use another folder")
    if manifest.pop("sha256", None) != _seal(manifest):
        raise DamagedError(f"{path} is damaged: manifest.json has changed")
    for entry in (entry for entry in manifest["parts"].values() if "file" in entry):
        file = path / entry["file"]
        size = file.stat().st_size if file.is_file() else 0
        if size != entry["bytes"]:
            raise DamagedError(f"{path} is damaged: {file.name} has {size} bytes instead of {entry['bytes']}")
        if _sha256(file) != entry["sha256"]:
            raise DamagedError(f"{path} is damaged: {file.name} has changed")
    return Checkpoint(path, *(manifest[key] for key in ("step", "settings", "facts", "parts")))


def latest(folder: pathlib.Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest intact checkpoint in a folder, None where there are none; says which damaged ones it passed over."""
    damaged = []
    for path in reversed(_folders(folder)):
        try:
            found = read(path)
        except DamagedError as error:
            damaged.append(error)
        else:
            for error in damaged:
                say(f"{error}; using {path.name} instead")
            return found
    if damaged:
        raise CheckpointError(f"{damaged[0]}, and none before it is intact; remove {folder} to start again")
    return None


def restore(found: Checkpoint, parts: Parts) -> None:
    """Put saved states into these parts, after all of them were found to fit."""
    from safetensors import safe_open

    for name, part in parts.items():
        if name not in found.parts:
            raise CheckpointError(f"{found.path} is of another run: it has no {name}, only {', '.join(found.parts)}")
        if what := difference(part, found.parts[name]["form"]):
            raise CheckpointError(f"{found.path} is of another run: {name} {what}; use another folder")
    for name, part in parts.items():
        tensors: dict[str, Tensor] = {}
        if "file" in found.parts[name]:
            with safe_open(found.path / found.parts[name]["file"], framework="pt") as file:
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, it is no dict
        load_state(part, found.parts[name]["state"], tensors)


def resume(folder: pathlib.Path, parts: Parts, settings: dict, say: Callable[[str], None] = print) -> Checkpoint | None:
    """Continue from the newest intact checkpoint of the same run: its state is put into the parts; None to begin."""
    found, here = latest(folder, say), _json(settings, "settings")
    if found is None:
        return None
    there, everything, foreign = found.settings, _everything(parts), f"{found.path} is of another run"
    if changed := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        pairs = ", ".join(f"{key} = {there.get(key)} there, {here.get(key)} here" for key in changed)
        raise CheckpointError(f"{foreign}: {pairs}; restore the settings or use another folder")
    if extra := sorted(found.parts.keys() - everything.keys()):
        raise CheckpointError(f"{foreign}: it has {', '.join(extra)} as well; use another folder")
    restore(found, everything)
    return found
