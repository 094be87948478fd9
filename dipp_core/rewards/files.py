"""Files of the rewards on pictures: found in a folder or by a pinned hub id, opened as weights only.

Every flaw is one line: which file, what is wrong with it, what to do. Nothing is fetched unless a hub id is given.
"""

import contextlib
import json
import logging
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AGAIN = "fetch it again"


class RewardError(RuntimeError):
    """One line that says what keeps a reward from being loaded or asked, and what to do."""


@dataclass(frozen=True)
class File:
    """A published file: its hub id with the commit it is taken from, and how large it is to fetch.

    also: the name under which the same file is published elsewhere.
    """

    name: str
    repo: str
    revision: str
    size: str
    also: str = ""


def fetch_command(reward: str, files: Sequence[File]) -> str:
    """The command that puts all these files into one folder."""
    parts = []
    for repo, revision in dict.fromkeys((file.repo, file.revision) for file in files):
        names = " ".join(file.name for file in files if file.repo == repo)
        parts.append(f"huggingface-cli download {repo} {names} --revision {revision} --local-dir models/{reward}")
    return " && ".join(parts)


def locate(reward: str, files: Sequence[File], source: str | pathlib.Path | None) -> dict[str, pathlib.Path]:
    """Where each file lies: in the folder `source`, or fetched from the hub id `source`, always of a pinned commit.

    A reward of one file also takes that file. A hub id other than the published one must name its commit, as in
    OWNER/NAME@COMMIT: a folder's name that was mistyped is then never taken for a hub id.
    """
    how = f"`{fetch_command(reward, files)}` fetches all of it"
    if source is None:
        needs = ", ".join(f"{file.name} ({file.size})" for file in files)
        raise RewardError(f"{reward} needs {needs}: give their folder, or the hub id {files[0].repo}; {how}")
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return {file.name: _in_folder(path, file, reward, how) for file in files}
    if path.is_file() and len(files) == 1:
        return {files[0].name: path}
    if path.is_file():
        raise RewardError(f"{path} is one file, but {reward} needs {len(files)}: give the folder they are in; {how}")
    repo, _, commit = str(source).partition("@")
    if repo == files[0].repo:
        commit = commit or files[0].revision
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise RewardError(f"{source}: no such file or folder, and no hub id with a commit (OWNER/NAME@COMMIT); {how}")
    own = {file.name: (repo, commit) if file.repo == files[0].repo else (file.repo, file.revision) for file in files}
    return {name: _download(reward, name, *place) for name, place in own.items()}


def _in_folder(folder: pathlib.Path, file: File, reward: str, how: str) -> pathlib.Path:
    for name in filter(None, (file.name, file.also)):
        if (folder / name).is_file():
            return folder / name
    raise RewardError(f"{folder / file.name} ({file.size}) is missing: {reward} needs it; {how}")


def _download(reward: str, name: str, repo: str, commit: str) -> pathlib.Path:
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repo, name, revision=commit))
    except Exception as error:
        why = first_line(error)
        raise RewardError(f"{reward}: {name} cannot be fetched from {repo}@{commit} ({why}); try again later") from None


def read_weights(path: pathlib.Path) -> dict[str, Tensor]:
    """The table of weights in a safetensors file or a checkpoint; a checkpoint that would run code is not opened."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            # mapped from disk, so that the weights lie in memory once
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise RewardError(f"{path} holds more than weights ({code[1]}) and could run code; {AGAIN}") from None
        size = f"{path.stat().st_size:,} bytes"
        raise RewardError(f"{path} is no whole weight file ({size}: {first_line(error)}); {AGAIN}") from None
    for inner in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise RewardError(f"{path} holds no table of weights; {AGAIN}")
    return found


def fill(network: nn.Module, path: pathlib.Path, *, unused: tuple[str, ...] = ()) -> None:
    """Put the weights of a file into a network; all of them, none of another shape, and of no deeper network.

    unused: beginnings of names that the score does not depend on and that a file may lack.
    """
    weights, own = read_weights(path), network.state_dict()
    missing = [name for name in own if name not in weights and not name.startswith(unused)]
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    numbered = {re.sub(r"\d+", "#", name) for name in own}
    deeper = [name for name in weights if name not in own and re.sub(r"\d+", "#", name) in numbered]
    made_for = f"{path} is not made for this {type(network).__name__}"
    if missing:
        some = f"{len(missing)} of {len(own)} weights are missing, the first is {missing[0]}"
        raise RewardError(f"{made_for}: {some}; {AGAIN}")
    if wrong:
        has, needs = tuple(weights[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise RewardError(f"{made_for}: {wrong[0]} has the shape {has}, not {needs}; {AGAIN}")
    if deeper:
        raise RewardError(f"{made_for}: it has more layers, the first weight too many is {deeper[0]}; {AGAIN}")
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def read_description(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """What `read` makes of a small file that describes a network or a vocabulary."""
    try:
        if path.suffix == ".json" and not isinstance(json.loads(path.read_text()), dict):
            raise ValueError("no JSON object")
        return read(path)
    except Exception as error:
        raise RewardError(f"{path} cannot be read ({first_line(error)}); {AGAIN}") from None


@contextlib.contextmanager
def quiet_packages() -> Iterator[None]:
    """The packages of rewards remark on their own insides, in warnings and in the log of the whole process."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
