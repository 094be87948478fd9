"""Lists of prompts to evaluate on: read from data/prompts, split by family, every file as it was first fetched.

    .venv/bin/python -m dipp_core.evaluation.prompt_lists [LIST ..]    fetches these lists; all, if none is named

Nothing but our own list is committed; data/prompts/README.md says what the others are. Their publishers state no
checksums: the first fetch records what it finds in data/prompts/checksums.csv, and every reading verifies it ever
after. A file that was put there by hand is taken by the same command.
"""

import argparse
import collections
import csv
import hashlib
import io
import json
import pathlib
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dipp_core.files import InputError, first_line, root, write_whole

FAMILIES = ("photos", "art styles", "long prompts", "out of distribution")
STYLES = ("anime", "concept-art", "paintings", "photo")  # of the HPSv2 benchmark, in this order
COMMAND = "`.venv/bin/python -m dipp_core.evaluation.prompt_lists {}`"
CHECKSUMS = "checksums.csv"
COCO_SEED, COCO_COUNT = 2017, 1000
LONG_WORDS = 25  # from so many words on a Parti prompt is a long one
PARTI_ART = {"Arts", "Illustrations", "Style & Format"}  # categories and challenges
PARTI_ODD = {"Abstract", "Imagination", "Linguistic Structures", "Quantity", "Writing & Symbols"}


@dataclass(frozen=True)
class Prompt:
    """A prompt, its place in the whole list, its family, and the group that its publishers put it in."""

    index: int
    text: str
    family: str
    group: str


Rows = list[tuple[str, str, str]]  # text, family, group


@dataclass(frozen=True)
class PromptList:
    """files: name in data/prompts -> address; parse: their contents in order -> rows; count: how many there must be."""

    files: Mapping[str, str]
    parse: Callable[[list[bytes]], Rows]
    count: int
    about: str
    size: str = ""


# ------------------------------------------------------------------------------------------------------------ parsers


def _table(content: bytes, columns: Sequence[str], **how: Any) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(content.decode()), **how))
    if not rows or not set(columns) <= set(rows[0]):
        raise ValueError(f"no table with the columns {', '.join(columns)}")
    return rows


def parse_own(contents: list[bytes]) -> Rows:
    """A CSV file with the columns family and prompt."""
    rows = _table(contents[0], ("family", "prompt"))
    if wrong := [row["family"] for row in rows if row["family"] not in FAMILIES]:
        raise ValueError(f"the family {wrong[0]!r} is none of {', '.join(FAMILIES)}")
    return [(row["prompt"], row["family"], row["family"]) for row in rows]


def parse_coco(contents: list[bytes], *, seed: int = COCO_SEED, count: int = COCO_COUNT) -> Rows:
    """COCO's archive of annotations: `count` pictures of the validation set, the first caption of each.

    Chosen are the pictures with the smallest SHA-256 of "seed/image id", kept in the order of their ids.
    """
    with zipfile.ZipFile(io.BytesIO(contents[0])) as archive:
        annotations = json.loads(archive.read("annotations/captions_val2017.json"))["annotations"]
    latest_first = sorted(annotations, key=lambda entry: entry["id"], reverse=True)
    first = {entry["image_id"]: entry["caption"] for entry in latest_first}
    chosen = sorted(first, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).hexdigest())[:count]
    return [(first[image].strip(), "photos", "photos") for image in sorted(chosen)]


def parse_hpsv2(contents: list[bytes]) -> Rows:
    """Four JSON lists of strings, one a style."""
    rows = []
    for style, content in zip(STYLES, contents, strict=True):
        texts = json.loads(content)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the prompts of {style} are no JSON list of strings")
        rows += [(text, "photos" if style == "photo" else "art styles", style) for text in texts]
    return rows


def parse_parti(contents: list[bytes]) -> Rows:
    """A TSV file with the columns Prompt, Category, Challenge and Note; quotation marks mean nothing in it.

    Families by our own simple rule, stated in data/prompts/README.md.
    """
    rows = []
    columns = ("Prompt", "Category", "Challenge")
    for row in _table(contents[0], columns, delimiter="\t", quoting=csv.QUOTE_NONE):
        text, category, challenge = (row[column] for column in columns)
        family = "out of distribution" if PARTI_ODD & {category, challenge} else "photos"
        if PARTI_ART & {category, challenge}:
            family = "art styles"
        if len(text.split()) >= LONG_WORDS:
            family = "long prompts"
        rows.append((text, family, category))
    return rows


