"""Tiny text-to-image pipelines with random weights: to run the evaluation where there are no weights.

One of each kind that is evaluated: Stable Diffusion's, PixArt-alpha's, and an export of a one-step generator.
"""

import pathlib
import re
from collections.abc import Iterable

from dipp_core.evaluation.pipelines import Sampler
from dipp_core.models import folders, miniature

T_STAR = 625
STATUS = "random weights"


def write(root: pathlib.Path, texts: Iterable[str]) -> dict[str, Sampler]:
    """Pipelines whose tokenizers know the words of these prompts: name -> how it draws."""
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    unet = miniature.build(root / "unet", "unet", words=words, size="tiny", seed=1)
    dit = miniature.build(root / "transformer", "dit", words=words, size="tiny", encoder="t5", seed=2)
    world = folders.load(unet)
    one_step = folders.export(root / "one_step", world, world.generator(T_STAR))
    return {
        "random_unet": Sampler(source=str(unet), steps=2, guidance=3.0, status=STATUS),
        "random_transformer": Sampler(source=str(dit), steps=2, guidance=3.0, status=STATUS),
        "random_one_step": Sampler(source=str(one_step), steps=1, guidance=1.0, timesteps=(T_STAR,), status=STATUS),
    }
