"""From the description of a run at full scale to what `align` needs: roles, prompts, reward, settings, optimiser.

    run = full_scale.FullScale(reference="stable-diffusion-v1-5/stable-diffusion-v1-5", ..)
    loaded = full_scale.load(run)
    teach(folder, Student(loaded.gen, loaded.ta), loaded.world, loaded.settings, pace, prompts=loaded.prompts,
          reward=loaded.reward, seed=run.seed, facts=loaded.facts)
    full_scale.export(folder, loaded, gen)

Models are folders in diffusers format, or hub ids with a pinned commit, which are fetched only where `fetch` says so.
What the run will take is estimated first, from descriptions alone. Whatever is wrong is one line.
"""

import copy
import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dipp_core.book.full_schema import FullScale
from dipp_core.files import read_json
from dipp_core.method.algorithm import PRESETS, Reward, Settings, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import normalised, sigma_power_weight, uniform_index_time
from dipp_core.models import folders, lora
from dipp_core.models.latent import LatentDiffusion
from dipp_core.models.lora import Adapted, SharedBase, merged
from dipp_core.models.prompts import PIXART_TOKENS, Prompts, TextEncoder, guessed_tokens, stored_prompts
from dipp_core.rewards import public as rewards
from dipp_core.training import preflight

THE_REFERENCE = "the reference"
Say = Callable[[str], None]


class FullScaleError(RuntimeError):
    """One line that says what is wrong with the description of a run, and what to do."""


@dataclass
class Loaded:
    """What `align` and a long run around it need. facts: JSON that tells this run from others."""

    world: LatentDiffusion
    gen: OneStepGenerator
    ta: nn.Module
    prompts: Prompts
    reward: Reward | None
    settings: Settings
    adam: Callable[..., torch.optim.Optimizer]
    switches: preflight.Switches
    reference: pathlib.Path
    start: pathlib.Path
    facts: dict[str, Any]


# ------------------------------------------------------------------------------------------------------ its small parts


