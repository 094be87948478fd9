"""LAION's aesthetic predictor: a small head on CLIP ViT-L/14 features, taught by people's ratings of pictures."""

import pathlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from dipp_core.rewards.base import About, Judge, finish
from dipp_core.rewards.clip import FILES as CLIP_FILES
from dipp_core.rewards.clip import ClipJudge, read_clip
from dipp_core.rewards.files import File, fill, locate

HEAD = "aesthetic-model.pth"
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
HEAD_REPO = ("trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4")
FILES = (
    File(HEAD, *HEAD_REPO, "4 MB", also="sac+logos+ava1-l14-linearMSE.pth"),
    *(file for file in CLIP_FILES if file.name in ("model.safetensors", "config.json")),
)
ABOUT = About(
    name="aesthetic",
    version="sac+logos+ava1-l14-linearMSE (often called v2)",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 for the head, MIT for CLIP",
    input_size=224,
    prompt_tokens=0,
    scale="people's ratings from 1 to 10, on generated pictures about 4.5 to 7",
    hazards="does not read the prompt: alone it lets the generator forget what was asked; "
    "LAION's first, linear predictor is another scale",
)


def head(features: int) -> nn.Module:
    """Five linear layers and no nonlinearity; the published file counts the dropout between them as layers."""
    layers, width = [], features
    for place, out in enumerate(HEAD_WIDTHS):
        layers += [nn.Linear(width, out)] + ([nn.Identity()] if place < 3 else [])
        width = out
    return nn.ModuleDict({"layers": nn.Sequential(*layers)})


class AestheticJudge(ClipJudge):
    """The rating of a picture; prompts are taken and not read."""

    def __init__(self, about: About, network: nn.Module, rating: nn.Module):
        super().__init__(about, network, tokenizer=None)
        self.rating = rating.requires_grad_(False).eval()

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        features = self.picture_features(images).to(self.network.dtype)
        return self.rating["layers"](features).squeeze(-1)


def load(
    source: str | pathlib.Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """The predictor from a folder that holds its head beside CLIP in transformers format, or from the head's hub id."""
    paths = locate(ABOUT.name, FILES, source)
    network, size = read_clip(paths, checkpointing=checkpointing)
    rating = head(network.config.projection_dim)
    fill(rating, paths[HEAD])
    del network.text_model, network.text_projection  # a quarter of the weights, and no prompt is read
    judge = AestheticJudge(replace(ABOUT, input_size=size), network, rating)
    return finish(judge, source=source, dtype=dtype, device=device)
