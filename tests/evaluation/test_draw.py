"""Pictures of pipelines: the same bytes whatever happens, what made them, and what is refused."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import types

import numpy as np
import pytest
import torch

from dipp_core.evaluation import draw
from dipp_core.evaluation.draw import Sampler
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError

TEXTS = ["a red fox", "two dogs play cards", "a green boat at night", "snow"]
PROMPTS = [Prompt(index, text, "photos", "photos") for index, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny pipelines: name -> sampler."""
    return draw.tiny_models(tmp_path_factory.mktemp("models"), TEXTS)


class Painter:
    """In place of a pipeline: pictures that are nothing but their prompt's length and their own noise."""

    def __call__(self, prompts, *, generator, num_inference_steps, guidance_scale, output_type):
        noise = [torch.rand(8, 8, 3, generator=one) for one in generator]
        pictures = [0.9 * x + 0.001 * len(prompt) for x, prompt in zip(noise, prompts, strict=True)]
        return types.SimpleNamespace(images=torch.stack(pictures).numpy())


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model_index.json").write_text("{}")
    return Sampler(source=str(tmp_path / "weights"), steps=1, guidance=1.0)


def paint(folder, sampler, *, seeds=(0, 1, 2), batch=4, load=lambda *_, **__: Painter(), **options):
    return draw.generate(folder, sampler, PROMPTS, seeds, batch=batch, load=load, **options)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


# ------------------------------------------------------------------------------------------------------- the same bytes


def killed_in_the_middle(folder, sampler, after):
    """A process that is killed while it renames its picture number `after` into place."""

    def run():
        done, rename = [], os.replace

        def replace(source, target):
            if str(target).endswith(".png"):
                done.append(target)
                if len(done) > after:
                    os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace
        paint(folder, sampler)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def test_killed_and_resumed_or_shared_by_processes_gives_the_same_bytes(tmp_path, weights):
    assert paint(tmp_path / "whole", weights) == 12
    whole = bytes_of(tmp_path / "whole")
    assert len(set(whole.values())) == 12
    for after in (0, 5):
        folder = tmp_path / f"killed{after}"
        assert killed_in_the_middle(folder, weights, after) == -signal.SIGKILL
        assert len(bytes_of(folder)) == after
        assert list(folder.glob(".*.png.*")), "it was killed with a picture half in place"
        assert paint(folder, weights) == 12 - after
        assert bytes_of(folder) == whole
        assert list(folder.glob(".*.png.*")) == []
        assert paint(folder, weights, load=None) == 0
    assert [paint(tmp_path / "shared", weights, shard=(k, 2)) for k in (1, 0)] == [4, 8]
    assert bytes_of(tmp_path / "shared") == whole


def test_batches_and_noise_depend_on_the_whole_list_and_not_on_who_draws():
    whole = draw.items(PROMPTS, [7, 8])
    assert whole[:3] == [(0, 7), (0, 8), (1, 7)]
    alone, shared = draw.batches(whole, 3), [draw.batches(whole, 3, (k, 4)) for k in range(4)]
    assert [item for part in alone for item in part] == whole
    assert sorted(part for parts in shared for part in parts) == sorted(alone)
    places = [(0, 1), (1, 0), (11, 1), (1, 11), (1, 0)]
    noise = [tuple(torch.randn(4, generator=draw.generator_of(item)).tolist()) for item in places]
    assert len(set(noise)) == 4
    assert noise[1] == noise[4]


@pytest.mark.parametrize("text", ["4", "4/4", "-1/2", "a/b", "1/", "/2"])
def test_a_share_that_is_none_is_one_line(text):
    assert draw.read_shard("0/1") == (0, 1)
    with pytest.raises(InputError, match=r"write it as i/n with i from 0 to n - 1"):
        draw.read_shard(text)


# --------------------------------------------------------------------------------------------------------- what made it


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"steps": 2}, {}, "settings.sampler.steps 1, not 2"),
        ({"guidance": 3.0}, {}, "settings.sampler.guidance 1.0, not 3.0"),
        ({}, {"seeds": (0, 1)}, r"settings.seeds \[0, 1, 2\], not \[0, 1\]"),
        ({}, {"batch": 3}, "settings.batch 4, not 3"),
    ],
)
def test_a_folder_is_not_continued_with_other_settings(tmp_path, weights, change, options, says):
    paint(tmp_path / "pictures", weights)
    with pytest.raises(InputError, match=f"was made with {says}: go back, give another folder, or remove this one"):
        paint(tmp_path / "pictures", dataclasses.replace(weights, **change), **options)


