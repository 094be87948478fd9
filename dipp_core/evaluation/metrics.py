"""What is measured on clouds of samples: distances, modes, and means with their spread over seeds."""

import math

import torch
from torch import Tensor


def sliced_w2(x: Tensor, y: Tensor, projections: int = 48) -> float:
    """Sliced 2-Wasserstein distance of two clouds in the plane, (N, 2) each, over equally spaced angles.

    On a line the optimal transport between clouds of equal size pairs sorted points.
    """
    angles = torch.arange(projections, dtype=x.dtype, device=x.device) * (math.pi / projections)
    directions = torch.stack([angles.cos(), angles.sin()])
    gap = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return gap.square().mean().sqrt().item()


def coverage(samples: Tensor, means: Tensor, target: Tensor, radius: float, share: float = 0.25) -> Tensor:
    """How many modes are covered: those with more than `share` of their target weight within `radius`.

    samples (..., N, 2), means (k, 2), target weights (k,) -> (...), whole numbers.
    """
    near = (samples.unsqueeze(-2) - means).norm(dim=-1) < radius
    return (near.float().mean(-2) > share * target).sum(-1)


def precision(samples: Tensor, means: Tensor, radius: float) -> Tensor:
    """The share of samples within `radius` of some mode; samples (..., N, 2), means (k, 2) -> (...)."""
    near = (samples.unsqueeze(-2) - means).norm(dim=-1) < radius
    return near.any(-1).float().mean(-1)


def mode_weights(samples: Tensor, means: Tensor) -> Tensor:
    """The share of samples whose nearest mode is k; samples (..., N, 2), means (k, 2) -> (..., k)."""
    nearest = (samples.unsqueeze(-2) - means).norm(dim=-1).argmin(-1)
    return torch.nn.functional.one_hot(nearest, len(means)).float().mean(-2)
