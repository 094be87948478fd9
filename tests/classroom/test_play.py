"""A run to play with: every world, method and reward trains, what is looked at, and that it is the sweeps' own run."""

import pytest
import torch

from dipp_core.classroom import play
from dipp_core.classroom.play import Choice
from dipp_core.method.algorithm import PRESETS
from dipp_core.rewards import plane as rewards
from dipp_core.worlds import plane, plane_runs

NUMBERS = {"hidden": 8, "batch": 16, "steps": 6, "gen_lr": 2e-3, "ta_lr": 8e-3, "huber_c": 1.0, "points": 40, "seed": 0}
USUAL = {"world": "ring", "method": "dipp", "reward": "north", "beta": 4.0, "alpha_cfg": 0.5}


def run_of(start=None, numbers=NUMBERS, **choice):
    return play.begin(Choice(**(USUAL | choice)), start=start, **numbers)


def test_all_members_of_the_family_can_be_chosen():
    assert set(play.METHODS) == set(PRESETS)


@pytest.mark.parametrize("world", play.WORLDS)
@pytest.mark.parametrize("method", play.METHODS)
def test_every_method_trains_in_every_world(world, method):
    run = run_of(world=world, method=method, numbers=NUMBERS | {"steps": 2})
    looks = play.at_steps(run, [0, 2])
    assert [look.step for look in looks] == [0, 2]
    assert not torch.equal(looks[0].clouds, looks[1].clouds)
    assert looks[0].clouds.shape == (2, 40, 2)
    assert all(len(values) == 2 for values in run.curves.values())
    assert not run.step()


@pytest.mark.parametrize("reward", play.REWARDS)
def test_a_look_tells_the_mean_reward_of_what_it_shows(reward):
    run = run_of(reward=reward)
    look = run.look()
    known = {
        "north": rewards.linear((0.0, 1.0)),
        "east": rewards.linear((1.0, 0.0)),
        "a hill at (0, 2)": rewards.bump(),
    }
    assert look.reward == pytest.approx(known[reward](look.clouds, None).mean().item())


def test_nats_are_near_zero_for_the_law_itself_and_large_far_away():
    run = run_of(numbers=NUMBERS | {"points": 4000})
    world, g = run.world, torch.Generator().manual_seed(0)
    own = world.sample(0, (1, 4000), generator=g)
    found = [play.plane_runs.divergences(run.grid, own + shift)["ikl_sigma2"].item() for shift in (0.0, 1.0)]
    assert 0 <= found[0] < 0.02
    assert found[1] > 10 * found[0]


def test_a_run_is_that_of_the_sweeps():
    """Step for step the numbers of `plane_runs.train` with the same settings, networks and noise."""
    world = plane.ring(plane_runs.plane_schedule())
    start = plane_runs.new_stack(world, 1, 8, generator=torch.Generator().manual_seed(3))
    run = run_of(start)
    while run.step():
        pass
    twin = start.pick([0])
    settings = plane_runs.settings_for(world, "dipp", 1, 16, alpha_rew=0.25, alpha_cfg=0.5)
    noise, rates = torch.Generator().manual_seed(0), {"gen_lr": 2e-3, "ta_lr": 8e-3}
    curves = plane_runs.train(twin, world, settings, reward=rewards.linear(), steps=6, generator=noise, **rates)
    torch.testing.assert_close(torch.tensor(run.curves["ta_loss"]), curves.values["ta_loss"][:, 0])
    for name, value in twin.state().items():
        torch.testing.assert_close(run.stack.state()[name], value)


def test_the_start_is_copied():
    start = run_of().stack
    before = {name: value.clone() for name, value in start.state().items()}
    run = run_of(start)
    run.step()
    assert all(torch.equal(value, before[name]) for name, value in start.state().items())
    assert any(not torch.equal(value, before[name]) for name, value in run.stack.state().items())


def test_choices_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="unknown world 'sphere': one of ring, two moons"):
        Choice(**(USUAL | {"world": "sphere"}))


def test_what_a_method_does_not_look_at_is_not_used():
    assert Choice(**(USUAL | {"method": "sim"})).numbers() == {"alpha_cfg": 0.5}
    assert Choice(**(USUAL | {"method": "reward_only"})).numbers() == {"alpha_rew": 0.25}
    assert Choice(**USUAL).numbers() == {"alpha_rew": 0.25, "alpha_cfg": 0.5}


def test_a_run_stops_at_the_last_look_and_goes_on():
    run = run_of()
    assert [look.step for look in play.at_steps(run, [0, 2, 3])] == [0, 2, 3]
    assert run.done == 3
    assert [look.step for look in play.at_steps(run, [5, 9])] == [5]
    assert run.done == 6
