"""Rewards in the plane: their values, preferences by their law, a learned reward, and REINFORCE against the truth."""

import pytest
import torch

from dipp_core.rewards import plane as rewards
from dipp_core.worlds.plane import StackedMLP


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_the_linear_reward_points_one_way():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert rewards.linear((0.0, 1.0))(x).tolist() == [2.0, -1.0]
    assert rewards.linear((2.0, 1.0))(x).tolist() == [4.0, 5.0]


def test_the_bump_is_highest_at_its_centre_and_bounded():
    reward = rewards.bump((0.0, 2.0), width=0.5, height=3.0)
    x = torch.tensor([[0.0, 2.0], [0.0, 2.5], [50.0, 0.0]])
    torch.testing.assert_close(reward(x), torch.tensor([3.0, 3 * torch.e**-0.5, 0.0]))


def test_judgements_follow_bradley_and_terry(rng):
    a, b = torch.zeros(200_000, 2), torch.zeros(200_000, 2)
    a[:, 1] = 1.2
    wins = rewards.preference_pairs(rewards.linear(), a, b, generator=rng).float().mean().item()
    assert wins == pytest.approx(torch.sigmoid(torch.tensor(1.2)).item(), abs=0.005)


def test_a_reward_learned_from_pairs_agrees_with_the_judge_where_there_were_pairs(rng):
    oracle = rewards.bump()

    def draw(shape, generator):
        return 1.5 * torch.randn(*shape, 2, generator=generator)

    network = StackedMLP(2, [2, 32, 32, 1], generator=rng)
    learned, curve = rewards.learn_preferences(oracle, draw, network, runs=2, pairs=8000, steps=500, generator=rng)
    x = draw((2, 4000), rng)
    assert curve.shape == (500, 2)
    assert learned(x).mean(-1).abs().max() < 0.1
    for ours, judge in zip(learned(x), oracle(x), strict=True):
        assert torch.corrcoef(torch.stack([ours, judge]))[0, 1] > 0.95
    angle = torch.arange(64) * (2 * torch.pi / 64)
    far = 30 * torch.stack([angle.cos(), angle.sin()], dim=-1).expand(2, 64, 2)
    assert ((learned(far) - oracle(far)).abs().amax(-1) > 3).all()  # far from all pairs it can claim anything


def test_the_gradient_of_values_only_is_that_of_the_expected_reward(rng):
    """For r = |x|^2 the mean reward of N(x0, std^2 I) is |x0|^2 + 2 std^2, of gradient 2 x0; the leash pulls home."""
    std, x0 = 0.5, torch.tensor([[1.0, -0.5]]).expand(400_000, 2).clone().requires_grad_()
    home = torch.tensor([0.3, 0.1])
    for kl_weight, pull in ((0.0, torch.zeros(2)), (0.7, 0.7 * (x0[0].detach() - home) / std**2)):
        surrogate = rewards.values_only(
            lambda x, cond: x.square().sum(-1),
            std=std,
            kl_weight=kl_weight,
            start=lambda z, cond: home.expand_as(z),
            generator=rng,
        )
        (grad,) = torch.autograd.grad(surrogate(x0, {"z": x0.detach(), "cond": None}).sum(), x0)
        torch.testing.assert_close(grad.mean(0), 2 * x0[0].detach() - pull, atol=0.02, rtol=0)


def test_the_noise_travels_with_the_condition(rng):
    gen, draw = rewards.with_noise(lambda z, cond: 2 * z + cond, lambda shape, generator: torch.ones(*shape, 2))
    noted = draw((3, 4), rng)
    assert noted["z"].shape == (3, 4, 2)
    torch.testing.assert_close(gen(torch.zeros(3, 4, 2), noted), 2 * noted["z"] + 1)
