"""Schedules agree with diffusers on every timestep, and conversions with algebra."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from worlds.small import randn, rng

from dipp_core.method.schedule import (
    PREDICTIONS,
    constant_weight,
    convert_prediction,
    ddim_step,
    edm,
    lognormal_sigma_time,
    normalised,
    sigma_power_weight,
    uniform_index_time,
    uniform_time,
    vp_continuous,
    vp_discrete,
    x0_gap_weight,
)

SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
PIXART = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000}
CONFIGS = {"sd15": SD15 | {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}, "pixart": PIXART}
VP, EDM = vp_continuous(), edm(0.05, 5.0)
DISCRETE = vp_discrete(DDPMScheduler(**SD15).alphas_cumprod)
SCHEDULES = {"vp": VP, "edm": EDM, "sd15": DISCRETE}
T = torch.ones(2)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_discrete_schedule_equals_diffusers_at_every_step(scheduler, config):
    theirs = scheduler(**{key: value for key, value in CONFIGS[config].items() if key in scheduler().config})
    ours, index = vp_discrete(theirs.alphas_cumprod), torch.arange(1000)
    t = ours.time_of_index(index)
    if scheduler is DPMSolverMultistepScheduler:
        alpha, sigma = theirs.alpha_t, theirs.sigma_t
    else:
        alpha, sigma = theirs.alphas_cumprod**0.5, (1 - theirs.alphas_cumprod) ** 0.5
    torch.testing.assert_close(ours.alpha(t), alpha.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.sigma(t), sigma.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.alpha(t) ** 2, theirs.alphas_cumprod.double(), rtol=1e-12, atol=0)
    assert torch.equal(ours.index_of_time(t), index)
    assert torch.equal(ours.index_of_time(t.float()), index)


def test_discrete_schedule_between_its_steps():
    """alpha(0) = 1, strictly falling, inside its neighbours, slope continuous, and a linear log alpha^2 is kept."""
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    assert (DISCRETE.alpha(t)[0], DISCRETE.sigma(t)[0]) == (1, 0)
    assert (DISCRETE.log_alpha(t).diff() < 0).all()
    coarse = vp_discrete(torch.exp(-torch.linspace(0.1, 2.0, 10, dtype=torch.float64).cumsum(0)))
    slope = coarse.log_alpha(t).diff() * 20000
    assert slope.diff().abs().max() < 2e-3 * slope.abs().max()
    linear = vp_discrete(torch.exp(-0.01 * torch.arange(1, 11).double()))
    torch.testing.assert_close(linear.log_alpha(t), -0.05 * t, rtol=0, atol=1e-14)


def test_continuous_schedules_have_their_formulas():
    t = torch.linspace(0.001, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(VP.alpha(t) ** 2 + VP.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(VP.alpha(t[-1]), torch.tensor(math.exp(-0.25 * 19.9 - 0.05)).double())
    torch.testing.assert_close(VP.log_snr(t), 2 * torch.log(VP.alpha(t) / VP.sigma(t)))
    assert torch.equal(EDM.alpha(t), torch.ones_like(t))
    torch.testing.assert_close(EDM.sigma(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.05, 0.5, 5.0]).double())


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: vp_discrete(torch.tensor([0.9, 0.5, 0.0])), "alphas_cumprod"),  # a zero terminal SNR
        (lambda: VP.time_of_index(3), "integer timesteps"),
        (lambda: VP.perturb(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3)), "prefix"),
        (lambda: VP.perturb(torch.zeros(3, 3, 2), torch.ones(3, 1), torch.zeros(3, 2)), "must have the shape of x0"),
        (lambda: convert_prediction(T, xt=T, t=T, schedule=VP, source="flow", target="x0"), "unknown prediction"),
    ],
)
def test_what_has_no_meaning_is_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call()


def test_time_of_noise_ratio_inverts_and_finds_the_published_start_times():
    """Timestep 399 of SDXL's table is sigma / alpha = 1.1606, timestep 625 of SD1.5's is 2.5017."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for schedule in SCHEDULES.values():
        torch.testing.assert_close(schedule.time_of_noise_ratio(schedule.sigma(t) / schedule.alpha(t)), t)
    t = DISCRETE.time_of_index(torch.tensor([399, 625]))
    ratio = DISCRETE.sigma(t) / DISCRETE.alpha(t)
    torch.testing.assert_close(ratio, torch.tensor([1.1606, 2.5017]).double(), rtol=1e-4, atol=0)
    assert DISCRETE.index_of_time(DISCRETE.time_of_noise_ratio(2.5017)) == 625