HPDV2 = "https://huggingface.co/datasets/zhwang/HPDv2/resolve/main/benchmark"
COCO = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
PARTI = "https://raw.githubusercontent.com/google-research/parti/main/PartiPrompts.tsv"
LISTS = {
    "own": PromptList({"own.csv": ""}, parse_own, 48, "written for this repository"),
    "coco": PromptList({COCO.rsplit("/")[-1]: COCO}, parse_coco, COCO_COUNT, "COCO 2017 validation", "about 250 MB"),
    "hpsv2": PromptList(
        {f"{s}.json": f"{HPDV2}/{s}.json" for s in STYLES}, parse_hpsv2, 3200, "HPSv2 benchmark", "1 MB"
    ),
    "parti": PromptList({"PartiPrompts.tsv": PARTI}, parse_parti, 1632, "PartiPrompts", "0.1 MB"),
}


# ------------------------------------------------------------------------------------------------------------ reading


def _list(name: str, folder: pathlib.Path | None, lists: Mapping[str, PromptList]) -> tuple[PromptList, pathlib.Path]:
    """What is known of a list, and the folder of its files."""
    if name not in lists:
        raise InputError(f"there is no list {name!r}; known are {', '.join(lists)}")
    return lists[name], folder or root() / "data" / "prompts"


def checksums(folder: pathlib.Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    return {row["file"]: row["sha256"] for row in csv.DictReader(path.open())} if path.is_file() else {}


def parsed(name: str, wanted: PromptList, contents: list[bytes]) -> Rows:
    """The rows of a list, checked."""
    where = " and ".join(wanted.files)
    try:
        rows = wanted.parse(contents)
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, csv.Error) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{where} cannot be read as the list {name} ({why})") from None
    if (count := len(rows)) != wanted.count:
        raise InputError(f"{where}: the list {name} has {count} prompts, not {wanted.count}: cut off, or another list")
    if empty := [k for k, (text, *_) in enumerate(rows) if not text.strip()]:
        raise InputError(f"{where}: prompt {empty[0]} of the list {name} is empty")
    return rows


def read(
    name: str, *, per_group: int = 0, folder: pathlib.Path | None = None, lists: Mapping[str, PromptList] = LISTS
) -> list[Prompt]:
    """The prompts of a list, every file as it was when it was first fetched.

    `per_group` > 0 takes only the first so many of every group of the publishers.
    """
    wanted, folder = _list(name, folder, lists)
    known, contents, how = checksums(folder), [], COMMAND.format(name)
    for file, address in wanted.files.items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing: the list {name} ({wanted.about}, {wanted.size}) is fetched by {how}")
        contents.append(path.read_bytes())
        if address and file not in known:  # one without an address is committed
            raise InputError(f"{path} has no recorded checksum: {how} checks it and records one")
        if address and known[file] != hashlib.sha256(contents[-1]).hexdigest():
            raise InputError(f"{path} is not the file in {CHECKSUMS} (cut off, or changed): remove it, then {how}")
    taken: collections.Counter[str] = collections.Counter()
    prompts = []
    for index, row in enumerate(parsed(name, wanted, contents)):
        prompt = Prompt(index, *row)
        taken[prompt.group] += 1
        if not per_group or taken[prompt.group] <= per_group:
            prompts.append(prompt)
    return prompts


# ----------------------------------------------------------------------------------------------------------- fetching


def _download(address: str, path: pathlib.Path) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise InputError(f"{address} cannot be fetched ({why}): try again, or put the file at {path}") from None


def fetch(name: str, *, folder: pathlib.Path | None = None, lists: Mapping[str, PromptList] = LISTS) -> int:
    """Fetch the files of a list that are not here and record their checksums; returns how many prompts it has.

    What is no such list is neither recorded nor kept.
    """
    wanted, folder = _list(name, folder, lists)
    contents = {}
    for file, address in wanted.files.items():
        path = folder / file
        contents[file] = path.read_bytes() if path.is_file() or not address else _download(address, path)
    parsed(name, wanted, list(contents.values()))
    table, known = folder / CHECKSUMS, checksums(folder)
    lines = table.read_text().splitlines() if table.is_file() else ["file,sha256,bytes,url"]
    for file, content in contents.items():
        if not (folder / file).is_file():
            write_whole(folder / file, content)
        if wanted.files[file] and file not in known:
            lines.append(f"{file},{hashlib.sha256(content).hexdigest()},{len(content)},{wanted.files[file]}")
    if len(lines) > 1 + len(known):
        write_whole(table, "\n".join(lines) + "\n")
    return len(read(name, folder=folder, lists=lists))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND.format("").strip("` "), description="Fetch lists of prompts.")
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"of {', '.join(LISTS)}; all, if none is named")
    given = parser.parse_args(arguments)
    try:
        for name in given.lists or LISTS:
            print(f"{name}: {fetch(name)} prompts")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
