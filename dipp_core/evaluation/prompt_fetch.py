"""The one command that fetches lists of prompts, through DVC.

    python -m dipp_core.evaluation.prompt_fetch [LIST ...]    all lists, if none is named

The publishers state no checksums: the first fetch records those it finds, in DVC's own small files and in
data/prompts/checksums.csv; `prompt_lists.read` verifies the latter ever after. A file put there by hand is taken too.
"""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Mapping, Sequence

from dipp_core.book import config
from dipp_core.evaluation.prompt_lists import CHECKSUMS, LISTS, PromptError, PromptList, checksums, read, rows_of
from dipp_core.files import write_whole


def _track(path: pathlib.Path, address: str, root: pathlib.Path) -> None:
    """Let DVC fetch a file, or take one that is there; a `.dvc` file beside it keeps address and checksum."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    described = path.with_name(f"{path.name}.dvc")
    try:
        with Repo(str(root)) as repo:
            if not described.is_file():
                repo.add(str(path)) if path.is_file() else repo.imp_url(address, out=str(path))
            elif not path.is_file():
                repo.pull([str(described)])
    except (DvcException, OSError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise PromptError(f"{address} cannot be fetched ({why}): try again, or put the file at {path}") from None


def fetch(name: str, *, root: pathlib.Path | None = None, lists: Mapping[str, PromptList] = LISTS) -> int:
    """Fetch a list and record the checksums of its files, unless they are recorded; returns how many prompts it has.

    What is no such list is neither recorded nor kept, unless it was there before.
    """
    if name not in lists:
        raise PromptError(f"there is no list {name!r}; known are {', '.join(lists)}")
    root, wanted = root or config.root(), lists[name]
    folder = root / "data" / "prompts"
    paths = {folder / file: address for file, address in wanted.files.items() if address}
    new = [path for path in paths if not path.is_file()]
    known, lines = checksums(folder), ["file,sha256,bytes,url"]
    if (folder / CHECKSUMS).is_file():
        lines = (folder / CHECKSUMS).read_text().splitlines()
    for path, address in paths.items():
        folder.mkdir(parents=True, exist_ok=True)
        _track(path, address, root)
        if path.name not in known:
            content = path.read_bytes()
            lines.append(f"{path.name},{hashlib.sha256(content).hexdigest()},{len(content)},{address}")
    try:
        rows_of(name, wanted, [(folder / file).read_bytes() for file in wanted.files])
    except PromptError:
        for path in (path for path in new if path.name not in known):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.dvc").unlink(missing_ok=True)
        raise
    if paths:
        write_whole(folder / CHECKSUMS, ("\n".join(lines) + "\n").encode())
    return len(read(name, folder=folder, lists=lists))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dipp_core.evaluation.prompt_fetch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"of {', '.join(LISTS)}; all, if none is named")
    given = parser.parse_args(arguments)
    try:
        for name in given.lists or LISTS:
            print(f"{name}: {fetch(name)} prompts")
    except PromptError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
