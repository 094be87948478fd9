"""Pictures prepared as the official packages prepare them."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
from transformers import CLIPImageProcessor

from dipp_core.rewards import pixels

SIZES = [(48, 48), (64, 64), (97, 60), (60, 131), (200, 33), (31, 40)]
EIGHT_BIT = 1.6 / 255  # two passes, each rounded


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_torchvisions_up_to_eight_bits(size, picture, tensor):
    one = picture(*size)
    official = transforms.Compose(
        [
            transforms.Resize(48, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(48),
            transforms.ToTensor(),
        ]
    )
    found = pixels.crop(tensor(one), 48)[0]
    assert found.shape == (3, 48, 48)
    assert (found - official(one)).abs().max() < (1e-6 if min(size) == 48 else EIGHT_BIT)


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_that_of_transformers_up_to_eight_bits(size, picture, tensor):
    one = picture(*size)
    official = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    expected = torch.from_numpy(np.stack(official(one)["pixel_values"]))
    found = pixels.normalise(pixels.crop(tensor(one), 48, centre=math.floor))
    assert (found - expected).abs().max() * 0.2613 < (1e-6 if min(size) == 48 else EIGHT_BIT)


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_exactly_that_of_hpsv2(size, picture, tensor):
    from hpsv2.src.open_clip.transform import image_transform

    one = picture(*size)
    expected = image_transform(48, is_train=False, resize_longest_max=True)(one)
    assert (pixels.normalise(pixels.pad(tensor(one), 48))[0] - expected).abs().max() < 1e-5


def test_a_side_that_is_right_already_is_padded_all_the_same():
    """The official transform forgets that case, and the network then fails."""
    assert pixels.pad(torch.ones(1, 3, 48, 20), 48).shape == (1, 3, 48, 48)


def test_preparation_in_half_precision_computes_in_float32():
    assert pixels.at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype is torch.float32
    assert pixels.unit(torch.ones(1, 4, dtype=torch.float64)).dtype is torch.float64
