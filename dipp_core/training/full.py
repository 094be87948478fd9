"""A whole training at full scale: two stages, as in the papers, distil and then align, each a run that can be resumed.

    training = begin(description, folder)    # checks, estimates, loads: all that a run needs is found here, once
    learn(training, "distil")                # Diff-Instruct or SIM, from the reference or from a one-step model
    learn(training, "align")                 # Diff-Instruct++ or Diff-Instruct*, from where the first stage ended
    export(training)                         # the averaged generator as an ordinary pipeline, folder/pipeline

`train` does all four, and is a command, `.venv/bin/python -m dipp_core.train 30_sd15 --set scale=full`. Killed at any
moment and started again, it goes on from the last checkpoint. What decides the result must be what it was, contents of
weights and code of the step included: see `identity`. What only saves memory or time may change, and the number of
processes, if switches.processes and switches.batch are set so that their product stays. More steps continue a stage.
One distillation serves many alignments, each in its folder: `begin(.., distilled=the folder of the first)`.

Models are folders in diffusers format, or hub ids with a pinned commit, which are fetched only where `fetch` says so.
Where something is `missing`, the course can be `rehearsed` with small models of random weights.
"""

import copy
import functools
import hashlib
import inspect
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dipp_core.description import Description, Stage
from dipp_core.files import InputError, code_hash, code_of, digest_of_weights, placed
from dipp_core.method.algorithm import PRESETS, Reward, Settings, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import normalised, sigma_power_weight, uniform_index_time
from dipp_core.models import folders, lora, miniature
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.lora import Adapted, SharedBase
from dipp_core.models.prompts import Prompts, TextEncoder, guessed_tokens, prompts_of, stored_prompts
from dipp_core.rewards import public as rewards
from dipp_core.rewards import tiny
from dipp_core.training import memory
from dipp_core.training.memory import GIB, Part, Switches, Task
from dipp_core.training.run import in_whole
from dipp_core.training.student import ALONE, Group, Pace, Student, teach
from dipp_core.training.watch import picture_grid, read_curves
from dipp_core.worlds import shapes

Adam = Callable[..., torch.optim.Optimizer]
Say = Callable[[str], None]
About = TypeVar("About", bound=Description)
STAGES = ("distil", "align")
THE_REFERENCE = "the reference"
PACE = {"steps", "gen_lr", "ta_lr", "flat", "ema"}  # of a stage, beside its betas
PREDICTION_TYPES = {short: name for name, short in folders.PREDICTIONS.items()}
# the switches that decide the result; the others decide memory and time, and may change between two starts
DECISIVE = ("roles", "rank", "targets", "dtype", "autocast", "tiny_vae", "eight_bit_adam")
STEP = ("method/*.py", "models/latent.py", "models/lora.py", "training/student.py")  # the code of a step
JUDGED = ("rewards/judge.py", "rewards/pixels.py", "rewards/public.py")


@dataclass
class Training:
    """A training, resolved: the description, what was found and loaded for it, and where it stands (`student`).

    folders: of the stages. contents: what tells the models, prompts and code from others; judged: the same of rewards.
    """

    about: Description
    folder: pathlib.Path
    folders: dict[str, pathlib.Path]
    switches: Switches
    reference: pathlib.Path
    start: pathlib.Path
    world: LatentDiffusion
    noise: dict[str, Any]
    prompts: Prompts
    reward: Reward | None
    settings: dict[str, Settings]
    adam: Adam
    student: Student
    group: Group
    say: Say
    contents: dict[str, Any]
    judged: dict[str, Any]


