"""Folders in diffusers format: read into the roles of the method, with every flaw named in one line, and written again.

Weights are safetensors only; classes come from the list below and never from the folder; nothing is fetched.
"""

import importlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dipp_core.method.generator import OneStepGenerator
from dipp_core.method.schedule import NoiseSchedule, vp_discrete
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.prompts import TextEncoder

PARTS = ("denoiser", "vae", "text")
# pipeline class -> the folder of its denoiser and the class that it is loaded with
PIPELINES = {
    "StableDiffusionPipeline": ("unet", "UNet2DConditionModel"),
    "StableDiffusionXLPipeline": ("unet", "UNet2DConditionModel"),
    "PixArtAlphaPipeline": ("transformer", "PixArtTransformer2DModel"),
}
TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
# class named in the folder -> (library, class that loads it)
CLASSES = {
    "UNet2DConditionModel": ("diffusers", "UNet2DConditionModel"),
    "PixArtTransformer2DModel": ("diffusers", "PixArtTransformer2DModel"),
    "Transformer2DModel": ("diffusers", "PixArtTransformer2DModel"),  # PixArt-alpha as first published
    "AutoencoderKL": ("diffusers", "AutoencoderKL"),
    "AutoencoderTiny": ("diffusers", "AutoencoderTiny"),
    **{name: ("transformers", name) for name in (*TEXTS, *TOKENIZERS)},
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
NOISE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas", "prediction_type")
PIXART_TOKENS = 120
AGAIN = "fetch or make the model again"


class ModelError(RuntimeError):
    """One line that says which file of a model is missing or wrong, and what to do."""


# ------------------------------------------------------------------------------------------------------------ reading


def load(
    folder: pathlib.Path | str,
    *,
    parts: Sequence[str] = PARTS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """The diffusion in a folder, all of it frozen and in evaluation mode.

    Without a part, its files need not be there: prompts can be encoded first, and the text encoder then left out.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"unknown part {unknown[0]!r}: {', '.join(PARTS)}")
    if "denoiser" not in parts:
        raise ValueError("a diffusion without its denoiser is none: name the part 'denoiser' too")
    folder = _existing(folder)
    index = read_json(folder / "model_index.json", "it names the classes of a folder in diffusers format")
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise ModelError(f"{folder} is made for {pipeline}, which is not known here: {', '.join(PIPELINES)}")
    place, loads_with = PIPELINES[pipeline]
    noise = read_noise(folder)
    network = read_network(folder, place, index, dtype, loads_with)
    return LatentDiffusion(
        Denoiser(network, noise_schedule(noise), latent_scale=_latent_scale(folder)).to(device),
        PREDICTIONS[noise["prediction_type"]],
        vae=read_network(folder, "vae", index, dtype, "AutoencoderKL").to(device) if "vae" in parts else None,
        text=read_text(folder, index, dtype=dtype, device=device) if "text" in parts else None,
        noise=noise,
        source=str(folder),
    )


def read_text(folder: pathlib.Path, index: dict, *, dtype: torch.dtype, device: torch.device | str) -> TextEncoder:
    """The text encoder of a folder; the pipeline it is made for says how prompts are padded and masked, and if two."""

    def one(number: str, *allowed: str) -> TextEncoder:
        encoder, place = read_network(folder, f"text_encoder{number}", index, dtype, *allowed), f"tokenizer{number}"
        _, tokenizer_class = _class_of(folder, place, index, "CLIPTokenizer", "T5Tokenizer")
        try:
            tokenizer = tokenizer_class.from_pretrained(folder / place, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{folder / place} cannot be read: {_first_line(error)}; {AGAIN}") from None
        longest = min(PIXART_TOKENS, tokenizer.model_max_length) if masked else tokenizer.model_max_length
        return TextEncoder(tokenizer, encoder.to(device), longest, masked)

    masked = index["_class_name"].startswith("PixArt")
    text = one("", "CLIPTextModel", "T5EncoderModel")
    if index["_class_name"] == "StableDiffusionXLPipeline":
        text.second = one("_2", "CLIPTextModelWithProjection")
        text.zero_null = index.get("force_zeros_for_empty_prompt", True)
    return text


def read_noise(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder's scheduler says of the noise and of what the denoiser predicts; how it samples is not taken."""
    path = folder / "scheduler/scheduler_config.json"
    config = read_json(path, "it describes the noise")
    given = {"prediction_type": "epsilon"} | {name: config[name] for name in NOISE if config.get(name) is not None}
    if "beta_schedule" not in given and "trained_betas" not in given:
        raise ModelError(f"{path}: {config.get('_class_name')} has no betas; only variance-preserving noise is known")
    if given["prediction_type"] not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise ModelError(f"{path}: the prediction_type is {given['prediction_type']!r}; known are {known}")
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(f"{path}: rescale_betas_zero_snr leaves no signal at the last step, where no score exists")
    return given


def noise_schedule(noise: dict[str, Any]) -> NoiseSchedule:
    """The schedule of these settings, from diffusers' own table."""
    from diffusers import DDPMScheduler

    return vp_discrete(DDPMScheduler(**noise).alphas_cumprod)


def _existing(folder: pathlib.Path | str) -> pathlib.Path:
    path = pathlib.Path(folder)
    if path.is_dir():
        return path
    is_hub_id = len(path.parts) == 2 and not path.is_absolute()
    hub = f"{folder} --local-dir models/{path.name}" if is_hub_id else "OWNER/NAME --local-dir FOLDER"
    fetch = f"`huggingface-cli download {hub}` fetches a model from the hub, then give the folder"
    raise ModelError(f"{folder}: no such folder; {fetch}")


def read_json(path: pathlib.Path, what: str) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: {what}; {AGAIN}") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({_first_line(error)}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object: {what}; {AGAIN}")
    return content


def _class_of(folder: pathlib.Path, place: str, index: dict, *allowed: str) -> tuple[str, Any]:
    """The class for a part: the name that the folder gives is looked up here, never imported from there."""
    entry = index.get(place)
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    known = [name for name, (_, loads) in CLASSES.items() if loads.removesuffix("Fast") in allowed]
    if named not in known:
        raise ModelError(f"{folder / 'model_index.json'}: {place} is a {named}; known here: {', '.join(known)}")
    library, loads = CLASSES[named]
    return named, getattr(importlib.import_module(library), loads)


def read_network(folder: pathlib.Path, place: str, index: dict, dtype: torch.dtype, *allowed: str) -> nn.Module:
    """A part with all its weights, frozen. A weight that is missing or of another shape is not filled with noise."""
    _, cls = _class_of(folder, place, index, *allowed)
    read_json(folder / place / "config.json", "it says how large the network is")
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, "torch_dtype": dtype}
    variant = check_weights(folder / place)
    try:
        network, found = cls.from_pretrained(folder / place, variant=variant, **options)
    except Exception as error:
        raise ModelError(f"{folder / place} does not fit {cls.__name__}: {_first_line(error)}") from None
    if bad := [*found["missing_keys"], *(k[0] if isinstance(k, tuple) else k for k in found["mismatched_keys"])]:
        raise ModelError(f"{folder / place}: {len(bad)} weights are missing, the first is {bad[0]}; {AGAIN}")
    return network.eval().requires_grad_(False)


