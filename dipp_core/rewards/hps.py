"""HPSv2 and HPSv2.1: a CLIP ViT-H/14 trained on people's choices, run on the open_clip that its package brings.

The package's own `score` cannot train: it computes without gradients and reads its checkpoint again on every call.
"""

import pathlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.rewards.base import About, Judge, finish, recompute
from dipp_core.rewards.files import File, fill, locate
from dipp_core.rewards.pixels import at_least_float32, normalise, pad, unit

REPO = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
CHECKPOINTS = {
    "v2.0": File("HPS_v2_compressed.pt", *REPO, "2 GB"),
    "v2.1": File("HPS_v2.1_compressed.pt", *REPO, "2 GB"),
}
NAMES = {"v2.0": "hpsv2", "v2.1": "hpsv2.1"}
ARCHITECTURE = "ViT-H-14"
ABOUT = About(
    name="hpsv2",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (model card)",
    input_size=224,
    prompt_tokens=77,
    scale="cosine, on generated pictures about 0.2 to 0.35; papers print 100 times it",
    hazards="v2.0 and v2.1 are different scales: never in one column; the package's score() takes v2.0 by default, "
    "its evaluate() v2.1; both files have the same shape, so a file under the other's name is not noticed; pictures "
    "that are not square are padded with black, where CLIP crops",
)


class HpsJudge(Judge):
    """Cosine of picture and prompt features."""

    def __init__(self, about: About, network: nn.Module, tokenize: Any):
        super().__init__(about, network)
        self.tokenize = tokenize

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weight = self.network.text_projection
        pixels = normalise(pad(at_least_float32(images), self.about.input_size))
        pictures = unit(self.network.encode_image(pixels.to(weight.dtype)))
        return (pictures * unit(self.network.encode_text(self.tokenize(prompts).to(weight.device)))).sum(-1)


def load(
    source: str | pathlib.Path | None,
    *,
    version: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """HPSv2 from its checkpoint, from the folder that holds it, or from its hub id; version "v2.0" or "v2.1"."""
    from hpsv2.src import open_clip

    checkpoint = CHECKPOINTS[version]
    path = locate(NAMES[version], [checkpoint], source)[checkpoint.name]
    network = open_clip.create_model(ARCHITECTURE, precision="fp32", device="cpu")
    fill(network, path)
    if checkpointing:
        recompute(network.visual.transformer.resblocks)
    about = replace(ABOUT, name=NAMES[version], version=version, input_size=network.visual.image_size[0])
    judge = HpsJudge(about, network, open_clip.get_tokenizer(ARCHITECTURE))
    return finish(judge, source=source, dtype=dtype, device=device)
