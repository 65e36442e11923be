"""How much memory a run takes."""

import math
from typing import TYPE_CHECKING

from hf_prune.limits import EXAM_BYTES, GPU_TILE_TOKENS, MERGED_LAYERS, STATE_BYTES, TILE_TOKENS, TOP_K, WIDTH
from hf_prune.methods import METHODS
from hf_prune.models.headers import Weights, number
from hf_prune.recipe import Recipe

if TYPE_CHECKING:
    from hf_prune.hub import Peek


def peak_memory(recipe: Recipe, peek: "Peek", weights: Weights) -> int:
    """Bytes the search needs at its peak, on the device it runs on.

    weights:   parameters x b; for stitch as many merged layers besides as `--memory` leaves room for, at most 64
    reference: W x length x (layers + 1) x hidden x b states of the dense model on all W search and selection windows,
               and W x length x k x 12 for its k likeliest tokens (number, log-probability), k = 512 or the vocabulary
    modules:   W x length x 2 layers x hidden x b, what its attention and MLP put out, for `gelaco_v1` only
    tuned:     parameters x 4, a copy in float32, for `tune` only; the frontier is gone by then
    frontier:  2 x offspring x T x hidden x b, all candidates of a generation between two layers, at most 1 GiB,
               with T the tokens of the larger of the two splits
    exam:      items x length x (layers + 1) x hidden x b states on the tasks that are searched and chosen by, as if
               an item had the length of a window, at most 1 GiB
    head:      2 x tile x vocabulary x 4, the float32 logits of one tile of tokens and their log-softmax

    with b the bytes of the search precision (auto: at most four on the CPU, else two).
    """
    cpu = _on_cpu(recipe.machine.device)
    width = WIDTH.get(recipe.machine.dtype) or (4 if cpu else 2)
    hidden, vocabulary = number(peek, "hidden_size", "n_embd", "d_model"), number(peek, "vocab_size")
    layers, tokens = len(weights.layers), (recipe.data.sequences + recipe.data.selection_sequences) * recipe.data.length
    larger = max(recipe.data.sequences, recipe.data.selection_sequences) * recipe.data.length
    state = tokens * hidden * width
    reference = (layers + 1) * state + tokens * min(TOP_K, vocabulary) * 12
    modules = 2 * layers * state if recipe.search.objective == "gelaco_v1" else 0
    frontier = min(2 * recipe.search.offspring * larger * hidden * width, STATE_BYTES)
    tile = max(recipe.data.length, min(tokens, TILE_TOKENS * 2 // width if cpu else GPU_TILE_TOKENS))
    merged = 0
    if METHODS[recipe.method].several:
        room = recipe.machine.memory * 2**30 - weights.total * width if recipe.machine.memory else math.inf
        merged = max(0, min(MERGED_LAYERS * max(weights.layers) * width, room))
    asked = len(recipe.tasks.search) * (recipe.learned_items + recipe.tasks.selection_items) * recipe.data.length
    exam = min((layers + 1) * asked * hidden * width, EXAM_BYTES)
    passing = max(frontier, weights.total * 4 if recipe.tune.steps else 0)
    return round(weights.total * width + merged) + reference + modules + exam + passing + 2 * tile * vocabulary * 4


def _on_cpu(device: str) -> bool:
    # Planning must not load torch to look for an accelerator; CPU is also the larger estimate.
    return device in ("auto", "cpu")
