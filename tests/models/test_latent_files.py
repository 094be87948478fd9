"""A folder in diffusers format is read whole or refused in one line."""

import json
import os
import shutil

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.worlds import shapes

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def edited(file, change):
    """Change a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny folder of each kind."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    return {kind: miniature.build(root / kind, kind, words=words, size="tiny") for kind in miniature.KINDS}


def noise(model, count=2, seed=0):
    return torch.randn(count, *model.z_shape, generator=rng(seed))


def test_a_folder_is_a_function_of_its_seed_and_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    nets = [miniature.new_denoiser("dit", "tiny", seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    weights = [net["proj_out.weight"] for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_a_part_its_files_need_not_be_there(places, tmp_path):
    folder = shutil.copytree(places["unet"], tmp_path / "model")
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    model = folders.load(folder, parts=["denoiser", "vae"])
    assert model.text is None
    with pytest.raises(ValueError, match="was not loaded; load it with the part"):
        model.prompts(PROMPTS)


def test_pixart_as_first_published_names_another_class(places, tmp_path):
    folder = shutil.copytree(places["dit"], tmp_path / "model")
    name = "Transformer2DModel"
    edited(folder / "model_index.json", lambda c: c.update(transformer=["diffusers", name]))
    edited(folder / "transformer/config.json", lambda c: c.update(_class_name=name))
    old, new = (folders.load(place, parts=["denoiser"]) for place in (folder, places["dit"]))
    cond = {"tokens": torch.randn(2, 5, 16, generator=rng()), "mask": torch.ones(2, 5)}
    inputs = noise(old), torch.tensor([0.5, 0.9]), cond
    assert torch.equal(old.denoiser(*inputs), new.denoiser(*inputs))


@pytest.mark.parametrize("kind", miniature.KINDS)
def test_half_precision_weights_keep_latents_in_single(places, kind):
    model = folders.load(places[kind], dtype=torch.bfloat16)
    full = folders.load(places[kind])
    prompts, z, t = model.prompts(PROMPTS), noise(model), torch.tensor([0.5, 0.9], dtype=torch.float64)
    cond = prompts.rows(torch.arange(2))
    half = model.denoiser(z, t, cond)
    assert half.dtype == torch.float32
    exact = full.denoiser(z, t, full.prompts(PROMPTS).rows(torch.arange(2)))
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0.1)
    assert model.decode(z).dtype == torch.float32


def test_a_part_may_be_there_in_half_precision_alone(places, tmp_path):
    """As the release of Diff-Instruct* is: its weights are files named .fp16.safetensors."""
    folder = shutil.copytree(places["unet"], tmp_path / "model")
    expected = folders.load(folder)
    for part in ("unet", "text_encoder"):
        file = next((folder / part).glob("*.safetensors"))
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    found = folders.load(folder)
    z, t, cond = noise(found), torch.tensor([0.5, 0.9]), found.prompts(PROMPTS).rows(torch.arange(2))
    assert torch.equal(
        found.denoiser(z, t, cond), expected.denoiser(z, t, expected.prompts(PROMPTS).rows(torch.arange(2)))
    )


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
BAD = {
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    "a part of no class": (
        lambda f: edited(f / "model_index.json", lambda c: c.update(vae=None)),
        "vae is a None; known here: AutoencoderKL",
    ),
    "nameless picture size": (
        lambda f: edited(f / "vae/config.json", lambda c: c.pop("block_out_channels")),
        "has no block_out_channels",
    ),
    "other pipeline": (
        lambda f: edited(f / "model_index.json", lambda c: c.update(_class_name="FluxPipeline")),
        "is made for FluxPipeline, which is not known here: StableDiffusionPipeline",
    ),
    "unknown denoiser": (
        lambda f: edited(f / "model_index.json", lambda c: c.update(unet=["my_code", "MyUNet"])),
        "unet is a MyUNet; known here: UNet2DConditionModel",
    ),
    "unknown text encoder": (
        lambda f: edited(f / "model_index.json", lambda c: c.update(text_encoder=["transformers", "BertModel"])),
        "text_encoder is a BertModel",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "unet has no weights: *.safetensors is needed"),
    "pickled weights": (
        lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"),
        "only diffusion_pytorch_model.bin, a pickle",
    ),
    "truncated weights": (lambda f: os.truncate(f / WEIGHTS, 40_000), "is no whole safetensors file (40,000 bytes"),
    "empty weights": (lambda f: os.truncate(f / WEIGHTS, 0), "is no whole safetensors file (0 bytes"),
    "weights of another size": (
        lambda f: edited(f / "unet/config.json", lambda c: c.update(block_out_channels=[16, 32])),
        "unet does not fit UNet2DConditionModel",
    ),
    "weights of fewer layers": (
        lambda f: edited(f / "unet/config.json", lambda c: c.update(layers_per_block=2)),
        "weights are missing, the first is",
    ),
    "a lost shard": (
        lambda f: (f / "unet/x.safetensors.index.json").write_text('{"weight_map": {"a": "x-1-of-2.safetensors"}}'),
        "x-1-of-2.safetensors is missing",
    ),
    "no configuration": (lambda f: (f / "unet/config.json").unlink(), "config.json is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer cannot be read"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
    "flow matching": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text('{"_class_name": "FlowMatch"}'),
        "FlowMatch has no betas",
    ),
    "no signal at the end": (
        lambda f: edited(f / "scheduler/scheduler_config.json", lambda c: c.update(rescale_betas_zero_snr=True)),
        "rescale_betas_zero_snr",
    ),
    "another prediction": (
        lambda f: edited(f / "scheduler/scheduler_config.json", lambda c: c.update(prediction_type="flow")),
        "the prediction_type is 'flow'; known are epsilon",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused_in_one_line_that_says_why(places, tmp_path, name):
    folder, (spoil, why) = shutil.copytree(places["unet"], tmp_path / "model"), BAD[name]
    spoil(folder)
    with pytest.raises(InputError) as error:
        folders.load(folder)
    assert why in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_is_answered_with_the_command_that_fetches_it():
    with pytest.raises(InputError) as error:
        folders.load("PixArt-alpha/PixArt-XL-2-512x512")
    assert "huggingface-cli download PixArt-alpha/PixArt-XL-2-512x512 --local-dir models/PixArt-XL-2-512x512" in str(
        error.value
    )


def test_parts_are_checked():
    with pytest.raises(ValueError, match="unknown part 'unet': denoiser, vae, text"):
        folders.load("x", parts=["unet"])
    with pytest.raises(ValueError, match="name the part 'denoiser' too"):
        folders.load("x", parts=["vae"])
