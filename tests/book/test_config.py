"""Configuration: what is right is read at its scale, what is wrong becomes one line that helps."""

import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field

from dipp_core.book import config
from dipp_core.book.section_types import Section
from dipp_core.files import InputError

GOOD = """\
scale: mini
seed: 7
threads: 2
widths:
  steps: {smoke: 10, mini: 100, full: 1000}
  rate: 0.5
  shape: round
  levels: [0.1, 0.9]
"""


class Widths(Section):
    steps: Annotated[int, Field(ge=1, le=5000)]
    rate: Annotated[float, Field(gt=0)]
    shape: Literal["round", "square"]
    levels: list[float]


@pytest.fixture(autouse=True)
def params(tmp_path, monkeypatch):
    """Write params.yaml of a checkout that has one section."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    monkeypatch.setattr(config, "SECTIONS", {"widths": Widths})

    def write(text):
        (tmp_path / "params.yaml").write_text(text)

    write(GOOD)
    return write


def problem() -> str:
    with pytest.raises(InputError) as caught:
        config.check()
    return str(caught.value)


def test_the_committed_parameters_are_valid_at_every_scale(checkout, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("DIPP_ROOT", str(checkout))
    config.check()


@pytest.mark.parametrize(("scale", "steps"), [("smoke", 10), ("mini", 100), ("long", 100), ("full", 1000)])
def test_a_value_is_picked_at_the_scale_of_the_file(params, scale, steps):
    params(GOOD.replace("scale: mini", f"scale: {scale}"))
    assert config.section("03_widths") == Widths(
        scale=scale, seed=7, steps=steps, rate=0.5, shape="round", levels=[0.1, 0.9]
    )


def test_overrides_win_and_choose_the_scale():
    found = config.section("widths", {"scale": "smoke", "rate": 2.0, "seed": 1})
    assert (found.steps, found.rate, found.seed, found.scale) == (10, 2.0, 1, "smoke")
    assert config.section("widths", found.model_dump()) == found  # as the pipeline passes every value


WRONG = {
    "unknown key": (("rate:", "rat:"), "allowed: steps, rate, shape, levels; did you mean 'rate'?"),
    "missing key": (("  rate: 0.5\n", ""), "widths.rate: missing; it must be given"),
    "fraction for a count": (("mini: 100", "mini: 1.5"), "widths.steps: found 1.5 (float); allowed: a valid integer"),
    "number in quotes": (("0.5", "'0.5'"), "widths.rate: found '0.5' (str); allowed: a valid number"),
    "too small": (("0.5", "-1.0"), "widths.rate: found -1.0 (float); allowed: greater than 0"),
    "unknown choice": (("round", "rond"), "widths.shape: found 'rond' (str); allowed: 'round' or 'square'"),
    "inside a list": (("0.9", "high"), "widths.levels.1: found 'high' (str); allowed: a valid number"),
    "unknown scale": (("scale: mini", "scale: minni"), "'smoke', 'mini', 'long' or 'full'; did you mean 'mini'?"),
    "unknown scale of a value": (("mini: 100", "mimi: 100"), "widths.steps.mimi: unknown scale; allowed: smoke, mini"),
    "no value for the scale": ((", mini: 100", ""), "widths.steps: no value for scale 'mini'; found only smoke, full"),
    "seed in a section": (("rate: 0.5", "rate: 0.5\n  seed: 3"), "widths.seed: belongs at the top of the file"),
    "misspelt section": (("widths:", "width:"), "widths; did you mean 'widths'?"),
    "missing section": ((GOOD[GOOD.index("widths") :], ""), "section 'widths' is missing; found scale, seed, threads"),
    "empty section": ((GOOD[GOOD.index("  steps") :], ""), "widths: found nothing; allowed: a section with steps"),
    "no sections": ((GOOD, ""), "found no sections; allowed: `scale`, `seed`, `threads`"),
    "key given twice": (("rate: 0.5", "rate: 0.5\n  rate: 0.6"), "line 7, column 3: not valid YAML: found duplicate"),
    "open bracket": (("0.9]", "0.9"), "line 9, column 1: not valid YAML: expected ',' or ']'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_with_key_found_and_allowed(params, name):
    (old, new), expected = WRONG[name]
    assert old in GOOD
    params(GOOD.replace(old, new))
    lines = [line for line in problem().splitlines() if expected in line]
    assert len(lines) == 1
    assert lines[0].startswith("params.yaml")


def test_all_mistakes_are_shown_at_once(params):
    params(GOOD.replace("0.5", "fast").replace("round", "rond") + "heights: {}\n")
    assert [line.split(": ")[1] for line in problem().splitlines()] == ["heights", "widths.rate", "widths.shape"]


def test_a_missing_file_says_how_to_restore_it(tmp_path):
    (tmp_path / "params.yaml").unlink()
    assert problem().endswith("no such file; restore it with `git checkout -- params.yaml`")


def test_an_unknown_section_is_refused_by_name():
    with pytest.raises(InputError, match=r"there is no section 'width'; .* did you mean 'widths'\?"):
        config.section("02_width")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"seeds": {"unet": [1, 1, 2], "dit": [1, 2]}},
            "seeds.unet: found [1, 1, 2] (list); allowed: a list in which nothing stands twice",
        ),
        ({"kept_seed": 9}, "kept_seed: found 9 (int); allowed: one of the seeds of both architectures"),
    ],
)
def test_seeds_that_contradict_each_other_are_one_line(checkout, monkeypatch, given, line):
    monkeypatch.undo()
    monkeypatch.setenv("DIPP_ROOT", str(checkout))
    with pytest.raises(InputError) as caught:
        config.section("23_alignment", given)
    assert str(caught.value) == f"params.yaml: alignment.{line}"


def test_reading_the_configuration_needs_no_torch(checkout):
    code = "import sys, dipp_core.book.config; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout).returncode == 0
