"""The commands that draw and score, on a small checkout of their own: two processes, one result; flaws in one line."""

import types

import pytest

from dipp_core.book import config
from dipp_core.evaluation import evaluate, evaluation, picture_sets, tiny_models

OWN = "family,prompt\n" + "".join(f"photos,picture {k}\n" for k in range(48))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a tiny pipeline, a list of prompts, and the section of the notebook."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / "data" / "prompts" / "own.csv").write_text(OWN)
    sampler = tiny_models.write(tmp_path / "models", ["picture"])["random_one_step"]
    row = types.SimpleNamespace(model_dump=lambda exclude: vars(sampler))
    section = types.SimpleNamespace(
        scale="full", seed=5, each=2, per_group=3, batch=4, device="cpu", models={"tiny": row}, judges={"hpsv2": "gone"}
    )
    monkeypatch.setattr(config, "section", lambda stage, overrides: section)
    return tmp_path


def test_two_processes_draw_what_one_draws_and_the_scores_say_what_is_missing(checkout, capsys):
    folder = evaluation.place("tiny", "own")
    assert evaluate.main(["draw", "tiny", "own", "--shard", "1/2"]) == 0
    assert capsys.readouterr().out == f"{folder}: 2 pictures drawn\n"
    assert evaluate.main(["score", "tiny", "own"]) == 1
    assert "4 of 6 pictures are missing" in capsys.readouterr().err
    assert evaluate.main(["draw", "tiny", "own", "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert len(list(folder.glob("*.png"))) == 6
    shared = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    for path in folder.iterdir():
        path.unlink()
    assert evaluate.main(["draw", "tiny", "own"]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == shared
    assert picture_sets.path_of(folder, (2, 6)).is_file(), "prompt 2, second seed from 5 on"
    capsys.readouterr()
    assert evaluate.main(["score", "tiny", "own"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "image_reward: not run here: image_reward is not among the judges"
    assert said[1].startswith("hpsv2: not run here: gone: no such file or folder")


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
    assert evaluate.main(arguments) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
