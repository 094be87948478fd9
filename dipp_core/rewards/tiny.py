"""Small rewards of the official classes with random weights: to run everything that needs judges, where there are none.

Their numbers mean nothing. The weights are large enough that every picture gets another score.
"""

import functools
import gzip
import json
import pathlib
import re
import shutil
from typing import Any

import torch
from torch import nn

from dipp_core.rewards import public

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *re.findall(r"[a-z]+|,", "a red fox on the snow green boat at night two dogs play cards,")]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_CONFIG = {
    "model_type": "clip",
    "projection_dim": 768,  # the official head of the aesthetic predictor takes no other
    "text_config": TOWER,
    "vision_config": TOWER | {"image_size": 48, "patch_size": 16},
}
HPS_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
TOWERS = public.Towers({"patch_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 4}, HPS_CONFIG)
load = functools.partial(public.load, towers=TOWERS)


def med_config(words: int, width: int, **sizes: int) -> dict[str, Any]:
    """The description of ImageReward's text encoder, BERT's sizes unless others are given; width: of its pictures."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    rates = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "initializer_range": 0.02}
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "type_vocab_size": 2}
    own = {"vocab_size": words, "encoder_width": width, "add_cross_attention": True, "max_position_embeddings": 512}
    return base | rates | fixed | own | sizes


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


def write_all(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of every named reward, as a reader would have fetched them, for `load`: name -> folder."""
    with public.quiet_packages(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = write_clip(root / "clip")
        blip = root / "image_reward"
        blip.mkdir()
        (blip / "vocab.txt").write_text("\n".join(WORDS))
        small = {"intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 40}
        (blip / "med_config.json").write_text(json.dumps(med_config(len(WORDS) + 2, 48, **small)))
        network = public.image_reward_network(blip / "med_config.json", blip / "vocab.txt", TOWERS)
        torch.save(randomise(network).state_dict(), blip / "ImageReward.pt")
        for seed, name in enumerate(("hpsv2", "hpsv2.1")):
            network = randomise(public.hps_network(TOWERS), seed)
            (root / name).mkdir()
            torch.save({"state_dict": network.half().state_dict()}, root / name / public.SCORERS[name].files[0].name)
        shutil.copytree(clip, root / "aesthetic")
        head = randomise(public.aesthetic_head(768), 1)
        torch.save(head.state_dict(), root / "aesthetic" / "aesthetic-model.pth")
    folders = {name: root / name for name in public.NAMES}
    return folders | {"pickscore": clip, "clipscore": clip}
