"""Folders in diffusers format: read whole or refused in one line; one-step models by every published rule."""

import json
import os
import pathlib
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from dipp_core.files import InputError
from dipp_core.models import folders, lora, miniature
from dipp_core.models.folders import AS_IT_IS, STARTS, TIMES_SIGMA

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")
# what an ordinary pipeline must be told of each kind: PixArt's would look for the nearest of its own picture sizes
CALL = {"unet": {}, "dit": {"use_resolution_binning": False}, "sdxl": {}}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def edited(file, **changes):
    """Change a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def inputs(world, rng):
    """z, cond and, for networks called by hand, what they are told."""
    z, cond = torch.randn(2, *world.z_shape, generator=rng()), world.prompts(PROMPTS).rows(torch.arange(2))
    told = {"encoder_hidden_states": cond["tokens"]}
    if world.denoiser.is_transformer:
        told |= {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": {}}
    if world.denoiser.is_sdxl:
        told["added_cond_kwargs"] = {"text_embeds": cond["pooled"], "time_ids": world.denoiser.time_ids(z)}
    return z, cond, told


# ------------------------------------------------------------------------------------------------------------- reading


def test_without_a_part_its_files_need_not_be_there(places, tmp_path):
    folder = shutil.copytree(places / "unet", tmp_path / "model", ignore=lambda *_: ["text_encoder", "tokenizer"])
    model = folders.load(folder, parts=["denoiser", "vae"])
    assert model.text is None
    with pytest.raises(ValueError, match="was not loaded; load it with the part"):
        model.prompts(PROMPTS)
    with pytest.raises(ValueError, match="unknown part 'unet': denoiser, vae, text"):
        folders.load("x", parts=["unet"])


def test_pixart_as_first_published_names_another_class(places, tmp_path, rng):
    folder = shutil.copytree(places / "dit", tmp_path / "model")
    edited(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edited(folder / "transformer/config.json", _class_name="Transformer2DModel")
    old, new = (folders.load(place, parts=["denoiser"]) for place in (folder, places / "dit"))
    cond = {"tokens": torch.randn(2, 5, 16, generator=rng()), "mask": torch.ones(2, 5)}
    xt, t = torch.randn(2, *old.z_shape, generator=rng()), torch.tensor([0.5, 0.9])
    assert torch.equal(old.denoiser(xt, t, cond), new.denoiser(xt, t, cond))


def test_a_part_may_be_there_in_half_precision_alone(places, tmp_path, rng):
    """As the release of Diff-Instruct* is: its weights are files named .fp16.safetensors."""
    folder = shutil.copytree(places / "unet", tmp_path / "model")
    expected = folders.load(folder)
    for part in ("unet", "text_encoder"):
        file = next((folder / part).glob("*.safetensors"))
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    found = folders.load(folder)
    z, cond, _ = inputs(expected, rng)
    t = torch.tensor([0.5, 0.9])
    assert torch.equal(found.prompts(PROMPTS).rows(torch.arange(2))["tokens"], cond["tokens"])
    assert torch.equal(found.denoiser(z, t, cond), expected.denoiser(z, t, cond))


BAD = {
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    "unknown pipeline": (
        lambda f: edited(f / "model_index.json", _class_name="FluxPipeline"),
        "is made for FluxPipeline, which is not known here: StableDiffusionPipeline",
    ),
    "a part of no class": (lambda f: edited(f / "model_index.json", unet=None), "unet is a None"),
    "code of its own": (
        lambda f: edited(f / "model_index.json", unet=["my_code", "MyUNet"]),
        "unet is a MyUNet; known here: UNet2DConditionModel",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "unet has no weights: *.safetensors is needed"),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"),
        "only diffusion_pytorch_model.bin, a pickle",
    ),
    "truncated weights": (lambda f: os.truncate(f / WEIGHTS, 40_000), "is no whole safetensors file (40,000 bytes"),
    "weights of another size": (
        lambda f: edited(f / "unet/config.json", block_out_channels=[16, 32]),
        "unet does not fit UNet2DConditionModel",
    ),
    "weights of fewer layers": (
        lambda f: edited(f / "unet/config.json", layers_per_block=2),
        "weights are missing, the first is",
    ),
    "a lost shard": (
        lambda f: (f / "unet/x.safetensors.index.json").write_text('{"weight_map": {"a": "x-1-of-2.safetensors"}}'),
        "x-1-of-2.safetensors is missing",
    ),
    "no configuration": (lambda f: (f / "unet/config.json").unlink(), "config.json is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer cannot be read"),
    "a shifted VAE": (lambda f: edited(f / "vae/config.json", latents_mean=[0.1] * 4), "has a latents_mean"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "flow matching": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text('{"_class_name": "FlowMatch"}'),
        "FlowMatch has no betas",
    ),
    "no signal at the end": (
        lambda f: edited(f / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr",
    ),
    "another prediction": (
        lambda f: edited(f / "scheduler/scheduler_config.json", prediction_type="flow"),
        "the prediction_type is 'flow'; known are epsilon",
    ),
    "no second encoder": (lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2/config.json is missing"),
    "an encoder without projection": (
        lambda f: edited(f / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "text_encoder_2 is a CLIPTextModel",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_in_one_line_that_says_why(places, tmp_path, name):
    kind = "sdxl" if name in ("no second encoder", "an encoder without projection") else "unet"
    folder, (spoil, why) = shutil.copytree(places / kind, tmp_path / "model"), BAD[name]
    spoil(folder)
    with pytest.raises(InputError) as error:
        folders.load(folder)
    assert why in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- one-step models, asked


def test_the_published_rules_of_scaled_noise_are_one(places, kind, model, rng, pipeline):
    """SiD-LSG's add_noise(0, z, t*), EDM's D(sigma z, sigma), and Euler's method from its largest sigma."""
    z, cond, told = inputs(model, rng)
    gen = folders.converted(model.generator(625), TIMES_SIGMA)
    scheduler = diffusers.DDPMScheduler.from_pretrained(places / kind / "scheduler")
    with torch.no_grad():
        x = scheduler.add_noise(torch.zeros_like(z), z, torch.full((2,), 625))
        value = model.denoiser.network(x, timestep=torch.full((2,), 625), **told).sample[:, :4]
        published = scheduler.step(value, 625, x).pred_original_sample
        torch.testing.assert_close(gen(z, cond), published, rtol=1e-4, atol=1e-4)
        assert (model.generator(625)(z, cond) - published).abs().max() > 0.01  # it is not ours
        t = model.schedule.time_of_index(625)
        sigma = (model.schedule.sigma(t) / model.schedule.alpha(t)).item()
        x = sigma * z
        value = model.denoiser.network(x / (1 + sigma**2) ** 0.5, timestep=torch.full((2,), 625), **told).sample[:, :4]
        torch.testing.assert_close(gen(z, cond), x - sigma * value, rtol=1e-4, atol=1e-4)
        theirs = pipeline(places / kind)
        theirs.scheduler = diffusers.EulerDiscreteScheduler(**model.noise, timestep_spacing="trailing", steps_offset=1)
        call = {"num_inference_steps": 1, "guidance_scale": 0.0, "latents": z, "output_type": "latent"} | CALL[kind]
        last = folders.converted(model.generator(999), TIMES_SIGMA)
        torch.testing.assert_close(last(z, cond), theirs(list(PROMPTS), **call).images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise", [AS_IT_IS, TIMES_SIGMA])
def test_exported_it_is_an_ordinary_pipeline_and_may_start_again(kind, model, places, tmp_path, noise, rng, pipeline):
    gen = folders.converted(model.generator(625), noise)
    z, cond, _ = inputs(model, rng)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng(1))
        ours = gen(z, cond)
        assert (ours - folders.converted(model.generator(625), noise)(z, cond)).abs().max() > 0.01
        folder = folders.export_start(tmp_path / "out", places / kind, model.noise, gen)
        assert not any(model.source in path.read_text() for path in folder.rglob("*.json"))  # bytes depend on no place
        theirs = pipeline(folder)
        for scale in (0.0, 1.0):
            call = {"num_inference_steps": 1, "timesteps": [625], "guidance_scale": scale, "latents": z}
            latents = theirs(list(PROMPTS), output_type="latent", **call, **CALL[kind]).images
            torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-4)
        images = theirs(list(PROMPTS), output_type="pt", **call, **CALL[kind]).images
        torch.testing.assert_close(model.decode(ours), images, atol=1e-3, rtol=0)
        said, start = [], folders.load_start(folder, model)
        again = folders.asked_as_published(start.generator(625), folder, folder, said.append)
        assert torch.equal(again(z, cond), ours)
    assert folders.convention(folder, folder) == (625, noise)
    assert said == []
    folders.asked_as_published(start.generator(399), folder, folder, said.append)
    assert "was made for t_star = 625; this run asks it at 399" in said[0]


