"""Files that are written whole or not at all, locked by one process, read with one clear line; and the checkout."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


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
