"""HPSv2: tensors judged as the official package's own `score` judges Pillow's pictures, from the same checkpoint."""

import pytest
import torch

FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}


@pytest.fixture
def official(folders, small, monkeypatch):
    """The package's `score`, with its model made as it makes it, but without the weights it would fetch for nothing."""
    from hpsv2 import img_score

    model, _, prepare = img_score.create_model_and_transforms(
        "ViT-H-14", None, precision="amp", light_augmentation=True, output_dict=True
    )
    monkeypatch.setattr(img_score, "model_dict", {"model": model, "preprocess_val": prepare})
    monkeypatch.setattr(img_score, "device", "cpu")
    return lambda name, one, text: img_score.score(one, text, cp=str(folders[name] / FILES[name]))[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [(56, 56), (90, 70), (70, 141), (40, 30)])
def test_the_tensor_path_is_the_official_path(name, size, official, judge, picture, tensor, prompts):
    """HPSv2 resizes in floating point, so there is nothing but float32 between the two."""
    pictures = [picture(*size, seed=seed) for seed in range(2)]
    expected = torch.tensor([official(name, one, text) for one, text in zip(pictures, prompts, strict=True)])
    gap = (judge(name)(tensor(*pictures), prompts) - expected).abs().max().item()
    print(f"{name} {size}: official {expected.tolist()}, gap {gap:.1e}")
    assert gap < 2e-6
