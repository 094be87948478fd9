"""Small rewards of the official classes with random weights: to run everything that needs judges, where there are none.

Their numbers mean nothing. The weights are large enough that every picture gets another score.
"""

import contextlib
import gzip
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from unittest import mock

import torch
from torch import nn

from dipp_core.rewards.files import quiet_packages

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *re.findall(r"[a-z]+|,", "a red fox on the snow green boat at night two dogs play cards,")]
CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 768,  # the official head of the aesthetic predictor takes no other
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 16,
    },
}
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


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough to matter; untouched ones give nearly the same reward to every picture."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                fan_in = weight[0].numel() if "embed" not in name or weight.ndim == 4 else 4
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / fan_in**0.5)
    return network


def write_clip(folder: pathlib.Path) -> pathlib.Path:
    """A folder in transformers format, with CLIP's whole vocabulary."""
    import clip
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what `randomise` leaves alone, an embedding of one dimension
        network = randomise(CLIPModel(CLIPConfig.from_json_file(folder / "config.json")))
    save_file(network.state_dict(), folder / "model.safetensors")
    words = clip.simple_tokenizer.SimpleTokenizer()
    # transformers spells CLIP's two special tokens in its own way
    spelled = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    spelled |= {"<|startoftext|>": "<|startoftext|>", "<|endoftext|>": "<|endoftext|>"}
    vocabulary = {spelled.get(word, word): index for word, index in words.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    published = pathlib.Path(clip.simple_tokenizer.default_bpe()).read_bytes()
    lines = gzip.decompress(published).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    return folder


def write_aesthetic(folder: pathlib.Path, clip: pathlib.Path) -> pathlib.Path:
    from dipp_core.rewards import aesthetic

    shutil.copytree(clip, folder)
    torch.save(randomise(aesthetic.head(768), 1).state_dict(), folder / "aesthetic-model.pth")
    return folder


def write_hps(folder: pathlib.Path, name: str, seed: int = 0) -> pathlib.Path:
    """A checkpoint as published: a table of half-precision weights under state_dict."""
    from hpsv2.src import open_clip

    folder.mkdir()
    network = randomise(open_clip.create_model("ViT-H-14", precision="fp32"), seed)
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
def small_architectures() -> Iterator[None]:
    """Where the official packages fix a size in code, a smaller one of the same classes, to make and to load."""
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


def write_all(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of every named reward, as a reader would have fetched them: name -> folder."""
    root.mkdir(parents=True, exist_ok=True)
    with quiet_packages(), small_architectures(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = write_clip(root / "clip")
        return {
            "image_reward": write_image_reward(root / "image_reward"),
            "hpsv2": write_hps(root / "hpsv2", "HPS_v2_compressed.pt"),
            "hpsv2.1": write_hps(root / "hpsv2.1", "HPS_v2.1_compressed.pt", seed=1),
            "pickscore": clip,
            "clipscore": clip,
            "aesthetic": write_aesthetic(root / "aesthetic", clip),
        }
