"""Pictures of any diffusers pipeline for a list of prompts, in a folder that can be resumed and shared by processes.

A model is a folder in diffusers format, or a hub id whose files were fetched: safetensors only, classes of diffusers
and transformers only; nothing of the folder is run.
"""

import contextlib
import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dipp_core.lab import config, models, picture_sets
from dipp_core.lab.machine import version
from dipp_core.lab.picture_sets import PictureError
from dipp_core.lab.prompt_lists import Prompt
from dipp_core.lab.saved import SavedRunError
from dipp_core.worlds.latent_files import ModelError, check_weights, read_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIBRARIES = ("diffusers", "transformers")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # not needed to draw; a checker blackens pictures
WANTED = ("model_index.json", "scheduler/*", "tokenizer*/*", "text_encoder*/*", "vae/*", "unet/*", "transformer/*")
UNWANTED = ("*.bin", "*.msgpack", "*.onnx*", "*non_ema*")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a model draws. A row of the table `models` in params.yaml; the empty value is the pipeline's own.

    source: a folder, a hub id OWNER/NAME or OWNER/NAME@COMMIT, or STAGE:NAME of an export of this project.
    denoiser: a file of weights that replaces the denoiser's own, as DMD2 is published. status: where the settings come
    from.
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
    unwanted = (*UNWANTED, *(() if variant else ("*fp16*",)))
    what = " ".join(f'--include "{p}"' for p in WANTED) + " " + " ".join(f'--exclude "{p}"' for p in unwanted)
    pinned = f"--revision {commit} " if commit else ""
    return f"huggingface-cli download {name} {pinned}{what} --local-dir models/{name.split('/')[-1]}"


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
    raise ModelError(f"{name} is not here; `{fetch_command(sampler.source, sampler.variant)}` fetches it")


def _denoiser_file(sampler: Sampler) -> pathlib.Path:
    path = config.root() / sampler.denoiser
    if not path.is_file():
        raise ModelError(f"{sampler.denoiser} is missing: the weights that replace the denoiser of {sampler.source}")
    return path


def identity(sampler: Sampler, *, scale: str) -> dict[str, str]:
    """Which weights these are, by their contents."""
    found = {"model": picture_sets.digest_of_files(locate(sampler, scale=scale))}
    if sampler.denoiser:
        found["denoiser"] = picture_sets.digest_of_files(_denoiser_file(sampler))
    return found


# ------------------------------------------------------------------------------------------------------------ loading


def _checked(folder: pathlib.Path) -> type:
    """The pipeline class of a folder, all of whose parts are of known libraries and have whole weights."""
    import diffusers

    index = read_json(folder / "model_index.json", "it names the classes of a folder in diffusers format")
    named = index.get("_class_name")
    cls = getattr(diffusers, named, None) if isinstance(named, str) and named.endswith("Pipeline") else None
    if cls is None:
        raise ModelError(f"{folder} is made for {named}, which diffusers {diffusers.__version__} does not have")
    for place, entry in index.items():
        if place.startswith("_") or not isinstance(entry, list) or entry[0] is None or place in LEFT_OUT:
            continue
        if entry[0] not in LIBRARIES:
            raise ModelError(f"{folder}: its {place} is code of {entry[0]}, which is not run here")
        if not place.startswith(("scheduler", "tokenizer")):
            check_weights(folder / place)
    return cls


