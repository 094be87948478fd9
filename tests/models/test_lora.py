"""Adapters on one base: the reference bit for bit, each role by itself, and what peft makes of the same weights."""

import copy
import dataclasses

import peft
import pytest
import torch
from diffusers import AutoencoderTiny

from dipp_core.files import InputError
from dipp_core.method.algorithm import align, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import sigma_power_weight, uniform_index_time
from dipp_core.method.staged import frozen
from dipp_core.models import folders, lora, miniature

TARGETS = {"unet": ("attention", "ff", "convs"), "dit": ("attention", "ff", "proj_out")}


@pytest.fixture(params=miniature.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def world(places, kind):
    """A world of its own for every test: adapters hook into its denoiser."""
    return folders.load(places / kind)


@pytest.fixture
def inputs(world, rng):
    cond = world.prompts(["a red circle", "a blue cross"]).rows(torch.arange(2))
    return torch.randn(2, *world.z_shape, generator=rng()), torch.tensor([0.3, 0.9]), cond


def started(role, seed=1):
    """A role that has learnt something."""
    for parameter in role.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return role


def roles(world, kind, rank=3):
    start = lora.Adapted(lora.SharedBase(world.denoiser, targets=TARGETS[kind]), rank=rank)
    return started(trainable_copy(start)), started(trainable_copy(start), seed=2)


def test_the_reference_is_the_base_bit_for_bit_and_roles_start_as_it(world, kind, inputs):
    before = world.denoiser(*inputs)
    start = lora.Adapted(lora.SharedBase(world.denoiser, targets=TARGETS[kind]), rank=2)
    assert torch.equal(start(*inputs), before)
    gen, ta = started(trainable_copy(start)), started(trainable_copy(start), seed=2)
    outs = [gen(*inputs), world.denoiser(*inputs), ta(*inputs), world.denoiser(*inputs), gen(*inputs)]
    assert torch.equal(outs[1], before)
    assert torch.equal(outs[3], before)
    assert torch.equal(outs[0], outs[4])
    assert (outs[0] - before).abs().max() > 1e-3
    assert (outs[0] - outs[2]).abs().max() > 1e-3
    gen(*inputs).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gen.parameters())
    assert all(parameter.grad is None for parameter in [*ta.parameters(), *world.denoiser.parameters()])
    with pytest.raises(KeyError):
        gen(inputs[0], inputs[1], {})  # an error inside a role leaves the base itself behind
    assert torch.equal(world.denoiser(*inputs), before)


def test_roles_share_one_base_and_own_their_adapters_alone(world, kind):
    base = {parameter.data_ptr() for parameter in world.denoiser.parameters()}
    gen, ta = roles(world, kind)
    assert {parameter.data_ptr() for parameter in world.denoiser.parameters()} == base
    owned = [{parameter.data_ptr() for parameter in role.parameters()} for role in (gen, ta)]
    assert not (owned[0] & owned[1]) | (owned[0] & base) | (owned[1] & base)
    twin = copy.deepcopy(OneStepGenerator(gen, world.schedule, t_star=0.5, prediction_type="eps"))
    assert twin.network.base.denoiser is world.denoiser
    assert all(torch.equal(a, b) for a, b in zip(gen.parameters(), twin.network.parameters(), strict=True))
    assert all(".lora_A." in name or ".lora_B." in name for name in gen.state_dict())
    assert len(gen.state_dict()) == 2 * len(gen.base.layers)
    assert all(value.dtype == torch.float32 for value in gen.to(torch.float32).state_dict().values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_role_passes_gradients_to_its_input(world, kind, inputs, checkpointing):
    """As Diff-Instruct* needs it of assistant and reference at once, in one graph."""
    _, ta = roles(world, kind)
    if checkpointing:
        ta.base.recompute()
    whole = lora.merged(ta)
    assert not whole.network.is_gradient_checkpointing
    xt = inputs[0].requires_grad_()
    with frozen(list(ta.parameters())):
        gap = ta(*inputs) - world.denoiser(*inputs)
        (found,) = torch.autograd.grad(gap.pow(3).sum(), xt)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in ta.parameters())
    separate = whole(*inputs) - world.denoiser(*inputs)
    (expected,) = torch.autograd.grad(separate.pow(3).sum(), xt)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_merging_gives_a_whole_denoiser_and_an_ordinary_pipeline(world, kind, inputs, tmp_path):
    gen, _ = roles(world, kind)
    whole = lora.merged(gen)
    torch.testing.assert_close(whole(*inputs), gen(*inputs), rtol=1e-5, atol=1e-5)
    assert not {p.data_ptr() for p in whole.parameters()} & {p.data_ptr() for p in world.denoiser.parameters()}
    assert not any(layer._forward_hooks for layer in whole.modules())
    one_step = world.generator(400, gen)
    exported = folders.export(tmp_path / "out", world, folders.rebuilt(one_step, whole))
    again = folders.load(exported).generator(400)
    z, _, cond = inputs
    torch.testing.assert_close(again(z, cond), one_step(z, cond), rtol=1e-4, atol=1e-4)


