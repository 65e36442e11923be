"""Checkpoints: tensors are read as stock transformers reads them, what is broken or unsafe is named, shards add up."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_prune.assembly.assemble import assemble
from hf_prune.blueprint import Blueprint
from hf_prune.errors import BrokenCheckpoint, SourceError, UnsafeSource
from hf_prune.hub.contents import INDEX, SINGLE
from hf_prune.models.checkpoint import Checkpoint, write_shards
from tests.families import SOURCE, opened, save_tiny
from tests.oracle import saved, stock

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def state():
    return load_file(saved("llama") / SINGLE)


@pytest.fixture
def folder(tmp_path):
    """A folder with the config alone; weights are up to the test."""
    shutil.copy(saved("llama") / "config.json", tmp_path)
    return tmp_path


def single(folder, state, **changes):
    save_file({**state, **changes}, folder / SINGLE, metadata={"format": "pt"})


def sharded(folder):
    """The model in several files, as stock transformers cuts it."""
    stock(saved("llama")).save_pretrained(folder, max_shard_size="40KB")
    return sorted(p.name for p in folder.glob("model-*.safetensors"))


def identity(parent):
    return assemble(Blueprint.identity(SOURCE, parent.depth), [parent])


def same(model, state):
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file_is_read_as_it_is(folder, state, dtype):
    state = {k: v.to(dtype) for k, v in state.items()}
    single(folder, state)
    opened_folder = Checkpoint.open(folder)
    assert set(opened_folder.tensors) == set(state)
    for name, tensor in state.items():
        got = opened_folder.tensor(name)
        assert got.dtype == dtype and torch.equal(got, tensor)
        assert opened_folder.dtype(name) == tensor.dtype


def test_shards_are_read_as_one(folder, state):
    assert len(sharded(folder)) > 3
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.tensors) == set(state) and same(identity(opened(folder)), state)


def test_a_missing_shard_is_named(folder):
    victim = sharded(folder)[1]
    (folder / victim).unlink()
    with pytest.raises(BrokenCheckpoint, match=f"lacks {victim}, which its"):
        Checkpoint.open(folder)


@settings(max_examples=30)
@given(st.data())
def test_a_file_cut_anywhere_is_refused_on_opening(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    shutil.copy(saved("llama") / "config.json", folder)
    whole = (saved("llama") / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BrokenCheckpoint, match=f"{SINGLE} is truncated or malformed"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}'.ljust(62) + bytes(16),
    ],
)
def test_a_shard_that_is_no_safetensors_is_refused(folder, content):
    victim = sharded(folder)[0]
    (folder / victim).write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=f"{victim} is truncated or malformed"):
        Checkpoint.open(folder)


def test_a_folder_without_weights_says_so(folder):
    with pytest.raises(SourceError, match="is empty"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(folder, state, value, dtype):
    bad = state[UP].to(dtype, copy=True)
    bad[3, 7] = value
    single(folder, state, **{UP: bad})
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.tensor("model.norm.weight"), state["model.norm.weight"])
    with pytest.raises(BrokenCheckpoint, match=f"tensor {UP} holds NaN or infinite"):
        checkpoint.tensor(UP)


def test_whole_numbers_are_always_finite(folder, state):
    single(folder, state, position_ids=torch.arange(5))
    assert Checkpoint.open(folder).tensor("position_ids").tolist() == [0, 1, 2, 3, 4]


def test_an_absent_tensor_is_named(folder, state):
    single(folder, {k: v for k, v in state.items() if k != UP})
    with pytest.raises(BrokenCheckpoint, match=f"tiny is incomplete.*{UP} is missing"):
        opened(folder)
    checkpoint = Checkpoint.open(folder)
    assert UP not in checkpoint and "model.norm.weight" in checkpoint
    for ask in (checkpoint.tensor, checkpoint.dtype):
        with pytest.raises(BrokenCheckpoint, match=f"no tensor {UP}; the checkpoint is incomplete"):
            ask(UP)


@pytest.mark.parametrize("shape", [(47, 32), (32, 48), (48 * 32,)])
def test_a_tensor_of_another_shape_is_named_before_anything_is_read(folder, state, shape):
    single(folder, state, **{UP: torch.zeros(shape)})
    with pytest.raises(BrokenCheckpoint, match=rf"{UP} has shape \[{shape[0]}.*must have \[48, 32\]"):
        opened(folder)


# Other names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "stored"),
    [("gpt2", "transformer.", ""), ("opt", "model.", ""), ("gpt_neox", "lm_head.", "embed_out.")],
)
def test_files_that_spell_prefixes_otherwise_are_read(name, module, stored, tmp_path):
    source = stock(saved(name))
    tied = set(source._tied_weights_keys or ()) if source.config.tie_word_embeddings else set()
    state = {k: v.clone() for k, v in source.state_dict().items() if k not in tied}
    respelled = {stored + k.removeprefix(module) if k.startswith(module) else k: v for k, v in state.items()}
    assert respelled.keys() != state.keys()
    shutil.copy(saved(name) / "config.json", tmp_path)
    single(tmp_path, respelled)
    assert same(identity(opened(tmp_path)), source.state_dict())
    # Both spellings in one file: that counts which counts for transformers.
    other = {k: v + 1 for k, v in respelled.items() if k not in state}
    single(tmp_path, {**state, **other})
    assert same(identity(opened(tmp_path)), stock(tmp_path).state_dict())


# Indices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "[" * 100_000, "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": null}}', '{"weight_map": {"a": ["b"]}}', "\udc80",
    ],
)  # fmt: skip
def test_a_malformed_index_is_refused(folder, text):
    (folder / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BrokenCheckpoint, match="is not a readable index|names no shards"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("how", ["../model.safetensors", "..", "", ".", "inner/model.safetensors", "{absolute}"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path, state, how):
    """The file is there and sound, so only the check can refuse it."""
    single(tmp_path, state)
    folder = tmp_path / "repo"
    (folder / "inner").mkdir(parents=True)
    shutil.copy(saved("llama") / "config.json", folder)
    single(folder / "inner", state)
    shard = how.format(absolute=tmp_path / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, shard)}))
    with pytest.raises(UnsafeSource, match="points outside its folder"):
        Checkpoint.open(folder)


# Pickles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_until_allowed(folder, state, zipped):
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeSource, match="only pickles"):
        opened(folder)
    parent = opened(folder, allow_pickle=True)
    assert parent.checkpoint.dtype(UP) == torch.float32 and same(identity(parent), state)


def test_several_pickles_are_read_as_one(folder, state):
    names, shards = list(state), [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for shard, some in zip(shards, (names[::2], names[1::2]), strict=True):
        torch.save({n: state[n] for n in some}, folder / shard)
    where = {n: shards[i % 2] for i, n in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    # What no index names is not read.
    torch.save(dict.fromkeys(names, torch.zeros(1)), folder / "pytorch_model-00003-of-00003.bin")
    assert same(identity(opened(folder, allow_pickle=True)), state)


def test_safetensors_win_over_pickles_beside_them(folder, state):
    single(folder, state)
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    assert same(identity(opened(folder)), state)


class Command:
    """Pickled, it is a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", [(os.mkdir, ("{}/bait",)), (tempfile.mkdtemp, ("bait", "", "{}"))])
