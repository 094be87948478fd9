"""What judges say of folders of pictures: asked once a picture, kept in CSV files, summed up by prompt family; and FID.

folder/scores/NAME/0of4.csv        what process 0 of 4 heard: index, seed, digest of the picture, score
folder/scores/NAME/made_by.json    which judge that was
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dipp_core.evaluation import draw, statistics
from dipp_core.evaluation.draw import Item
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError, code_of, digest_of_files, first_line, root, write_whole
from dipp_core.rewards import public
from dipp_core.rewards.judge import Judge
from dipp_core.rewards.pixels import crop

DIVERSITY = "diversity"  # asked of the CLIP of clipscore
MEASURES = (*public.NAMES, DIVERSITY)
# columns of a table of scores
TYPES = {"index": "int64", "seed": "int64", "picture": "str", "score": "float64"}
# what a score is multiplied with in tables, so that it reads as papers print it
PRINTED = {"hpsv2": 100.0, "hpsv2.1": 100.0, "pickscore": 0.01, "clipscore": 100.0}
NOT_RUN = "not run here"


class NotRun(InputError):
    """Why a judge cannot be asked here."""


def place(model: str, prompts: str) -> pathlib.Path:
    """Where the pictures of a model for a list of prompts are kept; git ignores them."""
    return root() / ".work" / "pictures" / model / prompts


def device_of(wanted: str) -> str:
    """ "auto" -> the GPU, if there is one."""
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def judge_source(text: str) -> pathlib.Path | str:
    """The folder of a judge, relative to the checkout, or a hub id as it was given."""
    local = root() / pathlib.Path(text).expanduser()
    return local if local.exists() else text


# ------------------------------------------------------------------------------------------------------ scores, kept


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_scores(folder: pathlib.Path, name: str) -> dict[tuple[Item, str], float]:
    """(picture, its digest) -> score, of all processes that have scored."""
    scores: dict[tuple[Item, str], float] = {}
    for path in sorted((folder / "scores" / name).glob("*of*.csv")):
        try:
            table = pd.read_csv(path, dtype=TYPES)[[*TYPES]]
            if not np.isfinite(table["score"]).all():
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(f"{path} is no table of scores: remove it and score again") from None
        scores |= {((index, seed), picture): value for index, seed, picture, value in table.itertuples(index=False)}
    return scores


def _write_scores(path: pathlib.Path, scores: Mapping[tuple[Item, str], float]) -> None:
    rows = [(*item, picture, value) for (item, picture), value in sorted(scores.items())]
    write_whole(path, pd.DataFrame(rows, columns=[*TYPES]).to_csv(index=False, float_format="%.9g"))


def scores_of(folder: pathlib.Path, name: str, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
    """(n prompts, seeds) of one measure, of the pictures that are there now, as papers print it."""
    known, rows = read_scores(folder, name), []
    for item in draw.items(prompts, seeds):
        path = draw.path_of(folder, item)
        if not path.is_file() or (key := (item, _digest(path))) not in known:
            raise InputError(f"{path} has no score by {name}: score it first")
        rows.append(known[key])
    return PRINTED.get(name, 1.0) * torch.tensor(rows, dtype=torch.float64).unflatten(0, (-1, len(seeds)))


# ------------------------------------------------------------------------------------------------------------ scoring


def spread(judge: Any, images: Tensor, each: int) -> Tensor:
    """How far a picture is from the others of its prompt: mean of 1 - cosine of CLIP's features, (n,).

    images: prompt by prompt, `each` of every one. The mean over a prompt is its mean pairwise distance.
    """
    features = judge.picture_features(images).unflatten(0, (-1, each))
    cosine = features @ features.transpose(1, 2)
    return ((each - cosine.sum(-1)) / max(1, each - 1)).flatten()


def score(
    folder: pathlib.Path,
    name: str,
    source: pathlib.Path | str,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    batch: int,
    shard: tuple[int, int] = (0, 1),
    device: str = "cpu",
    save_batches: int = 20,
    progress: Callable[[list], Any] = iter,
    load: Callable[..., Judge] = public.load,
) -> int:
    """Ask one of MEASURES about every picture of this process's share that it has not scored; returns how many.

    A judge is loaded once, alone, and not at all if nothing is left to score; it must be the one that has scored this
    folder before, by its files. Scores are kept by the picture's digest, so a picture drawn anew is scored anew.
    Batches hold whole prompts, cut from the whole list, as in `draw`.
    """
    each, asked = len(seeds), "clipscore" if name == DIVERSITY else name
    if name == DIVERSITY and each < 2:
        raise InputError("diversity needs at least two pictures of a prompt: give more seeds")
    texts = {prompt.index: prompt.text for prompt in prompts}
    wanted = draw.items(prompts, seeds)
    if lost := draw.missing(folder, wanted):
        raise InputError(f"{len(lost)} of {len(wanted)} pictures are missing in {folder}: draw them first")
    known = read_scores(folder, name)
    digests = {item: _digest(draw.path_of(folder, item)) for item in wanted}
    share = draw.batches(wanted, each * max(1, batch // each), shard)
    todo = [part for part in share if any((item, digests[item]) not in known for item in part)]
    files, record = pathlib.Path(source).expanduser(), folder / "scores" / name / draw.RECORD
    facts: dict[str, Any] = {"judge": asked, "files": digest_of_files(files) if files.exists() else str(source)}
    facts["code"] = code_of("rewards/judge.py", "rewards/pixels.py", "rewards/public.py")
    if files.exists() or todo:
        draw.agree(record, facts)
    if not todo:
        return 0
    try:
        judge = load(asked, source, device=device)
    except InputError as error:
        raise NotRun(str(error)) from None
    draw.record(record, facts)
    own, count = {key: value for key, value in known.items() if digests.get(key[0]) == key[1]}, 0
    for number, part in enumerate(progress(todo), start=1):
        images = draw.read_all(folder, part).to(next(judge.parameters()).device)
        with torch.inference_mode():
            values = spread(judge, images, each) if name == DIVERSITY else judge(images, [texts[k] for k, _ in part])
        if not values.isfinite().all():
            raise InputError(f"{name} gives a score that is not finite: load it in float32, and look at the picture")
        own |= {(item, digests[item]): value for item, value in zip(part, values.double().tolist(), strict=True)}
        count += len(part)
        if number % save_batches == 0 or number == len(todo):
            _write_scores(folder / "scores" / name / f"{shard[0]}of{shard[1]}.csv", own)
    return count


def score_all(
    folder: pathlib.Path,
    judges: Mapping[str, Any],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, str]:
    """Score by every judge whose files are there, one after another; measure -> why it was not run.

    judges: name -> folder or hub id; diversity is asked of that of clipscore. A judge that is not given is not run.
    """
    not_run = {}
    for name in MEASURES:
        asked = "clipscore" if name == DIVERSITY else name
        try:
            if asked not in judges:
                raise NotRun(f"{asked} is not among the judges")
            count = score(folder, name, judge_source(judges[asked]), prompts, seeds, **options)
            say(f"{name}: {count} pictures scored")
        except NotRun as error:
            not_run[name] = str(error)
    return not_run


def token_counts(texts: Sequence[str]) -> list[int]:
    """How many of CLIP's tokens each prompt has, begin and end included; CLIP and its children read the first 77."""
    with public.quiet_packages():
        from hpsv2.src.open_clip import tokenizer
    words = tokenizer.SimpleTokenizer()
    return [len(words.encode(text)) + 2 for text in texts]


