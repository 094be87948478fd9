"""The playground: all worlds, methods and rewards train as the sweeps do; its pictures; its controls."""

import asyncio
import dataclasses
import itertools
import time
from unittest import mock

import pytest
import torch

from dipp_core.classroom import playground
from dipp_core.classroom.playground import DISTILLED, FRESH, LAST, Choice, Numbers, Player, Run
from dipp_core.method.algorithm import PRESETS
from dipp_core.method.staged import NonFiniteError
from dipp_core.rewards import plane as rewards
from dipp_core.worlds import plane, plane_runs

NUMBERS = Numbers(hidden=8, batch=16, steps=6, gen_lr=2e-3, ta_lr=8e-3, huber_c=1.0, points=40, seed=0)
USUAL = Choice(world="ring", method="dipp", reward="north", beta=4.0, alpha_cfg=0.5)


def run_of(start=None, **choice):
    return playground.begin(dataclasses.replace(USUAL, **choice), NUMBERS, start=start)


@pytest.mark.parametrize(("method", "world"), zip(playground.METHODS, itertools.cycle(playground.WORLDS), strict=False))
def test_every_method_trains_and_so_does_every_world(method, world):
    assert set(playground.METHODS) == set(PRESETS)
    run = run_of(world=world, method=method)
    looks = playground.at_steps(run, [0, 2, 4])
    assert [look.step for look in looks] == [0, 2, 4]
    assert run.done == 4
    assert [look.step for look in playground.at_steps(run, [5, 9])] == [5]
    assert not run.step()
    assert not torch.equal(looks[0].clouds, looks[1].clouds)
    assert all(len(values) == 6 for values in run.curves.values())


def test_a_look_tells_the_mean_reward_and_the_distance_of_what_it_shows():
    known = (rewards.linear((0.0, 1.0)), rewards.linear((1.0, 0.0)), rewards.bump())
    for name, reward in zip(playground.REWARDS, known, strict=True):
        look = run_of(reward=name).look()
        assert look.reward == pytest.approx(reward(look.clouds, None).mean().item())
    run = run_of()
    own = run.world.sample(0, (1, 4000), generator=torch.Generator().manual_seed(0))
    near, far = (plane_runs.divergences(run.grid, own + shift)["ikl_sigma2"].item() for shift in (0.0, 1.0))
    assert 0 <= near < 0.02
    assert far > 10 * near


def test_a_run_is_that_of_the_sweeps_and_copies_its_start():
    """Step for step the numbers of `plane_runs.train` with the same settings, networks and noise."""
    world = plane.ring(plane_runs.plane_schedule())
    start = plane_runs.new_stack(world, 1, 8, generator=torch.Generator().manual_seed(3))
    before = {name: value.clone() for name, value in start.state().items()}
    run = run_of(start)
    while run.step():
        pass
    assert all(torch.equal(value, before[name]) for name, value in start.state().items())
    twin = start.pick([0])
    settings = plane_runs.settings_for(world, "dipp", 1, 16, alpha_rew=0.25, alpha_cfg=0.5)
    noise, rates = torch.Generator().manual_seed(0), {"gen_lr": 2e-3, "ta_lr": 8e-3}
    curves = plane_runs.train(twin, world, settings, reward=rewards.linear(), steps=6, generator=noise, **rates)
    torch.testing.assert_close(torch.tensor(run.curves["ta_loss"]), curves.values["ta_loss"][:, 0])
    for name, value in twin.state().items():
        torch.testing.assert_close(run.stack.state()[name], value)


@pytest.mark.parametrize("method", ["distar_out", "reward_only"])
def test_a_filmstrip_shows_looks_and_every_curve(method):
    run = run_of(method=method)
    looks = playground.at_steps(run, [0, 6])
    first, last, where, pulls, learns = playground.filmstrip(run, looks).axes
    assert [ax.get_title(loc="left") for ax in (first, last)] == ["step 0", "step 6"]
    assert last.get_xlabel() == f"reward {looks[1].reward:.2f}\n{looks[1].nats:.3f} nats"
    dots = torch.as_tensor(last.collections[-1].get_offsets().data)
    torch.testing.assert_close(dots.float(), looks[1].clouds[1])
    drawn = [line.get_label() for ax in (pulls, learns) for line in ax.lines]
    assert sorted(drawn) == sorted(playground.CURVES[name][0] for name in run.curves)
    assert list(where.lines[0].get_ydata()) == [look.reward for look in looks]


def test_methods_side_by_side():
    runs = [run_of(method=method) for method in ("dipp", "sim")]
    for run in runs:
        run.look()
    fig = playground.side_by_side(runs)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["DI++", "SIM\n(no reward)"]


def test_the_density_is_that_of_both_prompts_together_and_a_curve_is_drawn_in_windows():
    axis, values = playground.density(playground.new_world("two moons"))
    assert float(values.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.01)
    assert playground.window_means([]) == ([], [])
    assert playground.window_means([1.0, 2.0]) == ([0.5, 1.5], [1.0, 2.0])
    steps, means = playground.window_means([float(k) for k in range(121)])
    assert (len(steps), means[0]) == (40, 1.0)


