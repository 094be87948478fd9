"""The drawn pictures have the areas of their shapes, the captions their splits, the gold score its closed cases."""

import math

import pytest
import torch
from worlds.small import randn, rng

from dipp_core.worlds import shapes, shapes_gold

PIXEL_AREA = shapes.PIXEL**2
AREAS = {
    "circle": math.pi,
    "square": 4 * 0.86**2,
    "triangle": 3 * math.sqrt(3) / 4 * 1.25**2,
    "cross": 2 * 2 * 0.72 - 0.72**2,
}


@pytest.fixture(scope="module")
def drawn():
    """2,000 scenes of all captions, their pictures and attributes."""
    generator = rng()
    attributes = shapes.draw_attributes(shapes.all_attributes(), 2000, generator=generator)
    scenes = shapes.draw_scenes(attributes, generator=generator)
    return scenes, shapes.render(scenes), attributes


def test_a_caption_says_its_attributes_in_every_phrasing_and_only_one_has_unknown_words():
    rows, known = shapes.all_attributes(), set(shapes.vocabulary())
    for phrasing in shapes.PHRASINGS:
        texts = shapes.captions(rows, phrasing)
        assert [shapes.parse(text) for text in texts] == [tuple(row) for row in rows.tolist()]
        assert len(set(texts)) == 192
        unknown = {"shiny", "calm"} if phrasing == "unknown words" else set()
        assert {word for text in texts for word in text.split()} - known == unknown


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: shapes.parse("a large red thing on a white background"), "names no shape"),
        (lambda: shapes.parse("a large red circle or square on white"), r"names the shape 2 times \(circle, square\)"),
        (lambda: shapes.split("tests"), "unknown split 'tests': one of train"),
        (lambda: shapes.caption([0, 0, 0, 0], "upside down"), "unknown phrasing"),
    ],
)
def test_what_names_not_each_attribute_once_or_an_unknown_split_is_refused_in_one_line(call, line):
    with pytest.raises(ValueError, match=line) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_splits_are_a_partition_and_the_held_out_pairs_are_nowhere_else():
    """No held-out shape and colour is seen; in each split all values of an attribute are about as frequent."""
    rows = {name: {tuple(row) for row in shapes.split(name).tolist()} for name in (*shapes.SPLITS, "seen")}
    sizes = {"train": 105, "validation": 21, "test": 42, "held_out": 24, "seen": 168}
    assert {name: len(found) for name, found in rows.items()} == sizes
    assert len(set().union(*rows.values())) == 192
    assert rows["seen"] == rows["train"] | rows["validation"] | rows["test"]
    assert {row[:2] for row in rows["held_out"]}.isdisjoint({row[:2] for row in rows["seen"]})
    assert {row[:2] for row in rows["train"]} == {row[:2] for row in rows["test"]} == {row[:2] for row in rows["seen"]}
    for name in ("train", "validation", "test", "seen"):
        for column, size in zip(shapes.split(name).T, shapes.ATTRIBUTE_SIZES, strict=True):
            counts = torch.bincount(column, minlength=size)
            assert 0 < counts.max() <= 2 * counts.min()


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("radius", [0.42, 0.68])
def test_a_shape_covers_its_area_wherever_it_is(shape, radius):
    centre = 0.1 * torch.randn(50, 2, generator=rng()).clamp(-1.5, 1.5) / 2
    which = torch.full((50,), shapes.SHAPES.index(shape))
    mask = shapes.coverage(shapes.distance(which, centre, torch.full((50,), radius)))
    area = mask.sum((-2, -1)) * PIXEL_AREA
    torch.testing.assert_close(area, torch.full_like(area, AREAS[shape] * radius**2), rtol=0.015, atol=0)
    ticks = (torch.arange(shapes.PIXELS) + 0.5) * shapes.PIXEL - 1
    found = torch.stack([(mask * ticks).sum((-2, -1)), (mask * ticks[:, None]).sum((-2, -1))], -1) * PIXEL_AREA
    torch.testing.assert_close(found / area[:, None], centre, atol=0.01, rtol=0)


