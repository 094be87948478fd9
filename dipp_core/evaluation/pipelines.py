"""Any diffusers pipeline as a row of params.yaml names it: found, checked, loaded; nothing is fetched.

A model is a folder in diffusers format, or a hub id whose files were fetched: safetensors only, classes of diffusers
and transformers only; nothing of the folder is run.
"""

import contextlib
import importlib
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dipp_core.book import config, models
from dipp_core.book.saved import SavedRunError
from dipp_core.evaluation import picture_sets
from dipp_core.files import InputError, check_weights, read_json
from dipp_core.models import folders
from dipp_core.models.folders import STARTS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIBRARIES = ("diffusers", "transformers")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # not needed to draw; a checker blackens pictures


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a model draws. A row of the table `models` in params.yaml; the empty value is the pipeline's own.

    source: a folder, a hub id OWNER/NAME or OWNER/NAME@COMMIT, or STAGE:NAME of an export of this project.
    denoiser: a file of weights, or OWNER/NAME/FILE of one on the hub, that replaces the denoiser's own, as DMD2 is
    published. status: where the settings come from.
    """

    source: str
    steps: int
    guidance: float
    scheduler: str = ""
    timesteps: Sequence[int] = ()
    size: int = 0
    dtype: str = "fp32"
    variant: str = ""
    denoiser: str = ""
    status: str = ""


# ------------------------------------------------------------------------------------------------------------ finding


def fetch_command(source: str, variant: str = "") -> str:
    """The command that puts what is needed of a hub id into the folder where it is looked for."""
    name, _, commit = source.partition("@")
    if not variant:
        return folders.download(name, commit, folders.PATTERNS, folders.UNWANTED)
    networks = [f"{place}/*{end}" for place in folders.NETWORKS for end in (".json", f".{variant}.safetensors")]
    kept = [pattern for pattern in folders.UNWANTED if variant not in pattern]
    return folders.download(name, commit, (*folders.SMALL, *networks), kept)


def locate(sampler: Sampler, *, scale: str) -> pathlib.Path:
    """The folder of a model: its own, an export of an earlier notebook, models/NAME of a hub id, or the hub's cache."""
    stage, colon, name = sampler.source.partition(":")
    if colon:
        return models.find(stage, name, scale=scale)[0]
    name, _, commit = sampler.source.partition("@")
    local = config.root() / "models" / name.split("/")[-1]
    for folder in (pathlib.Path(sampler.source).expanduser(), config.root() / sampler.source, local):
        if (folder / "model_index.json").is_file():
            return folder
    if commit:
        import huggingface_hub

        with contextlib.suppress(Exception):
            return pathlib.Path(huggingface_hub.snapshot_download(name, revision=commit, local_files_only=True))
    raise InputError(f"{name} is not here; `{fetch_command(sampler.source, sampler.variant)}` fetches it")


def denoiser_file(sampler: Sampler) -> pathlib.Path:
    """The weights that replace a denoiser's: a file, or FILE of a hub id in models/NAME."""
    owner, name, file = ["", "", *sampler.denoiser.split("/")][-3:]
    for path in (config.root() / sampler.denoiser, config.root() / "models" / name / file):
        if path.is_file():
            return path
    known = STARTS.get(f"{owner}/{name}")
    pinned = f"--revision {known.revision} " if known and known.revision else ""
    fetch = f"`huggingface-cli download {owner}/{name} {file} {pinned}--local-dir models/{name}` fetches it"
    why = fetch if owner else "give its place"
    raise InputError(f"{sampler.denoiser}, the weights of a denoiser for {sampler.source}, is not here; {why}")


def identity(sampler: Sampler, *, scale: str) -> dict[str, str]:
    """Which weights these are, by their contents."""
    found = {"model": picture_sets.digest_of_files(locate(sampler, scale=scale))}
    if sampler.denoiser:
        found["denoiser"] = picture_sets.digest_of_files(denoiser_file(sampler))
    return found


# ------------------------------------------------------------------------------------------------------------ loading


def _class_and_parts(folder: pathlib.Path) -> tuple[type, dict[str, type]]:
    """The pipeline class of a folder and the classes of its networks, all of them of known libraries."""
    import diffusers

    index = read_json(folder / "model_index.json", "fetch or make the model again")
    named = index.get("_class_name")
    cls = getattr(diffusers, named, None) if isinstance(named, str) and named.endswith("Pipeline") else None
    if cls is None:
        raise InputError(f"{folder} is made for {named}, which diffusers {diffusers.__version__} does not have")
    parts = {}
    for place, entry in index.items():
        if place.startswith("_") or not isinstance(entry, list) or entry[0] is None or place in LEFT_OUT:
            continue
        part = getattr(importlib.import_module(entry[0]), entry[1], None) if entry[0] in LIBRARIES else None
        if part is None:
            raise InputError(f"{folder}: its {place} is {entry[1]} of {entry[0]}, which is not run here")
        if not place.startswith(("scheduler", "tokenizer")):
            parts[place] = part
    return cls, parts


def _network(place: pathlib.Path, cls: type, sampler: Sampler) -> nn.Module:
    """A part with all its weights; one that is missing is not filled with noise."""
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    variant = check_weights(place) or sampler.variant or None
    network, found = cls.from_pretrained(place, torch_dtype=DTYPES[sampler.dtype], variant=variant, **options)
    if found["missing_keys"]:
        first = sorted(found["missing_keys"])[0]
        raise InputError(f"{place}: {len(found['missing_keys'])} weights are missing, the first is {first}")
    return network


def load(sampler: Sampler, *, scale: str, device: str = "cpu") -> Any:
    """The pipeline of a model with its scheduler, ready to draw."""
    import diffusers

    folder = locate(sampler, scale=scale)
    cls, classes = _class_and_parts(folder)
    accepts = inspect.signature(cls.__init__).parameters
    options = {name: None for name in LEFT_OUT if name in accepts}
    options |= {name: False for name in ("requires_safety_checker", "add_watermarker") if name in accepts}
    try:
        parts = {name: _network(folder / name, part, sampler) for name, part in classes.items()}
        pipeline = cls.from_pretrained(folder, local_files_only=True, **parts, **options)
    except InputError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{folder} cannot be loaded as a {cls.__name__} ({why}); fetch or make it again") from None
    if sampler.denoiser:
        from dipp_core.rewards.public import fill

        fill(pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer, denoiser_file(sampler))
    if sampler.scheduler:
        pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def from_rows(rows: Mapping[str, Any], *, scale: str) -> dict[str, Sampler]:
    """The models of params.yaml; an export of this project is asked at its own timestep, which its facts tell."""
    found = {}
    for name, row in rows.items():
        sampler = Sampler(**row.model_dump(exclude={"fills"}))
        stage, colon, export = sampler.source.partition(":")
        with contextlib.suppress(SavedRunError):
            if colon and "t_star" in (facts := models.find(stage, export, scale=scale)[1]):
                sampler = replace(sampler, timesteps=(facts["t_star"],))
        found[name] = sampler
    return found
