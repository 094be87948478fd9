"""Runs at full scale, on tiny folders: loaded into roles that learn, exported, and every flaw in one line."""

import dataclasses
import shutil
import sys

import diffusers
import pytest
import tiny_sdxl
import torch
from safetensors.torch import save_file

from dipp_core.files import InputError
from dipp_core.method.algorithm import align
from dipp_core.models import folders, miniature
from dipp_core.models.lora import Adapted
from dipp_core.models.prompts import StoredPrompts, guessed_tokens
from dipp_core.training import full_scale, preflight
from dipp_core.training.full_scale import THE_REFERENCE, FullScale
from dipp_core.worlds import shapes


def brightness(images, prompts):
    """A reward of one's own."""
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tiny folders of each kind and a list of prompts."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    for kind in miniature.KINDS:
        for seed, name in enumerate((kind, f"{kind}_start")):
            miniature.build(root / name, kind, words=words, size="tiny", seed=10 * seed)
    (root / "prompts.txt").write_text("a red circle\n\na blue cross\n")
    sys.modules["own_reward"] = sys.modules[__name__]  # what a user has on the path
    return root


def described(place, kind="unet", **changes):
    values = {
        "scale": "smoke",
        "seed": 0,
        "reference": str(place / kind),
        "start": THE_REFERENCE,
        "t_star": 500,
        "prediction": "as its folder says",
        "profile": "cpu",
        "switches": {"rank": 2, "batch": 2},
        "method": "dipp",
        "alpha_rew": 10.0,
        "alpha_cfg": 1.5,
        "huber_c": 0.1,
        "ta_steps": 1,
        "timesteps": [20, 980],
        "rewards": [{"reward": "own_reward:brightness", "weight": 2.0}],
        "prompts": str(place / "prompts.txt"),
        "tiny_vae": "",
        "fetch": False,
        "device": "cpu",
    }
    return FullScale(**(values | changes))


def learn(loaded, steps=2):
    """Some steps of Algorithm 1, as a long run makes them; returns the records."""
    adams = [loaded.adam(net.parameters(), 1e-2, (0.0, 0.99)) for net in (loaded.gen, loaded.ta)]
    return list(
        align(
            gen=loaded.gen,
            ta=loaded.world.score(loaded.ta),
            ref=loaded.world.score(),
            reward=loaded.reward,
            schedule=loaded.world.schedule,
            settings=loaded.settings,
            gen_optimizer=adams[0],
            ta_optimizer=adams[1],
            draw_cond=loaded.prompts.draw,
            null_cond=loaded.prompts.null_cond,
            generator=torch.Generator().manual_seed(0),
            steps=steps,
        )
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("unet", {}),
        ("dit", {"method": "distar_in"}),
        ("unet", {"switches": {"roles": "full", "batch": 2}, "start": "unet_start", "prediction": "v"}),
        ("dit", {"switches": {"rank": 2, "dtype": "bfloat16"}, "start": "dit_start", "method": "distar_in"}),
    ],
    ids=["lora", "lora-star", "full-own-start", "bfloat16-own-start-star"],
)
def test_a_run_is_loaded_learns_and_is_exported(place, tmp_path, kind, changes):
    own = "start" in changes
    changes = changes | ({"start": str(place / changes["start"])} if own else {})
    said = []
    loaded = full_scale.load(described(place, kind, **changes), folder=tmp_path, say=said.append)
    assert any("activations" in line for line in said)
    assert loaded.world.text is None  # gone before anything learns
    before = [parameter.clone() for parameter in loaded.world.denoiser.parameters()]
    records = learn(loaded)
    assert all(record.grad_norm > 0 and record.x0_grad_norms["reward"] > 0 for record in records)
    assert all(torch.equal(a, b) for a, b in zip(before, loaded.world.denoiser.parameters(), strict=True))
    assert {parameter.dtype for parameter in [*loaded.gen.parameters(), *loaded.ta.parameters()]} == {torch.float32}
    if loaded.switches.roles == "lora":
        assert loaded.ta.base.denoiser is loaded.world.denoiser
        assert (loaded.gen.network.base.denoiser is loaded.world.denoiser) is not own
        assert sum(p.numel() for p in loaded.gen.parameters()) < sum(p.numel() for p in before) / 2
    folder = full_scale.export(tmp_path / "out", loaded, loaded.gen)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    z, texts = torch.randn(2, *loaded.world.z_shape, generator=torch.Generator().manual_seed(1)), loaded.prompts.texts
    with torch.no_grad():
        ours = loaded.world.decode(loaded.gen(z, loaded.prompts.rows(torch.arange(2))))
    step = {"num_inference_steps": 1, "timesteps": [500], "guidance_scale": 1.0, "latents": z, "output_type": "pt"}
    step |= {"use_resolution_binning": False} if kind == "dit" else {}
    close = 0.1 if loaded.switches.dtype == "bfloat16" else 1e-3
    torch.testing.assert_close(ours, pipe(list(texts), **step).images, atol=close, rtol=0)


