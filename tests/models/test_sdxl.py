"""SDXL, on a tiny folder, held to diffusers' own pipeline: prompts, added conditions, sampling, export."""

import json
import shutil

import diffusers
import pytest
import tiny_sdxl
import torch

from dipp_core.files import InputError
from dipp_core.method.algorithm import align, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.generator import trainable_copy
from dipp_core.method.schedule import sigma_power_weight, uniform_index_time
from dipp_core.models import folders, lora
from dipp_core.worlds import shapes

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl.build(tmp_path_factory.mktemp("models") / "sdxl", words=shapes.vocabulary())


@pytest.fixture(scope="module")
def model(folder):
    return folders.load(folder)


def pipeline(folder):
    """The pipeline as anybody loads it."""
    found = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def noise(model, count=2):
    return torch.randn(count, *model.z_shape, generator=rng())


@pytest.mark.parametrize("zero_null", [True, False], ids=["zeros for the empty prompt", "the empty prompt encoded"])
def test_prompts_are_encoded_as_the_pipeline_does(folder, tmp_path, zero_null):
    place = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": zero_null}))
    model, theirs = folders.load(place), pipeline(place)
    tokens, null_tokens, pooled, null_pooled = theirs.encode_prompt(list(PROMPTS), device="cpu")
    found = model.prompts([*PROMPTS, ""])
    cond = found.rows(torch.arange(2))
    torch.testing.assert_close(cond["tokens"], tokens)
    torch.testing.assert_close(cond["pooled"], pooled)
    torch.testing.assert_close(found.null_cond["tokens"], null_tokens[:1])
    torch.testing.assert_close(found.null_cond["pooled"], null_pooled[:1])
    assert bool((null_tokens == 0).all()) is zero_null
    asked = theirs.encode_prompt([""], device="cpu")  # as a prompt among others it is encoded in either case
    torch.testing.assert_close(found.rows(torch.tensor([2]))["tokens"], asked[0])
    torch.testing.assert_close(found.rows(torch.tensor([-1]))["pooled"], null_pooled[:1])
    first, second = (
        theirs.tokenizer([PROMPTS[0]], padding="max_length"),
        theirs.tokenizer_2([PROMPTS[0]], padding="max_length"),
    )
    assert first.input_ids != second.input_ids  # each pads in its own way


def test_ordinary_pipeline_samples_the_folder_as_we_do(folder, model):
    """Ten DDIM steps with guidance: both encoders, added conditions, the zeros of the empty prompt, in one number."""
    theirs, prompts, z = pipeline(folder), model.prompts(PROMPTS), noise(model)
    assert type(theirs).__name__ == "StableDiffusionXLPipeline"
    cond = prompts.rows(torch.arange(2))
    steps = {"num_inference_steps": 10, "guidance_scale": 3.0, "latents": z}
    latents = model.sample(z, cond, steps=10, alpha_cfg=2.0, null_cond=prompts.null_cond)
    expected = theirs(list(PROMPTS), output_type="latent", **steps).images
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
    images = theirs(list(PROMPTS), output_type="pt", **steps).images
    torch.testing.assert_close(model.decode(latents), images, atol=1e-4, rtol=0)
    other = model.sample(z, cond | {"pooled": cond["pooled"].flip(0)}, steps=2)
    assert (other - model.sample(z, cond, steps=2)).abs().max() > 1e-4  # the pooled vector is heard


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_an_exported_generator_is_an_ordinary_pipeline(model, tmp_path, scale):
    gen, prompts, z = model.generator(399), model.prompts(PROMPTS), noise(model)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng(1))
        ours = gen(z, prompts.rows(torch.arange(2)))
    theirs = pipeline(folders.export(tmp_path / "out", model, gen))
    assert isinstance(theirs.scheduler, diffusers.LCMScheduler)
    assert theirs.config.force_zeros_for_empty_prompt is True
    step = {"num_inference_steps": 1, "timesteps": [399], "guidance_scale": scale, "latents": z}
    latents = theirs(list(PROMPTS), output_type="latent", **step).images
    torch.testing.assert_close(ours, latents, atol=1e-4, rtol=0)
    images = theirs(list(PROMPTS), output_type="pt", **step).images
    torch.testing.assert_close(model.decode(ours), images, atol=1e-4, rtol=0)


def test_sizes_of_the_picture_are_those_of_the_pipeline(folder, model):
    """Of the picture that is asked for, not of the model's own size; and exact in bfloat16, which has 8 digits."""
    theirs, given = pipeline(folder), []
    hook = theirs.unet.register_forward_pre_hook(
        lambda module, args, options: given.append(options["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    theirs(PROMPTS[0], height=16, width=40, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    hook.remove()
    assert given[0].tolist() == [[16, 40, 0, 0, 16, 40]]
    assert torch.equal(model.denoiser.time_ids(torch.empty(1, 4, 4, 10)), given[0])
    assert model.denoiser.time_ids(torch.empty(1, 4, 257, 1, dtype=torch.bfloat16))[0, 0] == 1028


@pytest.mark.parametrize("roles", ["lora", "full"])
def test_the_loop_of_the_method_runs_on_it(model, roles):
    """Two steps of DI* with guidance, LoRA roles or whole networks."""
    prompts, network = model.prompts(PROMPTS), model.denoiser
    if roles == "lora":
        base = lora.SharedBase(folders.load(model.source, parts=("denoiser",)).denoiser)
        base.recompute()
        network = lora.Adapted(base, rank=2)
    gen, ta = model.generator(399, network), trainable_copy(network)
    law, weight = uniform_index_time(model.schedule, 20, 980), sigma_power_weight(model.schedule)
    settings = {"batch_shape": (2,), "z_shape": model.z_shape, "time_sampler": law, "distance": pseudo_huber()}
    records = list(
        align(
            gen=gen,
            ta=model.score(ta),
            ref=model.score(),
            reward=model.reward(lambda images, texts: images.mean((1, 2, 3)), prompts),
            schedule=model.schedule,
            settings=preset("distar_in", alpha_cfg=0.5, weight=weight, ta_weight=weight, **settings),
            gen_optimizer=torch.optim.Adam(gen.parameters(), lr=1e-3),
            ta_optimizer=torch.optim.Adam(ta.parameters(), lr=1e-3),
            draw_cond=prompts.draw,
            null_cond=prompts.null_cond,
            generator=rng(),
            steps=2,
        )
    )
    assert all(record.x0_grad_norms[term] > 0 for record in records for term in ("reward", "divergence"))


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2/config.json is missing"),
        (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 cannot be read"),
        (lambda f: _named(f, text_encoder_2=["transformers", "CLIPTextModel"]), "text_encoder_2 is a CLIPTextModel"),
        (lambda f: _named(f, text_encoder=[None, None]), "text_encoder is a None"),
        (lambda f: _shifted(f), "has a latents_mean"),
    ],
    ids=["no second encoder", "no second tokenizer", "an encoder without projection", "a refiner", "a shifted VAE"],
)
def test_a_flaw_is_one_line(folder, tmp_path, flaw, words):
    place = shutil.copytree(folder, tmp_path / "model")
    flaw(place)
    with pytest.raises(InputError, match=words) as caught:
        folders.load(place)
    assert "\n" not in str(caught.value)


def _named(folder, **classes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | classes))


def _shifted(folder):
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"latents_mean": [0.1] * 4}))
