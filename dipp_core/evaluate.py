"""Drawing and scoring from the command line, killed and resumed at any time, shared by processes.

    .venv/bin/python -m dipp_core.evaluate draw MODEL LIST [--shard 0/4] [--scale full]     the pictures of a model
    .venv/bin/python -m dipp_core.evaluate score MODEL LIST [--shard 0/4] [--scale full]    what all judges say of them

MODEL is a row of `models` in the section `evaluation` of params.yaml, LIST a list of prompts. Notebook 40 finds what
was made, under .work/pictures, and goes on with what is missing.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from dipp_core.book import config
from dipp_core.book.report import find_folder
from dipp_core.evaluation import draw, prompt_lists, score
from dipp_core.files import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m dipp_core.evaluate", description="Draw and score.")
    parser.add_argument("what", choices=["draw", "score"])
    parser.add_argument("model", metavar="MODEL", help="a row of `models` in the section evaluation of params.yaml")
    parser.add_argument("list", metavar="LIST", help=f"one of {', '.join(prompt_lists.LISTS)}")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="this process's part of N, from 0/N to N-1/N")
    parser.add_argument("--scale", default="full", choices=config.SCALES)
    given = parser.parse_args(arguments)
    try:
        p: Any = config.section("40_evaluation", {"scale": given.scale})
        if given.model not in p.models:
            raise InputError(f"there is no model {given.model!r} in params.yaml; known are {', '.join(p.models)}")
        prompts, seeds = prompt_lists.read(given.list, per_group=p.per_group), list(range(p.seed, p.seed + p.each))
        folder, shard = score.place(given.model, given.list), draw.read_shard(given.shard)
        how = {"batch": p.batch, "shard": shard, "device": score.device_of(p.device), "progress": tqdm}
        if given.what == "draw":
            sampler = draw.samplers(p.models, functools.partial(find_folder, scale=p.scale))[given.model]
            print(f"{folder}: {draw.generate(folder, sampler, prompts, seeds, **how)} pictures drawn")
        else:
            for name, why in score.score_all(folder, p.judges, prompts, seeds, **how).items():
                print(f"{name}: {score.NOT_RUN}: {why}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
