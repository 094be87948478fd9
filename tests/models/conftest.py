"""Tiny folders of every kind, made once for all tests of the room; a test that changes one changes a copy."""

import diffusers
import pytest
import tiny_sdxl
import torch

from dipp_core.models import folders, miniature
from dipp_core.worlds import shapes

KINDS = ("unet", "dit", "sdxl")


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A reference and another model of each kind, and a transformer with PixArt's own kind of text encoder."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    for seed, end in ((0, ""), (10, "_start")):
        for kind in miniature.KINDS:
            miniature.build(root / f"{kind}{end}", kind, words=words, size="tiny", seed=seed)
        tiny_sdxl.build(root / f"sdxl{end}", words=words, seed=seed)
    miniature.build(root / "t5", "dit", words=words, size="tiny", encoder="t5")
    return root


@pytest.fixture(scope="session", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def model(places, kind):
    """A diffusion that all tests share: they leave it as it is."""
    return folders.load(places / kind)


@pytest.fixture
def rng():
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline():
    """A folder as anybody loads it."""

    def load(folder):
        found = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        found.set_progress_bar_config(disable=True)
        return found

    return load
