"""Samples of the reference are worth nothing more than it; samples of a shifted law what the closed form says."""

import pytest
import torch

from dipp_core.worlds import plane, plane_measure, plane_runs
from dipp_core.worlds.gaussian import Gaussian, GaussianMixture, integral_kl


def upwards(x):
    return x[..., 1]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_data_is_at_no_distance_from_the_reference(rng):
    world = plane.ring(plane_runs.plane_schedule())
    grids = plane_measure.grids_for(world, 0, upwards)
    found = plane_measure.divergences(grids, world.sample(0, (2, 100_000), generator=rng))
    assert set(found) == {"ikl_one", "ikl_sigma2", "kl"}
    assert all((value >= 0).all() and (value < 3e-3).all() for value in found.values())


def test_a_shifted_gaussian_is_at_the_distance_of_the_closed_form(rng):
    """A world of one Gaussian, and samples of it that are shifted."""
    mean, cov, shift = torch.zeros(2).double(), 0.4 * torch.eye(2).double(), torch.tensor([0.5, 0.2]).double()
    one = torch.ones(1, 1).double()
    world = plane.World(GaussianMixture(one[0], mean[None], cov[None]), one, plane_runs.plane_schedule())
    samples = world.sample(0, (1, 200_000), generator=rng) + shift
    found = plane_measure.divergences(plane_measure.grids_for(world, 0, upwards), samples)
    for weight in ("one", "sigma2"):
        wanted = integral_kl(Gaussian(shift, cov), Gaussian(mean, cov), plane_measure.levels_for(world, weight))
        assert found[f"ikl_{weight}"].item() == pytest.approx(wanted.item(), rel=0.02)
    assert found["kl"].item() == pytest.approx(shift.square().sum().item() / (2 * 0.41), rel=0.02)


def test_the_second_prompt_of_the_ring_is_the_mirror_image_of_the_first(rng):
    world = plane.ring(plane_runs.plane_schedule())
    together = plane_measure.both_prompts(lambda prompt: world.sample(prompt, (1, 40_000), generator=rng))
    first, second = together[0].split(40_000)
    torch.testing.assert_close(first.mean(0), second.mean(0), atol=0.03, rtol=0)
    assert first[:, 0].mean() > 0.5
