"""Weighted sums, one's own rewards, loading by name, and inputs that are refused."""

import sys

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.rewards import public

TEXTS = ["one", "two"]


def brightness(images, prompts):
    return images.mean((1, 2, 3))


def contrast(images, prompts):
    return images.std((1, 2, 3))


def prompt_length(images, prompts):
    return images.new_tensor([len(text) for text in prompts])


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def error(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sum_weighs_its_terms_and_their_gradients(images):
    images.requires_grad_()
    total = public.load([{"reward": brightness, "weight": 2.0}, {"reward": contrast, "weight": -0.5}])
    expected = 2 * brightness(images, TEXTS) - 0.5 * contrast(images, TEXTS)
    torch.testing.assert_close(total(images, TEXTS), expected)
    found, wanted = (torch.autograd.grad(value.sum(), images)[0] for value in (total(images, TEXTS), expected))
    torch.testing.assert_close(found, wanted)
    assert total.about.name == "2 brightness + -0.5 contrast"


def test_named_rewards_and_own_ones_add_up(folders, judge, images, prompts):
    terms = [{"reward": "pickscore", "source": folders["pickscore"], "weight": 0.1}, {"reward": brightness}]
    total = public.load(terms)
    expected = 0.1 * judge("pickscore")(images, prompts) + brightness(images, prompts)
    torch.testing.assert_close(total(images, prompts), expected)
    assert "divide by 26" in total.about.hazards
    assert not any(module.training for module in total.train().modules())


def test_a_function_is_found_by_module_and_name(images, tmp_path, monkeypatch):
    code = "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\nnumber = 3\n"
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(public.load("my_rewards:red")(images, TEXTS), images[:, 0].mean((1, 2)))
    assert "is a int, not a function" in error(lambda: public.load("my_rewards:number"))
    assert "AttributeError" in error(lambda: public.load("my_rewards:blue"))
    assert "ModuleNotFoundError" in error(lambda: public.load("no_such_module_here:red"))


def test_an_own_module_is_frozen_and_put_into_evaluation_mode(images):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, 1), torch.nn.Flatten(0)
            self.inner = torch.nn.Sequential(*layers)

        def forward(self, images, prompts):
            return self.inner(images)

    own = Own()
    reward = public.load(own)
    assert torch.equal(reward(images, TEXTS), reward.train()(images, TEXTS))
    assert not any(weight.requires_grad for weight in own.parameters())
    assert public.load(reward) is reward


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (lambda images, prompts: images.mean((2, 3))[:, :1], "shape (2,), not the shape (2, 1)"),
        (lambda images, prompts: 1.0, "not a float"),
        (lambda images, prompts: brightness(images, prompts) * 1j, "real values, not torch.complex64"),
        (lambda images: images.mean(), "fails (TypeError: "),
        (prompt_length, "gives the pictures no gradient"),
    ],
)
def test_an_own_reward_that_cannot_train_is_refused_in_one_line(images, own, says):
    assert says in error(lambda: public.load(own)(images.requires_grad_(), TEXTS))
    assert public.load(prompt_length)(images.detach(), TEXTS).tolist() == [3, 3]  # it judges all the same


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
    assert says in error(lambda: public.load(spec))


@pytest.mark.parametrize(
    ("pictures", "prompts", "says"),
    [
        (torch.zeros(2, 3, 8, 8), ["one"], "2 pictures, 1 given"),
        (torch.zeros(2, 3, 8, 8), "ab", "one string given"),
        (torch.zeros(3, 8, 8), ["one"], "(3, 8, 8)"),
        (torch.zeros(1, 4, 8, 8), ["one"], "(1, 4, 8, 8)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["one"], "torch.uint8"),
        (2 * torch.rand(1, 3, 8, 8) - 1, ["one"], "reach from -"),
        (torch.linspace(0, 255, 192).reshape(1, 3, 8, 8), ["one"], "reach from 0 to 255"),
        ([1.0], ["one"], "not list"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(pictures, prompts, says):
    assert says in error(lambda: public.load(brightness)(pictures, prompts))


def test_a_package_that_is_not_there_is_named(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "hpsv2.src", None)
    assert "hpsv2 needs a package" in error(lambda: public.load("hpsv2", folders["hpsv2"]))
