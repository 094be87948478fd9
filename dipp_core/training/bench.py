"""What a training step costs.

    make bench          the miniature, on a CPU, all methods
    make bench-large    SD1.5 and PixArt-alpha at 512 pixels, on a CPU
    make bench-gpu      the same on a GPU, and every memory switch

The miniature's steps are told as ratios to the passes through networks that they cannot do without. Step and passes are
timed by turns, so that a busy machine disturbs both alike; only ratios mean something. At true size it is seconds and
peak memory beside the estimate of `training.memory`, and whether every gradient is finite. Weights are random, prompts
are random embeddings, the reward is ImageReward in its official architecture: memory and time are those of a real run,
what is computed means nothing. Every case has a process of its own; --only CASE measures some, --out FILE.csv keeps the
table. What was measured for this book stands in reports/tables/30_full_scale.
"""

import argparse
import csv
import importlib
import json
import multiprocessing
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dipp_core.description import Method, Stage
from dipp_core.files import InputError, first_line
from dipp_core.method.algorithm import Reward, Settings, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.staged import frozen
from dipp_core.models import folders, lora, miniature
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.miniature import settings_for
from dipp_core.models.prompts import Prompts
from dipp_core.rewards import public as rewards
from dipp_core.rewards.shapes import PreferenceReward
from dipp_core.training import full, memory
from dipp_core.training.memory import GIB, Switches, Task
from dipp_core.worlds import shapes

BATCH, ROUNDS, T_STAR, ALPHA_CFG = 32, 5, 625, 0.5  # of the miniature


class Pass(NamedTuple):
    """One thing that a step has to do.

    role: gen, ta or ref, which are denoisers, or judge, the VAE's decoder and the learned reward behind it.
    work: "forward" without any gradient; forward and backward for the gradient of "parameters" or of "input"; or
    "update", Adam's step on all parameters. pair: both halves of guidance in one batch, which is then twice as large.
    """

    role: str
    work: str = "forward"
    pair: bool = False

    def __str__(self) -> str:
        return f"{self.role} {self.work}{', two batches in one' if self.pair else ''}"


# Algorithm 1: lines 4 to 6, lines 7 and 12, the scores of lines 10a and 10b, and line 11
FOLLOW = (Pass("gen"), Pass("ta", "parameters"), Pass("ta", "update"))
MOVE = (Pass("gen", "parameters"), Pass("gen", "update"))
INTEGRAL_KL = (Pass("ta"), Pass("ref", pair=True))
SCORE_DIVERGENCE = (Pass("ta", "input"), Pass("ref", "input", pair=True))
REWARD = (Pass("judge", "input"),)
NEEDED = {
    "diff_instruct": FOLLOW + MOVE + INTEGRAL_KL,
    "dipp": FOLLOW + MOVE + INTEGRAL_KL + REWARD,
    "sim": FOLLOW + MOVE + SCORE_DIVERGENCE,
    "distar_in": FOLLOW + MOVE + SCORE_DIVERGENCE + REWARD,
    "reward_only": MOVE + REWARD,
}


class Roles(NamedTuple):
    """All that a step works with."""

    world: LatentDiffusion
    gen: OneStepGenerator
    ta: nn.Module
    judge: nn.Module
    prompts: Prompts

    def networks(self) -> dict[str, nn.Module]:
        return {"gen": self.gen.network, "ta": self.ta, "ref": self.world.denoiser, "judge": self.judge}

    def reward(self) -> Reward:
        return self.world.reward(self.judge, self.prompts)


