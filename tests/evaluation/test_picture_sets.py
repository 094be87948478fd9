"""Folders of pictures: what each depends on, that nothing half-written is seen, that nothing is mixed."""

import numpy as np
import pytest
import torch

from dipp_core.evaluation import picture_sets
from dipp_core.evaluation.picture_sets import PictureError
from dipp_core.evaluation.prompt_lists import Prompt

PROMPTS = [Prompt(index, f"prompt {index}", "photos", "photos") for index in (0, 2, 5)]


def test_every_batch_belongs_to_one_process_and_is_the_same_however_many_there_are():
    whole = picture_sets.items(PROMPTS, [7, 8])
    assert whole == [(0, 7), (0, 8), (2, 7), (2, 8), (5, 7), (5, 8)]
    alone = picture_sets.batches(whole, 4)
    assert [item for part in alone for item in part] == whole
    shared = [picture_sets.batches(whole, 4, (k, 3)) for k in range(3)]
    assert sorted(part for parts in shared for part in parts) == sorted(alone)
    assert shared[2] == []


def test_noise_depends_on_seed_and_place_of_the_prompt_only():
    draws = {
        item: torch.randn(4, generator=picture_sets.generator_of(item)) for item in [(0, 1), (1, 0), (11, 1), (1, 11)]
    }
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
    again = torch.randn(4, generator=picture_sets.generator_of((1, 0)))
    assert torch.equal(again, draws[1, 0])


@pytest.mark.parametrize("text", ["4", "4/4", "-1/2", "a/b", "1/", "/2"])
def test_a_share_that_is_none_is_one_line(text):
    assert picture_sets.read_shard("0/1") == (0, 1)
    with pytest.raises(PictureError, match=r"write it as i/n with i from 0 to n - 1"):
        picture_sets.read_shard(text)


def test_facts_are_kept_and_others_refused(tmp_path):
    path = tmp_path / "made_by.json"
    facts = {"settings": {"steps": 4, "seeds": (0, 1)}, "machine": {"torch": "2"}}
    picture_sets.agree(path, facts)
    picture_sets.agree(path, facts)
    picture_sets.agree(path, {"settings": {"steps": 4}})
    with pytest.raises(PictureError, match=r"was made with settings.steps 4, not 5: go back") as caught:
        picture_sets.agree(path, {"settings": {"steps": 5}})
    assert "\n" not in str(caught.value)
    with pytest.raises(PictureError, match=r"was made with weights None, not 'other'"):
        picture_sets.agree(path, facts | {"weights": "other"})
    path.write_text("[")
    with pytest.raises(PictureError, match="cannot be read: remove"):
        picture_sets.agree(path, facts)


def test_a_digest_of_weights_sees_names_and_contents_but_not_notes_of_the_hub(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"one")
    first = picture_sets.digest_of_files(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "note").write_text("fetched today")
    assert picture_sets.digest_of_files(tmp_path) == first
    (tmp_path / "unet" / "w.safetensors").write_bytes(b"two")
    second = picture_sets.digest_of_files(tmp_path)
    (tmp_path / "unet").rename(tmp_path / "transformer")
    assert len({first, second, picture_sets.digest_of_files(tmp_path)}) == 3


def test_pictures_come_back_to_eight_bits(tmp_path):
    picture = np.random.default_rng(0).uniform(-0.1, 1.1, (6, 5, 3))
    (tmp_path / ".00001_2.png.4711").write_bytes(b"half")
    picture_sets.write(tmp_path, (1, 2), picture)
    found = picture_sets.read_all(tmp_path, [(1, 2)])
    assert found.shape == (1, 3, 6, 5)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - picture.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["00001_2.png"]
    assert picture_sets.missing(tmp_path, [(1, 2), (1, 3)]) == [(1, 3)]


def test_a_broken_picture_is_one_line(tmp_path):
    picture_sets.write(tmp_path, (0, 0), np.random.default_rng(0).uniform(0, 1, (20, 20, 3)))
    path = picture_sets.path_of(tmp_path, (0, 0))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PictureError, match=r"00000_0.png is no whole picture .*: remove it and draw it again"):
        picture_sets.read(path)
    with pytest.raises(PictureError, match="is not finite: try dtype fp32 or bf16"):
        picture_sets.write(tmp_path, (0, 1), np.full((2, 2, 3), np.nan))
    picture_sets.write(tmp_path, (1, 0), np.zeros((4, 4, 3)))
    picture_sets.write(tmp_path, (2, 0), np.zeros((4, 5, 3)))
    with pytest.raises(PictureError, match="have 2 sizes"):
        picture_sets.read_all(tmp_path, [(1, 0), (2, 0)])


def test_which_prompts_they_are_is_their_texts_and_places():
    assert picture_sets.digest_of(PROMPTS) != picture_sets.digest_of(PROMPTS[:2])
    moved = [Prompt(prompt.index + 1, prompt.text, "photos", "photos") for prompt in PROMPTS]
    assert picture_sets.digest_of(PROMPTS) != picture_sets.digest_of(moved)
