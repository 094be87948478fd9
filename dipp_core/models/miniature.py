"""The miniature: a small text-to-image diffusion in the format and classes of the large ones, untrained, and what its
parts are trained on.

`build` writes it as an ordinary diffusers folder: Stable Diffusion's pipeline around a UNet, PixArt-alpha's around a
transformer. So what trains, loads and samples the miniature is what trains, loads and samples SD1.5 and PixArt-alpha.
The tokenizer is made from the words of the captions: every given word is one token, every other word is spelt in
letters; nothing is fetched and nothing is fitted.

The diffusion needs no loss of its own: the assistant's denoising score matching, on pictures instead of on generated
samples, is a diffusion's training (`method.assistant`).
"""

import itertools
import json
import pathlib
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import Settings, preset
from dipp_core.method.schedule import NoiseSchedule, TimeSampler, normalised, sigma_power_weight, uniform_index_time
from dipp_core.models import folders
from dipp_core.models.latent import LatentDiffusion
from dipp_core.models.prompts import PIXART_TOKENS


class Size(NamedTuple):
    """Widths and depths: of VAE and UNet by level, of the transformer by heads, their width and layers, of the text."""

    vae: tuple[int, ...]
    unet: tuple[int, ...]
    heads: int
    head: int
    layers: int
    text: int
    text_layers: int


KINDS = ("unet", "dit")
SIZES = {
    "mini": Size(vae=(16, 32, 32), unet=(48, 96), heads=4, head=32, layers=4, text=64, text_layers=2),
    "tiny": Size(vae=(8, 8, 8), unet=(16, 16), heads=2, head=12, layers=1, text=16, text_layers=1),
}
CLIP_TOKENS = 24  # tokens a prompt may have, begin and end included
LETTERS = (*string.ascii_lowercase, *string.digits, *".,'-!?")


def seeded(make: Callable[..., nn.Module], seed: int, *args: Any, **options: Any) -> Any:
    """Call `make` with torch's global random state set to a seed, and put that state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **options)


# ------------------------------------------------------------------------------------------------------------ networks


def new_vae(size: str = "mini", *, seed: int) -> Any:
    """An AutoencoderKL that takes 32 x 32 pictures to 8 x 8 latents of 4 channels."""
    from diffusers import AutoencoderKL

    widths = SIZES[size].vae
    return seeded(
        AutoencoderKL,
        seed,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
    )


def new_denoiser(kind: str, size: str = "mini", *, seed: int) -> Any:
    """The denoiser of 8 x 8 latents: a UNet2DConditionModel ("unet") or a PixArtTransformer2DModel ("dit").

    The transformer has PixArt's eight output channels, four of noise and four of a variance that is not used.
    """
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

    numbers = SIZES[size]
    if kind == "unet":
        return seeded(
            UNet2DConditionModel,
            seed,
            sample_size=8,
            block_out_channels=numbers.unet,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=numbers.heads,
            cross_attention_dim=numbers.text,
            norm_num_groups=8,
        )
    if kind == "dit":
        return seeded(
            PixArtTransformer2DModel,
            seed,
            sample_size=8,
            patch_size=2,
            num_attention_heads=numbers.heads,
            attention_head_dim=numbers.head,
            cross_attention_dim=numbers.heads * numbers.head,
            num_layers=numbers.layers,
            in_channels=4,
            out_channels=8,
            caption_channels=numbers.text,
        )
    raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")


def new_scheduler() -> Any:
    """Stable Diffusion's noise; steps spread so that the first is the noisiest one and the last ends at the data."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_text(words: Sequence[str], size: str = "mini", *, encoder: str = "clip", seed: int) -> tuple[Any, Any]:
    """A tokenizer of these words and an encoder for it: "clip", or "t5" as PixArt-alpha has it."""
    makers = {"clip": (clip_tokenizer, clip_encoder), "t5": (t5_tokenizer, t5_encoder)}
    if encoder not in makers:
        raise ValueError(f"unknown text encoder {encoder!r}: clip or t5")
    new_tokenizer, new_encoder = makers[encoder]
    tokenizer = new_tokenizer(words)
    return tokenizer, new_encoder(tokenizer, width=SIZES[size].text, layers=SIZES[size].text_layers, seed=seed)


