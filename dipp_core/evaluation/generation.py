"""Pictures of a pipeline for a list of prompts, in a folder that can be resumed and shared by processes."""

import contextlib
import inspect
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from dipp_core.book import config
from dipp_core.book.machine import version
from dipp_core.book.saved import SavedRunError
from dipp_core.evaluation import picture_sets, pipelines
from dipp_core.evaluation.picture_sets import PictureError
from dipp_core.evaluation.pipelines import Sampler
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError


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


def call_options(pipeline: Any, sampler: Sampler) -> dict[str, Any]:
    """What the pipeline is called with, beside prompts and randomness."""
    accepts = inspect.signature(pipeline.__call__).parameters
    options = {"num_inference_steps": sampler.steps, "guidance_scale": sampler.guidance, "output_type": "np"}
    if sampler.timesteps:
        if "timesteps" not in accepts:
            raise InputError(f"{type(pipeline).__name__} takes no timesteps: leave them out of the row")
        options["timesteps"] = list(sampler.timesteps)
    if sampler.size:
        options |= {"height": sampler.size, "width": sampler.size}
    # PixArt's pipelines would rewrite prompts and round sizes
    return options | {name: False for name in ("clean_caption", "use_resolution_binning") if name in accepts}


def settings_of(sampler: Sampler, prompts: Sequence[Prompt], seeds: Sequence[int], batch: int) -> dict[str, Any]:
    """All that a picture depends on, beside weights and machine."""
    how = {name: value for name, value in asdict(sampler).items() if name != "status"}
    return {"sampler": how, "prompts": picture_sets.digest_of(prompts), "seeds": list(seeds), "batch": batch}


def _machine(device: str) -> dict[str, str | None]:
    """What else the last bits of a picture depend on."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers")} | {"device": device}


def _write(folder: pathlib.Path, part: list[picture_sets.Item], drawn: Sequence[np.ndarray]) -> int:
    """Write those pictures of a batch that are missing; returns how many."""
    lost = picture_sets.missing(folder, part)
    for item in lost:
        picture_sets.write(folder, item, drawn[part.index(item)])
    return len(lost)


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
    load: Callable[..., Any] = pipelines.load,
) -> int:
    """Draw what is missing of this process's share; returns how many pictures were written.

    With nothing missing no weights are needed. progress: wraps the list of batches, like tqdm.
    """
    record = folder / picture_sets.RECORD
    facts = {"settings": settings_of(sampler, prompts, seeds, batch)}
    share = picture_sets.batches(picture_sets.items(prompts, seeds), batch, shard)
    todo = [part for part in share if picture_sets.missing(folder, part)]
    if todo:
        facts |= {"machine": _machine(device), "weights": pipelines.identity(sampler, scale=scale)}
    if record.is_file():
        picture_sets.agree(record, facts)  # before the weights are loaded
    if not todo:
        return 0
    pipeline = load(sampler, scale=scale, device=device)
    picture_sets.agree(record, facts)
    options, written, texts = call_options(pipeline, sampler), 0, {prompt.index: prompt.text for prompt in prompts}
    with _quiet(), torch.inference_mode():
        for part in progress(todo):
            randomness = [picture_sets.generator_of(item) for item in part]
            try:
                drawn = pipeline([texts[index] for index, _ in part], generator=randomness, **options).images
            except torch.OutOfMemoryError:
                raise PictureError(f"no memory for {len(part)} pictures: lower `batch`, remove {folder}") from None
            written += _write(folder, part, drawn)
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
        elif pipelines.locate(sampler, scale=scale) and sampler.denoiser:
            pipelines.denoiser_file(sampler)
    except (InputError, SavedRunError) as error:
        reasons.append(str(error).replace(f"{config.root()}/", ""))
    return "; ".join(reasons)
