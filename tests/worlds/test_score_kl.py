"""The divergence read off two scores, against the closed form between Gaussians."""

import pytest
import torch

from dipp_core.method.schedule import vp_continuous
from dipp_core.worlds.gaussian import Gaussian, exact_score, gaussian_kl
from dipp_core.worlds.score_kl import score_kl


def law(mean, spread):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(spread, dtype=torch.float64)))


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0.1, 0.5)])
def test_it_is_the_divergence_at_the_low_end_less_that_at_the_high_end(low, high):
    noise, p, q = vp_continuous(), law([1.0, -0.5], [0.6, 0.2]), law([0.0, 0.0], [1.0, 0.5])
    x0 = p.sample((20_000,), generator=torch.Generator().manual_seed(0))
    given = {"low": low, "high": high, "nodes": 64, "generator": torch.Generator().manual_seed(1)}
    found = score_kl(exact_score(p, noise), exact_score(q, noise), x0, None, noise, **given)
    at = [gaussian_kl(p.diffused(noise, t), q.diffused(noise, t)) for t in torch.tensor([low, high]).double()]
    assert found.shape == (20_000,)
    assert abs(found.mean() / (at[0] - at[1]) - 1) < 0.02
    assert (at[0] - at[1]) > 0.1


def test_it_is_zero_between_a_law_and_itself():
    noise, p = vp_continuous(), law([1.0, -0.5], [0.6, 0.2])
    x0 = p.sample((10,), generator=torch.Generator().manual_seed(0))
    score, generator = exact_score(p, noise), torch.Generator().manual_seed(1)
    assert score_kl(score, score, x0, None, noise, low=0.02, high=0.9, generator=generator).abs().max() == 0
