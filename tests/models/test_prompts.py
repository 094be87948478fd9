"""Prompts as a table and on the disk: alike row for row, encoded once, whole whatever happens to the process."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch

from dipp_core.files import InputError
from dipp_core.method.schedule import uniform_index_time
from dipp_core.models import folders, prompts
from dipp_core.models.prompts import Prompts, TextEncoder, encode_prompts, stored_prompts
from dipp_core.worlds import shapes

TEXTS = [*shapes.captions(shapes.split("validation"))[:20], "a red circle", "a red circle", "", "A large  BLUE cross "]
KINDS = ("unet", "dit", "t5", "sdxl")


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(prompts, "SHARD", 7)
    monkeypatch.setattr(prompts, "BATCH", 3)


def encoder(folder, dtype=torch.float32):
    return folders.read_text(folder, dtype=dtype, device="cpu")


def store(cache, folder, texts=TEXTS, *, loaded=None, dtype=torch.float32, say=lambda line: None):
    """The store of some texts; `loaded` collects how often the encoder was needed."""

    def load_encoder():
        (loaded if loaded is not None else []).append(1)
        return encoder(folder, dtype)

    return stored_prompts(cache, folder, texts, load_encoder=load_encoder, dtype=dtype, say=say)


# ---------------------------------------------------------------------------------------------------------- the table


def test_a_condition_knows_its_text_and_the_empty_prompt_is_a_row(places, rng):
    table = encode_prompts(encoder(places / "unet"), TEXTS[:2])
    cond = table.rows(torch.tensor([1, -1, 0]))
    assert table.texts_of(cond) == [TEXTS[1], "", TEXTS[0]]
    torch.testing.assert_close(cond["tokens"][1], table.null_cond["tokens"][0])
    assert table.rows(torch.tensor([0]))["tokens"].data_ptr() != table.leaves["tokens"].data_ptr()
    drawn = table.draw((20_000,), rng(), drop=0.1)
    shares = torch.bincount(drawn["prompt"] + 1, minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.45, 0.45]), atol=0.01, rtol=0)
    with pytest.raises(IndexError, match="there is no prompt 2: the table has 2"):
        table.rows(torch.tensor([2]))
    with pytest.raises(ValueError, match="no prompts were given"):
        encode_prompts(None, [])


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_gives_what_the_table_gives_draw_for_draw_and_bit_for_bit(places, tmp_path, rng, kind):
    """Of a prompt under a mask only the tokens that it has are on the disk; padded again they are the same."""
    text = encoder(places / kind)
    ours, theirs = store(tmp_path, places / kind), encode_prompts(text, TEXTS)
    assert isinstance(ours, Prompts)
    assert len(ours) == len(theirs)
    assert ours.leaves == {}  # nothing of them is in memory but where they are
    assert ours.places.nbytes == 8 * len(TEXTS)
    assert ours.places[20].tolist() == ours.places[21].tolist()  # a prompt given twice is kept once
    for drop in (0.0, 0.3):
        one, other = (table.draw((40,), rng(), drop=drop) for table in (ours, theirs))
        assert ours.texts_of(one) == theirs.texts_of(other)
        assert one.keys() == other.keys()
        for name in other:
            assert one[name].dtype == other[name].dtype
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    exact = text.encode_batch(TEXTS[:3])
    assert all(torch.equal(ours.rows(torch.arange(3))[name], leaf) for name, leaf in exact.items())
    assert all(torch.equal(ours.null_cond[name], leaf) for name, leaf in theirs.null_cond.items())
    with pytest.raises(IndexError, match="there is no prompt 24: the table has 24"):
        ours.rows(torch.tensor([24]))


def test_a_file_holds_the_tokens_that_a_prompt_has(places, tmp_path):
    said, texts = [], list(dict.fromkeys(TEXTS))
    found, text = store(tmp_path, places / "t5", texts, say=said.append), encoder(places / "t5")
    tokens = sum(len(text.tokenizer(one.lower().strip()).input_ids) for one in texts)
    values = tokens * text.encoder.config.d_model * 4
    size = sum(file.stat().st_size for file in found.files)
    assert len(found.files) == 4
    assert values < size < values + 40 * len(texts) + 2000
    assert size < 0.2 * len(texts) * 120 * text.encoder.config.d_model * 4
    assert said == ["encoding 23 prompts"]
    assert prompts.guessed_tokens(texts) * len(texts) > tokens


def test_networks_may_be_on_another_device_and_of_another_dtype_than_what_draws(places, tmp_path, rng):
    """Noise, times and prompts are drawn on the CPU; torch's meta device, like a GPU, refuses to mix with it."""
    for kind in ("t5", "sdxl"):
        world = folders.load(places / kind, parts=("denoiser", "vae"), device="meta", dtype=torch.bfloat16)
        table = store(tmp_path, places / kind, dtype=torch.bfloat16).to("meta", torch.float32)
        cond = table.draw((3,), rng(), drop=0.5)
        assert {leaf.device.type for leaf in [*cond.values(), *table.null_cond.values()]} == {"meta"}
        assert cond["tokens"].dtype == torch.float32
        z = torch.randn(3, *world.z_shape, generator=rng()).to("meta")
        t = uniform_index_time(world.schedule, 20, 980)((3,), generator=rng(), device=z.device)
        x0 = world.sample(z, cond, steps=2, alpha_cfg=1.0, null_cond=table.null_cond)
        made = folders.converted(world.generator(399), folders.TIMES_SIGMA)(z, cond)
        found = [x0, made, world.score()(z, t, cond), world.decode(x0)]
        assert {(tensor.device.type, tensor.dtype) for tensor in found} == {("meta", torch.float32)}


