"""Files of rewards: found or fetched by pinned ids, and every flaw named in one line that says what to do."""

import json
import logging
import os
import pickle
import shutil
import warnings

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from dipp_core.rewards import aesthetic, base, clip, files, hps, image_reward, pick

PUBLISHED = {
    "image_reward": image_reward.FILES,
    "hpsv2": [hps.CHECKPOINTS["v2.0"]],
    "hpsv2.1": [hps.CHECKPOINTS["v2.1"]],
    "pickscore": pick.FILES,
    "clipscore": clip.FILES,
    "aesthetic": aesthetic.FILES,
}
TOWER = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALLER = json.dumps({"model_type": "clip", "vision_config": TOWER, "text_config": TOWER})
WEIGHTS = {name: published[0].name for name, published in PUBLISHED.items()}
pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever fetches without a hub id fails here."""

    def refuse(*arguments, **options):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


def error(name, source) -> str:
    with pytest.raises(base.RewardError) as caught:
        base.load(name, source)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.fixture
def copy(folders, tmp_path):
    return lambda name: shutil.copytree(folders[name], tmp_path / name)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate(path, tmp_path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "no whole weight file"


def empty(path, tmp_path):
    path.write_bytes(b"")
    return "no whole weight file (0 bytes"


def foreign(path, tmp_path):
    path.write_bytes(b"<!doctype html><html>not found</html>")
    return "no whole weight file"


def missing(path, tmp_path):
    path.unlink()
    return "is missing"


def one_weight_less(path, tmp_path):
    weights = files.read_weights(path)
    lost = next(name for name in weights if name.endswith("bias") and "proj." not in name)
    write(path, {name: value for name, value in weights.items() if name != lost})
    return f"1 of {len(weights)} weights are missing, the first is {lost}"


def other_shape(path, tmp_path):
    weights = files.read_weights(path)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    write(path, weights | {name: torch.zeros(3, 3)})
    return f"{name} has the shape (3, 3), not"


def deeper(path, tmp_path):
    weights = {name: value.clone() for name, value in files.read_weights(path).items()}
    name = next(name for name in weights if ".1." in name)
    write(path, weights | {name.replace(".1.", ".7."): weights[name].clone()})
    return f"the first weight too many is {name.replace('.1.', '.7.')}"


def other_network(path, tmp_path):
    write(path, {"layer.weight": torch.zeros(2, 2)})
    return "weights are missing"


def write(path, weights):
    weights = {name: value.clone() for name, value in weights.items()}
    path.unlink()  # the old file may be mapped
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


FLAWS = (truncate, empty, foreign, missing, one_weight_less, other_shape, deeper, other_network)


@pytest.mark.parametrize("name", base.NAMES)
@pytest.mark.parametrize("flaw", FLAWS)
def test_flawed_weights_give_one_line(name, flaw, copy, tmp_path):
    if flaw is deeper and name == "aesthetic":
        pytest.skip("the head has no repeated layers")
    folder = copy(name)
    says = flaw(folder / WEIGHTS[name], tmp_path)
    message = error(name, folder)
    assert says in message
    assert str(folder / WEIGHTS[name]) in message
    assert "fetch" in message


@pytest.mark.parametrize("name", ["image_reward", "hpsv2", "aesthetic"])
@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_that_would_run_code_is_not_opened(name, dump, copy, tmp_path):
    folder = copy(name)
    dump({"state_dict": Payload(tmp_path / "ran")}, folder / WEIGHTS[name])
    message = error(name, folder)
    assert "mkdir" in message or "no whole weight file" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("image_reward", "med_config.json", "{", "cannot be read"),
        ("image_reward", "med_config.json", "[1]", "no JSON object"),
        ("image_reward", "med_config.json", '{"hidden_size": 7}', "cannot be read"),
        ("image_reward", "vocab.txt", "[UNK]\na", "has 6 words, the network 20"),
        ("pickscore", "config.json", "[]", "no JSON object"),
        ("pickscore", "config.json", '{"model_type": "clip", "text_config": {"hidden_size": 7}}', "cannot be read"),
        ("pickscore", "config.json", '{"model_type": "bert"}', "of type bert, not clip"),
        ("clipscore", "vocab.json", "not json", "cannot be read"),
        ("clipscore", "vocab.json", '{"a": 0}', "cannot be read"),
        (
            "aesthetic",
            "config.json",
            SMALLER,
            "not made for",
        ),
    ],
)
def test_a_flawed_description_gives_one_line(name, file, content, says, copy):
    folder = copy(name)
    (folder / file).write_text(content)
    assert says in error(name, folder)


@pytest.mark.parametrize("name", base.NAMES)
def test_every_file_that_is_missing_is_named_with_the_command_that_fetches_it(name, copy):
    folder = copy(name)
    for file in PUBLISHED[name]:
        (folder / file.name).rename(folder / "away")
        message = error(name, folder)
        (folder / "away").rename(folder / file.name)
        assert message.startswith(f"{folder / file.name} ({file.size}) is missing")
        assert f"--revision {file.revision} --local-dir models/{name}" in message


@pytest.mark.parametrize("name", base.NAMES)
def test_without_a_source_it_is_said_what_to_give_and_nothing_is_fetched(name):
    message = error(name, None)
    assert all(file.name in message for file in PUBLISHED[name])
    assert f"or the hub id {PUBLISHED[name][0].repo}" in message


@pytest.mark.parametrize("source", ["models/typo", "/no/such/folder", "owner/name@main", "owner/name@abc", "x@y", ""])
def test_what_is_neither_a_path_nor_a_pinned_hub_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error("pickscore", source)
    assert "no such file or folder" in message or "is missing" in message


def test_one_file_of_several_is_refused(folders):
    assert "needs 4" in error("pickscore", folders["pickscore"] / "model.safetensors")


def test_a_reward_of_one_file_takes_the_file(folders, picture, tensor):
    path = folders["hpsv2"] / "HPS_v2_compressed.pt"
    images = tensor(picture(60, 60))
    assert torch.equal(base.load("hpsv2", path)(images, ["a"]), base.load("hpsv2", folders["hpsv2"])(images, ["a"]))


def test_the_head_is_known_by_its_first_name_too(copy):
    folder = copy("aesthetic")
    (folder / "aesthetic-model.pth").rename(folder / "sac+logos+ava1-l14-linearMSE.pth")
    assert base.load("aesthetic", folder).about.name == "aesthetic"


@pytest.mark.parametrize("name", base.NAMES)
def test_a_hub_id_is_fetched_at_its_pinned_commit(name, folders, monkeypatch):
    asked = []

    def download(repo, file, *, revision):
        asked.append((file, repo, revision))
        return str(folders[name] / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    published = PUBLISHED[name]
    reward = base.load(name, published[0].repo)
    assert asked == [(file.name, file.repo, file.revision) for file in published]
    assert reward.about.source == published[0].repo
    asked.clear()
    base.load(name, f"other/mirror@{'a' * 40}")
    mirrored = {file.name for file in published if file.repo == published[0].repo}
    assert {file for file, repo, commit in asked if (repo, commit) == ("other/mirror", "a" * 40)} == mirrored


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert "cannot be fetched from xswu/HPSv2@" in error("hpsv2", "xswu/HPSv2")


@pytest.mark.parametrize("name", base.NAMES)
def test_every_published_file_is_pinned_to_a_commit(name):
    assert all(len(file.revision) == 40 and set(file.revision) <= set("0123456789abcdef") for file in PUBLISHED[name])


def test_weights_the_score_does_not_use_may_be_absent(copy):
    folder = copy("image_reward")
    path = folder / "ImageReward.pt"
    weights = files.read_weights(path)
    kept = {name: value for name, value in weights.items() if not name.startswith(image_reward.UNUSED)}
    assert len(kept) == len(weights) - 5
    write(path, kept)
    assert base.load("image_reward", folder)


def test_a_weight_of_another_part_is_let_be(copy):
    """Old checkpoints of CLIP carry a table of positions that newer code no longer keeps."""
    folder = copy("pickscore")
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    assert base.load("pickscore", folder)


def test_packages_are_quiet_while_they_are_asked_to_and_no_longer(caplog):
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        with files.quiet_packages():
            warnings.warn("inside", stacklevel=1)
            logging.info("inside")
            logging.warning("still heard")
        warnings.warn("outside", stacklevel=1)
        logging.info("outside")
    assert [str(one.message) for one in heard] == ["outside"]
    assert caplog.messages == ["still heard", "outside"]
