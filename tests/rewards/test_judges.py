"""What every named reward must do: a true gradient, evaluation mode for ever, precision, checkpointing, metadata."""

import dataclasses

import pytest
import torch

from dipp_core.rewards import base

NAMES = base.NAMES
SIZE = (90, 70)


@pytest.fixture(scope="module")
def doubles(judge):
    """Every reward in float64."""
    return {name: judge(name, dtype=torch.float64) for name in NAMES}


@pytest.fixture
def pictures(picture, tensor):
    """Two pictures clear of 0 and 1, where the official path cuts off and a difference quotient would see it."""
    return 0.2 + 0.6 * tensor(picture(*SIZE), picture(*SIZE, seed=1)).double()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_central_differences(name, doubles, pictures, prompts, record_property):
    """Along ten directions, in float64."""
    reward, x = doubles[name], pictures.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(x, prompts).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()
    generator, step, worst = torch.Generator().manual_seed(0), 1e-5, 0.0
    with torch.no_grad():
        for _ in range(10):
            way = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            ahead, behind = (reward(x + sign * step * way, prompts).sum() for sign in (1, -1))
            exact = (gradient * way).sum()
            worst = max(worst, ((ahead - behind) / (2 * step) - exact).abs().item() / gradient.norm().item())
    print(f"{name}: central differences agree to {worst:.1e} of the gradient's norm")
    assert worst < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_each_picture_is_judged_by_itself(name, doubles, pictures, prompts):
    together = doubles[name](pictures, prompts)
    alone = torch.cat([doubles[name](pictures[k : k + 1], prompts[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)  # CLIP reads prompts in float32
    assert abs(together[0] - together[1]) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_matters_where_it_is_said_to_be_read(name, doubles, pictures, prompts):
    straight, swapped = (doubles[name](pictures, texts) for texts in (prompts, prompts[::-1]))
    assert torch.equal(straight, swapped) == (doubles[name].about.prompt_tokens == 0)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_mode_stays_whatever_is_asked(name, doubles, pictures, prompts):
    reward = doubles[name]
    with torch.no_grad():
        before = reward(pictures, prompts)
        assert not any(module.training for module in reward.train().modules())
        reward.network.train()  # behind its back
        after = reward(pictures, prompts)
    assert torch.equal(before, after)
    assert not any(module.training for module in reward.modules())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_it_is_trained(name, doubles, pictures, prompts):
    reward = doubles[name]
    reward(pictures.requires_grad_(), prompts).sum().backward()
    assert all(not weight.requires_grad and weight.grad is None for weight in reward.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_memory_and_nothing_else(name, judge, doubles, pictures, prompts):
    kept = []

    def gradient(reward):
        kept.append(0)

        def count(saved):
            kept[-1] += saved.numel()
            return saved

        x = pictures.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            value = reward(x, prompts).sum()
        return torch.autograd.grad(value, x)[0]

    plain = gradient(doubles[name])
    lean = gradient(judge(name, dtype=torch.float64, checkpointing=True))
    torch.testing.assert_close(plain, lean, rtol=1e-9, atol=1e-12)
    assert kept[1] < kept[0]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_float32_values_and_a_near_gradient(name, judge, doubles, pictures, prompts):
    reward = judge(name, dtype=torch.bfloat16)
    assert {weight.dtype for weight in reward.parameters()} == {torch.bfloat16}
    x, x64 = pictures.float().requires_grad_(), pictures.clone().requires_grad_()
    value, value64 = reward(x, prompts), doubles[name](x64, prompts)
    assert value.dtype is torch.float32
    near, exact = (torch.autograd.grad(v.sum(), at)[0].double() for v, at in ((value, x), (value64, x64)))
    assert (near * exact).sum() / near.norm() / exact.norm() > 0.95
    assert (value - value64).abs().max() < 0.1 * (1 + value64.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_around_it_does_not_change_it(name, judge, pictures, prompts):
    reward = judge(name)
    with torch.no_grad():
        expected = reward(pictures.float(), prompts)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(reward(pictures.float(), prompts), expected)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name, judge, folders):
    about = judge(name).about
    assert about.name == name
    assert about.source == str(folders[name])
    empty = [field.name for field in dataclasses.fields(about) if getattr(about, field.name) in ("", "unknown", None)]
    assert empty == []


def test_the_two_versions_of_hpsv2_are_told_apart(judge):
    assert [judge(name).about.version for name in ("hpsv2", "hpsv2.1")] == ["v2.0", "v2.1"]


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
    reward = base.load(lambda images, texts: images.mean((1, 2, 3)))
    with pytest.raises(base.RewardError) as caught:
        reward(pictures, prompts)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
