"""What each expert of a mixture is worth, by one pass of calibration text through the dense model.

Of the tokens X_j that the router sends to expert j, with its weight g_j(x) and its output f_j(x):

    reap         mean over X_j of g_j(x) |f_j(x)|      (REAP, arXiv 2510.13999, eq. 9)
    frequency    |X_j| / |X|
    output_norm  mean over X_j of |f_j(x)|
    ean          sum over X_j of |f_j(x)|              (expert activation norm)
    weight_norm  Frobenius norm of its weights

An expert that no token was sent to is worth nothing by any of them but the last. Beside them stand the distances of the
outputs of any two experts on the same tokens, by which the nearest is found (HC-SMoE, arXiv 2410.08589).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_prune.atomic_files import written
from hf_prune.data.windows import Windows
from hf_prune.evaluation.dense import Call, Dense
from hf_prune.evaluation.residual_maps import Tap
from hf_prune.models.mixtures import Mixture
from hf_prune.models.parent import Parent
from hf_prune.recovery.levels import CACHE

SCORES = ("reap", "frequency", "output_norm", "ean", "weight_norm")
DISTANCES = "distances"
COMPARED = 128
"""Tokens that experts are compared on, all of them on each."""
KIND = "scores"
"""Of this library, as a method names it."""
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class ExpertScores:
    """Worth of every expert by every score: a row per layer that has experts. `digest` is of all it depends on."""

    digest: str
    tables: Mapping[str, Table]

    @classmethod
    def open(cls, path: Path, digest: str) -> "ExpertScores":
        """Read what `made` wrote."""
        with safe_open(path, "pt") as file:
            return cls(digest, {name: _table(file.get_tensor(name)) for name in (*SCORES, DISTANCES)})


def made(
    dense: Dense,
    parent: Parent,
    text: Windows,
    folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExpertScores:
    """The scores of a model's experts: read where they are known, else measured; by default in the user's cache.

    Args:
        dense: the resident model.
        parent: where it comes from; it has a mixture.
        text: calibration windows.
        folder: for the file.
        progress: told layers done and layers in all.
    """
    told = json.dumps([str(parent.source), text.digest, KIND, 2])
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    path = (folder / KIND if folder else Path(CACHE).expanduser()) / digest / "experts.safetensors"
    if not path.is_file():
        found = measured(dense, parent.mixture, text.tokens, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as partial:
            save_file(found, partial)
    return ExpertScores.open(path, digest)


@torch.inference_mode()
def measured(
    dense: Dense,
    mixture: Mixture,
    tokens: Tensor,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """float64 [layers with experts, experts] by score, and [layers with experts, experts x experts] distances.

    Args:
        dense: the resident model.
        mixture: its experts.
        tokens: int64 [N, T].
        progress: told layers done and layers in all.
    """
    tokens = tokens.to(dense.device)
    calls = dense.record(tokens[:1])[1]
    state = torch.cat([dense.embed(tokens[rows]) for rows in dense.tiles(tokens, dense.tile_tokens)])
    rows: list[dict[str, Tensor]] = []
    for number, (layer, call) in enumerate(zip(dense.layers, calls, strict=True)):
        if number in mixture.layers:
            state, found = _scored(dense, mixture, layer, state, call)
            rows.append(found)
        else:
            state = dense.apply(layer, [state], call)[0][0]
        progress(number + 1, len(dense.layers))
    return {name: torch.stack([row[name] for row in rows]).cpu() for name in (*SCORES, DISTANCES)}


def _scored(
    dense: Dense, mixture: Mixture, layer: torch.nn.Module, state: Tensor, call: Call
) -> tuple[Tensor, dict[str, Tensor]]:
    """The state behind a layer, and its experts by score."""
    experts, out = layer.get_submodule(mixture.routing.experts), torch.empty_like(state)
    count, norms, weighted = (state.new_zeros(mixture.experts, dtype=torch.float64) for _ in range(3))
    with Tap(layer, [experts]) as tap:
        for rows in dense.tiles(state, dense.tile_tokens):
            out[rows] = tap.run(state[rows], call)[0]
            inputs, chosen, weights = tap.inputs(experts)
            at = chosen.flatten()
            norm = expert_outputs(experts, inputs, chosen).double().norm(dim=-1).flatten()
            count.index_add_(0, at, torch.ones_like(norm))
            norms.index_add_(0, at, norm)
            weighted.index_add_(0, at, norm * weights.double().flatten())
    seen = count.clamp_min(1)
    stacks = [p.double().flatten(1).square().sum(1) for p in experts.parameters()]
    tokens = state.shape[0] * state.shape[1]
    return out, {
        "reap": weighted / seen,
        "frequency": count / tokens,
        "output_norm": norms / seen,
        "ean": norms,
        "weight_norm": torch.stack(stacks).sum(0).sqrt(),
        DISTANCES: distances(experts, inputs[:: -(-len(inputs) // COMPARED)], mixture.experts).flatten(),
    }


def distances(experts: torch.nn.Module, states: Tensor, count: int) -> Tensor:
    """float64 [count, count]: root mean square of what two experts make differently of the same states [n, d]."""
    every = torch.arange(count, device=states.device).expand(len(states), -1)
    outputs = expert_outputs(experts, states, every).double().transpose(0, 1).flatten(1)
    return torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist") / outputs.shape[1] ** 0.5


def expert_outputs(experts: torch.nn.Module, states: Tensor, chosen: Tensor) -> Tensor:
    """What each of its experts makes of a token, unweighted: [tokens, k, d].

    Args:
        experts: a family's module of stacked experts, which knows how they work.
        states: [tokens, d].
        chosen: int64 [tokens, k].
    """
    tokens, k = chosen.shape
    alone = chosen.reshape(-1, 1)
    made = experts(states.repeat_interleave(k, 0), alone, torch.ones_like(alone, dtype=states.dtype))
    return made.view(tokens, k, -1)


def _table(values: Tensor) -> Table:
    return tuple(map(tuple, values.tolist()))