# ------------------------------------------------------------------------------------------ what a description asks for


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, one a line, empty lines left out."""
    try:  # other marks that Python ends a line at, such as a form feed, are parts of a prompt
        lines = placed(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        fetch = "`.venv/bin/python -m dipp_core.training.prompt_source` fetches a public list"
        raise InputError(
            f"the prompts {path} cannot be read ({why}): give a file of one prompt a line; {fetch}"
        ) from None
    if not (texts := [line.strip() for line in lines if line.strip()]):
        raise InputError(f"{path} holds no prompts: give a file of one prompt a line")
    return texts


def find_device(wanted: str) -> str:
    """Where to compute: "cuda" or "cpu", of "auto" the first that there is."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError('there is no GPU that torch can use: set device = "cpu", or "auto"')
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def find_adam(switches: Switches, device: str) -> Adam:
    """Adam, (parameters, lr, betas) -> optimiser; with its state in 8 bits where bitsandbytes is there."""
    if not switches.eight_bit_adam:
        return torch.optim.Adam if device == "cpu" else functools.partial(torch.optim.Adam, fused=True)
    if device == "cpu":
        raise InputError("eight_bit_adam needs a GPU: set eight_bit_adam = false")
    try:
        from bitsandbytes.optim import Adam8bit
    except ImportError:
        cure = "`.venv/bin/python -m ensurepip`, `.venv/bin/python -m pip install bitsandbytes`"
        raise InputError(f"eight_bit_adam needs the package bitsandbytes: {cure}, or set it to false") from None
    return Adam8bit


def asks_reward(about: Description, stage: Stage) -> bool:
    """Whether a stage asks a reward; one that does must name one."""
    wanted = stage.alpha_rew != 0 and PRESETS[stage.method].get("alpha_rew") != 0
    if wanted and not about.rewards:
        why = f"{stage.method} with alpha_rew = {stage.alpha_rew:g} asks a reward, and rewards is empty"
        raise InputError(f"{why}: name one there, or set alpha_rew = 0")
    return wanted


def task_of(about: Description, stage: Stage, prompts: int = 1000, tokens: float = 120.0) -> Task:
    """What the estimate of a stage must know; tokens: the mean number of a prompt, where padding is not kept."""
    return Task(
        reference=about.reference,
        rewards=tuple(str(term.get("reward")) for term in about.rewards),
        star=PRESETS[stage.method]["divergence"] == "score",
        guided=stage.alpha_cfg > 0,
        prompts=prompts,
        prompt_tokens=tokens,
        own_start=about.start != THE_REFERENCE,
        fetch=about.fetch,
        absent=about.fetch and not folders.is_here(about.reference),
    )


def settings_of(stage: Stage, world: LatentDiffusion, batch: int) -> Settings:
    """Algorithm 1 for the batch of all processes; weights are sigma^2, the weight of the divergence has mean 1."""
    times, weight = uniform_index_time(world.schedule, *stage.timesteps), sigma_power_weight(world.schedule)
    alone, fixed = stage.method == "reward_only", PRESETS[stage.method]
    return preset(
        stage.method,
        alpha_rew=fixed.get("alpha_rew", stage.alpha_rew),
        alpha_cfg=0.0 if alone else stage.alpha_cfg,
        ta_steps=0 if alone else stage.ta_steps,
        batch_shape=(batch,),
        z_shape=world.z_shape,
        time_sampler=times,
        weight=normalised(weight, times),
        ta_weight=weight,
        distance=pseudo_huber(stage.huber_c),
        max_grad_norm=stage.max_grad_norm or None,
    )


def new_student(world: LatentDiffusion, start: LatentDiffusion, t_star: int, switches: Switches) -> Student:
    """Generator and assistant, as adapters or as networks of their own in float32; both recompute where it is said."""
    denoisers = {id(one.denoiser): one.denoiser for one in (world, start)}  # one, where the start is the reference
    for denoiser in denoisers.values():
        make_fast(denoiser)
    if switches.roles == "full":
        if switches.checkpoint_denoiser:
            for denoiser in denoisers.values():
                lora.recompute_denoiser(denoiser)
        student = Student(start.generator(t_star).float(), trainable_copy(world.denoiser).float())
        roles: list[Any] = [student.gen.network, student.ta]
        for role in roles:
            role.autocast = switches.autocast
        compiled = [*denoisers.values(), *roles]
    else:
        bases = {key: SharedBase(denoiser, targets=switches.targets) for key, denoiser in denoisers.items()}
        if switches.checkpoint_denoiser:
            for base in bases.values():
                base.recompute()
        adapted = {key: Adapted(base, rank=switches.rank) for key, base in bases.items()}
        gen = start.generator(t_star, adapted[id(start.denoiser)])
        student, compiled = Student(gen, trainable_copy(adapted[id(world.denoiser)])), list(denoisers.values())
    for one in compiled if switches.compile else ():  # last, since copies are not compiled
        one.network.compile()
    return student


