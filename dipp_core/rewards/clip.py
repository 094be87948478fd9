"""CLIPScore: the cosine of picture and prompt under CLIP. And CLIP itself, for the rewards that are built on it."""

import json
import math
import pathlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.rewards.base import About, Judge, finish, recompute
from dipp_core.rewards.files import File, RewardError, fill, locate, read_description
from dipp_core.rewards.pixels import at_least_float32, crop, normalise, unit

VIT_L = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
TOKENS = 77
FILES = (
    File("model.safetensors", *VIT_L, "1.7 GB"),
    File("config.json", *VIT_L, "5 kB"),
    File("vocab.json", *VIT_L, "1 MB"),
    File("merges.txt", *VIT_L, "0.5 MB"),
)
ABOUT = About(
    name="clipscore",
    version="CLIP ViT-L/14",
    code_licence="MIT",
    weights_licence="MIT (OpenAI's repository; its model card calls deployed use out of scope)",
    input_size=224,
    prompt_tokens=TOKENS,
    scale="cosine in [-1, 1], on generated pictures about 0.15 to 0.35",
    hazards="papers print 100 times it, the paper that named it 2.5 max(cosine, 0) with ViT-B/32; "
    "numbers of different CLIP models do not compare",
)


class ClipJudge(Judge):
    """Cosine of picture and prompt features; times the network's own exp(logit_scale) where `scaled`."""

    def __init__(self, about: About, network: nn.Module, tokenizer: Any, *, scaled: bool = False):
        super().__init__(about, network)
        self.tokenizer, self.scaled = tokenizer, scaled

    def picture_features(self, images: Tensor) -> Tensor:
        """Of length 1, (B, d)."""
        pixels = normalise(crop(at_least_float32(images), self.about.input_size, centre=math.floor))
        return unit(self.network.get_image_features(pixels.to(self.network.dtype)))

    def prompt_features(self, prompts: list[str]) -> Tensor:
        """Of length 1, (B, d)."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        tokens = tokens.to(self.network.device)
        return unit(self.network.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        cosine = (self.picture_features(images) * self.prompt_features(prompts)).sum(-1)
        return at_least_float32(self.network.logit_scale).exp() * cosine if self.scaled else cosine


def read_clip(paths: dict[str, pathlib.Path], *, checkpointing: bool) -> tuple[nn.Module, int]:
    """A CLIP model in transformers format and the size of the pictures it sees."""
    from transformers import CLIPConfig, CLIPModel

    described = read_description(paths["config.json"], lambda path: json.loads(path.read_text()))
    if described.get("model_type") != "clip":
        kind = described.get("model_type")
        raise RewardError(f"{paths['config.json']} describes a model of type {kind}, not clip; fetch it again")
    config = read_description(paths["config.json"], CLIPConfig.from_json_file)
    network = read_description(paths["config.json"], lambda _: CLIPModel(config))
    fill(network, paths["model.safetensors"])
    if checkpointing:
        recompute(network.vision_model.encoder.layers)
    return network, config.vision_config.image_size


def read_tokenizer(paths: dict[str, pathlib.Path], network: nn.Module) -> Any:
    """CLIP's tokenizer from its two files, which must be those of this network."""
    from transformers import CLIPTokenizerFast

    vocabulary, merges = paths["vocab.json"], paths["merges.txt"]
    tokenizer = read_description(vocabulary, lambda path: CLIPTokenizerFast(str(path), str(merges)))
    if len(tokenizer) != (needs := network.config.text_config.vocab_size):
        raise RewardError(f"{vocabulary} has {len(tokenizer)} tokens, the network {needs}; fetch both again")
    return tokenizer


def load(
    source: str | pathlib.Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """CLIPScore from a folder in transformers format, or from its hub id."""
    return load_clip_judge(ABOUT, FILES, source, dtype, device, checkpointing)


def load_clip_judge(about, files, source, dtype, device, checkpointing, *, scaled: bool = False) -> Judge:
    """A reward that is a CLIP model and nothing more."""
    paths = locate(about.name, files, source)
    network, size = read_clip(paths, checkpointing=checkpointing)
    judge = ClipJudge(replace(about, input_size=size), network, read_tokenizer(paths, network), scaled=scaled)
    judge = finish(judge, source=source, dtype=dtype, device=device)
    if dtype is torch.float64:  # transformers makes the mask of prompts in float32, where float64's least value is lost
        network.text_model.float()
        network.text_projection.float()
    return judge
