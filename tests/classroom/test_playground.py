"""The playground, driven as its buttons and sliders drive it, on an event loop as a kernel has one."""

import asyncio
import time
from unittest import mock

import pytest
import torch

from dipp_core.classroom import play, playground
from dipp_core.classroom.play import Choice
from dipp_core.classroom.playground import DISTILLED, FRESH, LAST, new_player
from dipp_core.method.staged import NonFiniteError
from dipp_core.worlds import plane_runs

NUMBERS = {
    "hidden": 8,
    "batch": 16,
    "steps": 30,
    "gen_lr": 2e-3,
    "ta_lr": 8e-3,
    "huber_c": 1.0,
    "points": 40,
    "seed": 0,
}
CHOICE = Choice(world="ring", method="dipp", reward="north", beta=4.0, alpha_cfg=0.0)


@pytest.fixture(scope="module")
def starts():
    world = play.new_world("ring")
    return {"ring": plane_runs.new_stack(world, 1, 8, generator=torch.Generator().manual_seed(3))}


def player_of(starts, **numbers):
    how = {"betas": [1.0, 4.0, 16.0], "strengths": [0.0, 1.0], "starts": starts}
    return new_player(CHOICE, NUMBERS | numbers, **how)


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        await asyncio.sleep(0.005)


def test_a_run_goes_from_start_to_end_with_moving_pictures(starts):
    player = player_of(starts)
    first = bytes(player.controls.canvas.value)
    assert first.startswith(b"\x89PNG")
    assert "press start" in player.controls.status.value

    async def play_it():
        with mock.patch.object(playground, "FRAME", 0.0):
            player.controls.start.click()
            assert not player.controls.stop.disabled
            await player.task

    asyncio.run(play_it())
    assert player.run.done == 30
    assert len(player.run.looks) > 1
    assert player.run.looks[-1].step == 30
    assert bytes(player.controls.canvas.value) != first
    assert "all steps are done at step 30" in player.controls.status.value
    assert player.controls.stop.disabled
    assert not player.running


def test_stop_stops_and_the_kernel_is_never_kept_waiting(starts):
    player, waits = player_of(starts, steps=10**6), []

    async def play_it():
        player.controls.start.click()
        while len(player.run.looks) < 2 or player.run.done < 5:
            begun = time.process_time()
            await asyncio.sleep(0)
            waits.append(time.process_time() - begun)
        last = player.run.done
        player.controls.stop.click()
        await asyncio.wait_for(player.task, 5)
        assert player.run.done <= last
        await asyncio.sleep(0.2)
        assert player.run.done == last

    asyncio.run(play_it())
    done = player.run.done
    assert 0 < done < 10**6
    assert f"stopped at step {done}" in player.controls.status.value
    assert player.run.looks[-1].step == done
    assert max(waits) < 0.6  # of CPU time: a slice, and a look with its picture, the first one of the run


def test_a_second_start_ends_the_first_run(starts):
    player = player_of(starts, steps=10**6)

    async def play_it():
        player.controls.start.click()
        first, task = player.run, player.task
        await until(lambda: first.done > 3)
        player.controls.beta.value = 16.0
        player.controls.start.click()
        assert player.run is not first
        await asyncio.wait_for(task, 5)
        done = first.done
        await until(lambda: player.run.done > 3)
        assert first.done == done
        assert player.run.choice.beta == 16.0
        assert not player.controls.stop.disabled
        player.controls.stop.click()
        await asyncio.wait_for(player.task, 5)

    asyncio.run(play_it())
    assert "stopped" in player.controls.status.value


def test_another_playground_takes_the_turn(starts):
    one, two = player_of(starts, steps=10**6), player_of(starts)

    async def play_it():
        one.controls.start.click()
        await until(lambda: one.run.done > 3)
        two.controls.start.click()
        assert (one.running, two.running) == (False, True)
        await asyncio.wait_for(one.task, 5)
        one.controls.stop.click()  # is not its turn: nothing
        await asyncio.wait_for(two.task, 20)

    asyncio.run(play_it())
    assert two.run.done == 30
    assert "stopped" in one.controls.status.value


def test_controls_offer_what_the_choices_allow(starts):
    controls = player_of(starts).controls
    assert [value for _, value in controls.beta.options] == [1.0, 4.0, 16.0]
    assert list(controls.origin.options) == [DISTILLED, FRESH]
    controls.world.value = "two moons"
    assert list(controls.origin.options) == [FRESH]
    controls.method.value = "sim"
    assert (controls.beta.disabled, controls.reward.disabled, controls.alpha_cfg.disabled) == (True, True, False)
    controls.method.value = "reward_only"
    assert (controls.beta.disabled, controls.reward.disabled, controls.alpha_cfg.disabled) == (False, False, True)


def test_a_run_goes_on_where_the_last_one_ended(starts):
    player = player_of(starts, steps=5)

    async def play_it():
        player.controls.start.click()
        await player.task
        ended = player.run.look().clouds
        assert LAST in player.controls.origin.options
        player.controls.origin.value, player.controls.method.value = LAST, "distar_in"
        player.controls.start.click()
        torch.testing.assert_close(player.run.look().clouds, ended)
        await player.task

    asyncio.run(play_it())


def test_a_run_that_tears_off_is_said_in_one_line(starts):
    player = player_of(starts)

    async def play_it():
        with mock.patch.object(play.Run, "step", side_effect=NonFiniteError("reward", 3, None)):
            player.controls.start.click()
            await player.task
        assert "torn off" in player.controls.status.value
        assert "larger beta" in player.controls.status.value
        assert not player.running
        with mock.patch.object(play.Run, "step", side_effect=RuntimeError("two\nlines")):
            player.controls.start.click()
            await player.task

    asyncio.run(play_it())
    assert "failed (RuntimeError: two lines)" in player.controls.status.value
    assert player.controls.stop.disabled


def test_without_a_notebook_it_is_said(starts):
    player = player_of(starts)
    player.controls.start.click()
    assert player.run is None
    assert "here is no notebook" in player.controls.status.value
