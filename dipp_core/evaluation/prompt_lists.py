"""Lists of prompts to evaluate on: read from data/prompts, split by family, every file as it was first fetched.

Nothing but our own list is committed; `prompt_fetch` fetches the others. data/prompts/README.md says what they are.
"""

import csv
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dipp_core.book import config

FAMILIES = ("photos", "art styles", "long prompts", "out of distribution")
STYLES = ("anime", "concept-art", "paintings", "photo")  # of the HPSv2 benchmark, in this order
COMMAND = "`python -m dipp_core.evaluation.prompt_fetch {}`"
CHECKSUMS = "checksums.csv"
COCO_SEED, COCO_COUNT = 2017, 1000
LONG_WORDS = 25  # from so many words on a Parti prompt is a long one
PARTI_ART = {"Arts", "Illustrations", "Style & Format"}  # categories and challenges
PARTI_ODD = {"Abstract", "Imagination", "Linguistic Structures", "Quantity", "Writing & Symbols"}


class PromptError(RuntimeError):
    """One line that says what is wrong with a list of prompts, and what to do."""


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


def parse_own(contents: list[bytes]) -> Rows:
    """A CSV file with the columns family and prompt."""
    rows = list(csv.DictReader(io.StringIO(contents[0].decode())))
    if not rows or set(rows[0]) != {"family", "prompt"}:
        raise ValueError("no table with the columns family and prompt")
    if wrong := [row["family"] for row in rows if row["family"] not in FAMILIES]:
        raise ValueError(f"the family {wrong[0]!r} is none of {', '.join(FAMILIES)}")
    return [(row["prompt"], row["family"], row["family"]) for row in rows]


def parse_coco(contents: list[bytes], *, seed: int = COCO_SEED, count: int = COCO_COUNT) -> Rows:
    """COCO's archive of annotations: `count` pictures of the validation set, the first caption of each.

    Chosen are the pictures with the smallest SHA-256 of "seed/image id", kept in the order of their ids.
    """
    with zipfile.ZipFile(io.BytesIO(contents[0])) as archive:
        annotations = json.loads(archive.read("annotations/captions_val2017.json"))["annotations"]
    first = {}
    for entry in sorted(annotations, key=lambda entry: entry["id"]):
        first.setdefault(entry["image_id"], entry["caption"])

    def draw(image: int) -> str:
        return hashlib.sha256(f"{seed}/{image}".encode()).hexdigest()

    return [(first[image].strip(), "photos", "photos") for image in sorted(sorted(first, key=draw)[:count])]


def parse_hpsv2(contents: list[bytes]) -> Rows:
    """Four JSON lists of strings, one a style."""
    rows = []
    for style, content in zip(STYLES, contents, strict=True):
        texts = json.loads(content)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the prompts of {style} are no JSON list of strings")
        rows += [(text, "photos" if style == "photo" else "art styles", style) for text in texts]
    return rows


def parti_family(text: str, category: str, challenge: str) -> str:
    """Our own simple rule, stated in data/prompts/README.md."""
    if len(text.split()) >= LONG_WORDS:
        return "long prompts"
    if PARTI_ART & {category, challenge}:
        return "art styles"
    return "out of distribution" if PARTI_ODD & {category, challenge} else "photos"


def parse_parti(contents: list[bytes]) -> Rows:
    """A TSV file with the columns Prompt, Category, Challenge and Note; quotation marks mean nothing in it."""
    rows = list(csv.DictReader(io.StringIO(contents[0].decode()), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not {"Prompt", "Category", "Challenge"} <= set(rows[0]):
        raise ValueError("no table with the columns Prompt, Category and Challenge")
    return [
        (row["Prompt"], parti_family(row["Prompt"], row["Category"], row["Challenge"]), row["Category"]) for row in rows
    ]


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


def checksums(folder: pathlib.Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    return {row["file"]: row["sha256"] for row in csv.DictReader(path.open())} if path.is_file() else {}


def _contents(name: str, wanted: PromptList, folder: pathlib.Path) -> list[bytes]:
    """The files of a list, every one as it was when it was first fetched."""
    known, contents, how = checksums(folder), [], COMMAND.format(name)
    for file, address in wanted.files.items():
        path = folder / file
        if not path.is_file():
            raise PromptError(f"{path} is missing: the list {name} ({wanted.about}, {wanted.size}) is fetched by {how}")
        contents.append(path.read_bytes())
        if not address:  # it is committed
            continue
        if file not in known:
            raise PromptError(f"{path} has no recorded checksum: {how} checks it and records one")
        if known[file] != hashlib.sha256(contents[-1]).hexdigest():
            raise PromptError(f"{path} is not the file in {CHECKSUMS} (cut off, or changed): remove it, then {how}")
    return contents


def rows_of(name: str, wanted: PromptList, contents: list[bytes]) -> Rows:
    where = " and ".join(wanted.files)
    try:
        rows = wanted.parse(contents)
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, csv.Error) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise PromptError(f"{where} cannot be read as the list {name} ({type(error).__name__}: {why})") from None
    if len(rows) != wanted.count:
        raise PromptError(
            f"{where}: the list {name} has {len(rows)} prompts, not {wanted.count}: cut off, or another list"
        )
    if empty := [k for k, (text, *_) in enumerate(rows) if not text.strip()]:
        raise PromptError(f"{where}: prompt {empty[0]} of the list {name} is empty")
    return rows


def read(
    name: str,
    *,
    per_group: int = 0,
    folder: pathlib.Path | None = None,
    lists: Mapping[str, PromptList] = LISTS,
) -> list[Prompt]:
    """The prompts of a list, checked; `per_group` > 0 takes only the first so many of every group of the publishers."""
    if name not in lists:
        raise PromptError(f"there is no list {name!r}; known are {', '.join(lists)}")
    folder = folder or config.root() / "data" / "prompts"
    rows = rows_of(name, lists[name], _contents(name, lists[name], folder))
    taken: dict[str, int] = {}
    prompts = []
    for index, (text, family, group) in enumerate(rows):
        taken[group] = taken.get(group, 0) + 1
        if not per_group or taken[group] <= per_group:
            prompts.append(Prompt(index, text, family, group))
    return prompts
