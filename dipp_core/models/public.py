"""Public diffusions by hub id: the commit each is taken from, its descriptions, its size, the command that fetches it.

Descriptions of the known ones are written down here, so that memory can be estimated before anything is fetched. They
are facts about published files: the class and the numbers in each config.json that decide the size of a network.
"""

import importlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dipp_core.models.known_starts import STARTS
from dipp_core.models.latent_files import CLASSES, PIPELINES, ModelError, read_json

DENOISERS = ("unet", "transformer")
NETWORKS = ("text_encoder", "text_encoder_2", "vae", *DENOISERS)
SMALL = ("model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*")
PATTERNS = (*SMALL, *(f"{place}/*" for place in NETWORKS))
UNWANTED = ("*.bin", "*.msgpack", "*.onnx*", "*fp16*", "*non_ema*")

_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
_SD15 = {
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64},
    "vae": _VAE,
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
    },
}
_PIXART = {
    "transformer": {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "num_layers": 28,
        "caption_channels": 4096,
        "sample_size": 64,
        "out_channels": 8,
    },
    "vae": _VAE,
    "text_encoder": {
        "architectures": ["T5EncoderModel"],
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
    },
}
_SDXL = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "sample_size": 128,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": _VAE | {"sample_size": 1024},
    "text_encoder": _SD15["text_encoder"],
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
}


@dataclass(frozen=True)
class Public:
    """A published diffusion: the commit it is pinned to, the size of what is fetched of it, its descriptions."""

    revision: str
    size: str
    descriptions: Mapping[str, dict]


PUBLIC = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Public("451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "4.3 GB", _SD15),
    "PixArt-alpha/PixArt-XL-2-512x512": Public("50f702106901db6d0f8b67eb88e814c56ded2692", "about 22 GB", _PIXART),
    "stabilityai/stable-diffusion-xl-base-1.0": Public(
        "462165984030d82259a11f4367a4eed129e94a7b", "about 14 GB", _SDXL
    ),
}


def split_id(source: str) -> tuple[str, str]:
    """A hub id OWNER/NAME or OWNER/NAME@COMMIT as (OWNER/NAME, COMMIT); only known ids go without their commit."""
    name, _, commit = source.partition("@")
    if (known := PUBLIC.get(name) or STARTS.get(name)) is not None:
        commit = commit or known.revision or ""
        if not commit:
            see = f"https://huggingface.co/{name}/commits/main lists them"
            raise ModelError(f"{name} is known, but none of its commits: give {name}@COMMIT ({see})")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        known = ", ".join(PUBLIC)
        raise ModelError(f"{source}: no such folder, and no hub id with a commit (OWNER/NAME@COMMIT); known: {known}")
    return name, commit


def unwanted(name: str) -> tuple[str, ...]:
    """What is not to be fetched; the half precision is, where there is nothing else."""
    half = name in STARTS and STARTS[name].half
    return tuple(pattern for pattern in UNWANTED if not (half and pattern == "*fp16*"))


def fetch_command(source: str, patterns: Sequence[str] = PATTERNS) -> str:
    """The command that puts what is needed of a model into a folder."""
    name, commit = split_id(source)
    return download(name, commit, patterns, unwanted(name))


def download(name: str, commit: str, patterns: Sequence[str], left_out: Sequence[str]) -> str:
    """The command line that puts some files of a hub id into models/NAME; `commit` may be empty."""
    some, none = (" ".join(f'"{p}"' for p in given) for given in (patterns, left_out))
    what = f"--include {some} --exclude {none}"  # a flag that is repeated would win over the one before
    pinned = f"--revision {commit} " if commit else ""
    return f"huggingface-cli download {name} {pinned}{what} --local-dir models/{name.split('/')[1]}"


def locate(
    source: str | pathlib.Path,
    *,
    fetch: bool = False,
    descriptions_only: bool = False,
    patterns: Sequence[str] = PATTERNS,
) -> pathlib.Path:
    """The folder of a model: `source` itself, or a hub id's files, from the hub only where `fetch` is said.

    descriptions_only: just the small files, to know how large the rest is. patterns: the files that are needed.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return path
    name, commit = split_id(str(source))
    size = PUBLIC[name].size if name in PUBLIC else "size not known"
    if not fetch:
        command = fetch_command(str(source), patterns)
        raise ModelError(f"{name} ({size}) is not here; `{command}` fetches it, then give the folder")
    import huggingface_hub

    some = [pattern for pattern in patterns if "*" not in pattern] + ["*.json"] if descriptions_only else list(patterns)
    options = {"revision": commit, "allow_patterns": some, "ignore_patterns": list(unwanted(name))}
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, **options))
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ModelError(
            f"{name}@{commit} ({size}) cannot be fetched ({type(error).__name__}: {why}); with a network, "
            f"`{fetch_command(str(source), patterns)}` fetches it, then give the folder"
        ) from None


def describe(source: str | pathlib.Path, *, fetch: bool = False) -> dict[str, dict]:
    """The descriptions of a model's networks: "denoiser", "vae", "text", and "text_2" where there are two.

    For known hub ids neither files nor a network connection are needed.
    """
    known = None if pathlib.Path(source).expanduser().is_dir() else PUBLIC.get(str(source).partition("@")[0])
    if known is not None:
        found = dict(known.descriptions)
    else:
        folder = locate(source, fetch=fetch, descriptions_only=True)
        index = read_json(folder / "model_index.json", "it names the classes of a folder in diffusers format")
        pipeline = index.get("_class_name")
        if pipeline not in PIPELINES:
            raise ModelError(f"{folder} is made for {pipeline}, which is not known here: {', '.join(PIPELINES)}")
        second = ["text_encoder_2"] if pipeline == "StableDiffusionXLPipeline" else []
        places = (PIPELINES[pipeline][0], "vae", "text_encoder", *second)
        found = {place: read_json(folder / place / "config.json", "it says how large it is") for place in places}
    denoiser = next(found[place] for place in DENOISERS if place in found)
    second = {"text_2": found["text_encoder_2"]} if "text_encoder_2" in found else {}
    return {"denoiser": denoiser, "vae": found["vae"], "text": found["text_encoder"]} | second


def on_meta(description: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network of a description without memory: shapes only, frozen, on torch's meta device."""
    named = description.get("_class_name") or (description.get("architectures") or [None])[0]
    if named not in CLASSES:
        raise ModelError(f"a network of the class {named} is not known here: {', '.join(CLASSES)}")
    library, loads = CLASSES[named]
    cls = getattr(importlib.import_module(library), loads)
    with torch.device("meta"):
        if library == "diffusers":
            taken, *_ = cls.extract_init_dict(dict(description))
            network = cls(**taken)
        else:
            network = cls(cls.config_class(**description))
    return network.to(dtype).eval().requires_grad_(False)
