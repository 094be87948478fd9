"""PickScore: a CLIP ViT-H/14 trained on which of two pictures people picked for a prompt."""

import pathlib

import torch

from dipp_core.rewards.base import About, Judge
from dipp_core.rewards.clip import TOKENS, load_clip_judge
from dipp_core.rewards.files import File

PICKSCORE = ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
FILES = (
    File("model.safetensors", *PICKSCORE, "3.9 GB"),
    File("config.json", *PICKSCORE, "5 kB"),
    File("vocab.json", *PICKSCORE, "1 MB"),
    File("merges.txt", *PICKSCORE, "0.5 MB"),
)
ABOUT = About(
    name="pickscore",
    version="v1",
    code_licence="MIT",
    weights_licence="not stated on the model card, as far as known",
    input_size=224,
    prompt_tokens=TOKENS,
    scale="exp(logit_scale), about 100, times the cosine: about 17 to 24",
    hazards="some papers print the cosine, others divide by 26; differences of 0.3 are already large",
)


def load(
    source: str | pathlib.Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """PickScore from a folder in transformers format, or from its hub id."""
    return load_clip_judge(ABOUT, FILES, source, dtype, device, checkpointing, scaled=True)
