"""params.yaml, validated: every notebook reads its own section through `section`, at the scale named there.

A value may be plain or a mapping {smoke, mini, full}; `section` picks the scale first and validates afterwards, so a
notebook only ever sees plain, checked numbers. Every mistake becomes one line that names the key, what was found, what
is allowed, and the nearest valid name.
"""

import copy
import difflib
import functools
import importlib
import pathlib
import re
import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, YAMLError

from dipp_core.files import InputError, root

SCALES = ("smoke", "mini", "full")


class ConfigError(InputError):
    """One line per mistake, each complete in itself."""


class Section(BaseModel):
    """What every notebook has: the scale and the seed of the run, beside its own numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    scale: Literal["smoke", "mini", "full"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class Globals(BaseModel):
    """The top of params.yaml; the sections follow it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scale: Literal["smoke", "mini", "full"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    threads: Annotated[int, Field(ge=1, le=1024)]


def sections() -> dict[str, type[Section]]:
    """The schema of every section.

    Looked up by name, not imported: a schema has no defaults, so it can refuse a run but never change its result, and
    adding one must not make every notebook stale.
    """
    return importlib.import_module("dipp_core.book.sections").SECTIONS


def section_name(stage: str) -> str:
    """'01_scores_and_one_step_generators' -> 'scores_and_one_step_generators'."""
    return stage[3:] if re.match(r"\d\d_", stage) else stage


@functools.lru_cache(maxsize=1)
def _parsed(text: str) -> Any:
    """YAML as Python; reading the file takes a tenth of a second, and a check asks for it once a section and scale."""
    return YAML(typ="safe").load(text)


def read(path: pathlib.Path | None = None) -> dict:
    """The raw content of params.yaml (YAML 1.2, as DVC reads it; a key given twice is a mistake)."""
    path = path or root() / "params.yaml"
    try:
        content = copy.deepcopy(_parsed(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; restore it with `git checkout -- params.yaml`") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"params.yaml{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise ConfigError("params.yaml: found no sections; allowed: `scale`, `seed`, `threads` and one per notebook")
    return content


def _at_scale(value, scale: str, key: str):
    """Pick the value of one scale where it is given per scale; the mapping may sit at any depth."""
    if isinstance(value, dict):
        if any(name in SCALES for name in value):
            if unknown := [name for name in value if name not in SCALES]:
                hint = f"allowed: {', '.join(SCALES)}{nearest(unknown[0], SCALES)}"
                raise ConfigError(f"params.yaml: {key}.{unknown[0]}: unknown scale; {hint}")
            if scale not in value:
                raise ConfigError(f"params.yaml: {key}: no value for scale '{scale}'; found only {', '.join(value)}")
            return value[scale]
        return {str(name): _at_scale(inner, scale, f"{key}.{name}") for name, inner in value.items()}
    return value


def nearest(name: str, allowed) -> str:
    close = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    """One line per mistake: the key, what was found, what is allowed, the nearest valid name."""
    lines = []
    own = [name for name in model.model_fields if not prefix or name not in ("scale", "seed")]
    unknown = [problem["loc"][-1] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    for problem in error.errors():
        key = ".".join(str(part) for part in (*([prefix] if prefix else []), *problem["loc"]))
        if problem["type"] == "extra_forbidden":
            name = problem["loc"][-1]
            lines.append(f"params.yaml: {key}: unknown key; allowed: {', '.join(own)}{nearest(name, own)}")
        elif problem["type"] == "missing":
            if any(nearest(key, [problem["loc"][-1]]) for key in unknown):
                continue  # the line on the misspelt key says it already
            lines.append(f"params.yaml: {key}: missing; it must be given")
        else:
            allowed = problem["msg"].removeprefix("Input should be ")
            found = problem["input"]
            expected = (problem.get("ctx") or {}).get("expected", "")
            hint = nearest(found, expected.replace("'", "").replace(" or ", ", ").split(", ")) if expected else ""
            lines.append(f"params.yaml: {key}: found {found!r} ({type(found).__name__}); allowed: {allowed}{hint}")
    return "\n".join(lines)


def _validated(model: type[BaseModel], values: dict, prefix: str):
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, model, prefix)) from None


def section(stage: str, overrides: dict | None = None) -> Section:
    """The validated section of one notebook; `overrides` win over params.yaml (the pipeline passes every value)."""
    content, overrides = read(), dict(overrides or {})
    name = section_name(stage)
    schemas = sections()
    if name not in schemas:
        raise ConfigError(f"there is no section '{name}'; allowed: {', '.join(schemas)}{nearest(name, schemas)}")
    if name not in content:
        found = f"; found {', '.join(map(str, content))}{nearest(name, set(content) - set(schemas))}"
        raise ConfigError(f"params.yaml: section '{name}' is missing{found}")
    if not isinstance(content[name], dict):
        own = ", ".join(field for field in schemas[name].model_fields if field not in Section.model_fields)
        raise ConfigError(f"params.yaml: {name}: found {content[name] or 'nothing'}; allowed: a section with {own}")
    if misplaced := [key for key in ("scale", "seed") if key in content[name]]:
        raise ConfigError(f"params.yaml: {name}.{misplaced[0]}: belongs at the top of the file, for all sections")
    scale = overrides.get("scale", content.get("scale"))
    _validated(Globals, {k: v for k, v in content.items() if k in Globals.model_fields} | {"scale": scale}, "")
    values = _at_scale(content[name], scale, name) | {"scale": scale, "seed": content["seed"]} | overrides
    return _validated(schemas[name], values, name)


def read_pairs(pairs: list[str]) -> dict:
    """['steps=5', 'scale=smoke'] -> {'steps': 5, 'scale': 'smoke'}; values are read as YAML."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        try:
            values[key] = YAML(typ="safe").load(value)
        except YAMLError:
            equals = ""
        if not equals:
            raise ConfigError(f"--set {pair}: write it as key=value") from None
    return values


def check() -> dict:
    """Validate all of params.yaml, at every scale; returns the raw content."""
    content = read()
    schemas, problems = sections(), []
    for name in content:
        if name not in schemas and name not in Globals.model_fields:
            allowed = [*Globals.model_fields, *schemas]
            problems.append(
                f"params.yaml: {name}: unknown section; allowed: {', '.join(allowed)}{nearest(name, allowed)}"
            )
    try:
        _validated(Globals, {k: v for k, v in content.items() if k in Globals.model_fields}, "")
    except ConfigError as error:
        raise ConfigError("\n".join([*problems, str(error)])) from None
    for name in schemas:
        for scale in SCALES:
            try:
                section(name, {"scale": scale})
            except ConfigError as error:
                problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))  # a mistake is the same at every scale: say it once
    return content


def main() -> int:
    try:
        check()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
