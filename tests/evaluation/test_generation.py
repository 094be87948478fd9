"""Pictures of pipelines: the same bytes whatever happens, and what is refused."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import types

import numpy as np
import pytest
import torch

from dipp_core.evaluation import generation, picture_sets, tiny_models
from dipp_core.evaluation.picture_sets import PictureError
from dipp_core.evaluation.pipelines import Sampler
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError

TEXTS = ["a red fox", "two dogs play cards", "a green boat at night", "snow"]
PROMPTS = [Prompt(index, text, "photos", "photos") for index, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny pipelines: name -> sampler."""
    return tiny_models.write(tmp_path_factory.mktemp("models"), TEXTS)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


# ------------------------------------------------------------------------------------------ with a pipeline of our own


def painter(sampler, **options):
    """In place of a pipeline: pictures that are nothing but their prompt's length and their own noise."""

    def call(prompts, *, generator, num_inference_steps, guidance_scale, output_type):
        noise = [torch.rand(8, 8, 3, generator=one) for one in generator]
        pictures = [0.9 * x + 0.001 * len(prompt) for x, prompt in zip(noise, prompts, strict=True)]
        return types.SimpleNamespace(images=torch.stack(pictures).numpy())

    return call_with_signature(call)


def call_with_signature(call):
    class Pipe:
        def __call__(self, prompts, *, generator, num_inference_steps, guidance_scale, output_type):
            return call(
                prompts,
                generator=generator,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                output_type=output_type,
            )

    return Pipe()


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return Sampler(source=str(folder), steps=1, guidance=1.0)


def draw(folder, sampler, *, seeds=(0, 1, 2), batch=4, load=painter, **options):
    return generation.generate(folder, sampler, PROMPTS, seeds, batch=batch, scale="smoke", load=load, **options)


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
        draw(folder, sampler)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode


def test_killed_and_resumed_gives_the_same_bytes(tmp_path, weights):
    assert draw(tmp_path / "whole", weights) == 12
    whole = bytes_of(tmp_path / "whole")
    assert len(set(whole.values())) == 12
    for after in (0, 5):
        folder = tmp_path / f"killed{after}"
        assert killed_in_the_middle(folder, weights, after) == -signal.SIGKILL
        assert len(bytes_of(folder)) == after
        assert list(folder.glob(".*.png.*")), "it was killed with a picture half in place"
        assert draw(folder, weights) == 12 - after
        assert bytes_of(folder) == whole
        assert list(folder.glob(".*.png.*")) == []
        assert draw(folder, weights) == 0


def test_shared_by_processes_in_any_order_it_is_the_same(tmp_path, weights):
    draw(tmp_path / "whole", weights)
    counts = [draw(tmp_path / "shared", weights, shard=(k, 2)) for k in (1, 0)]
    assert counts == [4, 8]
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "whole")


def test_with_nothing_missing_no_weights_are_needed(tmp_path, weights):
    draw(tmp_path / "whole", weights)
    shutil.rmtree(weights.source)
    assert draw(tmp_path / "whole", weights, load=None) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 2}, "settings.sampler.steps 1, not 2"),
        ({"guidance": 3.0}, "settings.sampler.guidance 1.0, not 3.0"),
    ],
)
def test_a_folder_is_not_continued_with_other_settings(tmp_path, weights, change, says):
    draw(tmp_path / "pictures", weights)
    with pytest.raises(PictureError, match=f"was made with {says}: go back, give another folder, or remove this one"):
        draw(tmp_path / "pictures", dataclasses.replace(weights, **change))


def test_nor_with_other_seeds_batches_weights_or_machines(tmp_path, weights):
    folder = tmp_path / "pictures"
    draw(folder, weights)
    before = bytes_of(folder)
    with pytest.raises(PictureError, match=r"was made with settings.seeds \[0, 1, 2\], not \[0, 1\]"):
        draw(folder, weights, seeds=(0, 1))
    with pytest.raises(PictureError, match=r"was made with settings.batch 4, not 3"):
        draw(folder, weights, batch=3)
    next(iter(folder.glob("*.png"))).unlink()
    with pytest.raises(PictureError, match=r"was made with machine.device 'cpu', not 'cuda'"):
        draw(folder, weights, device="cuda")
    (tmp_path / "weights" / "more").write_text("retrained")
    with pytest.raises(PictureError, match=r"was made with weights.model '\w+', not '\w+'"):
        draw(folder, weights)
    assert bytes_of(folder).items() <= before.items()


