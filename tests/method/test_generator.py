"""The generator is a latent consistency model's first step; the assistant's target is the marginal score."""

import pytest
import torch
from diffusers import LCMScheduler
from torch import nn

from dipp_core.method.assistant import assistant_loss, assistant_step
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import constant_weight, sigma_power_weight, vp_continuous, vp_discrete
from dipp_core.worlds.gaussian import Gaussian, exact_score, whitened_pair

SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


class Wave(nn.Module):
    """An eps network that depends on x, t and the condition."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, xt, t, cond):
        shape = t.shape + (1,) * (xt.ndim - t.ndim)
        return torch.sin(self.gain * xt + t.float().reshape(shape)) + cond.reshape(shape)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_generator_equals_one_lcm_step():
    schedule = vp_discrete(LCMScheduler(**SD15).alphas_cumprod)
    z, cond = torch.randn(2, 4, 8, 8, generator=rng()), torch.tensor([0.1, -0.2])
    for index in (399, 625, 999):
        gen = OneStepGenerator(Wave(), schedule, t_star=schedule.time_of_index(index), prediction_type="eps")
        theirs = LCMScheduler(**SD15)
        theirs.set_timesteps(timesteps=[index])
        eps = gen.network(z, torch.full((2,), gen.t_star, dtype=torch.float64), cond)
        step = theirs.step(eps, index, z, generator=rng())
        torch.testing.assert_close(gen(z, cond), step.denoised, rtol=1e-4, atol=1e-4)
        assert schedule.index_of_time(torch.tensor(gen.t_star)) == index


def test_generator_of_stacked_runs_gives_one_time_per_sample():
    gen = OneStepGenerator(Wave(), vp_continuous(), t_star=0.6, prediction_type="eps", batch_ndim=2)
    z, cond = torch.randn(2, 3, 5, generator=rng()), torch.zeros(2, 3)
    alone = OneStepGenerator(gen.network, gen.schedule, t_star=0.6, prediction_type="eps")
    torch.testing.assert_close(gen(z, cond)[1], alone(z[1], cond[1]))
    assert gen(z, cond).dtype == z.dtype


def test_trainable_copy_learns_and_leaves_its_origin_alone():
    ref = Wave().requires_grad_(False)
    copy = trainable_copy(ref)
    assert copy.gain.requires_grad
    with torch.no_grad():
        copy.gain += 1
    assert not torch.equal(ref.gain, copy.gain)
    assert not ref.gain.requires_grad


def test_the_marginal_score_is_the_minimiser_of_the_assistant_loss():
    """With whitened samples of a Gaussian the regression is exact: zero gradient at the score of the diffused law."""
    schedule, t = vp_continuous(), torch.full((64,), 0.4, dtype=torch.float64)
    law = Gaussian(torch.tensor([1.0, -2.0]).double(), torch.tensor([[1.0, 0.4], [0.4, 0.5]]).double())
    z, eps = whitened_pair(64, 2, generator=rng())
    xt = schedule.perturb(law.push(z), t, eps)
    slope = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    s_ta = exact_score(law, schedule)(xt, t) + xt @ slope + offset
    loss = assistant_loss(s_ta=s_ta, eps=eps, t=t, schedule=schedule, ta_weight=constant_weight())
    assert loss.shape == t.shape
    for gradient in torch.autograd.grad(loss.mean(), [slope, offset]):
        assert gradient.abs().max() < 1e-12


def test_sigma_squared_makes_it_an_eps_loss_and_a_step_moves_only_the_assistant():
    schedule, ta, gen = vp_continuous(), Wave(), nn.Linear(3, 3)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    x0, eps = gen(torch.randn(6, 3, generator=rng())), torch.randn(6, 3, generator=rng(1))
    sigma = schedule.sigma(t)[:, None].float()
    weight = sigma_power_weight(schedule, 2)
    prediction = torch.randn(6, 3, generator=rng(2))
    loss = assistant_loss(s_ta=-prediction / sigma, eps=eps, t=t, schedule=schedule, ta_weight=weight)
    torch.testing.assert_close(loss, (prediction - eps).square().sum(-1), rtol=1e-4, atol=1e-4)
    before = ta.gain.item()
    optimizer = torch.optim.SGD(ta.parameters(), lr=0.1)
    value = assistant_step(
        lambda xt, t, cond: -ta(xt, t, cond) / schedule.sigma(t)[:, None].float(),
        optimizer,
        x0=x0,
        t=t,
        eps=eps,
        cond=torch.zeros(6),
        schedule=schedule,
        ta_weight=weight,
    )
    assert value.ndim == 0
    assert ta.gain.item() != before
    assert gen.weight.grad is None


@pytest.mark.parametrize("t_star", [0.0, 600, -0.1])
def test_a_start_time_outside_the_unit_interval_is_refused(t_star):
    with pytest.raises(ValueError, match="t_star is a time in"):
        OneStepGenerator(nn.Identity(), vp_continuous(), t_star=t_star, prediction_type="eps")
