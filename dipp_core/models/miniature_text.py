"""Tokenizers and text encoders made from a list of words, untrained: CLIP's for the miniature, T5's as PixArt has it.

Nothing is fetched and nothing is fitted: every given word becomes one token, every other word is spelt in letters.
"""

import itertools
import json
import pathlib
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

CLIP_TOKENS = 24  # tokens a prompt may have, begin and end included
PIXART_TOKENS = 120  # the length to which PixArt's pipeline pads; its mask hides the padding
LETTERS = (*string.ascii_lowercase, *string.digits, *".,'-!?")


def seeded(make: Callable[..., nn.Module], seed: int, *args: Any, **options: Any) -> Any:
    """Call `make` with torch's global random state set to a seed, and put that state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **options)


def byte_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding that make every one of these words a single token, most frequent pair first."""
    pieces, merges = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))], []
    while counts := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """A word with every occurrence of a pair joined, from the left."""
    joined, k = [], 0
    while k < len(word):
        together = tuple(word[k : k + 2]) == pair
        joined.append("".join(pair) if together else word[k])
        k += 2 if together else 1
    return joined


def clip_tokenizer(words: Sequence[str]) -> Any:
    """A CLIPTokenizer with one token for every given word."""
    from transformers import CLIPTokenizer

    merges = byte_pairs(words)
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *("".join(pair) for pair in merges)]
    vocabulary = dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"])
    with tempfile.TemporaryDirectory() as folder:
        vocab, merged = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
        merged.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
        return CLIPTokenizer(str(vocab), str(merged), model_max_length=CLIP_TOKENS)


def clip_encoder(tokenizer: Any, *, width: int, layers: int, seed: int) -> nn.Module:
    """A CLIPTextModel for a tokenizer. It has places for PixArt's long padding too, which is never looked at."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=PIXART_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(CLIPTextModel, seed, config).eval()


def t5_tokenizer(words: Sequence[str]) -> Any:
    """A T5TokenizerFast with one token for every given word; a letter is likely enough only where no word fits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    whole = [("▁" + word, -1.0) for word in sorted(set(words))]
    parts = [(letter, -10.0) for letter in LETTERS] + [("▁", -10.0)]
    unigrams = models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), *whole, *parts], unk_id=2)
    tokenizer = Tokenizer(unigrams)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=PIXART_TOKENS)


def t5_encoder(tokenizer: Any, *, width: int, layers: int, seed: int) -> nn.Module:
    """A T5EncoderModel for a tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return seeded(T5EncoderModel, seed, config).eval()
