"""Small rewards in the official architectures, with random weights that make a reward of every picture another one."""

import contextlib
import json
import pathlib
import re
import shutil
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch

from dipp_core.rewards import base
from dipp_core.rewards.tiny import randomise, write_clip

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *re.findall(r"[a-z]+|,", "a red fox on the snow green boat at night two dogs play cards,")]
PROMPTS = ["a red fox on the snow", "two dogs play cards at night, a green boat"]
HPS_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
MED_CONFIG = {
    "architectures": ["BertModel"],
    "hidden_size": 768,  # the official head takes no other
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "vocab_size": len(WORDS) + 2,
    "max_position_embeddings": 40,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "encoder_width": 48,
    "add_cross_attention": True,
}


def write_aesthetic(folder: pathlib.Path, clip: pathlib.Path) -> pathlib.Path:
    from dipp_core.rewards import aesthetic

    shutil.copytree(clip, folder)
    torch.save(randomise(aesthetic.head(768), 1).state_dict(), folder / "aesthetic-model.pth")
    return folder


def write_hps(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A checkpoint as published: a table of half-precision weights under state_dict."""
    from hpsv2.src import open_clip

    folder.mkdir()
    network = randomise(open_clip.create_model("ViT-H-14", precision="fp32"))
    torch.save({"state_dict": network.half().state_dict()}, folder / name)
    return folder


def write_image_reward(folder: pathlib.Path) -> pathlib.Path:
    from dipp_core.rewards import image_reward

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    network = randomise(image_reward.build(folder / "med_config.json", folder / "vocab.txt"))
    torch.save(network.state_dict(), folder / "ImageReward.pt")
    return folder


@contextlib.contextmanager
def small_architectures():
    """Where the official packages fix a size in code, a smaller one of the same classes."""
    from hpsv2.src.open_clip import factory
    from ImageReward.models.BLIP import blip_pretrain, vit

    def small_vit(*_):
        network = vit.VisionTransformer(
            img_size=224, patch_size=56, embed_dim=48, depth=2, num_heads=4, drop_path_rate=0.1
        )
        return network, 48

    with (
        mock.patch.object(blip_pretrain, "create_vit", small_vit),
        mock.patch.dict(factory._MODEL_CONFIGS, {"ViT-H-14": HPS_CONFIG}),
    ):
        yield


@pytest.fixture(scope="module")
def small():
    """The official packages build small models while this module's tests run."""
    with small_architectures():
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """The files of every named reward, as a reader would have fetched them."""
    root = tmp_path_factory.mktemp("rewards")
    with small_architectures(), torch.random.fork_rng():
        torch.manual_seed(0)
        clip = write_clip(root / "clip")
        return {
            "image_reward": write_image_reward(root / "image_reward"),
            "hpsv2": write_hps(root / "hpsv2", "HPS_v2_compressed.pt"),
            "hpsv2.1": write_hps(root / "hpsv2.1", "HPS_v2.1_compressed.pt"),
            "pickscore": clip,
            "clipscore": clip,
            "aesthetic": write_aesthetic(root / "aesthetic", clip),
        }


@pytest.fixture(scope="session")
def judge(folders):
    """`judge("pickscore", dtype=..)` loads a small reward."""

    def load(name, **options):
        with small_architectures():
            return base.load(name, folders[name], **options)

    return load


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return PROMPTS


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
