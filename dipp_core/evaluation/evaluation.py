"""What judges say of folders of pictures: asked once a picture, kept in CSV files, summed up by prompt family.

folder/scores/NAME/0of4.csv        what process 0 of 4 heard: index, seed, digest of the picture, score
folder/scores/NAME/made_by.json    which judge that was
"""

import csv
import hashlib
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipp_core.book import config
from dipp_core.evaluation import picture_sets, verdicts
from dipp_core.evaluation.picture_sets import Item, PictureError
from dipp_core.evaluation.prompt_lists import Prompt
from dipp_core.files import InputError, write_whole
from dipp_core.rewards import public
from dipp_core.rewards.judge import Judge
from dipp_core.rewards.public import quiet_packages

DIVERSITY = "diversity"  # asked of the CLIP of clipscore
MEASURES = (*public.NAMES, DIVERSITY)
COLUMNS = ("index", "seed", "picture", "score")
# what a score is multiplied with in tables, so that it reads as papers print it
PRINTED = {"hpsv2": 100.0, "hpsv2.1": 100.0, "pickscore": 0.01, "clipscore": 100.0}
NOT_RUN = "not run here"


def place(model: str, prompts: str) -> pathlib.Path:
    """Where the pictures of a model for a list of prompts are kept; git ignores them."""
    return config.root() / ".work" / "pictures" / model / prompts


# ------------------------------------------------------------------------------------------------------------ scoring


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_scores(folder: pathlib.Path, name: str) -> dict[tuple[Item, str], float]:
    """(picture, its digest) -> score, of all processes that have scored."""
    found = {}
    for path in sorted((folder / "scores" / name).glob("*of*.csv")):
        try:
            for row in csv.DictReader(path.open()):
                found[(int(row["index"]), int(row["seed"])), row["picture"]] = float(row["score"])
        except (KeyError, ValueError, TypeError):
            raise PictureError(f"{path} is no table of scores: remove it and score again") from None
    return found


def _write_scores(path: pathlib.Path, found: Mapping[tuple[Item, str], float]) -> None:
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((*item, picture, f"{score:.9g}") for (item, picture), score in sorted(found.items()))
    write_whole(path, buffer.getvalue().encode())


def spread(judge: Judge, images: Tensor, each: int) -> Tensor:
    """How far a picture is from the others of its prompt: mean of 1 - cosine of CLIP's features, (n,).

    images: prompt by prompt, `each` of every one. The mean over a prompt is its mean pairwise distance.
    """
    features = judge.picture_features(images).unflatten(0, (-1, each))
    cosine = features @ features.transpose(1, 2)
    return ((each - cosine.sum(-1)) / max(1, each - 1)).flatten()


def _ask(name: str, judge: Judge, images: Tensor, texts: list[str], each: int) -> list[float]:
    """Scores of pictures of one batch; pictures of a prompt are together."""
    images = images.to(next(judge.parameters()).device)
    with torch.inference_mode():
        values = spread(judge, images, each) if name == DIVERSITY else judge(images, texts)
    if not values.isfinite().all():
        raise PictureError(f"{name} gives a score that is not finite: load it in float32, and look at the picture")
    return values.double().tolist()


def _judge(folder: pathlib.Path, name: str, source: Any, load: Callable[..., Judge], device: str) -> Judge:
    """The judge of a measure, which must be the one that has scored this folder before."""
    asked = "clipscore" if name == DIVERSITY else name
    with quiet_packages():
        judge = load(asked, source, device=device)
    about = {"judge": asked, "version": judge.about.version, "files": _digest_of_source(source)}
    picture_sets.agree(folder / "scores" / name / picture_sets.RECORD, about)
    return judge


