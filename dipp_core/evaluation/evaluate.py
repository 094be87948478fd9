"""Drawing and scoring from the command line, killed and resumed at any time, shared by processes.

    python -m dipp_core.evaluation.evaluate draw MODEL LIST [--shard 0/4] [--scale full]     the pictures of a model
    python -m dipp_core.evaluation.evaluate score MODEL LIST [--shard 0/4] [--scale full]    what all judges say of them

MODEL is a row of `models` in the section `evaluation` of params.yaml, LIST a list of prompts. Notebook 40 finds what
was made, under .work/pictures, and goes on with what is missing.
"""

import argparse
import sys
from collections.abc import Sequence

from dipp_core.book import config
from dipp_core.book.saved import SavedRunError
from dipp_core.evaluation import evaluation, generation, picture_sets, pipelines, prompt_lists
from dipp_core.files import InputError

ERRORS = (
    picture_sets.PictureError,
    prompt_lists.PromptError,
    InputError,
    SavedRunError,
    config.ConfigError,
)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dipp_core.evaluation.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", choices=["draw", "score"])
    parser.add_argument("model", metavar="MODEL", help="a row of `models` in the section evaluation of params.yaml")
    parser.add_argument("list", metavar="LIST", help=f"one of {', '.join(prompt_lists.LISTS)}")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="this process's part of N, from 0/N to N-1/N")
    parser.add_argument("--scale", default="full", choices=config.SCALES)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    from tqdm import tqdm

    given = _arguments(arguments)
    try:
        p = config.section("40_evaluation", {"scale": given.scale})
        if given.model not in p.models:
            raise config.ConfigError(
                f"there is no model {given.model!r} in params.yaml; known are {', '.join(p.models)}"
            )
        prompts = prompt_lists.read(given.list, per_group=p.per_group)
        seeds, folder = list(range(p.seed, p.seed + p.each)), evaluation.place(given.model, given.list)
        options = {
            "batch": p.batch,
            "shard": picture_sets.read_shard(given.shard),
            "device": evaluation.device_of(p.device),
        }
        if given.what == "draw":
            sampler = pipelines.from_rows(p.models, scale=p.scale)[given.model]
            count = generation.generate(folder, sampler, prompts, seeds, scale=p.scale, progress=tqdm, **options)
            print(f"{folder}: {count} pictures drawn")
        else:
            not_run = evaluation.score_all(folder, p.judges, prompts, seeds, progress=tqdm, **options)
            for name, why in not_run.items():
                print(f"{name}: {evaluation.NOT_RUN}: {why}")
    except ERRORS as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