def build(
    folder: pathlib.Path | str,
    kind: str,
    *,
    words: Sequence[str],
    size: str = "mini",
    encoder: str = "clip",
    seed: int = 0,
) -> pathlib.Path:
    """A whole folder with random weights; returns its path. `kind` is "unet" or "dit"."""
    tokenizer, text_encoder = new_text(words, size, encoder=encoder, seed=seed + 2)
    return folders.write(
        folder,
        denoiser=new_denoiser(kind, size, seed=seed),
        vae=new_vae(size, seed=seed + 1),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=new_scheduler(),
    )


# ---------------------------------------------------------------------------------------------------------------- text


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


def clip_encoder(tokenizer: Any, *, width: int, layers: int, seed: int) -> Any:
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


def t5_encoder(tokenizer: Any, *, width: int, layers: int, seed: int) -> Any:
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


# ------------------------------------------------------------------------------------------------------------ training


def vae_loss(vae: Any, images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mean absolute and squared error of the round trip, and 1e-4 KL(q(latent | picture) | N(0, I)) per pixel."""
    pixels = 2 * images - 1
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - pixels
    return error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().mean() / pixels[0].numel()


@torch.no_grad()
def fit_scaling(vae: Any, images: Tensor) -> float:
    """Set the VAE's scaling factor so that the latents of these pictures have unit variance; returns the factor."""
    factor = 1 / vae.encode(2 * images - 1).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=factor)
    return factor


def contrastive_loss(text: Tensor, images: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss on features (B, d) of texts and pictures; same (B, B) bool: which texts fit which pictures.

    Several pictures of a batch may fit one caption: the target is spread evenly over all that do. Temperature 0.1.
    """
    logits = nn.functional.normalize(text, dim=-1) @ nn.functional.normalize(images, dim=-1).T / 0.1
    target = same.to(logits)
    to_images = nn.functional.cross_entropy(logits, target / target.sum(-1, keepdim=True))
    to_texts = nn.functional.cross_entropy(logits.T, target.T / target.T.sum(-1, keepdim=True))
    return (to_images + to_texts) / 2


class Together:
    """Several optimisers as one, so that different weights of a network may learn by different rules."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(k): optimizer.state_dict() for k, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for k, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(k)])


def reference_optimizer(network: nn.Module, *, lr: float, muon_lr: float = 0.0) -> Together:
    """AdamW; and, where it has a rate, Muon for the matrices of a transformer's blocks (Jordan et al. 2024).

    Muon makes every step of a matrix orthogonal. Both rates are the highest, to be scaled step by step.
    """
    matrices = [w for name, w in network.named_parameters() if muon_lr and "blocks" in name and w.ndim == 2]
    theirs = {id(weight) for weight in matrices}
    adam = torch.optim.AdamW([w for w in network.parameters() if id(w) not in theirs], lr, betas=(0.9, 0.99))
    if not matrices:
        return Together(adam)
    return Together(torch.optim.Muon(matrices, muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), adam)


def late_index_time(schedule: NoiseSchedule) -> TimeSampler:
    """Integer timesteps of density proportional to t: backgrounds are decided in much noise and are learned last."""
    steps = schedule.steps or 0
    return TimeSampler("late_index", lambda u: schedule.time_of_index((steps * u.sqrt()).floor()))


def settings_for(world: LatentDiffusion, name: str, batch: int, **numbers: Any) -> Settings:
    """A member of the family (`algorithm.PRESETS`) in the miniature: w = sigma^2 on scores, normalised to E[w] = 1.

    Times are the whole timesteps from 20 to 979: below, details finer than the autoencoder's; above, nothing but noise.
    """
    times, weight = uniform_index_time(world.schedule, 20, 980), sigma_power_weight(world.schedule)
    return preset(
        name,
        time_sampler=times,
        weight=normalised(weight, times),
        ta_weight=weight,
        max_grad_norm=5.0,
        batch_shape=(batch,),
        z_shape=world.z_shape,
        **numbers,
    )
