"""A training at full scale, on tiny folders: loaded into roles that learn, stopped, resumed, exported, rehearsed."""

import json
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import tiny_sdxl
import torch
from safetensors.torch import load_file, save_file

from dipp_core import train
from dipp_core.book import config
from dipp_core.description import Description, Stage
from dipp_core.files import InputError
from dipp_core.method.algorithm import PRESETS, align
from dipp_core.models import folders, miniature
from dipp_core.models.prompts import StoredPrompts
from dipp_core.training import full, memory
from dipp_core.worlds import shapes

SMOKE = config.section("30_sd15", {"scale": "smoke"})
QUICK = {"gen_lr": 1e-3, "ta_lr": 1e-3, "steps": 2, "ema": 0.5}
SMALL, NOISE = {"rank": 2, "batch": 2}, "scheduler/scheduler_config.json"
STAGE, ALIGN = SMOKE.distil.model_dump() | QUICK, SMOKE.align.model_dump() | QUICK


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tiny folders of each kind and a list of prompts."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    for kind in miniature.KINDS:
        for seed, name in enumerate((kind, f"{kind}_start")):
            miniature.build(root / name, kind, words=words, size="tiny", seed=10 * seed)
    (root / "prompts.txt").write_text("a red circle\n\na blue cross\n")
    return root


@pytest.fixture(autouse=True)
def _a_reward_of_ones_own(monkeypatch):
    monkeypatch.setattr("builtins.brightness", lambda images, texts: images.mean((1, 2, 3)), raising=False)


def described(place, kind="unet", **changes):
    values = {
        "reference": str(place / kind),
        "t_star": 500,
        "profile": "cpu",
        "switches": {"rank": 2, "batch": 2},
        "rewards": [{"reward": "builtins:brightness", "weight": 2.0}],
        "prompts": str(place / "prompts.txt"),
        "device": "cpu",
        "distil": STAGE,
        "align": ALIGN,
    }
    watched = {"save_steps": 1, "watch_steps": 2, "watch_prompts": 2, "watch_each": 2}
    return Description(**(SMOKE.model_dump(include=set(Description.model_fields)) | values | watched | changes))


def quiet(line):
    pass


def steps(training, count=1):
    """Some steps of alignment; returns the records."""
    student = training.student
    adams = [training.adam(net.parameters(), 1e-2, (0.0, 0.99)) for net in (student.gen, student.ta)]
    return list(
        align(
            gen=student.gen,
            ta=training.world.score(student.ta),
            ref=training.world.score(),
            reward=training.reward,
            schedule=training.world.schedule,
            settings=training.settings["align"],
            gen_optimizer=adams[0],
            ta_optimizer=adams[1],
            draw_cond=training.prompts.draw,
            null_cond=training.prompts.null_cond,
            generator=torch.Generator().manual_seed(0),
            steps=count,
        )
    )


