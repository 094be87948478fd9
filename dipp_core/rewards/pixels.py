"""Pictures on their way into a reward's network, as the official packages prepare them, but differentiable.

Official code mostly resizes 8-bit pictures and rounds the result to 8 bits; here nothing is rounded, since a rounded
picture has no gradient. That is the difference between the two paths, at most about 1.5/255 in a pixel.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, as Pillow does it; may overshoot [0, 1]."""
    return torch.nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def crop(images: Tensor, size: int, *, centre: Callable[[float], int] = round) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the shorter side becomes `size`, the middle of the longer side stays.

    What overshoots [0, 1] is cut off, as in 8-bit pictures. centre: which way the offset of an odd margin goes; `round`
    as torchvision has it, `math.floor` as transformers has it.
    """
    height, width = images.shape[-2:]
    short, long = sorted((height, width))
    if short != size:
        longer = int(size * long / short)
        images = resize(images, (size, longer) if height <= width else (longer, size)).clamp(0, 1)
    top, left = (centre((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def pad(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the longer side becomes `size`, the rest is black. As HPSv2 has it.

    HPSv2 resizes floating-point pictures: nothing is rounded there, and what overshoots [0, 1] stays.
    """
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        images = resize(images, (round(height * scale), round(width * scale)))
    down, right = (size - side for side in images.shape[-2:])
    return torch.nn.functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def normalise(images: Tensor) -> Tensor:
    """By the mean and deviation of CLIP's training pictures, which all these networks share."""
    mean, std = (images.new_tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def unit(features: Tensor) -> Tensor:
    """Features of length 1, in float32 at least."""
    return torch.nn.functional.normalize(at_least_float32(features), dim=-1)
