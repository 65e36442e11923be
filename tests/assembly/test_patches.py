"""Repaired tensors are named by what they are, and a file that is not what it says is refused."""

import pytest
import torch

from hf_prune.assembly.patches import digest_patch, load_patches, save_patches
from hf_prune.errors import InvalidBlueprint


def patch(seed=0, dtype=torch.bfloat16):
    draw = torch.Generator().manual_seed(seed)
    return {
        "mlp.down_proj.weight": torch.randn(4, 6, generator=draw).to(dtype),
        "o.bias": torch.randn(4, generator=draw).to(dtype),
    }


def test_the_digest_follows_names_types_shapes_and_bytes_and_no_order():
    one = patch()
    others = [
        patch(1),
        patch(dtype=torch.float16),
        {k + "x": v for k, v in one.items()},
        {**one, "mlp.down_proj.weight": one["mlp.down_proj.weight"].reshape(6, 4)},
        {"o.bias": one["o.bias"]},
    ]
    assert digest_patch(dict(reversed(one.items()))) == digest_patch(one)
    assert len({digest_patch(p) for p in (one, *others)}) == 6
    assert digest_patch({"t": one["mlp.down_proj.weight"].T}) == digest_patch(
        {"t": one["mlp.down_proj.weight"].T.contiguous()}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_saved_is_read_back_bit_for_bit(tmp_path, dtype):
    patches = {digest_patch(p): p for p in (patch(0, dtype), patch(1, dtype))}
    path = tmp_path / "repairs" / "patches.safetensors"
    save_patches(patches, path)
    found = load_patches(path)
    assert found.keys() == patches.keys() and [p.name for p in path.parent.iterdir()] == [path.name]
    for digest, tensors in patches.items():
        assert all(torch.equal(found[digest][n], t) and found[digest][n].dtype == dtype for n, t in tensors.items())


def test_without_patches_there_is_no_file(tmp_path):
    save_patches({}, tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == [] and load_patches(tmp_path / "p.safetensors") == {}


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_patches({digest_patch(patch()): patch()}, path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(InvalidBlueprint, match="has been changed"):
        load_patches(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InvalidBlueprint, match="truncated or malformed"):
        load_patches(path)
