"""Pictures of runs: they show the samples, the numbers and all curves that a run has."""

import pytest
import torch

from dipp_core.classroom import play, play_pictures
from dipp_core.classroom.play import Choice

NUMBERS = {"hidden": 8, "batch": 16, "steps": 6, "gen_lr": 2e-3, "ta_lr": 8e-3, "huber_c": 1.0, "points": 40, "seed": 0}


def ended(method, alpha_cfg=0.5):
    choice = Choice(world="ring", method=method, reward="north", beta=4.0, alpha_cfg=alpha_cfg)
    run = play.begin(choice, **NUMBERS)
    return run, play.at_steps(run, [0, 6])


@pytest.mark.parametrize("method", ["dipp", "distar_out", "reward_only"])
def test_a_filmstrip_shows_looks_and_every_curve(method):
    run, looks = ended(method)
    fig = play_pictures.filmstrip(run, looks)
    first, last, where, pulls, learns = fig.axes
    assert [ax.get_title(loc="left") for ax in (first, last)] == ["step 0", "step 6"]
    assert last.get_xlabel() == f"reward {looks[1].reward:.2f}\n{looks[1].nats:.3f} nats"
    dots = torch.as_tensor(last.collections[-1].get_offsets().data)
    torch.testing.assert_close(dots.float(), looks[1].clouds[1])
    drawn = [line.get_label() for ax in (pulls, learns) for line in ax.lines]
    assert sorted(drawn) == sorted(play_pictures.CURVES[name][0] for name in run.curves)
    assert list(where.lines[0].get_ydata()) == [look.reward for look in looks]


def test_methods_side_by_side():
    runs = [ended(method)[0] for method in ("dipp", "sim")]
    fig = play_pictures.side_by_side(runs)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["DI++", "SIM\n(no reward)"]


def test_the_density_is_that_of_both_prompts_together():
    world = play.new_world("two moons")
    axis, values = play_pictures.density(world, 61)
    assert float(values.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.01)


def test_windows_of_a_curve():
    assert play_pictures.windows([]) == ([], [])
    assert play_pictures.windows([1.0, 2.0]) == ([0.5, 1.5], [1.0, 2.0])
    steps, means = play_pictures.windows([float(k) for k in range(121)])
    assert len(steps) == 40
    assert means[0] == 1.0
