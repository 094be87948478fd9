"""ImageReward: BLIP, picture and prompt joined by cross-attention, taught by people's rankings of pictures.

The model class is that of the official package; of its methods only `score_gard` (its spelling) has gradients.
"""

import pathlib
import warnings
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from dipp_core.rewards.base import About, Judge, finish, recompute
from dipp_core.rewards.files import File, RewardError, fill, locate, read_description
from dipp_core.rewards.pixels import at_least_float32, crop, normalise

REPO = ("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72")
FILES = (
    File("ImageReward.pt", *REPO, "1.8 GB"),
    File("med_config.json", *REPO, "1 kB"),
    File("vocab.txt", "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", "0.2 MB"),
)
TOKENS = 35
SIZE = 224
ABOUT = About(
    name="image_reward",
    version="1.0",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (model card)",
    input_size=SIZE,
    prompt_tokens=TOKENS,
    scale="standardised over its training pictures: mean about 0, deviation about 1, at most about 2",
    hazards="reads 35 tokens of a prompt; saturates near 2, where a generator is better at pleasing it than at drawing",
)
# the package's own loader does without these: the score does not use them
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageRewardJudge(Judge):
    """The official model, asked with tensors."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weight = self.network.mlp.layers[0].weight
        words = self.network.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(weight.device)
        self.network.device = weight.device  # the official model notes where it was made, not where it was moved
        pixels = normalise(crop(at_least_float32(images), SIZE)).to(weight.dtype)
        return self.network.score_gard(words.input_ids, words.attention_mask, pixels).squeeze(-1)


def build(med_config: pathlib.Path, vocabulary: pathlib.Path) -> nn.Module:
    """The official model with random weights. It asks the hub for a tokenizer by name; here it gets one of a file."""
    with warnings.catch_warnings():  # the package silences all warnings of the process, and causes some
        warnings.simplefilter("ignore")
        from ImageReward.ImageReward import ImageReward
        from ImageReward.models.BLIP import blip
        from transformers import BertTokenizer
    words = read_description(vocabulary, lambda path: BertTokenizer(str(path)))

    def read(path: pathlib.Path) -> Any:
        with mock.patch.object(blip.BertTokenizer, "from_pretrained", return_value=words):
            return ImageReward(med_config=str(path))

    network = read_description(med_config, read)
    if len(words) != (needs := network.blip.text_encoder.config.vocab_size):
        raise RewardError(f"{vocabulary} has {len(words) - 2} words, the network {needs - 2}; fetch both again")
    return network


def recomputed(network: nn.Module) -> nn.Module:
    """The network with gradient checkpointing in the blocks of both its towers."""
    recompute([*network.blip.visual_encoder.blocks, *network.blip.text_encoder.encoder.layer])
    return network


def load(
    source: str | pathlib.Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """ImageReward from the folder of its three files, or from its hub id."""
    paths = locate(ABOUT.name, FILES, source)
    network = build(paths["med_config.json"], paths["vocab.txt"])
    fill(network, paths["ImageReward.pt"], unused=UNUSED)
    if checkpointing:
        recomputed(network)
    return finish(ImageRewardJudge(ABOUT, network), source=source, dtype=dtype, device=device)