# -------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("kind", "method", "changes"),
    [
        ("unet", "dipp", {}),
        ("dit", "distar_in", {}),
        ("unet", "dipp", {"switches": {"roles": "full", "batch": 2}, "start": "unet_start", "prediction": "v"}),
        ("dit", "distar_in", {"switches": {"rank": 2, "dtype": "bfloat16"}, "start": "dit_start"}),
    ],
    ids=["lora", "lora-star", "full-own-start", "bfloat16-own-start-star"],
)
def test_a_run_is_loaded_learns_and_is_exported(place, tmp_path, kind, method, changes):
    own, said = "start" in changes, []
    if own:
        changes = changes | {"start": str(place / changes["start"])}
    run = described(place, kind, align=ALIGN | {"method": method}, **changes)
    training = full.begin(run, tmp_path, say=said.append)
    assert any("activations" in line for line in said)
    assert training.world.text is None  # gone before anything learns
    gen, ta, base = training.student.gen, training.student.ta, training.world.denoiser
    before = [parameter.clone() for parameter in base.parameters()]
    assert all(record.grad_norm > 0 and record.x0_grad_norms["reward"] > 0 for record in steps(training, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    assert {parameter.dtype for parameter in [*gen.parameters(), *ta.parameters()]} == {torch.float32}
    if training.switches.roles == "lora":
        assert ta.base.denoiser is base
        assert (gen.network.base.denoiser is base) is not own
    theirs, difference = full.difference(training, full.export(training), 2, seed=1)
    assert len(theirs) == 2
    assert difference < (0.1 if training.switches.dtype == "bfloat16" else 1e-3)


@pytest.mark.parametrize("method", ["dipp", "distar_in"])
@pytest.mark.parametrize("kind", miniature.KINDS)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(place, tmp_path, kind, method, request):
    """The same draws: the assistant's loss agrees to 0.1%, the reward's gradient to 2%, the rest to 20%, all is finite.

    In the first step assistant and reference are one network, so that the divergence is a small difference of scores.
    """
    if (kind, method) == ("dit", "distar_in"):
        reason = "with patches of two its divergence differs by 21%: not met"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    told = []
    for dtype in ("float32", "bfloat16"):
        switches = {"rank": 2, "batch": 8, "dtype": dtype}
        run = described(place, kind, align=ALIGN | {"method": method}, switches=switches)
        training = full.begin(run, tmp_path, say=quiet)
        record = steps(training)[0]
        numbers = {"grad_norm": record.grad_norm, "ta_loss": record.ta_loss, **record.x0_grad_norms}
        told.append({name: value.item() for name, value in numbers.items()})
        assert all(parameter.isfinite().all() for parameter in training.student.gen.parameters())
    for name, close in (("ta_loss", 1e-3), ("reward", 0.02), ("divergence", 0.2), ("grad_norm", 0.2)):
        assert told[1][name] == pytest.approx(told[0][name], rel=close), name


def test_a_start_of_its_own_is_the_generator_s_first_guess(place, tmp_path):
    run = described(place, start=str(place / "unet_start"), align=ALIGN | {"alpha_rew": 0.0})
    training = full.begin(run, tmp_path, say=quiet)
    there = folders.load(place / "unet_start", parts=("denoiser",)).generator(500)
    z, cond = torch.randn(2, *training.world.z_shape), training.prompts.rows(torch.arange(2))
    assert torch.equal(training.student.gen(z, cond), there(z, cond))
    assert training.reward is None


def test_prompts_are_encoded_once_for_all_runs_that_share_a_distillation(place, tmp_path, monkeypatch):
    one = full.begin(described(place), tmp_path / "one", say=quiet)
    assert isinstance(one.prompts, StoredPrompts)
    live = full.begin(described(place, switches=SMALL | {"encode": "during"}), tmp_path / "live", say=quiet)
    assert not (tmp_path / "live" / "encoded_prompts").exists()
    monkeypatch.setattr(folders, "read_text", None)  # no encoder is loaded any more
    other = full.begin(described(place), tmp_path / "two", distilled=tmp_path / "one", say=quiet)
    drawn = [each.prompts.draw((5,), torch.Generator().manual_seed(0), drop=0.4) for each in (one, other, live)]
    assert torch.equal(drawn[0]["tokens"], drawn[1]["tokens"])
    torch.testing.assert_close(drawn[0], drawn[2])


def test_a_published_convention_goes_all_the_way_to_the_exported_pipeline(place, tmp_path):
    """A start whose noise was scaled by sigma: as it was published, and after training by another's plain call."""
    start, said = shutil.copytree(place / "unet_start", tmp_path / "start"), []
    (start / folders.NOTE).write_text('{"t_star": 625, "noise": "times sigma"}')
    training = full.begin(described(place, start=str(start)), tmp_path, say=said.append)
    assert any("was made for t_star = 625; this run asks it at 500" in line for line in said)
    assert isinstance(training.student.gen, folders.ScaledNoise)
    steps(training)
    assert full.difference(training, full.export(training), 2, seed=1)[1] < 1e-3


def test_sdxl_from_a_file_of_weights(place, tmp_path):
    """As DMD2 is published, once its pickle is written anew: the reference's folder and one file."""
    folder = tiny_sdxl.build(tmp_path / "sdxl", words=shapes.vocabulary())
    start = folders.load(tiny_sdxl.build(tmp_path / "other", words=shapes.vocabulary(), seed=7), parts=("denoiser",))
    save_file(start.denoiser.network.state_dict(), tmp_path / "dmd2.safetensors")
    changes = {"reference": str(folder), "start": str(tmp_path / "dmd2.safetensors"), "t_star": 399}
    training = full.begin(described(place, **changes), tmp_path, say=quiet)
    z, cond = torch.randn(2, *training.world.z_shape), training.prompts.rows(torch.arange(2))
    assert torch.equal(training.student.gen(z, cond), start.generator(399)(z, cond))
    assert steps(training)[0].grad_norm > 0


def test_every_method_of_the_family_has_settings(place):
    world = folders.load(place / "unet", parts=("denoiser",))
    for method, fixed in PRESETS.items():
        assert full.settings_of(Stage(**(ALIGN | {"method": method})), world, 2).divergence == fixed["divergence"]


# ----------------------------------------------------------------------------------------------------------- two stages


def test_both_stages_are_learned_and_exported(place, tmp_path):
    folder = full.train(described(place), tmp_path, say=quiet)
    logged = [json.loads(line) for line in (tmp_path / "align/curves.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "eval_reward" in entry] == [0, 2]
    assert all((tmp_path / stage / "pictures/samples_00000002.png").stat().st_size for stage in full.STAGES)
    diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["align", "distil", "encoded_prompts", "pipeline"]
    other = described(place, switches={"rank": 2, "batch": 2, "checkpoint_vae": False})  # what saves memory may change
    training = full.begin(other, tmp_path, say=quiet)
    for name in full.STAGES:
        full.learn(training, name)
    training = full.begin(described(place, distil=STAGE | {"method": "sim"}), tmp_path, say=quiet)
    with pytest.raises(InputError, match="begins with"):  # what came before tells runs apart
        full.learn(training, "align")


def scaled(path, factor):
    save_file({name: factor * value for name, value in load_file(path).items()}, path)


DENOISER, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
# what is done to the folder of the reference, or to the description; what the line names
CHANGES = {
    "denoiser": (lambda models: scaled(models / DENOISER, 1.5), {}, "reference.denoiser"),
    "decoder": (lambda models: scaled(models / VAE, 1.5), {}, "reference.vae"),
    "noise": (
        lambda models: (models / NOISE).write_text(
            (models / NOISE).read_text().replace('"beta_end": 0.0', '"beta_end": 0.1')
        ),
        {},
        "reference.noise.beta_end",
    ),
    "code": (None, {}, r"code.method/staged.py = \w+ there, \w+ here"),
    "rate": (None, {"distil": STAGE | {"gen_lr": 2e-3}}, "pace.gen_lr = 0.001 there, 0.002 here"),
    "rank": (None, {"switches": {"rank": 3, "batch": 2}}, "switches.rank = 2 there, 3 here"),
}


@pytest.fixture(scope="module")
def distilled(place, tmp_path_factory):
    """A training that has distilled, and where its models are."""
    root = tmp_path_factory.mktemp("distilled")
    full.learn(full.begin(described(place, align=ALIGN | {"steps": 0}), root / "run", say=quiet), "distil")
    return root / "run"


@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_is_of_the_same_run_and_a_change_is_named(place, distilled, tmp_path, monkeypatch, change):
    harm, changes, says = CHANGES[change]
    shutil.copytree(place, tmp_path / "models")
    run = shutil.copytree(distilled, tmp_path / "run")
    if harm:
        harm(tmp_path / "models" / "unet")
    if change == "code":
        told = full.code_of(*full.STEP) | {"method/staged.py": "0123"}
        monkeypatch.setattr(full, "code_of", lambda *_: told)
    training = full.begin(described(tmp_path / "models", **changes), run, say=quiet)
    with pytest.raises(InputError, match=says) as caught:
        full.learn(training, "distil")
    assert "{" not in str(caught.value)


def test_one_distillation_serves_many_alignments_and_more_steps_continue(place, distilled, tmp_path, monkeypatch):
    """The models may lie elsewhere, the reward may be another; the second alignment leaves the first folder alone."""
    monkeypatch.setattr("builtins.contrast", lambda images, texts: images.std((1, 2, 3)), raising=False)
    run = shutil.copytree(distilled, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    moved = shutil.copytree(place, tmp_path / "models")
    students = {}
    for name, changes in {
        "run": {},
        "contrast": {"rewards": [{"reward": "builtins:contrast"}]},
        "longer": {"align": ALIGN | {"steps": 4}},
    }.items():
        said = []
        training = full.begin(described(moved, **changes), tmp_path / name, distilled=run, say=said.append)
        for stage in full.STAGES:
            full.learn(training, stage)
        assert any("distil: complete at step 2" in line for line in said)
        students[name] = training.student.state()
    assert {path: path.read_bytes() for path in run.glob("distil/*.pt")} == before
    assert not (tmp_path / "contrast" / "distil").exists()
    said.clear()
    training = full.begin(described(moved, align=ALIGN | {"steps": 4}), run, say=said.append)
    for stage in full.STAGES:
        full.learn(training, stage)
    assert any("align: continued at step 2 of 4" in line for line in said)
    rates = [json.loads(line) for line in (run / "align/curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rates if "grad_norm" in row] == [1, 2, 3, 4]
    assert not all(torch.equal(value, students["run"][key]) for key, value in training.student.state().items())


def test_prompts_are_lines_and_nothing_else(tmp_path):
    """A mark of byte order is none of them; other ends of lines that Unicode knows are parts of a prompt."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red\u2028fox\r\n\na boat\x0cat sea\x85\n".encode())
    assert full.read_prompts(str(path)) == ["a red\u2028fox", "a boat\x0cat sea"]


def test_models_and_prompts_are_found_from_any_folder(place, tmp_path, monkeypatch):
    """As params.yaml names them, and where the command that fetches a hub id puts it."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    shutil.copytree(place / "unet", tmp_path / "models" / "stable-diffusion-v1-5")
    shutil.copyfile(place / "prompts.txt", tmp_path / "models" / "prompts.txt")
    monkeypatch.chdir("/")
    reference = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    monkeypatch.setattr(memory, "estimate", lambda *_: [])  # which would count the published one
    run = described(place, reference=reference, prompts="models/prompts.txt")
    training = full.begin(run, tmp_path / "run", say=quiet)
    assert training.reference == tmp_path / "models" / "stable-diffusion-v1-5"
    assert list(training.prompts.texts) == ["a red circle", "a blue cross"]


def test_full_roles_in_autocast_are_close_to_float32_and_compile_is_asked(place, tmp_path, monkeypatch):
    """On a CPU, in bfloat16: weights stay in float32, and the numbers of the first step agree to 10%."""
    compiled, told = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(type(network).__name__))
    for autocast in (False, True):
        switches = {"roles": "full", "batch": 8, "autocast": autocast, "compile": autocast}
        training = full.begin(described(place, switches=switches), tmp_path, say=quiet)
        record = steps(training)[0]
        told.append([record.ta_loss.item(), record.x0_grad_norms["reward"].item()])
        assert {weight.dtype for weight in training.student.gen.parameters()} == {torch.float32}
    assert compiled == 3 * ["UNet2DConditionModel"]  # of the reference and both roles that learn
    assert told[0] != told[1]
    assert told[1] == pytest.approx(told[0], rel=0.1)


def test_a_training_that_was_stopped_ends_as_one_that_was_not(place, tmp_path):
    def ended(folder):
        training = full.begin(described(place), folder, say=quiet)
        for name in full.STAGES:
            full.learn(training, name)
        return training.student.state()

    whole = ended(tmp_path / "whole")
    training = full.begin(described(place), tmp_path / "broken", say=quiet)
    full.learn(training, "distil")
    training.reward = lambda x0, cond: 1 / 0
    with pytest.raises(ZeroDivisionError):
        full.learn(training, "align")
    again = ended(tmp_path / "broken")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_a_stage_of_no_steps_is_left_out(place, tmp_path):
    full.train(described(place, distil=STAGE | {"steps": 0}), tmp_path, say=quiet)
    assert not (tmp_path / "distil").exists()


def test_what_a_run_owns_already_is_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert memory.here([tmp_path / "run"], "cpu").disk == 1000
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint").write_bytes(bytes(100))
    assert memory.here([tmp_path / "run", tmp_path / "other"], "cpu").disk == 1100


def test_a_value_inside_a_stage_is_set_by_its_path():
    run = train.section_of("30_sd15", ["align.steps=7", "seed=3", "scale=smoke"])
    assert (run.align.steps, run.align.method, run.distil.steps, run.seed) == (7, "dipp", 2, 3)


# ------------------------------------------------------------------------------------------------------------ rehearsal


@pytest.fixture(scope="module", params=[("30_sd15", "unet"), ("31_pixart", "dit")], ids=["unet", "dit"])
def rehearsed(request, tmp_path_factory):
    """A rehearsal that has gone through both stages: (true description, training, exported folder)."""
    stage, kind = request.param
    about, place = config.section(stage, {"scale": "smoke"}), tmp_path_factory.mktemp(kind)
    training = full.begin(full.rehearsed(about, kind, place), place / "run", say=quiet)
    for name in full.STAGES:
        full.learn(training, name, progress=False)
    return about, training, full.export(training)


def test_what_is_missing_is_a_line_each_with_its_cure():
    lines = full.missing(config.section("30_sd15", {"scale": "full"}))
    assert all("\n" not in line for line in lines)
    for says in ("models/prompts.txt", ".venv/bin/hf download zai-org/ImageReward", "4.3 GB"):
        assert any(says in line for line in lines)
    assert any("no GPU" in line for line in lines) == (not torch.cuda.is_available())


def test_a_rehearsal_changes_models_and_not_the_method(rehearsed):
    about, training, _ = rehearsed
    assert full.missing(training.about) == []
    for name, ours in training.about.stages.items():
        theirs = about.stages[name].model_dump()
        assert {key for key, value in ours.model_dump().items() if value != theirs[key]} == {"gen_lr", "ta_lr"}


def test_a_rehearsal_is_short_at_any_scale_and_the_same_every_time(tmp_path):
    about = config.section("30_sd15", {"scale": "full"})
    assert full.rehearsed(about, "unet", tmp_path / "one").distil.steps == full.REHEARSED_STEPS
    full.rehearsed(about, "unet", tmp_path / "other")
    names = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*.safetensors"))]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_diffusers_draws_our_pictures_and_the_card_says_what_they_are(rehearsed):
    _, training, folder = rehearsed
    images, difference = full.difference(training, folder, 2, seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert difference < 1e-4
    card = full.write_card(training, folder, true_run=False, machine="a card")
    assert (folder / "README.md").read_text() == card
    for says in (full.SAYS, f"timesteps=[{training.about.t_star}]", "clipscore", "on a card"):
        assert says in card
    assert str(folder.parent) not in card
    assert full.SAYS not in full.write_card(training, folder, true_run=True, machine="a card")


def test_figures_show_parts_curves_and_what_is_no_result(rehearsed):
    from dipp_core.book.report import COLORS

    _, training, _ = rehearsed
    parts = [memory.Part("reference, frozen", 2.0**30), memory.Part("activations and gradients (x)", 2.0**31)]
    bars = full.memory_figure({"gpu24": parts, "gpu80": parts[:1]}, COLORS).axes[0].patches
    assert sorted({round(bar.get_width(), 6) for bar in bars}) == [0, 1, 2]
    course = full.course_figure(training.folder / "align", "black")
    assert [ax.get_title() for ax in course.axes] == list(full.CURVES.values())
    assert "RANDOM WEIGHTS" in full.samples_figure(training, "black", true_run=False).get_suptitle()
