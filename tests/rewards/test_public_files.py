"""Files of rewards: found or fetched by pinned ids, and every flaw named in one line that says what to do."""

import json
import logging
import os
import pickle
import shutil
import warnings

import pytest
import torch
from safetensors.torch import save_file

from dipp_core.files import InputError
from dipp_core.rewards import public, tiny

NAMES, FILES = public.NAMES, {name: scorer.files for name, scorer in public.SCORERS.items()}
TOWER = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALLER = json.dumps({"model_type": "clip", "vision_config": TOWER, "text_config": TOWER})


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever fetches without a hub id fails here."""

    def refuse(*arguments, **options):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(public, "from_hub", refuse)


def error(name, source) -> str:
    with pytest.raises(InputError) as caught:
        tiny.load(name, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(folders, tmp_path):
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


def write(path, weights):
    weights = {name: value.clone() for name, value in weights.items()}
    path.unlink()  # the old file may be mapped
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "no whole weight file"


def foreign(path):
    path.write_bytes(b"<!doctype html><html>not found</html>")
    return "no whole weight file (37 bytes"


def one_weight_less(path):
    weights = public.read_weights(path)
    lost = next(name for name in weights if name.endswith("bias") and "proj." not in name)
    write(path, {name: value for name, value in weights.items() if name != lost})
    return f"{lost} is missing (1 of "


def other_shape(path):
    weights = public.read_weights(path)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    write(path, weights | {name: torch.zeros(3, 3)})
    return f"{name} has the shape (3, 3), not"


def deeper(path):
    weights = public.read_weights(path)
    name = next(name for name in weights if ".1." in name)
    write(path, weights | {name.replace(".1.", ".7."): weights[name]})
    return f"{name.replace('.1.', '.7.')} is of a layer too many"


FLAWS = [(name, flaw) for name in NAMES for flaw in (truncate, foreign, one_weight_less, other_shape, deeper)]


@pytest.mark.parametrize(("name", "flaw"), [pair for pair in FLAWS if pair != ("aesthetic", deeper)])
def test_flawed_weights_give_one_line(name, flaw, copy):
    path = copy(name) / FILES[name][0].name
    says, message = flaw(path), error(name, path.parent)
    assert says in message
    assert str(path) in message
    assert "fetch it again" in message


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_that_would_run_code_is_not_opened(dump, copy, tmp_path):
    folder = copy("hpsv2")
    dump({"state_dict": Payload(tmp_path / "ran")}, folder / FILES["hpsv2"][0].name)
    message = error("hpsv2", folder)
    assert "mkdir" in message or "no whole weight file" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("image_reward", "med_config.json", "{", "cannot be read"),
        ("image_reward", "med_config.json", '{"hidden_size": 7}', "cannot be read"),
        ("image_reward", "vocab.txt", "[UNK]\na", "has 6 words, the network 20"),
        ("pickscore", "config.json", "[]", "no JSON object"),
        ("pickscore", "config.json", '{"model_type": "clip", "text_config": {"hidden_size": 7}}', "cannot be read"),
        ("pickscore", "config.json", '{"model_type": "bert"}', "of type bert, not clip"),
        ("clipscore", "vocab.json", '{"a": 0}', "cannot be read"),
        ("aesthetic", "config.json", SMALLER, "not made for"),
    ],
)
def test_a_flawed_description_gives_one_line(name, file, content, says, copy):
    folder = copy(name)
    (folder / file).write_text(content)
    assert says in error(name, folder)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_missing_is_named_with_the_command_that_fetches_it(name, copy):
    folder, asked = copy(name), error(name, None)
    assert f"or the hub id {FILES[name][0].repo}" in asked
    for file in FILES[name]:
        assert file.name in asked
        assert len(file.revision) == 40
        (folder / file.name).rename(folder / "away")
        message = error(name, folder)
        (folder / "away").rename(folder / file.name)
        assert message.startswith(f"{folder / file.name} ({file.size}) is missing")
        assert f"--revision {file.revision} --local-dir models/{name}" in message


@pytest.mark.parametrize("source", ["models/typo", "/no/such/folder", "owner/name@main", "owner/name@abc", "x@y", ""])
def test_what_is_neither_a_path_nor_a_pinned_hub_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error("pickscore", source)
    assert "no such file or folder" in message or "is missing" in message


def test_one_file_may_be_given_for_a_reward_of_one_file_alone(folders):
    assert tiny.load("hpsv2", folders["hpsv2"] / "HPS_v2_compressed.pt").about.version == "v2.0"
    assert "needs 4" in error("pickscore", folders["pickscore"] / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_id_is_fetched_at_its_pinned_commit(name, folders, monkeypatch):
    asked = []

    def download(repo, revision, files):
        asked.append((*files, repo, revision))
        return folders[name]

    monkeypatch.setattr(public, "from_hub", download)
    own = FILES[name][0].repo
    assert tiny.load(name, own).about.source == own
    assert asked == [(file.name, file.repo, file.revision) for file in FILES[name]]
    asked.clear()
    tiny.load(name, f"other/mirror@{'a' * 40}")
    mirrored = {file.name for file in FILES[name] if file.repo == own}
    assert {file for file, repo, commit in asked if (repo, commit) == ("other/mirror", "a" * 40)} == mirrored


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(public, "from_hub", fail)
    assert "cannot be fetched from xswu/HPSv2@" in error("hpsv2", "xswu/HPSv2")


def test_files_of_other_names_and_with_more_or_less_than_is_used_are_taken(copy):
    """The head under its first name; ImageReward without what its score leaves out; CLIP's old table of positions."""
    folder = copy("aesthetic")
    (folder / "aesthetic-model.pth").rename(folder / "sac+logos+ava1-l14-linearMSE.pth")
    assert tiny.load("aesthetic", folder)
    folder = copy("image_reward")
    weights = public.read_weights(folder / "ImageReward.pt")
    kept = {name: value for name, value in weights.items() if not name.startswith(public.UNUSED)}
    assert len(kept) == len(weights) - 5
    write(folder / "ImageReward.pt", kept)
    assert tiny.load("image_reward", folder)
    path = copy("pickscore") / "model.safetensors"
    write(path, public.read_weights(path) | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    assert tiny.load("pickscore", path.parent)


def test_packages_are_quiet_while_they_are_asked_to_and_no_longer(caplog):
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        with public.quiet_packages():
            warnings.warn("inside", stacklevel=1)
            logging.info("inside")
            logging.error("still heard")
        warnings.warn("outside", stacklevel=1)
        logging.info("outside")
    assert [str(one.message) for one in heard] == ["outside"]
    assert caplog.messages == ["still heard", "outside"]
