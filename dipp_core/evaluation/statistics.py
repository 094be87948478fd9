"""Numbers of the miniature's pictures, and their 95% intervals over captions and seeds.

Pictures come as (captions, pictures of each). Those of one caption are alike, so it is captions that are drawn again
and again to see how much a number owes to the choice of them. A Frechet distance then compares with the data of the
captions drawn, as often as they were: else it would measure how the draw differs from all captions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dipp_core.evaluation.intervals import Interval, over_seeds_and_captions
from dipp_core.files import InputError
from dipp_core.rewards.shapes import AttributeClassifier, PreferenceReward
from dipp_core.worlds import shapes, shapes_gold

NUMBERS = ("accuracy", "style", "gold", "reward", "frechet_data", "frechet_clean", "diversity")  # style: a share
STYLE = tuple(shapes.STYLES).index(shapes.PREFERRED)
DIGITS = {"frechet_data": 0, "frechet_clean": 0}  # after the point, where a number is given in words; others have 3
ENDS = ("", "_low", "_high")
Statistic = Callable[..., dict]


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
    """Of n captions, k pictures each: right (n, k, 4) bool, gold, reward (n, k), diversity (n,), features (n, k, d).

    style (n, k) bool: whether the classifier, which has no part in gold, sees the preferred style.
    """

    right: Tensor
    style: Tensor
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
        raise InputError("these judges know the data of other captions: make new ones with `new_judges`")
    n, k = images.shape[:2]
    flat, asked = images.flatten(0, 1), attributes.repeat_interleave(k, dim=0)
    found = {
        "right": judges.classifier.right(flat, asked),
        "style": judges.classifier.style(flat) == STYLE,
        "gold": shapes_gold.gold(flat, asked),
        "reward": judges.reward(flat, shapes.captions(asked)),
        "features": judges.classifier.features(flat),
    }
    return Verdict(diversity=shapes_gold.diversity(images), **{key: x.unflatten(0, (n, k)) for key, x in found.items()})


def to_tensors(verdict: Verdict, name: str) -> dict[str, Tensor]:
    """The parts of a verdict as "name.gold", ..., to be saved."""
    return {f"{name}.{field.name}": getattr(verdict, field.name) for field in fields(Verdict)}


def from_tensors(tensors: Mapping[str, Tensor], name: str) -> Verdict:
    """The verdict that `to_tensors` gave."""
    return Verdict(**{field.name: tensors[f"{name}.{field.name}"] for field in fields(Verdict)})


def numbers(verdict: Verdict, judges: Judges, index: Tensor | None = None) -> dict[str, float]:
    """The `NUMBERS` of a verdict, or of those of its captions that `index` picks, with repetitions if it has any."""
    index = torch.arange(len(verdict)) if index is None else index
    return _Sums([verdict], judges).numbers(index)[0]


class _Sums:
    """Verdicts on the same captions, their features summed up by caption: what resampling asks for again and again."""

    def __init__(self, verdicts: Sequence[Verdict], judges: Judges):
        self.verdicts = verdicts
        self.features = [shapes_gold.sums_of(verdict.features) for verdict in verdicts]
        self.data = {
            "frechet_data": shapes_gold.sums_of(judges.data),
            "frechet_clean": shapes_gold.sums_of(judges.clean),
        }

    def numbers(self, index: Tensor) -> dict[int, dict[str, float]]:
        """The `NUMBERS` of all the verdicts, for the captions that `index` picks."""
        weights = torch.bincount(index, minlength=len(self.verdicts[0])).double()

        def moments(sums: Tensor) -> shapes_gold.Moments:
            return shapes_gold.moments_of_sums((weights @ sums.flatten(1)).view(sums.shape[1:]))

        data, found = {name: moments(sums) for name, sums in self.data.items()}, {}
        for k, verdict in enumerate(self.verdicts):
            own = moments(self.features[k])
            values = {"accuracy": verdict.right.all(-1)}
            values |= {name: getattr(verdict, name) for name in ("style", "gold", "reward")}
            means = {name: value[index].float().mean().item() for name, value in values.items()}
            means |= {name: shapes_gold.frechet(there, own) for name, there in data.items()}
            found[k] = means | {"diversity": verdict.diversity[index].mean().item()}
        return found


# ---------------------------------------------------------------------------------------------------------- intervals


def bootstrap(
    statistic: Statistic, captions: int, *, resamples: int, generator: torch.Generator
) -> dict[Any, Interval]:
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
) -> dict[str, Interval]:
    """The `NUMBERS` of a verdict, each as (value, low, high)."""
    sums = _Sums([verdict], judges)
    return bootstrap(lambda index: sums.numbers(index)[0], len(verdict), resamples=resamples, generator=generator)


def compare(
    runs: Mapping[str, Sequence[Verdict]],
    judges: Judges,
    *,
    pairs: Iterable[tuple[str, str]] = (),
    resamples: int,
    generator: torch.Generator,
) -> tuple[dict[str, dict[str, Interval]], dict[tuple[str, str], dict[str, Interval]]]:
    """The `NUMBERS` of methods, means over seeds, and of `pairs` (method, control) what the method has more.

    runs: a method's verdicts on the same captions, one a seed; or only one, of what has no seeds. Gains are paired by
    seed and by caption: what a pair has in common falls out. Intervals are Student's t over seeds, with the choice of
    the captions added (`over_seeds_and_captions`); what has a single verdict has an interval over captions alone.
    """
    pairs, seeds = list(pairs), max(len(found) for found in runs.values())
    if wrong := [name for name, found in runs.items() if len(found) not in (1, seeds)]:
        raise InputError(f"{wrong[0]} has {len(runs[wrong[0]])} verdicts: one a seed, {seeds}, or a single one")
    places = [(name, k) for name, found in runs.items() for k in range(len(found))]
    sums, captions = _Sums([runs[name][k] for name, k in places], judges), len(next(iter(runs.values()))[0])

    def by_seed(index: Tensor) -> dict[tuple[Any, str], Tensor]:
        """Every number of every method and pair, (seeds,)."""
        one = sums.numbers(index)
        rows = {name: [one[places.index((name, k))] for k in range(len(found))] for name, found in runs.items()}
        of = {
            (n, key): torch.tensor([row[key] for row in rows[n]], dtype=torch.float64) for n in runs for key in NUMBERS
        }
        return of | {((a, b), key): of[a, key] - of[b, key] for a, b in pairs for key in NUMBERS}

    draws = (torch.randint(captions, (captions,), generator=generator) for _ in range(resamples))
    drawn = [{which: values.mean() for which, values in by_seed(index).items()} for index in draws]
    found = {
        which: over_seeds_and_captions(values, torch.stack([one[which] for one in drawn]), captions)
        for which, values in by_seed(torch.arange(captions)).items()
    }
    values = {name: {key: found[name, key] for key in NUMBERS} for name in runs}
    return values, {pair: {key: found[pair, key] for key in NUMBERS} for pair in pairs}


# ------------------------------------------------------------------------------------------------------- in words


def in_words(value: float, low: float, high: float, digits: int = 3) -> str:
    """A number and half the width of its interval, "0.812 ± 0.014", with spaces at which no line breaks."""
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{(high - low) / 2:.{digits}f}"


def two_tables(
    rows: Iterable[tuple[dict, Mapping[str, Interval]]], digits: Mapping[str, int] = DIGITS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same rows twice: with both ends of every interval, for a CSV file, and in words, for the page.

    rows: what a row is called, {"method": "DI++"}, and its numbers, {"gold": (value, low, high)}.
    """
    whole, short = [], []
    for head, numbers in rows:
        ends = {f"{key}{end}": x for key, three in numbers.items() for end, x in zip(ENDS, three, strict=True)}
        words = {key.replace("_", " "): in_words(*three, digits.get(key, 3)) for key, three in numbers.items()}
        whole.append(head | ends)
        short.append(head | words)
    return pd.DataFrame(whole), pd.DataFrame(short)
