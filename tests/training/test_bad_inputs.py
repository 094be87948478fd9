"""Everything a user may give a training at full scale that is wrong: one clear line each, exit code 2, nothing lost.

The table names the flaw, what makes it, and what the line must say. All run the command itself, on tiny folders.
"""

import json
import os
import resource
import shutil
import signal
import time

import pytest
import torch

from dipp_core import train
from dipp_core.book import config, pipeline
from dipp_core.files import InputError, only_one
from dipp_core.models import miniature
from dipp_core.training import full, memory
from dipp_core.worlds import shapes


def brightness(images, texts):
    return images.mean((1, 2, 3))


REWARDS = {
    "brightness": brightness,
    "stuck": lambda images, texts: images.detach().mean((1, 2, 3)),
    "two": lambda images, texts: images.mean((1, 2)),
    "nan": lambda images, texts: images.mean((1, 2, 3)) * float("nan"),
    "constant": lambda images, texts: 0 * images.mean((1, 2, 3)),
    "contrast": lambda images, texts: images.std((1, 2, 3)),
    "one_argument": lambda images: images.mean((1, 2, 3)),
    "integers": lambda images, texts: images.mean((1, 2, 3)).long(),
    "imaginary": lambda images, texts: images.mean((1, 2, 3)) * 1j,
    "raising": lambda images, texts: {}["score"],
    "a_class": type("Taste", (), {"__init__": lambda self, images, texts: None}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny UNet and a tiny transformer, made once."""
    root = tmp_path_factory.mktemp("models")
    for kind in miniature.KINDS:
        miniature.build(root / kind, kind, words=shapes.vocabulary(), size="tiny")
    return root


@pytest.fixture(scope="module")
def done(models, tmp_path_factory):
    """A training that has ended: what must not be lost."""
    folder = tmp_path_factory.mktemp("done") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, reward in REWARDS.items():
            patch.setattr(f"builtins.{name}", reward, raising=False)
        (models / "prompts.txt").write_text("a red circle\na blue cross\n")
        assert train.main(arguments(models, folder)) == 0
    return folder


def arguments(models, folder, *changes):
    """A command that trains a tiny UNet two steps a stage; later changes win."""
    pairs = {
        "scale": "smoke",
        "reference": models / "unet",
        "profile": "cpu",
        "device": "cpu",
        "switches": "{rank: 2, batch: 2}",
        "rewards": "[{reward: 'builtins:brightness'}]",
        "prompts": models / "prompts.txt",
    }
    given = [*(f"{key}={value}" for key, value in pairs.items()), *changes]
    return ["30_sd15", "--folder", str(folder), *(part for pair in given for part in ("--set", pair))]


def edited(name, content):
    """A flaw: a file of the reference with another content; None removes it, a dict changes keys of its JSON."""

    def damage(models, run):
        path = models / "unet" / name
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | content))

    return damage


def added(name, content):
    return lambda models, run: (models / name).write_bytes(content)


def cut_weights(models, run):
    path = models / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled(models, run):
    (models / WEIGHTS).rename((models / WEIGHTS).with_suffix(".bin"))


def checkpoints_cut(models, run):
    """Every checkpoint of the last stage has lost its end."""
    for path in (run / "align").rglob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-10])


WEIGHTS = "unet/unet/diffusion_pytorch_model.safetensors"
INDEX, NOISE = "model_index.json", "scheduler/scheduler_config.json"
UNET, VAE = "unet/config.json", "vae/config.json"
# flaw: changes of the command; what the line says; what is done to the folders before
CASES = {
    "unknown key": ("colour=1", "colour"),
    "pair without =": ("seed", "write it as key=value"),
    "steps that are no number": ("align.steps=many", "align"),
    "strength that is not finite": ("align.alpha_rew=.inf", "alpha_rew"),
    "beta of one": ("align.betas=[0.0, 1.0]", "betas"),
    "timestep beyond the last": ("t_star=1000", "t_star"),
    "timesteps the wrong way round": ("align.timesteps=[900, 20]", "leave none"),
    "unknown profile": ("profile=gpu7", "profile"),
    "unknown switch": ("switches={ranks: 2}", "did you mean"),
    "switch of another kind": ("switches={batch: many}", "batch"),
    "rank of zero": ("switches={rank: 0}", "at least 1"),
    "negative micro": ("switches={micro: -1}", "at least 0"),
    "batch of zero": ("switches={batch: 0}", "at least 1"),
    "negative batch": ("switches={batch: -1}", "at least 1"),
    "negative rank": ("switches={rank: -3}", "at least 1"),
    "no targets": ("switches={targets: []}", "list of names"),
    "unknown way to encode": ("switches={encode: never}", "before or during"),
    "no such distillation": ("", "is not there", None, "--distilled", "nowhere"),
    "inpainting UNet": ("", "in_channels is 9", edited(UNET, {"in_channels": 9})),
    "negative channels": ("", "in_channels is -4", edited(UNET, {"in_channels": -4})),
    "channels that are no list": ("", "describes no network", edited(UNET, {"block_out_channels": 32})),
    "decoder's channels that are no list": ("", "block_out_channels", edited(VAE, {"block_out_channels": 32})),
    "no size": ("", "sample_size is None", edited(UNET, {"sample_size": None})),
    "size of zero": ("", "sample_size is 0", edited(UNET, {"sample_size": 0})),
    "latents of 8 channels": ("", "channels of the VAE's latents", edited(VAE, {"latent_channels": 8})),
    "no scaling factor": ("", "scaling_factor is None", edited(VAE, {"scaling_factor": None})),
    "noise of no steps": ("", "over 0 steps", edited(NOISE, {"num_train_timesteps": 0})),
    "noise of ten steps": ("", "has 10 steps", edited(NOISE, {"num_train_timesteps": 10})),
    "noise that is no number": ("", "does not rise", edited(NOISE, {"beta_end": float("nan")})),
    "noise that is too large": ("", "does not rise", edited(NOISE, {"beta_end": 30.0})),
    "unknown noise": ("", "scheduler's settings", edited(NOISE, {"beta_schedule": "cubic"})),
    "assistant that does not learn": ("align.ta_steps=0", "ta_steps"),
    "unknown method": ("align.method=ppo", "method"),
    "nothing inside": ("seed.x=1", "nothing inside seed"),
    "no prompts file": ("prompts=nowhere.txt", "nowhere.txt cannot be read"),
    "empty prompts file": ("prompts={models}/empty.txt", "no prompts", added("empty.txt", b"")),
    "prompts that are no text": ("prompts={models}/bytes.txt", "no text in UTF-8", added("bytes.txt", b"\xff\xfe\xfa")),
    "no such reference": ("reference=nowhere", "no such folder"),
    "hub id without a commit": ("reference=some/model", "OWNER/NAME@COMMIT"),
    "known hub id, not fetched": ("reference=PixArt-alpha/PixArt-XL-2-512x512", ".venv/bin/hf download"),
    "folder without an index": ("", "model_index.json is missing", edited(INDEX, None)),
    "index that is no JSON": ("", "cannot be read", edited(INDEX, b"{")),
    "unknown pipeline": ("", "Karlo, which is not known", edited(INDEX, {"_class_name": "Karlo"})),
    "truncated weights": ("", "no whole safetensors file", cut_weights),
    "weights in a pickle": ("", "a pickle, which is not opened", pickled),
    "noise without betas": ("", "has no betas", edited(NOISE, b'{"_class_name": "EulerDiscreteScheduler"}')),
    "unknown prediction": ("", "prediction_type is 'flow'", edited(NOISE, {"prediction_type": "flow"})),
    "start of other prompts": ("start={models}/dit", "cannot start a generator"),
    "unknown reward": ("rewards=[{reward: beauty}]", "beauty"),
    "reward without files": ("rewards=[{reward: image_reward}]", "ImageReward.pt"),
    "reward that cannot be imported": ("rewards=[{reward: 'no.module:f'}]", "cannot be imported"),
    "no reward where one is asked": ("rewards=[]", "rewards is empty"),
    "weight that is no number": ("rewards=[{reward: 'builtins:brightness', weight: x}]", "give a number"),
    "tiny decoder without a folder": ("switches={tiny_vae: true}", "tiny_vae"),
    "8-bit Adam without a GPU": ("switches={eight_bit_adam: true}", "eight_bit_adam"),
    "more processes than run": ("switches={processes: 4}", "4 processes"),
    "folder of another strength": ("align.alpha_rew=7", "alpha_rew"),
    "folder of another reward": ("rewards=[{reward: 'builtins:contrast'}]", "rewards"),
    "folder of another length": ("align.steps=1", "steps"),
    "damaged checkpoints": ("", "damaged", checkpoints_cut),
}
# those that are asked in a folder of their own: before a run goes on, its reward is what it was
AT_THE_START = {
    "unknown target": ("switches={targets: [foo]}", "no layer"),
    "target that takes no adapter": ("switches={targets: [norm1]}", "takes no adapter"),
    "function of the system": ("rewards=[{reward: 'os:system'}]", "fails (TypeError"),
    "reward that is a class": ("rewards=[{reward: 'builtins:a_class'}]", "not a Taste"),
    "reward of two values": ("rewards=[{reward: 'builtins:two'}]", "one value a picture"),
    "reward without gradient": ("rewards=[{reward: 'builtins:stuck'}]", "no gradient"),
    "reward that is not finite": ("rewards=[{reward: 'builtins:nan'}]", "not finite"),
    "reward of one argument": ("rewards=[{reward: 'builtins:one_argument'}]", "fails (TypeError"),
    "reward of integers": ("rewards=[{reward: 'builtins:integers'}]", "no gradient"),
    "reward of complex values": ("rewards=[{reward: 'builtins:imaginary'}]", "real values"),
    "reward that raises": ("rewards=[{reward: 'builtins:raising'}]", "fails (KeyError"),
    "constant reward": ("rewards=[{reward: 'builtins:constant'}]", "no gradient"),
    "one of two": ("rewards=[{reward: 'builtins:contrast'}, {reward: 'builtins:constant'}]", "no gradient"),
}


@pytest.fixture(autouse=True)
def a_large_machine(monkeypatch):
    for name, reward in REWARDS.items():
        monkeypatch.setattr(f"builtins.{name}", reward, raising=False)
    monkeypatch.setattr(memory, "here", lambda folder, device: memory.Machine("CPU", 2.0**40, 2.0**40))


@pytest.fixture
def run(done, tmp_path):
    """A copy of a training that has ended."""
    return shutil.copytree(done, tmp_path / "run")


def content(run):
    return {path.relative_to(run): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def told(capsys, code):
    """The one line of a command that failed."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert code != 0
    assert "Traceback" not in err
    assert len(lines) == 1, err
    assert len(lines[0]) > 20
    return lines[0]


@pytest.mark.parametrize("flaw", CASES | AT_THE_START)
def test_a_flaw_is_one_line_and_nothing_is_lost(models, run, tmp_path, capsys, flaw):
    change, says, *more = (CASES | AT_THE_START)[flaw]
    damage, options = [one for one in more if callable(one)], [one for one in more if isinstance(one, str)]
    if damage and damage[0] is not checkpoints_cut:  # to the training these models are others, since they lie elsewhere
        models = shutil.copytree(models, tmp_path / "models")
    for harm in damage:
        harm(models, run)
    before = content(run)
    folder = tmp_path / "new" if flaw in AT_THE_START else run
    changes = [change.replace("{models}", str(models))] if change else []
    assert says in told(capsys, train.main([*arguments(models, folder, *changes), *options]))
    assert content(run) == before


@pytest.mark.parametrize("place", ["a_file", "/proc/nowhere"])
def test_reports_that_cannot_be_written_are_one_line(tmp_path, capsys, place):
    (tmp_path / "a_file").touch()
    code = pipeline.main(["run", "00_start_here", "--reports", str(tmp_path / place)])
    assert "no folder that can be written" in told(capsys, code)


def test_overrides_that_are_none_are_one_line():
    with pytest.raises(InputError, match="overrides is 'x'"):
        config.section("30_sd15", "x")


def test_marks_of_a_merge_in_the_lock_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "root", lambda: tmp_path)
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n")
    assert "marks of a merge" in told(capsys, pipeline.main(["repro"]))


def test_a_run_that_was_asked_to_stop_has_a_code_of_its_own(models, tmp_path, capsys, monkeypatch):
    asked_once = []

    def asked(images, texts):
        if not asked_once:
            asked_once.append(os.kill(os.getpid(), signal.SIGTERM))
        return images.mean((1, 2, 3))

    monkeypatch.setattr("builtins.brightness", asked)
    monkeypatch.setattr(full, "check_rewards", lambda *_: None)
    assert train.main(arguments(models, tmp_path / "run", "distil.steps=0")) == 75
    assert "stopped after step 1 of 2 and saved" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [256, 10**8])
