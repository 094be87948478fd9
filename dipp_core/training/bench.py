"""What a training step costs.

    make bench          the miniature, on a CPU, all methods
    make bench-large    SD1.5 and PixArt-alpha at 512 pixels, on a CPU
    make bench-gpu      the same on a GPU, and every memory switch

A step is told as a ratio to the passes through networks that it cannot do without. Step and passes of the miniature are
timed by turns, so that a busy machine disturbs both alike; only the ratio means something. At true size there are also
seconds, peak memory beside the estimate of `training.memory`, and how many gradients are finite; the ratio on a GPU
alone, since passes would double the half hour of a CPU. Weights and embeddings are random, the reward is ImageReward in
its official architecture: memory and time are those of a real run, what is computed means nothing. Every case has a
process of its own. What was measured for this book stands in reports/tables/30_full_scale.
"""

import argparse
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

import pandas as pd
import torch
from torch import Tensor, nn

from dipp_core.files import InputError, first_line
from dipp_core.method.algorithm import Reward, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.staged import frozen
from dipp_core.models import folders, lora, miniature
from dipp_core.models.folders import PIXART, SD15
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.prompts import Prompts
from dipp_core.rewards import public as rewards
from dipp_core.rewards import tiny
from dipp_core.rewards.shapes import PreferenceReward
from dipp_core.training import full, memory
from dipp_core.training.memory import GIB, Switches, Task
from dipp_core.worlds import shapes

BATCH, ROUNDS, T_STAR, ALPHA_CFG = 32, 5, 625, 0.5


