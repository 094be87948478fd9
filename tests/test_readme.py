"""What README.md says can be done is done: its snippets run, its messages are ours, its tables are whole."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
NAMES = ("reward", "distance", "world", "model")


def part(heading):
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def run(name):
    """Run one snippet as a reader would, and return what it has defined."""
    found = {"__name__": "snippet"}
    exec(compile(SNIPPETS[NAMES.index(name)], f"README.md, a {name}", "exec"), found)
    return found


def test_there_is_one_snippet_for_each_thing_to_add_and_each_is_short():
    titles = re.findall(r"^\*\*An? (\w+)\*\*", part("Add your own"), re.MULTILINE)
    assert tuple(titles) == NAMES
    assert len(SNIPPETS) == len(NAMES)
    assert [name for name, text in zip(NAMES, SNIPPETS, strict=True) if len(text.splitlines()) >= 20] == []


def test_the_reward_of_the_readme_judges_and_has_a_gradient():
    found = run("reward")
    images = found["images"]
    expected = 2 * (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
    assert torch.allclose(found["judge"](images, ["a", "b"]), expected)
    assert images.grad[:, 0].min() > 0
    assert images.grad[:, 2].max() < 0


def test_the_distance_of_the_readme_is_what_its_run_descends():
    found = run("distance")
    y = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert torch.equal(found["l1"].gradient(y), y.sign())
    assert found["settings"].distance is found["l1"]
    assert len(found["curves"].step) == 20
    assert all(values.isfinite().all() for values in found["curves"].values.values())


def test_the_world_of_the_readme_has_the_scores_of_its_law():
    found = run("world")
    world = found["world"]
    xt = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.full((5,), 0.5, dtype=torch.float64)
    cond = world.prompts[:1].expand(5, 3)
    alpha, sigma = world.schedule.alpha(t)[0], world.schedule.sigma(t)[0]
    x = xt.clone().requires_grad_()
    covs = alpha**2 * world.law.covs + sigma**2 * torch.eye(2)
    normal = torch.distributions.MultivariateNormal(alpha * world.law.means, covs)
    log_p = (normal.log_prob(x[:, None]) + cond.log()).logsumexp(-1)
    (expected,) = torch.autograd.grad(log_p.sum(), x)
    assert torch.allclose(world.ref(xt.float(), t, cond.float()).double(), expected, rtol=1e-4, atol=1e-4)
    assert len(found["curves"].step) == 20


def test_the_model_of_the_readme_is_drawn_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("model")
    assert found["images"].shape == (1, 3, 32, 32)
    assert 0 <= found["images"].min() <= found["images"].max() <= 1
    for name in ("small", "one_step"):
        assert (tmp_path / "models" / name / "model_index.json").is_file()


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", part("Two commands"), re.MULTILINE))
def test_the_commands_of_the_readme_are_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_messages_that_are_explained_are_messages_of_this_project():
    """The longest fixed piece of each stands in the code, or, of another library's, in what mends it."""
    code = " ".join(
        " ".join(path.read_text().split()) for path in [ROOT / "setup.sh", *(ROOT / "dipp_core").rglob("*.py")]
    )
    quoted = [row.split("|")[1] for row in part("When something goes wrong").splitlines() if row.startswith("| `")]
    assert len(quoted) > 10
    for cell in quoted:
        for message in re.findall(r"`([^`]+)`", cell):
            pieces = re.split(r"\.\.|\bSTAGE\b|\bREWARD\b|'\w+'|setup: |params.yaml: ", message)
            longest = max((piece.strip(" :()?/,;") for piece in pieces), key=len)
            assert longest in code, message


def test_every_notebook_has_its_row():
    rows = [row for row in part("What you get").splitlines() if row.startswith("| ")]
    known = [re.match(r"\| \[?(\d\d) ", row) for row in rows]
    numbers = [match[1] for match in known if match]
    assert numbers == sorted(set(numbers))
    assert {path.stem[:2] for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(numbers)


def test_tables_are_whole():
    """A blank line inside a table ends it; every row has as many cells as its heading."""
    lines = re.sub(r"```.*?```", "", README, flags=re.DOTALL).splitlines()
    for n, line in enumerate(lines):
        if line.startswith("|") and not lines[n - 1].startswith("|"):
            assert lines[n + 1].startswith("|---"), f"a table begins without a heading: {line[:60]}"
            width = len(re.findall(r"(?<!\\)\|", line))
            for row in lines[n + 1 :]:
                if not row.startswith("|"):
                    break
                assert len(re.findall(r"(?<!\\)\|", row)) == width, row[:80]


def test_pictures_have_words_for_those_who_cannot_see_them():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert len(pictures) >= 3
    for words, path in pictures:
        assert len(words.split()) >= 6
        assert (ROOT / path).is_file()


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("data/*/README.md")]
TEXTS = [*PAGES, *ROOT.glob("*.yaml"), *ROOT.glob("*.toml"), *ROOT.glob("*.ini"), ROOT / "Makefile"]
TEXTS += [*ROOT.glob("dipp_core/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]


def exists(module):
    """Whether dipp_core.a.b.c is a room, a file or a name of it; the longest part that is a file decides."""
    parts = module.split(".")
    for k in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:k])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return k == len(parts) or re.search(rf"\b{parts[k]}\b", path.read_text())
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(path):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert path.name not in ("CONTRIBUTING.md", "CHANGELOG.md") or len(path.read_text().splitlines()) <= 70


def test_the_files_and_modules_that_are_named_are_there():
    """In pages, settings, docstrings and the prose of notebooks; a file of a room also without `dipp_core/`."""
    gone = []
    for path in TEXTS:
        text = path.read_text()
        files = re.findall(r"(?<![\w./])(?:\.\./)*((?:dipp_core|tests|data)/[\w./]*\w|\w+/\w+\.py)", text)
        names = [name for name in files if not ((ROOT / name).exists() or (ROOT / "dipp_core" / name).exists())]
        names += [name for name in re.findall(r"\bdipp_core(?:\.\w+)+", text) if not exists(name)]
        gone += [f"{path.relative_to(ROOT)}: {name}" for name in names]
    assert gone == []


def test_the_tables_of_the_readme_are_made_by_the_command_it_names(tmp_path):
    """The command itself, on a copy: it ends well, or in one line."""
    for name in ("data", "reports/metrics", "reports/manifests", "params.yaml", "README.md", "notebooks", "dipp_core"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name) if name != "README.md" else (tmp_path / name).write_text(README)
    environment = os.environ | {"DIPP_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("DIPP_RESULTS", None)
    words = [sys.executable, "-m", "dipp_core.book.tables"]
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    made = (tmp_path / "README.md").read_text()
    assert "not run here" in made.split("<!-- times")[1]
    (tmp_path / "README.md").write_text(made.replace("<!-- /results -->", ""))
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "needs the marks" in found.stderr
