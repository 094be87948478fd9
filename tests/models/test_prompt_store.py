"""Prompts on the disk: what `Prompts` gives, drawn alike, encoded once, whole whatever happens to the process."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import tiny_sdxl
import torch

from dipp_core.files import InputError
from dipp_core.method.schedule import uniform_index_time
from dipp_core.models import folders, miniature, prompts
from dipp_core.models.folders import TIMES_SIGMA
from dipp_core.models.prompts import Prompts, StoredPrompts, encode_prompts, stored_prompts
from dipp_core.worlds import shapes

KINDS = ("unet", "dit", "t5", "sdxl")
TEXTS = [*shapes.captions(shapes.split("validation"))[:20], "a red circle", "a red circle", "", "A large  BLUE cross "]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny folder of each kind."""
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    found = {kind: miniature.build(root / kind, kind, words=words, size="tiny") for kind in miniature.KINDS}
    found["t5"] = miniature.build(root / "t5", "dit", words=words, size="tiny", encoder="t5")
    return found | {"sdxl": tiny_sdxl.build(root / "sdxl", words=words)}


def encoder(folder, dtype=torch.float32):
    index = json.loads((folder / "model_index.json").read_text())
    return folders.read_text(folder, index, dtype=dtype, device="cpu")


def store(cache, folder, texts=TEXTS, *, loaded=None, **options):
    """The store of some texts; `loaded` collects how often the encoder was needed."""

    def load_encoder():
        (loaded if loaded is not None else []).append(1)
        return encoder(folder, options.get("dtype", torch.float32))

    options = {"dtype": torch.float32, "batch": 3, "shard": 7, "say": [].append} | options
    return stored_prompts(cache, folder, texts, load_encoder=load_encoder, **options)


def never():
    raise AssertionError("the encoder is not needed")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


