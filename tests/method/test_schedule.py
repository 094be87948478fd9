"""Schedules agree with diffusers on every timestep, and conversions with algebra."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

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
SCHEDULES = {
    "vp": vp_continuous(),
    "edm": edm(0.05, 5.0),
    "sd15": vp_discrete(DDPMScheduler(**SD15).alphas_cumprod),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_discrete_schedule_equals_diffusers_at_every_step(scheduler, config):
    accepted = {key: value for key, value in CONFIGS[config].items() if key in scheduler().config}
    theirs = scheduler(**accepted)
    ours = vp_discrete(theirs.alphas_cumprod)
    index = torch.arange(1000)
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
    schedule = SCHEDULES["sd15"]
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    log_alpha = schedule.log_alpha(t)
    assert schedule.alpha(t)[0] == 1
    assert schedule.sigma(t)[0] == 0
    assert (log_alpha.diff() < 0).all()
    coarse = vp_discrete(torch.exp(-torch.linspace(0.1, 2.0, 10, dtype=torch.float64).cumsum(0)))
    slope = coarse.log_alpha(t).diff() * 20000
    assert slope.diff().abs().max() < 2e-3 * slope.abs().max()
    linear = vp_discrete(torch.exp(-0.01 * torch.arange(1, 11).double()))
    torch.testing.assert_close(linear.log_alpha(t), -0.05 * t, rtol=0, atol=1e-14)


def test_discrete_schedule_refuses_a_zero_terminal_snr():
    table = DDPMScheduler(**SD15, rescale_betas_zero_snr=True).alphas_cumprod
    with pytest.raises(ValueError, match="alphas_cumprod"):
        vp_discrete(torch.cat([table[:-1], torch.zeros(1)]))


def test_continuous_schedules_have_their_formulas():
    t = torch.linspace(0.001, 1, 101, dtype=torch.float64)
    vp, ve = SCHEDULES["vp"], SCHEDULES["edm"]
    torch.testing.assert_close(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(vp.alpha(t[-1]), torch.tensor(math.exp(-0.25 * 19.9 - 0.05)).double())
    assert torch.equal(ve.alpha(t), torch.ones_like(t))
    torch.testing.assert_close(ve.sigma(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.05, 0.5, 5.0]).double())
    torch.testing.assert_close(vp.log_snr(t), 2 * torch.log(vp.alpha(t) / vp.sigma(t)))
    with pytest.raises(ValueError, match="integer timesteps"):
        vp.time_of_index(3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_of_noise_ratio_inverts(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of_noise_ratio(schedule.sigma(t) / schedule.alpha(t)), t)
    assert schedule.time_of_noise_ratio(2.5017 if name != "edm" else 5.0).shape == ()


def test_the_published_start_times():
    """Timestep 399 of SDXL's table is sigma / alpha = 1.1606, timestep 625 of SD1.5's is 2.5017."""
    schedule = SCHEDULES["sd15"]
    t = schedule.time_of_index(torch.tensor([399, 625]))
    ratio = schedule.sigma(t) / schedule.alpha(t)
    torch.testing.assert_close(ratio, torch.tensor([1.1606, 2.5017]).double(), rtol=1e-4, atol=0)
    assert schedule.index_of_time(schedule.time_of_noise_ratio(2.5017)) == 625


def test_perturb_follows_the_batch_shape_rule():
    schedule = SCHEDULES["vp"]
    for t_shape, x_shape in [((3,), (3, 4, 5, 5)), ((2, 3), (2, 3, 4)), ((2, 1), (2, 3, 4))]:
        t = torch.rand(t_shape, generator=rng(), dtype=torch.float64)
        x0, eps = (torch.randn(x_shape, generator=rng(s)) for s in (1, 2))
        xt = schedule.perturb(x0, t, eps)
        one = schedule.alpha(t[1, 0]) * x0[1, 0] + schedule.sigma(t[1, 0]) * eps[1, 0] if t.ndim == 2 else None
        assert xt.dtype == torch.float32
        if one is not None:
            torch.testing.assert_close(xt[1, 0], one.float())
    with pytest.raises(ValueError, match="prefix"):
        schedule.perturb(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("source", "target"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_conversions_round_trip_and_agree_with_their_definitions(name, source, target):
    schedule = SCHEDULES[name]
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    x0, eps = (torch.randn(7, 5, generator=rng(s), dtype=torch.float64) for s in (1, 2))
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    xt = schedule.perturb(x0, t, eps)
    truth = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}
    common = {"xt": xt, "t": t, "schedule": schedule}
    there = convert_prediction(truth[source], source=source, target=target, **common)
    torch.testing.assert_close(there, truth[target], rtol=1e-12, atol=1e-12)
    back = convert_prediction(there, source=target, target=source, **common)
    torch.testing.assert_close(back, truth[source], rtol=1e-12, atol=1e-12)


def test_v_is_diffusers_velocity_and_unknown_predictions_are_refused():
    theirs, schedule = DDPMScheduler(**SD15), SCHEDULES["sd15"]
    index = torch.tensor([0, 10, 500, 999])
    x0, eps = (torch.randn(4, 3, 2, 2, generator=rng(s)) for s in (1, 2))
    common = {"t": schedule.time_of_index(index), "schedule": schedule}
    xt = schedule.perturb(x0, common["t"], eps)
    torch.testing.assert_close(xt, theirs.add_noise(x0, eps, index), rtol=1e-5, atol=1e-6)
    velocity = convert_prediction(x0, xt=xt, source="x0", target="v", **common)
    torch.testing.assert_close(velocity[1:], theirs.get_velocity(x0, eps, index)[1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown prediction"):
        convert_prediction(eps, xt=xt, source="flow", target="x0", **common)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("index", [999, 621, 401])
def test_one_ddim_step_equals_diffusers(config, index):
    theirs = DDIMScheduler(**CONFIGS[config] | {"clip_sample": False})
    theirs.set_timesteps(10)
    schedule = vp_discrete(theirs.alphas_cumprod)
    xt, eps = (torch.randn(2, 4, 8, 8, generator=rng(s)) for s in (1, 2))
    t, t_next = (schedule.time_of_index(torch.full((2,), k)) for k in (index, index - 100))
    ours = ddim_step(eps, xt=xt, t=t, t_next=t_next, schedule=schedule)
    torch.testing.assert_close(ours, theirs.step(eps, index, xt).prev_sample, rtol=1e-5, atol=1e-5)


def test_time_samplers_have_their_laws():
    t = uniform_time(0.2, 0.6)((3, 4), generator=rng())
    assert t.shape == (3, 4)
    assert t.dtype == torch.float64
    assert ((t >= 0.2) & (t < 0.6)).all()
    assert (uniform_time(0.5, 0.5).nodes(5) == 0.5).all()
    sigma = SCHEDULES["edm"].sigma(lognormal_sigma_time(SCHEDULES["edm"], -0.7, 0.5).nodes(1001)).log()
    torch.testing.assert_close(sigma[500], torch.tensor(-0.7).double())
    assert abs(float(sigma.std()) - 0.5) < 0.01
    drawn = uniform_index_time(SCHEDULES["sd15"], 20, 980)((5000,), generator=rng())
    index = SCHEDULES["sd15"].index_of_time(drawn)
    assert torch.equal(SCHEDULES["sd15"].time_of_index(index), drawn)
    assert int(index.min()) == 20
    assert int(index.max()) == 979
    again = (uniform_time()((4,), generator=rng(3)), uniform_time()((4,), generator=rng(3)))
    assert torch.equal(*again)


def test_weightings():
    schedule, pi = SCHEDULES["edm"], uniform_time()
    t = pi.nodes(9)
    torch.testing.assert_close(sigma_power_weight(schedule, 2)(t), schedule.sigma(t) ** 2)
    torch.testing.assert_close(x0_gap_weight(schedule)(t), schedule.sigma(t) ** 2)
    ratio = SCHEDULES["vp"].sigma(t) / SCHEDULES["vp"].alpha(t)
    torch.testing.assert_close(x0_gap_weight(SCHEDULES["vp"])(t), ratio**2)
    unit = normalised(sigma_power_weight(schedule, 2), pi)
    mean = (5.0**2 - 0.05**2) / (2 * math.log(100))
    torch.testing.assert_close(unit(t), schedule.sigma(t) ** 2 / mean, rtol=1e-6, atol=0)
    draws = pi((200000,), generator=rng())
    assert abs(float(unit(draws).mean()) - 1) < 0.02
    assert float(normalised(constant_weight(), pi)(t).mean()) == 1.0


def test_the_x0_gap_contracted_with_x0_has_the_x0_gap_weight():
    """(D_a - D_b) . dx0 = w (s_a - s_b) . dxt with w = sigma^2 / alpha^2."""
    schedule = SCHEDULES["vp"]
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    xt, a, b, dx0 = (torch.randn(5, 3, generator=rng(s), dtype=torch.float64) for s in range(4))
    common = {"xt": xt, "t": t, "schedule": schedule, "source": "score", "target": "x0"}
    gap = convert_prediction(a, **common) - convert_prediction(b, **common)
    ours = x0_gap_weight(schedule)(t) * ((a - b) * schedule.alpha(t)[:, None] * dx0).sum(-1)
    torch.testing.assert_close((gap * dx0).sum(-1), ours)


def test_noise_of_another_shape_is_refused_instead_of_broadcast():
    x0, t = torch.zeros(3, 3, 2), torch.full((3, 1), 0.5)
    with pytest.raises(ValueError, match=r"eps \(3, 2\) must have the shape of x0 \(3, 3, 2\)"):
        vp_continuous().perturb(x0, t, torch.zeros(3, 2))