@pytest.mark.parametrize("kind", ["unet", "dit", "sdxl"])
@pytest.mark.parametrize("method", ["dipp", "distar_in"])
def test_a_step_in_bfloat16_is_close_to_one_in_float32(place, tmp_path, kind, method):
    """The same draws: the assistant's loss agrees to 0.1%, the reward's gradient to 2%, the rest to 20%, all is finite.

    In the first step assistant and reference are one network, so that the divergence is a small difference of scores.
    """
    if kind == "sdxl" and not (place / "sdxl").exists():
        tiny_sdxl.build(place / "sdxl", words=shapes.vocabulary())
    told = []
    for dtype in ("float32", "bfloat16"):
        run = described(place, kind, method=method, switches={"rank": 2, "batch": 8, "dtype": dtype})
        loaded = full_scale.load(run, folder=tmp_path, say=[].append)
        record = learn(loaded, steps=1)[0]
        numbers = {"grad_norm": record.grad_norm, "ta_loss": record.ta_loss, **record.x0_grad_norms}
        told.append({name: value.item() for name, value in numbers.items()})
        assert all(parameter.isfinite().all() for parameter in loaded.gen.parameters())
    for name, close in (("ta_loss", 1e-3), ("reward", 0.02), ("divergence", 0.2), ("grad_norm", 0.2)):
        assert told[1][name] == pytest.approx(told[0][name], rel=close), name


def test_a_start_of_its_own_is_the_generator_s_first_guess(place, tmp_path):
    run = described(place, start=str(place / "unet_start"), alpha_rew=0.0)
    loaded = full_scale.load(run, folder=tmp_path, say=[].append)
    there = folders.load(place / "unet_start", parts=("denoiser",)).generator(500)
    z, cond = torch.randn(2, *loaded.world.z_shape), loaded.prompts.rows(torch.arange(2))
    assert torch.equal(loaded.gen(z, cond), there(z, cond))
    assert loaded.reward is None
    assert isinstance(loaded.ta, Adapted)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"reference": "nowhere"}, InputError, "no such folder"),
        ({"reference": "PixArt-alpha/PixArt-XL-2-512x512"}, InputError, "huggingface-cli download PixArt"),
        ({"start": "nowhere/at-all"}, InputError, "no hub id with a commit"),
        ({"start": "another width"}, InputError, "cannot start a generator"),
        ({"prompts": "/nowhere.txt"}, full_scale.FullScaleError, "cannot be read"),
        ({"prompts": "empty.txt"}, full_scale.FullScaleError, "holds no prompts"),
        ({"switches": {"rnak": 4}}, preflight.PreflightError, "did you mean 'rank'"),
        ({"switches": {"rank": "many"}}, preflight.PreflightError, "is like 64, not 'many'"),
        ({"switches": {"dtype": "float16"}}, preflight.PreflightError, "float32 or bfloat16"),
        ({"switches": {"eight_bit_adam": True}}, full_scale.FullScaleError, "needs a GPU"),
        ({"switches": {"targets": ["nothing"]}}, ValueError, "no layer"),
        ({"switches": {"tiny_vae": True}, "tiny_vae": "/nowhere"}, InputError, "is missing"),
        ({"timesteps": [900, 100]}, full_scale.FullScaleError, "leave none"),
        ({"rewards": [{"reward": "beauty"}]}, InputError, "is no reward"),
        ({"rewards": [{"reward": "image_reward"}]}, InputError, "huggingface-cli"),
    ],
    ids=str,
)
def test_a_flaw_is_one_line(place, tmp_path, monkeypatch, changes, error, words):
    (place / "empty.txt").write_text("\n\n")
    monkeypatch.setattr(preflight, "here", lambda folder, device: preflight.Machine("CPU", 1e12, 1e12))
    if "start" in changes and changes["start"] == "another width":
        network = miniature.new_denoiser("unet", seed=1)
        network.save_pretrained(shutil.copytree(place / "unet", tmp_path / "wide") / "unet")
        changes = {"start": str(tmp_path / "wide")}
    if changes.get("prompts") == "empty.txt":
        changes = {"prompts": str(place / "empty.txt")}
    with pytest.raises(error, match=words) as caught:
        full_scale.load(described(place, **changes), folder=tmp_path, say=[].append)
    assert "\n" not in str(caught.value)


