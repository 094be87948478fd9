"""Pictures prepared pixel by pixel as the official packages prepare them."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as transforms
from transformers import CLIPImageProcessor

from dipp_core.rewards import pixels


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (97, 60), (60, 131), (200, 33), (31, 40)])
def test_crop_and_pad_are_those_of_the_packages(size, picture, tensor):
    """Up to two roundings to 8 bits where torchvision and transformers resize; HPSv2 resizes in floating point."""
    from hpsv2.src.open_clip.transform import image_transform

    one, bicubic = picture(*size), transforms.InterpolationMode.BICUBIC
    torchvision = transforms.Compose(
        [transforms.Resize(48, interpolation=bicubic), transforms.CenterCrop(48), transforms.ToTensor()]
    )
    clip = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    tolerance = 1e-6 if min(size) == 48 else 1.6 / 255
    assert (pixels.crop(tensor(one), 48)[0] - torchvision(one)).abs().max() < tolerance
    cropped = pixels.normalise(pixels.crop(tensor(one), 48, centre=math.floor))
    expected = torch.from_numpy(np.stack(clip(one)["pixel_values"]))
    assert (cropped - expected).abs().max() * 0.2613 < tolerance
    padded = image_transform(48, is_train=False, resize_longest_max=True)(one)
    assert (pixels.normalise(pixels.pad(tensor(one), 48))[0] - padded).abs().max() < 1e-5


def test_a_side_that_is_right_already_is_padded_all_the_same():
    """The official transform forgets that case, and the network then fails."""
    assert pixels.pad(torch.ones(1, 3, 48, 20), 48).shape == (1, 3, 48, 48)
