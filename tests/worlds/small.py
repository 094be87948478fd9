"""What the tests of method and worlds share: seeded draws, random Gaussians, quadrature, relative errors."""

import numpy as np
import torch

from dipp_core.worlds.gaussian import Gaussian


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def spd(d, seed):
    """A random covariance (d, d), well away from singular."""
    a = randn(d, d, seed=seed)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


def gaussian(d, seed):
    return Gaussian(randn(d, seed=seed), spd(d, seed + 100))


def normal(mean, variances):
    """N(mean, diag(variances)) of plain numbers."""
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64).diag())


def hermite(n):
    """Gauss-Hermite nodes and masses, (n,) each, for N(0, 1)."""
    nodes, mass = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(n))
    return nodes, mass / mass.sum()


def plane_points(n):
    """Gauss-Hermite nodes (n^2, 2) and masses (n^2,) for N(0, I) in the plane."""
    nodes, mass = hermite(n)
    return torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2), torch.outer(mass, mass).ravel()


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())
