"""The prompt lists and statistics of the miniature, as the small files of data/shapes.

python -m dipp_core.worlds.shapes_tables        (writes them again; a test holds the files to the code)
"""

import pathlib

import torch

from dipp_core.worlds import shapes, shapes_gold

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "data/shapes"
SAMPLE, SEED = 2000, 0


def captions_table() -> str:
    """captions.csv: split, shape, colour, background, size and the caption in its three phrasings."""
    lines = [",".join(["split", *shapes.ATTRIBUTES, *(name.replace(" ", "_") for name in shapes.PHRASINGS)])]
    for name in shapes.SPLITS:
        for row in shapes.split(name).tolist():
            values = [kinds[index] for kinds, index in zip(shapes.ATTRIBUTES.values(), row, strict=True)]
            lines.append(",".join([name, *values, *(shapes.caption(row, phrasing) for phrasing in shapes.PHRASINGS)]))
    return "\n".join(lines) + "\n"


def statistics_table() -> str:
    """statistics.csv: for all pictures, the clean ones and those with one flaw only: share, gold and its parts.

    Of SAMPLE pictures of the seen captions, drawn with SEED; three decimals.
    """
    generator = torch.Generator().manual_seed(SEED)
    attributes = shapes.draw_attributes(shapes.split("seen"), SAMPLE, generator=generator)
    scenes = shapes.draw_scenes(attributes, generator=generator)
    images, count = shapes.render(scenes), scenes.flaws.sum(-1)
    values = {"gold": shapes_gold.gold(images, attributes)} | shapes_gold.gold_parts(images, attributes)
    kinds = {"all": count >= 0, "clean": count == 0}
    kinds |= {flaw: scenes.flaws[:, k] & (count == 1) for k, flaw in enumerate(shapes.FLAWS)} | {
        "two flaws": count == 2
    }
    lines = [",".join(["pictures", "share", *values])]
    for kind, chosen in kinds.items():
        numbers = [chosen.float().mean(), *(value[chosen].mean() for value in values.values())]
        lines.append(",".join([kind, *(f"{float(number):.3f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


TABLES = {"captions.csv": captions_table, "statistics.csv": statistics_table}


def write(folder: pathlib.Path = FOLDER) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in TABLES.items():
        (folder / name).write_text(table())


if __name__ == "__main__":
    write()
