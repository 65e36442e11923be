"""How wide the layers of a finished result are."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from hf_prune.models.mixtures import ROUTINGS
from hf_prune.models.modeling_pruned import PREFIX


@dataclass(frozen=True, slots=True)
class Widths:
    """Of one layer: key-value groups and neurons, 0 where the half is gone; and experts, 0 where there are none."""

    groups: int
    neurons: int
    experts: int = 0


def widths(config: PretrainedConfig) -> list[Widths]:
    """Of every layer of a result, of several widths or of one."""
    own = getattr(config, "layer_overrides", {})
    layers = [{**config.to_dict(), **own.get(number, {})} for number in range(config.num_hidden_layers)]
    keys = {"attention": "num_key_value_heads", "mlp": "intermediate_size"}
    routing = ROUTINGS.get(config.model_type.removeprefix(PREFIX))
    count = routing.count if routing else ""
    return [
        Widths(
            *(0 if half in x.get("skip", ()) else x[key] for half, key in keys.items()),
            own.get(number, {}).get(count, getattr(config, count, 0)),
        )
        for number, x in enumerate(layers)
    ]
