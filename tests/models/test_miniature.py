"""What the miniature's parts are trained on, in closed form; its tokenizers token by token."""

import math

import pytest
import torch

from dipp_core.method.schedule import vp_discrete
from dipp_core.models import miniature
from dipp_core.worlds import shapes


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures():
    return shapes.draw_pictures(shapes.split("test"), generator=rng())


def test_every_word_becomes_one_piece_and_the_merges_are_a_function_of_the_words():
    merges = miniature.byte_pairs(["red", "green", "on", "onion"])
    assert merges == miniature.byte_pairs(["onion", "on", "green", "red", "red"])
    for word in ("red", "green", "on", "onion"):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            pieces = miniature._merged(pieces, pair)
        assert pieces == [word + "</w>"]


def test_both_tokenizers_know_the_words_and_spell_the_others():
    words = ["a", "red", "circle"]
    clip, t5 = miniature.clip_tokenizer(words), miniature.t5_tokenizer(words)
    assert clip.tokenize("a red circle") == ["a</w>", "red</w>", "circle</w>"]
    assert clip.tokenize("reddish") == ["re", "d", "d", "i", "s", "h</w>"]
    assert t5.tokenize("a red circle") == ["▁a", "▁red", "▁circle"]
    assert t5.tokenize("big") == ["▁", "b", "i", "g"]
    assert t5("red").input_ids[-1] == t5.eos_token_id
    assert clip("", padding="max_length").input_ids[0] == clip.bos_token_id


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'mlp': one of unet, dit"):
        miniature.new_denoiser("mlp", seed=0)
    with pytest.raises(ValueError, match="unknown text encoder 'bert': clip or t5"):
        miniature.new_text(["a"], encoder="bert", seed=0)


def test_scaled_latents_have_unit_variance(pictures):
    vae = miniature.new_vae("tiny", seed=0)
    factor = miniature.fit_scaling(vae, pictures)
    assert vae.config.scaling_factor == factor
    assert (factor * vae.encode(2 * pictures - 1).latent_dist.mean).std().item() == pytest.approx(1, rel=1e-5)


def test_the_loss_of_the_vae_reaches_all_of_it_and_depends_only_on_its_generator(pictures):
    vae = miniature.new_vae("tiny", seed=0)
    loss = miniature.vae_loss(vae, pictures[:4], generator=rng())
    loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert torch.equal(loss, miniature.vae_loss(vae, pictures[:4], generator=rng()))


def test_the_contrastive_loss_in_closed_form():
    """Features that say nothing: log B. Those that say all, two pictures a text: the entropy of the target, log 2."""
    nothing, each = torch.ones(4, 8), torch.eye(4, dtype=torch.bool)
    assert miniature.contrastive_loss(nothing, nothing, each).item() == pytest.approx(math.log(4), rel=1e-5)
    pairs = torch.eye(2, 8).repeat_interleave(2, dim=0)
    same = (pairs @ pairs.T).bool()
    found = miniature.contrastive_loss(pairs, pairs, same)
    assert found.item() == pytest.approx(math.log(2 + 2 * math.exp(-10)), rel=1e-5)


def test_late_times_have_a_density_proportional_to_t():
    schedule = vp_discrete(miniature.new_scheduler().alphas_cumprod)
    law = miniature.late_index_time(schedule)
    index = schedule.index_of_time(law((50_000,), generator=rng()))
    assert index.min() >= 0
    assert index.max() == 999
    for part in (0.25, 0.5, 0.75):
        assert (index < 1000 * part).float().mean().item() == pytest.approx(part**2, abs=0.01)
