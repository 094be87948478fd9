"""Models as folders in diffusers format: found or fetched, read into the roles of the method, and written again.

    world = load(locate("stable-diffusion-v1-5/stable-diffusion-v1-5", fetch=True))
    path = locate_start("stabilityai/sd-turbo", fetch=True)              # a one-step model that a generator starts from
    start = load_start(path, world)
    gen = asked_as_published(start.generator(999), "stabilityai/sd-turbo", path, print)
    export_start(folder, path, world.noise, gen)                         # beside the other parts of the folder `path`

Weights are safetensors only; classes come from the list below and never from the folder; only `locate` fetches, where
it is told to. Every flaw is one line that says what is wrong and what to do.

A one-step model is asked once, at the timestep that it was trained at. Two conventions of its noise z ~ N(0, I) are in
use, and published models keep theirs:

    AS_IT_IS      x = z              fed as x_t*; the first step of a latent consistency model, and ours
    TIMES_SIGMA   x = sigma(t*) z    the noise that the forward process leaves of a picture that is black

The second goes by several names: `add_noise(0, z, t*)`; EDM's D(sigma z, sigma) with sigma = sigma(t*) / alpha(t*);
Euler's method from its largest sigma.
"""

import contextlib
import copy
import importlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dipp_core.files import HF, InputError, check_weights, first_line, from_hub, placed, read_json, root
from dipp_core.method.generator import OneStepGenerator
from dipp_core.method.schedule import NoiseSchedule, vp_discrete
from dipp_core.method.scores import Cond
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.prompts import PIXART_TOKENS, TextEncoder

PARTS = ("denoiser", "vae", "text")
# pipeline class -> the folder of its denoiser and the class that it is loaded with
PIPELINES = {
    "StableDiffusionPipeline": ("unet", "UNet2DConditionModel"),
    "StableDiffusionXLPipeline": ("unet", "UNet2DConditionModel"),
    "PixArtAlphaPipeline": ("transformer", "PixArtTransformer2DModel"),
}
TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
# class named in a folder -> (library, class that loads it)
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

DENOISERS = ("unet", "transformer")
NETWORKS = ("text_encoder", "text_encoder_2", "vae", *DENOISERS)
SMALL = ("model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*")
PATTERNS = (*SMALL, *(f"{place}/*" for place in NETWORKS))
START_PATTERNS = ("model_index.json", "scheduler/*", "vae/config.json", *(f"{place}/*" for place in DENOISERS))
UNWANTED = ("*.bin", "*.msgpack", "*.onnx*", "*fp16*", "*non_ema*")
PICKLES = (".bin", ".pkl", ".pt", ".pth", ".ckpt")

AS_IT_IS, TIMES_SIGMA = "as it is", "times sigma"
NOTE = "one_step.json"
AGAIN = "fetch or make the model again"

# -------------------------------------------------------------------------------------------- what is known of hub ids


@dataclass(frozen=True)
class Public:
    """A published diffusion: the commit it is pinned to, the size of what is fetched of it, its descriptions.

    descriptions: what of each config.json decides the size of a network, so that memory can be estimated before
    anything is fetched.
    """

    revision: str
    size: str
    descriptions: Mapping[str, dict]


@dataclass(frozen=True)
class Start:
    """A published one-step model that a generator can start from; it predicts eps.

    reference: the diffusion whose latents and prompts it shares. revision: None where no commit was seen in a public
    place. half: there are weights in half precision alone. pickled: the file of its weights, where that is a pickle,
    which is not opened here; cure: what to do about it.
    """

    reference: str
    t_star: int
    noise: str
    revision: str | None = None
    half: bool = False
    pickled: str | None = None
    cure: str | None = None


# One network, one start a row. References, timesteps and conventions of noise were verified in public code (sd-turbo's
# noise on its page), commits on pages of the hub or in code. Recalled are sd-turbo's reference and timestep and, of the
# others, that eps is predicted. XDG-XHS is the release of Diff-Instruct*: five SDXL generators, whole pipelines.
_KNOWN = json.loads(pathlib.Path(__file__).with_name("public.json").read_text())
PUBLIC = {name: Public(**row) for name, row in _KNOWN["diffusions"].items()}
SD15, PIXART, SDXL = PUBLIC
STARTS = {name: Start(**row) for name, row in _KNOWN["starts"].items()}
# the tiny decoder of the latents of SD1.5 and PixArt-alpha, 10 MB, MIT licence
TINY_COMMAND = (
    f"{HF} download madebyollin/taesd --revision 614f76814bbe30edbe2e627ace1c2234c81a2c0e "
    '--include "*.json" "*.safetensors" --local-dir models/taesd'
)

