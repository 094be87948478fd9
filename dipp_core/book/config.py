"""params.yaml, validated: every notebook reads its own section through `section`, at the scale named there.

A value may be plain or a mapping {smoke, mini, long, full}; without `long`, that is as mini. `section` picks the scale
first and validates afterwards, so a notebook only ever sees plain, checked numbers. Every mistake becomes one line
that names the key, what was found, what is allowed, and the nearest valid name.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML, YAMLError

from dipp_core.book.section_types import Globals, Section
from dipp_core.book.sections import SECTIONS
from dipp_core.files import InputError, first_line, root

SCALES = ("smoke", "mini", "long", "full")
Model = TypeVar("Model", bound=BaseModel)


def section_name(stage: str) -> str:
    """'01_scores_and_one_step_generators' -> 'scores_and_one_step_generators'."""
    return re.sub(r"^\d\d_", "", stage)


def nearest(name: str, allowed: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


@functools.lru_cache(maxsize=1)
def _parsed(text: str) -> Any:
    """YAML as Python; reading the file takes a tenth of a second, and a check asks for it once a section and scale."""
    return YAML(typ="safe").load(text)


def read() -> dict:
    """The raw content of params.yaml (YAML 1.2, as DVC reads it; a key given twice is a mistake)."""
    path = root() / "params.yaml"
    try:
        content = _parsed(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; restore it with `git checkout -- params.yaml`") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"params.yaml{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise InputError("params.yaml: found no sections; allowed: `scale`, `seed`, `threads` and one per notebook")
    return content


def read_pairs(pairs: list[str]) -> dict[str, Any]:
    """['steps=5', 'scale=smoke'] -> {'steps': 5, 'scale': 'smoke'}; values are read as YAML."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            values[key] = YAML(typ="safe").load(value)
        except YAMLError:
            equals = ""
        if not equals:
            raise InputError(f"--set {pair}: write it as key=value")
    return values


def _at_scale(value: Any, scale: str, key: str) -> Any:
    """Pick the value of one scale where it is given per scale; the mapping may sit at any depth."""
    if not isinstance(value, dict):
        return value
    if not any(name in SCALES for name in value):
        return {str(name): _at_scale(inner, scale, f"{key}.{name}") for name, inner in value.items()}
    if unknown := [name for name in value if name not in SCALES]:
        hint = f"allowed: {', '.join(SCALES)}{nearest(unknown[0], SCALES)}"
        raise InputError(f"params.yaml: {key}.{unknown[0]}: unknown scale; {hint}")
    if scale == "long" and scale not in value:
        scale = "mini"
    if scale not in value:
        raise InputError(f"params.yaml: {key}: no value for scale '{scale}'; found only {', '.join(value)}")
    return value[scale]


def _explain(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    """One line per mistake: the key, what was found, what is allowed, the nearest valid name."""
    lines = []
    own = [name for name in model.model_fields if not prefix or name not in Section.model_fields]
    unknown = [str(problem["loc"][-1]) for problem in error.errors() if problem["type"] == "extra_forbidden"]
    for problem in error.errors():
        name = str(problem["loc"][-1])
        key = ".".join(str(part) for part in (*([prefix] if prefix else []), *problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"params.yaml: {key}: unknown key; allowed: {', '.join(own)}{nearest(name, own)}")
        elif problem["type"] == "missing":
            if not any(nearest(key, [name]) for key in unknown):  # else the line on the misspelt key says it already
                lines.append(f"params.yaml: {key}: missing; it must be given")
        else:
            found, allowed = problem["input"], problem["msg"].removeprefix("Input should be ")
            expected = (problem.get("ctx") or {}).get("expected", "")
            hint = nearest(found, expected.replace("'", "").replace(" or ", ", ").split(", ")) if expected else ""
            lines.append(f"params.yaml: {key}: found {found!r} ({type(found).__name__}); allowed: {allowed}{hint}")
    return "\n".join(lines)


def _validated(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(_explain(error, model, prefix)) from None


def _globals(content: dict) -> Globals:
    return _validated(Globals, {name: content[name] for name in Globals.model_fields if name in content})


def section(stage: str, overrides: dict[str, Any] | None = None) -> Any:
    """The validated section of one notebook; `overrides` win over params.yaml (the pipeline passes every value)."""
    content, overrides, name = read(), overrides or {}, section_name(stage)
    if not isinstance(overrides, dict):
        raise InputError(f"overrides is {overrides!r}: give names and values, as in {{'scale': 'smoke'}}")
    if name not in SECTIONS:
        raise InputError(f"there is no section '{name}'; allowed: {', '.join(SECTIONS)}{nearest(name, SECTIONS)}")
    if name not in content:
        found = f"; found {', '.join(map(str, content))}{nearest(name, set(content) - set(SECTIONS))}"
        raise InputError(f"params.yaml: section '{name}' is missing{found}")
    if not isinstance(content[name], dict):
        own = ", ".join(field for field in SECTIONS[name].model_fields if field not in Section.model_fields)
        raise InputError(f"params.yaml: {name}: found {content[name] or 'nothing'}; allowed: a section with {own}")
    for key in Section.model_fields:
        if key in content[name]:
            raise InputError(f"params.yaml: {name}.{key}: belongs at the top of the file, for all sections")
    top = _globals(content | ({"scale": overrides["scale"]} if "scale" in overrides else {}))
    values = _at_scale(content[name], top.scale, name) | {"scale": top.scale, "seed": top.seed} | overrides
    return _validated(SECTIONS[name], values, name)


def check() -> None:
    """Refuse params.yaml with all of its mistakes, at every scale."""
    content, allowed = read(), [*Globals.model_fields, *SECTIONS]
    known = f"unknown section; allowed: {', '.join(allowed)}"
    problems = [f"params.yaml: {name}: {known}{nearest(name, allowed)}" for name in content if name not in allowed]
    try:
        _globals(content)
        for name, scale in itertools.product(SECTIONS, SCALES):
            try:
                section(name, {"scale": scale})
            except InputError as error:
                problems += str(error).splitlines()
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))  # a mistake is the same at every scale: say it once