def make_fast(denoiser: Denoiser) -> None:
    """What makes a denoiser and its copies faster on a GPU, and leaves results alone but for rounding."""
    if next(denoiser.parameters()).is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        if not denoiser.is_transformer:  # its convolutions are faster with the channels last
            denoiser.network.to(memory_format=torch.channels_last)


def check_rewards(judges: Any, world: LatentDiffusion, prompts: Prompts, gen: OneStepGenerator, batch: int) -> None:
    """Ask every reward once, about what the start draws: a wrong one shows before the first step."""
    z = torch.randn(batch, *world.z_shape, generator=torch.Generator().manual_seed(0))
    cond = prompts.rows(torch.arange(batch) % len(prompts))
    with torch.no_grad():
        x0 = gen(z.to(next(world.denoiser.parameters()).device), cond)
    for one in judges:
        leaf = x0.detach().requires_grad_()
        values = world.reward(one, prompts)(leaf, cond)
        name = one.about.name
        if not values.isfinite().all():
            raise InputError(f"{name} is not finite for pictures of the start: {values.tolist()}")
        (gradient,) = torch.autograd.grad(values.sum(), leaf, materialize_grads=True)
        if not gradient.isfinite().all():
            raise InputError(f"the gradient of {name} is not finite for pictures of the start")
        if not gradient.any():
            raise InputError(f"{name} gives the pictures no gradient: it is {values[0].item():g}, however they change")


# --------------------------------------------------------------------------------------------------------- the training


def begin(
    about: Description,
    folder: pathlib.Path | str,
    *,
    distilled: pathlib.Path | str | None = None,
    group: Group = ALONE,
    say: Say = print,
) -> Training:
    """Check and estimate a training, then load what it needs, what is most often missing first.

    distilled: the folder of another training, whose distillation and encoded prompts this one shares.
    """
    folder, switches = pathlib.Path(folder), memory.switched(about.profile, about.switches)
    shared = pathlib.Path(distilled or folder)
    if not shared.is_dir() and distilled:
        raise InputError(f"{shared}, whose distillation is to be shared, is not there: give the folder of a training")
    if switches.processes != (here := group.share[1]):
        what = f"{switches.processes} processes of batch {switches.batch} are described, {here} run"
        raise InputError(
            f"{what}: set switches.processes = {here}, and switches.batch so that the whole batch is what it should be"
        )
    texts, device = read_prompts(about.prompts), find_device(about.device)
    adam, dtype = find_adam(switches, device), getattr(torch, switches.dtype)
    stages = {name: stage for name, stage in about.stages.items() if stage.steps} or {"align": about.align}
    asking = [name for name, stage in stages.items() if asks_reward(about, stage)]
    machine = memory.here((folder, shared), device)
    tasks = [task_of(about, stage, len(texts), guessed_tokens(texts)) for stage in stages.values()]
    dearest = max(tasks, key=lambda task: memory.needed(memory.estimate(task, switches, machine.kind)))
    memory.check(dearest, switches, machine, say)
    reference = folders.locate(about.reference, fetch=about.fetch)
    own = reference if about.start == THE_REFERENCE else folders.locate_start(about.start, fetch=about.fetch)
    judge: Any = rewards.load(about.rewards, checkpointing=switches.checkpoint_reward) if asking else None
    if switches.tiny_vae and not about.tiny_vae:
        raise InputError("the switch tiny_vae needs a tiny decoder: give its folder as tiny_vae")
    decoder = folders.tiny_decoder(about.tiny_vae, dtype=dtype, device=device) if switches.tiny_vae and judge else None

    def load_encoder() -> TextEncoder:
        return folders.read_text(reference, dtype=dtype, device=device)

    prompts: Prompts
    if switches.encode == "during":
        prompts = prompts_of(load_encoder(), texts)
    else:  # the encoder is loaded where a prompt is not on the disk yet, and gone before anything else is loaded
        place = shared / "encoded_prompts"
        prompts = stored_prompts(place, reference, texts, load_encoder=load_encoder, dtype=dtype, say=say).to(device)
    learned = dtype if switches.roles == "lora" else torch.float32  # what learns is not rounded
    world = folders.load(reference, parts=("denoiser", "vae"), dtype=learned, device=device)
    start = world if own == reference else folders.load_start(own, world, dtype=learned, device=device)
    last = max(about.t_star, *(stage.timesteps[1] - 1 for stage in stages.values()))
    if last >= min(world.steps, start.steps):
        raise InputError(f"{reference} has {world.steps} steps of noise, and timestep {last} is asked for")
    if about.prediction != "as its folder says":
        noise = {**start.noise, "prediction_type": PREDICTION_TYPES[about.prediction]}
        start = replace(start, prediction_type=about.prediction, noise=noise)
    contents = identity(about, switches, world, start, texts)
    batch = switches.batch * switches.processes
    settings = {name: settings_of(stage, world, batch) for name, stage in about.stages.items()}
    student = new_student(world, start, about.t_star, switches)
    for network in filter(None, (world.denoiser, world.vae)):
        network.to(dtype)
    if own != reference:
        student.gen = folders.asked_as_published(student.gen, about.start, own, say)
    if switches.checkpoint_vae:
        for vae in filter(None, (world.vae, decoder)):
            lora.recompute_vae(vae)
    reward, judged = None, {}
    if judge is not None:
        judged = identity_of_rewards(about, judge) | {
            "tiny_vae": "none" if decoder is None else digest_of_weights(decoder.state_dict())
        }
        seen = world if decoder is None else replace(world, vae=decoder)
        check_rewards(judge.to(device).judges, seen, prompts, student.gen, switches.micro or switches.batch)
        reward = seen.reward(judge, prompts)
    places = {"distil": shared / "distil", "align": folder / "align"}
    return Training(
        about=about,
        folder=folder,
        folders=places,
        switches=switches,
        reference=reference,
        start=own,
        world=world,
        noise=start.noise,
        prompts=prompts,
        reward=reward,
        settings=settings,
        adam=adam,
        student=student,
        group=group,
        say=say,
        contents=contents,
        judged=judged,
    )


