"""Judges on folders of pictures: asked once, resumed, shared by processes; means, intervals, FID; the command."""

import csv
import math
import sys
import types

import numpy as np
import pytest
import torch

from dipp_core import evaluate
from dipp_core.book import config
from dipp_core.evaluation import draw, score
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

    def __init__(self):
        super().__init__(About(name="brightness"))
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.asked = []

    def score(self, images, prompts):
        self.asked += prompts
        return images.mean((1, 2, 3)) + 0.01 * torch.tensor([len(prompt) for prompt in prompts])

    def picture_features(self, images):
        """Of length 1: the direction of the mean colour."""
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=-1)


def write(folder, item, colour):
    draw.write(folder, item, np.broadcast_to(np.array(colour, float), (8, 8, 3)))


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of one colour each."""
    for item in draw.items(PROMPTS, SEEDS):
        write(tmp_path / "set", item, np.random.default_rng(item).uniform(0, 1, 3))
    return tmp_path / "set"


def scored(folder, judge, *, name="clipscore", source="a judge", batch=4, **options):
    options |= {"batch": batch, "load": lambda *_, **__: judge, "save_batches": 1}
    return score.score(folder, name, source, PROMPTS, SEEDS, **options)


def expected(folder, item):
    return draw.read(draw.path_of(folder, item)).mean().item() + 0.01 * len(TEXTS[item[0]])


def test_every_picture_is_scored_once_with_its_own_prompt_as_papers_print_it(folder):
    assert scored(folder, Brightness()) == 10
    wanted = torch.tensor([[expected(folder, (k, seed)) for seed in SEEDS] for k in range(5)])
    values = score.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    torch.testing.assert_close(values, 100 * wanted.double(), atol=1e-4, rtol=1e-6)
    assert score.score(folder, "clipscore", "gone", PROMPTS, SEEDS, batch=4, load=lambda *_: 1 / 0) == 0


def test_a_picture_drawn_anew_is_scored_anew(folder):
    scored(folder, Brightness())
    write(folder, (2, 3), (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"00002_3.png has no score by clipscore: score it first"):
        score.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    judge = Brightness()
    assert scored(folder, judge) == 4
    assert set(judge.asked) == {TEXTS[2], TEXTS[3]}
    values = score.scores_of(folder, "clipscore", PROMPTS, SEEDS)
    assert values[2, 0].item() == pytest.approx(100 * expected(folder, (2, 3)), abs=1e-3)


def test_stopped_and_resumed_or_shared_the_scores_are_the_same(folder):
    class Stops(Brightness):
        def score(self, images, prompts):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().score(images, prompts)

    scored(folder, Brightness())
    whole = score.read_scores(folder, "clipscore")
    with pytest.raises(KeyboardInterrupt):
        scored(folder, Stops(), name="pickscore")
    assert len(score.read_scores(folder, "pickscore")) == 4
    assert scored(folder, Brightness(), name="pickscore") == 6
    assert score.read_scores(folder, "pickscore") == whole
    assert [scored(folder, Brightness(), name="aesthetic", shard=(k, 2)) for k in (1, 0)] == [4, 6]
    assert score.read_scores(folder, "aesthetic") == whole


def test_a_judge_whose_files_changed_is_refused_even_when_nothing_is_left_to_score(folder, tmp_path):
    (tmp_path / "judge").write_text("one")
    scored(folder, Brightness(), source=tmp_path / "judge")
    (tmp_path / "judge").write_text("the second")
    with pytest.raises(InputError, match="was made with files"):
        scored(folder, Brightness(), source=tmp_path / "judge")
    (folder / "scores" / "clipscore" / "made_by.json").unlink()
    with pytest.raises(InputError, match=r"made_by\.json is missing"):
        scored(folder, Brightness(), source=tmp_path / "judge")
    draw.path_of(folder, (0, 3)).unlink()
    with pytest.raises(InputError, match=r"1 of 10 pictures are missing in .*: draw them first"):
        scored(folder, Brightness())


@pytest.mark.parametrize("row", ["0,3,abc,", "0,3,abc,nan", "0,3,abc,inf", "x,3,abc,1", "0,3"])
def test_a_broken_table_is_one_line(folder, row):
    scored(folder, Brightness())
    (folder / "scores" / "clipscore" / "0of1.csv").write_text(f"index,seed,picture,score\n{row}\n")
    with pytest.raises(InputError, match=r"0of1.csv is no table of scores: remove it and score again"):
        score.scores_of(folder, "clipscore", PROMPTS, SEEDS)


def test_a_broken_picture_and_a_broken_score_are_one_line(folder):
    judge = Brightness()
    judge.score = lambda images, prompts: images.mean((1, 2, 3)) * math.nan
    with pytest.raises(InputError, match="clipscore gives a score that is not finite"):
        scored(folder, judge)
    path = draw.path_of(folder, (0, 3))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is no whole picture"):
        scored(folder, Brightness())


def test_diversity_is_the_mean_pairwise_distance_of_a_prompt(tmp_path):
    """Three pictures of a prompt: pure red, pure green, and red again; the distances are 1, 0 and 1."""
    for seed, colour in enumerate([(1, 0, 0), (0, 1, 0), (1, 0, 0)]):
        write(tmp_path, (0, seed), colour)
        write(tmp_path, (1, seed), (1, 0, 0))
    options = {"batch": 1, "load": lambda *_, **__: Brightness()}
    score.score(tmp_path, "diversity", "a judge", PROMPTS[:2], [0, 1, 2], **options)
    values = score.scores_of(tmp_path, "diversity", PROMPTS[:2], [0, 1, 2])
    torch.testing.assert_close(values, torch.tensor([[0.5, 1.0, 0.5], [0.0, 0.0, 0.0]]).double(), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="at least two pictures of a prompt"):
        score.score(tmp_path, "diversity", "a judge", PROMPTS[:2], [0], **options)


def test_a_summary_has_the_mean_of_every_family_and_the_interval_of_theory():
    """Of n independent prompts the interval is about 1.96 standard errors wide, on either side."""
    generator = torch.Generator().manual_seed(0)
    values = {"a": torch.randn(400, 2, generator=generator, dtype=torch.float64)}
    table = score.summary(values, ["photos", "art styles"] * 200, resamples=2000, seed=1)
    assert list(table) == ["photos", "art styles", "all"]
    for group, chosen in {"photos": values["a"][::2], "art styles": values["a"][1::2], "all": values["a"]}.items():
        mean, low, high = table[group]["a"]
        assert mean == pytest.approx(chosen.mean().item(), abs=1e-12)
        error = chosen.mean(1).std().item() / len(chosen) ** 0.5
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
        assert low < mean < high
    assert list(score.summary(values, ["photos"] * 400, resamples=10, seed=1)) == ["photos"]


# ------------------------------------------------------------------------------------------ the real judges, small


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return tiny.write_all(tmp_path_factory.mktemp("judges"))


def test_all_judges_score_and_those_without_files_are_not_run(folder, judges, tmp_path):
    options = {"batch": 4, "say": lambda line: None, "load": tiny.load}
    not_run = score.score_all(folder, judges | {"pickscore": tmp_path / "gone"}, PROMPTS, SEEDS, **options)
    assert list(not_run) == ["pickscore"]
    assert "gone: no such file or folder" in not_run["pickscore"]
    assert ".venv/bin/hf download yuvalkirstain/PickScore_v1" in not_run["pickscore"]
    assert list(score.score_all(folder, {}, PROMPTS, SEEDS, **options)) == list(score.MEASURES)
    measures = [name for name in score.MEASURES if name != "pickscore"]
    scores = {name: score.scores_of(folder, name, PROMPTS, SEEDS) for name in measures}
    assert all(value.std() > 0 for value in scores.values())
    images, texts = draw.read_all(folder, draw.items(PROMPTS, SEEDS)), [text for text in TEXTS for _ in SEEDS]
    direct = tiny.load("hpsv2", judges["hpsv2"])(images, texts).double().unflatten(0, (5, 2))
    torch.testing.assert_close(scores["hpsv2"], 100 * direct, atol=1e-3, rtol=1e-4)
    rows = list(csv.DictReader((folder / "scores" / "hpsv2" / "0of1.csv").open()))
    assert list(rows[0]) == list(score.TYPES)


def test_tokens_are_counted_as_clip_counts_them(judges):
    clip = public.load("clipscore", judges["clipscore"])
    texts = ["snow", "a red fox, asleep", "unbelievably overgrown " * 30]
    assert score.token_counts(texts) == [len(clip.tokenizer(text).input_ids) for text in texts]


# -------------------------------------------------------------------------------------------------------------- FID


class Colours(torch.nn.Module):
    """In place of Inception: mean colours as features."""

    def forward(self, images):
        assert images.dtype is torch.uint8
        assert images.shape[1:] in ((3, 10, 10), (3, 299, 299))  # the library asks once with Inception's own size
        return images.double().mean((2, 3)) / 255


def noise(folder, count, mean, size, seed=0):
    random = np.random.default_rng(seed)
    for k in range(count):
        draw.write(folder, (k, 0), random.normal(mean, 0.1, (*size, 3)))
    return sorted(folder.glob("*.png"))


def test_fid_by_torchmetrics_is_that_of_gaussians(tmp_path, monkeypatch):
    """Squares of one size reach the library; Gaussians of equal covariance are as far as their means, squared."""
    drawn, reference = noise(tmp_path / "drawn", 40, 0.3, (12, 10)), tmp_path / "reference"
    noise(reference, 40, 0.7, (20, 31), seed=1)
    assert score.fid(drawn, reference, batch=16, feature=Colours()) == pytest.approx(3 * 0.4**2, rel=0.05)
    with pytest.raises(InputError, match="holds no reference pictures: give a folder of them"):
        score.fid(drawn, tmp_path / "gone", batch=2)
    with pytest.raises(InputError, match="an FID needs pictures: draw them first"):
        score.fid([], reference, batch=2)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(InputError, match=r"FID needs torchmetrics, torch-fidelity, .*make setup"):
        score.fid(drawn, reference, batch=2)


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a tiny pipeline, a list of prompts, and the section of the notebook."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    own = "family,prompt\n" + "".join(f"photos,picture {k}\n" for k in range(48))
    (tmp_path / "data" / "prompts" / "own.csv").write_text(own)
    sampler = draw.tiny_models(tmp_path / "tiny", ["picture"])["random_one_step"]
    row = types.SimpleNamespace(model_dump=lambda exclude: vars(sampler))
    section = types.SimpleNamespace(
        scale="full", seed=5, each=2, per_group=3, batch=4, device="cpu", models={"tiny": row}, judges={"hpsv2": "gone"}
    )
    monkeypatch.setattr(config, "section", lambda stage, overrides: section)
    return tmp_path


def test_two_processes_draw_what_one_draws_and_the_scores_say_what_is_missing(checkout, capsys):
    folder = score.place("tiny", "own")
    assert evaluate.main(["draw", "tiny", "own", "--shard", "1/2"]) == 0
    assert capsys.readouterr().out == f"{folder}: 2 pictures drawn\n"
    assert evaluate.main(["score", "tiny", "own"]) == 2
    assert "4 of 6 pictures are missing" in capsys.readouterr().err
    assert evaluate.main(["draw", "tiny", "own", "--shard", "0/2"]) == 0
    shared = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(shared) == 6
    for path in folder.iterdir():
        path.unlink()
    assert evaluate.main(["draw", "tiny", "own"]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == shared
    assert draw.path_of(folder, (2, 6)).is_file(), "prompt 2, second seed from 5 on"
    capsys.readouterr()
    assert evaluate.main(["score", "tiny", "own"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "image_reward: not run here: image_reward is not among the judges"
    assert said[1].startswith("hpsv2: not run here: gone: no such file or folder")
    (checkout / "models" / "hpsv2").mkdir(parents=True)
    assert score.judge_source("models/hpsv2") == checkout / "models" / "hpsv2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["draw", "tiny", "coco"], "the list coco (COCO 2017 validation, about 250 MB) is fetched by"),
        (["draw", "tiny", "own", "--shard", "2/2"], "--shard 2/2: write it as i/n"),
        (["draw", "sdxl", "own"], "there is no model 'sdxl' in params.yaml; known are tiny"),
        (["score", "tiny", "books"], "there is no list 'books'; known are own, coco, hpsv2, parti"),
    ],
)
def test_a_flaw_is_one_line_and_not_a_success(checkout, capsys, arguments, says):
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