def seconds(function: Callable[[], Any], device: str = "cpu") -> float:
    """Of work on a GPU until all is done, of work on a CPU those of its threads, whatever else is running."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def one_pass(roles: Roles, one: Pass, batch: int) -> Callable[[], None]:
    """A pass alone, on data of the shape that it has in a step."""
    network, schedule, reward = roles.networks()[one.role], roles.world.schedule, roles.reward()
    parameters, generator = list(network.parameters()), torch.Generator().manual_seed(0)
    if one.work == "update":
        return _update(parameters)
    rows = 2 * batch if one.pair else batch
    device = next(roles.world.denoiser.parameters()).device
    x = torch.randn(rows, *roles.world.z_shape, generator=generator).to(device).requires_grad_(one.work == "input")
    t = schedule.time_of_index(torch.randint(20, 980, (rows,), generator=generator)).to(device)
    cond = roles.prompts.draw((rows,), generator)
    wanted: list[Tensor] = [x] if one.work == "input" else [*parameters] if one.work == "parameters" else []

    def run() -> None:
        with torch.set_grad_enabled(bool(wanted)), frozen([*parameters] if one.work == "input" else []):
            value = reward(x, cond) if one.role == "judge" else network(x, t, cond)
            if wanted:
                torch.autograd.grad(value, wanted, torch.ones_like(value))

    return run


def _update(parameters: Sequence[nn.Parameter]) -> Callable[[], None]:
    adam, gradients = torch.optim.Adam(parameters, lr=0.0), [torch.ones_like(value) for value in parameters]

    def run() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        adam.zero_grad(set_to_none=True)

    return run


def one_step(
    roles: Roles, settings: Settings, gen_adam: torch.optim.Optimizer, ta_adam: torch.optim.Optimizer
) -> Callable[[], Any]:
    """A step of `align`; the learning rates of both optimisers are to be 0, so that all steps are alike."""
    steps = align(
        gen=roles.gen,
        ta=roles.world.score(roles.ta),
        ref=roles.world.score(),
        reward=roles.reward(),
        schedule=roles.world.schedule,
        settings=settings,
        gen_optimizer=gen_adam,
        ta_optimizer=ta_adam,
        draw_cond=roles.prompts.draw,
        null_cond=roles.prompts.null_cond,
        generator=torch.Generator().manual_seed(0),
        steps=10**9,
    )
    return lambda: next(steps)


# -------------------------------------------------------------------------------------------------------- the miniature


def small_roles(kind: str, size: str = "mini") -> Roles:
    """The miniature of a kind, "unet" or "dit", through a folder as a trained one would come."""
    words = shapes.vocabulary()
    with tempfile.TemporaryDirectory() as place:
        world = folders.load(miniature.build(pathlib.Path(place) / kind, kind, words=words, size=size))
    judge = PreferenceReward(words).eval().requires_grad_(False)
    prompts = world.prompts(shapes.captions(shapes.split("train")))
    return Roles(world, world.generator(T_STAR), trainable_copy(world.denoiser), judge, prompts)


def small_step(roles: Roles, method: str, batch: int) -> Callable[[], Any]:
    """A step as the miniature takes it."""
    settings = settings_for(roles.world, method, batch, alpha_cfg=0.0 if method == "reward_only" else ALPHA_CFG)
    adams = [torch.optim.Adam(network.parameters(), lr=0.0) for network in (roles.gen, roles.ta)]
    return one_step(roles, settings, adams[0], adams[1])


def measure_small(roles: Roles, *, batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row a method: median over rounds of a step's time, and of its ratio to the sum of its passes."""
    passes = {one: one_pass(roles, one, batch) for needed in NEEDED.values() for one in needed}
    rows = []
    for method, needed in NEEDED.items():
        step, turns = small_step(roles, method, batch), []
        for _ in range(1 + rounds):  # the first is to warm up
            turns.append((seconds(step), sum(seconds(passes[one]) for one in needed)))
        times, ratios = [whole for whole, _ in turns[1:]], [whole / parts for whole, parts in turns[1:]]
        rows.append({"method": method, "ms": 1000 * statistics.median(times), "over": statistics.median(ratios)})
    return rows


# ------------------------------------------------------------------------------------------------------------ true size

