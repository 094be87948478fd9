"""What samples in the plane are worth: how far their law is from the reference, in the measures of the sweeps."""

from collections.abc import Callable

import torch
from torch import Tensor

from dipp_core.method.schedule import normalised, uniform_time
from dipp_core.worlds.gaussian import NoiseLevels, noise_levels
from dipp_core.worlds.plane import World
from dipp_core.worlds.plane_optimum import PlaneGrid, evaluate, histogram, mixture_log_reference, plane_grid
from dipp_core.worlds.plane_runs import WEIGHTS

NAMES = {"ikl_one": "one", "ikl_sigma2": "sigma2", "kl": "least"}  # a divergence, and the grid that measures it


def levels_for(world: World, weight: str, n: int = 24) -> NoiseLevels:
    """The noise levels of a sweep with this weighting (`settings_for`), as a quadrature."""
    law = uniform_time()
    return noise_levels(world.schedule, law, normalised(WEIGHTS[weight](world.schedule), law), n)


def grids_for(world: World, prompt: int, reward: Callable[[Tensor], Tensor], **numbers) -> dict[str, PlaneGrid]:
    """The grid of one prompt, for the integral KL with w = one and w = sigma2, and for the KL after the least noise."""
    reference = mixture_log_reference(world.law, world.schedule, world.prompts[prompt])
    least = NoiseLevels(world.schedule, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    levels = {weight: levels_for(world, weight) for weight in ("one", "sigma2")} | {"least": least}
    return {name: plane_grid(reference, reward, chosen, **numbers) for name, chosen in levels.items()}


def divergences(grids: dict[str, PlaneGrid], samples: Tensor) -> dict[str, Tensor]:
    """IKL with w = 1, IKL with w = sigma^2, and the KL after the least noise, of samples (R, N, 2); (R,) each.

    From histograms, so with a bias of about (cells that matter) / 2N; `ikl_sigma2` has next to none.
    """
    law = histogram(grids["one"], samples)
    return {name: evaluate(grids[key], law).integral_kl for name, key in NAMES.items()}


def both_prompts(draw: Callable[[int], Tensor]) -> Tensor:
    """Samples of prompt 0 and, mirrored, of prompt 1; on the ring these are the same law."""
    return torch.cat([draw(0), draw(1) * torch.tensor([-1.0, 1.0])], dim=-2)