def test_a_batch_that_cannot_fit_is_told_without_being_made(models, tmp_path, capsys, monkeypatch, batch):
    """In seconds of this process, and in no memory to speak of."""
    monkeypatch.setattr(memory, "here", lambda folders, device: memory.Machine("CPU", 0.6 * 2**30, 2.0**40))
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = told(capsys, train.main(arguments(models, tmp_path / "run", f"switches={{rank: 2, batch: {batch}}}")))
    assert "micro = 1" in line or "no switch" in line
    assert time.process_time() - begun < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**20


def test_a_full_gpu_is_one_line(models, run, capsys, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(full, "teach", too_much)
    before = content(run)
    assert "switches.micro = 1" in told(capsys, train.main(arguments(models, run)))
    assert content(run) == before


@pytest.mark.parametrize(
    ("stage", "says"), [("30_sd51", "did you mean"), ("23_alignment", "no training at full scale"), ("", "section")]
)
def test_a_stage_that_is_none_is_one_line(capsys, stage, says):
    assert says in told(capsys, train.main([stage]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_one_line(models, run, capsys):
    assert "no GPU" in told(capsys, train.main(arguments(models, run, "device=cuda")))


def test_a_second_run_in_one_folder_is_refused(models, run, capsys):
    with only_one(run / "distil/lock", "a run"):
        assert "is already running" in told(capsys, train.main(arguments(models, run)))


@pytest.mark.parametrize(("what", "says"), [("memory", "has 0.1 GiB"), ("disk", "of disk")])
def test_a_machine_too_small_stops_before_anything_is_loaded(models, tmp_path, capsys, monkeypatch, what, says):
    sizes = {"memory": 2.0**40, "disk": 2.0**40} | {what: 0.1 * 2**30 if what == "memory" else 1000.0}
    monkeypatch.setattr(memory, "here", lambda folder, device: memory.Machine("CPU", **sizes))
    assert says in told(capsys, train.main(arguments(models, tmp_path / "new")))
    assert not (tmp_path / "new" / "distil").exists()


def test_without_a_network_a_fetch_is_one_line(models, run, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reference = "reference=stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert "cannot be fetched" in told(capsys, train.main(arguments(models, run, reference, "fetch=true")))