# ------------------------------------------------------------------------------------------------------------- finding


def split_id(source: str) -> tuple[str, str]:
    """A hub id OWNER/NAME or OWNER/NAME@COMMIT as (OWNER/NAME, COMMIT); only known ids go without their commit."""
    name, _, commit = source.partition("@")
    if known := PUBLIC.get(name) or STARTS.get(name):
        commit = commit or known.revision or ""
        if not commit:
            see = f"https://huggingface.co/{name}/commits/main lists them"
            raise InputError(f"{name} is known, but none of its commits: give {name}@COMMIT ({see})")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        ids = ", ".join(PUBLIC)
        raise InputError(f"{source}: no such folder, and no hub id with a commit (OWNER/NAME@COMMIT); known: {ids}")
    return name, commit


def download(name: str, commit: str, patterns: Sequence[str], left_out: Sequence[str]) -> str:
    """The command line that puts some files of a hub id into models/NAME; `commit` may be empty."""
    some, none = (" ".join(f'"{p}"' for p in given) for given in (patterns, left_out))
    what = f"--include {some} --exclude {none}"  # a flag that is repeated would win over the one before
    pinned = f"--revision {commit} " if commit else ""
    return f"{HF} download {name} {pinned}{what} --local-dir models/{name.split('/')[1]}"


def locate(
    source: str | pathlib.Path,
    *,
    fetch: bool = False,
    descriptions_only: bool = False,
    patterns: Sequence[str] = PATTERNS,
) -> pathlib.Path:
    """The folder of a model: `source` itself, or a hub id's files, in models/NAME, or, where `fetch` is said, fetched.

    descriptions_only: just the small files, to know how large the rest is. patterns: the files that are needed.
    """
    path = placed(source)
    if path.is_dir():
        return path
    name, _, commit = str(source).partition("@")
    if (commit or name in (*PUBLIC, *STARTS)) and (local := root() / "models" / name.split("/")[-1]).is_dir():
        return local  # where the command below puts it
    name, commit = split_id(str(source))
    size = PUBLIC[name].size if name in PUBLIC else "size not known"
    half = name in STARTS and STARTS[name].half
    unwanted = [pattern for pattern in UNWANTED if not (half and pattern == "*fp16*")]
    cure = f"`{download(name, commit, patterns, unwanted)}` fetches it"
    if not fetch:
        raise InputError(f"{name} ({size}) is not here; {cure}")
    try:
        return from_hub(name, commit, ["*.json"] if descriptions_only else patterns, unwanted)
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{name}@{commit} ({size}) cannot be fetched ({why}); with a network, {cure}") from None


def is_here(source: str) -> bool:
    """Whether nothing of a model is to be fetched any more."""
    with contextlib.suppress(OSError, ValueError):
        return placed(source).is_dir() or (from_hub(*split_id(source), PATTERNS, here=True) / "vae").is_dir()
    return False


def locate_start(source: str | pathlib.Path, *, fetch: bool = False) -> pathlib.Path:
    """The folder or file of a one-step model; of a hub id only what is needed, and only where `fetch` is said."""
    path = placed(source)
    if path.is_file():
        if path.suffix in PICKLES:
            raise InputError(f"{path} is a pickle, which is not opened here: give a .safetensors file or a folder")
        return path
    known = None if path.is_dir() else STARTS.get(str(source).partition("@")[0])
    if known and known.pickled:
        raise InputError(f"{source} publishes {known.pickled}, a pickle, which is not opened here: {known.cure}")
    return locate(source, fetch=fetch, patterns=START_PATTERNS)


def describe(source: str | pathlib.Path, *, fetch: bool = False) -> dict[str, dict]:
    """The descriptions of a model's networks: "denoiser", "vae", "text", and "text_2" where there are two.

    For known hub ids neither files nor a network connection are needed.
    """
    known = PUBLIC.get(str(source).partition("@")[0])
    if known and not pathlib.Path(source).is_dir():
        found = known.descriptions
    else:
        folder = locate(source, fetch=fetch, descriptions_only=True)
        pipeline = _read_index(folder)["_class_name"]
        second = ["text_encoder_2"] if pipeline == "StableDiffusionXLPipeline" else []
        denoiser, vae = _described(folder, PIPELINES[pipeline][0])
        texts = {place: read_json(folder / place / "config.json", AGAIN) for place in ("text_encoder", *second)}
        found = {PIPELINES[pipeline][0]: denoiser, "vae": vae, **texts}
    return {
        "denoiser" if place in DENOISERS else place.replace("text_encoder", "text"): description
        for place, description in found.items()
    }


