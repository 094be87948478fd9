"""Where a generator starts: a pipeline folder, a bare denoiser, a single file of weights; under our convention or not.

    path = starts.locate("stabilityai/sd-turbo", fetch=True)
    start = starts.load(path, world, dtype=.., device=..)
    gen = starts.converted(start.generator(999), starts.convention("stabilityai/sd-turbo", path).noise)
    starts.export(folder, world, gen)

What a start does not bring, its noise or the size of its networks, is taken from the reference `world`. Published
sampling rules are kept exactly: where a model was trained on x = sigma(t*) z, the generator multiplies, and the
exported pipeline has the scheduler that does so too.
"""

import copy
import json
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dipp_core.method.generator import OneStepGenerator
from dipp_core.method.schedule import NoiseSchedule
from dipp_core.method.scores import Cond
from dipp_core.models import latent_files, public
from dipp_core.models.known_starts import AS_IT_IS, STARTS, TIMES_SIGMA
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.latent_files import ModelError

PICKLES = (".bin", ".pkl", ".pt", ".pth", ".ckpt")
PATTERNS = ("model_index.json", "scheduler/*", "vae/config.json", *(f"{place}/*" for place in public.DENOISERS))
NOTE = "one_step.json"


class Convention(NamedTuple):
    """How a one-step model wants to be asked; t_star is None where nobody has said it."""

    t_star: int | None
    noise: str


class ScaledNoise(OneStepGenerator):
    """A generator whose noise is scaled first: g(z, c) = (x - sigma eps(x, t*, c)) / alpha at x = sigma(t*) z."""

    def forward(self, z: Tensor, cond: Cond = None) -> Tensor:
        sigma = self.schedule.sigma(torch.tensor(self.t_star, dtype=torch.float64)).item()
        return super().forward(sigma * z, cond)


# ------------------------------------------------------------------------------------------------------------- finding


def locate(source: str | pathlib.Path, *, fetch: bool = False) -> pathlib.Path:
    """The folder or file of a start; of a hub id only what is needed, and only where `fetch` is said."""
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        if path.suffix in PICKLES:
            raise ModelError(f"{path} is a pickle, which is not opened here: give a .safetensors file or a folder")
        return path
    known = None if path.is_dir() else STARTS.get(str(source).partition("@")[0])
    if known is not None and known.pickled:
        raise ModelError(f"{source} publishes {known.pickled}, a pickle, which is not opened here: {known.cure}")
    return public.locate(source, fetch=fetch, patterns=PATTERNS)


def convention(source: str | pathlib.Path, path: pathlib.Path) -> Convention:
    """How a start wants to be asked: as its own note says, else as is known of its hub id, else as ours."""
    if path.is_dir() and (path / NOTE).exists():
        note = latent_files.read_json(path / NOTE, "it says how the one-step model is to be asked")
        if note.get("noise", AS_IT_IS) not in (AS_IT_IS, TIMES_SIGMA):
            known = f'"{AS_IT_IS}" or "{TIMES_SIGMA}"'
            raise ModelError(f"{path / NOTE}: noise is {note['noise']!r}, which is not known here: {known}")
        return Convention(note.get("t_star"), note.get("noise", AS_IT_IS))
    known = STARTS.get(str(source).partition("@")[0])
    return Convention(None, AS_IT_IS) if known is None else Convention(known.t_star, known.noise)


# ------------------------------------------------------------------------------------------------------------- loading


