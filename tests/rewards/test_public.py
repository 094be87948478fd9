"""Every named reward: the official path on Pillow's pictures, a true gradient, evaluation mode, precision, metadata."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from dipp_core.rewards import public, tiny

NAMES = public.NAMES


# ---------------------------------------------------------------------------------------------------- the official path


@pytest.fixture(scope="module")
def model(folders):
    """CLIP, loaded by transformers itself."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folders["clipscore"]).eval()


@pytest.fixture(scope="module")
def card(folders, model):
    """CLIPScore and PickScore as their model cards compute them."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    folder = folders["clipscore"]
    images = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor = CLIPProcessor(images, CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")))

    def score(pictures, texts):
        how = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        with torch.no_grad():
            return model(**processor(images=pictures, text=texts, **how)).logits_per_image.diagonal()

    return score


@pytest.mark.parametrize("size", [(48, 48), (96, 80), (61, 130)])
def test_clip_scores_are_those_of_the_model_card(size, card, model, judge, picture, tensor, prompts):
    """Up to the rounding to 8 bits after resizing; to float32 where nothing is resized. Long prompts are cut alike."""
    pictures, texts = [picture(*size, seed=seed) for seed in range(3)], [*prompts, "a red fox, " * 60]
    official, scale = card(pictures, texts), model.logit_scale.exp().item()
    for name, expected in {"pickscore": official / scale, "clipscore": official / scale}.items():
        found = judge(name)(tensor(*pictures), texts) / (scale if name == "pickscore" else 1.0)
        assert (found - expected).abs().max() < (1e-6 if size == (48, 48) else 2e-3)


def test_prompts_are_cut_into_the_tokens_of_openais_own_code(judge):
    import clip

    texts = ["A red fox, in the snow!", "two  spaces, 7 dogs & they don't bite", "naïve café"]
    own = judge("clipscore").tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    assert torch.equal(own.input_ids * own.attention_mask, clip.tokenize(texts).long())


@pytest.mark.parametrize("size", [(48, 48), (61, 130)])
def test_the_aesthetic_rating_is_that_of_the_official_class(size, model, judge, picture, tensor, tmp_path, folders):
    """ImageReward's package carries the predictor as published; it is handed the same small CLIP."""
    import clip
    from ImageReward.models.AestheticScore import AestheticScore

    tower = mock.Mock(encode_image=model.get_image_features, logit_scale=SimpleNamespace(requires_grad_=lambda _: None))
    with mock.patch.object(clip, "load", return_value=(tower, clip.clip._transform(48))):
        predictor = AestheticScore(str(tmp_path), device="cpu")
    predictor.mlp.load_state_dict(torch.load(folders["aesthetic"] / "aesthetic-model.pth", weights_only=True))
    one = picture(*size)
    one.save(tmp_path / "one.png")
    with torch.no_grad():
        expected = predictor.eval().score("", str(tmp_path / "one.png"))
    assert judge("aesthetic")(tensor(one), [""]).item() == pytest.approx(
        expected, abs=2e-6 if min(size) == 48 else 2e-2
    )


