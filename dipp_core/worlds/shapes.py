"""The miniature's pictures, 32 x 32: a coloured shape on a plain background, its caption silent on style and quality.

A caption names four attributes, shape, colour, background and size: 192 captions. A scene adds what it leaves open:
where exactly, how large exactly, which red; in which of four styles the shape is drawn, most often flat; and, for a
stated share of the pictures, one or two of four flaws. So there are two things to prefer that no prompt asks for.
Rendering is a function of the scene alone and has no randomness.

Coordinates run from -1 to 1 in both directions, y downwards; a pixel is 2 / PIXELS wide.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

PIXELS = 32
PIXEL = 2 / PIXELS  # the width of one
STRIPE = 8 * PIXEL  # from one stripe to the next
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.86, 0.14, 0.16),
    "green": (0.14, 0.62, 0.24),
    "blue": (0.14, 0.30, 0.88),
    "yellow": (0.94, 0.84, 0.14),
    "purple": (0.56, 0.20, 0.72),
    "orange": (0.96, 0.52, 0.08),
}
BACKGROUNDS = {
    "white": (0.96, 0.96, 0.96),
    "black": (0.06, 0.06, 0.06),
    "grey": (0.60, 0.60, 0.60),
    "pink": (0.97, 0.76, 0.83),
}
SIZES = {"small": 0.42, "large": 0.68}
ATTRIBUTES = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "size": tuple(SIZES)}
ATTRIBUTE_SIZES = tuple(len(values) for values in ATTRIBUTES.values())
STYLES = {"flat": 0.4, "outlined": 0.3, "striped": 0.15, "shaded": 0.15}  # with their shares of the pictures
PREFERRED = "outlined"  # the style that the judge of `shapes_gold` likes
FLAWS = ("off centre", "washed out", "blurred", "blotchy")

# combinations of shape and colour that nothing is trained on but the attribute classifier
HELD_OUT = (("circle", "green"), ("triangle", "purple"), ("cross", "orange"))
SPLITS = ("train", "validation", "test", "held_out")
PHRASINGS = ("plain", "reordered", "unknown words")


class CaptionError(ValueError):
    """One line that says what in a caption is missing or said twice."""


# ---------------------------------------------------------------------------------------------------------- captions


def all_attributes() -> Tensor:
    """Every combination of the four attributes as indices, (192, 4), in the order of `ATTRIBUTES`."""
    return torch.tensor(list(itertools.product(*(range(n) for n in ATTRIBUTE_SIZES))))


def caption(attributes: Sequence[int] | Tensor, phrasing: str = "plain") -> str:
    """The caption of four indices, in one of three `PHRASINGS`; only the plain one is ever trained on."""
    names = (values[int(index)] for values, index in zip(ATTRIBUTES.values(), attributes, strict=True))
    shape, colour, background, size = names
    if phrasing == "plain":
        return f"a {size} {colour} {shape} on a {background} background"
    if phrasing == "reordered":
        return f"on a {background} background a {colour} {shape} {size}"
    if phrasing == "unknown words":
        return f"a {size} shiny {colour} {shape} on a calm {background} background"
    raise ValueError(f"unknown phrasing {phrasing!r}: one of {', '.join(PHRASINGS)}")


def captions(attributes: Tensor, phrasing: str = "plain") -> list[str]:
    """The captions of indices (n, 4)."""
    return [caption(row, phrasing) for row in attributes.tolist()]


def parse(text: str) -> tuple[int, int, int, int]:
    """The four indices that a caption names, whatever the order of its words and whatever words it adds."""
    words, found = text.lower().replace(",", " ").split(), []
    for name, values in ATTRIBUTES.items():
        named = [word for word in words if word in values]
        if len(named) != 1:
            what = f"names the {name} {len(named)} times ({', '.join(named)})" if named else f"names no {name}"
            raise CaptionError(f"the caption {text!r} {what}; it must name one of {', '.join(values)}")
        found.append(values.index(named[0]))
    shape, colour, background, size = found
    return shape, colour, background, size


def vocabulary() -> list[str]:
    """The words of the plain captions, sorted."""
    return sorted({word for row in all_attributes() for word in caption(row).split()})


def split_of(attributes: Sequence[int] | Tensor) -> str:
    """Which of `SPLITS` a combination belongs to.

    Held out are whole combinations of shape and colour. Of each other one, backgrounds and sizes make eight captions:
    one for validation, two for test, five for training, shifted from one to the next so that none gathers in a split.
    """
    shape, colour, background, size = (int(index) for index in attributes)
    held_out = [(SHAPES.index(s), tuple(COLOURS).index(c)) for s, c in HELD_OUT]
    if (shape, colour) in held_out:
        return "held_out"
    place = (2 * background + size + shape * len(COLOURS) + colour) % 8
    return {0: "validation", 3: "test", 6: "test"}.get(place, "train")


def split(name: str) -> Tensor:
    """The combinations of a split, (n, 4), or of "seen": all but those held out."""
    if name not in (*SPLITS, "seen"):
        raise ValueError(f"unknown split {name!r}: one of {', '.join(SPLITS)}, seen")
    names = ("train", "validation", "test") if name == "seen" else (name,)
    return torch.stack([row for row in all_attributes() if split_of(row) in names])


def draw_attributes(rows: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """`count` combinations drawn evenly from rows (n, 4)."""
    return rows[torch.randint(len(rows), (count,), generator=generator)]


# ------------------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True)
class Scene:
    """All that n pictures depend on.

    attributes (n, 4), style (n,): which of `STYLES`, centre (n, 2), radius (n,), colour (n, 3), background (n, 3),
    edge (n,): its width in pixels, blotches (n, 3, 9, 9): colour added on a coarse grid, flaws (n, 4): which of `FLAWS`
    the picture has.
    """

    attributes: Tensor
    style: Tensor
    centre: Tensor
    radius: Tensor
    colour: Tensor
    background: Tensor
    edge: Tensor
    blotches: Tensor
    flaws: Tensor

    def __len__(self) -> int:
        return len(self.attributes)

    def pick(self, index: Tensor | slice) -> "Scene":
        """Some of the scenes."""
        return Scene(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def ideal_scene(attributes: Tensor, style: str = "flat") -> Scene:
    """The scene that a caption describes, with nothing left to chance and nothing wrong; attributes (n, 4)."""
    n, (_, colour, background, size) = len(attributes), attributes.unbind(-1)
    return Scene(
        attributes=attributes,
        style=torch.full((n,), tuple(STYLES).index(style)),
        centre=torch.zeros(n, 2),
        radius=torch.tensor(tuple(SIZES.values()))[size],
        colour=torch.tensor(tuple(COLOURS.values()))[colour],
        background=torch.tensor(tuple(BACKGROUNDS.values()))[background],
        edge=torch.ones(n),
        blotches=torch.zeros(n, 3, 9, 9),
        flaws=torch.zeros(n, len(FLAWS), dtype=torch.bool),
    )


def draw_flaws(count: int, *, clean_share: float, generator: torch.Generator) -> Tensor:
    """Which flaws `count` pictures have, (count, 4): none for the clean share, else one or two, evenly."""
    order = torch.rand(count, len(FLAWS), generator=generator).argsort(-1)
    flawed = torch.rand(count, 1, generator=generator) >= clean_share
    twice = torch.rand(count, 1, generator=generator) < 0.5
    return flawed & ((order == 0) | ((order == 1) & twice))


def draw_scenes(attributes: Tensor, *, clean_share: float = 0.4, generator: torch.Generator) -> Scene:
    """Scenes for attributes (n, 4): small variations always, flaws in all but the clean share."""
    ideal, n = ideal_scene(attributes), len(attributes)
    flaws = draw_flaws(n, clean_share=clean_share, generator=generator)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    off, washed, blurred, blotchy = flaws.unbind(-1)
    style = torch.multinomial(torch.tensor(tuple(STYLES.values())), n, replacement=True, generator=generator)
    angle, shift = uniform(0, 2 * math.pi), torch.where(off, uniform(0.3, 0.45), uniform(0.0, 0.06))
    colour = (ideal.colour + uniform(-0.04, 0.04, 3)).clamp(0, 1)
    grey = (colour @ torch.tensor([0.30, 0.59, 0.11]))[:, None]
    washed_out = torch.where(washed, uniform(0.5, 0.75), 0.0)[:, None]
    strength = torch.where(blotchy, uniform(0.07, 0.12), 0.0)[:, None, None, None]
    return Scene(
        attributes=attributes,
        style=style,
        centre=shift[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1),
        radius=ideal.radius * uniform(0.94, 1.06),
        colour=torch.lerp(colour, grey.expand_as(colour), washed_out.expand_as(colour)),
        background=(ideal.background + uniform(-0.02, 0.02, 3)).clamp(0, 1),
        edge=torch.where(blurred, uniform(4.0, 7.0), 1.0),
        blotches=strength * torch.randn(n, 3, 9, 9, generator=generator),
        flaws=flaws,
    )


# --------------------------------------------------------------------------------------------------------- rendering


def _distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance to the edge of a shape, negative inside; x (n, 1, W), y (n, H, 1), r (n, 1, 1) -> (n, H, W)."""
    wide, high = x.abs(), y.abs()
    if shape == "circle":
        return (x.square() + y.square()).sqrt() - r
    if shape == "square":
        return torch.maximum(wide, high) - 0.86 * r
    if shape == "triangle":
        return torch.maximum(0.5 * math.sqrt(3) * wide - 0.5 * y, y) - 0.625 * r
    return torch.maximum(torch.minimum(wide, high) - 0.36 * r, torch.maximum(wide, high) - r)