@pytest.fixture(scope="module")
def starts():
    world = playground.new_world("ring")
    return {"ring": plane_runs.new_stack(world, 1, 8, generator=torch.Generator().manual_seed(3))}


def player_of(starts, steps=30):
    numbers = dataclasses.replace(NUMBERS, steps=steps)
    return Player(USUAL, numbers, betas=[1.0, 4.0, 16.0], strengths=[0.0, 1.0], starts=starts)


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        await asyncio.sleep(0.005)


def test_before_a_run_the_picture_is_where_it_would_start(starts):
    """World, start from and picture agree: on opening, and after each of them is changed."""

    seen = set()

    def agrees(world, start=None):
        run = playground.begin(dataclasses.replace(USUAL, world=world), player.numbers, start=start)
        seen.add(bytes(player.canvas.value))
        return f"ready: {run.look().words}; press start" in player.status.value

    player = player_of(starts)
    assert list(player.origin.options) == [DISTILLED, FRESH]
    assert player.origin.value == DISTILLED
    assert agrees("ring", starts["ring"])
    player.origin.value = FRESH
    assert agrees("ring")
    player.world.value = "two moons"
    assert list(player.origin.options) == [FRESH]
    assert agrees("two moons")
    assert len(seen) == 3


def test_a_run_goes_from_start_to_end_with_moving_pictures_and_the_next_goes_on_from_there(starts):
    player = player_of(starts)
    first = bytes(player.canvas.value)
    assert first.startswith(b"\x89PNG")
    assert "press start" in player.status.value

    async def play():
        with mock.patch.object(playground, "FRAME", 0.0):
            player.start.click()
            assert not player.halt.disabled
            await player.task
        run = player.run
        assert run.looks[-1].step == run.done == 30
        assert len(run.looks) > 1
        assert bytes(player.canvas.value) != first
        assert "all steps are done at step 30" in player.status.value
        assert player.halt.disabled
        assert not player.running
        player.origin.value, player.method.value = LAST, "distar_in"
        assert f"ready: {run.looks[-1].words}" in player.status.value
        player.start.click()
        torch.testing.assert_close(player.run.look().clouds, run.looks[-1].clouds)
        await player.task

    asyncio.run(play())


def test_stop_stops_and_the_kernel_is_never_kept_waiting(starts):
    player, waits = player_of(starts, steps=10**6), []

    async def play():
        player.start.click()
        while len(player.run.looks) < 2 or player.run.done < 5:
            begun = time.process_time()
            await asyncio.sleep(0)
            waits.append(time.process_time() - begun)
        last = player.run.done
        player.halt.click()
        await asyncio.wait_for(player.task, 5)
        assert player.run.done <= last
        await asyncio.sleep(0.2)
        assert player.run.done == last

    asyncio.run(play())
    assert f"stopped at step {player.run.done}" in player.status.value
    assert player.run.looks[-1].step == player.run.done
    assert max(waits) < 0.6  # of CPU time: a slice, and a look with its picture, the first one of the run


def test_a_second_start_ends_the_first_run_whosever_it_is(starts):
    player, other = player_of(starts, steps=10**6), player_of(starts)

    async def play():
        player.start.click()
        first, task = player.run, player.task
        await until(lambda: first.done > 3)
        player.world.value, player.beta.value = "two moons", 16.0
        assert "training" in player.status.value  # a run under way keeps its picture
        player.start.click()
        await asyncio.wait_for(task, 5)
        done = first.done
        await until(lambda: player.run.done > 3)
        assert first.done == done
        assert (player.run.choice.world, player.run.choice.beta) == ("two moons", 16.0)
        assert not player.halt.disabled
        other.start.click()
        assert (player.running, other.running) == (False, True)
        await asyncio.wait_for(player.task, 5)
        player.halt.click()  # is not its turn: nothing
        await asyncio.wait_for(other.task, 20)

    asyncio.run(play())
    assert other.run.done == 30
    assert "stopped" in player.status.value


def test_controls_offer_what_the_method_looks_at(starts):
    player = player_of(starts)
    assert [value for _, value in player.beta.options] == [1.0, 4.0, 16.0]
    assert [value for _, value in player.alpha_cfg.options] == [0.0, 0.5, 1.0]
    player.method.value = "sim"
    assert (player.beta.disabled, player.reward.disabled, player.alpha_cfg.disabled) == (True, True, False)
    player.method.value = "reward_only"
    assert (player.beta.disabled, player.reward.disabled, player.alpha_cfg.disabled) == (False, False, True)
    player.start.click()
    assert player.run is None
    assert "here is no notebook" in player.status.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NonFiniteError("reward", 3, None), ["torn off", "larger beta"]),
        (RuntimeError("two\nlines"), ["failed (RuntimeError: two lines)"]),
    ],
)
def test_a_run_that_fails_is_said_in_one_line(starts, error, words):
    player = player_of(starts)

    async def play():
        with mock.patch.object(Run, "step", side_effect=error):
            player.start.click()
            await player.task

    asyncio.run(play())
    assert all(word in player.status.value for word in words)
    assert player.halt.disabled
    assert not player.running