def identity(
    about: Description, switches: Switches, world: LatentDiffusion, start: LatentDiffusion, texts: Sequence[str]
) -> dict[str, Any]:
    """What a checkpoint belongs to, beside its settings: the contents of models and prompts, the code of the step."""
    assert world.vae is not None
    own = {} if start is world else {"weights": digest_of_weights(start.denoiser.state_dict())}
    return {
        "reference": {
            "denoiser": digest_of_weights(world.denoiser.state_dict()),
            "vae": digest_of_weights(world.vae.state_dict()),
            "noise": world.noise,
        },
        "start": own | {"noise": start.noise, "t_star": about.t_star},
        "prompts": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        "switches": {name: getattr(switches, name) for name in DECISIVE},
        "code": code_of(*STEP),
    }


def identity_of_rewards(about: Description, judge: Any) -> dict[str, Any]:
    """The same of a sum of rewards; of one's own reward its file counts as code."""
    found = []
    for term, one in zip(about.rewards, judge.judges, strict=True):
        known = {"reward": term["reward"], "weight": term.get("weight", 1.0)}
        known["weights"] = digest_of_weights(one.state_dict())
        if (function := getattr(one, "function", None)) is not None:
            try:
                known["code"] = code_hash(pathlib.Path(inspect.getfile(function)).read_text())[:16]
            except (TypeError, OSError):  # of a function without a file nothing more is known
                known["code"] = "unknown"
        found.append(known)
    return {"rewards": found, "code of rewards": code_of(*JUDGED)}


