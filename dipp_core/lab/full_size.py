"""A step of Algorithm 1 at true size with random weights: that it runs, and what it takes. One measurement a process.

    python -m dipp_core.lab.full_size '{"reference": "stable-diffusion-v1-5/stable-diffusion-v1-5", "method": "dipp"}'

prints one line of JSON. Networks are built from their descriptions (`worlds.public`), so no file is needed; roles,
settings and switches are those of a run at full scale (`lab.full_scale`). Prompts are random embeddings of the right
shape, the reward is ImageReward in its official architecture. Random weights take the memory and the time of learned
ones; the numbers that they compute mean nothing.
"""

import contextlib
import importlib
import json
import pathlib
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from dipp_core.lab import bench, footprint, full_scale, preflight
from dipp_core.method import algorithm
from dipp_core.method.staged import Backward, StagedGradient, Term, run_loss
from dipp_core.rewards import base as rewards
from dipp_core.rewards import image_reward
from dipp_core.worlds import latent_files, memory, public
from dipp_core.worlds.latent import Denoiser, LatentDiffusion
from dipp_core.worlds.prompts import Prompts

GIB = 2**30
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
TEXTS = ("a red fox in the snow", "a boat")
# what the step computes with; memory and time do not depend on these, but for guidance, which asks the reference twice
NUMBERS = {"alpha_rew": 10.0, "alpha_cfg": 1.5, "huber_c": 0.1, "ta_steps": 1, "timesteps": [20, 980], "t_star": 999}
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
    """What is measured.

    reference: a known hub id, or a folder, of which only the descriptions are read. reward: "image_reward" with random
    weights, "module:function", or "" for none. joint: one backward pass through all terms at once. rounds: steps that
    are timed, after `warm_up` others; passes: of the step's networks too, see `lab.bench`.
    """

    reference: str
    method: str = "dipp"
    profile: str = "cpu"
    switches: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "image_reward"
    joint: bool = False
    device: str = "cpu"
    warm_up: int = 0
    rounds: int = 1
    passes: bool = False
    threads: int = 0

    @property
    def turned(self) -> preflight.Switches:
        return preflight.switched(self.profile, self.switches)

    def run(self) -> full_scale.FullScale:
        """The run at full scale that this is a step of."""
        return full_scale.FullScale(
            reference=self.reference,
            scale="full",
            seed=0,
            start=full_scale.THE_REFERENCE,
            prediction="as its folder says",
            profile=self.profile,
            switches=dict(self.switches),
            method=self.method,
            rewards=[{"reward": self.reward}] if self.reward else [],
            prompts="",
            tiny_vae="",
            fetch=False,
            device=self.device,
            **(NUMBERS if self.reward else NUMBERS | {"alpha_rew": 0.0}),
        )


def estimate(case: Case) -> float:
    """What the preflight says that this takes while it trains, in GiB."""
    task = full_scale.task_of(case.run(), len(TEXTS))
    parts = preflight.estimate(task, case.turned, "CPU" if case.device == "cpu" else "GPU")
    return sum(part.memory for part in parts if not part.before) / GIB


# ------------------------------------------------------------------------------------------------------------ building


def network(description: Mapping[str, Any], *, dtype: torch.dtype, device: str) -> nn.Module:
    """The network of a description with random weights, frozen."""
    library, name = latent_files.CLASSES[description["_class_name"]]
    cls = getattr(importlib.import_module(library), name)
    taken, *_ = cls.extract_init_dict(dict(description))
    with torch.device(device):
        return cls(**taken).to(dtype).eval().requires_grad_(False)