@pytest.fixture
def hps_score(folders, monkeypatch):
    """The package's `score`, with its model made as it makes it, but without the weights it would fetch for nothing."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", tiny.HPS_CONFIG)
    model, _, prepare = img_score.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", light_augmentation=True, output_dict=True
    )
    monkeypatch.setattr(img_score, "model_dict", {"model": model, "preprocess_val": prepare})
    monkeypatch.setattr(img_score, "device", "cpu")
    return lambda name, one, text: img_score.score(one, text, cp=str(*folders[name].glob("*.pt")))[0]


@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.1"])
@pytest.mark.parametrize("size", [(56, 56), (70, 141), (40, 30)])
def test_hps_is_the_official_score(name, size, hps_score, judge, picture, tensor, prompts):
    """HPSv2 resizes in floating point, so there is nothing but float32 between the two."""
    pictures = [picture(*size, seed=seed) for seed in range(2)]
    expected = torch.tensor([hps_score(name, one, text) for one, text in zip(pictures, prompts, strict=True)])
    assert (judge(name)(tensor(*pictures), prompts) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("size", [(224, 224), (300, 260), (180, 250)])
def test_image_reward_is_the_official_score(size, judge, picture, tensor, prompts):
    """Up to the rounding to 8 bits after resizing; to float32 where nothing is resized. Long prompts are cut alike."""
    reward, pictures = judge("image_reward"), [picture(*size, seed=seed) for seed in range(3)]
    texts = [*prompts, "a red fox on the snow " * 12]
    official = torch.tensor([reward.network.score(text, one) for text, one in zip(texts, pictures, strict=True)])
    gap, spread = (reward(tensor(*pictures), texts) - official).abs().max(), (official[0] - official[1]).abs()
    assert gap < (2e-5 if size == (224, 224) else 0.03) * spread


def test_image_reward_is_built_as_its_package_builds_it(folders, monkeypatch):
    """Same parts and constants as from the official constructors, handed the same small tower and tokenizer."""
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip_pretrain, vit

    folder = folders["image_reward"]
    ours = public.image_reward_network(folder / "med_config.json", folder / "vocab.txt", tiny.TOWERS)
    asked = {}
    monkeypatch.setattr(vit, "VisionTransformer", lambda **options: asked.update(options))
    monkeypatch.setitem(blip_pretrain.create_vit.__globals__, "VisionTransformer", vit.VisionTransformer)
    blip_pretrain.create_vit("large", 224, 0, 0, 0)
    assert asked.items() >= public.PUBLISHED.blip.items()
    assert asked["drop_path_rate"] == 0.1
    monkeypatch.setattr(blip_pretrain, "create_vit", lambda *_: (ours.blip.visual_encoder, 48))
    monkeypatch.setattr(blip_pretrain, "init_tokenizer", lambda: ours.blip.tokenizer)
    theirs = ImageReward(med_config=str(folder / "med_config.json"))
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert (ours.mean, ours.std, ours.device) == (theirs.mean, theirs.std, theirs.device)


def test_hps_has_the_published_size():
    from hpsv2.src import open_clip

    with torch.device("meta"):
        network = public.hps_network(public.PUBLISHED)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in open_clip.create_model("ViT-H-14", device="meta").state_dict().items()
        }


# --------------------------------------------------------------------------------------------- what every reward does


@pytest.fixture(scope="module")
def doubles(judge):
    """Every reward in float64."""
    return {name: judge(name, dtype=torch.float64) for name in NAMES}


@pytest.fixture
def pictures(picture, tensor):
    """Two pictures clear of 0 and 1, where the official path cuts off and a difference quotient would see it."""
    return 0.2 + 0.6 * tensor(picture(90, 70), picture(90, 70, seed=1)).double()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_central_differences(name, doubles, pictures, prompts):
    reward, x = doubles[name], pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x, prompts).sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()
    generator, step = torch.Generator().manual_seed(0), 1e-5
    with torch.no_grad():
        for _ in range(3):
            way = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            ahead, behind = (reward(x + sign * step * way, prompts).sum() for sign in (1, -1))
            gap = (ahead - behind) / (2 * step) - (gradient * way).sum()
            assert gap.abs() < 1e-6 * gradient.norm()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_frozen_judges_each_picture_by_itself_and_stays_in_evaluation_mode(name, doubles, pictures, prompts):
    reward = doubles[name]
    assert not any(weight.requires_grad for weight in reward.parameters())
    with torch.no_grad():
        together, swapped = reward(pictures, prompts), reward(pictures, prompts[::-1])
        alone = torch.cat([reward(pictures[k : k + 1], prompts[k : k + 1]) for k in range(2)])
        assert not any(module.training for module in reward.train().modules())
        reward.network.train()  # behind its back
        assert torch.equal(reward(pictures, prompts), together)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)  # CLIP reads prompts in float32
    assert abs(together[0] - together[1]) > 1e-3
    assert torch.equal(together, swapped) == (reward.about.prompt_tokens == 0)
    assert not any(module.training for module in reward.modules())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_and_nothing_else(name, judge, doubles, pictures, prompts):
    kept = []

    def gradient(reward):
        kept.append(0)

        def count(saved):
            kept[-1] += saved.numel()
            return saved

        x = pictures.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            value = reward(x, prompts).sum()
        return torch.autograd.grad(value, x)[0]

    plain = gradient(doubles[name])
    lean = gradient(judge(name, dtype=torch.float64, checkpointing=True))
    torch.testing.assert_close(plain, lean, rtol=1e-9, atol=1e-12)
    assert kept[1] < kept[0]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_float32_values_and_a_near_gradient(name, judge, doubles, pictures, prompts):
    reward = judge(name, dtype=torch.bfloat16)
    assert {weight.dtype for weight in reward.parameters()} == {torch.bfloat16}
    x, x64 = pictures.float().requires_grad_(), pictures.clone().requires_grad_()
    value, value64 = reward(x, prompts), doubles[name](x64, prompts)
    assert value.dtype is torch.float32
    near, exact = (torch.autograd.grad(v.sum(), at)[0].double() for v, at in ((value, x), (value64, x64)))
    assert (near * exact).sum() / near.norm() / exact.norm() > 0.95
    assert (value - value64).abs().max() < 0.1 * (1 + value64.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_autocast_does_not_change_it(name, judge, folders, pictures, prompts):
    reward = judge(name)
    assert (reward.about.name, reward.about.source) == (name, str(folders[name]))
    assert not any(value in ("", "unknown", None) for value in dataclasses.astuple(reward.about))
    with torch.no_grad():
        expected = reward(pictures.float(), prompts)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(reward(pictures.float(), prompts), expected)