def test_prompts_are_encoded_once_for_all_runs_that_share_a_cache(place, tmp_path, monkeypatch):
    loaded = full_scale.load(described(place), folder=tmp_path / "one", cache=tmp_path / "cache", say=[].append)
    assert isinstance(loaded.prompts, StoredPrompts)
    assert not (tmp_path / "one").exists()
    monkeypatch.setattr(folders, "read_text", None)  # no encoder is loaded any more
    again = full_scale.load(described(place), folder=tmp_path / "two", cache=tmp_path / "cache", say=[].append)
    one, other = (table.prompts.draw((5,), torch.Generator().manual_seed(0)) for table in (loaded, again))
    assert torch.equal(one["tokens"], other["tokens"])
    assert guessed_tokens(["a" * 30, "b" * 60]) == 17.0
    assert full_scale.task_of(described(place), 2, 17.0).prompt_tokens == 17.0


def test_a_published_convention_goes_all_the_way_to_the_exported_pipeline(place, tmp_path):
    """A start whose noise was scaled by sigma: as it was published, and after training by another's plain call."""
    start = shutil.copytree(place / "unet_start", tmp_path / "start")
    (start / folders.NOTE).write_text('{"t_star": 625, "noise": "times sigma"}')
    said = []
    loaded = full_scale.load(described(place, start=str(start), t_star=500), folder=tmp_path, say=said.append)
    assert any("was made for t_star = 625; this run asks it at 500" in line for line in said)
    assert isinstance(loaded.gen, folders.ScaledNoise)
    learn(loaded, steps=1)
    pipe = diffusers.DiffusionPipeline.from_pretrained(full_scale.export(tmp_path / "out", loaded, loaded.gen))
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, *loaded.world.z_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = loaded.gen(z, loaded.prompts.rows(torch.arange(2)))
    step = {"num_inference_steps": 1, "timesteps": [500], "guidance_scale": 1.0, "latents": z}
    theirs = pipe(list(loaded.prompts.texts), output_type="latent", **step).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_sdxl_from_a_file_of_weights(place, tmp_path):
    """As DMD2 is published, once its pickle is written anew: the reference's folder and one file."""
    folder = tiny_sdxl.build(place / "sdxl", words=shapes.vocabulary())
    start = folders.load(tiny_sdxl.build(tmp_path / "other", words=shapes.vocabulary(), seed=7), parts=("denoiser",))
    save_file(start.denoiser.network.state_dict(), tmp_path / "dmd2.safetensors")
    changes = {"reference": str(folder), "start": str(tmp_path / "dmd2.safetensors"), "t_star": 399}
    loaded = full_scale.load(described(place, **changes, method="distar_in"), folder=tmp_path, say=[].append)
    z, cond = torch.randn(2, *loaded.world.z_shape), loaded.prompts.rows(torch.arange(2))
    assert torch.equal(loaded.gen(z, cond), start.generator(399)(z, cond))
    assert learn(loaded, steps=1)[0].grad_norm > 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(full_scale.export(tmp_path / "out", loaded, loaded.gen))
    pipe.set_progress_bar_config(disable=True)
    step = {"num_inference_steps": 1, "timesteps": [399], "guidance_scale": 0.0, "latents": z, "output_type": "pt"}
    with torch.no_grad():
        ours = loaded.world.decode(loaded.gen(z, cond))
    torch.testing.assert_close(ours, pipe(list(loaded.prompts.texts), **step).images, atol=1e-3, rtol=0)


def test_eight_bit_adam_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(full_scale.FullScaleError, match="pip install bitsandbytes"):
        full_scale.adam(eight_bit=True, device="cuda")


def test_a_run_too_large_stops_before_it_loads(place, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "here", lambda folder, device: preflight.Machine("CPU", 0.6 * preflight.GIB, 1e12))
    monkeypatch.setattr(folders, "load", None)
    with pytest.raises(preflight.PreflightError, match=r"needs 0\.\d GiB"):
        full_scale.load(described(place), folder=tmp_path, say=[].append)


def test_every_method_has_settings(place):
    world = folders.load(place / "unet", parts=("denoiser",))
    for method in full_scale.PRESETS:
        run = described(place, method=method)
        settings = full_scale.settings_of(run, preflight.Switches(), world)
        assert dataclasses.asdict(settings)["divergence"] == full_scale.PRESETS[method]["divergence"]