SD15, PIXART = "stable-diffusion-v1-5/stable-diffusion-v1-5", "PixArt-alpha/PixArt-XL-2-512x512"
SHORT = {SD15: "sd15", PIXART: "pixart"}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
TEXTS = ("a red fox in the snow", "a boat")
# Two terms have large graphs at once in DI* alone, DI++ has no graph of scores; and where the reward's is kept whole
KEPT = {"checkpoint_vae": False, "checkpoint_reward": False}
BERT_BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step to be measured.

    reference: a known hub id, or a folder, of which only the descriptions are read. reward: "image_reward" with random
    weights, or "module:function". rounds: steps that are timed, after `warm_up` others.
    """

    reference: str
    method: Method = "dipp"
    profile: str = "cpu"
    switches: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "image_reward"
    device: str = "cpu"
    warm_up: int = 0
    rounds: int = 1

    @property
    def turned(self) -> Switches:
        return memory.switched(self.profile, self.switches)

    def stage(self) -> Stage:
        """What the step computes with; memory and time depend on guidance alone, which asks the reference twice."""
        return Stage(
            method=self.method,
            alpha_rew=10.0,
            alpha_cfg=1.5,
            huber_c=0.1,
            ta_steps=1,
            timesteps=[20, 980],
            max_grad_norm=0.0,
            steps=1,
            gen_lr=1e-5,
            ta_lr=1e-5,
            betas=[0.0, 0.99],
            flat=0.5,
            ema=0.9,
        )


def cases(device: str) -> dict[str, Case]:
    """What is measured on a CPU or on a GPU, by name; on a GPU also every memory switch of SD1.5, turned by itself."""
    methods: tuple[Method, ...] = ("dipp", "distar_in")
    found = {}
    if device == "cpu":
        for method in methods:
            for reference, short in SHORT.items():
                found[f"{short}.{method}"] = Case(reference=reference, method=method)
        return found | {"sd15.distar_in_kept": Case(reference=SD15, method="distar_in", switches=KEPT)}
    for profile in ("gpu24", "gpu80"):
        own = memory.PROFILES[profile]
        names = ("checkpoint_denoiser", "checkpoint_vae", "checkpoint_reward", "tiny_vae", "eight_bit_adam")
        turns: list[dict[str, Any]] = [{name: not getattr(own, name)} for name in names]
        turns += [{"dtype": "float32"}, {"roles": "full" if own.roles == "lora" else "lora"}]
        for method in methods:
            for reference in SHORT:
                base = Case(reference=reference, method=method, profile=profile, device=device, warm_up=3, rounds=10)
                found[f"{SHORT[reference]}.{profile}.{method}"] = base
                for turn in turns if reference == SD15 else []:
                    name = next(f"{key}={value}".lower() for key, value in turn.items())
                    found[f"sd15.{profile}.{method}.{name}"] = replace(base, switches=turn)
    return found


def network(description: Mapping[str, Any], dtype: torch.dtype, device: str) -> nn.Module:
    """The network of a description with random weights, frozen."""
    library, name = folders.CLASSES[description["_class_name"]]
    cls = getattr(importlib.import_module(library), name)
    taken, *_ = cls.extract_init_dict(dict(description))
    with torch.device(device):
        return cls(**taken).to(device, dtype).eval().requires_grad_(False)


def new_world(described: Mapping[str, dict], switches: Switches, device: str) -> LatentDiffusion:
    """A diffusion of this description without its text encoder; its decoder is the tiny one where that is switched."""
    dtype = getattr(torch, switches.dtype)
    vae = network({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else described["vae"], dtype, device)
    if switches.checkpoint_vae:
        lora.recompute_vae(vae)
    scale = 2 ** (len(described["vae"]["block_out_channels"]) - 1)
    unet = network(described["denoiser"], dtype, device)
    return LatentDiffusion(
        Denoiser(unet, folders.noise_schedule(NOISE), latent_scale=scale), "eps", vae=vae, noise=NOISE
    )


def new_prompts(denoiser: Denoiser, device: str) -> Prompts:
    """Random embeddings of two prompts and of the empty one; where there is a mask, it hides half of the tokens."""
    shape, generator = memory.cond_shapes(denoiser), torch.Generator().manual_seed(0)

    def leaves(rows: int) -> dict[str, Tensor]:
        found = {"tokens": torch.randn(rows, *shape["tokens"], generator=generator)}
        if "mask" in shape:
            (length,) = shape["mask"]
            found["mask"] = (torch.arange(length) < length // 2).long().expand(rows, length)
        return found

    return Prompts(TEXTS, leaves(len(TEXTS)), leaves(1)).to(device)


def write_image_reward(folder: pathlib.Path) -> nn.Module:
    """ImageReward in its official architecture with random weights; its two descriptions are written to `folder`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "snow", "boat"]
    words = special + [f"word{number}" for number in range(30522 - len(special))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "med_config.json").write_text(json.dumps(BERT_BASE))
    found = rewards.image_reward_network(folder / "med_config.json", folder / "vocab.txt")
    for weight in found.mlp.parameters():
        weight.data.mul_(30)  # untouched, the head gives every picture nearly the same reward
    return found


def large_roles(case: Case) -> Roles:
    """All that a step works with; adapters start off zero, where half of their gradients would be zero."""
    torch.manual_seed(0)
    switches = case.turned
    if case.reward == "image_reward":
        with tempfile.TemporaryDirectory() as place:
            about = rewards.SCORERS["image_reward"].about
            judge: Any = rewards.ImageRewardJudge(about, write_image_reward(pathlib.Path(place)))
        if switches.checkpoint_reward:
            judge.recompute()
    else:
        judge = rewards.load(case.reward)
    world = new_world(folders.describe(case.reference), switches, case.device)
    student = full.new_student(world, world, 999, switches)
    if switches.roles == "lora":
        with torch.no_grad():
            for parameter in (*student.gen.parameters(), *student.ta.parameters()):
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return Roles(world, student.gen, student.ta, judge.to(case.device), new_prompts(world.denoiser, case.device))


