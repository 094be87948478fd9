"""CLIPScore, PickScore and the aesthetic predictor against the official code on Pillow's pictures, same weights."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

SIZES = [(48, 48), (96, 80), (61, 130), (40, 44)]


@pytest.fixture(scope="module")
def processor(folders):
    """As the model cards of CLIP and PickScore prepare pictures and prompts."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    folder = folders["clipscore"]
    return CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")),
    )


@pytest.fixture(scope="module")
def model(folders):
    """Loaded by transformers itself."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folders["clipscore"]).eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clipscore", "pickscore"])
def test_the_tensor_path_is_that_of_the_model_card(name, size, processor, model, judge, picture, tensor, prompts):
    """Up to the rounding to 8 bits after resizing; to float32 where nothing is resized."""
    pictures = [picture(*size, seed=seed) for seed in range(2)]
    inputs = processor(images=pictures, text=prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        official = model(**inputs).logits_per_image.diagonal()
    if name == "clipscore":
        official = official / model.logit_scale.exp()
    reward = judge(name)
    gap = (reward(tensor(*pictures), prompts) - official).abs().max().item()
    scale = 1.0 if name == "clipscore" else reward.network.logit_scale.exp().item()
    print(f"{name} {size}: official {official.tolist()}, gap {gap:.1e} on a scale of {scale:.1f}")
    assert gap < (1e-6 if size == (48, 48) else 2e-3) * scale


def test_a_long_prompt_is_cut_where_the_model_card_cuts_it(processor, model, judge, picture, tensor):
    text, one = "a red fox, " * 60, picture(48, 48)
    inputs = processor(images=[one], text=[text], padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        official = model(**inputs).logits_per_image.item()
    assert judge("pickscore")(tensor(one), [text]).item() == pytest.approx(official, abs=1e-4)


def test_prompts_are_cut_into_the_tokens_of_openais_own_code(judge):
    import clip

    texts = ["A red fox, in the snow!", "two  spaces, 7 dogs & they don't bite", "naïve café"]
    own = judge("clipscore").tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    assert torch.equal(own.input_ids * own.attention_mask, clip.tokenize(texts).long())


@pytest.mark.parametrize("size", SIZES)
def test_the_aesthetic_rating_is_that_of_the_official_class(size, model, judge, picture, tensor, tmp_path, folders):
    """ImageReward's package carries the predictor as published; it is handed the same small CLIP."""
    import clip
    from ImageReward.models.AestheticScore import AestheticScore

    tower = mock.Mock(encode_image=model.get_image_features, logit_scale=SimpleNamespace(requires_grad_=lambda _: None))
    with mock.patch.object(clip, "load", return_value=(tower, clip.clip._transform(48))):
        predictor = AestheticScore(str(tmp_path), device="cpu")
    predictor.mlp.load_state_dict(torch.load(folders["aesthetic"] / "aesthetic-model.pth", weights_only=True))
    expected, pictures = [], [picture(*size, seed=seed) for seed in range(2)]
    for one in pictures:
        one.save(tmp_path / "one.png")
        with torch.no_grad():
            expected.append(predictor.eval().score("", str(tmp_path / "one.png")))
    gap = (judge("aesthetic")(tensor(*pictures), ["", ""]) - torch.tensor(expected)).abs().max().item()
    print(f"aesthetic {size}: official {expected}, gap {gap:.1e}")
    assert gap < (2e-6 if size == (48, 48) else 2e-2)