def distance(shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Signed distance of every pixel to the edge of a shape, negative inside; shape (n,), centre (n, 2), radius (n,).

    Of radius r: a circle; a square of side 1.72 r; an equilateral triangle of circumradius 1.25 r; a cross of length
    2 r with arms 0.72 r wide. -> (n, H, W)
    """
    ticks = (torch.arange(PIXELS) + 0.5) * PIXEL - 1
    x = ticks[None, None, :] - centre[:, 0, None, None]
    y = ticks[None, :, None] - centre[:, 1, None, None]
    found = torch.empty(len(shape), PIXELS, PIXELS)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero().squeeze(-1)
        found[rows] = _distance(name, x[rows], y[rows], radius[rows, None, None])
    return found


def coverage(distance: Tensor, edge: Tensor | float = 1.0) -> Tensor:
    """The part of every pixel that a shape covers, (n, H, W); edge in pixels. For edge = 1 a straight edge is exact."""
    width = torch.as_tensor(edge).expand(len(distance))[:, None, None] * PIXEL
    return (0.5 - distance / width).clamp(0, 1)


def _surface(scene: Scene) -> Tensor:
    """The colour of the shape at every pixel, (n, 3, H, W), by its style: plain, striped, or lit from the left top."""
    colour = scene.colour[:, :, None, None]
    ticks = (torch.arange(PIXELS) + 0.5) * PIXEL - 1
    x, y = ticks - scene.centre[:, :1], ticks - scene.centre[:, 1:]
    stripes = 0.5 + 2.0 * torch.cos(y * (2 * math.pi / STRIPE))[:, None, :, None]
    light = (-(x[:, None, None, :] + y[:, None, :, None]) / scene.radius[:, None, None, None]).clamp(-1, 1)
    bright = torch.where(style_is(scene, "striped"), 0.65 * stripes.clamp(0, 1), 0.0)
    bright = torch.where(style_is(scene, "shaded"), 0.5 * light, bright)
    return torch.where(bright > 0, colour + bright * (1 - colour), colour * (1 + bright))


def style_is(scene: Scene, name: str) -> Tensor:
    """Which pictures are drawn in a style, (n, 1, 1, 1)."""
    return (scene.style == tuple(STYLES).index(name))[:, None, None, None]


def render(scene: Scene) -> Tensor:
    """Pictures of scenes, (n, 3, PIXELS, PIXELS) in [0, 1].

    An outline runs around the shape, is two pixels wide and black, on a black background white.
    """
    to_edge = distance(scene.attributes[:, 0], scene.centre, scene.radius)
    mask, background = coverage(to_edge, scene.edge)[:, None], scene.background[:, :, None, None]
    image = background + mask * (_surface(scene) - background)
    line = coverage((to_edge - PIXEL).abs() - PIXEL, scene.edge)[:, None] * style_is(scene, "outlined")
    ink = (scene.background.mean(-1) < 0.3).float()[:, None, None, None]
    image = image + line * (0.03 + 0.94 * ink - image)
    blotches = torch.nn.functional.interpolate(scene.blotches, size=(PIXELS, PIXELS), mode="bilinear")
    return (image + blotches).clamp(0, 1)


def draw_pictures(attributes: Tensor, *, clean_share: float = 0.4, generator: torch.Generator) -> Tensor:
    """Pictures of captions with these attributes (n, 4), as the miniature's data has them."""
    return render(draw_scenes(attributes, clean_share=clean_share, generator=generator))
