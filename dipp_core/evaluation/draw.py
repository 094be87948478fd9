"""Pictures of any diffusers pipeline for a list of prompts, in a folder that is resumed and shared by processes.

    folder/made_by.json          the settings, weights and packages that made it; the folder takes no others
    folder/00012_3.png           the picture of prompt 12 with seed 3, written whole or not at all
    folder/scores/NAME/0of4.csv  what a judge says of the share of process 0 of 4 (see `score`)

A picture depends on its prompt, its seed and what made_by.json says. Batches are cut from the whole list, whatever is
there already and whichever process draws: killed and resumed, or shared by processes, the bytes are the same.

A model is a folder in diffusers format, or a hub id whose files were fetched: safetensors only, classes of diffusers
and transformers only; nothing of the folder is run, nothing is fetched.
"""

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import torch
from torch import Tensor, nn

from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import (
    HF,
    InputError,
    check_weights,
    code_hash,
    digest_of_files,
    first_line,
    read_json,
    root,
    write_whole,
)
from dipp_core.models import folders, miniature
from dipp_core.rewards.public import fill, quiet_packages

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # not needed to draw; a checker blackens pictures
RECORD = "made_by.json"
Item = tuple[int, int]  # a prompt's place in its list, and a seed
Find = Callable[[str, str], tuple[pathlib.Path, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a model draws. A row of the table `models` in params.yaml; the empty value is the pipeline's own.

    source: a folder, a hub id OWNER/NAME or OWNER/NAME@COMMIT, or STAGE:NAME of an export of this project.
    denoiser: a file of weights, or OWNER/NAME/FILE of one on the hub, that replaces the denoiser's own, as DMD2 is
    published. status: where the settings come from. export, missing: where an export lies, or why it is not there.
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
    export: pathlib.Path | None = None
    missing: str = ""


def samplers(rows: Mapping[str, Any], find: Find) -> dict[str, Sampler]:
    """The models of params.yaml. An export of this project is asked at its own timestep.

    find: (stage, name) -> the folder of an export and the facts that went along.
    """
    made = {name: Sampler(**row.model_dump(exclude={"fills"})) for name, row in rows.items()}
    for name, sampler in made.items():
        stage, colon, export = sampler.source.partition(":")
        if not colon:
            continue
        try:
            folder, facts = find(stage, export)
            timesteps = (facts["t_star"],) if "t_star" in facts else sampler.timesteps
            made[name] = replace(sampler, export=folder, timesteps=timesteps)
        except InputError as error:
            made[name] = replace(sampler, missing=str(error))
    return made


# --------------------------------------------------------------------------------------------------- finding a pipeline


def fetch_command(source: str, variant: str = "") -> str:
    """The command that puts what is needed of a hub id into the folder where it is looked for."""
    name, _, commit = source.partition("@")
    if not variant:
        return folders.download(name, commit, folders.PATTERNS, folders.UNWANTED)
    networks = [f"{place}/*{end}" for place in folders.NETWORKS for end in (".json", f".{variant}.safetensors")]
    unwanted = [pattern for pattern in folders.UNWANTED if variant not in pattern]
    return folders.download(name, commit, (*folders.SMALL, *networks), unwanted)


def locate(sampler: Sampler) -> pathlib.Path:
    """The folder of a model: its own, an export of an earlier notebook, models/NAME of a hub id, or the hub's cache."""
    if sampler.missing:
        raise InputError(sampler.missing)
    if sampler.export:
        return sampler.export
    name, _, commit = sampler.source.partition("@")
    local = root() / "models" / name.split("/")[-1]
    for folder in (pathlib.Path(sampler.source).expanduser(), root() / sampler.source, local):
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
    for path in (root() / sampler.denoiser, root() / "models" / name / file):
        if path.is_file():
            return path
    known = folders.STARTS.get(f"{owner}/{name}")
    pinned = f"--revision {known.revision} " if known and known.revision else ""
    fetch = f"`{HF} download {owner}/{name} {file} {pinned}--local-dir models/{name}` fetches it"
    why = fetch if owner else "give its place"
    raise InputError(f"{sampler.denoiser}, the weights of a denoiser for {sampler.source}, is not here; {why}")


# --------------------------------------------------------------------------------------------------- loading a pipeline


def _classes(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The pipeline class of a folder and the classes of its networks, all of diffusers and transformers."""
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
        known = entry[0] in ("diffusers", "transformers")
        part = getattr(importlib.import_module(entry[0]), entry[1], None) if known else None
        if part is None:
            raise InputError(f"{folder}: its {place} is {entry[1]} of {entry[0]}, which is not run here")
        if not place.startswith(("scheduler", "tokenizer")):
            parts[place] = part
    return cls, parts


def _network(place: pathlib.Path, cls: Any, sampler: Sampler) -> nn.Module:
    """A part with all its weights; one that is missing is not filled with noise."""
    network, loading = cls.from_pretrained(
        place,
        torch_dtype=DTYPES[sampler.dtype],
        variant=check_weights(place) or sampler.variant or None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if lost := sorted(loading["missing_keys"]):
        raise InputError(f"{place}: {len(lost)} weights are missing, the first is {lost[0]}")
    return network


def load(sampler: Sampler, *, device: str = "cpu") -> Any:
    """The pipeline of a model with its scheduler, ready to draw."""
    import diffusers

    folder = locate(sampler)
    cls, classes = _classes(folder)
    off = dict.fromkeys(LEFT_OUT) | dict.fromkeys(("requires_safety_checker", "add_watermarker"), False)
    accepts = inspect.signature(cls.__init__).parameters
    options = {name: value for name, value in off.items() if name in accepts}
    try:
        options |= {name: _network(folder / name, part, sampler) for name, part in classes.items()}
        pipeline = cls.from_pretrained(folder, local_files_only=True, **options)
    except InputError:
        raise
    except Exception as error:
        why = first_line(error)
        raise InputError(f"{folder} cannot be loaded as a {cls.__name__} ({why}); fetch or make it again") from None
    if sampler.denoiser:
        fill(pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer, denoiser_file(sampler))
    if sampler.scheduler:
        pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


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


# --------------------------------------------------------------------------------------------- what is drawn, by whom


def items(prompts: Iterable[Prompt], seeds: Sequence[int]) -> list[Item]:
    """Every prompt with every seed, prompt by prompt."""
    return [(prompt.index, seed) for prompt in prompts for seed in seeds]


def batches(whole: Sequence[Item], size: int, shard: tuple[int, int] = (0, 1)) -> list[list[Item]]:
    """Process i's part of n, shard = (i, n): every n-th of the batches of the whole."""
    return [list(whole[k : k + size]) for k in range(0, len(whole), size)][shard[0] :: shard[1]]


def read_shard(text: str) -> tuple[int, int]:
    """ "0/4" -> (0, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"--shard {text}: write it as i/n with i from 0 to n - 1, as in 0/4")
    return int(found[1]), int(found[2])


def generator_of(item: Item) -> torch.Generator:
    """The randomness of one picture, from (seed, place of its prompt) and nothing else; on the CPU, whatever draws."""
    digest = hashlib.sha256(f"{item[1]}/{item[0]}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def path_of(folder: pathlib.Path, item: Item) -> pathlib.Path:
    return folder / f"{item[0]:05d}_{item[1]}.png"


def missing(folder: pathlib.Path, wanted: Iterable[Item]) -> list[Item]:
    return [item for item in wanted if not path_of(folder, item).is_file()]


def write(folder: pathlib.Path, item: Item, picture: np.ndarray) -> None:
    """A picture (H, W, 3) in [0, 1] as PNG; what a killed process left half-written of it goes."""
    if not np.isfinite(picture).all():
        raise InputError(f"the picture of prompt {item[0]} with seed {item[1]} is not finite: try dtype fp32 or bf16")
    path, buffer = path_of(folder, item), io.BytesIO()
    PIL.Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    for partial in folder.glob(f".{path.name}.*"):
        partial.unlink()
    write_whole(path, buffer.getvalue())


def read(path: pathlib.Path) -> Tensor:
    """A picture as a tensor (3, H, W) in [0, 1]."""
    try:
        with PIL.Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is no whole picture ({type(error).__name__}): remove it and draw it again") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_all(folder: pathlib.Path, wanted: Sequence[Item]) -> Tensor:
    """Pictures of one size, (n, 3, H, W)."""
    pictures = [read(path_of(folder, item)) for item in wanted]
    if len(sizes := {tuple(picture.shape) for picture in pictures}) > 1:
        raise InputError(f"the pictures in {folder} have {len(sizes)} sizes: remove it and draw them again")
    return torch.stack(pictures)


# --------------------------------------------------------------------------------------------------------- what made it


def weights_of(sampler: Sampler) -> dict[str, str]:
    """Which weights, schedulers and tokenizers these are, by their contents."""
    places = {"model": locate(sampler)} | ({"denoiser": denoiser_file(sampler)} if sampler.denoiser else {})
    return {name: digest_of_files(place) for name, place in places.items()}


def settings_of(sampler: Sampler, prompts: Sequence[Prompt], seeds: Sequence[int], batch: int) -> dict[str, Any]:
    """All that a picture depends on, beside weights and machine."""
    how = {name: value for name, value in asdict(sampler).items() if name not in ("status", "export", "missing")}
    texts = json.dumps([(prompt.index, prompt.text) for prompt in prompts], ensure_ascii=False)
    prompts_are = hashlib.sha256(texts.encode()).hexdigest()[:16]
    return {"sampler": how, "prompts": prompts_are, "seeds": list(seeds), "batch": batch}


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """What made the files beside it; empty where nothing was made yet."""
    if path.is_file():
        return read_json(path, f"remove {path.parent} and begin again")
    if any(path.parent.glob("*.png")) or any(path.parent.glob("*.csv")):
        raise InputError(f"{path} is missing, so nobody knows what made {path.parent}: remove it and begin again")
    return {}


def agree(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on where the record says that other things made what is there."""
    if not (record := read_record(path)):
        return
    known, now = (pd.json_normalize(one).to_dict("records")[0] for one in (record, json.loads(json.dumps(facts))))
    for name, value in now.items():
        if name not in known or known[name] != value:
            was = f"{name} {known.get(name)!r}, not {value!r}"
            raise InputError(f"{path.parent} was made with {was}: go back, give another folder, or remove this one")


def record(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Write down what makes the files beside it, before the first is made."""
    agree(path, facts)
    if not path.is_file():
        write_whole(path, json.dumps(facts, indent=1, sort_keys=True) + "\n")


# -------------------------------------------------------------------------------------------------------------- drawing


def generate(
    folder: pathlib.Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    batch: int,
    shard: tuple[int, int] = (0, 1),
    device: str = "cpu",
    progress: Callable[[list], Any] = iter,
    load: Callable[..., Any] = load,
) -> int:
    """Draw what is missing of this process's share; returns how many pictures were written.

    With nothing missing no weights are needed; where they are here, they must be those that drew. Pictures of an export
    whose weights have changed since go, scores and all, and are drawn anew. progress: wraps the batches, like tqdm.
    """
    import diffusers
    import transformers

    share, made_by = batches(items(prompts, seeds), batch, shard), folder / RECORD
    facts: dict[str, Any] = {"settings": settings_of(sampler, prompts, seeds, batch)}
    agree(made_by, facts)
    try:
        facts["weights"] = weights_of(sampler)
    except InputError:
        if any(missing(folder, part) for part in share):
            raise
        return 0
    if sampler.export and read_record(made_by).get("weights", facts["weights"]) != facts["weights"]:
        shutil.rmtree(folder)
    agree(made_by, facts)
    if not (todo := [part for part in share if missing(folder, part)]):
        return 0
    packages = {library.__name__: library.__version__ for library in (torch, diffusers, transformers)}
    facts["machine"] = packages | {"device": device}
    facts["code"] = {one.__name__: code_hash(inspect.getsource(one))[:16] for one in DRAWS}
    agree(made_by, facts)  # before the weights are loaded
    pipeline = load(sampler, device=device)
    record(made_by, facts)
    options, written, texts = call_options(pipeline, sampler), 0, {prompt.index: prompt.text for prompt in prompts}
    with quiet_packages(), torch.inference_mode():
        for part in progress(todo):
            randomness = [generator_of(item) for item in part]
            try:
                drawn = pipeline([texts[index] for index, _ in part], generator=randomness, **options).images
            except torch.OutOfMemoryError:
                raise InputError(f"no memory for {len(part)} pictures: lower `batch`, remove {folder}") from None
            for item in missing(folder, part):
                write(folder, item, drawn[part.index(item)])
                written += 1
    return written


DRAWS = (_network, load, call_options, generator_of, write)  # the code that decides what a picture looks like


def draw(
    folder: pathlib.Path,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    forbidden: str = "",
    **options: Any,
) -> str:
    """`generate`, where weights and machine allow it: empty if all pictures are there then, else what is missing.

    forbidden: why this machine draws no pictures, where it does not.
    """
    reasons = [forbidden] if forbidden and missing(folder, items(prompts, seeds)) else []
    try:
        if not reasons:
            generate(folder, sampler, prompts, seeds, **options)
        elif locate(sampler) and sampler.denoiser:
            denoiser_file(sampler)
    except InputError as error:
        reasons.append(str(error).replace(f"{root()}/", ""))
    return "; ".join(reasons)


# ------------------------------------------------------------------------------------------------------ random weights


def tiny_models(place: pathlib.Path, texts: Iterable[str]) -> dict[str, Sampler]:
    """Tiny pipelines with random weights, to run the evaluation where there are none: name -> how it draws.

    One of each kind that is evaluated: Stable Diffusion's, PixArt-alpha's, and an export of a one-step generator. Their
    tokenizers know the words of these prompts.
    """
    words, t_star = sorted(set(re.findall(r"[a-z]+", " ".join(texts).lower()))), 625
    unet = miniature.build(place / "unet", "unet", words=words, size="tiny", seed=1)
    dit = miniature.build(place / "transformer", "dit", words=words, size="tiny", encoder="t5", seed=2)
    world = folders.load(unet)
    one_step = folders.export(place / "one_step", world, world.generator(t_star))
    status = "random weights"
    return {
        "random_unet": Sampler(source=str(unet), steps=2, guidance=3.0, status=status),
        "random_transformer": Sampler(source=str(dit), steps=2, guidance=3.0, status=status),
        "random_one_step": Sampler(source=str(one_step), steps=1, guidance=1.0, timesteps=(t_star,), status=status),
    }
