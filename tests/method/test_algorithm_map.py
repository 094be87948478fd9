"""Every line of Algorithm 1 is implemented by exactly one function, which says so."""

import ast
import re
from pathlib import Path

from dipp_core.method import algorithm

CLAIM = re.compile(r"^Algorithm 1, lines? ([0-9a-z, ]+)\.$", re.MULTILINE)


def claims():
    """(line, function) for each claim in the docstrings of method/."""
    found = []
    for path in sorted(Path(algorithm.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                for lines in CLAIM.findall(ast.get_docstring(node) or ""):
                    found += [(line.strip(), node.name) for line in lines.split(",")]
    return found


def test_every_line_is_claimed_exactly_once():
    assert sorted(line for line, _ in claims()) == sorted(algorithm.ALGORITHM_1)


def test_the_lines_are_where_a_reader_looks_for_them():
    owner = dict(claims())
    assert owner["6"] == "assistant_step"
    assert owner["9"] == "guided_score"
    assert (owner["10a"], owner["10b"]) == ("integral_kl_surrogate", "score_divergence_surrogate")


def test_no_docstring_mentions_the_algorithm_in_another_form():
    """A claim with a typo would otherwise be lost silently."""
    for path in sorted(Path(algorithm.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        mentions = re.findall(r"Algorithm 1, line.*", text)
        assert len(mentions) == len(re.findall(r"^ +Algorithm 1, lines? [0-9a-z, ]+\.$", text, re.MULTILINE)), path
