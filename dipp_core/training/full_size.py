"""A run at true size with random weights, for `full_size_step` to measure: memory and time are those of a real one.

Networks are built from their descriptions (`worlds.public`), so no file is needed; roles, settings and switches are
those of a run at full scale (`training.full_scale`). Prompts are random embeddings of the right shape, the reward is
ImageReward in its official architecture. The numbers that they compute mean nothing.
"""

import importlib
import json
import pathlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.book.full_schema import FullScale
from dipp_core.models import folders, lora
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.prompts import Prompts
from dipp_core.rewards import public as rewards
from dipp_core.training import bench, footprint, full_scale, preflight

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
    are timed, after `warm_up` others; passes: of the step's networks too, see `training.bench`.
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

    def run(self) -> FullScale:
        """The run at full scale that this is a step of."""
        return FullScale(
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
    library, name = folders.CLASSES[description["_class_name"]]
    cls = getattr(importlib.import_module(library), name)
    taken, *_ = cls.extract_init_dict(dict(description))
    with torch.device(device):
        return cls(**taken).to(device, dtype).eval().requires_grad_(False)


def new_world(description: Mapping[str, dict], switches: preflight.Switches, device: str) -> LatentDiffusion:
    """A diffusion of this description without its text encoder; its decoder is the tiny one where that is switched."""
    how = {"dtype": getattr(torch, switches.dtype), "device": device}
    vae = network({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else description["vae"], **how)
    if switches.checkpoint_vae:
        lora.recompute_vae(vae)
    scale = 2 ** (len(description["vae"]["block_out_channels"]) - 1)
    denoiser = Denoiser(network(description["denoiser"], **how), folders.noise_schedule(NOISE), latent_scale=scale)
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
    network = rewards.image_reward_network(folder / "med_config.json", folder / "vocab.txt")
    for weight in network.mlp.parameters():
        weight.data.mul_(30)  # untouched, the head gives every picture nearly the same reward
    return network


def new_judge(case: Case) -> nn.Module | None:
    """The reward on pictures, on the device; a full-size one recomputes where that is switched."""
    if case.reward != "image_reward":
        return rewards.load(case.reward).to(case.device) if case.reward else None
    with tempfile.TemporaryDirectory() as place:
        about = rewards.SCORERS["image_reward"].about
        judge = rewards.ImageRewardJudge(about, write_image_reward(pathlib.Path(place)))
    if case.turned.checkpoint_reward:
        judge.recompute()
    return judge.to(case.device)


def new_roles(case: Case) -> bench.Roles:
    """All that a step works with; adapters start off zero, where half of their gradients would be zero."""
    torch.manual_seed(0)
    switches = case.turned
    judge = new_judge(case)
    world = new_world(folders.describe(case.reference), switches, case.device)
    gen, ta = full_scale.new_roles(world, world, NUMBERS["t_star"], switches)
    if switches.roles == "lora":
        with torch.no_grad():
            for parameter in (*gen.parameters(), *ta.parameters()):
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return bench.Roles(world, gen, ta, judge, new_prompts(world.denoiser, case.device))
