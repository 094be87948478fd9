"""Small rewards in the official architectures, and pictures as Pillow and as tensors have them."""

import pathlib

import numpy as np
import PIL.Image
import pytest
import torch

from dipp_core.rewards import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """The files of every named reward, as a reader would have fetched them."""
    return tiny.write_all(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="session")
def judge(folders):
    """`judge("pickscore", dtype=..)` loads a small reward."""
    return lambda name, **options: tiny.load(name, folders[name], **options)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return ["a red fox on the snow", "two dogs play cards at night, a green boat"]


@pytest.fixture(scope="session")
def picture():
    """`picture(width, height, seed)`: waves, an edge and a little noise, in 8 bits as Pillow has them."""

    def draw(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
        random = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width] / 64
        waves = [np.sin(random.uniform(2, 9) * x + random.uniform(2, 9) * y + random.uniform(0, 6)) for _ in range(3)]
        values = 128 + 90 * np.stack(waves, -1) + random.normal(0, 12, (height, width, 3))
        values[height // 3 : height // 2, width // 4 : width // 2] = random.uniform(0, 255, 3)
        return PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8))

    return draw


@pytest.fixture(scope="session")
def tensor():
    """Pictures of Pillow as this project has them."""

    def convert(*pictures: PIL.Image.Image) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in pictures])

    return convert
