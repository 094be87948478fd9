"""Judges on folders of pictures: asked once, resumed, shared by processes; means, intervals, distances."""

import csv
import math

import numpy as np
import pytest
import torch

from dipp_core.evaluation import evaluation, picture_sets
from dipp_core.evaluation.picture_sets import PictureError
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError
from dipp_core.rewards import public, tiny
from dipp_core.rewards.judge import About, Judge

FAMILIES = ["photos", "photos", "art styles", "photos", "art styles"]
TEXTS = ["a red fox", "two dogs play cards", "a green boat at night", "snow", "a boat"]
PROMPTS = [Prompt(k, text, family, family) for k, (text, family) in enumerate(zip(TEXTS, FAMILIES, strict=True))]
SEEDS = [3, 4]


class Brightness(Judge):
    """The mean of a picture, plus a hundredth a letter of its prompt; it counts what it is asked."""

    def __init__(self, **about):
        super().__init__(About(name="brightness", **about))
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.asked = []

    def score(self, images, prompts):
        self.asked += prompts
        return images.mean((1, 2, 3)) + 0.01 * torch.tensor([len(prompt) for prompt in prompts])


class Channels(Brightness):
    """Features of length 1: the direction of the mean colour."""

    def picture_features(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of one colour each."""
    for item in picture_sets.items(PROMPTS, SEEDS):
        colour = np.random.default_rng(item).uniform(0, 1, 3)
        picture_sets.write(tmp_path / "set", item, np.broadcast_to(colour, (8, 8, 3)))
    return tmp_path / "set"


def scored(folder, judge, *, name="clipscore", source="a judge", batch=4, **options):
    return evaluation.score(
        folder, name, source, PROMPTS, SEEDS, batch=batch, load=lambda *_, **__: judge, save_batches=1, **options
    )


def expected(folder, item):
    return picture_sets.read(picture_sets.path_of(folder, item)).mean().item() + 0.01 * len(TEXTS[item[0]])


def test_every_picture_is_scored_with_its_own_prompt_as_papers_print_it(folder):
    assert scored(folder, Brightness()) == 10
    found = evaluation.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    wanted = torch.tensor([[expected(folder, (k, seed)) for seed in SEEDS] for k in range(5)])
    torch.testing.assert_close(found, 100 * wanted.double(), atol=1e-4, rtol=1e-6)


def test_what_is_scored_is_not_asked_again_and_no_judge_is_loaded(folder):
    scored(folder, Brightness())
    assert evaluation.score(folder, "clipscore", "gone", PROMPTS, SEEDS, batch=4, load=None) == 0


def test_a_picture_drawn_anew_is_scored_anew(folder):
    scored(folder, Brightness())
    picture_sets.write(folder, (2, 3), np.full((8, 8, 3), 0.5))
    with pytest.raises(PictureError, match=r"00002_3.png has no score by clipscore: score it first"):
        evaluation.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    judge = Brightness()
    assert scored(folder, judge) == 4
    assert set(judge.asked) == {TEXTS[2], TEXTS[3]}
    found = evaluation.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    assert found[2, 0].item() == pytest.approx(100 * expected(folder, (2, 3)), abs=1e-3)


def test_stopped_and_resumed_or_shared_the_scores_are_the_same(folder):
    scored(folder, Brightness())
    whole = evaluation.read_scores(folder, "clipscore")

    class Stops(Brightness):
        def score(self, images, prompts):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        scored(folder, Stops(), name="pickscore")
    assert len(evaluation.read_scores(folder, "pickscore")) == 4
    assert scored(folder, Brightness(), name="pickscore") == 6
    assert evaluation.read_scores(folder, "pickscore") == whole
    counts = [scored(folder, Brightness(), name="aesthetic", shard=(k, 2)) for k in (1, 0)]
    assert counts == [4, 6]
    assert evaluation.read_scores(folder, "aesthetic") == whole
    assert len(list((folder / "scores" / "aesthetic").glob("*.csv"))) == 2


def test_scores_of_another_judge_are_not_continued(folder, tmp_path):
    (tmp_path / "judge").write_text("one")
    scored(folder, Brightness(version="1"), source=tmp_path / "judge")
    picture_sets.path_of(folder, (0, 3)).unlink()
    with pytest.raises(PictureError, match=r"1 of 10 pictures are missing in .*: draw them first"):
        scored(folder, Brightness(), source=tmp_path / "judge")
    picture_sets.write(folder, (0, 3), np.zeros((8, 8, 3)))
    with pytest.raises(PictureError, match="was made with version '1', not '2'"):
        scored(folder, Brightness(version="2"), source=tmp_path / "judge")
    (tmp_path / "judge").write_text("two")
    with pytest.raises(PictureError, match="was made with files"):
        scored(folder, Brightness(version="1"), source=tmp_path / "judge")


def test_a_broken_table_and_a_broken_score_are_one_line(folder):
    class Broken(Brightness):
        def score(self, images, prompts):
            return images.mean((1, 2, 3)) * math.nan

    with pytest.raises(PictureError, match="clipscore gives a score that is not finite"):
        scored(folder, Broken())
    path = folder / "scores" / "clipscore" / "0of1.csv"
    path.write_text("index,seed,picture,score\n0,3,abc,\n")
    with pytest.raises(PictureError, match=r"0of1.csv is no table of scores: remove it and score again"):
        scored(folder, Brightness())


def test_diversity_is_the_mean_pairwise_distance_of_a_prompt(tmp_path):
    """Three pictures of a prompt: pure red, pure green, and red again; the distances are 1, 0 and 1."""
    for seed, colour in enumerate([(1, 0, 0), (0, 1, 0), (1, 0, 0)]):
        picture_sets.write(tmp_path, (0, seed), np.broadcast_to(np.array(colour, float), (8, 8, 3)))
        picture_sets.write(tmp_path, (1, seed), np.broadcast_to(np.array((1, 0, 0), float), (8, 8, 3)))
    options = {"batch": 1, "load": lambda *_, **__: Channels()}
    evaluation.score(tmp_path, "diversity", "a judge", PROMPTS[:2], [0, 1, 2], **options)
    found = evaluation.scores_of(tmp_path, "diversity", PROMPTS[:2], [0, 1, 2])
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0, 0.5], [0.0, 0.0, 0.0]]).double(), atol=1e-6, rtol=0)
    assert found.mean(1)[0].item() == pytest.approx((1 + 0 + 1) / 3)
    with pytest.raises(PictureError, match="at least two pictures of a prompt"):
        evaluation.score(tmp_path, "diversity", "a judge", PROMPTS[:2], [0], **options)


def test_a_summary_has_the_mean_of_every_family_and_the_interval_of_theory():
    """Of n independent prompts the interval is about 1.96 standard errors wide, on either side."""
    generator = torch.Generator().manual_seed(0)
    prompts, seeds = 400, 2
    values = {"a": torch.randn(prompts, seeds, generator=generator, dtype=torch.float64)}
    groups = ["photos", "art styles"] * (prompts // 2)
    found = evaluation.summary(values, groups, resamples=2000, seed=1)
    assert list(found) == ["photos", "art styles", "all"]
    for group, chosen in {"photos": values["a"][::2], "art styles": values["a"][1::2], "all": values["a"]}.items():
        mean, low, high = found[group]["a"]
        assert mean == pytest.approx(chosen.mean().item(), abs=1e-12)
        error = chosen.mean(1).std().item() / len(chosen) ** 0.5
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
        assert low < mean < high
    assert found == evaluation.summary(values, groups, resamples=2000, seed=1)
    assert list(evaluation.summary(values, ["photos"] * prompts, resamples=10, seed=1)) == ["photos"]


# ------------------------------------------------------------------------------------- the real judges, small


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return tiny.write_all(tmp_path_factory.mktemp("judges"))


def test_all_judges_score_and_those_without_files_are_not_run(folder, judges, tmp_path):
    given = judges | {"pickscore": tmp_path / "gone"}
    options = {"batch": 4, "say": lambda line: None, "load": tiny.load}
    not_run = evaluation.score_all(folder, given, PROMPTS, SEEDS, **options)
    loaded = tiny.load("hpsv2", judges["hpsv2"])
    none = evaluation.score_all(folder, {}, PROMPTS, SEEDS, **options)
    assert list(not_run) == ["pickscore"]
    assert list(none) == list(evaluation.MEASURES)
    assert "gone: no such file or folder" in not_run["pickscore"]
    assert "huggingface-cli download yuvalkirstain/PickScore_v1" in not_run["pickscore"]
    measures = [name for name in evaluation.MEASURES if name != "pickscore"]
    scores = {name: evaluation.scores_of(folder, name, PROMPTS, SEEDS) for name in measures}
    assert all(value.std() > 0 for value in scores.values())
    assert 0 < scores["diversity"].mean() < 2
    images = picture_sets.read_all(folder, picture_sets.items(PROMPTS, SEEDS))
    direct = loaded(images, [text for text in TEXTS for _ in SEEDS]).double().unflatten(0, (5, 2))
    torch.testing.assert_close(scores["hpsv2"], 100 * direct, atol=1e-3, rtol=1e-4)
    rows = list(csv.DictReader((folder / "scores" / "hpsv2" / "0of1.csv").open()))
    assert list(rows[0]) == list(evaluation.COLUMNS)


def test_tokens_are_counted_as_clip_counts_them(judges):
    clip = public.load("clipscore", judges["clipscore"])
    texts = ["snow", "a red fox, asleep", "unbelievably overgrown " * 30]
    assert evaluation.token_counts(texts) == [len(clip.tokenizer(text).input_ids) for text in texts]


def test_a_folder_of_a_judge_is_looked_for_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    (tmp_path / "models" / "hpsv2").mkdir(parents=True)
    assert evaluation.judge_source("models/hpsv2") == tmp_path / "models" / "hpsv2"
    assert evaluation.judge_source("xswu/HPSv2") == "xswu/HPSv2"
    with pytest.raises(InputError, match="no hub id with a commit"):
        public.load("clipscore", evaluation.judge_source("models/clip"))
