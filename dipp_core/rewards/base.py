"""Rewards on pictures: what they have in common, weighted sums of them, one's own function, and loading by name.

A reward is a `Judge`: (images (B, 3, H, W) in [0, 1], B prompts) -> (B,), differentiable in the pictures, frozen. On
latents it becomes a reward of `align` through `LatentDiffusion.reward(judge, prompts)`.
"""

import functools
import importlib
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dipp_core.rewards.files import RewardError, first_line
from dipp_core.rewards.pixels import at_least_float32

NAMES = ("image_reward", "hpsv2", "hpsv2.1", "pickscore", "clipscore", "aesthetic")


@dataclass(frozen=True)
class About:
    """What a reader must know before numbers of a reward are compared; a licence is given as far as it is known.

    input_size: pixels a side that the network sees, None where that is not known. prompt_tokens: how much of a prompt
    is read, the rest is cut off; 0 where prompts are not read, None where it is not known. scale: range and units.
    hazards: what goes wrong when numbers of others are put beside these.
    """

    name: str
    version: str = ""
    source: str = ""
    code_licence: str = "unknown"
    weights_licence: str = "unknown"
    input_size: int | None = None
    prompt_tokens: int | None = None
    scale: str = "unknown"
    hazards: str = ""


class Judge(nn.Module):
    """A reward: frozen, always in evaluation mode, and outside of autocast, so that it computes in its own dtype.

    Made by `load`. A subclass gives `score`: checked pictures and prompts -> (B,).
    """

    def __init__(self, about: About, network: nn.Module | None = None):
        super().__init__()
        self.about, self.network = about, network
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Judge":
        """Stays in evaluation mode, whatever is asked: dropout would make the reward a random number."""
        return super().train(False)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        name = self.about.name
        _check_inputs(name, images, prompts)
        if any(module.training for module in self.modules()):  # a part was set to train by itself
            self.eval()
        with torch.autocast(images.device.type, enabled=False):
            value = self.score(images, list(prompts))
        if not isinstance(value, Tensor) or value.shape != (len(images),):
            got = f"the shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise RewardError(f"{name} must give one value a picture, a tensor of shape ({len(images)},), not {got}")
        if images.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            raise RewardError(f"{name} gives the pictures no gradient: it can judge under torch.no_grad(), not train")
        return at_least_float32(value)


def _check_inputs(name: str, images: Tensor, prompts: Sequence[str]) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise RewardError(f"{name} takes pictures as a floating-point tensor (B, 3, H, W) in [0, 1], not {got}")
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else str(len(prompts))
        raise RewardError(f"{name} takes a list with one prompt for every picture: {len(images)} pictures, {got} given")
    low, high = (value.item() for value in images.detach().aminmax())
    if low < -0.5 or high > 1.5:  # beyond what a decoder overshoots
        raise RewardError(f"{name} takes pictures in [0, 1]; these reach from {low:.3g} to {high:.3g}")


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Gradient checkpointing: keep no activations inside these blocks, compute them again in the backward pass."""
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


# ------------------------------------------------------------------------------------------- sums and one's own rewards


class WeightedSum(Judge):
    """sum of weight * reward. Rewards differ in scale, so weights mean nothing without the rewards' spread."""

    def __init__(self, terms: Sequence[tuple[float, Judge]]):
        if not terms:
            raise RewardError("a weighted sum needs at least one reward")
        name = " + ".join(f"{weight:g} {judge.about.name}" for weight, judge in terms)
        hazards = "; ".join(f"{judge.about.name}: {judge.about.hazards}" for _, judge in terms if judge.about.hazards)
        scale = "that of its terms: " + "; ".join(f"{judge.about.name}: {judge.about.scale}" for _, judge in terms)
        super().__init__(About(name=name, source="sum", scale=scale, hazards=hazards))
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.judges = nn.ModuleList(judge for _, judge in terms)

    def parts(self, images: Tensor, prompts: Sequence[str]) -> list[tuple[str, Tensor]]:
        """Every reward by itself, (name, (B,)), without its weight: what a log should show."""
        return [(judge.about.name, judge(images, prompts)) for judge in self.judges]

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        values = [value for _, value in self.parts(images, prompts)]
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))


class OwnReward(Judge):
    """A function (images, prompts) -> (B,) of one's own; a module among them is frozen."""

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str):
        module = function if isinstance(function, nn.Module) else None
        super().__init__(About(name=name, source="one's own"), module)
        self.function = function

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.function(images, prompts)


def import_function(path: str) -> Callable:
    """The function named by "module:function"."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise RewardError(f"{path}: cannot be imported ({type(error).__name__}: {first_line(error)})") from None
    if not callable(found):
        raise RewardError(f"{path} is a {type(found).__name__}, not a function (images, prompts) -> values")
    return found


# -------------------------------------------------------------------------------------------------------------- loading


def load(
    spec: str | Callable | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    source: str | pathlib.Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
) -> Judge:
    """The reward that `spec` names.

    spec: one of NAMES with its files in `source`, a folder or a hub id; "module:function" or a function of one's own;
    or a list of {"reward": spec, "source": .., "weight": 1.0}, their weighted sum.
    checkpointing: less memory in the backward pass, at the price of another forward pass.
    """
    options = {"dtype": dtype, "device": device, "checkpointing": checkpointing}
    if isinstance(spec, Mapping):
        spec = [spec]
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return WeightedSum([_term(term, options) for term in spec])
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return spec if isinstance(spec, Judge) else OwnReward(spec, name).to(device)
    if not isinstance(spec, str) or (spec not in NAMES and ":" not in spec):
        raise RewardError(f"{spec!r} is no reward: known are {', '.join(NAMES)}, and module:function of one's own")
    if spec not in NAMES:
        return load(import_function(spec), device=device)
    try:
        return _loader(spec)(source, **options)
    except ImportError as error:
        raise RewardError(f"{spec} needs a package ({first_line(error)}): install requirements.lock") from None


def _term(term: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[float, Judge]:
    if not isinstance(term, Mapping) or "reward" not in term or set(term) - {"reward", "source", "weight"}:
        raise RewardError(f"{term!r}: a term of a sum has a reward, and may have a source and a weight, nothing else")
    weight = term.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RewardError(f"the weight of {term['reward']} is {weight!r}: give a number")
    return float(weight), load(term["reward"], term.get("source"), **options)


def _loader(name: str) -> Callable[..., Judge]:
    """The loader of a named reward; its packages are imported when it runs."""
    from dipp_core.rewards import aesthetic, clip, hps, image_reward, pick

    return {
        "image_reward": image_reward.load,
        "hpsv2": functools.partial(hps.load, version="v2.0"),
        "hpsv2.1": functools.partial(hps.load, version="v2.1"),
        "pickscore": pick.load,
        "clipscore": clip.load,
        "aesthetic": aesthetic.load,
    }[name]


def about(name: str) -> About:
    """What is known of a named reward, without its files."""
    from dipp_core.rewards import aesthetic, clip, hps, image_reward, pick

    known = [image_reward.ABOUT, *(replace(hps.ABOUT, name=own, version=version) for version, own in hps.NAMES.items())]
    return {one.name: one for one in [*known, pick.ABOUT, clip.ABOUT, aesthetic.ABOUT]}[name]


def finish(judge: Judge, *, source: Any, dtype: torch.dtype, device: torch.device | str) -> Judge:
    """The last step of every loader: where the weights came from, precision, device."""
    judge.about = replace(judge.about, source=str(source))
    return judge.to(device=device, dtype=dtype)