def test_no_memory_is_one_line(tmp_path, weights):
    def full(prompts, **options):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    with pytest.raises(PictureError, match="no memory for 4 pictures: lower `batch`"):
        draw(tmp_path / "pictures", weights, load=lambda *_, **__: call_with_signature(full))


# --------------------------------------------------------------------------------------------------- real pipelines


@pytest.mark.parametrize("name", ["random_unet", "random_transformer", "random_one_step"])
def test_real_pipelines_draw_the_same_whatever_the_batch(tmp_path, models, name):
    """Up to a rounding of the last bit, for which folders keep to one batch size."""
    found = {}
    for batch in (1, 3):
        folder = tmp_path / f"{batch}"
        count = generation.generate(folder, models[name], PROMPTS[:2], (0, 5), batch=batch, scale="smoke")
        assert count == 4
        found[batch] = picture_sets.read_all(folder, picture_sets.items(PROMPTS[:2], (0, 5)))
    assert found[1].shape == (4, 3, 32, 32)
    assert (found[1] - found[3]).abs().max() <= 1.01 / 255
    assert (found[1][0] - found[1][1]).abs().max() > 0.02


def test_a_one_step_export_is_the_generator_itself(tmp_path, models):
    """At its own timestep, from the noise of (seed, prompt): an ordinary pipeline draws what our generator draws."""
    from dipp_core.models import folders

    sampler = models["random_one_step"]
    generation.generate(tmp_path, sampler, PROMPTS[:1], (3,), batch=1, scale="smoke")
    world = folders.load(sampler.source)
    z = torch.randn(1, *world.z_shape, generator=picture_sets.generator_of((0, 3)))
    gen = world.generator(sampler.timesteps[0])
    with torch.no_grad():
        ours = world.decode(gen(z, world.prompts(TEXTS[:1]).rows(torch.tensor([0]))))
    assert (picture_sets.read_all(tmp_path, [(0, 3)]) - ours).abs().max() <= 0.51 / 255 + 1e-3


def test_timesteps_are_refused_by_pipelines_that_take_none():
    class Pipe:
        def __call__(self, prompt, num_inference_steps, guidance_scale):
            return None

    with pytest.raises(InputError, match="Pipe takes no timesteps: leave them out of the row"):
        generation.call_options(Pipe(), Sampler(source="x", steps=1, guidance=1.0, timesteps=(399,)))


def test_numbers_of_a_picture_are_finite(tmp_path, weights):
    def broken(prompts, **options):
        return types.SimpleNamespace(images=np.full((len(prompts), 4, 4, 3), np.nan))

    with pytest.raises(PictureError, match="prompt 0 with seed 0 is not finite"):
        draw(tmp_path / "pictures", weights, load=lambda *_, **__: call_with_signature(broken))


def test_where_a_machine_draws_nothing_the_line_says_all_that_is_missing(tmp_path, weights, models):
    options = {"batch": 4, "scale": "smoke"}
    gone = dataclasses.replace(weights, source="no/model")
    line = generation.draw(tmp_path / "a", gone, PROMPTS, (0,), forbidden="no GPU", **options)
    assert line.startswith("no GPU; no/model is not here; `huggingface-cli download no/model")
    assert generation.draw(tmp_path / "a", weights, PROMPTS, (0,), forbidden="no GPU", **options) == "no GPU"
    assert not (tmp_path / "a").exists()
    assert generation.draw(tmp_path / "a", weights, PROMPTS, (0,), load=painter, **options) == ""
    assert generation.draw(tmp_path / "a", weights, PROMPTS, (0,), forbidden="no GPU", **options) == ""