def summary(
    scores: Mapping[str, Tensor], groups: Sequence[str], *, resamples: int, seed: int
) -> dict[str, dict[str, statistics.Interval]]:
    """Group -> measure -> mean over pictures with its 95% interval over prompts; and of several groups "all".

    scores: measure -> (n prompts, seeds). groups: the family, or style, of each prompt.
    """
    means, table = {name: values.mean(1) for name, values in scores.items()}, {}
    for group in dict.fromkeys((*groups, "all")) if len(set(groups)) > 1 else groups[:1]:
        chosen = torch.tensor([k for k, own in enumerate(groups) if group in (own, "all")])

        def mean(index: Tensor, chosen: Tensor = chosen) -> dict[str, float]:
            return {name: values[chosen[index]].mean().item() for name, values in means.items()}

        generator = torch.Generator().manual_seed(seed)
        table[group] = statistics.bootstrap(mean, len(chosen), resamples=resamples, generator=generator)
    return table


# ---------------------------------------------------------------------------------------------------------------- FID


def fid(
    pictures: Sequence[pathlib.Path],
    reference: pathlib.Path,
    *,
    batch: int,
    device: str = "cpu",
    feature: int | nn.Module = 2048,
) -> float:
    """The Frechet inception distance of pictures to those of a folder, all as 8-bit squares of the drawn ones' size.

    The shorter side becomes that size, the middle of the longer one stays. feature: Inception's last pooling layer, or
    another network of (B, 3, H, W) 8-bit pictures -> (B, d). There is no interval: a Frechet distance of prompts drawn
    again says more of the repetitions than of the model.
    """
    endings = (".png", ".jpg", ".jpeg", ".webp")
    known = sorted(path for path in reference.rglob("*") if path.suffix.lower() in endings)
    if len(known) < 2:
        raise InputError(f"{reference} holds no reference pictures: give a folder of them, such as COCO's val2017")
    if len(pictures) < 2:
        raise InputError("an FID needs pictures: draw them first")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=feature, normalize=False).to(device)
    except (ImportError, OSError) as error:
        why = f"FID needs torchmetrics, torch-fidelity, and Inception's weights, which it fetches ({first_line(error)})"
        raise InputError(f"{why}: run `make setup`, and try again with a network") from None
    size = min(draw.read(pictures[0]).shape[1:])
    for paths, real in ((known, True), (pictures, False)):
        for k in range(0, len(paths), batch):
            squares = torch.stack([crop(draw.read(path)[None], size)[0] for path in paths[k : k + batch]])
            metric.update((squares.clamp(0, 1) * 255).round().byte().to(device), real=real)
    return float(metric.compute())
