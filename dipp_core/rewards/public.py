"""The public scorers of text-to-image: ImageReward, HPSv2, PickScore, CLIPScore, the aesthetic predictor.

Each is found in a folder or by a pinned hub id, opened as weights only, and asked with tensors, differentiably; the
tests compare it with the official package on Pillow's pictures. Every flaw of a file is one line: which file, what is
wrong, what to do. Nothing is fetched unless a hub id is given.
"""

import contextlib
import functools
import importlib
import json
import logging
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dipp_core.files import HF, InputError, first_line, from_hub, placed
from dipp_core.rewards.judge import About, Judge, OwnReward, WeightedSum
from dipp_core.rewards.pixels import at_least_float32, crop, normalise, pad, unit

AGAIN = "fetch it again"
CLIP_TOKENS = 77
BLIP_TOKENS, BLIP_SIZE = 35, 224


@dataclass(frozen=True)
class File:
    """A published file: where, of which commit, how large, and its other name where it is published twice."""

    name: str
    repo: str
    revision: str
    size: str
    also: str = ""


class Towers(NamedTuple):
    """Sizes that packages fix in code: of ImageReward's vision transformer; of HPSv2's CLIP, None for ViT-H-14."""

    blip: Mapping[str, int]
    hps: Mapping[str, Any] | None


