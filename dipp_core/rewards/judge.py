"""What a reward on pictures is: a frozen `Judge`, weighted sums of judges, and functions of one's own.

A `Judge` maps (images (B, 3, H, W) in [0, 1], B prompts) -> (B,), differentiable in the images. On latents it becomes
a reward of `align` through `LatentDiffusion.reward(judge, prompts)`. `public.load` makes judges by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.files import InputError, first_line
from dipp_core.rewards.pixels import at_least_float32


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

    A subclass gives `score`: checked pictures and prompts -> (B,).
    """

    def __init__(self, about: About, network: nn.Module | None = None):
        super().__init__()
        self.about = about
        self.network: Any = network
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
            raise InputError(f"{name} must give one value a picture, a tensor of shape ({len(images)},), not {got}")
        if value.is_complex():
            raise InputError(f"{name} must give real values, not {value.dtype}")
        if images.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            raise InputError(f"{name} gives the pictures no gradient: it can judge under torch.no_grad(), not train")
        return at_least_float32(value)


def _check_inputs(name: str, images: Tensor, prompts: Sequence[str]) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"{name} takes pictures as a floating-point tensor (B, 3, H, W) in [0, 1], not {got}")
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else str(len(prompts))
        raise InputError(f"{name} takes a list with one prompt for every picture: {len(images)} pictures, {got} given")
    low, high = (value.item() for value in images.detach().aminmax())
    if low < -0.5 or high > 1.5:  # beyond what a decoder overshoots
        raise InputError(f"{name} takes pictures in [0, 1]; these reach from {low:.3g} to {high:.3g}")


class WeightedSum(Judge):
    """sum of weight * reward. Rewards differ in scale, so weights mean nothing without the rewards' spread."""

    def __init__(self, terms: Sequence[tuple[float, Judge]]):
        if not terms:
            raise InputError("a weighted sum needs at least one reward")
        name = " + ".join(f"{weight:g} {judge.about.name}" for weight, judge in terms)
        hazards = "; ".join(f"{judge.about.name}: {judge.about.hazards}" for _, judge in terms if judge.about.hazards)
        scale = "that of its terms: " + "; ".join(f"{judge.about.name}: {judge.about.scale}" for _, judge in terms)
        super().__init__(About(name=name, source="sum", scale=scale, hazards=hazards))
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.judges = nn.ModuleList(judge for _, judge in terms)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        values = [weight * judge(images, prompts) for weight, judge in zip(self.weights, self.judges, strict=True)]
        return torch.stack(values).sum(0)


class OwnReward(Judge):
    """A function (images, prompts) -> (B,) of one's own; a module among them is frozen."""

    def __init__(self, function: Callable[[Tensor, list[str]], Tensor], name: str):
        module = function if isinstance(function, nn.Module) else None
        super().__init__(About(name=name, source="one's own"), module)
        self.function = function

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        try:
            return self.function(images, prompts)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(f"{self.about.name} fails ({type(error).__name__}: {first_line(error)})") from error