# ---------------------------------------------------------------------------------------------- the same as a table


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_the_table_gives_draw_for_draw(places, tmp_path, kind):
    ours = store(tmp_path, places[kind], batch=64)  # batches of one size, so that not even rounding differs
    theirs = encode_prompts(encoder(places[kind]), TEXTS)
    assert len(ours) == len(theirs)
    assert isinstance(ours, Prompts)
    same(ours.null_cond, theirs.null_cond)
    for drop in (0.0, 0.3):
        one, other = (table.draw((40,), rng(), drop=drop) for table in (ours, theirs))
        assert torch.equal(one["prompt"], other["prompt"])
        assert ours.texts_of(one) == theirs.texts_of(other)
        for name in other:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    assert ours.leaves == {}  # nothing of them is in memory
    with pytest.raises(IndexError, match="there is no prompt 24: the table has 24"):
        ours.rows(torch.tensor([24]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_encoded_bit_for_bit(places, tmp_path, kind):
    """Of a prompt under a mask only the tokens that it has are on the disk; padded again they are the same."""
    text = encoder(places[kind])
    texts = list(dict.fromkeys(TEXTS))[:7]
    found = store(tmp_path, places[kind], texts, batch=7).rows(torch.arange(7))
    same({name: found[name] for name in found if name != "prompt"}, text.encode_batch(texts))


def test_a_file_holds_the_tokens_that_a_prompt_has_and_its_size_is_known_before(places, tmp_path):
    said, texts = [], list(dict.fromkeys(TEXTS))
    found = store(tmp_path, places["t5"], texts, shard=12, say=said.append)
    text = encoder(places["t5"])
    tokens = sum(len(text.tokenizer(one.lower().strip()).input_ids) for one in texts)
    values = tokens * text.encoder.config.d_model * 4
    assert len(found.files) == 2
    size = sum(file.stat().st_size for file in found.files)
    assert values < size < values + 40 * len(texts) + 1000
    assert size < 0.2 * len(texts) * 120 * text.encoder.config.d_model * 4
    assert prompts.estimate(text, texts, found.null) == pytest.approx(size, rel=0.1)
    assert said == ["encoding 23 prompts, about 0.00 GB on the disk"]
    assert prompts.guessed_tokens(texts) * len(texts) > tokens


def test_half_the_bytes_in_bfloat16_and_any_dtype_on_the_way_out(places, tmp_path):
    full = store(tmp_path, places["unet"])
    half = store(tmp_path, places["unet"], kept=torch.bfloat16)
    assert half.files[0].parent != full.files[0].parent
    assert half.files[0].stat().st_size < 0.6 * full.files[0].stat().st_size
    one, other = (table.rows(torch.tensor([3, -1]))["tokens"] for table in (half, full))
    assert torch.equal(one, other.bfloat16())
    assert half.to("cpu", torch.float32).rows(torch.tensor([3]))["tokens"].dtype == torch.float32
    assert half.to("cpu").null_cond["tokens"].dtype == torch.bfloat16


def test_networks_may_be_on_another_device_than_what_draws(places, tmp_path):
    """Noise, times and prompts are drawn on the CPU; torch's meta device, like a GPU, refuses to mix with it."""
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device="meta") + torch.ones(2)
    for kind in ("unet", "t5", "sdxl"):
        world = folders.load(places[kind], parts=("denoiser", "vae"), device="meta", dtype=torch.bfloat16)
        prompts = store(tmp_path, places[kind]).to("meta")
        cond = prompts.draw((3,), rng(), drop=0.5)
        assert {leaf.device.type for leaf in [*cond.values(), *prompts.null_cond.values()]} == {"meta"}
        z = torch.randn(3, *world.z_shape, generator=rng()).to("meta")
        t = uniform_index_time(world.schedule, 20, 980)((3,), generator=rng(), device=z.device)
        x0 = world.sample(z, cond, steps=2, alpha_cfg=1.0, null_cond=prompts.null_cond)
        made = folders.converted(world.generator(399), TIMES_SIGMA)(z, cond)
        found = [x0, made, world.score()(z, t, cond), world.decode(x0), world.encode(world.decode(made))]
        assert {(tensor.device.type, tensor.dtype) for tensor in found[:4]} == {("meta", torch.float32)}


# ---------------------------------------------------------------------------------------------------- encoded once


def test_what_was_encoded_is_never_encoded_again(places, tmp_path, monkeypatch):
    loaded, encoded = [], []
    store(tmp_path, places["unet"], TEXTS[:10], loaded=loaded)
    real = folders.TextEncoder.encode_batch
    monkeypatch.setattr(
        folders.TextEncoder, "encode_batch", lambda self, texts: encoded.extend(texts) or real(self, texts)
    )
    store(tmp_path, places["unet"], TEXTS[5:10][::-1], loaded=loaded)  # another list of known ones
    assert loaded == [1]
    store(tmp_path, places["unet"], TEXTS, loaded=loaded)
    assert loaded == [1, 1]
    assert sorted(encoded) == sorted(set(TEXTS[10:]))  # each once
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no prompts were given"):
        store(tmp_path, places["unet"], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda f: folders.write_other_weight(f),
        lambda f: (f / "tokenizer/vocab.json").write_text((f / "tokenizer/vocab.json").read_text() + " "),
        lambda f: _indexed(f, _class_name="StableDiffusionXLPipeline"),
    ],
    ids=["weights", "tokenizer", "masking rule"],
)
def test_another_encoder_has_another_place(places, tmp_path, monkeypatch, change):
    monkeypatch.setattr(folders, "write_other_weight", _another_weight, raising=False)
    place = shutil.copytree(places["dit"], tmp_path / "model")
    how = {"dtype": torch.float32, "kept": torch.float32}
    before = prompts.identity(place, **how)
    assert before == prompts.identity(places["dit"], **how)
    assert before != prompts.identity(place, **how | {"dtype": torch.bfloat16})
    change(place)
    assert prompts.identity(place, **how) != before


def test_a_large_file_is_told_from_another_of_its_size_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "WHOLE", 1000)
    one, other = bytearray(3 * 2**20), bytearray(3 * 2**20)
    other[2**21 : 2**21 + 2**14] = b"\1" * 2**14  # a fine-tuned encoder differs everywhere, not in one place
    for name, content in (("one", one), ("other", other)):
        (tmp_path / name).write_bytes(content)
    assert prompts._looked_at(tmp_path / "one") != prompts._looked_at(tmp_path / "other")


def _another_weight(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder/model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).flatten()[0] += 1.0
    save_file(weights, path, metadata={"format": "pt"})


def _indexed(folder, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


# --------------------------------------------------------------------------------------------- whatever may happen


def killed_in_the_third_file(cache, folder):
    """A process that dies by SIGKILL when its third file is written and has no name yet."""
    calls, real = [], os.replace

    def replace(*names):
        calls.append(1)
        if len(calls) == 4:  # the empty prompt has a file too
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names)

    os.replace = replace
    torch.set_num_threads(1)
    store(cache, folder)