def load(sampler: Sampler, *, scale: str, device: str = "cpu") -> Any:
    """The pipeline of a model with its scheduler, ready to draw."""
    import diffusers

    folder = locate(sampler, scale=scale)
    cls = _checked(folder)
    accepts = inspect.signature(cls.__init__).parameters
    options = {name: None for name in LEFT_OUT if name in accepts}
    options |= {name: False for name in ("requires_safety_checker", "add_watermarker") if name in accepts}
    options |= {"variant": sampler.variant} if sampler.variant else {}
    try:
        pipeline = cls.from_pretrained(
            folder, torch_dtype=DTYPES[sampler.dtype], use_safetensors=True, local_files_only=True, **options
        )
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{folder} cannot be loaded as a {cls.__name__} ({why}); fetch or make it again") from None
    if sampler.denoiser:
        from dipp_core.rewards.files import RewardError, fill

        try:
            fill(pipeline.unet, _denoiser_file(sampler))
        except RewardError as error:
            raise ModelError(str(error)) from None
    if sampler.scheduler:
        pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries remark on every prompt that is longer than their encoder; the notebook says it once."""
    import diffusers
    import transformers

    both = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.get_verbosity() for library in both]
    for library in both:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(both, before, strict=True):
            library.set_verbosity(level)


# ------------------------------------------------------------------------------------------------------------ drawing


def call_options(pipeline: Any, sampler: Sampler) -> dict[str, Any]:
    """What the pipeline is called with, beside prompts and randomness."""
    accepts = inspect.signature(pipeline.__call__).parameters
    options = {"num_inference_steps": sampler.steps, "guidance_scale": sampler.guidance, "output_type": "np"}
    if sampler.timesteps:
        if "timesteps" not in accepts:
            raise ModelError(f"{type(pipeline).__name__} takes no timesteps: leave them out of the row")
        options["timesteps"] = list(sampler.timesteps)
    if sampler.size:
        options |= {"height": sampler.size, "width": sampler.size}
    # PixArt's pipelines would rewrite prompts and round sizes
    return options | {name: False for name in ("clean_caption", "use_resolution_binning") if name in accepts}


def settings_of(sampler: Sampler, prompts: Sequence[Prompt], seeds: Sequence[int], batch: int) -> dict[str, Any]:
    """All that a picture depends on, beside weights and machine."""
    how = {name: value for name, value in asdict(sampler).items() if name != "status"}
    return {"sampler": how, "prompts": picture_sets.digest_of(prompts), "seeds": list(seeds), "batch": batch}


def generate(
    folder: pathlib.Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    batch: int,
    scale: str,
    shard: tuple[int, int] = (0, 1),
    device: str = "cpu",
    progress: Callable[[list], Any] = iter,
    load: Callable[..., Any] = load,
) -> int:
    """Draw what is missing of this process's share; returns how many pictures were written.

    With nothing missing no weights are needed. progress: wraps the list of batches, like tqdm.
    """
    record, texts = folder / picture_sets.RECORD, {prompt.index: prompt.text for prompt in prompts}
    facts = {"settings": settings_of(sampler, prompts, seeds, batch)}
    share = picture_sets.batches(picture_sets.items(prompts, seeds), batch, shard)
    todo = [part for part in share if picture_sets.missing(folder, part)]
    if todo:
        machine = {name: version(name) for name in ("torch", "diffusers", "transformers")} | {"device": device}
        facts |= {"machine": machine, "weights": identity(sampler, scale=scale)}
    if record.is_file():
        picture_sets.agree(record, facts)
    if not todo:
        return 0
    pipeline = load(sampler, scale=scale, device=device)
    picture_sets.agree(record, facts)
    options, written = call_options(pipeline, sampler), 0
    with _quiet(), torch.inference_mode():
        for part in progress(todo):
            randomness = [picture_sets.generator_of(item) for item in part]
            try:
                drawn = pipeline([texts[index] for index, _ in part], generator=randomness, **options).images
            except torch.OutOfMemoryError:
                raise PictureError(f"no memory for {len(part)} pictures: lower `batch`, remove {folder}") from None
            for item, picture in zip(part, drawn, strict=True):
                if not picture_sets.path_of(folder, item).is_file():
                    picture_sets.write(folder, item, picture)
                    written += 1
    return written


def draw(
    folder: pathlib.Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    scale: str,
    forbidden: str = "",
    **options: Any,
) -> str:
    """`generate`, where weights and machine allow it: empty if all pictures are there then, else what is missing.

    forbidden: why this machine draws no pictures, where it does not.
    """
    reasons = [forbidden] if forbidden and picture_sets.missing(folder, picture_sets.items(prompts, seeds)) else []
    try:
        if not reasons:
            generate(folder, sampler, prompts, seeds, scale=scale, **options)
        elif locate(sampler, scale=scale) and sampler.denoiser:
            _denoiser_file(sampler)
    except (ModelError, SavedRunError) as error:
        reasons.append(str(error).replace(f"{config.root()}/", ""))
    return "; ".join(reasons)


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
