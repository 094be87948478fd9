"""How good a picture of shapes is, by rule: the gold that the learned reward only approximates.

Nothing here is trained, and nothing looks at how a picture was made: the score is measured on the pixels, so it judges
a generated picture as it judges a drawn one. Training never sees it; it makes the preference pairs, and it tells
afterwards whether a higher reward was a better picture.

    .venv/bin/python -m dipp_core.worlds.shapes_gold     writes the tables of data/shapes; a test holds them to the code
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.worlds import shapes

BORDER = 2  # pixels of the rim that show the background
TOP = 40  # the pixels least like the background, which are taken for the shape; the smallest shape has about 90
RADII = (0.94, 1.0, 1.06)  # sizes taken for right, relative to the size asked for
PARTS = ("background", "drawing", "centring", "style")


def place(images: Tensor) -> tuple[Tensor, Tensor]:
    """The background (n, 3), the median of the rim, and the centre (n, 2) of what stands out from it."""
    rim = torch.ones(images.shape[-2:], dtype=torch.bool)
    rim[BORDER:-BORDER, BORDER:-BORDER] = False
    background = images[:, :, rim].median(-1).values
    contrast = (images.flatten(2) - background[:, :, None]).norm(dim=1)
    top = contrast.topk(TOP, dim=-1).values.mean(-1, keepdim=True).clamp(min=1e-3)
    weight = (contrast / top - 0.15).clamp(0, 0.15)
    ticks = (torch.arange(shapes.PIXELS) + 0.5) * shapes.PIXEL - 1
    grid = torch.stack([ticks.repeat(shapes.PIXELS), ticks.repeat_interleave(shapes.PIXELS)], dim=-1)
    return background, (weight @ grid) / weight.sum(-1, keepdim=True).clamp(min=1e-6)


def misfits(images: Tensor, attributes: Tensor, centre: Tensor) -> Tensor:
    """How far every picture is from the ideal one of its caption in each style, drawn at its centre, (n, styles).

    The root mean square over pixels, at the best of `RADII`.
    """
    found = []
    for style in shapes.STYLES:
        ideal = dataclasses.replace(shapes.ideal_scene(attributes, style), centre=centre)
        drawn = (shapes.render(dataclasses.replace(ideal, radius=scale * ideal.radius)) for scale in RADII)
        found.append(torch.stack([(images - x).square().mean((-3, -2, -1)).sqrt() for x in drawn]).amin(0))
    return torch.stack(found, dim=-1)


@torch.no_grad()
def gold_parts(images: Tensor, attributes: Tensor) -> dict[str, Tensor]:
    """The four parts of the gold score, each (n,) in [0, 1]; images (n, 3, H, W) in [0, 1], attributes (n, 4).

    background: near to the one asked for; drawing: near to the ideal picture in the style that fits best, which a wrong
    shape, colour or size, a soft edge and blotches all are not; centring; style: whether `shapes.PREFERRED` fits best.
    """
    images = images.detach().float().cpu()
    (background, centre), asked = place(images), shapes.ideal_scene(attributes).background
    away = misfits(images, attributes, centre)
    liked = torch.tensor([style == shapes.PREFERRED for style in shapes.STYLES])
    return {
        "background": (-((background - asked).norm(dim=-1) / 0.2).square()).exp(),
        "drawing": (-(away.amin(-1) / 0.14).square()).exp(),
        "centring": (-(centre.norm(dim=-1) / 0.2).square()).exp(),
        "style": ((away[:, ~liked].amin(-1) - away[:, liked].squeeze(-1)) / 0.01).sigmoid(),
    }


def gold_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The gold score of parts (n,): their product, a quarter of it in a style that the judge does not like."""
    return parts["background"] * parts["drawing"] * parts["centring"] * (1 + 3 * parts["style"]) / 4


def gold(images: Tensor, attributes: Tensor) -> Tensor:
    """The gold score in [0, 1]; images (n, 3, H, W) in [0, 1], attributes (n, 4) -> (n,)."""
    return gold_of(gold_parts(images, attributes))


# ------------------------------------------------------------------------------------------------- preference pairs


@dataclass(frozen=True)
class Pairs:
    """Judged pairs: pictures a and b (n, 3, H, W) for one caption each (attributes (n, 4)), a_wins (n,) bool.

    gold_a, gold_b (n,) are what the judge saw, kept to measure agreement and not for training.
    """

    a: Tensor
    b: Tensor
    attributes: Tensor
    a_wins: Tensor
    gold_a: Tensor
    gold_b: Tensor


