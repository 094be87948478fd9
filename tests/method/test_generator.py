"""The generator is a latent consistency model's first step; the assistant's target is the marginal score."""

import pytest
import torch
from diffusers import LCMScheduler
from torch import nn
from worlds.small import gaussian, randn, rng

from dipp_core.method.assistant import assistant_loss, assistant_step
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import constant_weight, sigma_power_weight, vp_continuous, vp_discrete
from dipp_core.worlds.gaussian import exact_score, whitened_pair

SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
VP = vp_continuous()


class Wave(nn.Module):
    """An eps network that depends on x, t and the condition."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, xt, t, cond):
        shape = t.shape + (1,) * (xt.ndim - t.ndim)
        return torch.sin(self.gain * xt + t.float().reshape(shape)) + cond.reshape(shape)


@pytest.mark.parametrize("index", [399, 625, 999])
def test_the_generator_is_one_lcm_step_for_one_run_and_for_stacked_runs(index):
    schedule, theirs = vp_discrete(LCMScheduler(**SD15).alphas_cumprod), LCMScheduler(**SD15)
    z, cond = torch.randn(2, 4, 8, 8, generator=rng()), torch.tensor([0.1, -0.2])
    gen = OneStepGenerator(Wave(), schedule, t_star=schedule.time_of_index(index), prediction_type="eps")
    theirs.set_timesteps(timesteps=[index])
    eps = gen.network(z, torch.full((2,), gen.t_star, dtype=torch.float64), cond)
    step = theirs.step(eps, index, z, generator=rng())
    torch.testing.assert_close(gen(z, cond), step.denoised, rtol=1e-4, atol=1e-4)
    assert schedule.index_of_time(torch.tensor(gen.t_star)) == index
    stacked = OneStepGenerator(gen.network, schedule, t_star=gen.t_star, prediction_type="eps", batch_ndim=2)
    torch.testing.assert_close(stacked(z[None], cond[None])[0], gen(z, cond))


@pytest.mark.parametrize("t_star", [0.0, 600, -0.1])
def test_a_start_time_outside_the_unit_interval_is_refused(t_star):
    with pytest.raises(ValueError, match="t_star is a time in"):
        OneStepGenerator(nn.Identity(), VP, t_star=t_star, prediction_type="eps")


def test_the_marginal_score_is_the_minimiser_of_the_assistant_loss():
    """With whitened samples of a Gaussian the regression is exact: zero gradient at the score of the diffused law."""
    law, t = gaussian(2, 1), torch.full((64,), 0.4, dtype=torch.float64)
    z, eps = whitened_pair(64, 2, generator=rng())
    xt = VP.perturb(law.push(z), t, eps)
    slope, offset = (torch.zeros(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 2), (2,)))
    s_ta = exact_score(law, VP)(xt, t) + xt @ slope + offset
    loss = assistant_loss(s_ta=s_ta, eps=eps, t=t, schedule=VP, ta_weight=constant_weight())
    assert loss.shape == t.shape
    for gradient in torch.autograd.grad(loss.mean(), [slope, offset]):
        assert gradient.abs().max() < 1e-12


def test_sigma_squared_makes_it_an_eps_loss_and_a_step_moves_only_a_copy_of_the_reference():
    ref, gen = Wave().requires_grad_(False).double(), nn.Linear(3, 3).double()
    ta, t = trainable_copy(ref), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    x0, eps, cond, sigma = gen(randn(6, 3)), randn(6, 3, seed=1), torch.zeros(6), VP.sigma(t)[:, None]
    common = {"eps": eps, "t": t, "schedule": VP, "ta_weight": sigma_power_weight(VP, 2)}
    wanted = (ta(VP.perturb(x0, t, eps), t, cond) - eps).square().sum(-1).detach()
    optimizer = torch.optim.SGD(ta.parameters(), lr=0.1)
    found = assistant_step(lambda xt, t, cond: -ta(xt, t, cond) / sigma, optimizer, x0=x0, cond=cond, **common)
    torch.testing.assert_close(found, wanted.mean())
    torch.testing.assert_close(
        assistant_loss(s_ta=-randn(6, 3) / sigma, **common), (randn(6, 3) - eps).square().sum(-1)
    )
    assert ta.gain != ref.gain
    assert not ref.gain.requires_grad
    assert gen.weight.grad is None
