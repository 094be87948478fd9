"""Sweeps: runs of a stack are independent, a stack can be taken apart and saved, and training does what it should."""

import pytest
import torch
from worlds.small import normal, rng

from dipp_core.rewards.plane import linear
from dipp_core.worlds import plane, plane_runs
from dipp_core.worlds.gaussian import Gaussian, GaussianMixture, integral_kl

WORLD = plane.ring(plane_runs.plane_schedule())


def stack_of(runs, seed=0):
    return plane_runs.new_stack(WORLD, runs, 16, generator=rng(seed))


def aligned(stack, alpha_rew, steps=12, **options):
    settings = plane_runs.settings_for(WORLD, "dipp", stack.runs, 64, alpha_rew=torch.as_tensor(alpha_rew))
    rates = {"gen_lr": 2e-3, "ta_lr": 4e-3, "generator": rng(1)}
    return plane_runs.train(stack, WORLD, settings, reward=linear(), steps=steps, **rates, **options)


def samples(stack, prompt=0):
    return plane_runs.generate(stack, WORLD, prompt, 500, generator=rng(2))


def test_the_same_seed_gives_the_same_numbers_and_what_one_run_is_told_does_not_reach_the_others():
    one, same, other = stack_of(3), stack_of(3), stack_of(3)
    first, second, _ = aligned(one, [0.5] * 3), aligned(same, [0.5] * 3), aligned(other, [0.5, 4.0, 0.5])
    assert torch.equal(samples(one), samples(same))
    assert all(torch.equal(value, second.values[name]) for name, value in first.values.items())
    assert torch.equal(samples(one)[[0, 2]], samples(other)[[0, 2]])
    assert not torch.equal(samples(one)[1], samples(other)[1])


def test_picked_and_repeated_runs_are_copies():
    stack = stack_of(3)
    picked, before = stack.pick([2, 0, 2]), samples(stack)
    torch.testing.assert_close(samples(picked), before[[2, 0, 2]])
    torch.testing.assert_close(samples(stack.repeat(2)), before[[0, 0, 1, 1, 2, 2]])
    aligned(picked, [1.0, 1.0, 1.0])
    assert torch.equal(samples(stack), before)
    assert not torch.allclose(samples(picked)[0], samples(picked)[2])  # the same start, noise of its own


def test_a_stack_comes_back_from_its_state():
    stack, fresh = stack_of(2), stack_of(2, seed=5)
    assert not torch.equal(samples(stack), samples(fresh))
    assert torch.equal(samples(stack), samples(fresh.load(stack.state())))
    x, t, cond = torch.randn(2, 4, 2), torch.rand(2, 4), torch.rand(2, 4, 8)
    assert torch.equal(stack.ta(x, t, cond), fresh.ta(x, t, cond))


def test_curves_have_a_value_for_every_step_and_run_and_the_learning_rate_falls_to_nothing():
    """The last step is smaller than the first by far: Adam's steps have the size of the rate."""
    stack, seen = stack_of(2), []
    weight = stack.gen.body.weights[1]
    curves = aligned(stack, [0.5, 1.0], steps=40, watch=lambda record: seen.append(weight.detach().clone()))
    first, middle, last = ((seen[i + 1] - seen[i]).abs().mean() for i in (5, 18, 38))
    assert last < 0.2 * min(first, middle)
    assert set(curves.values) == {"reward", "divergence", "norm_reward", "norm_divergence", "grad_norm", "ta_loss"}
    assert {value.shape for value in curves.values.values()} == {(40, 2)}
    steps, means = curves.smooth("reward", 4)
    torch.testing.assert_close(steps[:3], torch.tensor([1.5, 5.5, 9.5]))
    torch.testing.assert_close(means[0], curves.values["reward"][:4].mean(0))


def test_at_constant_rates_what_happens_by_some_step_does_not_depend_on_how_many_follow():
    few, many = (aligned(stack_of(1), [1.0], steps=steps, falling=False) for steps in (4, 8))
    assert all(torch.equal(values, many.values[name][:4]) for name, values in few.values.items())


def test_one_gaussian_is_the_same_for_both_prompts():
    world = plane.one_gaussian(WORLD.schedule, std=1.5)
    assert world.spread == pytest.approx(1.5)
    assert torch.equal(*(world.sample(prompt, (9,), generator=rng()) for prompt in (0, 1)))


def test_more_reward_scale_gives_more_reward():
    stack = stack_of(1).repeat(3)
    aligned(stack, [0.0, 0.5, 5.0], steps=150)
    means = samples(stack)[..., 1].mean(-1)
    assert means[0] < means[1] < means[2]


def test_distillation_brings_the_samples_to_the_reference():
    stack = stack_of(2)
    truth = WORLD.sample(0, (500,), generator=rng(3)).norm(dim=-1).mean()
    before = (samples(stack).norm(dim=-1).mean(-1) - truth).abs()
    settings = plane_runs.settings_for(WORLD, "diff_instruct", 2, 128)
    plane_runs.train(stack, WORLD, settings, steps=250, gen_lr=5e-3, ta_lr=1e-2, generator=rng(1))
    after = (samples(stack).norm(dim=-1).mean(-1) - truth).abs()
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
    rates = {"gen_lr": 1e-3, "ta_lr": 1e-3, "generator": rng(1)}
    plane_runs.train(stack, WORLD, settings, reward=linear(), steps=3, **rates)
    assert all(torch.equal(before[name], value) for name, value in stack.ta.state_dict().items())


def test_data_is_at_no_distance_from_the_reference_and_prompts_of_the_ring_are_mirror_images():
    both = plane_runs.both_prompts(lambda prompt: WORLD.sample(prompt, (1, 50_000), generator=rng(prompt)))
    found = plane_runs.divergences(plane_runs.grids_for(WORLD, 0, lambda x: x[..., 1]), both)
    assert set(found) == {"ikl_one", "ikl_sigma2", "kl"}
    assert all((value >= 0).all() and (value < 3e-3).all() for value in found.values())


def test_a_shifted_gaussian_is_at_the_distance_of_the_closed_form():
    """A world of one Gaussian, and samples of it that are shifted."""
    law, shift, one = normal([0.0, 0.0], [0.4, 0.4]), torch.tensor([0.5, 0.2]).double(), torch.ones(1, 1).double()
    world = plane.World(GaussianMixture(one[0], law.mean[None], law.cov[None]), one, plane_runs.plane_schedule())
    moved = world.sample(0, (1, 200_000), generator=rng()) + shift
    found = plane_runs.divergences(plane_runs.grids_for(world, 0, lambda x: x[..., 1]), moved)
    for weight in ("one", "sigma2"):
        wanted = integral_kl(Gaussian(shift, law.cov), law, plane_runs.levels_for(world, weight))
        assert found[f"ikl_{weight}"].item() == pytest.approx(wanted.item(), rel=0.02)
    assert found["kl"].item() == pytest.approx(shift.square().sum().item() / (2 * 0.41), rel=0.02)
