"""Everything a user may give a training at full scale that is wrong: one clear line each, exit code 2, nothing lost.

The table names the flaw, what makes it, and what the line must say. All run the command itself, on tiny folders.
"""

import json
import shutil

import pytest
import torch

from dipp_core import train
from dipp_core.files import only_one
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
    "integers": lambda images, texts: images.mean((1, 2, 3)).long(),
    "contrast": lambda images, texts: images.std((1, 2, 3)),
    "one_argument": lambda images: images.mean((1, 2, 3)),
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


class Place:
    """The models, and a copy of a training that has ended."""

    def __init__(self, root, models, done):
        self.root, self.models, self.run = root, models, root / "run"
        shutil.copytree(done, self.run)

    def copy_models(self):
        """Models that may be damaged; to the training they are others, since they lie elsewhere."""
        self.models = shutil.copytree(self.models, self.root / "models")

    def content(self):
        return {path.relative_to(self.run): path.read_bytes() for path in sorted(self.run.rglob("*")) if path.is_file()}


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


def text(place, name, content):
    """A flaw: a file of the reference with another content; None removes it."""
    path = place.models / "unet" / name
    path.unlink() if content is None else path.write_bytes(content)


def cut(place, name):
    path = place.models / "unet" / name
    path.write_bytes(path.read_bytes()[:-100])


def pickled(place):
    path = place.models / "unet/unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def edited(place, name, **changes):
    path = place.models / "unet" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damaged(place):
    """Every checkpoint of the last stage has lost its end."""
    for path in (place.run / "align").rglob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-10])


# flaw: changes of the command, what is done to the folders before, what the line says
CASES = {
    "unknown key": (["colour=1"], None, "colour"),
    "pair without =": (["seed"], None, "write it as key=value"),
    "steps that are no number": (["align.steps=many"], None, "align"),
    "negative steps": (["align.steps=-1"], None, "steps"),
    "negative strength": (["align.alpha_rew=-1"], None, "alpha_rew"),
    "strength that is not finite": (["align.alpha_rew=.inf"], None, "alpha_rew"),
    "one beta": (["align.betas=[0.9]"], None, "betas"),
    "beta of one": (["align.betas=[0.0, 1.0]"], None, "betas"),
    "timestep beyond the last": (["t_star=1000"], None, "t_star"),
    "timesteps the wrong way round": (["align.timesteps=[900, 20]"], None, "leave none"),
    "unknown profile": (["profile=gpu7"], None, "profile"),
    "unknown switch": (["switches={ranks: 2}"], None, "did you mean"),
    "switch of another kind": (["switches={batch: many}"], None, "batch"),
    "batch of none": (["switches={batch: 0}"], None, "at least 1"),
    "negative micro": (["switches={micro: -1}"], None, "at least 0"),
    "rank of zero": (["switches={rank: 0}"], None, "at least 1"),
    "no targets": (["switches={targets: []}"], None, "list of names"),
    "unknown target": (["switches={targets: [foo]}", "folder"], None, "no layer"),
    "assistant that does not learn": (["align.ta_steps=0"], None, "ta_steps"),
    "unknown method": (["align.method=ppo"], None, "method"),
    "nothing inside": (["seed.x=1"], None, "nothing inside seed"),
    "no prompts file": (["prompts=nowhere.txt"], None, "nowhere.txt cannot be read"),
    "empty prompts file": (["prompts={models}/empty.txt"], lambda p: (p.models / "empty.txt").touch(), "no prompts"),
    "prompts that are no text": (
        ["prompts={models}/bytes.txt"],
        lambda p: (p.models / "bytes.txt").write_bytes(b"\xff\xfe\xfa\x80\x81"),
        "no text in UTF-8",
    ),
    "no such reference": (["reference=nowhere"], None, "no such folder"),
    "hub id without a commit": (["reference=some/model"], None, "OWNER/NAME@COMMIT"),
    "known hub id, not fetched": (["reference=PixArt-alpha/PixArt-XL-2-512x512"], None, "huggingface-cli download"),
    "folder without an index": ([], lambda p: text(p, "model_index.json", None), "model_index.json is missing"),
    "index that is no JSON": ([], lambda p: text(p, "model_index.json", b"{"), "cannot be read"),
    "unknown pipeline": (
        [],
        lambda p: edited(p, "model_index.json", _class_name="KandinskyPipeline"),
        "KandinskyPipeline, which is not known",
    ),
    "truncated weights": (
        [],
        lambda p: cut(p, "unet/diffusion_pytorch_model.safetensors"),
        "no whole safetensors file",
    ),
    "weights in a pickle": ([], pickled, "a pickle, which is not opened"),
    "noise without betas": (
        [],
        lambda p: text(p, "scheduler/scheduler_config.json", b'{"_class_name": "EulerDiscreteScheduler"}'),
        "has no betas",
    ),
    "unknown prediction": (
        [],
        lambda p: edited(p, "scheduler/scheduler_config.json", prediction_type="flow"),
        "prediction_type is 'flow'",
    ),
    "start of other prompts": (["start={models}/dit"], None, "cannot start a generator"),
    "unknown reward": (["rewards=[{reward: beauty}]"], None, "beauty"),
    "reward without files": (["rewards=[{reward: image_reward}]"], None, "ImageReward.pt"),
    "reward's folder missing": (["rewards=[{reward: hpsv2, source: nowhere}]"], None, "no such file or folder"),
    "reward that cannot be imported": (["rewards=[{reward: 'no.module:f'}]"], None, "cannot be imported"),
    "reward of two values": (["rewards=[{reward: 'builtins:two'}]", "folder"], None, "one value a picture"),
    "reward without gradient": (["rewards=[{reward: 'builtins:stuck'}]", "folder"], None, "no gradient"),
    "reward that is not finite": (["rewards=[{reward: 'builtins:nan'}]", "folder"], None, "not finite"),
    "reward that is constant": (["rewards=[{reward: 'builtins:constant'}]", "folder"], None, "no gradient"),
    "reward of integers": (["rewards=[{reward: 'builtins:integers'}]", "folder"], None, "no gradient"),
    "reward of one argument": (["rewards=[{reward: 'builtins:one_argument'}]", "folder"], None, "fails (TypeError"),
    "one wrong reward of two": (
        ["rewards=[{reward: 'builtins:brightness'}, {reward: 'builtins:constant'}]", "folder"],
        None,
        "no gradient",
    ),
    "no reward where one is asked": (["rewards=[]"], None, "rewards is empty"),
    "weight that is no number": (["rewards=[{reward: 'builtins:brightness', weight: x}]"], None, "give a number"),
    "tiny decoder without a folder": (["switches={tiny_vae: true}"], None, "tiny_vae"),
    "8-bit Adam without a GPU": (["switches={eight_bit_adam: true}"], None, "eight_bit_adam"),
    "more processes than run": (["switches={processes: 4}"], None, "4 processes"),
    "folder of another strength": (["align.alpha_rew=7"], None, "alpha_rew"),
    "folder of another reward": (["rewards=[{reward: 'builtins:contrast'}]"], None, "rewards"),
    "folder of another length": (["align.steps=1"], None, "steps"),
    "damaged checkpoints": ([], damaged, "damaged"),
}


