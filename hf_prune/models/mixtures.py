"""Mixtures of experts: where experts and router of a family are, and what a config says of them.

In every family here an expert is a row of its tensors: of the stacks of weights, of the router, of its bias. So a
mixture of fewer experts is the same tensors with fewer rows, and one number less in the config. Nothing here loads
torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import Family


@dataclass(frozen=True, slots=True)
class Routing:
    """Names of a family: config keys that count experts, those that a token goes to, groups of experts and groups that
    a token may choose among; and the modules inside of a layer. Experts that every token passes are no part of it."""

    count: str = "num_experts"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    chosen: str = "num_experts_per_tok"
    groups: str | None = None
    open_groups: str | None = None
    transposed: bool = False
    """Matrices map rows, and gates and ups stand in turns instead of one above the other."""

    def holds(self, suffix: str) -> bool:
        """Whether a tensor of a layer has a row for every expert."""
        return suffix.startswith((f"{self.experts}.", f"{self.router}."))


GROUPED = Routing("n_routed_experts", groups="n_group", open_groups="topk_group")
ROUTINGS: Mapping[str, Routing] = {
    "qwen2_moe": Routing(),
    "qwen3_moe": Routing(),
    "olmoe": Routing(),
    "mixtral": Routing("num_local_experts"),
    "gpt_oss": Routing("num_local_experts", "mlp.router", transposed=True),
    "granitemoe": Routing("num_local_experts", "block_sparse_moe.router", "block_sparse_moe.experts"),
    "glm4_moe": GROUPED,
    "deepseek_v3": GROUPED,
}
"""By model type."""
BEST_OF_GROUP = 2
"""Experts of a group whose scores are the group's (DeepSeek-V3, arXiv 2412.19437, sec. 2.1.2)."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """Of one model: layers that have experts, experts of each, how many a token goes to, groups of neighbouring experts
    and how many of those a token may choose among; parameters of one expert with its rows of the router."""

    layers: tuple[int, ...]
    experts: int
    chosen: int
    groups: int
    open_groups: int
    least: int
    parameters: int
    routing: Routing

    @property
    def spare(self) -> int:
        """Experts that a layer can lose while a token still goes to as many."""
        return self.experts - max(self.least, self.groups * -(-self.chosen // self.open_groups))

    def choosable(self, left: int) -> int:
        """How many experts a token goes to where so many are left in a layer."""
        return min(self.chosen, self.open_groups * (left // self.groups))

    def settings(self, left: int) -> dict[str, int]:
        """What a config says of layers with so many experts, as far as it differs."""
        if left == self.experts:
            return {}
        fewer = self.choosable(left)
        return {self.routing.count: left, **({self.routing.chosen: fewer} if fewer < self.chosen else {})}


def mixture_of(family: Family, config: Any, sizes: Mapping[str, int]) -> Mixture | None:
    """What experts a model has; None where it has none that are known here.

    Args:
        family: of the model.
        config: as transformers reads it.
        sizes: numbers in each tensor, by its name.
    """
    routing = ROUTINGS.get(family.model_type)
    if routing is None:
        return None
    rows: dict[int, int] = {}
    for name, size in sizes.items():
        number, _, suffix = name.removeprefix(family.prefix).partition(".")
        if name.startswith(family.prefix) and routing.holds(suffix):
            rows[int(number)] = rows.get(int(number), 0) + size
    if not rows:
        return None
    experts = getattr(config, routing.count)
    groups = getattr(config, routing.groups) if routing.groups else 1
    return Mixture(
        layers=tuple(sorted(rows)),
        experts=experts,
        chosen=getattr(config, routing.chosen),
        groups=groups,
        open_groups=getattr(config, routing.open_groups) if routing.open_groups else 1,
        least=BEST_OF_GROUP * groups if routing.groups else 1,
        parameters=max(rows.values()) // experts,
        routing=routing,
    )


def require_mixture(family: Family) -> None:
    """Refuse layers whose experts cannot be told.

    Raises:
        UnsupportedArchitecture: names the families that can be cut.
    """
    if family.model_type not in ROUTINGS:
        raise UnsupportedArchitecture(
            f"Experts can be taken out of {', '.join(ROUTINGS)}, not {family.model_type!r}; choose --method collapse, "
            "which removes whole layers."
        )