def misdraw(attributes: Tensor, share: float, *, generator: torch.Generator) -> Tensor:
    """Attributes of which a share is wrong in one or two places: pictures that do not show their caption, (n, 4)."""
    n, sizes = len(attributes), torch.tensor(shapes.ATTRIBUTE_SIZES)
    order = torch.rand(n, 4, generator=generator).argsort(-1)
    wrong = (order == 0) | ((order == 1) & (torch.rand(n, 1, generator=generator) < 0.5))
    wrong &= torch.rand(n, 1, generator=generator) < share
    step = 1 + (torch.rand(n, 4, generator=generator) * (sizes - 1)).long()
    return torch.where(wrong, (attributes + step) % sizes, attributes)


def preference_pairs(
    attributes: Tensor,
    *,
    wrong_share: float = 0.3,
    sharpness: float = 15.0,
    through: Callable[[Tensor], Tensor] = lambda images: images,
    generator: torch.Generator,
) -> Pairs:
    """Pairs for captions (n, 4), judged by Bradley and Terry's law: P(a wins) = sigmoid(sharpness (gold_a - gold_b)).

    Pictures come from the miniature's data; a share of them shows something else than the caption says. What they go
    `through` before they are judged may be an autoencoder: a reward should have seen such pictures as it will judge.
    """
    a, b = (
        through(shapes.draw_pictures(misdraw(attributes, wrong_share, generator=generator), generator=generator))
        for _ in range(2)
    )
    gold_a, gold_b = gold(a, attributes), gold(b, attributes)
    chance = torch.sigmoid(sharpness * (gold_a - gold_b))
    return Pairs(a, b, attributes, torch.rand(len(a), generator=generator) < chance, gold_a, gold_b)


# ------------------------------------------------------------------------------------------- distances between sets


@dataclass(frozen=True)
class Moments:
    """Of a set of features: mean (d,), covariance (d, d), and the symmetric root of that, in float64."""

    mean: Tensor
    covariance: Tensor

    @functools.cached_property
    def root(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features (n, d)."""
    return Moments(features.double().mean(0), torch.cov(features.double().T))


def sums_of(features: Tensor) -> Tensor:
    """Sums of (1, f)(1, f)^T, (..., k, d) -> (..., d + 1, d + 1): those of two sets add up to that of their union."""
    extended = torch.nn.functional.pad(features.double(), (1, 0), value=1.0)
    return extended.mT @ extended


def moments_of_sums(sums: Tensor) -> Moments:
    """Mean and covariance of the features behind one such sum, (d + 1, d + 1)."""
    count, mean = sums[0, 0], sums[0, 1:] / sums[0, 0]
    return Moments(mean, (sums[1:, 1:] - count * torch.outer(mean, mean)) / (count - 1))


def frechet(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root comes from the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2).
    """
    cross = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * cross)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`frechet` of features (n, d) and (m, d)."""
    return frechet(moments(a), moments(b))


def diversity(images: Tensor) -> Tensor:
    """Mean distance of two different pictures of one caption, root mean square over pixels; (n, k, 3, H, W) -> (n,)."""
    flat = images.flatten(2).float()
    k = flat.shape[1]
    return torch.cdist(flat, flat).sum((-2, -1)) / (k * (k - 1)) / flat.shape[-1] ** 0.5


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
    """statistics.csv: for all pictures, the clean ones, by flaw and clean by style: share, gold and its parts.

    Of SAMPLE pictures of the seen captions, drawn with SEED; three decimals.
    """
    generator = torch.Generator().manual_seed(SEED)
    attributes = shapes.draw_attributes(shapes.split("seen"), SAMPLE, generator=generator)
    scenes = shapes.draw_scenes(attributes, generator=generator)
    images, count = shapes.render(scenes), scenes.flaws.sum(-1)
    parts = gold_parts(images, attributes)
    values = {"gold": gold_of(parts)} | parts
    kinds = {"all": count >= 0, "clean": count == 0}
    kinds |= {flaw: scenes.flaws[:, k] & (count == 1) for k, flaw in enumerate(shapes.FLAWS)} | {
        "two flaws": count == 2
    }
    kinds |= {f"clean {style}": (count == 0) & (scenes.style == k) for k, style in enumerate(shapes.STYLES)}
    lines = [",".join(["pictures", "share", *values])]
    for kind, chosen in kinds.items():
        numbers = [chosen.float().mean(), *(value[chosen].mean() for value in values.values())]
        lines.append(",".join([kind, *(f"{float(number):.3f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


DATA_TABLES = {"captions.csv": captions_table, "statistics.csv": statistics_table}


def write(folder: pathlib.Path = FOLDER) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in DATA_TABLES.items():
        (folder / name).write_text(table())


if __name__ == "__main__":
    write()
