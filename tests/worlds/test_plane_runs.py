"""Sweeps: runs of a stack are independent, a stack can be taken apart and saved, and training does what it should."""

import pytest
import torch

from dipp_core.rewards.plane import linear
from dipp_core.worlds import plane, plane_runs
from dipp_core.worlds.gaussian import Gaussian, GaussianMixture, integral_kl

WORLD = plane.ring(plane_runs.plane_schedule())


def stack_of(runs, seed=0):
    return plane_runs.new_stack(WORLD, runs, 16, generator=torch.Generator().manual_seed(seed))


def aligned(stack, alpha_rew, steps=12, name="dipp", **options):
    settings = plane_runs.settings_for(WORLD, name, stack.runs, 64, alpha_rew=torch.as_tensor(alpha_rew))
    rates = {"gen_lr": 2e-3, "ta_lr": 4e-3, "generator": torch.Generator().manual_seed(1)}
    return plane_runs.train(stack, WORLD, settings, reward=linear(), steps=steps, **rates, **options)


def samples(stack, prompt=0):
    return plane_runs.generate(stack, WORLD, prompt, 500, generator=torch.Generator().manual_seed(2))


def test_what_one_run_of_a_sweep_is_told_does_not_reach_the_others():
    one, other = stack_of(3), stack_of(3)
    aligned(one, [0.5, 0.5, 0.5])
    aligned(other, [0.5, 4.0, 0.5])
    assert torch.equal(samples(one)[[0, 2]], samples(other)[[0, 2]])
    assert not torch.equal(samples(one)[1], samples(other)[1])


def test_the_same_seed_gives_the_same_numbers():
    one, other = stack_of(2), stack_of(2)
    first, second = aligned(one, [0.5, 1.0]), aligned(other, [0.5, 1.0])
    assert torch.equal(samples(one), samples(other))
    assert all(torch.equal(value, second.values[name]) for name, value in first.values.items())


def test_picked_runs_are_copies():
    stack = stack_of(3)
    picked = stack.pick([2, 0, 2])
    assert picked.runs == 3
    torch.testing.assert_close(samples(picked), samples(stack)[[2, 0, 2]])
    before = samples(stack)
    aligned(picked, [1.0, 1.0, 1.0])
    assert torch.equal(samples(stack), before)
    assert not torch.allclose(samples(picked)[0], samples(picked)[2])  # the same start, noise of its own


def test_repeated_runs_stand_side_by_side():
    stack = stack_of(2)
    torch.testing.assert_close(samples(stack.repeat(3)), samples(stack)[[0, 0, 0, 1, 1, 1]])


def test_a_stack_comes_back_from_its_state():
    stack, fresh = stack_of(2), stack_of(2, seed=5)
    assert not torch.equal(samples(stack), samples(fresh))
    assert torch.equal(samples(stack), samples(fresh.load(stack.state())))
    x, t, cond = torch.randn(2, 4, 2), torch.rand(2, 4), torch.rand(2, 4, 8)
    assert torch.equal(stack.ta(x, t, cond), fresh.ta(x, t, cond))


def test_curves_have_a_value_for_every_step_and_run():
    curves = aligned(stack_of(2), [0.5, 1.0], steps=12)
    assert set(curves.values) == {"reward", "divergence", "norm_reward", "norm_divergence", "grad_norm", "ta_loss"}
    assert {value.shape for value in curves.values.values()} == {(12, 2)}
    steps, means = curves.smooth("reward", 4)
    torch.testing.assert_close(steps, torch.tensor([1.5, 5.5, 9.5]))
    torch.testing.assert_close(means[0], curves.values["reward"][:4].mean(0))


def test_the_learning_rate_falls_to_nothing_at_the_end():
    """The last step is smaller than the first by far: Adam's steps have the size of the rate."""
    stack, seen = stack_of(1), []
    weight = stack.gen.body.weights[1]
    aligned(stack, [1.0], steps=40, watch=lambda record: seen.append(weight.detach().clone()))
    first, middle, last = ((seen[i + 1] - seen[i]).abs().mean() for i in (5, 18, 38))
    assert last < 0.2 * min(first, middle)


