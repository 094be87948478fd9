"""The Frechet inception distance of a folder of pictures to reference pictures, by the library torchmetrics.

The library is no part of the lock; without it, or without its weights, one line says how to get them. There is no
interval: a Frechet distance of prompts drawn again says more of the repetitions than of the model.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.evaluation import picture_sets
from dipp_core.evaluation.picture_sets import PictureError
from dipp_core.rewards.pixels import crop

INSTALL = "`.venv/bin/pip install torchmetrics torch-fidelity`"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
FEATURES = 2048  # of Inception's last pooling layer; a covariance of so many needs more pictures than that


class FidError(RuntimeError):
    """One line that says why there is no FID, and what to do."""


def _metric(feature: int | nn.Module) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(feature=feature, normalize=False)
    except ImportError as error:
        why = str(error).strip().splitlines()[0]
        raise FidError(
            f"FID needs torchmetrics and torch-fidelity ({why}): {INSTALL} adds them to the lock's"
        ) from None
    except OSError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FidError(f"FID needs Inception's weights, which torch-fidelity fetches ({why}): try again") from None


def _squares(paths: Sequence[pathlib.Path], size: int, batch: int) -> Iterator[Tensor]:
    """Pictures as 8-bit squares: the shorter side becomes `size`, the middle of the longer one stays."""
    for k in range(0, len(paths), batch):
        found = [crop(picture_sets.read(path)[None], size)[0] for path in paths[k : k + batch]]
        yield (torch.stack(found).clamp(0, 1) * 255).round().byte()


def reference_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """All pictures of a reference set, by name."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if len(found) < 2:
        raise FidError(f"{folder} holds no reference pictures: give a folder of them, such as COCO's val2017")
    return found


def fid(
    pictures: Sequence[pathlib.Path],
    reference: pathlib.Path,
    *,
    batch: int,
    device: str = "cpu",
    feature: int | nn.Module = FEATURES,
) -> float:
    """FID of pictures to those of a folder, all as squares of the drawn pictures' shorter side.

    feature: the layer of Inception, or another network of (B, 3, H, W) 8-bit pictures -> (B, d).
    """
    known = reference_pictures(reference)
    if len(pictures) < 2:
        raise PictureError("an FID needs pictures: draw them first")
    metric, size = _metric(feature).to(device), min(picture_sets.read(pictures[0]).shape[1:])
    for paths, real in ((known, True), (pictures, False)):
        for squares in _squares(paths, size, batch):
            metric.update(squares.to(device), real=real)
    return float(metric.compute())
