"""Lists of prompts: parsers on small files of the published forms, families, and every flaw in one line."""

import collections
import dataclasses
import hashlib
import io
import json
import zipfile

import pytest

from dipp_core.evaluation import prompt_lists
from dipp_core.evaluation.prompt_lists import FAMILIES, LISTS, PromptList, fetch, parse_parti, read
from dipp_core.files import InputError

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    'a sign that says "go\tArtifacts\tWriting & Symbols\t\n'
    "a teapot\tArtifacts\tBasic\tsome note\n"
    "The Starry Night\tArts\tBasic\t\n"
    f"{'very ' * 25}long\tAnimals\tComplex\t\n"
)


def archive(annotations):
    """The same bytes whenever it is made: they name tests, which all workers must call the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for split, content in (("val", {"annotations": annotations}), ("train", {})):
            file.writestr(zipfile.ZipInfo(f"annotations/captions_{split}2017.json"), json.dumps(content))
    return buffer.getvalue()


ANNOTATIONS = [
    {"image_id": image, "id": 10 * image + k, "caption": f" caption {k} of {image}\n"}
    for image in (7, 3, 5, 9)
    for k in (2, 1, 3)
]
SMALL = {
    "own": dataclasses.replace(LISTS["own"], count=2),
    "coco": dataclasses.replace(LISTS["coco"], count=4),
    "hpsv2": dataclasses.replace(LISTS["hpsv2"], count=8),
    "parti": dataclasses.replace(LISTS["parti"], count=4),
}


def contents(name):
    return {
        "own": {"own.csv": b'family,prompt\nphotos,"a cat, asleep"\nart styles,a drawing\n'},
        "coco": {"annotations_trainval2017.zip": archive(ANNOTATIONS)},
        "hpsv2": {f"{style}.json": json.dumps([f"{style} 1", f"{style} 2"]).encode() for style in prompt_lists.STYLES},
        "parti": {"PartiPrompts.tsv": PARTI.encode()},
    }[name]


@pytest.fixture
def folder(tmp_path):
    """All lists, as fetched: every file with its recorded checksum."""
    lines = ["file,sha256,bytes,url"]
    for name in SMALL:
        for file, content in contents(name).items():
            (tmp_path / file).write_bytes(content)
            lines.append(f"{file},{hashlib.sha256(content).hexdigest()},{len(content)},somewhere")
    (tmp_path / "checksums.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_our_own_list_is_there_and_has_all_families_alike():
    prompts = read("own")
    assert collections.Counter(prompt.family for prompt in prompts) == dict.fromkeys(FAMILIES, 12)
    assert len({prompt.text for prompt in prompts}) == 48
    assert [prompt.index for prompt in prompts] == list(range(48))
    long = {prompt.family == "long prompts" for prompt in prompts if len(prompt.text.split()) >= 50}
    assert long == {True}


def test_of_coco_one_caption_a_picture_by_the_stated_rule(folder):
    prompts = read("coco", folder=folder, lists=SMALL)
    assert [prompt.text for prompt in prompts] == [f"caption 1 of {image}" for image in (3, 5, 7, 9)]
    for seed in (2017, 1, 2, 3):  # whatever the order of the file
        chosen = sorted((3, 5, 7, 9), key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).hexdigest())[:2]
        wanted = [(f"caption 1 of {image}", "photos", "photos") for image in sorted(chosen)]
        for order in (ANNOTATIONS, ANNOTATIONS[::-1]):
            assert prompt_lists.parse_coco([archive(order)], seed=seed, count=2) == wanted


def test_the_benchmark_keeps_its_styles_and_places(folder):
    prompts = read("hpsv2", folder=folder, lists=SMALL, per_group=1)
    assert [prompt.group for prompt in prompts] == list(prompt_lists.STYLES)
    assert [prompt.family for prompt in prompts] == ["art styles"] * 3 + ["photos"]
    assert [(prompt.index, prompt.text) for prompt in prompts][1:3] == [(2, "concept-art 1"), (4, "paintings 1")]
    assert len(read("hpsv2", folder=folder, lists=SMALL)) == 8


def test_parti_prompts_keep_their_quotation_marks_and_get_families(folder):
    prompts = read("parti", folder=folder, lists=SMALL)
    assert prompts[0].text == 'a sign that says "go'
    assert [prompt.family for prompt in prompts] == ["out of distribution", "photos", "art styles", "long prompts"]
    assert [prompt.group for prompt in prompts] == ["Artifacts", "Artifacts", "Arts", "Animals"]


def record(folder, file):
    """Take a file as it is for the one that was fetched."""
    lines = [line for line in (folder / "checksums.csv").read_text().splitlines() if not line.startswith(f"{file},")]
    content = (folder / file).read_bytes()
    lines.append(f"{file},{hashlib.sha256(content).hexdigest()},{len(content)},somewhere")
    (folder / "checksums.csv").write_text("\n".join(lines) + "\n")


ZIP = "annotations_trainval2017.zip"


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("coco", ZIP, None, "is missing: the list coco .* is fetched by `.venv/bin/python -m .*prompt_lists coco`"),
        ("coco", ZIP, archive(ANNOTATIONS)[:-30], "cannot be read as the list coco .BadZipFile"),
        ("coco", ZIP, archive(ANNOTATIONS[:6]), "the list coco has 2 prompts, not 4: cut off, or another list"),
        ("hpsv2", "photo.json", b'["a", "b"', "cannot be read as the list hpsv2 .JSONDecodeError"),
        ("hpsv2", "photo.json", b'{"a": 1}', "the prompts of photo are no JSON list of strings"),
        ("hpsv2", "photo.json", b'["a", " "]', "prompt 7 of the list hpsv2 is empty"),
        ("parti", "PartiPrompts.tsv", b"<!DOCTYPE html>\n<p>404", "no table with the columns Prompt, Category"),
        ("parti", "PartiPrompts.tsv", b"\xff\xfe", "cannot be read as the list parti .UnicodeDecodeError"),
        ("own", "own.csv", b"family,prompt\nphotos,a\nposters,b\n", "the family 'posters' is none of photos"),
    ],
)
def test_a_flaw_is_one_line(folder, name, file, content, says):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
        record(folder, file)
    with pytest.raises(InputError, match=says) as caught:
        read(name, folder=folder, lists=SMALL)
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_or_has_no_checksum_and_an_unknown_list_are_refused(folder):
    path = folder / "PartiPrompts.tsv"
    path.write_bytes(path.read_bytes().replace(b"a teapot", b"a kettle"))
    with pytest.raises(InputError, match=r"is not the file in checksums.csv .cut off, or changed.: remove it"):
        read("parti", folder=folder, lists=SMALL)
    (folder / "checksums.csv").write_text("file,sha256,bytes,url\n")
    with pytest.raises(InputError, match=r"has no recorded checksum: `.venv/bin/python -m .*prompt_lists parti`"):
        read("parti", folder=folder, lists=SMALL)
    with pytest.raises(InputError, match="no list 'cocoa'; known are own, coco, hpsv2, parti"):
        read("cocoa")


# ------------------------------------------------------------------------------------------------------------ fetching


TABLE = "Prompt\tCategory\tChallenge\tNote\na cat\tAnimals\tBasic\t\na dog\tAnimals\tBasic\t\n"


@pytest.fixture
def published(tmp_path):
    """A folder that stands for the publisher: the file, and what fetches its list into tmp_path/prompts."""
    path = tmp_path / "published.tsv"
    path.write_text(TABLE)
    lists = {"some": PromptList({"some.tsv": path.as_uri()}, parse_parti, 2, "some", "1 kB")}
    return path, {"folder": tmp_path / "prompts", "lists": lists}


def test_the_first_fetch_records_a_checksum_and_later_ones_verify_it(published):
    path, where = published
    assert fetch("some", **where) == 2
    recorded = (where["folder"] / "checksums.csv").read_text()
    assert recorded.splitlines()[1].split(",")[0::2] == ["some.tsv", str(len(TABLE))]
    assert [prompt.text for prompt in read("some", **where)] == ["a cat", "a dog"]
    path.unlink()
    assert fetch("some", **where) == 2, "what is here is not fetched again"
    path.write_text(TABLE.replace("dog", "elk"))
    (where["folder"] / "some.tsv").unlink()
    with pytest.raises(InputError, match=r"is not the file in checksums.csv"):
        fetch("some", **where)
    assert (where["folder"] / "checksums.csv").read_text() == recorded


def test_what_is_no_such_list_is_neither_kept_nor_recorded_and_a_file_put_there_by_hand_is_taken(published):
    path, where = published
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(InputError, match="cannot be read as the list some"):
        fetch("some", **where)
    assert not where["folder"].exists()
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be fetched .*: try again, or put the file at .*some.tsv$"):
        fetch("some", **where)
    where["folder"].mkdir()
    (where["folder"] / "some.tsv").write_text(TABLE)
    assert fetch("some", **where) == 2


def test_the_command_says_what_is_wrong_in_one_line(capsys, tmp_path, monkeypatch):
    assert prompt_lists.main(["cocoa"]) == 2
    assert capsys.readouterr().err == "there is no list 'cocoa'; known are own, coco, hpsv2, parti\n"
    assert prompt_lists.main(["own"]) == 0
    assert capsys.readouterr().out == "own: 48 prompts\n"
