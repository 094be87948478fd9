"""A public list of training prompts, fetched at a pinned commit into models/prompts.txt.

    .venv/bin/python -m dipp_core.training.prompt_source [--out FILE] [--most N]

The list is Stable-Diffusion-Prompts by Gustavosta, about 74,000 prompts that people gave to Stable Diffusion. Its page
states no licence, and nobody has looked through it. The papers' lists differ: see params.yaml.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import pandas as pd

from dipp_core.files import InputError, first_line, from_hub, root, write_whole

NAME, COMMIT = "Gustavosta/Stable-Diffusion-Prompts", "d816d4a05cb89bde39dd99284c459801e1e7e69a"
FOLDER, COLUMN = "data", "Prompt"
FILE = f"{FOLDER}/train.parquet"


def fetch(out: pathlib.Path, most: int = 0) -> int:
    """Write the prompts, each once and one a line; returns how many. most: the first so many, 0 is all."""
    try:
        path = from_hub(NAME, COMMIT, [FILE], kind="dataset") / FILE
        texts = pd.read_parquet(path, columns=[COLUMN])[COLUMN]
    except Exception as error:
        why = f"{NAME}@{COMMIT} cannot be fetched ({type(error).__name__}: {first_line(error)})"
        raise InputError(f"{why}; try again with a network, or give a file of your own as `prompts`") from None
    lines = [line for line in dict.fromkeys(" ".join(str(text).split()) for text in texts) if line]
    lines = lines[: most or None]
    write_whole(out, "\n".join(lines) + "\n")
    return len(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m dipp_core.training.prompt_source", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=root() / "models" / "prompts.txt")
    parser.add_argument("--most", type=int, default=0, help="the first so many; default: all")
    given = parser.parse_args(arguments)
    try:
        print(f"{given.out}: {fetch(given.out, given.most):,} prompts")
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
