"""The miniature's judges: what a caption tells them, their losses in closed form, gradients against differences."""

import math

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.rewards import shapes as judges
from dipp_core.worlds import shapes

SIZES = (*shapes.ATTRIBUTE_SIZES, len(shapes.STYLES))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def reward():
    torch.manual_seed(0)
    return judges.PreferenceReward(shapes.vocabulary()).eval()


@pytest.fixture(scope="module")
def batch():
    """16 pictures with their attributes."""
    rows = shapes.split("test")[:16]
    return shapes.draw_pictures(rows, generator=rng()), rows


def test_neither_the_order_of_words_nor_unknown_words_change_the_reward(reward, batch):
    images, rows = batch
    plain = reward(images, shapes.captions(rows))
    assert plain.shape == (16,)
    for phrasing in shapes.PHRASINGS:
        assert torch.equal(reward(images, shapes.captions(rows, phrasing)), plain)
    others = shapes.captions(rows.flip(0))
    assert (reward(images, others) - plain).abs().min() > 0


def test_the_reward_refuses_what_it_cannot_judge(reward, batch):
    images, rows = batch
    with pytest.raises(InputError, match="16 pictures and 2 captions"):
        reward(images, shapes.captions(rows[:2]))
    with pytest.raises(InputError, match="no word that this reward was taught"):
        reward(images[:1], ["ein grosser Kreis"])


def test_the_gradient_of_the_reward_is_that_of_central_differences(batch):
    torch.manual_seed(1)
    reward = judges.PreferenceReward(shapes.vocabulary()).double()
    images, captions = batch[0][:2].double().requires_grad_(), shapes.captions(batch[1][:2])
    (gradient,) = torch.autograd.grad(reward(images, captions).sum(), images)
    direction = torch.randn(images.shape, generator=rng(), dtype=torch.float64)
    with torch.no_grad():
        up, down = (reward(images + step * direction, captions).sum() for step in (1e-5, -1e-5))
    assert gradient.abs().sum() > 0
    assert ((up - down) / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_the_losses_in_closed_form():
    high, low = torch.tensor([1.5, 0.2]), torch.tensor([0.5, 0.2])
    wins = torch.tensor([True, False])
    expected = (math.log1p(math.exp(-1.0)) + math.log(2)) / 2
    assert judges.bradley_terry_loss(high, low, wins).item() == pytest.approx(expected, rel=1e-6)
    swapped = judges.bradley_terry_loss(low, high, ~wins)
    assert swapped.item() == pytest.approx(expected, rel=1e-6)
    assert judges.pair_accuracy(high, low, wins) == 1.0
    logits = [torch.zeros(3, 4), torch.zeros(3, 6)]
    found = judges.classifier_loss(logits, torch.zeros(3, 2, dtype=torch.long))
    assert found.item() == pytest.approx(math.log(4) + math.log(6), rel=1e-6)


def test_the_classifier_answers_for_every_attribute(batch):
    torch.manual_seed(0)
    classifier, (images, rows) = judges.AttributeClassifier(SIZES), batch
    logits = classifier(images)
    assert [part.shape for part in logits] == [(16, size) for size in SIZES]
    assert classifier.features(images).shape == (16, judges.IMAGE_FEATURES)
    best = torch.stack([part.argmax(-1) for part in logits], dim=-1)
    right = classifier.right(images, best[:, :4])
    assert right.shape == rows.shape
    assert right.all()
    assert torch.equal(classifier.style(images), best[:, 4])


def test_judges_come_back_from_their_tensors_and_are_frozen(reward, batch):
    torch.manual_seed(1)
    classifier, (images, rows) = judges.AttributeClassifier(SIZES), batch
    tensors = {f"reward.{name}": value for name, value in reward.state_dict().items()}
    tensors |= {f"classifier.{name}": value for name, value in classifier.state_dict().items()}
    again = judges.judges_from(tensors, words=shapes.vocabulary(), sizes=SIZES)
    assert torch.equal(again[0](images, shapes.captions(rows)), reward(images, shapes.captions(rows)))
    assert torch.equal(again[1].features(images), classifier.features(images))
    assert not any(weight.requires_grad for judge in again for weight in judge.parameters())