def new_world(description: Mapping[str, dict], switches: preflight.Switches, device: str) -> LatentDiffusion:
    """A diffusion of this description without its text encoder; its decoder is the tiny one where that is switched."""
    how = {"dtype": getattr(torch, switches.dtype), "device": device}
    vae = network({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else description["vae"], **how)
    if switches.checkpoint_vae:
        memory.recompute_vae(vae)
    scale = 2 ** (len(description["vae"]["block_out_channels"]) - 1)
    denoiser = Denoiser(network(description["denoiser"], **how), latent_files.noise_schedule(NOISE), latent_scale=scale)
    return LatentDiffusion(denoiser, "eps", vae=vae, noise=NOISE)


def new_prompts(denoiser: Denoiser, device: str) -> Prompts:
    """Random embeddings of two prompts and of the empty one; where there is a mask, it hides half of the tokens."""
    shapes, generator = footprint.cond_shape(denoiser), torch.Generator().manual_seed(0)

    def leaves(rows: int) -> dict[str, Tensor]:
        length, width = shapes["tokens"]
        mask = {"mask": (torch.arange(length) < length // 2).long().expand(rows, length)} if "mask" in shapes else {}
        return {"tokens": torch.randn(rows, length, width, generator=generator)} | mask

    return Prompts(TEXTS, leaves(len(TEXTS)), leaves(1)).to(device)


def write_image_reward(folder: pathlib.Path) -> nn.Module:
    """ImageReward in its official architecture with random weights; its two descriptions are written to `folder`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "snow", "boat"]
    words = special + [f"word{number}" for number in range(30522 - len(special))]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "med_config.json").write_text(json.dumps(BERT_BASE))
    network = image_reward.build(folder / "med_config.json", folder / "vocab.txt")
    for weight in network.mlp.parameters():
        weight.data.mul_(30)  # untouched, the head gives every picture nearly the same reward
    return network


def new_judge(case: Case) -> nn.Module | None:
    """The reward on pictures, on the device; a full-size one recomputes where that is switched."""
    if case.reward != "image_reward":
        return rewards.load(case.reward).to(case.device) if case.reward else None
    with tempfile.TemporaryDirectory() as place:
        judge = image_reward.ImageRewardJudge(image_reward.ABOUT, write_image_reward(pathlib.Path(place)))
    if case.turned.checkpoint_reward:
        image_reward.recomputed(judge.network)
    return judge.to(case.device)


def new_roles(case: Case) -> bench.Roles:
    """All that a step works with; adapters start off zero, where half of their gradients would be zero."""
    torch.manual_seed(0)
    switches = case.turned
    judge = new_judge(case)
    world = new_world(public.describe(case.reference), switches, case.device)
    gen, ta = full_scale.new_roles(world, world, NUMBERS["t_star"], switches)
    if switches.roles == "lora":
        with torch.no_grad():
            for parameter in (*gen.parameters(), *ta.parameters()):
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return bench.Roles(world, gen, ta, judge, new_prompts(world.denoiser, case.device))


# ------------------------------------------------------------------------------------------------------------ measuring


def joint_backward(x0: Tensor, terms: Mapping[str, Term], backward: Backward) -> StagedGradient:
    """What `staged_backward` does, the other way: the graphs of all terms are alive until one backward pass."""
    values = {name: term.value(x0) for name, term in terms.items()}
    backward(sum(run_loss(terms[name].scale * value) for name, value in values.items()), None)
    return StagedGradient({name: value.detach().mean(-1) for name, value in values.items()}, {}, torch.zeros(()))


def look_at_gradients(name: str, optimizer: torch.optim.Optimizer, seen: dict[str, dict[str, int]]) -> None:
    """Before every update count the tensors that learn, and those whose gradient is finite, and is not zero."""

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grads = [parameter.grad for parameter in learning if parameter.grad is not None]
        finite, moves = (sum(bool(f(grad)) for grad in grads) for f in (lambda g: g.isfinite().all(), torch.any))
        seen[name] = {"tensors": len(learning), "finite": finite, "not_zero": moves}

    optimizer.register_step_pre_hook(look)


def new_step(case: Case, roles: bench.Roles, seen: dict[str, dict[str, int]]) -> Callable[[], Any]:
    """A step of `align`, with Adam's state in place before the first; the learning rate is 0, all steps are alike."""
    adam, optimizers = full_scale.adam(eight_bit=case.turned.eight_bit_adam, device=case.device), {}
    for name, learning in (("gen", roles.gen), ("ta", roles.ta)):
        optimizers[name] = adam(learning.parameters(), lr=0.0, betas=(0.0, 0.99))
        for parameter in learning.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        look_at_gradients(name, optimizers[name], seen)
    steps = algorithm.align(
        gen=roles.gen,
        ta=roles.world.score(roles.ta),
        ref=roles.world.score(),
        reward=roles.reward() if roles.judge else None,
        schedule=roles.world.schedule,
        settings=full_scale.settings_of(case.run(), case.turned, roles.world),
        gen_optimizer=optimizers["gen"],
        ta_optimizer=optimizers["ta"],
        draw_cond=roles.prompts.draw,
        null_cond=roles.prompts.null_cond,
        generator=torch.Generator().manual_seed(0),
        steps=10**9,
    )
    return lambda: next(steps)


def reset_peak(device: str) -> None:
    """Forget the peak of what was before, where that can be done; elsewhere the peak is that of the whole process."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> dict[str, float]:
    """In GiB: "peak", since `reset_peak`; of a GPU "reserved" too, of main memory "whole", that of the whole process."""
    if device != "cpu":
        names = {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {name: size / GIB for name, size in names.items()}
    unit = GIB if sys.platform == "darwin" else 2**20
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    steps = int(found[1]) / 2**20 if found else whole
    return {"peak": steps, "whole": max(whole, steps)}


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds, with all that was asked of a GPU done."""

    def whole() -> None:
        function()
        if device != "cpu":
            torch.cuda.synchronize()

    if device != "cpu":
        torch.cuda.synchronize()
    return bench.seconds(whole)


def over_passes(case: Case, roles: bench.Roles, step: Callable[[], Any]) -> float:
    """Time of a step over the sum of its networks' passes, made with the same switches, by turns with it."""
    needed = [one for one in bench.NEEDED[case.method] if one.role != "judge" or roles.judge]
    work = {bench.STEP: step} | {one: bench.one_pass(roles, one, case.turned.batch) for one in needed}
    turns = [{what: timed(f, case.device) for what, f in work.items()} for _ in range(1 + case.rounds)]
    return bench.step_over_passes(turns[1:])


def measure(case: Case) -> dict[str, Any]:
    """Seconds a step (median), peak memory over the steps, gradients seen, and the step over its raw passes."""
    if case.threads:
        torch.set_num_threads(case.threads)
    roles, seen = new_roles(case), {}
    averaged = [parameter.detach().clone() for parameter in roles.gen.parameters()]  # as a long run keeps it
    step = new_step(case, roles, seen)
    with mock.patch.object(algorithm, "staged_backward", joint_backward if case.joint else algorithm.staged_backward):
        for _ in range(case.warm_up):
            step()
        reset_peak(case.device)
        seconds = statistics.median(timed(step, case.device) for _ in range(case.rounds))
        found = {"seconds": seconds, "gradients": seen, "batch": case.turned.batch, "threads": torch.get_num_threads()}
        found |= {"memory": peak(case.device), "averaged": len(averaged)}
        return found | ({"over_passes": over_passes(case, roles, step)} if case.passes else {})


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    try:
        found = measure(case)
    except torch.OutOfMemoryError:
        found = {"failed": "out of memory"}
    except full_scale.FullScaleError as error:  # of a switch that needs what is not here
        found = {"failed": str(error)}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
