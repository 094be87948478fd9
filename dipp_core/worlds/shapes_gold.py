"""How good a picture of shapes is, by rule: the gold that the learned reward only approximates.

Nothing here is trained, and nothing looks at how a picture was made: the score is measured on the pixels, so it judges
a generated picture as it judges a drawn one. Training never sees it; it makes the preference pairs, and it tells
afterwards whether a higher reward was a better picture.

    .venv/bin/python -m dipp_core.worlds.shapes_gold     writes the tables of data/shapes; a test holds them to the code
"""

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.worlds import shapes

BORDER = 2  # pixels of the rim that show the background
TOP = 40  # the pixels least like the background, which are taken for the shape; the smallest shape has about 90
RADII = (0.90, 0.95, 1.0, 1.05, 1.10)  # sizes taken for right, relative to the size asked for
PARTS = ("background", "colour", "shape", "centring", "tidiness")


@dataclass(frozen=True)
class Measured:
    """What is seen in n pictures: background, colour (n, 3), mask (n, H, W), centre (n, 2), what is left over (n,)."""

    background: Tensor
    colour: Tensor
    mask: Tensor
    centre: Tensor
    error: Tensor


def measure(images: Tensor) -> Measured:
    """Background: the median of the rim. Colour: the mean where a picture is least like that. images (n, 3, H, W).

    The mask is how far a pixel lies on the way from background to colour, cut to [0, 1]; the error is the root mean
    square of what background, colour and mask together do not explain.
    """
    rim = torch.ones(images.shape[-2:], dtype=torch.bool)
    rim[BORDER:-BORDER, BORDER:-BORDER] = False
    background = images[:, :, rim].median(-1).values
    difference = images.flatten(2) - background[:, :, None]
    top = difference.norm(dim=1).topk(TOP, dim=-1).indices
    contrast = difference.gather(2, top[:, None].expand(-1, 3, -1)).mean(-1)
    power = contrast.square().sum(-1).clamp(min=1e-3)
    along = torch.einsum("ncp,nc->np", difference, contrast) / power[:, None]
    mask = along.clamp(0, 1)
    error = (difference - mask[:, None] * contrast[:, :, None]).square().sum(1).mean(-1).sqrt()
    ticks = (torch.arange(shapes.PIXELS) + 0.5) * (2 / shapes.PIXELS) - 1
    grid = torch.stack([ticks.repeat(shapes.PIXELS), ticks.repeat_interleave(shapes.PIXELS)], dim=-1)
    weight = (mask - 0.25).clamp(min=0)
    centre = (weight @ grid) / weight.sum(-1, keepdim=True).clamp(min=1e-6)
    return Measured(background, background + contrast, mask.view(-1, *images.shape[-2:]), centre, error)


def overlap(mask: Tensor, shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Intersection over union of a mask (n, H, W) with the shape asked for, at the best of `RADII`, (n,)."""
    scores = []
    for scale in RADII:
        ideal = shapes.coverage(shape, centre, scale * radius)
        union = torch.maximum(mask, ideal).sum((-2, -1))
        scores.append(torch.minimum(mask, ideal).sum((-2, -1)) / union.clamp(min=1e-6))
    return torch.stack(scores).amax(0)


@torch.no_grad()
def gold_parts(images: Tensor, attributes: Tensor) -> dict[str, Tensor]:
    """The five parts of the gold score, each (n,) in [0, 1]; images (n, 3, H, W) in [0, 1], attributes (n, 4).

    background, colour: near to the colour asked for (a washed-out one is not); shape: the overlap of `overlap` from
    0.55 to 0.90, which also falls with wrong size and soft edges; centring; tidiness: nothing but two plain colours.
    """
    ideal, seen = shapes.ideal_scene(attributes), measure(images.detach().float().cpu())
    shape = overlap(seen.mask, attributes[:, 0], seen.centre, ideal.radius)
    parts = {
        "background": (-((seen.background - ideal.background).norm(dim=-1) / 0.2).square()).exp(),
        "colour": (-((seen.colour - ideal.colour).norm(dim=-1) / 0.3).square()).exp(),
        "shape": ((shape - 0.55) / 0.35).clamp(0, 1),
        "centring": (-(seen.centre.norm(dim=-1) / 0.2).square()).exp(),
        "tidiness": (-(seen.error / 0.12).square()).exp(),
    }
    return {name: parts[name] for name in PARTS}


def gold(images: Tensor, attributes: Tensor) -> Tensor:
    """The gold score in [0, 1]: half the mean of its five parts, half the worst of them, since one flaw spoils it all.

    images (n, 3, H, W) in [0, 1], attributes (n, 4) -> (n,).
    """
    parts = torch.stack(tuple(gold_parts(images, attributes).values()))
    return (parts.mean(0) + parts.amin(0)) / 2


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
    sharpness: float = 6.0,
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
    """statistics.csv: for all pictures, the clean ones and those with one flaw only: share, gold and its parts.

    Of SAMPLE pictures of the seen captions, drawn with SEED; three decimals.
    """
    generator = torch.Generator().manual_seed(SEED)
    attributes = shapes.draw_attributes(shapes.split("seen"), SAMPLE, generator=generator)
    scenes = shapes.draw_scenes(attributes, generator=generator)
    images, count = shapes.render(scenes), scenes.flaws.sum(-1)
    values = {"gold": gold(images, attributes)} | gold_parts(images, attributes)
    kinds = {"all": count >= 0, "clean": count == 0}
    kinds |= {flaw: scenes.flaws[:, k] & (count == 1) for k, flaw in enumerate(shapes.FLAWS)} | {
        "two flaws": count == 2
    }
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