def watch(training: Training) -> Callable[[int, Student], dict[str, Any]]:
    """What is looked at while a stage learns: pictures of some prompts, always of the same noise, and their reward."""
    about, world, prompts = training.about, training.world, training.prompts
    index = torch.arange(min(about.watch_prompts, len(prompts))).repeat_interleave(about.watch_each)
    z = torch.randn(len(index), *world.z_shape, generator=torch.Generator().manual_seed(about.seed))
    device = next(world.denoiser.parameters()).device

    @torch.no_grad()
    def evaluate(_done: int, student: Student) -> dict[str, Any]:
        images, values, texts = [], [], []
        for part in torch.arange(len(index)).split(training.switches.micro or training.switches.batch):
            cond = prompts.rows(index[part])
            x0 = student.gen(z[part].to(device), cond)
            texts += [text if len(text) < 24 else f"{text[:21]}..." for text in prompts.texts_of(cond)]
            images.append(world.decode(x0).float().cpu())
            if training.reward is not None:
                values += training.reward(x0, cond).tolist()
        found: dict[str, Any] = {"samples": picture_grid(torch.cat(images), min(len(index), 8), texts)}
        if values:
            found["reward"] = sum(values) / len(values)
        return found

    return evaluate


def learn(training: Training, name: str, *, progress: bool | None = None) -> Student:
    """One stage, "distil" or "align": begun, resumed, or read where it is complete; the training's student moves on."""
    about, stage = training.about, training.about.stages[name]
    if stage.steps == 0:
        return training.student
    facts = training.contents | (training.judged if asks_reward(about, stage) else {})
    if name != STAGES[0]:
        facts |= {"begins with": digest_of_weights(in_whole(training.student.state()))}
    training.student = teach(
        training.folders[name],
        training.student,
        training.world,
        training.settings[name],
        Pace(betas=(stage.betas[0], stage.betas[1]), **stage.model_dump(include=PACE)),
        prompts=training.prompts,
        reward=training.reward,
        seed=about.seed + STAGES.index(name),
        save_steps=about.save_steps,
        evaluate_steps=about.watch_steps,
        evaluate=watch(training),
        progress=progress,
        group=training.group,
        micro=training.switches.micro,
        adam=training.adam,
        facts=facts,
        say=training.say,
    )
    return training.student


def train(about: Description, folder: pathlib.Path | str, **options: Any) -> pathlib.Path:
    """Both stages and the export; returns the folder of the pipeline. options: of `begin`."""
    training = begin(about, folder, **options)
    for name in STAGES:
        learn(training, name)
    return export(training)


# --------------------------------------------------------------------------------------------------------------- export


def export(training: Training, name: str = "pipeline") -> pathlib.Path:
    """Write the averaged generator as an ordinary pipeline, whole or not at all; one process does.

    In float32; adapters are merged into the published weights. All else is copied as it was published.
    """
    folder, partial = training.folder / name, training.folder / f".partial_{name}"
    if training.group.share[0] != 0:
        return folder
    gen = training.student.gen
    network: Any = copy.deepcopy(gen.network)
    if isinstance(network, Adapted):
        start = folders.load(training.reference, parts=("denoiser",))
        if training.start != training.reference:
            start = folders.load_start(training.start, start)
        role = Adapted(SharedBase(start.denoiser, targets=training.switches.targets), rank=network.rank)
        role.load_state_dict(network.state_dict())
        network = lora.merged(role)
    noise = {**training.noise, "prediction_type": PREDICTION_TYPES[gen.prediction_type]}
    folders.export_start(partial, training.reference, noise, folders.rebuilt(gen, network.cpu()))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)
    return folder


@torch.no_grad()
def difference(training: Training, folder: pathlib.Path, count: int, *, seed: int) -> tuple[Tensor, float]:
    """Pictures (count, 3, H, W) that an ordinary pipeline draws in one step, and the largest difference to ours.

    The first prompts of the training, the same noise for both. The pipeline is told the prompts as they were encoded
    for the training, so that its text encoder is not loaded beside the trainer.
    """
    import diffusers

    world, prompts = training.world, training.prompts
    device = next(world.denoiser.parameters()).device
    rows = torch.arange(min(count, len(prompts)))
    z = torch.randn(len(rows), *world.z_shape, generator=torch.Generator().manual_seed(seed)).to(device)
    cond: Any = prompts.rows(rows)
    none = {
        name: None
        for name in json.loads((folder / "model_index.json").read_text())
        if name.startswith(("text", "token"))
    }
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **none).to(device)
    pipe.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"num_inference_steps": 1, "timesteps": [training.about.t_star], "guidance_scale": 1.0}
    how |= {"prompt_embeds": cond["tokens"].float()}
    if world.denoiser.is_transformer:  # else it looks for the nearest of its own sizes, and rewrites the prompts
        how |= {"use_resolution_binning": False, "clean_caption": False, "prompt_attention_mask": cond["mask"]}
    if world.denoiser.is_sdxl:
        how |= {"pooled_prompt_embeds": cond["pooled"].float()}
    theirs = pipe(latents=z, output_type="pt", **how).images.float().cpu()
    ours = world.decode(training.student.gen(z, cond)).float().cpu()
    return theirs, (ours - theirs).abs().max().item()