def test_a_scaled_generator_keeps_its_rule_when_adapters_are_merged(places, rng):
    world = folders.load(places / "unet")
    z, cond, _ = inputs(world, rng)
    gen = folders.converted(world.generator(625, lora.Adapted(lora.SharedBase(world.denoiser), rank=2)), TIMES_SIGMA)
    whole = folders.rebuilt(gen, lora.merged(gen.network))
    assert type(whole) is folders.ScaledNoise
    torch.testing.assert_close(whole(z, cond), gen(z, cond))


# ------------------------------------------------------------------------------------------- the forms they come in


def test_every_form_of_a_start_gives_the_same_generator(places, kind, model, tmp_path, rng):
    """A pipeline, a folder with its denoiser alone, the denoiser's own folder, a file of weights."""
    source, place = places / f"{kind}_start", "transformer" if kind == "dit" else "unet"
    shutil.copytree(source / place, tmp_path / "part" / place)
    expected = folders.load(source, parts=("denoiser",))
    save_file(expected.denoiser.network.state_dict(), tmp_path / "weights.safetensors")
    z, cond, _ = inputs(model, rng)
    made = expected.generator(399)(z, cond)
    for form in (source, tmp_path / "part", tmp_path / "part" / place, tmp_path / "weights.safetensors"):
        path = folders.locate_start(form)
        start = folders.load_start(path, model)
        assert torch.equal(start.generator(399)(z, cond), made)
        assert start.vae is None
        assert folders.convention(path, path) == (None, AS_IT_IS)
    half = folders.load_start(tmp_path / "weights.safetensors", model, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {torch.bfloat16}


def test_what_a_start_says_of_its_noise_is_taken_and_the_rest_from_the_reference(places, tmp_path):
    world = folders.load(places / "unet")
    folder = shutil.copytree(places / "unet_start", tmp_path / "start")
    edited(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction", beta_end=0.02)
    start = folders.load_start(folder, world)
    assert start.prediction_type == "v"
    assert start.noise["beta_end"] == 0.02
    shutil.rmtree(folder / "scheduler")
    assert folders.load_start(folder, world).noise == world.noise


def empty_file(name):
    def make(root, places):
        (root / name).write_bytes(b"12345678901234567890")
        return root / name

    return make


def misfit(root, places):
    save_file({"conv_in.weight": torch.zeros(2)}, root / "weights.safetensors")
    return root / "weights.safetensors"


def wide(root, places):
    miniature.new_denoiser("unet", seed=1).save_pretrained(root / "unet")
    return root


def noted(note):
    def make(root, places):
        folder = shutil.copytree(places / "unet_start", root / "start")
        (folder / "one_step.json").write_text(note)
        return folder

    return make


FLAWS = {
    "nothing there": (lambda root, places: "nowhere/at-all", "no hub id with a commit"),
    "a pickle": (empty_file("dmd2_sdxl_1step_unet_fp16.bin"), "is a pickle, which is not opened here"),
    "another kind of file": (empty_file("weights.txt"), r"is no \.safetensors file"),
    "half a file": (empty_file("weights.safetensors"), "is no whole safetensors file"),
    "a pickle at the hub": (
        lambda root, places: "tianweiy/DMD2",
        r"publishes dmd2_sdxl_1step_unet_fp16\.bin, a pickle, .* weights_only=True",
    ),
    "no commit": (lambda root, places: "XDG-XHS/distar_long_1step", "give XDG-XHS/distar_long_1step@COMMIT"),
    "not fetched": (lambda root, places: "stabilityai/sd-turbo", ".venv/bin/hf download stabilityai/sd-turbo"),
    "other weights": (misfit, "does not fit the UNet2DConditionModel"),
    "a folder of nothing": (lambda root, places: root, r"config\.json is missing"),
    "another class": (lambda root, places: places / "dit", "its class is PixArtTransformer2DModel"),
    "another size": (wide, "its width of prompts is 64, not 16"),
    "another family": (lambda root, places: places / "sdxl", "its width of prompts is 40, not 16"),
    "an unknown rule": (noted('{"noise": "twice"}'), "noise is 'twice', which is not known here"),
    "a broken note": (noted("{"), r"one_step\.json cannot be read"),
}


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_of_a_start_is_one_line(places, tmp_path, name):
    def begun(source, world):
        path = folders.locate_start(source)
        folders.convention(source, path)
        return folders.load_start(path, world)

    make, words = FLAWS[name]
    source, world = make(tmp_path, places), folders.load(places / "unet", parts=("denoiser",))
    with pytest.raises(InputError, match=words) as caught:
        begun(source, world)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- hub ids


def test_a_hub_id_is_answered_with_its_size_and_the_command_that_fetches_it():
    with pytest.raises(InputError) as error:
        folders.load("PixArt-alpha/PixArt-XL-2-512x512")
    revision = folders.PUBLIC["PixArt-alpha/PixArt-XL-2-512x512"].revision
    command = f".venv/bin/hf download PixArt-alpha/PixArt-XL-2-512x512 --revision {revision} --include"
    assert command in str(error.value)
    assert "--local-dir models/PixArt-XL-2-512x512" in str(error.value)
    assert "about 22 GB" in str(error.value)


def test_of_a_start_only_its_denoiser_is_fetched_and_half_precision_where_there_is_no_other():
    for source, half in ((f"XDG-XHS/distar_long_1step@{'0' * 40}", True), ("stabilityai/sd-turbo", False)):
        with pytest.raises(InputError) as caught:
            folders.locate_start(source)
        line = str(caught.value)
        assert "text_encoder" not in line
        assert '"unet/*"' in line
        assert ('"*fp16*"' in line) is not half
        assert source.partition("@")[0] in line


def test_what_is_known_of_starts_is_whole():
    for name, start in STARTS.items():
        assert start.revision is None or len(start.revision) == 40
        assert (start.pickled is None) == (start.cure is None)
        assert folders.convention(name, pathlib.Path("nowhere")) == (start.t_star, start.noise)
    assert {start.reference for start in STARTS.values() if "/" in start.reference} <= set(folders.PUBLIC)
