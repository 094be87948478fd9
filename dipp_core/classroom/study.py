"""A study with several voters on two models: everybody's own blinded round, one table of all votes, one interval.

votes/study/NAME/        what `votes.open_ballot` keeps of one voter: pictures, sides, votes; it can be gone on with
ballot = open_study(votes_folder("study"), "blue heron", model_a, model_b, captions, pairs=40, seed=0)
preference(gather(votes_folder("study")))        P(model a is preferred), for other voters and other captions
"""

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from dipp_core.classroom import votes
from dipp_core.evaluation.intervals import Interval, student
from dipp_core.files import InputError


def open_study(
    folder: pathlib.Path,
    voter: str,
    model_a: votes.Painter,
    model_b: votes.Painter,
    captions: Sequence[str],
    *,
    pairs: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> votes.Ballot:
    """One voter's round, begun or gone on with: captions, noise and sides are drawn anew for every voter's name."""
    if not re.fullmatch(r"[\w -]{1,40}", voter):
        raise InputError(f"{voter!r}: a voter's name has up to 40 letters, digits, spaces, - and _; take no real one")
    digest = hashlib.sha256(f"{seed} {voter}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    own = votes.blind_round(model_a, model_b, captions, pairs=pairs, generator=generator)
    return votes.open_ballot(folder / voter.replace(" ", "_"), own, voter=voter, say=say)


def gather(folder: pathlib.Path) -> pd.DataFrame:
    """All votes of all voters, one a row: voter, pair, caption, side of model a, vote, score of model a (1, 1/2, 0)."""
    from safetensors import safe_open

    rows = []
    for path in sorted(folder.glob(f"*/{votes.FILE}")):
        kept = json.loads(path.read_text())
        if not kept["votes"]:
            continue
        with safe_open(path.parent / votes.PAIRS, framework="pt") as file:
            captions, sides = json.loads(file.metadata()["captions"]), file.get_tensor("a_left").bool().tolist()
        for pair, (vote, caption, left) in enumerate(zip(kept["votes"], captions, sides, strict=False)):
            score = votes.SCORES[vote]
            row = {"voter": kept["voter"], "pair": pair, "vote": vote, "caption": caption}
            rows.append(row | {"a_is": "left" if left else "right", "score": score if left else 1 - score})
    if not rows:
        raise InputError(f"{folder}: nobody has voted yet")
    return pd.DataFrame(rows)


def preference(rows: pd.DataFrame) -> Interval:
    """The share of votes for model a, and its 95% interval for other voters and other captions.

    Scores are a mean, an effect of the voter, one of the caption, and the rest: a mixed model with crossed effects.
    With e a score less the mean and N votes, the variance of the mean is, by moments,

        V = [sum over voters (sum e)^2 + sum over captions (sum e)^2 - sum e^2] / N^2,

    the sums over groups times n / (n - 1), and never less than one of the three; Student's t with as many degrees of
    freedom as there are voters or captions, whichever are fewer, less one.
    """
    groups, error = [rows["voter"], rows["caption"]], rows["score"] - rows["score"].mean()
    counts = [group.nunique() for group in groups]
    if min(counts) < 2:
        raise InputError(f"{counts[0]} voters on {counts[1]} captions: an interval for others needs two of each")
    parts = [n / (n - 1) * error.groupby(group).sum().pow(2).sum() for group, n in zip(groups, counts, strict=True)]
    alone = error.pow(2).sum()
    total = max(sum(parts) - alone, *parts, alone)
    mean, half = rows["score"].mean(), student(min(counts) - 1) * math.sqrt(total) / len(rows)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def simulated(
    voters: int,
    captions: int,
    pairs: int,
    *,
    taste: float,
    of_voters: float,
    of_captions: float,
    generator: torch.Generator,
) -> pd.DataFrame:
    """Votes of people who do not exist: log odds for model a are a common taste, a voter's own and a caption's."""
    own, texts = (
        of_voters * torch.randn(voters, generator=generator),
        of_captions * torch.randn(captions, generator=generator),
    )
    rows = []
    for voter, effect in enumerate(own):
        seen = torch.randperm(captions, generator=generator)[:pairs]
        wins = torch.rand(len(seen), generator=generator) < torch.sigmoid(taste + effect + texts[seen])
        rows += [{"voter": voter, "caption": k, "score": float(w)} for k, w in zip(seen.tolist(), wins, strict=True)]
    return pd.DataFrame(rows)


def coverage(studies: int, *, taste: float, of_voters: float, generator: torch.Generator, **how: Any) -> dict:
    """How simulated studies of a known taste come out: the true share, how many intervals hold it or exclude 1/2."""
    how |= {"taste": taste, "of_voters": of_voters, "generator": generator}
    spread = math.hypot(of_voters, how["of_captions"])
    truth = torch.sigmoid(taste + spread * torch.randn(200_000, generator=generator)).mean().item()
    found = [preference(simulated(**how)) for _ in range(studies)]
    held = sum(low <= truth <= high for _, low, high in found) / studies
    decided = sum(low > 0.5 or high < 0.5 for _, low, high in found) / studies
    mean = sum(value for value, _, _ in found) / studies
    return {"truth": truth, "mean": mean, "held": held, "decided": decided, "studies": studies}
