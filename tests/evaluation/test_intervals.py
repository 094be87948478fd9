"""Intervals against closed forms, and against how often they hold the truth."""

import math

import pytest
import torch

from dipp_core.evaluation import intervals
from dipp_core.files import InputError


def rng(seed):
    return torch.Generator().manual_seed(seed)


def test_over_seeds_is_the_textbook_interval():
    value, low, high = intervals.over_seeds(torch.tensor([1.0, 2.0, 3.0]))
    assert (value, high - value, value - low) == pytest.approx((2, 4.302653 / 3**0.5, 4.302653 / 3**0.5), rel=1e-6)
    above, below = torch.tensor([2.0, 8.0]), torch.tensor([1.0, 1.0])
    ratio, low, high = intervals.ratio_over_seeds(above, below)
    half = 12.7062 * math.log(4) / 2**0.5 / 2**0.5
    assert (ratio, math.log(high / ratio), math.log(ratio / low)) == pytest.approx((4, half, half), rel=1e-5)
    with pytest.raises(InputError, match="at least two"):
        intervals.over_seeds(torch.tensor([1.0]))


@pytest.mark.parametrize(("of_seeds", "of_captions"), [(1.0, 0.3), (0.3, 1.0), (1.0, 1.0)])
def test_seeds_and_captions_together_hold_the_truth_as_often_as_they_say(of_seeds, of_captions):
    """8 seeds, 40 shared captions, effects of both and of the two together: at least 94% of 600 intervals hold 0."""
    g, held, worlds = rng(0), 0, 600
    for _ in range(worlds):
        table = of_seeds * torch.randn(8, 1, generator=g) + of_captions * 5**0.5 * torch.randn(1, 40, generator=g)
        table = table + 0.5 * torch.randn(8, 40, generator=g)
        by_caption = table.mean(0)
        drawn = by_caption[torch.randint(40, (200, 40), generator=g)].mean(1)
        _, low, high = intervals.over_seeds_and_captions(table.mean(1), drawn, 40)
        held += low < 0 < high
    assert 0.93 <= held / worlds <= 0.99


def test_a_bar_is_passed_by_chance_as_often_as_it_says():
    """Bars from 12 seeds, runs of 5 new ones, an alarm of 1 in 10."""
    g, runs = rng(1), 2000
    drawn = (0.3 * torch.randn(runs, 17, generator=g)).exp()
    bars = [intervals.bar(seen, seeds=5, alarm=0.1) for seen in drawn[:, :12]]
    passed = drawn[:, 12:].log().mean(-1).exp() > torch.tensor(bars)
    assert 0.08 <= passed.float().mean() <= 0.12