def adam(*, eight_bit: bool, device: str) -> Callable[..., torch.optim.Optimizer]:
    """Adam, (parameters, lr, betas) -> optimiser; with its state in 8 bits where bitsandbytes is there."""
    if not eight_bit:
        return torch.optim.Adam
    if device == "cpu":
        raise FullScaleError("eight_bit_adam needs a GPU: set eight_bit_adam = false")
    try:
        return importlib.import_module("bitsandbytes").optim.Adam8bit
    except ImportError:
        cure = "`pip install bitsandbytes`, or set eight_bit_adam = false"
        raise FullScaleError(f"eight_bit_adam needs the package bitsandbytes, which is not here: {cure}") from None


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, one a line, empty lines left out."""
    try:
        lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise FullScaleError(f"the prompts {path} cannot be read ({why}): give a file of one prompt a line") from None
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise FullScaleError(f"{path} holds no prompts: give a file of one prompt a line")
    return texts


def device_of(run: FullScale) -> str:
    """Where a run computes; and a look at its timesteps, which must not fail minutes later."""
    if run.timesteps[0] >= run.timesteps[1]:
        low, high = run.timesteps
        raise FullScaleError(f"timesteps are drawn from the first to before the last: {low}, {high} leave none")
    if run.device == "cuda" and not torch.cuda.is_available():
        raise FullScaleError('there is no GPU that torch can use: set device = "cpu", or "auto"')
    return "cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu"


def wants_reward(run: FullScale) -> bool:
    """Whether a run asks a reward; one that does must name one."""
    wanted = run.alpha_rew != 0 and PRESETS[run.method].get("alpha_rew") != 0
    if wanted and not run.rewards:
        why = f"{run.method} with alpha_rew = {run.alpha_rew:g} asks a reward, and rewards is empty"
        raise FullScaleError(f"{why}: name one there, or set alpha_rew = 0")
    return wanted


def settings_of(run: FullScale, switches: preflight.Switches, world: LatentDiffusion) -> Settings:
    """The settings of Algorithm 1; weights are sigma^2, the weight of the divergence has mean 1."""
    law, weight = uniform_index_time(world.schedule, *run.timesteps), sigma_power_weight(world.schedule)
    numbers = {"alpha_rew": run.alpha_rew} if "alpha_rew" not in PRESETS[run.method] else {}
    numbers |= {"alpha_cfg": run.alpha_cfg, "ta_steps": run.ta_steps} if run.method != "reward_only" else {}
    return preset(
        run.method,
        batch_shape=(switches.batch,),
        z_shape=world.z_shape,
        time_sampler=law,
        weight=normalised(weight, law),
        ta_weight=weight,
        distance=pseudo_huber(run.huber_c),
        **numbers,
    )


# -------------------------------------------------------------------------------------------------------- the whole run


def new_roles(world: LatentDiffusion, start: LatentDiffusion, t_star: int, switches: preflight.Switches) -> tuple:
    """Generator and assistant, as adapters or as networks of their own in float32; both recompute where it is said."""
    denoisers = {id(one.denoiser): one.denoiser for one in (world, start)}  # one, where the start is the reference
    if switches.roles == "full":
        if switches.checkpoint_denoiser:
            for denoiser in denoisers.values():
                lora.recompute_denoiser(denoiser)
        return start.generator(t_star).float(), trainable_copy(world.denoiser).float()
    bases = {key: SharedBase(denoiser, targets=switches.targets) for key, denoiser in denoisers.items()}
    if switches.checkpoint_denoiser:
        for base in bases.values():
            base.recompute()
    adapted = {key: Adapted(base, rank=switches.rank) for key, base in bases.items()}
    return start.generator(t_star, adapted[id(start.denoiser)]), trainable_copy(adapted[id(world.denoiser)])


def _start(run: FullScale, world: LatentDiffusion, path: pathlib.Path, **how: Any) -> LatentDiffusion:
    """The diffusion that the generator starts from: the reference, or another one that speaks its language."""
    start = world if run.start == THE_REFERENCE else folders.load_start(path, world, **how)
    if run.prediction == "as its folder says":
        return start
    names = {short: name for name, short in folders.PREDICTIONS.items()}
    noise = start.noise | {"prediction_type": names[run.prediction]}
    return replace(start, prediction_type=run.prediction, noise=noise)


def _encoded(folder: pathlib.Path, texts: list[str], cache: pathlib.Path, say: Say, **how: Any) -> Prompts:
    """The table of prompts, on the disk; the text encoder, if one was needed at all, is gone when this returns."""

    def load_encoder() -> TextEncoder:
        return folders.read_text(folder, read_json(folder / "model_index.json", folders.AGAIN), **how)

    found = stored_prompts(cache, folder, texts, load_encoder=load_encoder, dtype=how["dtype"], say=say)
    return found.to(how["device"])


def _eyes(
    run: FullScale, switches: preflight.Switches, dtype: torch.dtype
) -> tuple[nn.Module | None, nn.Module | None]:
    """The reward and its tiny decoder, on the CPU: read first, since they are what is most often missing."""
    if not wants_reward(run):
        return None, None
    if switches.tiny_vae and not run.tiny_vae:
        raise FullScaleError("the switch tiny_vae needs a tiny decoder: give its folder as tiny_vae")
    decoder = folders.tiny_decoder(run.tiny_vae, dtype=dtype) if switches.tiny_vae else None
    return rewards.load(run.rewards, checkpointing=switches.checkpoint_reward), decoder


def task_of(run: FullScale, prompts: int, tokens: float = PIXART_TOKENS) -> preflight.Task:
    """What the estimate of a run must know; tokens: the mean number of a prompt, where padding is not kept."""
    return preflight.Task(
        reference=run.reference,
        rewards=tuple(str(term.get("reward")) for term in run.rewards),
        star=PRESETS[run.method]["divergence"] == "score",
        guided=run.alpha_cfg > 0,
        prompts=prompts,
        prompt_tokens=float(tokens),
        own_start=run.start != THE_REFERENCE,
        fetch=run.fetch,
    )


def load(
    run: FullScale, *, folder: pathlib.Path | str = ".", cache: pathlib.Path | str | None = None, say: Say = print
) -> Loaded:
    """Check, estimate, then load a run. folder: where it will write; cache: where encoded prompts are kept, for this
    run and others, "encoded_prompts" in the folder if none is given. They are encoded before the rest is loaded.
    """
    switches = preflight.switched(run.profile, run.switches)
    texts, device = read_prompts(run.prompts), device_of(run)
    optimiser = adam(eight_bit=switches.eight_bit_adam, device=device)
    preflight.check(task_of(run, len(texts), guessed_tokens(texts)), switches, preflight.here(folder, device), say)
    reference = folders.locate(run.reference, fetch=run.fetch)
    own = reference if run.start == THE_REFERENCE else folders.locate_start(run.start, fetch=run.fetch)
    how = {"dtype": getattr(torch, switches.dtype), "device": device}
    judge, decoder = _eyes(run, switches, how["dtype"])
    prompts = _encoded(reference, texts, pathlib.Path(cache or pathlib.Path(folder, "encoded_prompts")), say, **how)
    whole = how if switches.roles == "lora" else how | {"dtype": torch.float32}  # what learns is not rounded
    world = folders.load(reference, parts=("denoiser", "vae"), **whole)
    start = _start(run, world, own, **whole)
    settings = settings_of(run, switches, world)
    gen, ta = new_roles(world, start, run.t_star, switches)
    for frozen in filter(None, (world.denoiser, world.vae)):
        frozen.to(how["dtype"])
    gen = gen if own == reference else folders.asked_as_published(gen, run.start, own, say)
    if switches.checkpoint_vae:
        for vae in filter(None, (world.vae, decoder)):
            lora.recompute_vae(vae)
    seen = world if decoder is None else replace(world, vae=decoder.to(device))
    reward = None if judge is None else seen.reward(judge.to(device), prompts)
    facts = run.model_dump(exclude={"fetch", "device"})
    return Loaded(world, gen, ta, prompts, reward, settings, optimiser, switches, reference, own, facts)


def export(folder: pathlib.Path | str, loaded: Loaded, gen: OneStepGenerator) -> pathlib.Path:
    """Write a generator of this run as an ordinary pipeline, in float32; adapters are merged into published weights."""
    reference = folders.load(loaded.reference)
    start = reference if loaded.start == loaded.reference else folders.load_start(loaded.start, reference)
    network = copy.deepcopy(gen.network)
    if isinstance(network, Adapted):
        role = Adapted(SharedBase(start.denoiser, targets=loaded.switches.targets), rank=network.rank)
        role.load_state_dict(network.state_dict())
        network = merged(role)
    names = {short: name for name, short in folders.PREDICTIONS.items()}
    noise = start.noise | {"prediction_type": names[gen.prediction_type]}
    return folders.export_start(folder, replace(reference, noise=noise), folders.rebuilt(gen, network.cpu()))