def forked(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def test_a_killed_process_loses_the_file_it_was_writing_and_nothing_else(places, tmp_path):
    process = forked(killed_in_the_third_file, tmp_path, places["dit"])
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (place,) = tmp_path.iterdir()
    assert len(list(place.glob("prompts-*.safetensors"))) == 2
    assert len(list(place.glob("*.part"))) == 1
    said = []
    ours = store(tmp_path, places["dit"], say=said.append)
    assert said[0].startswith("encoding 9 prompts")  # 23 different ones, less twice seven
    assert not list(place.glob("*.part"))
    theirs = encode_prompts(encoder(places["dit"]), TEXTS)
    torch.testing.assert_close(ours.rows(torch.arange(24))["tokens"], theirs.leaves["tokens"], rtol=1e-5, atol=1e-5)


def overlapping(cache, folder, start):
    torch.set_num_threads(1)
    store(cache, folder, TEXTS[start : start + 16], shard=3)


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "on a disk without locks"])
def test_two_processes_at_once_do_no_harm(places, tmp_path, monkeypatch, locks):
    if not locks:
        import fcntl

        def refuse(*_):
            raise OSError("no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    both = [forked(overlapping, tmp_path, places["unet"], start) for start in (0, 8)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    ours = stored_prompts(tmp_path, places["unet"], TEXTS, load_encoder=never, dtype=torch.float32)
    theirs = encode_prompts(encoder(places["unet"]), TEXTS)
    torch.testing.assert_close(ours.rows(torch.arange(24))["tokens"], theirs.leaves["tokens"], rtol=1e-5, atol=1e-5)
    if locks:
        assert sum(len(table) for table in _keys(ours)) == 23  # the second process waited, and found most of it done


def _keys(table):
    from safetensors import safe_open

    for path in table.files:
        with safe_open(path, framework="pt") as file:
            yield file.get_tensor("keys").flatten().unflatten(0, (-1, 16))


def cut(path):
    os.truncate(path, path.stat().st_size - 10)


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    """One byte of the tokens, which follow the other tensors' names and stand before the end."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    content[start + header["tokens"]["data_offsets"][0]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "words"),
    [(cut, "is no whole file"), (emptied, "is no whole file"), (flipped, "is damaged")],
    ids=["truncated", "empty", "one bit"],
)
def test_a_bad_file_is_one_line_and_cured_by_deleting_it(places, tmp_path, harm, words):
    path = store(tmp_path, places["unet"]).files[0]
    prompts._opened.cache_clear()
    harm(path)
    with pytest.raises(InputError, match=words) as caught:
        store(tmp_path, places["unet"]).rows(torch.arange(24))
    assert "\n" not in str(caught.value)
    assert f"{path}" in str(caught.value)
    assert "delete it and start again" in str(caught.value)
    path.unlink()
    prompts._opened.cache_clear()
    store(tmp_path, places["unet"]).rows(torch.arange(24))


def test_other_flaws_are_one_line_too(places, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    flaws = {
        "cannot be made": lambda: store(tmp_path / "file", places["unet"]),
        "GB are free": lambda: _without_room(monkeypatch, lambda: store(tmp_path / "full", places["unet"])),
        "cannot be written": lambda: _without_disk(monkeypatch, lambda: store(tmp_path / "off", places["unet"])),
    }
    for words, act in flaws.items():
        with pytest.raises(InputError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "off").rglob("*.part"))
    with pytest.raises(InputError, match=r"text_encoder/config\.json is missing"):
        store(tmp_path, shutil.copytree(places["unet"], tmp_path / "m", ignore=lambda *_: ["text_encoder"]))


def _without_room(monkeypatch, act):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        act()


def _without_disk(monkeypatch, act):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        act()


def test_padding_in_front_is_refused(tmp_path):
    leaves = {"tokens": torch.ones(1, 3, 2), "mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(InputError, match="pads in front"):
        prompts.write_shard(tmp_path, ["a"], leaves)


def test_a_row_costs_a_read_of_that_row(places, tmp_path):
    """Files are mapped, not read: a store of many prompts opens without their content."""
    found = store(tmp_path, places["unet"], shard=256)
    assert isinstance(found, StoredPrompts)
    assert found.places.dtype == "int32"
    assert found.places.nbytes == 8 * len(TEXTS)
    assert len(found.files) == 1
    assert found.places[20].tolist() == found.places[21].tolist()  # a prompt given twice is kept once
