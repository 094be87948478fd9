"""Weighted sums, one's own rewards, and loading by name."""

import pytest
import torch

from dipp_core.rewards import base

TEXTS = ["one", "two"]


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def prompt_length(images, prompts):
    return images.new_tensor([len(text) for text in prompts])


def contrast(images, prompts):
    return images.std((1, 2, 3))


def column(images, prompts):
    return images.mean((2, 3))[:, :1]


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def error(call) -> str:
    with pytest.raises(base.RewardError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sum_weighs_its_terms(images):
    total = base.load([{"reward": brightness, "weight": 2.0}, {"reward": contrast, "weight": -0.5}])
    expected = 2 * brightness(images, TEXTS) - 0.5 * contrast(images, TEXTS)
    torch.testing.assert_close(total(images, TEXTS), expected)
    assert [name for name, _ in total.parts(images, TEXTS)] == ["brightness", "contrast"]
    assert total.about.name == "2 brightness + -0.5 contrast"


def test_the_gradient_of_a_sum_is_the_sum_of_gradients(images):
    images.requires_grad_()
    total = base.load([{"reward": brightness, "weight": 2.0}, {"reward": contrast}])
    (found,) = torch.autograd.grad(total(images, TEXTS).sum(), images)
    parts = [torch.autograd.grad(part(images, TEXTS).sum(), images)[0] for part in (brightness, contrast)]
    torch.testing.assert_close(found, 2 * parts[0] + parts[1])


def test_named_rewards_and_own_ones_add_up(folders, judge, images, prompts):
    total = base.load([{"reward": "pickscore", "source": folders["pickscore"], "weight": 0.1}, {"reward": brightness}])
    expected = 0.1 * judge("pickscore")(images, prompts) + brightness(images, prompts)
    torch.testing.assert_close(total(images, prompts), expected)
    assert "divide by 26" in total.about.hazards
    assert not any(module.training for module in total.train().modules())


def test_a_function_is_found_by_module_and_name(images, tmp_path, monkeypatch):
    code = "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\nnumber = 3\n"
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(base.load("my_rewards:red")(images, TEXTS), images[:, 0].mean((1, 2)))
    assert "is a int, not a function" in error(lambda: base.load("my_rewards:number"))
    assert "AttributeError" in error(lambda: base.load("my_rewards:blue"))
    assert "ModuleNotFoundError" in error(lambda: base.load("no_such_module_here:red"))


def test_an_own_module_is_frozen_and_put_into_evaluation_mode(images):
    layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, 1), torch.nn.Flatten(0)
    network = torch.nn.Sequential(*layers)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, images, prompts):
            return self.inner(images)

    reward = base.load(Own())
    assert torch.equal(reward(images, TEXTS), reward.train()(images, TEXTS))
    assert not any(weight.requires_grad for weight in network.parameters())


def test_a_reward_without_gradient_judges_but_does_not_train(images):
    reward = base.load(prompt_length)
    assert reward(images, TEXTS).tolist() == [3, 3]
    assert "gives the pictures no gradient" in error(lambda: reward(images.requires_grad_(), TEXTS))


def test_a_reward_of_the_wrong_shape_is_refused(images):
    assert "shape (2,), not the shape (2, 1)" in error(lambda: base.load(column)(images, TEXTS))
    assert "not a float" in error(lambda: base.load(lambda images, prompts: 1.0)(images, TEXTS))


def test_a_judge_is_taken_as_it_is():
    reward = base.load(brightness)
    assert base.load(reward) is reward


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("imagereward", "known are image_reward"),
        (7, "7 is no reward"),
        ([], "at least one"),
        ([{"weight": 1.0}], "a term of a sum has a reward"),
        ([{"reward": brightness, "wieght": 1.0}], "nothing else"),
        ([{"reward": brightness, "weight": "2"}], "give a number"),
        ([{"reward": brightness, "weight": float("nan")}], "give a number"),
        ([{"reward": brightness, "weight": True}], "give a number"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_in_one_line(spec, says):
    assert says in error(lambda: base.load(spec))


def test_a_package_that_is_not_there_is_named(monkeypatch, folders):
    import sys

    monkeypatch.setitem(sys.modules, "hpsv2.src", None)
    assert "hpsv2 needs a package" in error(lambda: base.load("hpsv2", folders["hpsv2"]))


def test_a_reward_on_pictures_becomes_a_reward_on_latents(images):
    """`LatentDiffusion.reward` decodes, looks the prompts up and asks the judge."""
    from types import SimpleNamespace

    from dipp_core.models.latent import LatentDiffusion

    world = SimpleNamespace(decode=lambda x0: x0.sigmoid())
    prompts = SimpleNamespace(texts_of=lambda cond: TEXTS)
    reward = LatentDiffusion.reward(world, base.load(brightness), prompts)
    x0 = images.clone().requires_grad_()
    reward(x0, None).sum().backward()
    assert x0.grad.abs().min() > 0
