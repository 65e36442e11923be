"""Tiny random mixtures of every family whose experts can be taken out, and their routers by hand."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.blueprint import Blueprint, LayerSpec, Part
from hf_prune.models.mixtures import ROUTINGS
from tests.families import config_of, jittered
from tests.hub.samples import model
from tests.runs import text

DEPTH, EXPERTS = 4, 8
GROUPED = {"n_routed_experts": EXPERTS, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 2}
SETTINGS = {
    name: GROUPED if routing.groups else {routing.count: EXPERTS, "num_experts_per_tok": 2}
    for name, routing in ROUTINGS.items()
}
"""What is asked of each family besides small sizes; those that have groups begin with a plain layer."""
GONE = {1: (0, 6), 2: (2, 3, 4, 7)}
"""Layer of a grouped family, or any other, to experts that go: of either group as many."""


def moe(kind: str, **changes: object) -> PreTrainedModel:
    """A seeded random mixture with an expert bias that matters, where there is one."""
    torch.manual_seed(0)
    made = jittered(
        AutoModelForCausalLM.from_config(
            config_of(kind, vocab_size=512, num_hidden_layers=DEPTH, **SETTINGS[kind], **changes)
        )
    )
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    # torch's grouped product knows no float64.
    made.config._experts_implementation = "eager"
    return made.requires_grad_(False)


def saved(kind: str, folder: Path, **changes: object) -> PreTrainedModel:
    """The same as a folder with a tokenizer, and text beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = moe(kind, **changes)
    made.save_pretrained(folder)
    for name, content in model().items():
        if name.startswith("tokenizer"):
            (folder / name).write_bytes(content)
    text(folder.parent / "text.txt")
    return made


def without(source: object, gone: dict[int, tuple[int, ...]], depth: int = DEPTH) -> Blueprint:
    """All layers, some of whose experts are gone."""
    specs = []
    for i in range(depth):
        left = tuple(((e, 1.0),) for e in range(EXPERTS) if e not in gone.get(i, ()))
        specs.append(LayerSpec((Part(0, i),), blends=left if i in gone else None))
    return Blueprint((source,), tuple(specs))


def mask(made: PreTrainedModel, kind: str, gone: dict[int, tuple[int, ...]]) -> PreTrainedModel:
    """The dense model, whose routers never choose these experts: an oracle that removes nothing."""
    layers = made.get_submodule("model.layers")
    for number, experts in gone.items():
        router = layers[number].get_submodule(ROUTINGS[kind].router)
        router.forward = _masked(router, torch.tensor(experts), kind, made.config)
    return made


def _masked(router: torch.nn.Module, gone: torch.Tensor, kind: str, config: object):
    """A router by its family's formula, with a score of minus infinity for what is gone."""

    def forward(states: torch.Tensor):
        logits = states.reshape(-1, states.shape[-1]) @ router.weight.T
        if kind == "gpt_oss":
            logits = logits + router.bias
        k = config.num_experts_per_tok
        if ROUTINGS[kind].groups:
            scores = logits.sigmoid()
            choice = (scores + router.e_score_correction_bias).index_fill(1, gone, -torch.inf)
            halves = choice.view(len(choice), config.n_group, -1)
            best = halves.topk(2, -1).values.sum(-1).topk(config.topk_group, -1).indices
            shut = torch.ones(len(choice), config.n_group, dtype=torch.bool).scatter(1, best, False)
            index = halves.masked_fill(shut[..., None], -torch.inf).flatten(1).topk(k, -1).indices
            weights = scores.gather(1, index)
            if config.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights * config.routed_scaling_factor, index
        logits = logits.index_fill(1, gone, -torch.inf)
        if kind in ("gpt_oss", "granitemoe"):
            value, index = logits.topk(k, -1)
            return logits, value.softmax(-1), index
        value, index = logits.softmax(-1).topk(k, -1)
        if kind == "mixtral" or getattr(config, "norm_topk_prob", False):
            value = value / value.sum(-1, keepdim=True)
        return logits, value, index

    return forward
