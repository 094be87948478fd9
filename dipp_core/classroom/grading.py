"""How an answer is judged: asked at several points, compared with what is right, and with the usual mistakes.

A checker takes the reader's answers and returns a sentence of praise; it raises `Open` where nothing is answered yet,
and `Wrong`, with what is wrong and where to look, otherwise. Whatever the reader's code raises becomes one line.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Judged = tuple[Any, dict[str, Any]]  # what is right; and what comes out with a mistake, under what to say about it
Formula = Callable[..., Judged]


class Open(Exception):
    """There is no answer yet."""


class Wrong(Exception):
    """What is wrong with an answer, and where to look."""


def missing(value: Any) -> bool:
    """Whether a value still is a place to fill in: `...`, NotImplemented, None, or a collection that holds one."""
    if isinstance(value, Mapping):
        return any(map(missing, value.values()))
    if isinstance(value, tuple | list):
        return any(map(missing, value))
    return value is None or value is NotImplemented or value is Ellipsis


def ask(function: Any, *arguments: Any) -> Any:
    """The reader's function at these arguments; an error in it is told in one line."""
    if missing(function):
        raise Open
    if not callable(function):
        raise Wrong(f"The answer is to be a function, not a {type(function).__name__}: its name, without brackets.")
    name = getattr(function, "__name__", "the function")
    try:
        value = function(*arguments)
    except NotImplementedError:
        raise Open from None
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        text = text if len(text) <= 160 else text[:160] + ".."
        raise Wrong(f"{name} stopped with {type(error).__name__}: {text}{_place(error)}") from None
    if missing(value):
        raise Open
    return value


def _place(error: BaseException) -> str:
    """The reader's own line in which an error arose, where it is known."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if "dipp_core" not in frame.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f" (in your line `{own[-1].line}`)" if own and own[-1].line else ""


def tensor(value: Any, shape: Sequence[int], name: str) -> Tensor:
    """A value as a float64 tensor of a shape, from whatever holds as many numbers; detached."""
    shape = tuple(shape)
    try:
        if isinstance(value, tuple | list):
            value = torch.stack([torch.as_tensor(part).detach().double() for part in value])
        found = torch.as_tensor(value).detach().double().cpu()
    except Exception:
        raise Wrong(f"{name} is a {type(value).__name__}, where numbers of the shape {shape} are wanted.") from None
    if found.shape != shape and [n for n in found.shape if n > 1] != [n for n in shape if n > 1]:
        raise Wrong(f"{name} has the shape {tuple(found.shape)}, wanted is {shape}.")
    if not found.isfinite().all():
        raise Wrong(f"{name} is not finite (nan or inf) at points where it should be.")
    return found.reshape(shape)


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to a share of the largest entry, and of every entry where they are of very different size."""
    scale = wanted.abs().max().clamp(min=1e-12)
    return bool(((found - wanted).abs() <= 1e-4 * (0.1 * scale + wanted.abs())).all())


FACTORS = {
    -1.0: "the negative of it: a sign",
    2.0: "twice as large",
    0.5: "half of it",
    -2.0: "twice as large, with the wrong sign",
    -0.5: "minus half",
}


def compare(name: str, found: Tensor, wanted: Tensor, mistakes: Mapping[str, Tensor]) -> None:
    """Nothing if equal; else `Wrong`, with the text of the first mistake that gives what was found."""
    if close(found, wanted):
        return
    for text, value in mistakes.items():
        if close(found, value):
            raise Wrong(text)
    if close(found, torch.zeros_like(found)):
        raise Wrong(f"{name} is 0 everywhere.")
    ratio = float((found * wanted).sum() / wanted.square().sum())
    if close(found, ratio * wanted):
        factor = next((text for value, text in FACTORS.items() if abs(ratio - value) < 1e-4), f"{ratio:.3g} times that")
        raise Wrong(f"{name} is right up to a factor: yours is {factor}. Look for what is constant in it.")
    worst = int(((found - wanted).abs() / (wanted.abs() + 0.1 * wanted.abs().max())).argmax())
    here, there = float(found.flatten()[worst]), float(wanted.flatten()[worst])
    raise Wrong(f"{name} is {here:.4g} at a point where it should be {there:.4g}, and the error is not a mere factor.")


def agree(name: str, found: Sequence[Tensor], wanted: Sequence[Judged]) -> None:
    """`compare` over all points at once: what was found, and what a formula gives, at each."""
    mistakes = {text: _join([wrong[text] for _, wrong in wanted]) for text in wanted[0][1]}
    compare(name, _join(found), _join([right for right, _ in wanted]), mistakes)


def settle(function: Any, points: Sequence[tuple], outputs: Mapping[str, Formula], call: str) -> None:
    """Compare the outputs of a function, by name, with formulas of the same arguments. More than one are a tuple."""
    values = [ask(function, *point) for point in points]
    if len(outputs) == 1:
        values = [(value,) for value in values]
    for value in values:
        if not isinstance(value, tuple | list) or len(value) != len(outputs):
            raise Wrong(f"{call} is to return {len(outputs)} things, ({', '.join(outputs)}).")
    for index, (name, formula) in enumerate(outputs.items()):
        wanted = [formula(*point) for point in points]
        shapes = [torch.as_tensor(right).shape for right, _ in wanted]
        found = [tensor(value[index], shape, name) for value, shape in zip(values, shapes, strict=True)]
        agree(name, found, wanted)


def _join(values: Sequence[Any]) -> Tensor:
    return torch.cat([torch.as_tensor(value).detach().double().flatten() for value in values])


def rng(seed: int) -> torch.Generator:
    """The points at which an exercise is asked are the same every time."""
    return torch.Generator().manual_seed(1000 + seed)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pull(function: Any, x0: Tensor, *arguments: Tensor) -> Tensor:
    """The gradient at x0 (B, d) of a loss (B,) that the reader's function makes of tensors with graphs on x0."""
    values, name = ask(function, *arguments), getattr(function, "__name__", "the function")
    if not isinstance(values, Tensor):
        raise Wrong(f"{name} is to return a tensor, not a {type(values).__name__}.")
    if values.shape == x0.shape:
        raise Wrong(f"{name} gives a value per coordinate: sum over the sample, so that a scalar product is left.")
    if values.shape != x0.shape[:1]:
        raise Wrong(f"{name} is to give one value per sample, shape {tuple(x0.shape[:1])}, not {tuple(values.shape)}.")
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), x0, allow_unused=True, retain_graph=True)
        if gradient is not None:
            return gradient
    raise Wrong("No gradient reaches the generator: xt is detached. It is the one thing that must carry gradient.")
