"""Tiny model folders with a tokenizer, edits of them, and what stock transformers makes of both."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.blueprint import Blueprint
from hf_prune.hub import pull
from hf_prune.models.parent import Parent
from tests.families import tiny
from tests.hub.samples import model as samples

VOCABULARY, LENGTH = 320, 256
State = dict[str, torch.Tensor]


def build(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any
) -> Path:
    """A folder that stock transformers wrote, of six lively layers; `shards` is at least so many."""
    sizes = {"n_positions": LENGTH} if family == "gpt2" else {"max_position_embeddings": LENGTH}
    made = tiny(family, dtype=dtype, **{"vocab_size": VOCABULARY, **sizes, **config})
    limit = {} if shards == 1 else {"max_shard_size": f"{made.get_memory_footprint() // shards // 1000}KB"}
    made.save_pretrained(folder, **limit)
    for name, content in samples().items():
        if "token" in name or name == "generation_config.json":
            (folder / name).write_bytes(content)
    return folder


def reconfigure(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Change entries of a JSON file; None takes one out."""
    path = folder / name
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """config.json."""
    return json.loads((folder / "config.json").read_text())


def files(folder: Path) -> list[Path]:
    """Its weights, as saved by stock transformers."""
    return sorted(folder.glob("model*.safetensors"))


def state(folder: Path) -> State:
    """All its tensors."""
    return {n: t for path in files(folder) for n, t in load_file(path).items()}


def restate(folder: Path, change: Callable[[State], Any], file: str = "model.safetensors") -> Path:
    """Edit the tensors of a folder with one file of weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def put(**tensors: torch.Tensor | None) -> Callable[[State], None]:
    """An edit; `__` stands for a dot, None takes a tensor out."""

    def change(found: State) -> None:
        for name, tensor in tensors.items():
            found.pop(name.replace("__", "."), None)
            if tensor is not None:
                found[name.replace("__", ".")] = tensor

    return change


def stored(*dtypes: tuple[str, torch.dtype]) -> Callable[[State], None]:
    """An edit: tensors whose name has a word in it are stored in a dtype; the last that fits counts."""

    def change(found: State) -> None:
        for name, tensor in found.items():
            for word, dtype in dtypes:
                if word in name:
                    found[name] = found[name].to(dtype) if found[name].is_floating_point() else tensor

    return change


def bytes_of(folder: Path) -> int:
    """Of all tensors in its files."""
    return sum(t.nbytes for t in state(folder).values())


def stock(folder: Path, **how: Any) -> PreTrainedModel:
    """As any user loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, **how).eval().requires_grad_(False)


def without(model: PreTrainedModel, layers: str, removed: Sequence[int]) -> PreTrainedModel:
    """A stock model less some of its layers, by hand; `layers` is the path of their list."""
    kept = [i for i in range(len(model.get_submodule(layers))) if i not in removed]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for key in ("layer_types", "no_rope_layers"):
        if getattr(config, key, None) is not None:
            setattr(config, key, [getattr(config, key)[i] for i in kept])
    made = type(model)(config).to(model.dtype).eval().requires_grad_(False)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith(layers + ".")}
    for new, old in enumerate(kept):
        own = model.get_submodule(f"{layers}.{old}").state_dict()
        tensors |= {f"{layers}.{new}.{n}": t for n, t in own.items()}
    made.load_state_dict(tensors)
    return made


@torch.no_grad()
def logits(model: PreTrainedModel, rows: int = 2, length: int = 24) -> torch.Tensor:
    """What it says to some tokens, [rows, length, V]."""
    tokens = torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(0))
    return model(input_ids=tokens.to(model.device), use_cache=False).logits


def opened(name: Path | str, **how: Any) -> Parent:
    """A source as a run opens it."""
    found = pull(str(name), **how)
    return Parent.open(found.source, found.folder, found.adapter, **how)


def cut(parent: Parent, removed: Sequence[int]) -> Blueprint:
    """All layers but some."""
    whole = Blueprint.identity(parent.source, parent.depth)
    return Blueprint(whole.sources, tuple(s for i, s in enumerate(whole.layers) if i not in removed))