def write_card(training: Training, folder: pathlib.Path, *, true_run: bool, machine: str) -> str:
    """README.md of an exported pipeline: what it is, how to sample it, what it learned from; returned as text."""
    about = training.about
    names = [pathlib.Path(one).name if pathlib.Path(one).is_dir() else one for one in (about.reference, about.start)]
    judged = [f"- {_about(term)}" for term in about.rewards] if training.reward is not None else []
    stages = [f"- {name}: `{json.dumps(one.model_dump(), sort_keys=True)}`" for name, one in about.stages.items()]
    binning = ", use_resolution_binning=False, clean_caption=False" if training.world.denoiser.is_transformer else ""
    sampling = f"pipe(prompt, num_inference_steps=1, timesteps=[{about.t_star}], guidance_scale=1.0{binning})"
    lines = [
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---",
        "# One-step generator, aligned with a reward",
        "" if true_run else f"**{SAYS}**\n",
        f"Reference: `{names[0]}`. Start: `{names[1]}`. Their licences hold for what is derived from them.\n",
        "## Sample it\n",
        "```python\nimport diffusers\npipe = diffusers.DiffusionPipeline.from_pretrained(folder)",
        f"{sampling}\n```\n",
        "## How it was made\n",
        *stages,
        f"- {len(training.prompts)} prompts, no images; seed {about.seed}",
        f"- profile `{about.profile}`, on {machine}\n",
        "## What it was rewarded for\n",
        *(judged or ["- nothing: distilled only"]),
        "\nA reward that was optimised is no measure of quality any more: judge the pictures by others.\n",
    ]
    text = "\n".join(lines)
    (folder / "README.md").write_text(text)
    return text


def _about(term: Mapping[str, Any]) -> str:
    """A reward with what a reader must know of it."""
    counted = f"{term.get('weight', 1.0):g} x {term['reward']}"
    if (scorer := rewards.SCORERS.get(str(term["reward"]))) is None:
        return f"{counted}, one's own"
    about = scorer.about
    return f"{counted} {about.version}: {about.scale}. Weights: {about.weights_licence}. {about.hazards}"


# ------------------------------------------------------------------------------------------------------------ rehearsal

SAYS = "RANDOM WEIGHTS: a rehearsal of the course. Its pictures and numbers are no result."
REHEARSED_STEPS = 10


def missing(about: Description) -> list[str]:
    """What keeps the true run from being made here, a line each with its cure; empty where nothing does.

    Models are fetched only where `fetch` says so, and only by a machine that lacks nothing else. A reward whose folder
    is there is believed; whatever is wrong in it shows when it is loaded.
    """
    found: list[str] = []

    def look(needs: Callable[[], Any]) -> None:
        try:
            needs()
        except InputError as error:
            found.append(str(error))

    if about.profile != "cpu" and not torch.cuda.is_available():
        found.append(f"no GPU that torch can use: the profile {about.profile} is for one")
    look(lambda: read_prompts(about.prompts))
    absent = [term for term in about.rewards if not placed(str(term.get("source"))).is_dir()]
    for term in absent:
        look(functools.partial(rewards.load, [term]))
    look(lambda: folders.locate(about.reference, fetch=about.fetch and not found))
    if about.start != THE_REFERENCE:
        look(lambda: folders.locate_start(about.start, fetch=about.fetch and not found))
    return found