def test_a_pickle_that_would_run_code_does_not(folder, zipped, call):
    made = Command(call[0], tuple(text.format(folder) for text in call[1]))
    torch.save({"a": made}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeSource, match="may run code"):
        opened(folder, allow_pickle=True)
    assert not [p for p in folder.iterdir() if p.is_dir()]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 60, 5000, -1])
def test_a_cut_pickle_is_refused(folder, state, zipped, kept):
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenCheckpoint, match=r"pytorch_model\.bin is truncated or malformed"):
        opened(folder, allow_pickle=True)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"a": 3}])
def test_a_pickle_without_named_tensors_is_refused(folder, content):
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(BrokenCheckpoint, match="truncated or malformed"):
        opened(folder, allow_pickle=True)


# Writing -------------------------------------------------------------------------------------------------------------


def items(sizes):
    """Float32 tensors of given lengths, as `write_shards` takes them."""
    tensors = {f"t{i}": torch.full((n,), float(i)) for i, n in enumerate(sizes)}
    return tensors, [(n, t.nbytes, lambda t=t: t) for n, t in tensors.items()]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 100))
def test_shards_hold_everything_once_in_order_and_stay_small(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("out")
    tensors, given_items = items(sizes)
    names = write_shards(given_items, folder, 4 * limit)
    assert sorted(names) == sorted(p.name for p in folder.iterdir())
    shards = [load_file(folder / n) for n in names if n != INDEX]
    assert [n for s in shards for n in sorted(s, key=lambda n: int(n[1:]))] == list(tensors)
    assert all(torch.equal(s[n], tensors[n]) for s in shards for n in s)
    lengths = [[len(t) for t in s.values()] for s in shards]
    assert all(sum(n) <= limit or len(n) == 1 for n in lengths)
    assert all(sum(a) + len(tensors[f"t{sum(map(len, lengths[: i + 1]))}"]) > limit for i, a in enumerate(lengths[:-1]))


def test_one_shard_needs_no_index_and_several_have_the_usual_one(tmp_path):
    tensors, given_items = items([4, 4, 4])
    assert write_shards(given_items, tmp_path, 48) == [SINGLE]
    several = tmp_path / "several"
    several.mkdir()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert write_shards(given_items, several, 47) == [*names, INDEX]
    index = json.loads((several / INDEX).read_text())
    assert index == {
        "metadata": {"total_size": 48},
        "weight_map": {"t0": names[0], "t1": names[0], "t2": names[1]},
    }


def test_a_shard_is_finished_before_the_next_is_read_and_named_when_complete(tmp_path):
    tensors, seen = items([4, 4])[0], []

    def read(name):
        seen.append((name, sorted(p.name for p in tmp_path.iterdir())))
        if name == "t1":
            raise BrokenCheckpoint("unreadable")
        return tensors[name]

    with pytest.raises(BrokenCheckpoint, match="unreadable"):
        write_shards([(n, 16, lambda n=n: read(n)) for n in tensors], tmp_path, 16)
    first = "model-00001-of-00002.safetensors"
    assert seen == [("t0", []), ("t1", [first])] and [p.name for p in tmp_path.iterdir()] == [first]


def test_what_could_not_be_saved_leaves_no_finished_name(tmp_path):
    """Two views of one memory that are not the same tensor: safetensors refuses them."""
    whole = torch.arange(8.0)
    with pytest.raises(RuntimeError, match="share memory"):
        write_shards([("a", 32, lambda: whole), ("b", 16, lambda: whole[2:6])], tmp_path, 1 << 20)
    assert not (tmp_path / SINGLE).exists()


def test_one_tensor_under_two_names_is_written_twice(tmp_path):
    whole = torch.arange(8.0)
    write_shards([("a", 32, lambda: whole), ("b", 32, lambda: whole)], tmp_path)
    assert {n: t.tolist() for n, t in load_file(tmp_path / SINGLE).items()} == {n: whole.tolist() for n in "ab"}


def test_views_are_written_as_they_look(tmp_path):
    turned = torch.arange(6.0).view(2, 3).T
    write_shards([("a", 24, lambda: turned)], tmp_path)
    assert torch.equal(load_file(tmp_path / SINGLE)["a"], turned)


# Memory ---------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from hf_prune.assembly.assemble import Parent, write
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source

def held():
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

def watch():
    while True:
        peak.append(held())
        time.sleep(0.001)

folder, out, shard = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
parent = Parent.open(Source("big", "tiny"), folder)
half = [LayerSpec((Part(0, i, 0.5), Part(0, (i + 1) % 6, 0.5))) for i in range(6)]
(out / "warm").mkdir(parents=True)
write(Blueprint((parent.source,), (half[0],)), [parent], out / "warm", shard_bytes=1 << 20)
peak, before = [], held()
threading.Thread(target=watch, daemon=True).start()
write(Blueprint((parent.source,), tuple(half)), [parent], out, shard_bytes=shard)
print(max(peak) - before, sum(p.stat().st_size for p in out.glob("*.safetensors")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_a_merged_model_holds_two_shards_at_most(tmp_path):
    """Every tensor is merged, so none is a mapped page; anonymous memory is what the process itself holds."""
    size = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 8}
    save_tiny("llama", tmp_path / "big", **size)
    shard = 32 << 20
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "out"), str(shard)]
    # What glibc keeps of freed memory is not what the process holds.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    grown, written = map(int, done.stdout.split())
    assert written > 300e6 and shard // 2 < grown <= 2 * shard