PUBLISHED = Towers({"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}, None)


# ------------------------------------------------------------------------------------------------- finding the files


def fetch_command(reward: str, files: Sequence[File]) -> str:
    """The command that puts all these files into one folder."""
    parts = []
    for repo, revision in dict.fromkeys((file.repo, file.revision) for file in files):
        names = " ".join(file.name for file in files if file.repo == repo)
        parts.append(f"{HF} download {repo} {names} --revision {revision} --local-dir models/{reward}")
    return " && ".join(parts)


def locate(reward: str, files: Sequence[File], source: str | pathlib.Path | None) -> dict[str, pathlib.Path]:
    """Where each file lies: in the folder `source`, or fetched from the hub id `source`, always of a pinned commit.

    A reward of one file also takes that file. A hub id other than the published one must name its commit, as in
    OWNER/NAME@COMMIT: a folder's name that was mistyped is then never taken for a hub id.
    """
    how = f"`{fetch_command(reward, files)}` fetches all of it"
    if source is None:
        needs = ", ".join(f"{file.name} ({file.size})" for file in files)
        raise InputError(f"{reward} needs {needs}: give their folder, or the hub id {files[0].repo}; {how}")
    path = placed(source)
    if path.is_file():
        if len(files) > 1:
            raise InputError(f"{path} is one file, but {reward} needs {len(files)}: give their folder; {how}")
        return {files[0].name: path}
    if path.is_dir():
        found = {}
        for file in files:
            there = [path / name for name in (file.name, file.also) if (path / name).is_file()]
            if not there:
                raise InputError(f"{path / file.name} ({file.size}) is missing: {reward} needs it; {how}")
            found[file.name] = there[0]
        return found
    repo, _, commit = str(source).partition("@")
    if repo == files[0].repo:
        commit = commit or files[0].revision
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(f"{source}: no such file or folder, and no hub id with a commit (OWNER/NAME@COMMIT); {how}")
    paths = {}
    for file in files:
        name, pinned = (repo, commit) if file.repo == files[0].repo else (file.repo, file.revision)
        why = f"{reward}: {file.name} cannot be fetched from {name}@{pinned}"
        try:
            paths[file.name] = from_hub(name, pinned, [file.name]) / file.name
        except Exception as error:
            raise InputError(f"{why} ({first_line(error)}); with a network, {how}") from None
        if not paths[file.name].is_file():
            raise InputError(f"{why}: it is not there; {how}")
    return paths


# ------------------------------------------------------------------------------------------------- reading the files


def read_weights(path: pathlib.Path) -> dict[str, Tensor]:
    """The table of weights in a safetensors file or a checkpoint; a checkpoint that would run code is not opened."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            # mapped from disk, so that the weights lie in memory once
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise InputError(f"{path} holds more than weights ({code[1]}) and could run code; {AGAIN}") from None
        size = f"{path.stat().st_size:,} bytes"
        raise InputError(f"{path} is no whole weight file ({size}: {first_line(error)}); {AGAIN}") from None
    for inner in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} holds no table of weights; {AGAIN}")
    return found


def fill(network: nn.Module, path: pathlib.Path, *, unused: tuple[str, ...] = ()) -> None:
    """Put all weights of a file into a network of the same shapes and depth, which may lack names in `unused`."""
    weights, own = read_weights(path), network.state_dict()
    numbered = {re.sub(r"\d+", "#", name) for name in own}
    flaws = [f"{name} is missing" for name in own if name not in weights and not name.startswith(unused)]
    for name, value in weights.items():
        if name in own and value.shape != own[name].shape:
            flaws.append(f"{name} has the shape {tuple(value.shape)}, not {tuple(own[name].shape)}")
        elif name not in own and re.sub(r"\d+", "#", name) in numbered:
            flaws.append(f"{name} is of a layer too many")
    if flaws:
        why = f"{flaws[0]} ({len(flaws)} of {len(own)} weights do not fit)"
        raise InputError(f"{path} is not made for this {type(network).__name__}: {why}; {AGAIN}")
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def read_description(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """What `read` makes of a small file that describes a network or a vocabulary."""
    try:
        if path.suffix == ".json" and not isinstance(json.loads(path.read_text()), dict):
            raise ValueError("no JSON object")
        return read(path)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); {AGAIN}") from None


@contextlib.contextmanager
def quiet_packages() -> Iterator[None]:
    """The packages of others remark on their own insides and on every long prompt; what goes wrong raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def recompute(blocks: Iterable[Any]) -> None:
    """Gradient checkpointing: keep no activations inside these blocks, compute them again in the backward pass."""
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


# ------------------------------------------------------------------- CLIP: CLIPScore, PickScore, aesthetic predictor


class ClipJudge(Judge):
    """Cosine of picture and prompt features; times the network's own exp(logit_scale) where `scaled`."""

    def __init__(self, about: About, network: nn.Module, tokenizer: Any, *, scaled: bool = False):
        super().__init__(about, network)
        self.tokenizer, self.scaled = tokenizer, scaled

    def picture_features(self, images: Tensor) -> Tensor:
        """Of length 1, (B, d)."""
        side = self.network.config.vision_config.image_size
        pixels = normalise(crop(at_least_float32(images), side, centre=math.floor))
        return unit(self.network.get_image_features(pixels.to(self.network.dtype)))

    def prompt_features(self, prompts: list[str]) -> Tensor:
        """Of length 1, (B, d)."""
        how = {"padding": "max_length", "truncation": True, "max_length": CLIP_TOKENS, "return_tensors": "pt"}
        tokens = self.tokenizer(prompts, **how).to(self.network.device)
        return unit(self.network.get_text_features(tokens.input_ids, attention_mask=tokens.attention_mask))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        cosine = (self.picture_features(images) * self.prompt_features(prompts)).sum(-1)
        return at_least_float32(self.network.logit_scale).exp() * cosine if self.scaled else cosine


class AestheticJudge(ClipJudge):
    """The rating of a picture by a small head on CLIP's features, taught by people; prompts are taken and not read."""

    def __init__(self, about: About, network: nn.Module, head: nn.Module):
        super().__init__(about, network, tokenizer=None)
        self.head: Any = head.requires_grad_(False).eval()

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        features = self.picture_features(images).to(self.network.dtype)
        return self.head["layers"](features).squeeze(-1)


def _read_clip(paths: Mapping[str, pathlib.Path], *, checkpointing: bool) -> Any:
    """A CLIP model in transformers format."""
    from transformers import CLIPConfig, CLIPModel

    described = read_description(paths["config.json"], lambda path: json.loads(path.read_text()))
    if (kind := described.get("model_type")) != "clip":
        raise InputError(f"{paths['config.json']} describes a model of type {kind}, not clip; {AGAIN}")
    network = read_description(paths["config.json"], lambda path: CLIPModel(CLIPConfig.from_json_file(path)))
    fill(network, paths["model.safetensors"])
    if checkpointing:
        recompute(network.vision_model.encoder.layers)
    return network


def clip_judge(about: About, paths: Mapping[str, pathlib.Path], checkpointing: bool, towers: Towers) -> Judge:
    """CLIPScore and PickScore: a CLIP model and nothing more; PickScore is scaled as its network says."""
    from transformers import CLIPTokenizerFast

    network = _read_clip(paths, checkpointing=checkpointing)
    vocabulary, merges = paths["vocab.json"], paths["merges.txt"]
    tokenizer = read_description(vocabulary, lambda path: CLIPTokenizerFast(str(path), str(merges)))
    if len(tokenizer) != (needs := network.config.text_config.vocab_size):
        raise InputError(f"{vocabulary} has {len(tokenizer)} tokens, the network {needs}; fetch both again")
    return ClipJudge(about, network, tokenizer, scaled=about.name == "pickscore")


def aesthetic_head(features: int) -> nn.Module:
    """Five linear layers and no nonlinearity; the published file counts the dropout between them as layers."""
    layers: list[nn.Module] = []
    for place, width in enumerate((1024, 128, 64, 16, 1)):
        layers += [nn.Linear(features, width)] + ([nn.Identity()] if place < 3 else [])
        features = width
    return nn.ModuleDict({"layers": nn.Sequential(*layers)})


def aesthetic_judge(about: About, paths: Mapping[str, pathlib.Path], checkpointing: bool, towers: Towers) -> Judge:
    network = _read_clip(paths, checkpointing=checkpointing)
    head = aesthetic_head(network.config.projection_dim)
    fill(head, paths["aesthetic-model.pth"])
    del network.text_model, network.text_projection  # a quarter of the weights, and no prompt is read
    return AestheticJudge(about, network, head)


# ----------------------------------------------------------------------------------------------- HPSv2 and ImageReward


class HpsJudge(Judge):
    """Cosine of picture and prompt features by HPSv2's open_clip; its own `score` has no gradients and cannot train."""

    def __init__(self, about: About, network: nn.Module, tokenize: Any):
        super().__init__(about, network)
        self.tokenize = tokenize

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weight = self.network.text_projection
        pixels = normalise(pad(at_least_float32(images), self.network.visual.image_size[0]))
        pictures = unit(self.network.encode_image(pixels.to(weight.dtype)))
        return (pictures * unit(self.network.encode_text(self.tokenize(prompts).to(weight.device)))).sum(-1)


def hps_network(towers: Towers) -> Any:
    """HPSv2's CLIP with random weights."""
    from hpsv2.src import open_clip

    return open_clip.CLIP(**(towers.hps or open_clip.get_model_config("ViT-H-14")))


def hps_judge(about: About, paths: Mapping[str, pathlib.Path], checkpointing: bool, towers: Towers) -> Judge:
    from hpsv2.src import open_clip

    network = hps_network(towers)
    fill(network, *paths.values())
    if checkpointing:
        recompute(network.visual.transformer.resblocks)
    return HpsJudge(about, network, open_clip.tokenize)


class ImageRewardJudge(Judge):
    """BLIP, picture and prompt joined by cross-attention; of the official class only `score_gard` has gradients."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        weight = self.network.mlp.layers[0].weight
        how = {"padding": "max_length", "truncation": True, "max_length": BLIP_TOKENS, "return_tensors": "pt"}
        words = self.network.blip.tokenizer(prompts, **how).to(weight.device)
        self.network.device = weight.device  # the official model notes where it was made, not where it was moved
        pixels = normalise(crop(at_least_float32(images), BLIP_SIZE)).to(weight.dtype)
        return self.network.score_gard(words.input_ids, words.attention_mask, pixels).squeeze(-1)

    def recompute(self) -> None:
        """Gradient checkpointing in the blocks of both towers."""
        recompute([*self.network.blip.visual_encoder.blocks, *self.network.blip.text_encoder.encoder.layer])


def image_reward_network(med_config: pathlib.Path, vocabulary: pathlib.Path, towers: Towers = PUBLISHED) -> Any:
    """The official model with random weights.

    Its constructors ask the hub for a tokenizer by name and fix the size of the vision tower; the two below put in the
    same parts, of given files and sizes. Everything that computes is the official code.
    """
    with warnings.catch_warnings(action="ignore"):  # the package silences all warnings of the process, and causes some
        from ImageReward.ImageReward import MLP, ImageReward, _transform
        from ImageReward.models.BLIP import blip_pretrain, vit
        from transformers import BertTokenizer
    words = read_description(vocabulary, lambda path: BertTokenizer(str(path)))
    words.add_special_tokens({"bos_token": "[DEC]"})
    words.add_special_tokens({"additional_special_tokens": ["[ENC]"]})

    class Blip(blip_pretrain.BLIP_Pretrain):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            config = blip_pretrain.BertConfig.from_json_file(med_config)
            config.encoder_width = towers.blip["embed_dim"]
            self.visual_encoder = vit.VisionTransformer(img_size=BLIP_SIZE, drop_path_rate=0.1, **towers.blip)
            self.tokenizer = words
            self.text_encoder = blip_pretrain.BertModel(config=config, add_pooling_layer=False)
            self.vision_proj = nn.Linear(config.encoder_width, 256)
            self.text_proj = nn.Linear(config.hidden_size, 256)

    class Whole(ImageReward):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.device = "cpu"
            self.blip = Blip()
            self.preprocess = _transform(BLIP_SIZE)
            self.mlp = MLP(768)
            self.mean, self.std = 0.16717362830052426, 1.0333394966054072

    network = read_description(med_config, lambda _: Whole())
    if len(words) != (needs := network.blip.text_encoder.config.vocab_size):
        raise InputError(f"{vocabulary} has {len(words) - 2} words, the network {needs - 2}; fetch both again")
    return network


# the package's own loader does without these: the score does not use them
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def image_reward_judge(about: About, paths: Mapping[str, pathlib.Path], checkpointing: bool, towers: Towers) -> Judge:
    network = image_reward_network(paths["med_config.json"], paths["vocab.txt"], towers)
    fill(network, paths["ImageReward.pt"], unused=UNUSED)
    judge = ImageRewardJudge(about, network)
    if checkpointing:
        judge.recompute()
    return judge


# ------------------------------------------------------------------------------------------------------- what there is


Build = Callable[[About, Mapping[str, pathlib.Path], bool, Towers], Judge]


@dataclass(frozen=True)
class Scorer:
    """A named reward: what is known of it, its files, and what makes a judge of them."""

    about: About
    files: tuple[File, ...]
    build: Build


def _files(repo: str, revision: str, sizes: Mapping[str, str]) -> tuple[File, ...]:
    return tuple(File(name, repo, revision, size) for name, size in sizes.items())


def _clip_files(repo: str, revision: str, size: str) -> tuple[File, ...]:
    small = {"config.json": "5 kB", "vocab.json": "1 MB", "merges.txt": "0.5 MB"}
    return _files(repo, revision, {"model.safetensors": size} | small)


_CLIP_L = _clip_files("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", "1.7 GB")
_BERT = _files("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", {"vocab.txt": "0.2 MB"})
_BLIP = ("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72")
_HPS = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
_HEAD = ("trl-lib/ddpo-aesthetic-predictor", "cf4bd10345610935a80a5d3be9a3133c50f121e4")
_HEAD_FILE = File("aesthetic-model.pth", *_HEAD, "4 MB", also="sac+logos+ava1-l14-linearMSE.pth")
_CARD, _OPENAI = "Apache-2.0 (model card)", "MIT (OpenAI's repository; its model card calls deployed use out of scope)"
_HPS_SCALE = "cosine, on generated pictures about 0.2 to 0.35; papers print 100 times it"
_HPS_HAZARDS = (
    "v2.0 and v2.1 are different scales: never in one column; the package's score() takes v2.0 by default, its "
    "evaluate() v2.1; both files have the same shape, so a file under the other's name is not noticed; pictures that "
    "are not square are padded with black, where CLIP crops"
)
# files; what makes the judge; version, licences of code and weights, tokens read of a prompt; scale; hazards
_ROWS: dict[str, tuple[tuple[File, ...], Build, tuple[str, str, str, int], str, str]] = {
    "image_reward": (
        (*_files(*_BLIP, {"ImageReward.pt": "1.8 GB", "med_config.json": "1 kB"}), *_BERT),
        image_reward_judge,
        ("1.0", "Apache-2.0", _CARD, BLIP_TOKENS),
        "standardised over its training pictures: mean about 0, deviation about 1, at most about 2",
        "reads 35 tokens of a prompt; saturates near 2, where a generator is better at pleasing it than at drawing",
    ),
    "hpsv2": (
        _files(*_HPS, {"HPS_v2_compressed.pt": "2 GB"}),
        hps_judge,
        ("v2.0", "Apache-2.0", _CARD, CLIP_TOKENS),
        _HPS_SCALE,
        _HPS_HAZARDS,
    ),
    "hpsv2.1": (
        _files(*_HPS, {"HPS_v2.1_compressed.pt": "2 GB"}),
        hps_judge,
        ("v2.1", "Apache-2.0", _CARD, CLIP_TOKENS),
        _HPS_SCALE,
        _HPS_HAZARDS,
    ),
    "pickscore": (
        _clip_files("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", "3.9 GB"),
        clip_judge,
        ("v1", "MIT", "not stated on the model card, as far as known", CLIP_TOKENS),
        "exp(logit_scale), about 100, times the cosine: about 17 to 24",
        "some papers print the cosine, others divide by 26; differences of 0.3 are already large",
    ),
    "clipscore": (
        _CLIP_L,
        clip_judge,
        ("CLIP ViT-L/14", "MIT", _OPENAI, CLIP_TOKENS),
        "cosine in [-1, 1], on generated pictures about 0.15 to 0.35",
        "papers print 100 times it, the paper that named it 2.5 max(cosine, 0) with ViT-B/32; "
        "numbers of different CLIP models do not compare",
    ),
    "aesthetic": (
        (_HEAD_FILE, *_CLIP_L[:2]),
        aesthetic_judge,
        ("sac+logos+ava1-l14-linearMSE (often called v2)", "Apache-2.0", "Apache-2.0 for the head, MIT for CLIP", 0),
        "people's ratings from 1 to 10, on generated pictures about 4.5 to 7",
        "does not read the prompt: alone it lets the generator forget what was asked; "
        "LAION's first, linear predictor is another scale",
    ),
}
SCORERS = {
    name: Scorer(About(name, version, "", code, weights, 224, tokens, scale, hazards), files, build)
    for name, (files, build, (version, code, weights, tokens), scale, hazards) in _ROWS.items()
}
NAMES = tuple(SCORERS)


# -------------------------------------------------------------------------------------------------------------- loading


def load(
    spec: str | Callable | Mapping[str, Any] | Sequence[Mapping[str, Any]],
    source: str | pathlib.Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    checkpointing: bool = False,
    towers: Towers = PUBLISHED,
) -> Judge:
    """The reward that `spec` names.

    spec: one of NAMES with its files in `source`, a folder or a hub id; "module:function" or a function of one's own;
    or a list of {"reward": spec, "source": .., "weight": 1.0}, their weighted sum.
    checkpointing: less memory in the backward pass, at the price of another forward pass.
    """
    if isinstance(spec, Mapping):
        spec = [spec]
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        how = functools.partial(load, dtype=dtype, device=device, checkpointing=checkpointing, towers=towers)
        return WeightedSum([(_weight(term), how(term["reward"], term.get("source"))) for term in spec])
    if isinstance(spec, str) and ":" in spec:
        spec = _import_function(spec)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        return spec if isinstance(spec, Judge) else OwnReward(spec, name).to(device)
    if spec not in NAMES:
        raise InputError(f"{spec!r} is no reward: known are {', '.join(NAMES)}, and module:function of one's own")
    scorer = SCORERS[spec]
    paths = locate(spec, scorer.files, source)
    try:
        with quiet_packages():
            judge = scorer.build(replace(scorer.about, source=str(source)), paths, checkpointing, towers)
    except ImportError as error:
        raise InputError(f"{spec} needs a package ({first_line(error)}): install requirements.lock") from None
    judge.to(device=device, dtype=dtype)
    if scorer.build is clip_judge and dtype is torch.float64:  # transformers' mask of prompts is lost in float64
        judge.network.text_model.float()
        judge.network.text_projection.float()
    return judge


def _weight(term: Mapping[str, Any]) -> float:
    if not isinstance(term, Mapping) or "reward" not in term or set(term) - {"reward", "source", "weight"}:
        raise InputError(f"{term!r}: a term of a sum has a reward, and may have a source and a weight, nothing else")
    weight = term.get("weight", 1.0)
    if type(weight) not in (int, float) or not math.isfinite(weight):
        raise InputError(f"the weight of {term['reward']} is {weight!r}: give a number")
    return float(weight)


def _import_function(path: str) -> Callable:
    """The function named by "module:function"."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InputError(f"{path}: cannot be imported ({type(error).__name__}: {first_line(error)})") from None
    if not callable(found):
        raise InputError(f"{path} is a {type(found).__name__}, not a function (images, prompts) -> values")
    return found