@pytest.fixture
def place(models, done, tmp_path, monkeypatch):
    for name, reward in REWARDS.items():
        monkeypatch.setattr(f"builtins.{name}", reward, raising=False)
    monkeypatch.setattr(memory, "here", lambda folder, device: memory.Machine("CPU", 2.0**40, 2.0**40))
    return Place(tmp_path, models, done)


def test_a_full_gpu_is_one_line(place, capsys, monkeypatch):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr(full, "teach", too_much)
    before = place.content()
    assert "switches.micro = 1" in told(capsys, train.main(arguments(place.models, place.run)))
    assert place.content() == before


def told(capsys, code):
    """The one line of a command that failed."""
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert code != 0
    assert "Traceback" not in err
    assert len(lines) == 1, err
    assert len(lines[0]) > 20
    return lines[0]


@pytest.mark.parametrize("flaw", CASES)
def test_a_flaw_is_one_line_and_nothing_is_lost(place, capsys, flaw):
    changes, damage, says = CASES[flaw]
    folder = place.root / "new" if "folder" in changes else place.run  # a folder of its own: the reward is asked there
    if damage and damage is not damaged:
        place.copy_models()
    if damage:
        damage(place)
    before, changes = place.content(), [change.replace("{models}", str(place.models)) for change in changes]
    code = train.main(arguments(place.models, folder, *(one for one in changes if one != "folder")))
    assert says in told(capsys, code)
    assert place.content() == before


def test_there_are_thirty_at_least():
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    ("stage", "says"), [("30_sd51", "did you mean"), ("23_alignment", "no training at full scale"), ("", "section")]
)
def test_a_stage_that_is_none_is_one_line(capsys, stage, says):
    assert says in told(capsys, train.main([stage]))


def test_a_gpu_that_is_not_there_is_one_line(place, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "no GPU" in told(capsys, train.main(arguments(place.models, place.run, "device=cuda")))


def test_a_second_run_in_one_folder_is_refused(place, capsys):
    with only_one(place.run / "distil/lock", "a run"):
        line = told(capsys, train.main(arguments(place.models, place.run)))
    assert "is already running" in line


@pytest.mark.parametrize(("what", "says"), [("memory", "has 0.1 GiB"), ("disk", "of disk")])
def test_a_machine_too_small_stops_before_anything_is_loaded(place, capsys, monkeypatch, what, says):
    sizes = {"memory": 2.0**40, "disk": 2.0**40} | {what: 0.1 * 2**30 if what == "memory" else 1000.0}
    monkeypatch.setattr(memory, "here", lambda folder, device: memory.Machine("CPU", **sizes))
    assert says in told(capsys, train.main(arguments(place.models, place.root / "new")))
    assert not (place.root / "new" / "distil").exists()


def test_without_a_network_a_fetch_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reference = "reference=stable-diffusion-v1-5/stable-diffusion-v1-5"
    line = told(capsys, train.main(arguments(place.models, place.run, reference, "fetch=true")))
    assert "cannot be fetched" in line