def load(
    path: pathlib.Path | str,
    world: LatentDiffusion,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LatentDiffusion:
    """The diffusion that a generator starts from; it must speak of the latents and prompts of the reference `world`."""
    path = pathlib.Path(path)
    network = _from_file(path, world, dtype) if path.is_file() else _from_folder(path, dtype)
    noise, prediction = world.noise, world.prediction_type
    if (path / "scheduler/scheduler_config.json").exists():
        noise = latent_files.read_noise(path)
        prediction = latent_files.PREDICTIONS[noise["prediction_type"]]
    schedule = latent_files.noise_schedule(noise)
    denoiser = Denoiser(network, schedule, latent_scale=world.denoiser.latent_scale).to(device)
    start = replace(world, denoiser=denoiser, prediction_type=prediction, noise=noise, source=str(path))
    if (here := _language(start)) != (wanted := _language(world)):
        wrong = next(name for name in wanted if here[name] != wanted[name])
        what = f"its {wrong} is {here[wrong]}, not {wanted[wrong]}"
        raise ModelError(f"{path} cannot start a generator for {world.source}: {what}")
    return replace(start, vae=None, text=None)


def _language(diffusion: LatentDiffusion) -> dict[str, Any]:
    """What two diffusions must have in common for one to start a generator for the other."""
    config = diffusion.denoiser.network.config
    return {
        "class": type(diffusion.denoiser.network).__name__,
        "shape of latents": diffusion.z_shape,
        "width of prompts": getattr(config, "caption_channels", None) or config.cross_attention_dim,
        "added condition": getattr(config, "addition_embed_type", None),
    }


def _from_folder(folder: pathlib.Path, dtype: torch.dtype) -> nn.Module:
    """The denoiser of a pipeline folder, of a folder that holds its folder, or of its own folder."""
    places = [folder / place for place in public.DENOISERS if (folder / place).is_dir()]
    place = places[0] if places else folder
    named = latent_files.read_json(place / "config.json", "it says how large the network is").get("_class_name")
    known = [loads for _, loads in latent_files.PIPELINES.values()]
    return latent_files.read_network(place.parent, place.name, {place.name: ["diffusers", named]}, dtype, *known)


def _from_file(path: pathlib.Path, world: LatentDiffusion, dtype: torch.dtype) -> nn.Module:
    """A network of the reference's form with the weights of a file, every one of them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no .safetensors file: give one, or a folder in diffusers format")
    form = world.denoiser.network
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        why = f"{path.stat().st_size:,} bytes: {(str(error).strip().splitlines() or [''])[0][:120]}"
        raise ModelError(f"{path} is no whole safetensors file ({why}); fetch it again") from None
    wanted = form.state_dict()
    bad = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if bad or len(weights) != len(wanted):
        lost = f"{len(bad)} of {len(wanted)} weights are missing or of another shape, {len(weights)} are there"
        raise ModelError(f"{path} does not fit the {type(form).__name__} of {world.source}: {lost}")
    network = copy.deepcopy(form).to(dtype)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------- convention


def timestep_of_sigma(schedule: NoiseSchedule, sigma: float) -> int:
    """The timestep nearest to a noise level of EDM's, sigma = sigma(t) / alpha(t)."""
    return int(schedule.index_of_time(schedule.time_of_noise_ratio(sigma)))


def rebuilt(gen: OneStepGenerator, network: nn.Module, kind: type[OneStepGenerator] | None = None) -> OneStepGenerator:
    """The same generator around another network, under the same convention or another."""
    settings = {"t_star": gen.t_star, "prediction_type": gen.prediction_type, "batch_ndim": gen.batch_ndim}
    return (kind or type(gen))(network, gen.schedule, **settings)


def converted(gen: OneStepGenerator, noise: str) -> OneStepGenerator:
    """A generator that starts as published: z ~ N(0, I) in, and in it the noise that the model was trained on."""
    return rebuilt(gen, gen.network, {AS_IT_IS: OneStepGenerator, TIMES_SIGMA: ScaledNoise}[noise])


def asked_as_published(
    gen: OneStepGenerator, source: str | pathlib.Path, path: pathlib.Path, say: Callable[[str], None] = print
) -> OneStepGenerator:
    """A generator from a start, under the convention of that; told in a line where it was made for another timestep."""
    wanted, asked = convention(source, path), int(gen.schedule.index_of_time(torch.tensor(gen.t_star)))
    if wanted.t_star not in (None, asked):
        say(f"{source} was made for t_star = {wanted.t_star}; this run asks it at {asked}")
    return converted(gen, wanted.noise)


def export(folder: pathlib.Path | str, diffusion: LatentDiffusion, gen: OneStepGenerator) -> pathlib.Path:
    """As `latent_files.export`, with a note of how the model is to be asked; z scaled where the generator scales it.

    The call is the same, pipe(prompt, num_inference_steps=1, timesteps=[t_star], guidance_scale=1.0): Euler's scheduler
    multiplies the noise that it is given, LCM's does not.
    """
    from diffusers import EulerDiscreteScheduler

    scaled = isinstance(gen, ScaledNoise)
    trailing = {"timestep_spacing": "trailing", "steps_offset": 1}
    scheduler = EulerDiscreteScheduler(**diffusion.noise, **trailing) if scaled else None
    path = latent_files.export(folder, diffusion, gen, scheduler)
    asked = int(gen.schedule.index_of_time(torch.tensor(gen.t_star)))
    note = {"t_star": asked, "noise": TIMES_SIGMA if scaled else AS_IT_IS}
    (path / NOTE).write_text(json.dumps(note) + "\n")
    return path