def on_meta(description: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """The network of a description without memory: shapes only, frozen, on torch's meta device."""
    named = description.get("_class_name") or (description.get("architectures") or [None])[0]
    if named not in CLASSES:
        raise InputError(f"a network of the class {named} is not known here: {', '.join(CLASSES)}")
    cls = _imported(named)
    try:
        with torch.device("meta"):
            if CLASSES[named][0] == "diffusers":
                network = cls(**cls.extract_init_dict(dict(description))[0])
            else:
                network = cls(cls.config_class(**description))
    except Exception as error:
        raise InputError(
            f"the config.json of the {named} describes no network ({first_line(error)}); {AGAIN}"
        ) from None
    return network.to(dtype).eval().requires_grad_(False)


def _imported(named: str) -> Any:
    library, loads = CLASSES[named]
    return getattr(importlib.import_module(library), loads)


# ------------------------------------------------------------------------------------------------------------- reading


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
    folder = locate(folder)
    index = _read_index(folder)
    place, loads_with = PIPELINES[index["_class_name"]]
    noise = read_noise(folder)
    latent_scale = 2 ** (len(_described(folder, place)[1]["block_out_channels"]) - 1)
    network = _read_network(folder / place, index.get(place), dtype, loads_with)
    vae = None
    if "vae" in parts:
        vae = _read_network(folder / "vae", index.get("vae"), dtype, "AutoencoderKL").to(device)
    return LatentDiffusion(
        Denoiser(network, noise_schedule(noise), latent_scale=latent_scale).to(device),
        PREDICTIONS[noise["prediction_type"]],
        vae=vae,
        text=read_text(folder, dtype=dtype, device=device) if "text" in parts else None,
        noise=noise,
        source=str(folder),
    )


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
    """The classes of a folder in diffusers format."""
    index = read_json(folder / "model_index.json", AGAIN)
    if (pipeline := index.get("_class_name")) not in PIPELINES:
        raise InputError(f"{folder} is made for {pipeline}, which is not known here: {', '.join(PIPELINES)}")
    return index


def read_text(folder: pathlib.Path, *, dtype: torch.dtype, device: torch.device | str) -> TextEncoder:
    """The text encoder of a folder; the pipeline it is made for says how prompts are padded and masked, and if two."""
    index = _read_index(folder)
    masked = index["_class_name"].startswith("PixArt")

    def one(number: str, *allowed: str) -> TextEncoder:
        name, path = f"text_encoder{number}", folder / f"tokenizer{number}"
        encoder = _read_network(folder / name, index.get(name), dtype, *allowed)
        tokenizer_class = _class(path, index.get(path.name), "CLIPTokenizer", "T5Tokenizer")
        try:
            tokenizer = tokenizer_class.from_pretrained(path, local_files_only=True)
        except Exception as error:
            raise InputError(f"{path} cannot be read: {first_line(error)}; {AGAIN}") from None
        longest = min(PIXART_TOKENS, tokenizer.model_max_length) if masked else tokenizer.model_max_length
        return TextEncoder(tokenizer, encoder.to(device), longest, masked)

    text = one("", "CLIPTextModel", "T5EncoderModel")
    if index["_class_name"] == "StableDiffusionXLPipeline":
        text.second = one("_2", "CLIPTextModelWithProjection")
        text.zero_null = index.get("force_zeros_for_empty_prompt", True)
    return text


def read_noise(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder's scheduler says of the noise and of what the denoiser predicts; how it samples is not taken."""
    path = folder / "scheduler/scheduler_config.json"
    config = read_json(path, AGAIN)
    given = {"prediction_type": "epsilon"} | {name: config[name] for name in NOISE if config.get(name) is not None}
    if "beta_schedule" not in given and "trained_betas" not in given:
        raise InputError(f"{path}: {config.get('_class_name')} has no betas; only variance-preserving noise is known")
    if given["prediction_type"] not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        raise InputError(f"{path}: the prediction_type is {given['prediction_type']!r}; known are {known}")
    if config.get("rescale_betas_zero_snr"):
        raise InputError(f"{path}: rescale_betas_zero_snr leaves no signal at the last step, where no score exists")
    return given


def noise_schedule(noise: dict[str, Any]) -> NoiseSchedule:
    """The schedule of these settings, from diffusers' own table."""
    from diffusers import DDPMScheduler

    try:
        kept = DDPMScheduler(**noise).alphas_cumprod
    except Exception as error:
        raise InputError(f"the scheduler's settings are none ({type(error).__name__}: {first_line(error)})") from None
    if not len(kept) or not ((kept > 0) & (kept < 1)).all() or not (kept.diff() < 0).all():
        raise InputError(f"the scheduler's noise does not rise from 0 to 1, over {len(kept)} steps: {noise}; {AGAIN}")
    return vp_discrete(kept)


def _class(path: pathlib.Path, named: Any, *allowed: str) -> Any:
    """The class of a part: what its folder says, [library, class] or class, is looked up here, never imported there."""
    named = named[-1] if isinstance(named, list) else named
    known = [name for name, (_, loads) in CLASSES.items() if loads.removesuffix("Fast") in allowed]
    if named not in known:
        raise InputError(f"{path} is a {named}; known here: {', '.join(known)}")
    return _imported(named)


def _read_network(path: pathlib.Path, named: Any, dtype: torch.dtype, *allowed: str) -> Any:
    """A part with all its weights, frozen. A weight that is missing or of another shape is not filled with noise."""
    cls = _class(path, named, *allowed)
    read_json(path / "config.json", AGAIN)
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, "torch_dtype": dtype}
    variant = check_weights(path)
    try:
        network, found = cls.from_pretrained(path, variant=variant, **options)
    except Exception as error:
        raise InputError(f"{path} does not fit {cls.__name__}: {first_line(error)}") from None
    if bad := [*found["missing_keys"], *(k[0] if isinstance(k, tuple) else k for k in found["mismatched_keys"])]:
        raise InputError(f"{path}: {len(bad)} weights are missing, the first is {bad[0]}; {AGAIN}")
    if isinstance(network.config, dict):  # diffusers would write this folder's path into every copy
        network.register_to_config(_name_or_path="")
    return network.eval().requires_grad_(False)


def _described(folder: pathlib.Path, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The descriptions of a denoiser and of its VAE, which must fit each other."""
    paths = folder / place / "config.json", folder / "vae/config.json"
    denoiser, vae = (read_json(path, AGAIN) for path in paths)

    def want(path: pathlib.Path, name: str, value: Any, wanted: str, fits: bool) -> None:
        if not fits:
            raise InputError(f"{path}: {name} is {value!r}, not {wanted}; {AGAIN}")

    blocks, latents, factor = (vae.get(name) for name in ("block_out_channels", "latent_channels", "scaling_factor"))
    want(paths[1], "block_out_channels", blocks, "a list of numbers", isinstance(blocks, list) and len(blocks) > 0)
    want(paths[1], "latent_channels", latents, "a number from 1 on", isinstance(latents, int) and latents > 0)
    want(paths[1], "scaling_factor", factor, "a number above 0", isinstance(factor, float | int) and factor > 0)
    for name in ("latents_mean", "shift_factor"):
        if vae.get(name):
            raise InputError(f"{paths[1]} has a {name}; only latents that are scaled by one number are known here")
    channels, size = denoiser.get("in_channels"), denoiser.get("sample_size")
    want(paths[0], "in_channels", channels, f"the {latents} channels of the VAE's latents", channels == latents)
    sides = size if isinstance(size, list | tuple) else [size, size]
    whole = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    want(paths[0], "sample_size", size, "the size of the latents it was made for", whole)
    return denoiser, vae


def tiny_decoder(folder: pathlib.Path | str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """An AutoencoderTiny (TAESD and its kin) from a folder: a small stand-in for the decoder, for rewards alone.

    `dataclasses.replace(world, vae=decoder)` is the diffusion seen through it.
    """
    folder = pathlib.Path(folder)
    named = read_json(folder / "config.json", f"`{TINY_COMMAND}` fetches a tiny decoder").get("_class_name")
    if named != "AutoencoderTiny":
        raise InputError(f"{folder} holds a {named}, not an AutoencoderTiny; `{TINY_COMMAND}` fetches one")
    return _read_network(folder, named, dtype, named).to(device)


# --------------------------------------------------------------------------------------------- starts of a generator


def load_start(
    path: pathlib.Path | str,
    world: LatentDiffusion,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """The diffusion that a generator starts from: a pipeline folder, a denoiser's folder, or a file of its weights.

    It must speak of the latents and prompts of the reference `world`. What it does not bring, its noise or the size of
    its network, is taken from there.
    """
    path = pathlib.Path(path)
    network = _from_file(path, world, dtype) if path.is_file() else _from_folder(path, dtype)
    noise = read_noise(path) if (path / "scheduler/scheduler_config.json").exists() else world.noise
    start = replace(
        world,
        denoiser=Denoiser(network, noise_schedule(noise), latent_scale=world.denoiser.latent_scale).to(device),
        prediction_type=PREDICTIONS[noise["prediction_type"]],
        noise=noise,
        source=str(path),
        vae=None,
        text=None,
    )
    here = _language(start)
    for name, wanted in _language(world).items():
        if here[name] != wanted:
            what = f"its {name} is {here[name]}, not {wanted}"
            raise InputError(f"{path} cannot start a generator for {world.source}: {what}")
    return start


def _language(diffusion: LatentDiffusion) -> dict[str, Any]:
    """What two diffusions must have in common for one to start a generator for the other."""
    config = diffusion.denoiser.network.config
    return {
        "class": type(diffusion.denoiser.network).__name__,
        "shape of latents": diffusion.z_shape,
        "width of prompts": config.get("caption_channels") or config.cross_attention_dim,
        "added condition": config.get("addition_embed_type"),
    }


def _from_folder(folder: pathlib.Path, dtype: torch.dtype) -> Any:
    """The denoiser of a pipeline folder, of a folder that holds its folder, or of its own folder."""
    path = next((folder / place for place in DENOISERS if (folder / place).is_dir()), folder)
    named = read_json(path / "config.json", AGAIN).get("_class_name")
    return _read_network(path, named, dtype, *(loads for _, loads in PIPELINES.values()))


def _from_file(path: pathlib.Path, world: LatentDiffusion, dtype: torch.dtype) -> Any:
    """A network of the reference's form with the weights of a file, every one of them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file: give one, or a folder in diffusers format")
    network = copy.deepcopy(world.denoiser.network).to(dtype)
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        why = f"{path.stat().st_size:,} bytes: {first_line(error)}"
        raise InputError(f"{path} is no whole safetensors file ({why}); fetch it again") from None
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip()[:200]
        raise InputError(f"{path} does not fit the {type(network).__name__} of {world.source}: {why}") from None
    return network.eval().requires_grad_(False)


class ScaledNoise(OneStepGenerator):
    """A generator whose noise is scaled first: g(z, c) = (x - sigma eps(x, t*, c)) / alpha at x = sigma(t*) z."""

    def forward(self, z: Tensor, cond: Cond = None) -> Tensor:
        sigma = self.schedule.sigma(torch.tensor(self.t_star, dtype=torch.float64)).item()
        return super().forward(sigma * z, cond)


def convention(source: str | pathlib.Path, path: pathlib.Path) -> tuple[int | None, str]:
    """(t_star, noise) of a start, as its own note says, else as is known of its hub id, else as ours.

    t_star is None where nobody has said it.
    """
    if (path / NOTE).exists():
        note = read_json(path / NOTE, AGAIN)
        if (noise := note.get("noise", AS_IT_IS)) not in (AS_IT_IS, TIMES_SIGMA):
            known = f'"{AS_IT_IS}" or "{TIMES_SIGMA}"'
            raise InputError(f"{path / NOTE}: noise is {noise!r}, which is not known here: {known}")
        return note.get("t_star"), noise
    start = STARTS.get(str(source).partition("@")[0])
    return (start.t_star, start.noise) if start else (None, AS_IT_IS)


def rebuilt(gen: OneStepGenerator, network: Any, kind: type[OneStepGenerator] | None = None) -> OneStepGenerator:
    """The same generator around another network, under the same convention or another."""
    return (kind or type(gen))(network, gen.schedule, t_star=gen.t_star, prediction_type=gen.prediction_type)


def converted(gen: OneStepGenerator, noise: str) -> OneStepGenerator:
    """A generator that starts as published: z ~ N(0, I) in, and in it the noise that the model was trained on."""
    return rebuilt(gen, gen.network, ScaledNoise if noise == TIMES_SIGMA else OneStepGenerator)


def asked_as_published(
    gen: OneStepGenerator, source: str | pathlib.Path, path: pathlib.Path, say: Callable[[str], None]
) -> OneStepGenerator:
    """A generator from a start, under the convention of that; told in a line where it was made for another timestep."""
    (t_star, noise), asked = convention(source, path), _timestep(gen)
    if t_star not in (None, asked):
        say(f"{source} was made for t_star = {t_star}; this run asks it at {asked}")
    return converted(gen, noise)


def _timestep(gen: OneStepGenerator) -> int:
    return int(gen.schedule.index_of_time(torch.tensor(gen.t_star)))


# ------------------------------------------------------------------------------------------------------------- writing


def write(folder: pathlib.Path | str, *, denoiser: Any, **parts: Any) -> pathlib.Path:
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


def one_step_scheduler(noise: Mapping[str, Any], gen: OneStepGenerator) -> Any:
    """LCM's scheduler, which takes the noise as it is given; or Euler's, which scales it as `ScaledNoise` does."""
    from diffusers import EulerDiscreteScheduler, LCMScheduler

    if isinstance(gen, ScaledNoise):
        return EulerDiscreteScheduler(**noise, timestep_spacing="trailing", steps_offset=1)
    return LCMScheduler(**noise, clip_sample=False, steps_offset=1)


def export(folder: pathlib.Path | str, diffusion: LatentDiffusion, gen: OneStepGenerator) -> pathlib.Path:
    """Write a one-step generator as an ordinary pipeline folder.

    Anybody samples it, without this project, at its own t_star (0 .. 999):

        pipe = DiffusionPipeline.from_pretrained(folder)
        pipe(prompt, num_inference_steps=1, timesteps=[t_star], guidance_scale=1.0)
    """
    if diffusion.vae is None or diffusion.text is None:
        raise ValueError("a pipeline needs all parts: load the diffusion with its VAE and its text encoder")
    parts = {"vae": diffusion.vae, "scheduler": one_step_scheduler(diffusion.noise, gen)} | diffusion.text.parts()
    return write(folder, denoiser=gen.network.network, **parts)


def copied_part(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copy a part as it was published; of weights in half precision alone, under the names of whole ones."""
    half = check_weights(source) if list(source.glob("*.safetensors")) else None
    folder.mkdir(parents=True)
    for path in (path for path in source.iterdir() if path.is_file() and path.suffix not in PICKLES):
        target = folder / (path.name.replace(f".{half}.", ".") if half else path.name)
        shutil.copyfile(path, target)
        if half and target.name.endswith(".index.json"):
            target.write_text(target.read_text().replace(f".{half}.", "."))


def export_start(
    folder: pathlib.Path, reference: pathlib.Path, noise: dict[str, Any], gen: OneStepGenerator
) -> pathlib.Path:
    """As `export`, beside the VAE and the text encoder of a reference's folder, which are copied and not loaded.

    With a note of how the model is to be asked, which `convention` reads: it may be a start again.
    """
    index = _read_index(reference)
    place = PIPELINES[index["_class_name"]][0]
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("vae", *(name for name in index if name.startswith(("text_encoder", "tokenizer")))):
        copied_part(reference / part, folder / part)
    network: Any = gen.network.network
    network.to(memory_format=torch.contiguous_format).save_pretrained(folder / place)
    scheduler = one_step_scheduler(noise, gen)
    scheduler.save_pretrained(folder / "scheduler")
    kept = {name: value for name, value in index.items() if name in (place, "vae") or (folder / name).is_dir()}
    kept |= {"_class_name": index["_class_name"], "scheduler": ["diffusers", type(scheduler).__name__]}
    kept[place] = ["diffusers", type(network).__name__]
    kept |= {name: index[name] for name in ("_diffusers_version", "force_zeros_for_empty_prompt") if name in index}
    if index["_class_name"] == "StableDiffusionPipeline":
        kept |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(kept, indent=2) + "\n")
    note = {"t_star": _timestep(gen), "noise": TIMES_SIGMA if isinstance(gen, ScaledNoise) else AS_IT_IS}
    (folder / NOTE).write_text(json.dumps(note) + "\n")
    return folder
