"""ImageReward: tensors judged as the official package judges Pillow's pictures, with the same weights."""

import pytest
import torch

SIZES = [(224, 224), (300, 260), (180, 250), (512, 512)]


@pytest.mark.parametrize("size", SIZES)
def test_the_tensor_path_is_the_official_path(size, judge, picture, tensor, prompts):
    """Up to the rounding to 8 bits after resizing; to float32 where nothing is resized."""
    reward, pictures = judge("image_reward"), [picture(*size, seed=seed) for seed in range(2)]
    official = torch.tensor([reward.network.score(text, one) for text, one in zip(prompts, pictures, strict=True)])
    found = reward(tensor(*pictures), prompts)
    spread = (official[0] - official[1]).abs().item()
    gap = (found - official).abs().max().item()
    print(f"{size}: official {official.tolist()}, gap {gap:.1e}")
    assert gap < (2e-5 if size == (224, 224) else 0.03) * spread


def test_a_long_prompt_is_cut_where_the_official_package_cuts_it(judge, picture, tensor):
    reward, one, text = judge("image_reward"), picture(224, 224), "a red fox on the snow " * 12
    assert reward(tensor(one), [text]).item() == pytest.approx(reward.network.score(text, one), abs=1e-4)
