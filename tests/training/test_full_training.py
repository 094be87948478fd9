"""Both stages of a training at full scale, on tiny folders: learned, stopped, resumed, exported, told apart."""

import json

import pytest
import torch

from dipp_core.book import config
from dipp_core.book.full_schema import TwoStages
from dipp_core.files import InputError
from dipp_core.models import miniature
from dipp_core.training import full_scale, full_training
from dipp_core.worlds import shapes

MEMBER = {"alpha_rew": 0.0, "alpha_cfg": 0.5, "huber_c": 0.1, "ta_steps": 1, "timesteps": [20, 980]}
PACE = {"steps": 2, "gen_lr": 1e-3, "ta_lr": 1e-3, "betas": [0.0, 0.99], "flat": 0.5, "ema": 0.5, "max_grad_norm": 1.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    miniature.build(root / "unet", "unet", words=shapes.vocabulary(), size="tiny")
    (root / "prompts.txt").write_text("a red circle\na blue cross\n")
    return root


def described(place, **changes):
    values = {
        "scale": "smoke",
        "seed": 0,
        "reference": str(place / "unet"),
        "start": full_scale.THE_REFERENCE,
        "t_star": 500,
        "prediction": "as its folder says",
        "profile": "cpu",
        "switches": {"rank": 2, "batch": 2},
        "rewards": [{"reward": "builtins:brightness", "weight": 1.0}],
        "prompts": str(place / "prompts.txt"),
        "tiny_vae": "",
        "fetch": False,
        "device": "cpu",
        "distil": MEMBER | PACE | {"method": "diff_instruct"},
        "align": MEMBER | PACE | {"method": "dipp", "alpha_rew": 1.0},
        "save_steps": 1,
        "watch_steps": 2,
        "watch_prompts": 2,
        "watch_each": 2,
    }
    return TwoStages(**(values | changes))


@pytest.fixture(autouse=True)
def _a_reward_of_ones_own(monkeypatch):
    monkeypatch.setattr("builtins.brightness", lambda images, texts: images.mean((1, 2, 3)), raising=False)


def quiet(line):
    pass


def test_both_stages_are_learned_and_exported(place, tmp_path):
    import diffusers

    folder = full_training.train(described(place), tmp_path, say=quiet)
    logged = [json.loads(line) for line in (tmp_path / "align/curves.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "eval_reward" in entry] == [0, 2]
    assert all((tmp_path / stage / "pictures/samples_00000002.png").stat().st_size for stage in full_training.STAGES)
    diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["align", "distil", "encoded_prompts", "pipeline"]


def test_a_training_that_was_stopped_ends_as_one_that_was_not(place, tmp_path):
    def ended(folder):
        training = full_training.begin(described(place), folder, say=quiet)
        for name in full_training.STAGES:
            full_training.learn(training, name)
        return training.student.state()

    whole = ended(tmp_path / "whole")
    training = full_training.begin(described(place), tmp_path / "broken", say=quiet)
    full_training.learn(training, "distil")
    training.loaded.reward = lambda x0, cond: 1 / 0
    with pytest.raises(ZeroDivisionError):
        full_training.learn(training, "align")
    again = ended(tmp_path / "broken")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_stage_of_no_steps_is_left_out(place, tmp_path):
    run = described(place, distil=MEMBER | PACE | {"method": "sim", "steps": 0})
    full_training.train(run, tmp_path, say=quiet)
    assert not (tmp_path / "distil").exists()


def test_what_came_before_tells_runs_apart_and_what_saves_memory_does_not(place, tmp_path):
    full_training.train(described(place), tmp_path, say=quiet)
    other = described(place, switches={"rank": 2, "batch": 2, "checkpoint_vae": False})
    training = full_training.begin(other, tmp_path, say=quiet)
    for name in full_training.STAGES:
        full_training.learn(training, name)
    longer = described(place, distil=MEMBER | PACE | {"method": "sim"})
    training = full_training.begin(longer, tmp_path, say=quiet)
    with pytest.raises(InputError, match="distil"):
        full_training.learn(training, "align")


def test_other_processes_than_described_are_refused(place, tmp_path):
    run = described(place, switches={"rank": 2, "batch": 2, "processes": 4})
    with pytest.raises(full_scale.FullScaleError, match="4 processes of batch 2 are described, 1 run") as caught:
        full_training.begin(run, tmp_path, say=quiet)
    assert "\n" not in str(caught.value)


def test_a_value_inside_a_stage_is_set_by_its_path(place, monkeypatch):
    values = described(place).model_dump()
    monkeypatch.setattr(config, "section", lambda stage, changes: TwoStages(**(values | changes)))
    run = full_training.section_of("30_sd15", ["align.steps=7", "seed=3"])
    assert (run.align.steps, run.align.method, run.distil.steps, run.seed) == (7, "dipp", 2, 3)
    with pytest.raises(InputError, match="nothing inside seed"):
        full_training.section_of("30_sd15", ["seed.steps=7"])


def test_the_command_says_in_one_line_what_is_wrong(capsys):
    assert full_training.main(["00_start_here"]) == 2
    assert capsys.readouterr().err == "00_start_here is no training at full scale\n"
