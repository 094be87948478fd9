"""Folders in diffusers format, held to what diffusers itself makes of them: schedulers, pipelines, both denoisers."""

import diffusers
import pytest
import torch

from dipp_core.method.algorithm import align, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.generator import trainable_copy
from dipp_core.method.schedule import convert_prediction, sigma_power_weight, uniform_index_time
from dipp_core.method.scores import guided_score, map_cond
from dipp_core.models import folders, miniature
from dipp_core.models.latent import Denoiser
from dipp_core.models.prompts import encode_prompts
from dipp_core.worlds import shapes

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")
# what an ordinary pipeline must be told of each kind: PixArt's would look for the nearest of its own picture sizes
CALL = {"unet": {}, "dit": {"use_resolution_binning": False}}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny folder of each kind."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    return {kind: miniature.build(root / kind, kind, words=words, size="tiny") for kind in miniature.KINDS}


@pytest.fixture(scope="module", params=miniature.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(places, kind):
    return folders.load(places[kind])


@pytest.fixture(scope="module")
def prompts(model):
    return model.prompts(PROMPTS)


def pipeline(folder):
    """The pipeline as anybody loads it."""
    found = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def noise(model, count=2, seed=0):
    return torch.randn(count, *model.z_shape, generator=rng(seed))


# ---------------------------------------------------------------------------------------------- against the pipelines


def test_ordinary_pipeline_samples_the_folder_as_we_do(places, kind, model, prompts):
    """Ten DDIM steps with guidance: scheduler, guidance, text, learned variance, decoder, all in one number."""
    theirs = pipeline(places[kind])
    names = {"unet": "StableDiffusionPipeline", "dit": "PixArtAlphaPipeline"}
    assert type(theirs).__name__ == names[kind]
    z, cond = noise(model), prompts.rows(torch.arange(2))
    steps = {"num_inference_steps": 10, "guidance_scale": 3.0, "latents": z, "output_type": "pt"} | CALL[kind]
    ours = model.decode(model.sample(z, cond, steps=10, alpha_cfg=2.0, null_cond=prompts.null_cond))
    torch.testing.assert_close(ours, theirs(list(PROMPTS), **steps).images, atol=1e-4, rtol=0)


def test_an_exported_generator_is_an_ordinary_pipeline(places, kind, model, prompts, tmp_path):
    gen = model.generator(625)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng(1))
    z = noise(model)
    with torch.no_grad():
        ours = model.decode(gen(z, prompts.rows(torch.arange(2))))
        before = model.decode(model.generator(625)(z, prompts.rows(torch.arange(2))))
    theirs = pipeline(folders.export(tmp_path / "out", model, gen))
    assert isinstance(theirs.scheduler, diffusers.LCMScheduler)
    for scale in (0.0, 1.0):
        step = {"num_inference_steps": 1, "timesteps": [625], "guidance_scale": scale, "latents": z}
        images = theirs(list(PROMPTS), output_type="pt", **step, **CALL[kind]).images
        torch.testing.assert_close(ours, images, atol=1e-3, rtol=0)
    assert (ours - before).abs().max() > 0.01
    again = folders.load(tmp_path / "out")  # and it can be the start of another run
    network = again.denoiser.network.state_dict()
    assert all(torch.equal(value, network[name]) for name, value in gen.network.network.state_dict().items())
    cond = prompts.rows(torch.arange(2))
    torch.testing.assert_close(
        model.sample(z, cond, steps=2, network=gen.network), again.sample(z, cond, steps=2), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("predicts", folders.PREDICTIONS)
def test_conversions_equal_the_scheduler_of_the_folder(places, kind, model, predicts):
    theirs = diffusers.DDIMScheduler.from_pretrained(places[kind] / "scheduler", prediction_type=predicts)
    theirs.set_timesteps(50)
    xt, value = torch.randn(2, 1, *model.z_shape, generator=rng())
    for index in (0, 199, 625, 999):
        t = model.schedule.time_of_index(torch.tensor([index]))
        source = folders.PREDICTIONS[predicts]
        found = convert_prediction(value, xt=xt, t=t, schedule=model.schedule, source=source, target="x0")
        expected = theirs.step(value, index, xt).pred_original_sample
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


# ----------------------------------------------------------------------------------------------------- the denoisers


def test_a_denoiser_is_called_as_its_class_wants_it(kind, model, prompts):
    xt, cond = noise(model), prompts.rows(torch.arange(2))
    t = model.schedule.time_of_index(torch.tensor([10, 700]))
    inputs = {"timestep": torch.tensor([10, 700]), "encoder_hidden_states": cond["tokens"]}
    if kind == "dit":
        inputs |= {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": {}}
    theirs = model.denoiser.network(xt, **inputs).sample
    ours = model.denoiser(xt, t, cond)
    assert ours.shape == xt.shape
    assert theirs.shape[1] == {"unet": 4, "dit": 8}[kind]  # PixArt's second half is a variance
    torch.testing.assert_close(ours, theirs[:, :4])
    one_time = model.denoiser(xt, t[:1], cond)
    torch.testing.assert_close(one_time[0], ours[0], atol=1e-5, rtol=1e-5)


def test_conditional_and_null_go_through_the_network_in_one_batch(model, prompts):
    xt, t, cond = noise(model), torch.tensor([0.3, 0.8], dtype=torch.float64), prompts.rows(torch.arange(2))
    batches, score = [], model.score()
    hook = model.denoiser.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    guided = guided_score(score, xt, t, cond, prompts.null_cond, 1.5)
    hook.remove()
    assert batches == [4]
    null = map_cond(lambda c, null: null.expand_as(c), cond, prompts.null_cond)
    s_cond, s_null = score(xt, t, cond), score(xt, t, null)
    torch.testing.assert_close(guided, s_cond + 1.5 * (s_cond - s_null), rtol=1e-4, atol=1e-4)
    assert (s_cond - s_null).abs().max() > 1e-4


def test_a_transformer_does_not_see_what_the_mask_hides_and_a_unet_sees_all(kind, model, prompts):
    xt, t, cond = noise(model, 1), torch.tensor([0.5]), prompts.rows(torch.tensor([0]))
    changed = {name: value.clone() for name, value in cond.items()}
    changed["tokens"][:, -1] += 1.0  # padding
    difference = (model.denoiser(xt, t, changed) - model.denoiser(xt, t, cond)).abs().max()
    assert (difference == 0) if kind == "dit" else (difference > 1e-5)


def test_a_transformer_trained_with_picture_sizes_is_told_them():
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
    schedule = folders.noise_schedule(miniature.SCHEDULER | {"prediction_type": "epsilon"})
    denoiser = Denoiser(network, schedule, latent_scale=8)
    xt, tokens = torch.randn(2, 4, 8, 16, generator=rng()), torch.randn(2, 5, 16, generator=rng(1))
    cond, t = {"tokens": tokens, "mask": torch.ones(2, 5)}, schedule.time_of_index(torch.tensor([99, 99]))
    size = {"resolution": torch.tensor([[64.0, 128.0]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    inputs = {"encoder_hidden_states": tokens, "encoder_attention_mask": cond["mask"], "added_cond_kwargs": size}
    theirs = network(xt, timestep=torch.tensor([99, 99]), **inputs).sample
    torch.testing.assert_close(denoiser(xt, t, cond), theirs[:, :4])


def test_a_copy_learns_and_the_reference_does_not(model):
    gen = model.generator(399)
    assert all(parameter.requires_grad for parameter in gen.parameters())
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())
    assert model.schedule.index_of_time(torch.tensor(gen.t_star)) == 399
    with pytest.raises(ValueError, match="a timestep from 0 to 999, not 1000"):
        model.generator(1000)


@pytest.mark.parametrize("name", ["dipp", "distar_in"])
def test_the_loop_of_the_method_runs_on_it(model, name):
    """Two steps of Algorithm 1 through denoiser, decoder and a judge of pictures and texts."""
    seen, prompts = [], model.prompts(shapes.captions(shapes.split("validation")))

    def judge(images, texts):
        assert images.shape == (3, 3, 32, 32)
        seen.extend(texts)
        return images.mean((1, 2, 3))

    gen, ta = model.generator(625), trainable_copy(model.denoiser)
    law = uniform_index_time(model.schedule, 20, 980)
    weight = sigma_power_weight(model.schedule)
    settings = {"batch_shape": (3,), "z_shape": model.z_shape, "time_sampler": law, "distance": pseudo_huber()}
    before = [parameter.clone() for parameter in gen.parameters()]
    records = list(
        align(
            gen=gen,
            ta=model.score(ta),
            ref=model.score(),
            reward=model.reward(judge, prompts, checkpointing=True),
            schedule=model.schedule,
            settings=preset(name, alpha_cfg=0.5, weight=weight, ta_weight=weight, **settings),
            gen_optimizer=torch.optim.AdamW(gen.parameters(), lr=1e-3),
            ta_optimizer=torch.optim.AdamW(ta.parameters(), lr=1e-3),
            draw_cond=prompts.draw,
            null_cond=prompts.null_cond,
            generator=rng(),
            steps=2,
        )
    )
    assert len(records) == 2
    assert set(seen) <= set(prompts.texts)
    assert all(record.x0_grad_norms["reward"] > 0 for record in records)
    assert all(record.x0_grad_norms["divergence"] > 0 for record in records)
    assert any(not torch.equal(a, b) for a, b in zip(before, gen.parameters(), strict=True))


# ----------------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_encoded_as_the_pipeline_does_and_only_once(places, kind, prompts):
    model, theirs = folders.load(places[kind]), pipeline(places[kind])
    calls = []
    model.text.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = model.prompts([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert len(calls) == 2  # the prompts, and the empty one
    model.prompts([PROMPTS[1]])
    assert len(calls) == 2
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    expected = theirs.encode_prompt(list(PROMPTS), **options)
    cond = found.rows(torch.tensor([2, 1]))
    if kind == "unet":
        torch.testing.assert_close(cond["tokens"], expected[0])
        torch.testing.assert_close(found.null_cond["tokens"], expected[1][:1])
    else:
        length = cond["tokens"].shape[1]  # the pipeline pads further, which its mask hides
        assert torch.equal(cond["mask"], expected[1][:, :length])
        assert not expected[1][:, length:].any()
        visible = cond["mask"].bool()
        torch.testing.assert_close(cond["tokens"][visible], expected[0][:, :length][visible])
        assert torch.equal(found.null_cond["mask"], expected[3][:1, :length])


def test_a_condition_knows_its_text_and_the_empty_prompt_is_a_row(prompts):
    cond = prompts.rows(torch.tensor([1, -1, 0]))
    assert prompts.texts_of(cond) == [PROMPTS[1], "", PROMPTS[0]]
    torch.testing.assert_close(cond["tokens"][1], prompts.null_cond["tokens"][0])
    assert prompts.rows(torch.tensor([0]))["tokens"].data_ptr() != prompts.leaves["tokens"].data_ptr()
    with pytest.raises(IndexError, match="there is no prompt 2: the table has 2"):
        prompts.rows(torch.tensor([2]))
    with pytest.raises(ValueError, match="no prompts were given"):
        encode_prompts(None, [])


def test_prompts_are_drawn_evenly_and_dropped_at_their_share(prompts):
    cond = prompts.draw((20_000,), rng(), drop=0.1)
    shares = torch.bincount(cond["prompt"] + 1, minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.45, 0.45]), atol=0.01, rtol=0)


def test_words_of_the_captions_are_single_tokens_and_others_are_spelt(model):
    tokenizer = model.text.tokenizer
    for phrasing in shapes.PHRASINGS:
        for text in shapes.captions(shapes.split("test"), phrasing):
            ids = tokenizer(text).input_ids
            assert len(ids) <= tokenizer.model_max_length  # nothing is cut off
            assert tokenizer.unk_token_id not in ids[1:-1]
    assert len(tokenizer(shapes.caption([0, 0, 0, 0])).input_ids) == 10
    assert tokenizer.tokenize("shiny") == ["s", "h", "i", "n", "y</w>"]


def test_pixart_with_its_own_kind_of_text_encoder(tmp_path):
    folder = miniature.build(tmp_path / "t5", "dit", words=shapes.vocabulary(), size="tiny", encoder="t5")
    model, theirs = folders.load(folder), pipeline(folder)
    prompts = model.prompts(PROMPTS)
    ids = model.text.tokenizer(PROMPTS[0]).input_ids
    assert len(ids) == 9  # eight words and the end
    z = noise(model)
    ours = model.decode(model.sample(z, prompts.rows(torch.arange(2)), steps=2, alpha_cfg=0.0))
    steps = {"num_inference_steps": 2, "guidance_scale": 1.0, "latents": z, "output_type": "pt"}
    torch.testing.assert_close(ours, theirs(list(PROMPTS), **steps, **CALL["dit"]).images, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_latents_are_scaled_and_pictures_are_in_the_unit_range(model):
    model.vae.register_to_config(scaling_factor=0.7)
    try:
        images = shapes.render(shapes.ideal_scene(shapes.split("held_out")[:3]))
        latents = model.encode(images)
        assert latents.shape == (3, *model.z_shape)
        torch.testing.assert_close(latents, 0.7 * model.vae.encode(2 * images - 1).latent_dist.mean)
        drawn = model.encode(images, generator=rng())
        assert not torch.equal(drawn, latents)
        pictures = model.decode(10 * latents, clamp=False)
        torch.testing.assert_close(pictures, model.vae.decode(10 * latents / 0.7).sample / 2 + 0.5)
        torch.testing.assert_close(model.decode(10 * latents), pictures.clamp(0, 1))
    finally:
        model.vae.register_to_config(scaling_factor=1.0)


def test_decoding_has_the_same_gradient_with_and_without_checkpointing(model):
    gradients = []
    for checkpointing in (False, True):
        latents = noise(model).requires_grad_()
        model.decode(latents, checkpointing=checkpointing).square().sum().backward()
        gradients.append(latents.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)
