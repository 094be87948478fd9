"""A taste from few votes: its fit against logistic regression's optimum, ties, nothing from nothing, its gradient."""

import pytest
import torch

from dipp_core.classroom import taste
from dipp_core.models.miniature import seeded
from dipp_core.rewards.shapes import PreferenceReward
from dipp_core.worlds import shapes


def test_the_direction_is_a_zero_of_the_gradient():
    """sum_i (s_i - sigmoid(w . d_i)) d_i = ridge w at the optimum, for wins, losses and ties alike."""
    g = torch.Generator().manual_seed(0)
    differences, scores = torch.randn(40, 6, generator=g), torch.randint(3, (40,), generator=g) / 2
    w = taste.fit_direction(differences, scores, 0.3)
    residual = (scores - torch.sigmoid(differences @ w)) @ differences - 0.3 * w
    assert residual.abs().max() < 1e-3
    assert w.norm() > 0.1


def test_ties_and_contradictions_teach_nothing():
    differences = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert taste.fit_direction(differences, torch.full((10,), 0.5), 0.3).abs().max() < 1e-4
    both = torch.cat([differences, differences]), torch.cat([torch.ones(10), torch.zeros(10)])
    assert taste.fit_direction(*both, 0.3).abs().max() < 1e-4


@pytest.fixture(scope="module")
def world():
    """Pairs of pictures of which one is clean and one washed out, voted on by somebody who likes the colourful one."""
    judge = seeded(PreferenceReward, 0, shapes.vocabulary()).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    rows = shapes.draw_attributes(shapes.split("train"), 80, generator=g)
    left, right = (shapes.draw_pictures(rows, clean_share=0.0, generator=g) for _ in range(2))
    colour = [(images.amax(1) - images.amin(1)).mean((1, 2)) for images in (left, right)]
    return judge, left, right, shapes.captions(rows), (colour[0] > colour[1]).float()


def test_a_taste_is_learned_even_through_features_of_random_weights(world):
    judge, left, right, captions, scores = world
    learned = taste.learn_taste(judge, left[:60], right[:60], captions[:60], scores[:60])
    margin = learned(left[60:], captions[60:]) - learned(right[60:], captions[60:])
    assert ((margin > 0) == (scores[60:] > 0.5)).float().mean() >= 0.7
    known = taste.foretold(judge, left[:60], right[:60], captions[:60], scores[:60])
    assert known.shape == (60,)
    assert known.float().mean() > 0.6


def test_votes_by_chance_are_not_foretold(world):
    judge, left, right, captions, _ = world
    scores = torch.randint(2, (80,), generator=torch.Generator().manual_seed(5)).float()
    assert taste.foretold(judge, left, right, captions, scores).float().mean() < 0.65


def test_a_taste_has_a_gradient_in_the_picture_and_none_in_the_judge(world):
    judge, left, right, captions, scores = world
    learned = taste.learn_taste(judge, left, right, captions, scores)
    images = left[:2].clone().requires_grad_()
    learned(images, captions[:2]).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(weight.grad is None for weight in judge.parameters())


def test_too_few_votes_and_nothing_but_ties_are_one_line(world):
    judge, left, right, captions, scores = world
    with pytest.raises(taste.TasteError, match="3 votes so far, at least 10 are needed"):
        taste.learn_taste(judge, left[:3], right[:3], captions[:3], scores[:3])
    with pytest.raises(taste.TasteError, match="all votes are ties"):
        taste.foretold(judge, left, right, captions, torch.full((80,), 0.5))