@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_round_trip_and_agree_with_their_definitions(name):
    schedule, t = SCHEDULES[name], torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    x0, eps = randn(7, 5, seed=1), randn(7, 5, seed=2)
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    common = {"xt": schedule.perturb(x0, t, eps), "t": t, "schedule": schedule}
    truth = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}
    for source, target in itertools.product(PREDICTIONS, PREDICTIONS):
        there = convert_prediction(truth[source], source=source, target=target, **common)
        torch.testing.assert_close(there, truth[target], rtol=1e-12, atol=1e-12)
        back = convert_prediction(there, source=target, target=source, **common)
        torch.testing.assert_close(back, truth[source], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("index", [999, 621, 401])
def test_noising_velocity_and_one_ddim_step_are_those_of_diffusers(config, index):
    theirs = DDIMScheduler(**CONFIGS[config] | {"clip_sample": False})
    theirs.set_timesteps(10)
    schedule, index = vp_discrete(theirs.alphas_cumprod), torch.full((2,), index)
    x0, eps = (torch.randn(2, 4, 8, 8, generator=rng(s)) for s in (1, 2))
    t, t_next = schedule.time_of_index(index), schedule.time_of_index(index - 100)
    common = {"xt": schedule.perturb(x0, t, eps), "t": t, "schedule": schedule}
    torch.testing.assert_close(common["xt"], theirs.add_noise(x0, eps, index), rtol=1e-5, atol=1e-6)
    velocity = convert_prediction(x0, source="x0", target="v", **common)
    torch.testing.assert_close(velocity, theirs.get_velocity(x0, eps, index), rtol=1e-5, atol=1e-5)
    wanted = theirs.step(eps, int(index[0]), x0).prev_sample  # any eps and any sample are a step
    torch.testing.assert_close(ddim_step(eps, t_next=t_next, **common | {"xt": x0}), wanted, rtol=1e-5, atol=1e-5)


def test_time_samplers_have_their_distributions():
    t = uniform_time(0.2, 0.6)((3, 4), generator=rng())
    assert (t.shape, t.dtype) == ((3, 4), torch.float64)
    assert ((t >= 0.2) & (t < 0.6)).all()
    assert torch.equal(t, uniform_time(0.2, 0.6)((3, 4), generator=rng()))
    assert (uniform_time(0.5, 0.5).nodes(5) == 0.5).all()
    sigma = EDM.sigma(lognormal_sigma_time(EDM, -0.7, 0.5).nodes(1001)).log()
    torch.testing.assert_close(sigma[500], torch.tensor(-0.7).double())
    assert abs(float(sigma.std()) - 0.5) < 0.01
    drawn = uniform_index_time(DISCRETE, 20, 980)((5000,), generator=rng())
    index = DISCRETE.index_of_time(drawn)
    assert torch.equal(DISCRETE.time_of_index(index), drawn)
    assert (int(index.min()), int(index.max())) == (20, 979)


def test_weightings_have_their_formulas_and_normalised_ones_mean_one():
    pi = uniform_time()
    t = pi.nodes(9)
    torch.testing.assert_close(sigma_power_weight(EDM, 2)(t), EDM.sigma(t) ** 2)
    unit, mean = normalised(sigma_power_weight(EDM, 2), pi), (5.0**2 - 0.05**2) / (2 * math.log(100))
    torch.testing.assert_close(unit(t), EDM.sigma(t) ** 2 / mean, rtol=1e-6, atol=0)
    assert float(normalised(constant_weight(), pi)(t).mean()) == 1.0


def test_the_x0_gap_contracted_with_x0_has_the_x0_gap_weight():
    """(D_a - D_b) . dx0 = w (s_a - s_b) . dxt with w = sigma^2 / alpha^2."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    xt, a, b, dx0 = (randn(5, 3, seed=s) for s in range(4))
    common = {"xt": xt, "t": t, "schedule": VP, "source": "score", "target": "x0"}
    gap = convert_prediction(a, **common) - convert_prediction(b, **common)
    ours = x0_gap_weight(VP)(t) * ((a - b) * VP.alpha(t)[:, None] * dx0).sum(-1)
    torch.testing.assert_close((gap * dx0).sum(-1), ours)