def test_more_reward_scale_gives_more_reward():
    stack = stack_of(1).repeat(3)
    aligned(stack, [0.0, 0.5, 5.0], steps=150)
    means = samples(stack)[..., 1].mean(-1)
    assert means[0] < means[1] < means[2]


def test_distillation_brings_the_samples_to_the_law():
    stack = stack_of(2)
    truth = WORLD.sample(0, (500,), generator=torch.Generator().manual_seed(3))
    before = (samples(stack).norm(dim=-1).mean(-1) - truth.norm(dim=-1).mean()).abs()
    settings = plane_runs.settings_for(WORLD, "diff_instruct", 2, 128)
    rates = {"gen_lr": 5e-3, "ta_lr": 1e-2, "generator": torch.Generator().manual_seed(1)}
    plane_runs.train(stack, WORLD, settings, steps=250, **rates)
    after = (samples(stack).norm(dim=-1).mean(-1) - truth.norm(dim=-1).mean()).abs()
    assert (after < 0.2).all()
    assert (after < before / 5).all()


@pytest.mark.parametrize("weight", plane_runs.WEIGHTS)
def test_every_weighting_has_mean_one(weight):
    settings = plane_runs.settings_for(WORLD, "dipp", 1, 8, weight=weight)
    assert float(settings.weight(settings.time_sampler.nodes(1000)).mean()) == pytest.approx(1, rel=1e-4)


@pytest.mark.filterwarnings("error")
def test_without_assistant_steps_the_assistant_stays_and_nothing_complains():
    stack = stack_of(1)
    before = {name: value.clone() for name, value in stack.ta.state_dict().items()}
    settings = plane_runs.settings_for(WORLD, "reward_only", 1, 8)
    rates = {"gen_lr": 1e-3, "ta_lr": 1e-3, "generator": torch.Generator().manual_seed(1)}
    plane_runs.train(stack, WORLD, settings, reward=linear(), steps=3, **rates)
    assert all(torch.equal(before[name], value) for name, value in stack.ta.state_dict().items())


def upwards(x):
    return x[..., 1]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_data_is_at_no_distance_from_the_reference(rng):
    world = plane.ring(plane_runs.plane_schedule())
    grids = plane_runs.grids_for(world, 0, upwards)
    found = plane_runs.divergences(grids, world.sample(0, (2, 100_000), generator=rng))
    assert set(found) == {"ikl_one", "ikl_sigma2", "kl"}
    assert all((value >= 0).all() and (value < 3e-3).all() for value in found.values())


def test_a_shifted_gaussian_is_at_the_distance_of_the_closed_form(rng):
    """A world of one Gaussian, and samples of it that are shifted."""
    mean, cov, shift = torch.zeros(2).double(), 0.4 * torch.eye(2).double(), torch.tensor([0.5, 0.2]).double()
    one = torch.ones(1, 1).double()
    world = plane.World(GaussianMixture(one[0], mean[None], cov[None]), one, plane_runs.plane_schedule())
    samples = world.sample(0, (1, 200_000), generator=rng) + shift
    found = plane_runs.divergences(plane_runs.grids_for(world, 0, upwards), samples)
    for weight in ("one", "sigma2"):
        wanted = integral_kl(Gaussian(shift, cov), Gaussian(mean, cov), plane_runs.levels_for(world, weight))
        assert found[f"ikl_{weight}"].item() == pytest.approx(wanted.item(), rel=0.02)
    assert found["kl"].item() == pytest.approx(shift.square().sum().item() / (2 * 0.41), rel=0.02)


def test_the_second_prompt_of_the_ring_is_the_mirror_image_of_the_first(rng):
    world = plane.ring(plane_runs.plane_schedule())
    together = plane_runs.both_prompts(lambda prompt: world.sample(prompt, (1, 40_000), generator=rng))
    first, second = together[0].split(40_000)
    torch.testing.assert_close(first.mean(0), second.mean(0), atol=0.03, rtol=0)
    assert first[:, 0].mean() > 0.5
