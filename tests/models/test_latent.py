"""The diffusion of a folder, held to what diffusers itself makes of it: schedulers, pipelines, all three denoisers."""

import json
import shutil

import diffusers
import pytest
import torch

from dipp_core.method.schedule import convert_prediction
from dipp_core.models import folders, lora
from dipp_core.models.latent import Denoiser
from dipp_core.worlds import shapes

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")
CALL = {"unet": {}, "dit": {"use_resolution_binning": False}, "sdxl": {}, "t5": {"use_resolution_binning": False}}


@pytest.fixture(scope="session")
def prompts(model):
    return model.prompts(PROMPTS)


def noise(model, rng, count=2):
    return torch.randn(count, *model.z_shape, generator=rng())


# ------------------------------------------------------------------------------------------------------ the pipelines


@pytest.mark.parametrize("kind", CALL)
def test_ordinary_pipeline_samples_the_folder_as_we_do(places, kind, rng, pipeline):
    """Ten DDIM steps with guidance: scheduler, guidance, text, learned variance, decoder, all in one number."""
    model, theirs = folders.load(places / kind), pipeline(places / kind)
    prompts, z = model.prompts(PROMPTS), noise(model, rng)
    cond = prompts.rows(torch.arange(2))
    latents = model.sample(z, cond, steps=10, alpha_cfg=2.0, null_cond=prompts.null_cond)
    steps = {"num_inference_steps": 10, "guidance_scale": 3.0, "latents": z, "output_type": "pt"} | CALL[kind]
    torch.testing.assert_close(model.decode(latents), theirs(list(PROMPTS), **steps).images, atol=1e-4, rtol=0)
    for name in {"tokens", "pooled"} & cond.keys():  # and it listens to each
        other = model.sample(z, cond | {name: cond[name].flip(0)}, steps=2)
        assert (other - model.sample(z, cond, steps=2)).abs().max() > 1e-4


