"""A student of a tiny miniature: what it learns, that killing does not show, and what is kept of it."""

import functools

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.models.miniature import settings_for
from dipp_core.training.student import Pace, new_student, teach
from dipp_core.worlds import shapes


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A tiny UNet and a tiny transformer."""
    root = tmp_path_factory.mktemp("worlds")
    build = functools.partial(miniature.build, words=shapes.vocabulary(), size="tiny")
    return {kind: folders.load(build(root / kind, kind)) for kind in miniature.KINDS}


@pytest.fixture
def world(worlds):
    return worlds["unet"]


def brightness(images, texts):
    return images.mean((1, 2, 3))


def learn(folder, world, name, student, *, steps=4, ema=0.5, reward=brightness, say=lambda line: None, **numbers):
    prompts = world.prompts(shapes.captions(shapes.split("train")[:8]))
    return teach(
        folder,
        student,
        world,
        settings_for(world, name, 4, **numbers),
        Pace(steps=steps, gen_lr=2e-3, ta_lr=1e-3, ema=ema),
        prompts=prompts,
        reward=world.reward(reward, prompts),
        seed=0,
        progress=False,
        save_steps=2,
        say=say,
    )


def equal(a, b):
    return all(torch.equal(value, b.state()[name]) for name, value in a.state().items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("diff_instruct", "unet"),
        ("dipp", "dit"),
        ("distar_in", "unet"),
        ("distar_out", "dit"),
        ("sim", "dit"),
        ("reward_only", "unet"),
    ],
)
def test_every_member_of_the_family_teaches(worlds, tmp_path, name, kind):
    student = new_student(worlds[kind], 625)
    before = {key: value.clone() for key, value in student.state().items()}
    numbers = {} if name == "reward_only" else {"alpha_cfg": 0.5}
    after = learn(tmp_path, worlds[kind], name, student, steps=2, **numbers).state()
    moved = {key.partition(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved == ({"gen"} if name == "reward_only" else {"gen", "ta"})


def test_what_is_rewarded_becomes_more(world, tmp_path):
    """Brightness, rewarded and punished; the decoder has random weights, so it does not go far."""
    prompts = world.prompts(shapes.captions(shapes.split("train")[:8]))

    def after(sign):
        student, judge = new_student(world, 625), lambda images, texts: sign * brightness(images, texts)
        taught = learn(tmp_path / f"{sign}", world, "reward_only", student, steps=20, reward=judge)
        return world.paint(taught.gen, prompts, 2, seed=1).mean()

    before = world.paint(new_student(world, 625).gen, prompts, 2, seed=1).mean()
    assert after(1) > before + 0.003
    assert after(-1) < before - 0.003


def test_stopped_and_resumed_is_as_never_stopped_and_another_run_is_refused(world, tmp_path):
    numbers, said, calls = {"alpha_rew": 0.1, "alpha_cfg": 0.5}, [], []
    student = new_student(world, 625)
    straight = learn(tmp_path / "a", world, "dipp", student, **numbers)
    assert not equal(straight, student)  # what is kept is the average

    def failing(images, texts):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("pulled the plug")
        return brightness(images, texts)

    with pytest.raises(RuntimeError, match="plug"):
        learn(tmp_path / "b", world, "dipp", new_student(world, 625), reward=failing, **numbers)
    resumed = learn(tmp_path / "b", world, "dipp", new_student(world, 625), say=said.append, **numbers)
    assert any("continued at step 2 of 4" in line for line in said)
    assert equal(straight, resumed)
    for name, changes, key in (
        ("dipp", {"alpha_rew": 0.2}, "alpha_rew"),
        ("dipp", {"alpha_cfg": 1.5}, "alpha_cfg"),
        ("distar_in", {}, "score"),
    ):
        with pytest.raises(InputError, match=f"is of another run: .*{key}"):
            learn(tmp_path / "b", world, name, new_student(world, 625), **numbers | changes)


def test_a_state_goes_into_another_student(world, tmp_path):
    one = new_student(world, 625)
    assert equal(learn(tmp_path, world, "dipp", one, steps=2, ema=0.0), one)  # decay 0: the average is the last
    other = new_student(world, 625)
    assert not equal(one, other)
    assert equal(one, other.load(one.state()))
