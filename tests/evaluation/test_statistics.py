"""The judges' numbers against loops over single pictures, intervals and distances against closed forms."""

import dataclasses

import pytest
import torch

from dipp_core.evaluation import statistics
from dipp_core.files import InputError
from dipp_core.models.miniature import seeded
from dipp_core.rewards.shapes import AttributeClassifier, PreferenceReward
from dipp_core.worlds import shapes, shapes_gold

ROWS = shapes.split("test")[:3]
COUNT = 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def judges():
    reward = seeded(PreferenceReward, 0, shapes.vocabulary())
    classifier = seeded(AttributeClassifier, 1, (*shapes.ATTRIBUTE_SIZES, len(shapes.STYLES)))
    return statistics.new_judges(reward, classifier, ROWS, 50, generator=rng())


@pytest.fixture(scope="module")
def images():
    flat = shapes.draw_pictures(ROWS.repeat_interleave(COUNT, dim=0), generator=rng(1))
    return flat.unflatten(0, (len(ROWS), COUNT))


@pytest.fixture(scope="module")
def verdict(images, judges):
    return statistics.judge(images, ROWS, judges)


def test_every_picture_is_judged_for_its_own_caption(images, judges, verdict):
    assert len(verdict) == len(ROWS)
    for n, row in enumerate(ROWS):
        for k in range(COUNT):
            one = images[n, k][None]
            assert torch.equal(verdict.right[n, k], judges.classifier.right(one, row[None])[0])
            best = int(judges.classifier(one)[-1].argmax())
            assert bool(verdict.style[n, k]) == (tuple(shapes.STYLES)[best] == shapes.PREFERRED)
            torch.testing.assert_close(verdict.gold[n, k], shapes_gold.gold(one, row[None])[0])
            said = judges.reward(one, [shapes.caption(row)])[0]
            torch.testing.assert_close(verdict.reward[n, k], said.detach(), atol=1e-5, rtol=1e-5)
        apart = [(a - b).square().mean().sqrt() for i, a in enumerate(images[n]) for b in images[n][i + 1 :]]
        torch.testing.assert_close(verdict.diversity[n], torch.stack(apart).mean(), atol=1e-4, rtol=1e-4)


def test_numbers_are_means_over_captions_and_pictures(images, judges, verdict):
    found = statistics.numbers(verdict, judges)
    assert tuple(found) == statistics.NUMBERS
    flat, asked = images.flatten(0, 1), ROWS.repeat_interleave(COUNT, dim=0)
    assert found["accuracy"] == pytest.approx(judges.classifier.right(flat, asked).all(-1).float().mean().item())
    assert found["gold"] == pytest.approx(shapes_gold.gold(flat, asked).mean().item(), abs=1e-6)
    features = judges.classifier.features(flat).detach()
    for name, there in (("frechet_data", judges.data), ("frechet_clean", judges.clean)):
        assert found[name] == pytest.approx(shapes_gold.frechet_distance(there.flatten(0, 1), features), rel=1e-4)


def test_captions_are_picked_with_all_their_pictures_and_data_as_often_as_the_index_says(images, judges, verdict):
    index = torch.tensor([2, 0, 2])
    chosen = dataclasses.replace(judges, attributes=ROWS[index], data=judges.data[index], clean=judges.clean[index])
    again = statistics.numbers(statistics.judge(images[index], ROWS[index], chosen), chosen)
    assert statistics.numbers(verdict, judges, index) == pytest.approx(again, rel=1e-3, abs=1e-5)


def test_the_interval_of_a_mean_is_the_closed_form():
    """Of n independent values: mean -/+ 1.96 s / sqrt(n), up to the noise of resampling."""
    values = torch.randn(400, generator=rng(2), dtype=torch.float64)
    found = statistics.bootstrap(
        lambda index: {"mean": values[index].mean().item()}, 400, resamples=4000, generator=rng(3)
    )
    value, low, high = found["mean"]
    half = 1.96 * values.std().item() / 400**0.5
    assert value == pytest.approx(values.mean().item())
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.08)


def test_a_statistic_that_repetitions_inflate_keeps_its_interval_around_its_value():
    """The share of different captions falls when captions repeat: the interval must not fall with it."""
    share = statistics.bootstrap(
        lambda index: {"different": len(index.unique()) / len(index)}, 50, resamples=200, generator=rng(4)
    )
    value, low, high = share["different"]
    assert value == 1.0
    assert low < value < high


