"""Files that are written whole or not at all, locked by one process, read with one clear line; and the checkout.

Also what tells contents apart: of files, of code, of weights; and what is fetched from the hub.
"""

import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import socket
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

HF = ".venv/bin/hf"  # the hub's command, in messages


class InputError(ValueError):
    """One line that says what is wrong with what was given, and what to do. Commands print it and end with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the line in a box instead of a trace; a `command` is not broken at its spaces."""
        whole = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", "\xa0"), str(self))
        lines = [part for line in whole.splitlines() for part in textwrap.wrap(line, 96, break_long_words=False)]
        rule = "═" * max(map(len, lines), default=0)
        return [rule, *(line.replace("\xa0", " ") for line in lines), rule]


def root() -> pathlib.Path:
    """The checkout: where params.yaml, data/ and reports/ are (the pipeline runs a copy of the code from elsewhere)."""
    return pathlib.Path(os.environ.get("DIPP_ROOT") or pathlib.Path(__file__).resolve().parents[1])


def placed(source: str | pathlib.Path) -> pathlib.Path:
    """A file or folder that a user named: from where the command runs, else, as in params.yaml, from the checkout."""
    path = pathlib.Path(source).expanduser()
    return path if path.exists() or not (root() / path).exists() else root() / path


def write_whole(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    """Write beside the target and rename: a file under its final name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def only_one(
    lock: pathlib.Path, what: str, cure: str = "wait for it", *, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Refuse a second process that wants the same; the lock vanishes with its process, however that ends.

    wait: the second is not refused, but told so by this, and waits.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            other = handle.read().strip()
            if wait is None:
                raise InputError(f"{what}: is already running (process {other}); {cure}") from None
            wait(f"{what}: process {other} writes there; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def read_json(path: pathlib.Path, cure: str) -> Any:
    """The content of a JSON file; `cure` says what to do where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {cure}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); {cure}") from None


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_weights(folder: pathlib.Path) -> str | None:
    """Refuse a part without whole safetensors files; "fp16" where only that variant is there. Reads headers alone."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    for listing in folder.glob("*.safetensors.index.json"):
        needed = set(read_json(listing, "fetch or make the model again").get("weight_map", {}).values())
        if lost := sorted(needed - {file.name for file in files}):
            raise InputError(f"{folder / lost[0]} is missing: {listing.name} lists it; fetch or make it again")
    if not files:
        pickled = [file.name for file in folder.glob("*.bin")]
        why = f"only {pickled[0]}, a pickle, which is not opened here" if pickled else "no weights"
        raise InputError(f"{folder} has {why}: *.safetensors is needed; fetch or make it again")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            why = f"{file.stat().st_size:,} bytes: {first_line(error)}"
            raise InputError(f"{file} is no whole safetensors file ({why}); fetch or make it again") from None
    return "fp16" if all(".fp16." in file.name for file in files) else None


# ------------------------------------------------------------------------------------------------------------ contents


@functools.lru_cache(maxsize=512)
def code_hash(code: str) -> str:
    """Of what code does: comments, docstrings and layout may change without a re-run of anything."""
    tree = ast.parse(code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def code_of(*paths: str) -> dict[str, str]:
    """Hashes of the library's files of these patterns, say "method/*.py", by their paths."""
    package = pathlib.Path(__file__).parent
    found = sorted(path for pattern in paths for path in package.glob(pattern))
    return {path.relative_to(package).as_posix(): code_hash(path.read_text())[:16] for path in found}


@functools.lru_cache(maxsize=1000)
def _digest(path: pathlib.Path, size: int, changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digest_of_files(place: pathlib.Path) -> str:
    """Which files these are: names and contents of a folder of weights, or of one file."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(place)
        if not any(part.startswith(".") for part in name.parts):  # the hub's notes on downloads
            digest.update(name.as_posix().encode())
            digest.update(_digest(path, path.stat().st_size, path.stat().st_mtime_ns))
    return digest.hexdigest()[:16]


def digest_of_weights(state: Mapping[str, Any]) -> str:
    """Which tensors these are: names, kinds and contents, wherever they lie."""
    import torch

    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- the hub


def from_hub(
    name: str,
    commit: str,
    wanted: Sequence[str],
    left_out: Sequence[str] = (),
    *,
    kind: str = "model",
    here: bool = False,
) -> pathlib.Path:
    """The folder of some files of a hub id at a commit; without a network, or `here`, only what was fetched before."""
    import huggingface_hub

    only: dict[str, Any] = {"allow_patterns": list(wanted), "ignore_patterns": list(left_out) or None}
    offline = here or huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not urllib.request.getproxies():
        address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
        except OSError:
            offline = True
    found = huggingface_hub.snapshot_download(name, repo_type=kind, revision=commit, local_files_only=offline, **only)
    return pathlib.Path(found)
