"""What a true run lacks is said in lines with cures; a rehearsal is the same description of small models."""

import pytest
import torch

from dipp_core.book import config
from dipp_core.training import full_export, full_figures, full_training, preflight, rehearsal


@pytest.fixture(scope="module", params=[("30_sd15", "unet"), ("31_pixart", "dit")], ids=["unet", "dit"])
def rehearsed(request, tmp_path_factory):
    """A rehearsal that has gone through both stages: (true description, training, exported folder)."""
    stage, kind = request.param
    described, place = config.section(stage, {"scale": "smoke"}), tmp_path_factory.mktemp(kind)
    training = full_training.begin(rehearsal.rehearsed(described, kind, place), place / "run", say=lambda line: None)
    for name in full_training.STAGES:
        full_training.learn(training, name, progress=False)
    return described, training, full_training.export(training)


def test_what_is_missing_is_a_line_each_with_its_cure():
    run = config.section("30_sd15", {"scale": "full"})
    lines = rehearsal.missing(run)
    assert all("\n" not in line for line in lines)
    for says in ("models/prompts.txt", "huggingface-cli download zai-org/ImageReward", "4.3 GB"):
        assert any(says in line for line in lines)
    assert any("no GPU" in line for line in lines) == (not torch.cuda.is_available())


def test_a_run_that_lacks_nothing_says_nothing(rehearsed):
    assert rehearsal.missing(rehearsed[1].run) == []


def test_a_rehearsal_changes_models_and_not_the_method(rehearsed):
    described, training, _ = rehearsed
    for name in full_training.STAGES:
        ours, theirs = (getattr(run, name).model_dump() for run in (training.run, described))
        assert {key for key in ours if ours[key] != theirs[key]} == {"gen_lr", "ta_lr"}
    assert training.run.t_star == described.t_star


def test_diffusers_draws_our_pictures_from_the_export(rehearsed):
    _, training, folder = rehearsed
    images, difference = full_export.difference(training, folder, 2, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert difference < 1e-4
    _, other = full_export.difference(training, folder, 2, seed=1)
    assert other < 1e-4


def test_the_card_says_what_it_is(rehearsed):
    _, training, folder = rehearsed
    card = full_export.write_card(training, folder, true_run=False)
    assert (folder / "README.md").read_text() == card
    assert rehearsal.SAYS in card
    assert f"timesteps=[{training.run.t_star}]" in card
    assert "clipscore" in card
    assert str(folder.parent) not in card
    assert rehearsal.SAYS not in full_export.write_card(training, folder, true_run=True)


def test_figures_show_parts_curves_and_what_is_no_result(rehearsed):
    _, training, _ = rehearsed
    parts = [preflight.Part("reference, frozen", 2.0**30), preflight.Part("activations and gradients (x)", 2.0**31)]
    bars = full_figures.memory({"gpu24": parts, "gpu80": parts[:1]}).axes[0].patches
    assert sorted({round(bar.get_width(), 6) for bar in bars}) == [0, 1, 2]
    titles = [ax.get_title() for ax in full_figures.course(training.folder / "align").axes]
    assert titles == list(full_figures.CURVES.values())
    samples = full_training.watch(training)(0, training.student)["samples"]
    assert "RANDOM WEIGHTS" in full_figures.grid(samples, true_run=False).get_suptitle()


def test_a_rehearsal_is_the_same_every_time(tmp_path):
    """Its reward too, whose weights are random: whatever torch's own generator has given before."""
    described = config.section("30_sd15", {"scale": "smoke"})
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        rehearsal.rehearsed(described, "unet", place)
    names = [path.relative_to(places[0]) for path in sorted(places[0].rglob("*.safetensors"))]
    assert len(names) == 4
    for name in names:
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()