def verdicts_of(images, judges, count):
    """One verdict a seed: pictures ever darker, so that every seed is another."""
    return [statistics.judge(images * (1 - 0.1 * k), ROWS, judges) for k in range(count)]


def test_methods_are_compared_by_means_over_seeds_and_their_differences(images, judges, verdict):
    three, washed = verdicts_of(images, judges, 3), verdicts_of(0.5 + images / 2, judges, 3)
    runs = {"a": three, "b": washed, "alone": [verdict]}
    values, gains = statistics.compare(runs, judges, pairs=[("a", "b"), ("a", "alone")], resamples=5, generator=rng(7))
    for name, found in runs.items():
        rows = [statistics.numbers(one, judges) for one in found]
        for key in statistics.NUMBERS:
            assert values[name][key][0] == pytest.approx(sum(row[key] for row in rows) / len(rows))
    for (a, b), found in gains.items():
        for key in statistics.NUMBERS:
            assert found[key][0] == pytest.approx(values[a][key][0] - values[b][key][0], abs=1e-9)
    assert statistics.compare(runs, judges, resamples=5, generator=rng(7))[0] == values


def test_a_verdict_comes_back_from_its_tensors(judges, verdict):
    tensors = statistics.to_tensors(verdict, "held out") | {"other": torch.zeros(1)}
    assert tensors["held out.gold"] is verdict.gold
    again = statistics.from_tensors(tensors, "held out")
    assert all(torch.equal(getattr(again, f.name), getattr(verdict, f.name)) for f in dataclasses.fields(verdict))


def test_what_a_pair_has_in_common_falls_out_of_its_gain(images, judges):
    runs = {"a": verdicts_of(images, judges, 3), "b": verdicts_of(images, judges, 3)}
    values, gains = statistics.compare(runs, judges, pairs=[("a", "b")], resamples=20, generator=rng(8))
    assert all(ends == (0, 0, 0) for ends in gains["a", "b"].values())
    assert values["a"]["gold"][1] < values["a"]["gold"][2]


def test_a_seed_varies_by_students_t_where_there_is_one_caption(images, judges):
    three = verdicts_of(images, judges, 3)
    one_caption = [
        dataclasses.replace(v, **{f.name: getattr(v, f.name)[:1] for f in dataclasses.fields(v)}) for v in three
    ]
    judge = dataclasses.replace(judges, attributes=ROWS[:1], data=judges.data[:1], clean=judges.clean[:1])
    (value, low, high) = statistics.compare({"a": one_caption}, judge, resamples=3, generator=rng(9))[0]["a"]["gold"]
    seeds = torch.tensor([statistics.numbers(v, judge)["gold"] for v in one_caption])
    assert value == pytest.approx(seeds.mean().item())
    assert high - low == pytest.approx(2 * 4.302653 * seeds.std().item() / 3**0.5, rel=1e-5)


def test_tables_have_both_ends_in_the_file_and_half_widths_on_the_page():
    found = {"gold": (0.8121, 0.79, 0.83), "frechet_data": (45.3, 40.0, 50.0)}
    whole, short = statistics.two_tables([({"method": "DI++"}, found)])
    assert whole.to_dict("records") == [
        {
            "method": "DI++",
            "gold": 0.8121,
            "gold_low": 0.79,
            "gold_high": 0.83,
            "frechet_data": 45.3,
            "frechet_data_low": 40.0,
            "frechet_data_high": 50.0,
        }
    ]
    assert short.to_dict("records") == [
        {"method": "DI++", "gold": "0.812\xa0±\xa00.020", "frechet data": "45\xa0±\xa05"}
    ]
    assert statistics.in_words(0.5, 0.4, 0.6, digits=1) == "0.5\xa0±\xa00.1"


def test_other_captions_and_other_numbers_of_seeds_are_refused(images, judges):
    with pytest.raises(InputError, match="other captions: make new ones with `new_judges`"):
        statistics.judge(images, ROWS.flip(0), judges)
    three = verdicts_of(images, judges, 3)
    with pytest.raises(InputError, match="b has 2 verdicts: one a seed, 3, or a single one"):
        statistics.compare({"a": three, "b": three[:2]}, judges, resamples=2, generator=rng())
