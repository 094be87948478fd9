"""FID: what is asked of the library, and one line where it, its weights or the pictures are missing."""

import sys
import types

import numpy as np
import PIL.Image
import pytest
import torch

from dipp_core.evaluation import fid
from dipp_core.evaluation.fid import FidError


def pictures(folder, count, mean, size=(12, 10), seed=0):
    """Pictures of noise around a grey."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for k in range(count):
        values = random.normal(255 * mean, 30, (*size, 3)).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(values).save(folder / f"{k:03d}.png")
    return sorted(folder.glob("*.png"))


class Recorder:
    """In place of the library's class: keeps what it is given, answers with a number."""

    def __init__(self, feature, normalize):
        self.given, self.feature = {True: [], False: []}, feature
        assert normalize is False

    def to(self, device):
        return self

    def update(self, images, real):
        self.given[real].append(images)

    def compute(self):
        assert all(part.dtype == torch.uint8 for parts in self.given.values() for part in parts)
        real, drawn = (torch.cat(self.given[key]).float() for key in (True, False))
        assert real.shape[1:] == drawn.shape[1:] == (3, 10, 10)
        assert (len(real), len(drawn)) == (7, 5)
        return (real.mean() - drawn.mean()).square()


def test_both_sets_reach_the_library_as_squares_of_eight_bits(tmp_path, monkeypatch):
    library = types.SimpleNamespace(FrechetInceptionDistance=Recorder)
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", library)
    pictures(tmp_path / "reference", 7, 0.7, size=(20, 31), seed=1)
    drawn = pictures(tmp_path / "drawn", 5, 0.3)
    found = fid.fid(drawn, tmp_path / "reference", batch=3)
    assert found == pytest.approx((0.4 * 255) ** 2, rel=0.05)


def test_the_library_itself_with_features_of_our_own(tmp_path):
    """Mean colours as features: Gaussians of equal covariance are as far as their means, squared."""
    pytest.importorskip("torchmetrics")

    class Colours(torch.nn.Module):
        def forward(self, images):
            return images.double().mean((2, 3)) / 255

    pictures(tmp_path / "reference", 40, 0.7, seed=1)
    drawn = pictures(tmp_path / "drawn", 40, 0.3)
    found = fid.fid(drawn, tmp_path / "reference", batch=16, feature=Colours())
    assert found == pytest.approx(3 * 0.4**2, rel=0.05)


def test_without_the_library_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    pictures(tmp_path / "reference", 3, 0.7)
    drawn = pictures(tmp_path / "drawn", 3, 0.3)
    with pytest.raises(FidError, match=r"needs torchmetrics and torch-fidelity .*pip install torchmetrics") as caught:
        fid.fid(drawn, tmp_path / "reference", batch=2)
    assert "\n" not in str(caught.value)


def test_without_reference_pictures_one_line(tmp_path):
    with pytest.raises(FidError, match="holds no reference pictures: give a folder of them"):
        fid.fid([], tmp_path / "gone", batch=2)
