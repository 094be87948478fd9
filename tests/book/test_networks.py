"""The networks in the repository: what `make keep` copies, what notebooks get of it, and when it is out of date."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipp_core.book import config, networks, pipeline, report, sources
from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.worlds import shapes

STAGES = sorted({name.split("/")[0] for name in networks.NAMES})
TENSORS = ("10_distillation_2d", "distilled"), ("20_miniature_world", "judges")
FOLDERS = ("21_reference", "dit"), ("22_distillation", "one_step_dit")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A checkout after a whole run, of small networks."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    for name in ("DIPP_REPORTS", "DIPP_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    rng = torch.Generator().manual_seed(0)
    for stage, name in TENSORS:
        tensors = {"w": torch.randn(50, generator=rng), "index": torch.arange(70_000)}
        report.Report(stage, tmp_path / "reports").save(tensors, name, scale="mini", seeds=5)
    for stage, name in FOLDERS:
        folder = report.Report(stage, tmp_path / "reports").new_folder(name, scale="mini", t_star=625)
        miniature.build(folder, "dit", words=shapes.vocabulary(), size="tiny", seed=len(name))
    for stage in STAGES:
        place = tmp_path / f"reports/manifests/{stage}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(dict.fromkeys(networks.RUN, "one") | {"scale": "mini"}))
    return tmp_path


@pytest.fixture
def cloned(made):
    """A fresh clone of it once the networks are kept: without reports/runs, which git ignores."""
    assert pipeline.main(["keep"]) == 0
    (made / "reports/runs").rename(made / "source")
    return made


def test_without_runs_the_kept_networks_are_those_of_the_runs_to_half_precision(cloned, capsys):
    for stage, name in TENSORS:
        tensors, facts = report.load_tensors(stage, name, scale="mini")
        whole = load_file(cloned / f"source/{stage}/{name}.safetensors")
        assert facts == {"scale": "mini", "seeds": 5}
        assert torch.equal(tensors["index"], whole["index"])
        assert tensors["w"].dtype == torch.float32
        assert torch.equal(tensors["w"], whole["w"].half().float())
    for stage, name in FOLDERS:
        folder, facts = report.find_folder(stage, name, scale="mini")
        assert facts == {"scale": "mini", "t_star": 625}
        half, whole = folders.load(folder), folders.load(cloned / "source" / stage / name)
        for part in ("denoiser", "vae"):
            ours, theirs = getattr(half, part).state_dict(), getattr(whole, part).state_dict()
            assert all(torch.equal(ours[key], theirs[key].half().float()) for key in theirs)
        drawn = [world.paint(world.generator(625), world.prompts(["a red disc"]), 1, seed=1) for world in (half, whole)]
        assert 0 < (drawn[0] - drawn[1]).abs().max() < 0.01
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(networks.NAMES)
    assert all(line.startswith(f"using {cloned / 'data/networks'}/") for line in lines)


def test_runs_of_the_scale_come_first_and_the_pipeline_takes_nothing_else(cloned, monkeypatch):
    stage, name = TENSORS[0]
    with pytest.raises(InputError, match="was made at scale 'mini', this notebook runs at 'smoke'"):
        report.load_tensors(stage, name, scale="smoke")
    own = report.Report(stage, cloned / "reports")
    own.save({"w": torch.zeros(1)}, name, scale="smoke")
    assert len(report.load_tensors(stage, name, scale="mini")[0]["w"]) == 50
    monkeypatch.setenv("DIPP_REPORTS", str(cloned))
    with pytest.raises(InputError, match="was made at scale 'smoke', this notebook runs at 'mini'"):
        report.load_tensors(stage, name, scale="mini")
    monkeypatch.delenv("DIPP_REPORTS")
    own.save({"w": torch.zeros(1)}, name, scale="mini")
    assert len(report.load_tensors(stage, name, scale="mini")[0]["w"]) == 1


def edit(path, old=b"one", new=b"two"):
    path.write_bytes(path.read_bytes().replace(old, new))


def test_what_changed_since_is_named(made):
    assert pipeline.main(["keep"]) == 0
    before = {path: path.read_bytes() for path in (made / "data/networks").rglob("*") if path.is_file()}
    assert networks.changed() == []
    edit(made / "reports/manifests/21_reference.json")
    source = made / "reports/runs/10_distillation_2d/distilled.safetensors"
    save_file(load_file(source) | {"w": torch.ones(50)}, source)
    edit(made / "data/networks/21_reference/dit/model_index.json", b"PixArt", b"pixart")
    assert networks.changed() == [
        "21_reference has run with other code or parameters since its networks were kept: `make keep`",
        "reports/runs/10_distillation_2d/distilled.safetensors is not what was kept: `make keep`",
        "data/networks/21_reference/dit is not what its manifest says: `make keep`",
    ]
    assert pipeline.main(["keep"]) == 0
    assert networks.changed() == []
    after = {path: path.read_bytes() for path in (made / "data/networks").rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path] != after[path]} == {"distilled.safetensors", "manifest.json"}


def test_what_half_precision_or_the_repository_does_not_hold_is_refused(made, monkeypatch):
    monkeypatch.setattr(networks, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"would take .* MB of the repository"):
        networks.keep()
    report.Report(TENSORS[0][0], made / "reports").save({"w": torch.tensor([1e6])}, TENSORS[0][1], scale="mini")
    with pytest.raises(InputError, match=r"distilled.safetensors: w has numbers that half precision does not hold"):
        networks.keep()
    (made / "reports/runs/20_miniature_world/judges.safetensors").unlink()
    with pytest.raises(InputError, match=r"judges.safetensors is missing: run `make repro STAGE=20_miniature_world`"):
        networks.keep()


def test_notebooks_91_and_92_ask_for_what_is_kept_but_for_the_control(monkeypatch, checkout):
    monkeypatch.setenv("DIPP_ROOT", str(checkout))
    for stage, others in (("91_playground", set()), ("92_your_own_preferences", {"23_alignment"})):
        kind = getattr(config.section(stage), "kind", "")
        code = sources.code_of(sources.read_notebook(sources.notebook_path(stage))).replace("{p.kind}", kind)
        code = code.replace("p.kind,", f'"{kind}",')
        asked = re.findall(r'(load_tensors|find_folder)\(\s*"(\w+)", f?"(\w+)"', code)
        assert len(asked) == code.count("load_tensors(") + code.count("find_folder(")
        wanted = {f"{of}/{name}" + ".safetensors" * (how[0] == "l") for how, of, name in asked if of not in others}
        assert wanted <= set(networks.NAMES)


def test_the_kept_networks_are_those_of_the_published_run(monkeypatch, checkout):
    """Of their own runs on another kind of CPU readers need not hear: those differ in the last digits."""
    monkeypatch.setenv("DIPP_ROOT", str(checkout))
    assert [line for line in networks.changed() if not line.startswith("reports/runs")] == []