def rehearsed(about: About, kind: str, folder: pathlib.Path) -> About:
    """The training with small models that are made in `folder`; kind: "unet", as SD1.5 is, or "dit", as PixArt-alpha.

    Methods and strengths stay as they are described; stages are short, and rates larger, so that a few steps show. It
    goes through all the code of the true run and proves nothing else: its pictures and numbers mean nothing.
    """
    model = miniature.build(folder / "model", kind, words=shapes.vocabulary(), size="tiny")
    (folder / "prompts.txt").write_text("\n".join(shapes.captions(shapes.split("train")[:8])) + "\n")
    judge = tiny.write_clip(folder / "clip")
    changes: dict[str, Any] = {
        "reference": str(model),
        "start": THE_REFERENCE,
        "prediction": "as its folder says",
        "profile": "cpu",
        "switches": {"rank": 2, "batch": 4},
        "rewards": [{"reward": "clipscore", "source": str(judge), "weight": 1.0}],
        "prompts": str(folder / "prompts.txt"),
        "tiny_vae": "",
        "fetch": False,
        "device": "cpu",
    }
    for name, stage in about.stages.items():
        short = {"gen_lr": 1e-3, "ta_lr": 1e-3, "steps": min(stage.steps, REHEARSED_STEPS)}
        changes[name] = stage.model_copy(update=short)
    return about.model_copy(update=changes)


# -------------------------------------------------------------------------------------------------------------- figures

# what the bars of memory are made of: beginnings of the names of parts, colour
GROUPS = {
    "frozen weights": (("reference", "start", "VAE", "rewards"), "ref"),
    "weights that learn, their average": (("generator", "averaged"), "gen"),
    "Adam and gradients": (("Adam", "gradients"), "accent"),
    "activations": (("activations",), "reward"),
    "libraries, workspaces": (("libraries",), "light"),
}
CURVES = {
    "ta_loss": "assistant's loss",
    "norm_divergence": "divergence's gradient at $x_0$",
    "norm_reward": "reward's gradient at $x_0$",
    "eval_reward": "mean reward",
}


def memory_figure(
    profiles: Mapping[str, Sequence[Part]], colors: Mapping[str, str], cards: Sequence[int] = (24, 80)
) -> Figure:
    """A bar a profile, of the parts of its estimated memory while it trains, and lines for cards, in GB."""
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.6 * len(profiles)))
    for number, parts in enumerate(profiles.values()):
        left = 0.0
        for label, (beginnings, color) in GROUPS.items():
            size = sum(one.memory for one in parts if one.name.startswith(beginnings) and not one.before) / GIB
            named = label if number == 0 else None
            ax.barh(number, size, left=left, color=colors[color], label=named, edgecolor="white", height=0.6)
            left += size
    for size in cards:
        ax.axvline(size, color=colors["exact"], linestyle=":", linewidth=1.2)
        ax.text(size, 1.01, f"{size} GB card", transform=ax.get_xaxis_transform(), ha="center", fontsize=10)
    ax.set(yticks=range(len(profiles)), yticklabels=list(profiles), ylim=(len(profiles) - 0.5, -0.5))
    ax.set(xlabel="estimated memory of one GPU [GiB]", xlim=(0, max(cards) * 1.05))
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def course_figure(folder: pathlib.Path, color: str) -> Figure:
    """The curves of a stage, a panel each."""
    found = read_curves(folder)
    keys = [key for key in CURVES if key in found]
    fig, axes = plt.subplots(1, len(keys), figsize=(min(11, 3.6 * len(keys)), 3.2), squeeze=False)
    for ax, key in zip(axes[0], keys, strict=True):
        marker = "o" if len(found[key].step) < 30 else None
        ax.plot(found[key].step, found[key].values, color=color, marker=marker, markersize=3)
        ax.set_title(CURVES[key], fontsize=10)
        ax.set_xlabel("updates")
        ax.locator_params(axis="x", integer=True, nbins=5)
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.locator_params(axis="y", nbins=5)
    return fig


def samples_figure(training: Training, color: str, *, true_run: bool) -> Figure:
    """Pictures of the watched prompts by the student, which say so where they are of random weights."""
    fig = watch(training)(0, training.student)["samples"]
    if not true_run:
        fig.suptitle(SAYS.partition(".")[0], fontsize=10, color=color)
    return fig
