"""Pipelines of params.yaml: found, refused where they would run code or are not whole, asked as their row says."""

import dataclasses
import json
import shutil
import types

import pytest
import torch

from dipp_core.book import models as saved_models
from dipp_core.book.report import Report
from dipp_core.book.saved import SavedRunError
from dipp_core.evaluation import pipelines, tiny_models
from dipp_core.evaluation.pipelines import Sampler
from dipp_core.files import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny pipelines: name -> sampler."""
    return tiny_models.write(tmp_path_factory.mktemp("models"), ["a red fox"])


def test_a_denoiser_can_be_replaced_by_a_file_of_weights(tmp_path, models):
    from safetensors.torch import save_file

    sampler = models["random_unet"]
    before = pipelines.load(sampler, scale="smoke").unet.state_dict()
    save_file({name: value + 1 for name, value in before.items()}, tmp_path / "unet.safetensors")
    other = dataclasses.replace(sampler, denoiser=str(tmp_path / "unet.safetensors"))
    after = pipelines.load(other, scale="smoke").unet.state_dict()
    assert all(torch.equal(after[name], before[name] + 1) for name in before)
    assert pipelines.identity(other, scale="smoke").keys() == {"model", "denoiser"}
    (tmp_path / "unet.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="is no whole weight file"):
        pipelines.load(other, scale="smoke")
    for name, says in (
        ("gone.safetensors", r"gone.safetensors, the weights of a denoiser for .* is not here; give its place"),
        ("an/id/unet.bin", "not here; `huggingface-cli download an/id unet.bin --local-dir models/id` fetches it"),
    ):
        with pytest.raises(InputError, match=says):
            pipelines.load(dataclasses.replace(sampler, denoiser=name), scale="smoke")


def test_a_scheduler_can_be_replaced(models):
    sampler = dataclasses.replace(models["random_unet"], scheduler="EulerDiscreteScheduler")
    assert type(pipelines.load(sampler, scale="smoke").scheduler).__name__ == "EulerDiscreteScheduler"


@pytest.fixture
def broken(tmp_path, models):
    """A copy of a tiny pipeline, to be damaged."""
    folder = tmp_path / "broken"
    shutil.copytree(models["random_unet"].source, folder)
    return folder, dataclasses.replace(models["random_unet"], source=str(folder))


def edit_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_folder_is_never_run(broken):
    folder, sampler = broken
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('code of the folder was run')")
    edit_index(folder, unet=["my_unet", "MyUNet"])
    with pytest.raises(InputError, match="its unet is MyUNet of my_unet, which is not run here"):
        pipelines.load(sampler, scale="smoke")
    edit_index(folder, _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(InputError, match=r"which diffusers .* does not have"):
        pipelines.load(sampler, scale="smoke")


def test_weights_are_safetensors_and_whole(broken):
    from safetensors.torch import load_file, save_file

    folder, sampler = broken
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        pipelines.load(sampler, scale="smoke")
    path.write_bytes(whole)
    weights = load_file(path)
    name = next(name for name in weights if name.startswith("conv_out"))
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(InputError, match=f"1 weights are missing, the first is {name}"):
        pipelines.load(sampler, scale="smoke")
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="a pickle, which is not opened here"):
        pipelines.load(sampler, scale="smoke")


def test_a_model_that_is_not_here_is_one_line_with_the_command():
    commit = "b261bac6fd2cf515557d5d0707481eafa0485ec2"
    sampler = Sampler(source=f"stabilityai/sd-turbo@{commit}", steps=1, guidance=0.0, variant="fp16")
    with pytest.raises(InputError) as caught:
        pipelines.locate(sampler, scale="full")
    line = str(caught.value)
    assert line.startswith(
        "stabilityai/sd-turbo is not here; `huggingface-cli download stabilityai/sd-turbo --revision"
    )
    assert "--local-dir models/sd-turbo` fetches it" in line
    assert '"unet/*.fp16.safetensors"' in line  # and not the other precision beside it
    assert '"unet/*"' not in line
    assert "\n" not in line
    with pytest.raises(SavedRunError, match="run `dvc repro 30_sd15`"):
        pipelines.locate(Sampler(source="30_sd15:no_such_export", steps=1, guidance=1.0), scale="full")


def test_an_export_is_asked_at_its_own_timestep(tmp_path, monkeypatch, models):
    monkeypatch.setenv("DIPP_RESULTS", str(tmp_path))
    folder = saved_models.new(Report("30_sd15", tmp_path), "dipp", scale="smoke", t_star=399)
    shutil.copytree(models["random_one_step"].source, folder, dirs_exist_ok=True)
    row = dataclasses.replace(models["random_one_step"], source="30_sd15:dipp")
    rows = {"ours": types.SimpleNamespace(model_dump=lambda exclude: vars(row))}
    assert pipelines.from_rows(rows, scale="smoke")["ours"].timesteps == (399,)
    assert pipelines.from_rows(rows, scale="full")["ours"].timesteps == (625,)
    assert pipelines.locate(row, scale="smoke") == folder
    with pytest.raises(SavedRunError, match="made at scale 'smoke', this notebook runs at 'full'"):
        pipelines.locate(row, scale="full")