# ------------------------------------------------------------------------------------------------------- encoded once


def test_what_was_encoded_is_never_encoded_again(places, tmp_path, monkeypatch):
    loaded, encoded, real = [], [], TextEncoder.encode_batch
    store(tmp_path, places / "unet", TEXTS[:10], loaded=loaded)
    monkeypatch.setattr(TextEncoder, "encode_batch", lambda self, texts: encoded.extend(texts) or real(self, texts))
    store(tmp_path, places / "unet", TEXTS[5:10][::-1], loaded=loaded)  # another list of known ones
    assert loaded == [1]
    store(tmp_path, places / "unet", TEXTS, loaded=loaded)
    assert loaded == [1, 1]
    assert sorted(encoded) == sorted(set(TEXTS[10:]))  # each once


CHANGES = {
    "text_encoder/model.safetensors": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "tokenizer/vocab.json": lambda content: content + b" ",
    "model_index.json": lambda content: content.replace(b"PixArtAlphaPipeline", b"StableDiffusionXLPipeline"),
}


@pytest.mark.parametrize("file", CHANGES)
def test_another_encoder_has_another_place(places, tmp_path, file):
    place = shutil.copytree(places / "dit", tmp_path / "model")
    before = prompts.identity(place, torch.float32)
    assert before == prompts.identity(places / "dit", torch.float32)
    assert before != prompts.identity(place, torch.bfloat16)
    (place / file).write_bytes(CHANGES[file]((place / file).read_bytes()))
    assert prompts.identity(place, torch.float32) != before


def test_a_large_file_is_told_from_another_of_its_size_by_blocks(places, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "WHOLE", 2**20)
    one, other = bytearray(3 * 2**20), bytearray(3 * 2**20)
    other[2**21 : 2**21 + 2**14] = b"\1" * 2**14  # a fine-tuned encoder differs everywhere, not in one place
    place = shutil.copytree(places / "dit", tmp_path / "model")
    names = set()
    for content in (one, other):
        (place / "tokenizer/large").write_bytes(content)
        names.add(prompts.identity(place, torch.float32))
    assert len(names) == 2


# ------------------------------------------------------------------------------------------------ whatever may happen


def forked(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


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


def test_a_killed_process_loses_the_file_it_was_writing_and_nothing_else(places, tmp_path):
    process = forked(killed_in_the_third_file, tmp_path, places / "dit")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (place,) = tmp_path.iterdir()
    assert len(list(place.glob("prompts-*.safetensors"))) == 2
    assert len(list(place.glob(".prompts-*"))) == 1
    said = []
    ours = store(tmp_path, places / "dit", say=said.append)
    assert said[0].startswith("encoding 9 prompts")  # 23 different ones, less twice seven
    assert not list(place.glob(".prompts-*"))
    theirs = encode_prompts(encoder(places / "dit"), TEXTS)
    torch.testing.assert_close(ours.rows(torch.arange(24))["tokens"], theirs.leaves["tokens"], rtol=1e-5, atol=1e-5)


def overlapping(cache, folder, start):
    torch.set_num_threads(1)
    prompts.SHARD = 3
    store(cache, folder, TEXTS[start : start + 16])


def test_of_two_processes_at_once_the_second_waits_and_finds_most_of_it_done(places, tmp_path):
    both = [forked(overlapping, tmp_path, places / "unet", start) for start in (0, 8)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    ours = stored_prompts(tmp_path, places / "unet", TEXTS, load_encoder=None, dtype=torch.float32)
    theirs = encode_prompts(encoder(places / "unet"), TEXTS)
    torch.testing.assert_close(ours.rows(torch.arange(24))["tokens"], theirs.leaves["tokens"], rtol=1e-5, atol=1e-5)
    assert sum(len(prompts._opened(file)[2]) for file in ours.files) == 23  # none of them twice


def flipped(content):
    """One bit of the tokens is another."""
    start = 8 + int.from_bytes(content[:8], "little")
    at = start + json.loads(content[8:start])["tokens"]["data_offsets"][0]
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda content: content[:-10], "is no whole file"),
        (lambda content: b"", "is no whole file"),
        (flipped, "is damaged"),
    ],
    ids=["cut", "emptied", "flipped"],
)
def test_a_bad_file_is_one_line_and_cured_by_deleting_it(places, tmp_path, harm, words):
    path = store(tmp_path, places / "unet").files[0]
    prompts._opened.cache_clear()
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{path} {words}.*delete it and start again"):
        store(tmp_path, places / "unet").rows(torch.arange(24))
    path.unlink()
    prompts._opened.cache_clear()
    store(tmp_path, places / "unet").rows(torch.arange(24))


def no_room(*_):
    raise OSError(28, "No space left on device")


def test_other_flaws_are_one_line_too(places, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        store(tmp_path / "file", places / "unet")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        with pytest.raises(InputError, match=r"cannot be written.*No space left"):
            store(tmp_path / "off", places / "unet")
    assert not list((tmp_path / "off").rglob("*.safetensors*"))
    with pytest.raises(InputError, match=r"text_encoder/config\.json is missing"):
        store(tmp_path, shutil.copytree(places / "unet", tmp_path / "m", ignore=lambda *_: ["text_encoder"]))
    with pytest.raises(ValueError, match="no prompts were given"):
        store(tmp_path, places / "unet", [])
    text = encoder(places / "dit")
    text.tokenizer.padding_side = "left"
    with pytest.raises(InputError, match="pads in front"):
        stored_prompts(tmp_path, places / "dit", TEXTS, load_encoder=lambda: text, dtype=torch.float32)