def test_edges_are_anti_aliased_and_a_straight_one_is_exact():
    """A square from -0.5 - 1/4 pixel: the rim pixels show a quarter."""
    radius = torch.tensor([(0.5 + shapes.PIXEL / 4) / 0.86])
    mask = shapes.coverage(shapes.distance(torch.tensor([1]), torch.zeros(1, 2), radius))[0]
    row = mask[shapes.PIXELS // 2]
    torch.testing.assert_close(row[8:24], torch.ones(16))
    torch.testing.assert_close(row[[7, 24]], torch.full((2,), 0.25), atol=1e-5, rtol=0)
    assert row[:7].sum() == row[25:].sum() == 0


def test_a_picture_is_a_function_of_its_scene(drawn):
    scenes, images, _ = drawn
    assert images.shape == (2000, 3, 32, 32)
    assert (images.min() >= 0) & (images.max() <= 1)
    assert torch.equal(shapes.render(scenes.pick(slice(5, 9))), images[5:9])
    rows = shapes.split("test")
    drawn_at_once = shapes.draw_pictures(rows, generator=rng(1))
    assert torch.equal(drawn_at_once, shapes.render(shapes.draw_scenes(rows, generator=rng(1))))


def test_the_stated_shares_are_flawed_or_misdrawn_evenly_in_one_or_two_places():
    rows = shapes.draw_attributes(shapes.all_attributes(), 40_000, generator=rng())
    for share, found in (
        (0.6, shapes.draw_flaws(40_000, clean_share=0.4, generator=rng())),
        (0.3, shapes_gold.misdraw(rows, 0.3, generator=rng(1)) != rows),
    ):
        counts = torch.bincount(found.sum(-1), minlength=5) / 40_000
        wanted = torch.tensor([1 - share, share / 2, share / 2, 0.0, 0.0])
        torch.testing.assert_close(counts, wanted, atol=0.01, rtol=0)
        torch.testing.assert_close(found.float().mean(0), torch.full((4,), 1.5 * share / 4), atol=0.01, rtol=0)


def test_styles_have_their_stated_shares_and_are_told_apart_in_clean_pictures(drawn):
    scenes, images, attributes = drawn
    shares = torch.bincount(scenes.style, minlength=4) / len(scenes)
    torch.testing.assert_close(shares, torch.tensor(tuple(shapes.STYLES.values())), atol=0.035, rtol=0)
    clean = scenes.flaws.sum(-1) == 0
    centre = shapes_gold.place(images[clean])[1]
    torch.testing.assert_close(centre, scenes.centre[clean], atol=shapes.PIXEL, rtol=0)
    nearest = shapes_gold.misfits(images[clean], attributes[clean], centre).argmin(-1)
    assert (nearest == scenes.style[clean]).float().mean() > 0.99


@pytest.mark.parametrize("style", shapes.STYLES)
def test_the_picture_that_the_caption_describes_is_worth_one_in_the_preferred_style_and_a_quarter_in_another(style):
    rows = shapes.all_attributes()
    score = shapes_gold.gold(shapes.render(shapes.ideal_scene(rows, style)), rows)
    worth = 1.0 if style == shapes.PREFERRED else 0.25
    assert 0.95 * worth < score.median() <= score.max() < worth + 0.01


def test_every_flaw_lowers_its_own_part_of_the_score(drawn):
    scenes, images, attributes = drawn
    parts, count = shapes_gold.gold_parts(images, attributes), scenes.flaws.sum(-1)
    quality = shapes_gold.gold_of(parts | {"style": torch.ones(len(images))})
    clean = count == 0
    lowered = {"off centre": "centring", "washed out": "drawing", "blurred": "drawing", "blotchy": "drawing"}
    for k, flaw in enumerate(shapes.FLAWS):
        only = scenes.flaws[:, k] & (count == 1)
        assert parts[lowered[flaw]][only].mean() < 0.85 * parts[lowered[flaw]][clean].mean(), flaw
        assert quality[only].mean() < 0.85 * quality[clean].mean(), flaw


def test_a_picture_of_something_else_is_worth_less(drawn):
    scenes, images, attributes = drawn
    clean = (scenes.flaws.sum(-1) == 0).nonzero().squeeze(-1)[:200]
    right_score = shapes_gold.gold(images[clean], attributes[clean]).mean()
    for attribute, size in enumerate(shapes.ATTRIBUTE_SIZES):
        wrong = attributes[clean].clone()
        wrong[:, attribute] = (wrong[:, attribute] + 1) % size
        assert shapes_gold.gold(images[clean], wrong).mean() < 0.5 * right_score


def test_any_picture_has_a_score_between_0_and_1():
    noise = torch.rand(64, 3, 32, 32, generator=rng())
    flat = torch.linspace(0, 1, 64)[:, None, None, None].expand(64, 3, 32, 32)
    rows = shapes.all_attributes()[:64]
    for images in (noise, flat):
        score = shapes_gold.gold(images, rows)
        assert score.isfinite().all()
        assert score.min() >= 0
        assert score.max() < 0.55


def test_the_judge_follows_bradley_and_terry_on_pictures_as_they_are_judged():
    rows = shapes.draw_attributes(shapes.split("seen"), 3000, generator=rng())
    pairs = shapes_gold.preference_pairs(rows, sharpness=6.0, through=lambda x: 0.05 + 0.9 * x, generator=rng(1))
    assert pairs.a.min() >= 0.05
    torch.testing.assert_close(pairs.gold_a, shapes_gold.gold(pairs.a, rows))
    chance = torch.sigmoid(6.0 * (pairs.gold_a - pairs.gold_b))
    for low in (0.0, 0.3, 0.6):
        near = (chance >= low) & (chance < low + 0.3)
        assert pairs.a_wins[near].float().mean().item() == pytest.approx(chance[near].mean().item(), abs=0.05)


def test_frechet_distances_in_closed_form():
    """Of a set to itself, to its shift by m, and to s times itself: 0, |m|^2, (s - 1)^2 (|mean|^2 + tr C)."""
    a = randn(500, 6) @ randn(6, 6, seed=1)
    shift = torch.arange(6).double()
    assert shapes_gold.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert shapes_gold.frechet_distance(a, a + shift) == pytest.approx(shift.square().sum().item(), rel=1e-8)
    size = (a.mean(0).square().sum() + torch.cov(a.T).trace()).item()
    assert shapes_gold.frechet_distance(a, 3 * a) == pytest.approx(4 * size, rel=1e-8)
    few, others = torch.randn(2, 10, 32, generator=rng())  # fewer samples than features
    assert 0 < shapes_gold.frechet_distance(few, others) < 200


def test_moments_of_sums_are_those_of_the_union():
    features = torch.randn(3, 7, 4, generator=rng()) + 5
    index = torch.tensor([2, 0, 2])
    found = shapes_gold.moments_of_sums(shapes_gold.sums_of(features)[index].sum(0))
    union = features[index].flatten(0, 1).double()
    torch.testing.assert_close(found.mean, union.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(union.T))
    torch.testing.assert_close(found.root @ found.root, found.covariance)


def test_diversity_is_the_mean_distance_of_different_pictures():
    pictures = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.5, 1.0)])[None]
    torch.testing.assert_close(shapes_gold.diversity(pictures), torch.tensor([(0.5 + 0.5 + 1.0) / 3]))


def test_the_small_files_are_what_the_code_makes(checkout):
    """Captions to the letter, statistics to the last digit; else `.venv/bin/python -m dipp_core.worlds.shapes_gold`."""
    files = {name: (checkout / "data/shapes" / name).read_text() for name in shapes_gold.DATA_TABLES}
    assert files["captions.csv"] == shapes_gold.captions_table()
    kept, made = (
        [row.split(",") for row in text.splitlines()]
        for text in (files["statistics.csv"], shapes_gold.statistics_table())
    )
    assert kept[0] == made[0]
    assert [row[0] for row in kept] == [row[0] for row in made]
    for ours, theirs in zip(kept[1:], made[1:], strict=True):
        assert [float(x) for x in ours[1:]] == pytest.approx([float(x) for x in theirs[1:]], abs=0.0015)