def test_peft_computes_the_same_from_the_same_adapters(world, kind, inputs):
    gen, _ = roles(world, kind)
    expected = gen(*inputs)
    plain = lora.merged(lora.Adapted(gen.base, rank=1))  # the base again, without hooks
    config = peft.LoraConfig(r=gen.rank, lora_alpha=gen.rank, target_modules=list(gen.by_path))
    peft.inject_adapter_in_model(config, plain.network)
    adapters = gen.adapters.state_dict()
    found = peft.set_peft_model_state_dict(plain.network, adapters)
    assert not found.unexpected_keys
    torch.testing.assert_close(plain(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "method"), [("unet", "dipp"), ("dit", "distar_in")])
def test_a_step_of_algorithm_1_equals_that_of_roles_with_bases_of_their_own(places, kind, method, rng):
    """The same adapters, the same draws: on one shared base, with checkpointing, and on three separate ones."""
    found = []
    for shared in (True, False):
        worlds = [folders.load(places / kind) for _ in range(1 if shared else 3)]
        bases = [lora.SharedBase(world.denoiser, targets=TARGETS[kind]) for world in worlds]
        for base in bases[: 1 if shared else 0]:
            base.recompute()
        gen = worlds[0].generator(500, started(lora.Adapted(bases[0], rank=2)))
        ta = started(lora.Adapted(bases[-1], rank=2), seed=2)
        adams = [torch.optim.Adam(net.parameters(), 1e-3, (0.0, 0.99)) for net in (gen, ta)]
        prompts = worlds[0].prompts(["a red circle", "a blue cross"])
        world = worlds[len(worlds) // 2]
        settings = preset(
            method,
            alpha_rew=5.0,
            alpha_cfg=1.5,
            batch_shape=(2,),
            z_shape=world.z_shape,
            time_sampler=uniform_index_time(world.schedule, 20, 979),
            weight=sigma_power_weight(world.schedule, 2),
            ta_weight=sigma_power_weight(world.schedule, 2),
            distance=pseudo_huber(0.1),
        )
        records = align(
            gen=gen,
            ta=world.score(ta),
            ref=world.score(),
            reward=world.reward(lambda images, texts: images.mean((1, 2, 3)), prompts),
            schedule=world.schedule,
            settings=settings,
            gen_optimizer=adams[0],
            ta_optimizer=adams[1],
            draw_cond=prompts.draw,
            null_cond=prompts.null_cond,
            generator=rng(3),
            steps=2,
        )
        norms = [record.grad_norm for record in records]
        assert all(parameter.requires_grad for parameter in [*gen.parameters(), *ta.parameters()])
        found.append([*norms, *gen.parameters(), *ta.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-5)


def test_adapters_stay_in_float32_on_a_base_in_bfloat16(places, kind, rng):
    world = folders.load(places / kind, dtype=torch.bfloat16)
    gen, ta = roles(world, kind)
    assert {parameter.dtype for parameter in gen.parameters()} == {torch.float32}
    cond = world.prompts(["a red circle"]).rows(torch.zeros(1, dtype=torch.long))
    xt = torch.randn(1, *world.z_shape, generator=rng())
    out = gen(xt, torch.tensor([0.5]), cond)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in gen.parameters())
    assert next(lora.merged(ta).parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("targets", "rank", "words"),
    [(("nowhere",), 4, "is called 'nowhere'"), (("norm1",), 4, "takes no adapter"), (("attention",), 0, "at least 1")],
)
def test_what_cannot_be_adapted_is_one_line(places, targets, rank, words):
    world = folders.load(places / "dit", parts=("denoiser",))
    with pytest.raises(ValueError, match=words) as caught:
        lora.Adapted(lora.SharedBase(world.denoiser, targets=targets), rank=rank)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- what saves memory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny decoder for the miniature's pictures, four times the size of their latents."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    folder = tmp_path_factory.mktemp("models") / "taesd"
    AutoencoderTiny(**widths, **blocks).save_pretrained(folder)
    return folder


def test_a_tiny_decoder_is_seen_by_the_reward_alone(world, tiny, rng):
    decoder = folders.tiny_decoder(tiny, dtype=torch.float32)
    lora.recompute_vae(decoder)
    seen = dataclasses.replace(world, vae=decoder)
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


def test_chunks_and_recomputed_blocks_give_the_gradient_of_the_whole(world, rng):
    """To the weights and to what goes in."""
    cond = world.prompts(["a red circle", "a blue cross", "a green square"] * 2).rows(torch.arange(6))
    z = torch.randn(6, *world.z_shape, generator=rng(), dtype=torch.float64, requires_grad=True)
    found = []
    for rows in (0, 4):
        gen = world.generator(500).double()
        if rows:
            lora.recompute_denoiser(gen.network)
        out = lora.in_chunks(gen, rows)(z, cond)
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


def test_rewards_are_cut_too():
    reward, x0 = lora.in_chunks(lambda x0, cond: x0.mean(1) + cond["prompt"], 2), torch.randn(5, 3)
    torch.testing.assert_close(reward(x0, {"prompt": torch.arange(5)}), x0.mean(1) + torch.arange(5))