def score(
    folder: pathlib.Path,
    name: str,
    source: Any,
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

    A judge is loaded once, alone, and not at all if nothing is left to score. Scores are kept by the picture's digest,
    so a picture drawn anew is scored anew. Batches hold whole prompts, cut from the whole list, as in `picture_sets`.
    """
    each = len(seeds)
    if name == DIVERSITY and each < 2:
        raise PictureError("diversity needs at least two pictures of a prompt: give more seeds")
    wanted, texts = picture_sets.items(prompts, seeds), {prompt.index: prompt.text for prompt in prompts}
    if lost := picture_sets.missing(folder, wanted):
        raise PictureError(f"{len(lost)} of {len(wanted)} pictures are missing in {folder}: draw them first")
    known = read_scores(folder, name)
    digests = {item: _digest(picture_sets.path_of(folder, item)) for item in wanted}
    share = picture_sets.batches(wanted, each * max(1, batch // each), shard)
    todo = [part for part in share if any((item, digests[item]) not in known for item in part)]
    if not todo:
        return 0
    judge = _judge(folder, name, source, load, device)
    own, count = {key: value for key, value in known.items() if digests.get(key[0]) == key[1]}, 0
    for number, part in enumerate(progress(todo), start=1):
        values = _ask(name, judge, picture_sets.read_all(folder, part), [texts[index] for index, _ in part], each)
        own |= {(item, digests[item]): value for item, value in zip(part, values, strict=True)}
        count += len(part)
        if number % save_batches == 0 or number == len(todo):
            _write_scores(folder / "scores" / name / f"{shard[0]}of{shard[1]}.csv", own)
    return count


def _digest_of_source(source: Any) -> str:
    """Which files a judge was made of: contents of a folder, or the hub id, which names its commit or a pinned one."""
    path = pathlib.Path(str(source)).expanduser()
    return picture_sets.digest_of_files(path) if path.exists() else str(source)


def scores_of(folder: pathlib.Path, name: str, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
    """(n prompts, seeds) of one measure, of the pictures that are there now, as papers print it."""
    known, rows = read_scores(folder, name), []
    for item in picture_sets.items(prompts, seeds):
        path = picture_sets.path_of(folder, item)
        if not path.is_file() or (item, _digest(path)) not in known:
            raise PictureError(f"{path} has no score by {name}: score it first")
        rows.append(known[item, _digest(path)])
    return PRINTED.get(name, 1.0) * torch.tensor(rows, dtype=torch.float64).unflatten(0, (-1, len(seeds)))


def token_counts(texts: Sequence[str]) -> list[int]:
    """How many of CLIP's tokens each prompt has, begin and end included; CLIP and its children read the first 77."""
    with quiet_packages():
        from hpsv2.src.open_clip import tokenizer
    words = tokenizer.SimpleTokenizer()
    return [len(words.encode(text)) + 2 for text in texts]


# ----------------------------------------------------------------------------------------------------------- summing up


def summary(
    scores: Mapping[str, Tensor], groups: Sequence[str], *, resamples: int, seed: int
) -> dict[str, dict[str, verdicts.Interval]]:
    """Group -> measure -> mean over pictures with its 95% interval over prompts; and of several groups "all".

    scores: measure -> (n prompts, seeds). groups: the family, or style, of each prompt.
    """
    means, found = {name: values.mean(1) for name, values in scores.items()}, {}
    for group in dict.fromkeys((*groups, "all")) if len(set(groups)) > 1 else groups[:1]:
        chosen = torch.tensor([k for k, own in enumerate(groups) if group in (own, "all")])

        def mean(index: Tensor, chosen: Tensor = chosen) -> dict[str, float]:
            return {name: values[chosen[index]].mean().item() for name, values in means.items()}

        generator = torch.Generator().manual_seed(seed)
        found[group] = verdicts.bootstrap(mean, len(chosen), resamples=resamples, generator=generator)
    return found


def device_of(wanted: str) -> str:
    """ "auto" -> the GPU, if there is one."""
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def judge_source(text: str) -> pathlib.Path | str:
    """The folder of a judge, relative to the checkout, or a hub id as it was given."""
    local = config.root() / pathlib.Path(text).expanduser()
    return local if local.exists() else text


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
        if asked not in judges:
            not_run[name] = f"{asked} is not among the judges"
            continue
        try:
            count = score(folder, name, judge_source(judges[asked]), prompts, seeds, **options)
            say(f"{name}: {count} pictures scored")
        except InputError as error:
            not_run[name] = str(error)
    return not_run
