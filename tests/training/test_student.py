"""A student of a tiny miniature: what it learns, that killing does not show, and what is kept of it."""

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.models.miniature import settings_for
from dipp_core.training.student import Pace, new_student, teach
from dipp_core.worlds import shapes

PACE = Pace(steps=4, gen_lr=1e-3, ta_lr=1e-3, ema=0.5)


@pytest.fixture(scope="module", params=miniature.KINDS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / request.param
    return folders.load(miniature.build(folder, request.param, words=shapes.vocabulary(), size="tiny"))


def brightness(images, texts):
    return images.mean((1, 2, 3))


def learn(folder, world, name, *, pace=PACE, student=None, reward=brightness, say=lambda line: None, **numbers):
    prompts = world.prompts(shapes.captions(shapes.split("train")[:8]))
    return teach(
        folder,
        student or new_student(world, 625),
        world,
        settings_for(world, name, 4, **numbers),
        pace,
        prompts=prompts,
        reward=world.reward(reward, prompts),
        seed=0,
        progress=False,
        save_steps=2,
        say=say,
    )


def equal(a, b):
    return all(torch.equal(value, b.state()[name]) for name, value in a.state().items())


@pytest.mark.parametrize("name", ["diff_instruct", "dipp", "distar_in", "distar_out", "sim", "reward_only"])
def test_every_member_of_the_family_teaches(world, tmp_path, name):
    numbers = {} if name == "reward_only" else {"alpha_cfg": 0.5}
    start = new_student(world, 625)
    before = {key: value.clone() for key, value in start.state().items()}
    after = learn(tmp_path, world, name, student=start, **numbers).state()
    moved = {
        role
        for role in ("gen", "ta")
        if any(not torch.equal(after[k], before[k]) for k in after if k[:3] == f"{role}."[:3])
    }
    assert moved == ({"gen"} if name == "reward_only" else {"gen", "ta"})


def test_what_is_rewarded_becomes_more(world, tmp_path):
    """Brightness, rewarded and punished; the decoder has random weights, so it does not go far."""
    pace = Pace(steps=20, gen_lr=2e-3, ta_lr=1e-3, ema=0.5)
    prompts = world.prompts(shapes.captions(shapes.split("train")[:8]))

    def after(sign):
        folder = tmp_path / f"{sign}"
        taught = learn(folder, world, "reward_only", pace=pace, reward=lambda x, texts: sign * brightness(x, texts))
        return world.paint(taught.gen, prompts, 2, seed=1).mean()

    before = world.paint(new_student(world, 625).gen, prompts, 2, seed=1).mean()
    assert after(1) > before + 0.003
    assert after(-1) < before - 0.003


def test_stopped_and_resumed_is_as_never_stopped(world, tmp_path):
    straight = learn(tmp_path / "a", world, "dipp", alpha_rew=0.1, alpha_cfg=0.5)
    student, calls = new_student(world, 625), []

    def failing(images, texts):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("pulled the plug")
        return brightness(images, texts)

    with pytest.raises(RuntimeError, match="plug"):
        learn(tmp_path / "b", world, "dipp", student=student, reward=failing, alpha_rew=0.1, alpha_cfg=0.5)
    said = []
    resumed = learn(tmp_path / "b", world, "dipp", say=said.append, alpha_rew=0.1, alpha_cfg=0.5)
    assert any("continued at step 2 of 4" in line for line in said)
    assert equal(straight, resumed)


@pytest.mark.parametrize(
    ("name", "numbers", "said"),
    [
        ("dipp", {"alpha_rew": 0.2, "alpha_cfg": 0.5}, "alpha_rew"),
        ("dipp", {"alpha_rew": 0.1, "alpha_cfg": 1.5}, "alpha_cfg"),
        ("distar_in", {"alpha_rew": 0.1, "alpha_cfg": 0.5}, "score"),
    ],
)
def test_a_folder_of_another_run_is_refused(world, tmp_path, name, numbers, said):
    learn(tmp_path, world, "dipp", alpha_rew=0.1, alpha_cfg=0.5)
    with pytest.raises(InputError, match=said) as caught:
        learn(tmp_path, world, name, **numbers)
    assert "another run" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_kept_is_the_average(world, tmp_path):
    """With decay 0 the average is the generator itself; with another it is not."""
    student = new_student(world, 625)
    assert equal(
        learn(tmp_path / "a", world, "dipp", student=student, pace=Pace(steps=2, gen_lr=1e-3, ta_lr=1e-3, ema=0.0)),
        student,
    )
    student = new_student(world, 625)
    assert not equal(learn(tmp_path / "b", world, "dipp", student=student), student)


def test_a_state_goes_into_another_student(world):
    one, other = new_student(world, 625), new_student(world, 625)
    with torch.no_grad():
        for weight in [*one.gen.parameters(), *one.ta.parameters()]:
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert not equal(one, other)
    assert equal(one, other.load(one.state()))
    assert equal(one, one.copy())


def test_pictures_of_the_same_seed_have_the_same_noise(world):
    prompts, student = world.prompts(shapes.captions(shapes.split("test")[:3])), new_student(world, 625)
    images = world.paint(student.gen, prompts, 2, seed=5)
    assert images.shape == (3, 2, 3, 32, 32)
    torch.testing.assert_close(images, world.paint(student.gen, prompts, 2, seed=5, batch=1), atol=1e-5, rtol=0)
    assert (images - world.paint(student.gen, prompts, 2, seed=6)).abs().max() > 0.01
