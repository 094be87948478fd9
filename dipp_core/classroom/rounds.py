"""Blinded rounds: pairs of pictures by two models, voters who are simulated, and the win rate with its interval.

    two = blind_round(exported("reports/runs/../unet_dipp"), exported("reports/runs/../unet_sim"), captions,
                      pairs=40, generator=rng)

compares any two models that were exported; `votes.open_ballot` keeps the votes, `voting.form` shows the pairs.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.classroom.votes import Round
from dipp_core.models import folders
from dipp_core.models.latent import LatentDiffusion

Painter = Callable[[Sequence[str], int], Tensor]  # (n captions, seed) -> pictures (n, 3, H, W) in [0, 1]


# -------------------------------------------------------------------------------------------------------------- pairs


def exported(folder: pathlib.Path | str, t_star: int) -> Painter:
    """Who draws with a one-step model that `folders.export` wrote, asked at its timestep."""
    world = folders.load(folder)
    return painter(world, world.generator(t_star))


def painter(world: LatentDiffusion, gen: Callable) -> Painter:
    """Who draws with a generator in memory."""
    return lambda captions, seed: world.paint(gen, world.prompts(captions), 1, seed=seed)[:, 0]


def blind_round(
    model_a: Painter,
    model_b: Painter,
    captions: Sequence[str],
    *,
    pairs: int,
    same_noise: bool = True,
    generator: torch.Generator,
) -> Round:
    """Pairs of pictures, one by either model, of one caption each; which side is whose is drawn, half of them each.

    Captions come in random order, none again before all have come. same_noise: both models draw from the same z, so
    that they differ in nothing else; for two pictures by *one* model the noise has to be its own.
    """
    if model_a is model_b and same_noise:
        raise ValueError("one model draws the same picture twice from the same noise: give same_noise=False")
    if pairs < 1 or not captions:
        raise ValueError(f"{pairs} pairs of {len(captions)} captions are none: give at least one of each")
    times = math.ceil(pairs / len(captions))
    order = torch.cat([torch.randperm(len(captions), generator=generator) for _ in range(times)])[:pairs]
    texts = [captions[row] for row in order.tolist()]
    seeds = torch.randint(2**31, (2,), generator=generator).tolist()
    a, b = model_a(texts, seeds[0]), model_b(texts, seeds[0 if same_noise else 1])
    extra = int(torch.randint(2, (1,), generator=generator))  # who has one more, where the number is odd
    a_left = (torch.arange(pairs) + extra) % 2 == 0
    a_left = a_left[torch.randperm(pairs, generator=generator)]
    a, b = (images.clamp(0, 1).mul(255).round().to(torch.uint8) for images in (a, b))
    side = a_left[:, None, None, None]
    return Round(tuple(texts), torch.where(side, a, b), torch.where(side, b, a), a_left)


# --------------------------------------------------------------------------------------------------- simulated voters


def warmth(images: Tensor) -> Tensor:
    """Mean red less mean blue; images (n, 3, H, W) -> (n,)."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def vividness(images: Tensor) -> Tensor:
    """Mean over pixels of the largest less the smallest of red, green and blue, (n,)."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def brightness(images: Tensor) -> Tensor:
    """Mean of all pixels, (n,)."""
    return images.mean((1, 2, 3))


LIKES = {"warm": warmth, "vivid": vividness, "bright": brightness}


@dataclass(frozen=True)
class SimulatedVoter:
    """Nobody: a rule and noise that vote like somebody who likes warm, vivid or bright pictures.

    With utility u in units of `unit`, P(left) = sigmoid(sharpness (u_left - u_right)); nearer than `tie`, it is a tie.
    """

    likes: str
    unit: float
    sharpness: float
    tie: float

    @property
    def name(self) -> str:
        return f"simulated voter, likes {self.likes} pictures"

    def gaps(self, left: Tensor, right: Tensor) -> Tensor:
        """u_left - u_right in units, (n,)."""
        utility = LIKES[self.likes]
        return (utility(left) - utility(right)) / self.unit

    def votes(self, left: Tensor, right: Tensor, *, generator: torch.Generator) -> list[str]:
        """Its votes on pictures left, right (n, 3, H, W)."""
        gaps = self.gaps(left, right)
        chance = torch.rand(gaps.shape, generator=generator)
        lefts = (chance < torch.sigmoid(self.sharpness * gaps)).tolist()
        ties = (gaps.abs() < self.tie).tolist()
        return ["tie" if tie else "left" if left else "right" for tie, left in zip(ties, lefts, strict=True)]


def unit_of(likes: str, left: Tensor, right: Tensor) -> float:
    """By how much pictures of one caption differ in what is liked: rms difference over pairs, divided by sqrt 2."""
    utility = LIKES[likes]
    return max(float((utility(left) - utility(right)).square().mean().sqrt()) / 2**0.5, 1e-6)


# ----------------------------------------------------------------------------------------------------------- win rate


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / votes, and the ends of its 95% interval."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def votes(self) -> int:
        return self.wins + self.ties + self.losses

    def __str__(self) -> str:
        counts = f"{self.wins} won, {self.ties} tied, {self.losses} lost"
        return f"{self.rate:.2f} ({self.low:.2f} to {self.high:.2f}; {counts})"


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share among n independent votes: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def win_rate(scores: Tensor) -> WinRate:
    """The win rate of scores 1, 1/2, 0. A tie is half a win, and the interval is Wilson's for that share.

    With ties it is wider than need be, never narrower: the variance of a score in {0, 1/2, 1} of mean p is at most
    p (1 - p), which is that of a score without ties.
    """
    if not len(scores):
        raise ValueError("a win rate needs at least one vote")
    wins, ties, n = int((scores == 1).sum()), int((scores == 0.5).sum()), len(scores)
    rate = (wins + ties / 2) / n
    return WinRate(rate, *wilson(rate, n), wins, ties, n - wins - ties)
