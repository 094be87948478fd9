"""Distances between clouds of samples."""

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
