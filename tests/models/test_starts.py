"""Where generators start: every form of folder and file, and every published sampling rule, kept exactly."""

import json
import shutil

import diffusers
import pytest
import tiny_sdxl
import torch
from safetensors.torch import save_file

from dipp_core.files import InputError
from dipp_core.models import folders, lora, miniature
from dipp_core.models.folders import AS_IT_IS, STARTS, TIMES_SIGMA
from dipp_core.worlds import shapes

PROMPTS = ("a large red circle on a white background", "a shiny small blue cross on a pink background")
CALL = {"unet": {}, "dit": {"use_resolution_binning": False}, "sdxl": {}}
KINDS = tuple(CALL)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A reference and another model of each kind."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    for kind in miniature.KINDS:
        for seed, name in enumerate((kind, f"{kind}_start")):
            miniature.build(root / name, kind, words=words, size="tiny", seed=10 * seed)
    for seed, name in enumerate(("sdxl", "sdxl_start")):
        tiny_sdxl.build(root / name, words=words, seed=10 * seed)
    return root


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def world(places, kind):
    return folders.load(places / kind)


def inputs(world):
    """z, cond and, for networks called by hand, what they are told."""
    z, cond = torch.randn(2, *world.z_shape, generator=rng()), world.prompts(PROMPTS).rows(torch.arange(2))
    told = {"encoder_hidden_states": cond["tokens"]}
    if world.denoiser.is_transformer:
        told |= {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": {}}
    if world.denoiser.is_sdxl:
        told["added_cond_kwargs"] = {"text_embeds": cond["pooled"], "time_ids": world.denoiser.time_ids(z)}
    return z, cond, told


def pipeline(folder):
    found = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


# ----------------------------------------------------------------------------------------------------------- the rules


@torch.no_grad()
def test_noise_added_to_nothing_is_the_rule_of_sid(places, kind, world):
    """x = add_noise(0, z, t*), then the scheduler's own x0: what SiD-LSG's sampler does with one step."""
    z, cond, told = inputs(world)
    scheduler = diffusers.DDPMScheduler.from_pretrained(places / kind / "scheduler")
    t = torch.full((2,), 625)
    x = scheduler.add_noise(torch.zeros_like(z), z, t)
    value = world.denoiser.network(x, timestep=t, **told).sample[:, :4]
    published = scheduler.step(value, 625, x).pred_original_sample
    gen = folders.converted(world.generator(625), TIMES_SIGMA)
    torch.testing.assert_close(gen(z, cond), published, rtol=1e-4, atol=1e-4)
    assert (world.generator(625)(z, cond) - published).abs().max() > 0.01  # it is not ours


@torch.no_grad()
def test_the_same_rule_in_the_words_of_edm(kind, world):
    """D(sigma z, sigma) = sigma z - sigma F(sigma z / sqrt(1 + sigma^2), t) with sigma = 2.5 or so, as in SIM."""
    z, cond, told = inputs(world)
    index = folders.timestep_of_sigma(world.schedule, 2.5)
    assert abs(index - 625) <= 1  # of Stable Diffusion's schedule
    t = world.schedule.time_of_index(index)
    sigma = (world.schedule.sigma(t) / world.schedule.alpha(t)).item()
    assert sigma == pytest.approx(2.5, abs=0.01)
    x = sigma * z
    value = world.denoiser.network(x / (1 + sigma**2) ** 0.5, timestep=torch.full((2,), index), **told).sample[:, :4]
    gen = folders.converted(world.generator(index), TIMES_SIGMA)
    torch.testing.assert_close(gen(z, cond), x - sigma * value, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_euler_from_its_largest_sigma_is_the_rule_of_turbo_models(places, kind, world):
    theirs = pipeline(places / kind)
    theirs.scheduler = diffusers.EulerDiscreteScheduler(**world.noise, timestep_spacing="trailing", steps_offset=1)
    z, cond, _ = inputs(world)
    call = {"num_inference_steps": 1, "guidance_scale": 0.0, "latents": z, "output_type": "latent"} | CALL[kind]
    published = theirs(list(PROMPTS), **call).images
    gen = folders.converted(world.generator(999), TIMES_SIGMA)
    torch.testing.assert_close(gen(z, cond), published, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_first_step_of_a_latent_consistency_model_is_our_own_rule(places, kind, world):
    theirs = pipeline(places / kind)
    theirs.scheduler = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    z, cond, _ = inputs(world)
    call = {"num_inference_steps": 1, "timesteps": [399], "guidance_scale": 0.0, "latents": z, "output_type": "latent"}
    published = theirs(list(PROMPTS), **call, **CALL[kind]).images
    gen = folders.converted(world.generator(399), AS_IT_IS)
    torch.testing.assert_close(gen(z, cond), published, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [AS_IT_IS, TIMES_SIGMA])
def test_exported_it_is_called_the_same_and_may_start_again(kind, world, tmp_path, noise):
    gen = folders.converted(world.generator(625), noise)
    z, cond, _ = inputs(world)
    folder = folders.export_start(tmp_path / "out", world, gen)
    call = {"num_inference_steps": 1, "timesteps": [625], "guidance_scale": 1.0, "latents": z, "output_type": "latent"}
    with torch.no_grad():
        ours = gen(z, cond)
        torch.testing.assert_close(
            ours, pipeline(folder)(list(PROMPTS), **call, **CALL[kind]).images, rtol=1e-4, atol=1e-4
        )
        said, start = [], folders.load_start(folder, world)
        again = folders.asked_as_published(start.generator(625), folder, folder, said.append)
        assert torch.equal(again(z, cond), ours)
    assert folders.convention(folder, folder) == (625, noise)
    assert said == []
    folders.asked_as_published(start.generator(399), folder, folder, said.append)
    assert "was made for t_star = 625; this run asks it at 399" in said[0]


def test_a_scaled_generator_learns_and_keeps_its_rule_when_adapters_are_merged(places):
    world = folders.load(places / "unet")
    z, cond, _ = inputs(world)
    base = lora.SharedBase(world.denoiser)
    gen = folders.converted(world.generator(625, lora.Adapted(base, rank=2)), TIMES_SIGMA)
    gen(z, cond).square().sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in gen.parameters() if parameter.grad is not None)
    whole = folders.rebuilt(gen, lora.merged(gen.network))
    assert type(whole) is type(gen)
    torch.testing.assert_close(whole(z, cond), gen(z, cond))


# ----------------------------------------------------------------------------------------------------------- the forms


def bare(folder, kind):
    return "transformer" if kind == "dit" else "unet"


FORMS = {
    "a pipeline": lambda root, kind: root / f"{kind}_start",
    "a folder with its denoiser alone": lambda root, kind: root / "part",
    "a denoiser's own folder": lambda root, kind: root / "part" / bare(root, kind),
    "a file of weights": lambda root, kind: root / "weights.safetensors",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_start_gives_the_same_generator(places, kind, world, tmp_path, form):
    source = places / f"{kind}_start"
    shutil.copytree(source, tmp_path / f"{kind}_start")
    shutil.copytree(source / bare(source, kind), tmp_path / "part" / bare(source, kind))
    expected = folders.load(source, parts=("denoiser",))
    save_file(expected.denoiser.network.state_dict(), tmp_path / "weights.safetensors")
    path = folders.locate_start(FORMS[form](tmp_path, kind))
    start = folders.load_start(path, world)
    z, cond, _ = inputs(world)
    assert torch.equal(start.generator(399)(z, cond), expected.generator(399)(z, cond))
    assert start.vae is None
    assert folders.convention(path, path) == (None, AS_IT_IS)
    half = folders.load_start(path, world, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {torch.bfloat16}


def test_what_a_start_says_of_its_noise_is_taken_and_the_rest_from_the_reference(places, tmp_path):
    world = folders.load(places / "unet")
    folder = shutil.copytree(places / "unet_start", tmp_path / "start")
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction", "beta_end": 0.02}))
    start = folders.load_start(folder, world)
    assert start.prediction_type == "v"
    assert start.noise["beta_end"] == 0.02
    shutil.rmtree(folder / "scheduler")
    assert folders.load_start(folder, world).noise == world.noise


# ------------------------------------------------------------------------------------------------------------ the flaws


def misfit(root, places):
    save_file({"conv_in.weight": torch.zeros(2)}, root / "weights.safetensors")
    return root / "weights.safetensors"


def torn(root, places):
    (root / "weights.safetensors").write_bytes(b"12345678901234567890")
    return root / "weights.safetensors"


def empty_file(name):
    def make(root, places):
        (root / name).write_text("")
        return root / name

    return make


def folder_with(note):
    def make(root, places):
        folder = shutil.copytree(places / "unet_start", root / "start")
        (folder / "one_step.json").write_text(note)
        return folder

    return make


FLAWS = {
    "nothing there": (lambda root, places: "nowhere/at-all", "no hub id with a commit"),
    "a pickle": (empty_file("dmd2_sdxl_1step_unet_fp16.bin"), "is a pickle, which is not opened here"),
    "another kind of file": (empty_file("weights.txt"), r"is no \.safetensors file"),
    "a pickle at the hub": (
        lambda root, places: "tianweiy/DMD2",
        r"publishes dmd2_sdxl_1step_unet_fp16\.bin, a pickle, .* weights_only=True",
    ),
    "another pickle at the hub": (lambda root, places: "UT-Austin-PML/SiD-LSG", "save_pretrained, and put beside it"),
    "no commit": (lambda root, places: "XDG-XHS/distar_long_1step", "give XDG-XHS/distar_long_1step@COMMIT"),
    "not fetched": (lambda root, places: "stabilityai/sd-turbo", "huggingface-cli download stabilityai/sd-turbo"),
    "other weights": (misfit, "does not fit the UNet2DConditionModel"),
    "half a file": (torn, "is no whole safetensors file"),
    "a folder of nothing": (lambda root, places: root, r"config\.json is missing"),
    "another class": (lambda root, places: places / "dit", "its class is PixArtTransformer2DModel"),
    "another size": (lambda root, places: places / "wide", "its width of prompts is 64, not 16"),
    "another family": (lambda root, places: places / "sdxl", "its width of prompts is 40, not 16"),
    "an unknown rule": (folder_with('{"noise": "twice"}'), "noise is 'twice', which is not known here"),
    "a broken note": (folder_with("{"), r"one_step\.json cannot be read"),
}


def begun(source, world):
    path = folders.locate_start(source)
    folders.convention(source, path)
    return folders.load_start(path, world)


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_is_one_line(places, tmp_path, name):
    make, words = FLAWS[name]
    if name == "another size" and not (places / "wide").exists():
        miniature.new_denoiser("unet", seed=1).save_pretrained(places / "wide/unet")
    source = make(tmp_path, places)
    with pytest.raises(InputError, match=words) as caught:
        begun(source, folders.load(places / "unet"))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ the table


def test_what_is_known_of_every_start_says_how_it_is_known():
    kinds = {folders.IN_CODE, folders.ON_PAGE, folders.RECALLED, folders.UNKNOWN}
    for name, start in STARTS.items():
        assert set(start.status) == {"reference", "t_star", "prediction", "noise", "revision"}, name
        assert set(start.status.values()) <= kinds
        assert (start.revision is None) == (start.status["revision"] == folders.UNKNOWN)
        assert start.revision is None or len(start.revision) == 40
        assert (start.pickled is None) == (start.cure is None)
        assert folders.convention(name, folders.pathlib.Path("nowhere")) == (start.t_star, start.noise)
    assert {start.reference for start in STARTS.values() if "/" in start.reference} <= set(folders.PUBLIC)
    rows = folders.starts_table()
    assert [row["start"] for row in rows] == list(STARTS)
    assert rows[0]["t_star"] == "399 (verified in public code)"
    assert rows[0]["revision"] == "not known (unknown)"


def test_of_a_start_only_its_denoiser_is_fetched_and_half_precision_where_there_is_no_other():
    commit = "0" * 40
    for source, half in ((f"XDG-XHS/distar_long_1step@{commit}", True), ("stabilityai/sd-turbo", False)):
        with pytest.raises(InputError) as caught:
            folders.locate_start(source)
        line = str(caught.value)
        assert "text_encoder" not in line
        assert '"unet/*"' in line
        assert ('"*fp16*"' in line) is not half
        assert source.partition("@")[0] in line
