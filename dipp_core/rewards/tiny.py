"""A small reward with random weights, in the files of a public one: it judges rehearsals, and means nothing."""

import gzip
import json
import pathlib
import warnings

import torch

CLIP = {
    "model_type": "clip",
    "projection_dim": 768,  # the official head of the aesthetic predictor takes no other
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 16,
    },
}
# the vocabulary that comes with CLIP's package spells the two special tokens in its own way
SPELLED = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough to matter; untouched ones give nearly the same reward to every picture."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                fan_in = weight[0].numel() if "embed" not in name or weight.ndim == 4 else 4
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / fan_in**0.5)
    return network


def write_clip(folder: pathlib.Path) -> pathlib.Path:
    """A small CLIP with CLIP's whole vocabulary, in transformers format: what "clipscore" and "pickscore" load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a package that is going away
        import clip
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CLIP))
    network = randomise(CLIPModel(CLIPConfig.from_json_file(folder / "config.json")))
    save_file(network.state_dict(), folder / "model.safetensors")
    words = clip.simple_tokenizer.SimpleTokenizer().encoder
    (folder / "vocab.json").write_text(json.dumps({SPELLED.get(word, word): index for word, index in words.items()}))
    published = pathlib.Path(clip.simple_tokenizer.default_bpe()).read_bytes()
    lines = gzip.decompress(published).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    return folder
