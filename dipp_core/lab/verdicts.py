"""What the miniature's judges say of pictures drawn for captions, every number with a 95% interval over the captions.

Pictures come as (captions, pictures of each). Those of one caption are alike, so it is captions that are drawn again
and again to see how much a number owes to the choice of them. A Frechet distance then compares with the data of the
captions drawn, as often as they were: else it would measure how the draw differs from all captions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.rewards.shapes import AttributeClassifier, PreferenceReward
from dipp_core.worlds import shapes, shapes_gold

NUMBERS = ("accuracy", "gold", "reward", "frechet_data", "frechet_clean", "diversity")
Statistic = Callable[[Tensor], dict[str, float]]


@dataclass(frozen=True)
class Judges:
    """Who judges pictures of n captions: the learned reward, the classifier, and what the captions' data look like.

    attributes (n, 4); data, clean (n, m, 128): features of m pictures of every caption from the data, and clean ones.
    """

    reward: PreferenceReward
    classifier: AttributeClassifier
    attributes: Tensor
    data: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Verdict:
    """Of n captions, k pictures each: right (n, k, 4) bool, gold, reward (n, k), diversity (n,), features (n, k, d)."""

    right: Tensor
    gold: Tensor
    reward: Tensor
    diversity: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.gold)


def new_judges(
    reward: PreferenceReward,
    classifier: AttributeClassifier,
    attributes: Tensor,
    count: int,
    *,
    generator: torch.Generator,
) -> Judges:
    """Judges for captions with these attributes (n, 4), with `count` fresh pictures of each for their data."""
    asked = attributes.repeat_interleave(count, dim=0)
    with torch.no_grad():
        data, clean = (
            classifier.features(shapes.draw_pictures(asked, clean_share=share, generator=generator))
            for share in (0.4, 1.0)
        )
    shape = (len(attributes), count)
    return Judges(reward, classifier, attributes, data.unflatten(0, shape), clean.unflatten(0, shape))


@torch.no_grad()
def judge(images: Tensor, attributes: Tensor, judges: Judges) -> Verdict:
    """All that is measured on pictures (n, k, 3, H, W) in [0, 1] of the judges' captions, with attributes (n, 4)."""
    if not torch.equal(attributes, judges.attributes):
        raise ValueError("these judges know the data of other captions: make new ones with `new_judges`")
    n, k = images.shape[:2]
    flat, asked = images.flatten(0, 1), attributes.repeat_interleave(k, dim=0)
    found = {
        "right": judges.classifier.right(flat, asked),
        "gold": shapes_gold.gold(flat, asked),
        "reward": judges.reward(flat, shapes.captions(asked)),
        "features": judges.classifier.features(flat),
    }
    return Verdict(diversity=shapes_gold.diversity(images), **{key: x.unflatten(0, (n, k)) for key, x in found.items()})


def numbers(verdict: Verdict, judges: Judges, index: Tensor | None = None) -> dict[str, float]:
    """The `NUMBERS` of a verdict, or of those of its captions that `index` picks, with repetitions if it has any."""
    index = torch.arange(len(verdict)) if index is None else index
    features = verdict.features[index].flatten(0, 1)
    return {
        "accuracy": verdict.right[index].all(-1).float().mean().item(),
        "gold": verdict.gold[index].mean().item(),
        "reward": verdict.reward[index].mean().item(),
        "frechet_data": shapes_gold.frechet_distance(judges.data[index].flatten(0, 1), features),
        "frechet_clean": shapes_gold.frechet_distance(judges.clean[index].flatten(0, 1), features),
        "diversity": verdict.diversity[index].mean().item(),
    }


def bootstrap(
    statistic: Statistic, captions: int, *, resamples: int, generator: torch.Generator
) -> dict[str, tuple[float, float, float]]:
    """Value, low and high end of the 95% interval of each number that `statistic(index of captions)` gives.

    The interval is the spread of the resampled numbers, moved so that its middle is their mean: captions drawn twice
    make a Frechet distance larger, which says nothing of its uncertainty. Give differences to `statistic` to get
    their interval with captions paired.
    """
    values = statistic(torch.arange(captions))
    drawn = [statistic(torch.randint(captions, (captions,), generator=generator)) for _ in range(resamples)]
    found = {}
    for name, value in values.items():
        again = torch.tensor([one[name] for one in drawn], dtype=torch.float64)
        low, high = (value + again.quantile(torch.tensor([0.025, 0.975]).double()) - again.mean()).tolist()
        found[name] = (value, low, high)
    return found


def with_intervals(
    verdict: Verdict, judges: Judges, *, resamples: int, generator: torch.Generator
) -> dict[str, tuple[float, float, float]]:
    """The `NUMBERS` of a verdict, each as (value, low, high)."""
    return bootstrap(
        lambda index: numbers(verdict, judges, index), len(verdict), resamples=resamples, generator=generator
    )