def test_nor_on_another_machine_nor_with_other_weights_even_when_nothing_is_missing(tmp_path, weights):
    folder = tmp_path / "pictures"
    paint(folder, weights)
    next(iter(folder.glob("*.png"))).unlink()
    with pytest.raises(InputError, match=r"was made with machine.device 'cpu', not 'cuda'"):
        paint(folder, weights, device="cuda")
    paint(folder, weights)
    (tmp_path / "weights" / ".note").write_text("of the hub, on a download")
    assert paint(folder, weights) == 0
    (tmp_path / "weights" / "more").write_text("retrained")
    with pytest.raises(InputError, match=r"was made with weights.model '\w+', not '\w+'"):
        paint(folder, weights)
    export = dataclasses.replace(weights, export=tmp_path / "weights")  # of this project: drawn anew, scores and all
    (folder / "scores").mkdir()
    assert paint(folder, export) == 12
    assert not (folder / "scores").exists()
    shutil.rmtree(weights.source)  # the pictures stay, where nobody can ask what drew them
    assert paint(folder, weights, load=None) == 0
    (folder / draw.RECORD).write_text("[")
    with pytest.raises(InputError, match=r"cannot be read .*; remove"):
        paint(folder, weights)
    (folder / draw.RECORD).unlink()
    with pytest.raises(InputError, match=r"made_by.json is missing, so nobody knows what made"):
        paint(folder, weights)


def test_what_goes_wrong_while_drawing_is_one_line(tmp_path, weights):
    def full(prompts, **options):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    def broken(prompts, **options):
        return types.SimpleNamespace(images=np.full((len(prompts), 4, 4, 3), np.nan))

    with pytest.raises(InputError, match="no memory for 4 pictures: lower `batch`"):
        paint(tmp_path / "a", weights, load=lambda *_, **__: full)
    with pytest.raises(InputError, match="prompt 0 with seed 0 is not finite: try dtype fp32 or bf16"):
        paint(tmp_path / "b", weights, load=lambda *_, **__: broken)
    with pytest.raises(InputError, match="Painter takes no timesteps: leave them out of the row"):
        paint(tmp_path / "c", dataclasses.replace(weights, timesteps=(399,)))


def test_pictures_come_back_to_eight_bits_and_broken_ones_are_one_line(tmp_path):
    picture = np.random.default_rng(0).uniform(-0.1, 1.1, (20, 15, 3))
    draw.write(tmp_path, (1, 2), picture)
    again = draw.read_all(tmp_path, [(1, 2)])
    assert again.shape == (1, 3, 20, 15)
    assert np.abs(again[0].permute(1, 2, 0).numpy() - picture.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    draw.write(tmp_path, (2, 0), picture[:4])
    with pytest.raises(InputError, match="have 2 sizes"):
        draw.read_all(tmp_path, [(1, 2), (2, 0)])
    path = draw.path_of(tmp_path, (1, 2))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"00001_2.png is no whole picture .*: remove it and draw it again"):
        draw.read(path)


def test_where_a_machine_draws_nothing_the_line_says_all_that_is_missing(tmp_path, weights):
    options = {"batch": 4, "load": lambda *_, **__: Painter()}
    gone = dataclasses.replace(weights, source="no/model")
    line = draw.draw(tmp_path / "a", gone, PROMPTS, (0,), forbidden="no GPU", **options)
    assert line.startswith("no GPU; no/model is not here; `.venv/bin/hf download no/model")
    assert draw.draw(tmp_path / "a", weights, PROMPTS, (0,), forbidden="no GPU", **options) == "no GPU"
    assert not (tmp_path / "a").exists()
    assert draw.draw(tmp_path / "a", weights, PROMPTS, (0,), **options) == ""
    assert draw.draw(tmp_path / "a", weights, PROMPTS, (0,), forbidden="no GPU", **options) == ""


# ------------------------------------------------------------------------------------------------------- real pipelines


@pytest.mark.parametrize("name", ["random_unet", "random_transformer", "random_one_step"])
def test_real_pipelines_draw_the_same_whatever_the_batch(tmp_path, models, name):
    """Up to a rounding of the last bit, for which folders keep to one batch size."""
    drawn = {}
    for batch in (1, 3):
        assert draw.generate(tmp_path / f"{batch}", models[name], PROMPTS[:2], (0, 5), batch=batch) == 4
        drawn[batch] = draw.read_all(tmp_path / f"{batch}", draw.items(PROMPTS[:2], (0, 5)))
    assert drawn[1].shape == (4, 3, 32, 32)
    assert (drawn[1] - drawn[3]).abs().max() <= 1.01 / 255
    assert (drawn[1][0] - drawn[1][1]).abs().max() > 0.02