class Pass(NamedTuple):
    """One thing that a step has to do.

    role: gen, ta or ref, which are denoisers, or judge, the VAE's decoder and the learned reward behind it.
    work: "forward" without any gradient; forward and backward for the gradient of "parameters" or of "input"; or
    "update", Adam's step on all parameters. pair: both halves of guidance in one batch, which is then twice as large.
    """

    role: str
    work: str = "forward"
    pair: bool = False


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
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def one_pass(roles: Roles, one: Pass, batch: int) -> Callable[[], None]:
    """A pass alone, on data of the shape that it has in a step."""
    network, reward = roles.networks()[one.role], roles.reward()
    parameters, generator = list(network.parameters()), torch.Generator().manual_seed(0)
    if one.work == "update":
        return _update(parameters)
    rows = 2 * batch if one.pair else batch
    device = next(roles.world.denoiser.parameters()).device
    x = torch.randn(rows, *roles.world.z_shape, generator=generator).to(device).requires_grad_(one.work == "input")
    t = roles.world.schedule.time_of_index(torch.randint(20, 980, (rows,), generator=generator)).to(device)
    cond = roles.prompts.draw((rows,), generator)
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    wanted: dict[str, list[Any]] = {"forward": [], "input": [x], "parameters": learning}

    def run() -> None:
        asked = wanted[one.work]
        with torch.set_grad_enabled(bool(asked)), frozen([*parameters] if one.work == "input" else []):
            value = reward(x, cond) if one.role == "judge" else network(x, t, cond)
            if asked:
                torch.autograd.grad(value, asked, torch.ones_like(value))

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
    roles: Roles, method: str, batch: int, adams: Sequence[torch.optim.Optimizer] | None = None
) -> Callable[[], Any]:
    """A step of `align`; the learning rates of both optimisers are 0, so that all steps are alike."""
    gen_adam, ta_adam = adams or [torch.optim.Adam(network.parameters(), lr=0.0) for network in (roles.gen, roles.ta)]
    alpha_cfg = 0.0 if method == "reward_only" else ALPHA_CFG
    steps = align(
        gen=roles.gen,
        ta=roles.world.score(roles.ta),
        ref=roles.world.score(),
        reward=roles.reward(),
        schedule=roles.world.schedule,
        settings=miniature.settings_for(roles.world, method, batch, alpha_cfg=alpha_cfg),
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


def measure_small(roles: Roles, *, batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row a method: median over rounds of a step's time, and of its ratio to the sum of its passes."""
    passes = {one: one_pass(roles, one, batch) for needed in NEEDED.values() for one in needed}
    rows = []
    for method, needed in NEEDED.items():
        step, turns = one_step(roles, method, batch), []
        for _ in range(1 + rounds):  # the first is to warm up
            turns.append((seconds(step), sum(seconds(passes[one]) for one in needed)))
        times, ratios = [whole for whole, _ in turns[1:]], [whole / parts for whole, parts in turns[1:]]
        rows.append({"method": method, "ms": 1000 * statistics.median(times), "over": statistics.median(ratios)})
    return rows


# ------------------------------------------------------------------------------------------------------------ true size

SHORT = {SD15: "sd15", PIXART: "pixart"}
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
TEXTS = ("a red fox in the snow", "a boat")
# in DI* two terms have large graphs at once, in DI++ there is no graph of scores; and the reward's is kept whole
KEPT = {"checkpoint_vae": False, "checkpoint_reward": False}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step to be measured.

    reference: a known hub id, or a folder, of which only the descriptions are read. reward: "image_reward" with random
    weights, or "module:function". rounds: steps that are timed.
    """

    reference: str
    method: str = "dipp"
    profile: str = "cpu"
    switches: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "image_reward"
    device: str = "cpu"
    rounds: int = 1

    @property
    def turned(self) -> Switches:
        return memory.switched(self.profile, self.switches)


def cases(device: str) -> dict[str, Case]:
    """What is measured on a CPU or on a GPU, by name; on a GPU also every memory switch of SD1.5, turned by itself."""
    pairs = [(reference, method) for reference in SHORT for method in ("dipp", "distar_in")]
    if device == "cpu":
        found = {f"{SHORT[one]}.{method}": Case(reference=one, method=method) for one, method in pairs}
        return found | {"sd15.distar_in_kept": Case(reference=SD15, method="distar_in", switches=KEPT)}
    found = {}
    for profile in ("gpu24", "gpu80"):
        own = memory.PROFILES[profile]
        names = ("checkpoint_denoiser", "checkpoint_vae", "checkpoint_reward", "tiny_vae", "eight_bit_adam")
        turns: list[dict[str, Any]] = [{name: not getattr(own, name)} for name in names]
        turns += [{"dtype": "float32"}, {"roles": "full" if own.roles == "lora" else "lora"}]
        for reference, method in pairs:
            for turn in [{}, *(turns if reference == SD15 else [])]:
                words = [SHORT[reference], profile, method, *(f"{key}={value}".lower() for key, value in turn.items())]
                case = Case(reference=reference, method=method, profile=profile, device=device, rounds=10)
                found[".".join(words)] = replace(case, switches=turn)
    return found


def network(description: Mapping[str, Any], dtype: torch.dtype, device: str) -> Any:
    """The network of a description with random weights, frozen."""
    cls: Any = type(folders.on_meta(description))
    with torch.device(device):
        return cls.from_config(dict(description)).to(device, dtype).eval().requires_grad_(False)


def new_world(described: Mapping[str, dict], switches: Switches, device: str) -> LatentDiffusion:
    """A diffusion of this description without its text encoder; its decoder is the tiny one where that is switched."""
    dtype = getattr(torch, switches.dtype)
    vae = network({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else described["vae"], dtype, device)
    if switches.checkpoint_vae:
        lora.recompute_vae(vae)
    scale = 2 ** (len(described["vae"]["block_out_channels"]) - 1)
    denoiser = Denoiser(
        network(described["denoiser"], dtype, device), folders.noise_schedule(NOISE), latent_scale=scale
    )
    return LatentDiffusion(denoiser, "eps", vae=vae, noise=NOISE)


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


def new_image_reward() -> rewards.ImageRewardJudge:
    """ImageReward in its official architecture with random weights."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "snow", "boat", *map("word{}".format, range(30514))]
    with tempfile.TemporaryDirectory() as place:
        described, listed = pathlib.Path(place) / "med_config.json", pathlib.Path(place) / "vocab.txt"
        described.write_text(json.dumps(tiny.med_config(len(words) + 2, 768)))
        listed.write_text("\n".join(words))
        found = rewards.image_reward_network(described, listed)
    for weight in found.mlp.parameters():
        weight.data.mul_(30)  # untouched, the head gives every picture nearly the same reward
    return rewards.ImageRewardJudge(rewards.SCORERS["image_reward"].about, found)


def large_roles(case: Case) -> Roles:
    """All that a step works with; adapters start off zero, where half of their gradients would be zero."""
    torch.manual_seed(0)
    switches = case.turned
    judge: Any = new_image_reward() if case.reward == "image_reward" else rewards.load(case.reward)
    if case.reward == "image_reward" and switches.checkpoint_reward:
        judge.recompute()
    world = new_world(folders.describe(case.reference), switches, case.device)
    student = full.new_student(world, world, 999, switches)
    if switches.roles == "lora":
        with torch.no_grad():
            for parameter in (*student.gen.parameters(), *student.ta.parameters()):
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return Roles(world, student.gen, student.ta, judge.to(case.device), new_prompts(world.denoiser, case.device))


def look_at_gradients(optimizer: torch.optim.Optimizer, seen: dict[str, int]) -> None:
    """Before its next update count the tensors that learn, and those whose gradient is finite, and is not zero."""

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
    switches, on_cpu = case.turned, case.device == "cpu"
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
    step = one_step(roles, case.method, switches.batch, adams)
    for _ in range(min(3, case.rounds - 1)):
        step()
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()
    spent = statistics.median(seconds(step, case.device) for _ in range(case.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (GIB if sys.platform == "darwin" else 2**20)
    found = {
        "batch": switches.batch,
        "seconds": spent,
        "peak_gib": peak if on_cpu else torch.cuda.max_memory_allocated() / GIB,
        "estimate_gib": estimated(case),
        **seen,
    }
    if case.rounds > 1:
        averaged.clear()
        for one in adams:
            one.state.clear()  # room for those of the passes
        parts = 0.0
        for needed in NEEDED[case.method]:
            run = one_pass(roles, needed, switches.batch)
            parts += statistics.median(seconds(run, case.device) for _ in range(case.rounds))
        found["step_over_passes"] = spent / parts
    return found


def alone(case: Case) -> dict[str, Any]:
    """`measure_large` in a process of its own; where it comes to nothing, {"failed": why}, one line."""
    needed, machine = estimated(case) * GIB, memory.here([pathlib.Path("bench")], case.device)
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
    parser.add_argument("--out", type=pathlib.Path, help="write the table there, as CSV")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of the miniature that are timed")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    if given.size != "full":
        print(f"batch {BATCH}, {given.rounds} rounds, {torch.get_num_threads()} threads; medians")
        for kind in miniature.KINDS:
            print(f"\n{kind:20} {'a step, ms':>10} {'over its passes':>16}")
            for row in measure_small(small_roles(kind, given.size), batch=BATCH, rounds=given.rounds):
                print(f"{row['method']:20} {row['ms']:10.1f} {row['over']:16.2f}", flush=True)
                rows.append({"kind": kind, **row})
    else:
        try:
            plan = cases(full.find_device(given.device))
            if unknown := [name for name in given.only or () if name not in plan]:
                raise InputError(f"there is no case {unknown[0]!r}: {', '.join(plan)}")
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        for name in given.only or plan:
            row = alone(plan[name])
            print(f"{name}: {row.get('failed') or ', '.join(f'{k} {v:.4g}' for k, v in row.items())}", flush=True)
            rows.append({"case": name, **row})
    if given.out:
        pd.DataFrame(rows).to_csv(given.out, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