def check_weights(folder: pathlib.Path) -> str | None:
    """Refuse a part without whole safetensors files; "fp16" where only that variant is there. Reads headers alone."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    for listing in folder.glob("*.safetensors.index.json"):
        needed = set(read_json(listing, "it lists the weight files").get("weight_map", {}).values())
        if lost := sorted(needed - {file.name for file in files}):
            raise ModelError(f"{folder / lost[0]} is missing: {listing.name} lists it; {AGAIN}")
    if not files:
        pickled = [file.name for file in folder.glob("*.bin")]
        why = f"only {pickled[0]}, a pickle, which is not opened here" if pickled else "no weights"
        raise ModelError(f"{folder} has {why}: *.safetensors is needed; {AGAIN}")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            why = f"{file.stat().st_size:,} bytes: {_first_line(error)}"
            raise ModelError(f"{file} is no whole safetensors file ({why}); {AGAIN}") from None
    return "fp16" if all(".fp16." in file.name for file in files) else None


def _latent_scale(folder: pathlib.Path) -> int:
    """Pixels per latent pixel; from the VAE's description, which is small and always needed."""
    config = read_json(path := folder / "vae/config.json", "it says how pictures are encoded")
    if not config.get("block_out_channels"):
        raise ModelError(f"{path} has no block_out_channels; {AGAIN}")
    if config.get("latents_mean"):
        raise ModelError(f"{path} has a latents_mean; only latents that are scaled by one number are known here")
    return 2 ** (len(config["block_out_channels"]) - 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ------------------------------------------------------------------------------------------------------------ writing


def write(folder: pathlib.Path | str, *, denoiser: nn.Module, **parts: Any) -> pathlib.Path:
    """Write parts as the pipeline of their denoiser's class; parts: vae, scheduler, and those of the text encoder."""
    import diffusers

    if "text_encoder_2" in parts:
        pipeline = diffusers.StableDiffusionXLPipeline(unet=denoiser, **parts, add_watermarker=False)
    elif isinstance(denoiser, diffusers.UNet2DConditionModel):
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(unet=denoiser, **parts, **none)
    else:
        pipeline = diffusers.PixArtAlphaPipeline(transformer=denoiser, **parts)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pathlib.Path(folder)


def export(
    folder: pathlib.Path | str, diffusion: LatentDiffusion, gen: OneStepGenerator, scheduler: Any = None
) -> pathlib.Path:
    """Write a one-step generator as an ordinary pipeline folder, with `LCMScheduler` where none is given.

    Anybody samples it, without this project, at its own t_star (0 .. 999):

        pipe = DiffusionPipeline.from_pretrained(folder)
        pipe(prompt, num_inference_steps=1, timesteps=[t_star], guidance_scale=1.0)
    """
    from diffusers import LCMScheduler

    if diffusion.vae is None or diffusion.text is None:
        raise ValueError("a pipeline needs all parts: load the diffusion with its VAE and its text encoder")
    return write(
        folder,
        denoiser=gen.network.network,
        vae=diffusion.vae,
        scheduler=scheduler or LCMScheduler(**diffusion.noise, clip_sample=False, steps_offset=1),
        **diffusion.text.parts(),
    )