def look_at_gradients(optimizer: torch.optim.Optimizer, seen: dict[str, int]) -> None:
    """Before its first update count the tensors that learn, and those whose gradient is finite, and is not zero."""

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grads = [parameter.grad for parameter in learning if parameter.grad is not None]
        seen["tensors"] = seen.get("tensors", 0) + len(learning)
        seen["finite"] = seen.get("finite", 0) + sum(bool(grad.isfinite().all()) for grad in grads)
        seen["not_zero"] = seen.get("not_zero", 0) + sum(bool(grad.any()) for grad in grads)
        hook.remove()

    hook = optimizer.register_step_pre_hook(look)


def estimated(case: Case) -> float:
    """What the estimate says that this takes while it trains, in GiB."""
    star = case.method.startswith("distar")
    task = Task(reference=case.reference, rewards=(case.reward,), star=star, prompts=len(TEXTS))
    parts = memory.estimate(task, case.turned, "CPU" if case.device == "cpu" else "GPU")
    return sum(part.memory for part in parts if not part.before) / GIB


def measure_large(case: Case) -> dict[str, Any]:
    """Seconds a step (median), peak memory beside the estimate, gradients seen; meant for a process of its own."""
    switches = case.turned
    seen: dict[str, int] = {}
    roles, adam = large_roles(case), full.find_adam(switches, case.device)
    averaged = [parameter.detach().clone() for parameter in roles.gen.parameters()]  # as a long run keeps it
    adams = []
    for learning in (roles.gen, roles.ta):  # with Adam's state in place before the first step
        adams.append(adam(learning.parameters(), lr=0.0, betas=(0.0, 0.99)))
        for parameter in learning.parameters():
            parameter.grad = torch.zeros_like(parameter)
        adams[-1].step()
        adams[-1].zero_grad(set_to_none=True)
        look_at_gradients(adams[-1], seen)
    step = one_step(roles, full.settings_of(case.stage(), roles.world, switches.batch), adams[0], adams[1])
    for _ in range(case.warm_up):
        step()
    if case.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    spent = statistics.median(seconds(step, case.device) for _ in range(case.rounds))
    if case.device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (GIB if sys.platform == "darwin" else 2**20)
    else:
        peak = torch.cuda.max_memory_allocated() / GIB
    averaged.clear()
    return {"batch": switches.batch, "seconds": spent, "peak_gib": peak, "estimate_gib": estimated(case), **seen}


def alone(case: Case) -> dict[str, Any]:
    """`measure_large` in a process of its own; where it comes to nothing, {"failed": why}, one line."""
    needed, machine = estimated(case) * GIB, memory.here("bench", case.device)
    if needed > machine.memory:
        return {"failed": f"needs {needed / GIB:.1f} GiB, {machine.memory / GIB:.1f} GiB are free"}
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(measure_large, case).result()
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except (BrokenProcessPool, InputError) as error:
        return {"failed": first_line(error)}


# -------------------------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m dipp_core.training.bench")
    parser.add_argument("--size", choices=("tiny", "mini", "full"), default="mini")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --size full")
    parser.add_argument("--only", action="append", metavar="CASE", help="of --size full; may be given again")
    parser.add_argument("--out", type=pathlib.Path, help="write the table there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of the miniature that are timed")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    try:
        if given.size != "full":
            print(f"batch {BATCH}, {given.rounds} rounds, {torch.get_num_threads()} threads; medians")
            for kind in miniature.KINDS:
                print(f"\n{kind:20} {'a step, ms':>10} {'over its passes':>16}")
                for row in measure_small(small_roles(kind, given.size), batch=BATCH, rounds=given.rounds):
                    print(f"{row['method']:20} {row['ms']:10.1f} {row['over']:16.2f}", flush=True)
                    rows.append({"kind": kind, **row})
        else:
            plan = cases(full.find_device(given.device))
            for name in given.only or plan:
                if name not in plan:
                    raise InputError(f"there is no case {name!r}: {', '.join(plan)}")
                row = alone(plan[name])
                print(f"{name}: {row.get('failed') or ', '.join(f'{k} {v:.4g}' for k, v in row.items())}", flush=True)
                rows.append({"case": name, **row})
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if given.out:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(given.out, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
