"""Tensors that replace some of a layer's own (its repair), named by their content; one safetensors file holds many."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_prune.atomic_files import written
from hf_prune.errors import InvalidBlueprint

Patch = Mapping[str, torch.Tensor]
"""Names inside a layer (`mlp.down_proj.weight`) and what stands there instead."""
Patches = Mapping[str, Patch]
"""By digest, as `LayerSpec.repair` names them."""
NO_PATCHES: Patches = MappingProxyType({})
PATCH_FILE = "repairs/patches.safetensors"
"""In a folder of its own: some runtimes load every weight file that lies beside a config."""


def digest_patch(patch: Patch) -> str:
    """64 bits of SHA-256 over names, dtypes, shapes and bytes."""
    seen = hashlib.sha256()
    for name in sorted(patch):
        tensor = patch[name].contiguous()
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        seen.update(tensor.view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def save_patches(patches: Patches, path: Path) -> None:
    """Write them under a temporary name, then rename; nothing is written when there are none."""
    if not patches:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{digest}.{name}": t.contiguous() for digest, patch in patches.items() for name, t in patch.items()}
    with written(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def load_patches(path: Path) -> Patches:
    """Read what `save_patches` wrote; none where the file is missing.

    Raises:
        InvalidBlueprint: the file is damaged, or a patch is not what its name says.
    """
    if not path.is_file():
        return NO_PATCHES
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise InvalidBlueprint(f"The repair file {path} is truncated or malformed ({e}); make it again.") from None
    patches: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        digest, _, name = key.partition(".")
        patches.setdefault(digest, {})[name] = tensor
    for digest, patch in patches.items():
        if digest_patch(patch) != digest:
            raise InvalidBlueprint(f"The repair {digest} in {path} has been changed; make it again.")
    return patches
