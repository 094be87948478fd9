"""What README.md and the pages of docs/ say can be done is done: snippets run, messages are ours, tables are whole."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from dipp_core.book.site import chapters

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXTENDING, RUNNING = ((ROOT / f"docs/{name}.md").read_text() for name in ("extending", "running"))
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", EXTENDING, re.MULTILINE | re.DOTALL)
NAMES = ("reward", "distance", "world", "model")


def part(heading, page=README):
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def run(name):
    """Run one snippet as a reader would, and return what it has defined."""
    found = {"__name__": "snippet"}
    exec(compile(SNIPPETS[NAMES.index(name)], f"docs/extending.md, a {name}", "exec"), found)
    return found


def test_there_is_one_snippet_for_each_thing_to_add_and_each_is_short():
    titles = re.findall(r"^\*\*An? (\w+)\*\*", EXTENDING, re.MULTILINE)
    assert tuple(titles) == NAMES
    assert len(SNIPPETS) == len(NAMES)
    assert [name for name, text in zip(NAMES, SNIPPETS, strict=True) if len(text.splitlines()) >= 20] == []


def test_the_reward_of_the_page_judges_and_has_a_gradient():
    found = run("reward")
    images = found["images"]
    expected = 2 * (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
    assert torch.allclose(found["judge"](images, ["a", "b"]), expected)
    assert images.grad[:, 0].min() > 0
    assert images.grad[:, 2].max() < 0


def test_the_distance_of_the_page_is_what_its_run_descends():
    found = run("distance")
    y = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert torch.equal(found["l1"].gradient(y), y.sign())
    assert found["settings"].distance is found["l1"]
    assert len(found["curves"].step) == 20
    assert all(values.isfinite().all() for values in found["curves"].values.values())


def test_the_world_of_the_page_has_the_scores_of_its_distribution():
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


def test_the_model_of_the_page_is_drawn_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("model")
    assert found["images"].shape == (1, 3, 32, 32)
    assert 0 <= found["images"].min() <= found["images"].max() <= 1
    for name in ("small", "one_step"):
        assert (tmp_path / "models" / name / "model_index.json").is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", README + RUNNING))))
def test_the_commands_that_are_named_are_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_is_short():
    assert len(README.encode()) < 10_000


def test_the_messages_that_are_explained_are_messages_of_this_project():
    """The longest fixed piece of each stands in the code, or, of another library's, in what mends it."""
    code = " ".join(
        " ".join(path.read_text().split()) for path in [ROOT / "setup.sh", *(ROOT / "dipp_core").rglob("*.py")]
    )
    quoted = [
        row.split("|")[1] for row in part("When something goes wrong", RUNNING).splitlines() if row.startswith("| `")
    ]
    assert len(quoted) > 10
    for cell in quoted:
        for message in re.findall(r"`([^`]+)`", cell):
            pieces = re.split(r"\.\.|\bSTAGE\b|\bREWARD\b|'\w+'|setup: |params.yaml: ", message)
            longest = max((piece.strip(" :()?/,;") for piece in pieces), key=len)
            assert longest in code, message


def test_every_notebook_has_its_place_in_the_tree():
    tree = part("What is where").split("dipp_core/")[0]
    listed = {int(number) for number in re.findall(r"\b\d\d\b", tree.split("\n", 2)[2])}
    for first, last in re.findall(r"(\d\d) to (\d\d)", tree):
        listed |= set(range(int(first), int(last) + 1))
    notebooks = [int(path.stem[:2]) for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert set(notebooks) <= listed
    assert f"{len(notebooks)} notebooks" in tree


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_tables_are_whole(page):
    """A blank line inside a table ends it; every row has as many cells as its heading."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    for n, line in enumerate(lines):
        if line.startswith("|") and not lines[n - 1].startswith("|"):
            assert lines[n + 1].startswith("|---"), f"a table begins without a heading: {line[:60]}"
            width = len(re.findall(r"(?<!\\)\|", line))
            for row in lines[n + 1 :]:
                if not row.startswith("|"):
                    break
                assert len(re.findall(r"(?<!\\)\|", row)) == width, row[:80]


def test_pictures_have_words_for_those_who_cannot_see_them():
    """And are there, or are published by the notebook whose folder they are in."""
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures
    for words, place in pictures:
        path = ROOT / place
        assert len(words.split()) >= 6
        notebook = (ROOT / f"notebooks/{path.parent.name}.ipynb").read_text()
        assert path.is_file() or f'\\"{path.stem}\\"' in notebook


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*/README.md")]
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
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", path.read_text())  # pictures: above
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
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


def test_the_tables_of_the_pages_are_made_by_the_command_they_name(tmp_path):
    """The command itself, on a copy: it ends well, or in one line."""
    for name in ("data", "reports/metrics", "reports/manifests", "params.yaml", "notebooks", "dipp_core"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs/running.md").write_text(RUNNING)
    environment = os.environ | {"DIPP_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("DIPP_RESULTS", None)
    words = [sys.executable, "-m", "dipp_core.book.tables"]
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "not run here" in (tmp_path / "docs/running.md").read_text().split("<!-- times")[1]
    (tmp_path / "README.md").write_text(README.replace("<!-- /results -->", ""))
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "needs the marks" in found.stderr


def test_every_work_of_the_bibliography_is_cited_and_every_work_that_is_cited_is_in_it():
    """In notebooks and pages, where a work is a link to its address."""
    known = {url: key for url, (key, _) in chapters.works().items()}
    links, cited = set(), set()
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]:
        links |= set(re.findall(r"\]\((https://(?:arxiv\.org/abs|doi\.org|jmlr\.org)[^)]*)\)", path.read_text()))
        cited |= {key for url, key in known.items() if f"]({url})" in path.read_text()}
    assert links - set(known) == set()
    assert set(known.values()) - cited == set()
