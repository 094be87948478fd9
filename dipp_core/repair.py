"""Mend the wheels of the lock that do not work as published; does nothing where nothing is broken.

1. hpsv2's wheel lacks the vocabulary of its open_clip: clip-anytorch carries the byte-identical file.
2. PyPI's Linux torchvision is a CUDA build. Beside CPU torch its import dies ("operator torchvision::nms does not
   exist") and takes diffusers and transformers with it: then, and only then, a start-up hook declares the schemas.
3. hpsv2's open_clip imports a name from `turtle` that it never uses and so fails on a Python without Tk: that line
   goes.

Run it with the environment's own python after `pip install -r requirements.lock`: `python dipp_core/repair.py`.
`make` does so by itself.
"""

import hashlib
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import sysconfig

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

IMPORT_HOOK = '''\
"""torchvision (CUDA build) beside CPU torch: declare the operator schemas its import asks for. Written by dipp_core."""

import importlib.abc
import importlib.machinery
import sys

_kept = []


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Stays until the import: before that, transformers only asks whether torchvision could be found."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
'''


def package_folder(name):
    spec = importlib.util.find_spec(name)
    return pathlib.Path(spec.origin).parent if spec and spec.origin else None


def repair():
    hpsv2, clip = package_folder("hpsv2"), package_folder("clip")
    if hpsv2 and not clip:
        sys.exit("hpsv2 needs clip-anytorch: install requirements.lock as it is")
    if hpsv2 and not (hpsv2 / "src/open_clip" / VOCABULARY).exists():
        vocabulary = clip / VOCABULARY
        if hashlib.sha256(vocabulary.read_bytes()).hexdigest() != VOCABULARY_SHA256:
            sys.exit(f"{vocabulary} is not the expected vocabulary; reinstall clip-anytorch")
        shutil.copyfile(vocabulary, hpsv2 / "src/open_clip" / VOCABULARY)
        print("hpsv2: its missing vocabulary was put in place")
    factory, unused = hpsv2 and hpsv2 / "src/open_clip/factory.py", b"from turtle import forward\n"
    if factory and unused in factory.read_bytes():
        new = factory.with_name("factory.py.new")  # a new file: the installed one may be a hard link into a cache
        new.write_bytes(factory.read_bytes().replace(unused, b""))
        new.replace(factory)
        print("hpsv2: an unused import of turtle, which needs Tk, was removed")
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    if "torchvision::nms does not exist" in probe.stderr:
        site = pathlib.Path(sysconfig.get_paths()["purelib"])
        (site / "_dipp_torchvision_cpu.py").write_text(IMPORT_HOOK)
        (site / "_dipp_torchvision_cpu.pth").write_text("import _dipp_torchvision_cpu\n")
        subprocess.run([sys.executable, "-c", "import transformers, torchvision.transforms.v2"], check=True)
        print("torchvision: made importable beside CPU torch")


if __name__ == "__main__":
    repair()