def test_a_one_step_export_is_the_generator_itself(tmp_path, models):
    """At its own timestep, from the noise of (seed, prompt): an ordinary pipeline draws what our generator draws."""
    sampler = models["random_one_step"]
    draw.generate(tmp_path, sampler, PROMPTS[:1], (3,), batch=1)
    world = draw.folders.load(sampler.source)
    z, gen = torch.randn(1, *world.z_shape, generator=draw.generator_of((0, 3))), world.generator(sampler.timesteps[0])
    with torch.no_grad():
        ours = world.decode(gen(z, world.prompts(TEXTS[:1]).rows(torch.tensor([0]))))
    assert (draw.read_all(tmp_path, [(0, 3)]) - ours).abs().max() <= 0.51 / 255 + 1e-3


def test_denoiser_and_scheduler_can_be_replaced(tmp_path, models):
    from safetensors.torch import save_file

    sampler = dataclasses.replace(models["random_unet"], scheduler="EulerDiscreteScheduler")
    pipeline = draw.load(sampler)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    before, path = pipeline.unet.state_dict(), tmp_path / "unet.safetensors"
    save_file({name: value + 1 for name, value in before.items()}, path)
    other = dataclasses.replace(sampler, denoiser=str(path))
    after = draw.load(other).unet.state_dict()
    assert all(torch.equal(after[name], before[name] + 1) for name in before)
    assert draw.weights_of(other).keys() == {"model", "denoiser"}
    path.write_bytes(b"cut")
    for file, says in (
        (str(path), "is no whole weight file"),
        ("gone.safetensors", r"gone.safetensors, the weights of a denoiser for .* is not here; give its place"),
        ("an/id/unet.bin", "not here; `.venv/bin/hf download an/id unet.bin --local-dir models/id` fetches it"),
    ):
        with pytest.raises(InputError, match=says):
            draw.load(dataclasses.replace(sampler, denoiser=file))


@pytest.fixture
def broken(tmp_path, models):
    """A copy of a tiny pipeline, to be damaged."""
    folder = shutil.copytree(models["random_unet"].source, tmp_path / "broken")
    return folder, dataclasses.replace(models["random_unet"], source=str(folder))


def edit_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_folder_is_never_run(broken):
    folder, sampler = broken
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('code of the folder was run')")
    edit_index(folder, unet=["my_unet", "MyUNet"])
    with pytest.raises(InputError, match="its unet is MyUNet of my_unet, which is not run here"):
        draw.load(sampler)
    edit_index(folder, _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(InputError, match=r"which diffusers .* does not have"):
        draw.load(sampler)


def test_weights_are_safetensors_and_whole(broken):
    from safetensors.torch import load_file, save_file

    folder, sampler = broken
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        draw.load(sampler)
    path.write_bytes(whole)
    weights = load_file(path)
    name = next(name for name in weights if name.startswith("conv_out"))
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(InputError, match=f"1 weights are missing, the first is {name}"):
        draw.load(sampler)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="a pickle, which is not opened here"):
        draw.load(sampler)


def test_a_model_that_is_not_here_is_one_line_with_the_command():
    source = "stabilityai/sd-turbo@b261bac6fd2cf515557d5d0707481eafa0485ec2"
    with pytest.raises(InputError) as caught:
        draw.locate(Sampler(source=source, steps=1, guidance=0.0, variant="fp16"))
    line = str(caught.value)
    assert line.startswith("stabilityai/sd-turbo is not here; `.venv/bin/hf download stabilityai/sd-turbo --rev")
    assert "--local-dir models/sd-turbo` fetches it" in line
    assert '"unet/*.fp16.safetensors"' in line  # and not the other precision beside it
    assert '"unet/*"' not in line
    assert "\n" not in line


def test_an_export_is_asked_at_its_own_timestep(tmp_path):
    sampler = Sampler(source="30_sd15:dipp", steps=1, guidance=1.0, timesteps=(625,))
    rows = {"ours": types.SimpleNamespace(model_dump=lambda exclude: vars(sampler))}

    def gone(stage, name):
        raise InputError(f"{stage}/{name} is missing: run `make repro STAGE={stage}`")

    ours = draw.samplers(rows, lambda stage, name: (tmp_path / stage / name, {"t_star": 399}))["ours"]
    assert ours.timesteps == (399,)
    assert draw.locate(ours) == tmp_path / "30_sd15" / "dipp"
    with pytest.raises(InputError, match="30_sd15/dipp is missing: run `make repro STAGE=30_sd15`"):
        draw.locate(draw.samplers(rows, gone)["ours"])