@pytest.mark.parametrize("predicts", folders.PREDICTIONS)
def test_conversions_equal_the_scheduler_of_the_folder(places, predicts, rng):
    model = folders.load(places / "unet", parts=["denoiser"])
    theirs = diffusers.DDIMScheduler.from_pretrained(places / "unet/scheduler", prediction_type=predicts)
    theirs.set_timesteps(50)
    xt, value = torch.randn(2, 1, *model.z_shape, generator=rng())
    for index in (0, 199, 625, 999):
        t = model.schedule.time_of_index(torch.tensor([index]))
        source = folders.PREDICTIONS[predicts]
        found = convert_prediction(value, xt=xt, t=t, schedule=model.schedule, source=source, target="x0")
        expected = theirs.step(value, index, xt).pred_original_sample
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_prompts_are_encoded_as_the_pipeline_does_and_only_once(places, kind, pipeline):
    model, theirs, calls = folders.load(places / kind), pipeline(places / kind), []
    model.text.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = model.prompts([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    model.prompts([PROMPTS[1]])
    assert len(calls) == 2  # the prompts, and the empty one
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    expected = theirs.encode_prompt(list(PROMPTS), **options)
    cond, null = found.rows(torch.tensor([2, 1])), found.null_cond
    if kind == "dit":
        tokens, mask, _, null_mask = expected
        length = cond["tokens"].shape[1]  # the pipeline pads further, which its mask hides
        assert not mask[:, length:].any()
        assert torch.equal(cond["mask"], mask[:, :length])
        assert torch.equal(null["mask"], null_mask[:1, :length])
        visible = cond["mask"].bool()
        torch.testing.assert_close(cond["tokens"][visible], tokens[:, :length][visible])
        return
    torch.testing.assert_close(cond["tokens"], expected[0])
    torch.testing.assert_close(null["tokens"], expected[1][:1])
    if kind == "sdxl":
        torch.testing.assert_close(cond["pooled"], expected[2])
        torch.testing.assert_close(null["pooled"], expected[3][:1])


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_of_sdxl_is_zeros_or_encoded_as_its_folder_says(places, tmp_path, zeros, pipeline):
    folder = shutil.copytree(places / "sdxl", tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": zeros}))
    found, theirs = folders.load(folder).prompts([*PROMPTS, ""]), pipeline(folder)
    expected = theirs.encode_prompt(list(PROMPTS), device="cpu")
    torch.testing.assert_close(found.null_cond["tokens"], expected[1][:1])
    assert bool((expected[1] == 0).all()) is zeros
    asked = theirs.encode_prompt([""], device="cpu")  # as a prompt among others it is encoded in either case
    torch.testing.assert_close(found.rows(torch.tensor([2]))["tokens"], asked[0])


def test_no_caption_is_cut_off_or_has_an_unknown_token(places):
    tokenizer = folders.load(places / "unet").text.tokenizer
    for phrasing in shapes.PHRASINGS:
        for text in shapes.captions(shapes.split("test"), phrasing):
            ids = tokenizer(text).input_ids
            assert len(ids) <= tokenizer.model_max_length  # nothing is cut off
            assert tokenizer.unk_token_id not in ids[1:-1]


# ------------------------------------------------------------------------------------------------------ the denoisers


def test_a_denoiser_is_called_as_its_class_wants_it(model, kind, prompts, rng):
    xt, cond, index = noise(model, rng), prompts.rows(torch.arange(2)), torch.tensor([10, 700])
    inputs = {"timestep": index, "encoder_hidden_states": cond["tokens"]}
    if kind == "dit":
        inputs |= {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": {}}
    if kind == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": cond["pooled"], "time_ids": model.denoiser.time_ids(xt)}
    t = model.schedule.time_of_index(index)
    theirs, ours = model.denoiser.network(xt, **inputs).sample, model.denoiser(xt, t, cond)
    assert theirs.shape[1] == {"unet": 4, "dit": 8, "sdxl": 4}[kind]  # PixArt's second half is a variance
    torch.testing.assert_close(ours, theirs[:, :4])
    torch.testing.assert_close(model.denoiser(xt, t[:1], cond)[0], ours[0], atol=1e-5, rtol=1e-5)
    hidden = {name: value.clone() for name, value in cond.items()}
    hidden["tokens"][0, -1] += 1.0  # padding, which a transformer's mask hides
    difference = (model.denoiser(xt, t, hidden) - ours)[0].abs().max()
    assert (difference == 0) if kind == "dit" else (difference > 1e-5)


def test_sizes_of_sdxls_picture_are_those_of_the_pipeline(places, pipeline):
    """Of the picture that is asked for, not of the model's own size; and exact in bfloat16, which has 8 digits."""
    model, theirs, given = folders.load(places / "sdxl"), pipeline(places / "sdxl"), []
    theirs.unet.register_forward_pre_hook(
        lambda module, args, options: given.append(options["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    theirs(PROMPTS[0], height=16, width=40, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert given[0].tolist() == [[16, 40, 0, 0, 16, 40]]
    assert torch.equal(model.denoiser.time_ids(torch.empty(1, 4, 4, 10)), given[0])
    assert model.denoiser.time_ids(torch.empty(1, 4, 257, 1, dtype=torch.bfloat16))[0, 0] == 1028


def test_a_transformer_trained_with_picture_sizes_is_told_them(rng):
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=1,
        in_channels=4,
        out_channels=8,
        caption_channels=16,
        use_additional_conditions=True,
    )
    schedule = folders.noise_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    xt, tokens = torch.randn(2, 4, 8, 16, generator=rng()), torch.randn(2, 5, 16, generator=rng(1))
    cond, t = {"tokens": tokens, "mask": torch.ones(2, 5)}, schedule.time_of_index(torch.tensor([99, 99]))
    size = {"resolution": torch.tensor([[64.0, 128.0]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    inputs = {"encoder_hidden_states": tokens, "encoder_attention_mask": cond["mask"], "added_cond_kwargs": size}
    theirs = network(xt, timestep=torch.tensor([99, 99]), **inputs).sample
    torch.testing.assert_close(Denoiser(network, schedule, latent_scale=8)(xt, t, cond), theirs[:, :4])


def test_half_precision_weights_keep_latents_in_single(places, model, kind, prompts, rng):
    half, z, t = folders.load(places / kind, dtype=torch.bfloat16), noise(model, rng), torch.tensor([0.5, 0.9])
    found = half.denoiser(z, t, half.prompts(PROMPTS).rows(torch.arange(2)))
    assert found.dtype == half.decode(z).dtype == torch.float32
    torch.testing.assert_close(found, model.denoiser(z, t, prompts.rows(torch.arange(2))), atol=0.1, rtol=0.1)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_latents_are_scaled_and_pictures_are_in_the_unit_range(places, rng):
    model = folders.load(places / "unet")
    model.vae.register_to_config(scaling_factor=0.7)
    images = shapes.render(shapes.ideal_scene(shapes.split("held_out")[:3]))
    latents = model.encode(images)
    assert latents.shape == (3, *model.z_shape)
    torch.testing.assert_close(latents, 0.7 * model.vae.encode(2 * images - 1).latent_dist.mean)
    assert not torch.equal(model.encode(images, generator=rng()), latents)
    decoded = model.vae.decode(10 * latents / 0.7).sample / 2 + 0.5
    assert decoded.max() > 1
    torch.testing.assert_close(model.decode(10 * latents), decoded.clamp(0, 1))


def test_decoding_that_saves_memory_has_the_same_gradient(places, rng):
    model, gradients = folders.load(places / "unet"), []
    for switch in (lambda vae: None, lora.recompute_vae):
        switch(model.vae)
        latents = noise(model, rng, 3).requires_grad_()
        model.decode(latents).square().sum().backward()
        gradients.append(latents.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_a_generator_starts_at_a_timestep_of_the_schedule(model):
    gen = model.generator(625)
    assert model.schedule.index_of_time(torch.tensor(gen.t_star)) == 625
    assert all(parameter.requires_grad for parameter in gen.parameters())
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())
    with pytest.raises(ValueError, match="a timestep from 0 to 999, not 1000"):
        model.generator(1000)
