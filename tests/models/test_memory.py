"""Switches that save memory: the same numbers and gradients with as without, another decoder only where asked."""

import copy
import dataclasses

import pytest
import torch
from diffusers import AutoencoderTiny

from dipp_core.files import InputError
from dipp_core.method.generator import trainable_copy
from dipp_core.models import folders, lora, miniature
from dipp_core.worlds import shapes


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=miniature.KINDS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    return folders.load(miniature.build(folder, request.param, words=shapes.vocabulary(), size="tiny"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny decoder for the miniature's pictures, four times the size of their latents."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    folder = tmp_path_factory.mktemp("models") / "taesd"
    AutoencoderTiny(**widths, **blocks).save_pretrained(folder)
    return folder


def test_a_denoiser_that_recomputes_learns_from_the_same_gradients(world):
    cond = world.prompts(["a red circle", "a blue cross"]).rows(torch.arange(2))
    xt, t = torch.randn(2, *world.z_shape, generator=rng()), torch.tensor([0.2, 0.8])
    grads = []
    for switch in (lambda denoiser: denoiser, lora.recompute_denoiser):
        network = trainable_copy(switch(copy.deepcopy(world.denoiser)))
        network(xt, t, cond).square().sum().backward()
        grads.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_decoder_that_recomputes_gives_the_same_pictures_and_gradients(world):
    found = []
    for vae in (world.vae, lora.recompute_vae(copy.deepcopy(world.vae))):
        z = torch.randn(3, *world.z_shape, generator=rng()).requires_grad_()
        images = dataclasses.replace(world, vae=vae).decode(z)
        (grad,) = torch.autograd.grad(images.square().sum(), z)
        found.append((images, grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_tiny_decoder_is_seen_by_the_reward_alone(world, tiny):
    seen = dataclasses.replace(world, vae=lora.recompute_vae(folders.tiny_decoder(tiny, dtype=torch.float32)))
    prompts = world.prompts(["a red circle", "a blue cross"])
    z = (0.3 * torch.randn(2, *world.z_shape, generator=rng())).requires_grad_()
    values = seen.reward(lambda images, texts: images.mean((1, 2, 3)), prompts)(z, prompts.rows(torch.arange(2)))
    assert values.shape == (2,)
    assert torch.autograd.grad(values.sum(), z)[0].abs().max() > 0
    with torch.no_grad():
        own, theirs = world.decode(z), AutoencoderTiny.from_pretrained(tiny).decode(z).sample / 2 + 0.5
        assert own.shape == seen.decode(z).shape
        torch.testing.assert_close(seen.decode(z), theirs.clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert type(world.vae).__name__ == "AutoencoderKL"


def test_what_is_no_tiny_decoder_is_one_line(world, tiny, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    cases = [(tmp_path / "none", "is missing"), (tmp_path, "no weights"), (f"{world.source}/vae", "fetches one")]
    for folder, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            folders.tiny_decoder(folder, dtype=torch.float32)
        assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- chunks of a batch


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_chunks_of_a_batch_give_the_gradient_of_the_whole(world, rows):
    """To the weights and to what goes in, of a generator that recomputes its blocks as well."""
    cond = world.prompts(["a red circle", "a blue cross", "a green square"] * 2).rows(torch.arange(6))
    z = torch.randn(6, *world.z_shape, generator=rng(), dtype=torch.float64, requires_grad=True)
    gen = world.generator(500, lora.recompute_denoiser(copy.deepcopy(world.denoiser))).double()
    found = []
    for call in (gen, lora.in_chunks(gen, rows)):
        out = call(z, cond)
        found.append([out, *torch.autograd.grad(out.square().mean(), [z, *gen.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-12)


def test_of_chunks_one_lives_at_a_time():
    """What is kept for the backward pass does not grow with the batch, but for what goes in."""
    network, kept = torch.nn.Sequential(torch.nn.Linear(4, 512), torch.nn.Tanh(), torch.nn.Linear(512, 4)), []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    for call in (network, lora.in_chunks(network, 2)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(torch.randn(64, 4))
        most = max(kept, default=0)
        assert most >= 64 * 512 if call is network else sum(kept) <= 64 * 4 * 2


def test_chunks_are_left_out_where_they_are_none():
    assert lora.in_chunks(None, 2) is None
    assert lora.in_chunks(len, 0) is len
    reward = lora.in_chunks(lambda x0, cond: x0.mean(1) + cond["prompt"], 2)
    x0 = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.allclose(reward(x0, {"prompt": torch.arange(5)}), x0.mean(1) + torch.arange(5))
