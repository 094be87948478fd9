"""A reward from a few dozen votes: one person's taste, a direction among the features of a reward taught by thousands.

The learned reward of the miniature (`shapes.PreferenceReward`) looks at a picture through 128 features. What it makes
of them is what its thousands of pairs said; a new voter may like something else. So its features stay and its verdict
goes: the taste is linear in them, fitted by Bradley and Terry's likelihood, and held near zero by a ridge. With no
votes it is zero everywhere, with votes that contradict each other it stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.rewards.shapes import PreferenceReward, bradley_terry_loss


class TasteError(ValueError):
    """One line that says why no taste can be learned from these votes."""


@dataclass(frozen=True)
class Taste:
    """r(x, c) = direction . features(x, c) / scale: pictures (B, 3, 32, 32) and B captions -> (B,), differentiable.

    judge: whose features it is made of, frozen; scale, direction (128,). A difference of rewards is a log odds, as far
    as the ridge lets it.
    """

    judge: PreferenceReward
    scale: Tensor
    direction: Tensor

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        return (features(self.judge, images, captions) / self.scale) @ self.direction


def features(judge: PreferenceReward, images: Tensor, captions: Sequence[str]) -> Tensor:
    """What the learned reward sees of pictures (B, 3, 32, 32) when it looks for their captions, (B, 128)."""
    return judge.trunk(images, judge.look_for(judge.text(judge.bag(captions))))


def fit_direction(differences: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """The direction w, (d,), of least Bradley-Terry loss and ridge, for differences left - right (n, d):

        - sum_i [s_i log sigmoid(w . d_i) + (1 - s_i) log sigmoid(-w . d_i)] + ridge |w|^2 / 2,

    scores s (n,): 1 for left, 0 for right, 1/2 for a tie, which counts as half a win for either. Convex, by LBFGS.
    """
    direction = torch.zeros(differences.shape[1], requires_grad=True)
    options = {"max_iter": 100, "line_search_fn": "strong_wolfe", "tolerance_grad": 1e-6}
    optimizer = torch.optim.LBFGS([direction], **options)
    # each pair twice: a decided one with its outcome both times, a tie once with either
    margins, wins = differences.repeat(2, 1), torch.cat([scores > 0.25, scores > 0.75])
    zero = torch.zeros(len(margins))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = len(differences) * bradley_terry_loss(margins @ direction, zero, wins)
        value = value + ridge * direction.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return direction.detach()


def _standardised(judge: PreferenceReward, left: Tensor, right: Tensor, captions: Sequence[str]) -> tuple:
    """Differences of features, left - right, in units of their root mean square, times 128^(-1/2); and that scale."""
    with torch.no_grad():
        raw = features(judge, left, captions) - features(judge, right, captions)
    rms = raw.square().mean(0).sqrt()
    scale = rms.clamp(min=1e-3 * float(rms.max())) * raw.shape[1] ** 0.5
    return raw / scale, scale


def _checked(scores: Tensor, least: int) -> None:
    if len(scores) < least:
        raise TasteError(f"{len(scores)} votes so far, at least {least} are needed: vote on more pairs, then run again")
    if bool((scores == 0.5).all()):
        raise TasteError("all votes are ties: nothing is preferred, so there is nothing to learn; decide some pairs")


def learn_taste(
    judge: PreferenceReward,
    left: Tensor,
    right: Tensor,
    captions: Sequence[str],
    scores: Tensor,
    *,
    ridge: float = 0.3,
    least: int = 10,
) -> Taste:
    """The taste behind votes on pictures left, right (n, 3, 32, 32) of n captions; scores as in `fit_direction`."""
    _checked(scores, least)
    differences, scale = _standardised(judge, left, right, captions)
    return Taste(judge, scale, fit_direction(differences, scores, ridge))


def foretold(
    judge: PreferenceReward,
    left: Tensor,
    right: Tensor,
    captions: Sequence[str],
    scores: Tensor,
    *,
    ridge: float = 0.3,
    least: int = 10,
    folds: int = 10,
) -> Tensor:
    """Of every decided vote, whether a taste learned from the others foretells it, (decided,) bool; by folds."""
    _checked(scores, least)
    differences, _ = _standardised(judge, left, right, captions)
    fold, margins = torch.arange(len(scores)) % min(folds, len(scores)), torch.zeros(len(scores))
    for number in range(int(fold.max()) + 1):
        apart = fold == number
        margins[apart] = differences[apart] @ fit_direction(differences[~apart], scores[~apart], ridge)
    decided = scores != 0.5
    return (margins[decided] > 0) == (scores[decided] > 0.5)
