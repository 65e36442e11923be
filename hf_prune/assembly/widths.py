"""How wide the layers of a finished result are."""

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Widths:
    """Of one layer: key-value groups and neurons; 0 where the half is gone."""

    groups: int
    neurons: int


def widths(config: PretrainedConfig) -> list[Widths]:
    """Of every layer of a result, of several widths or of one."""
    own = getattr(config, "layer_overrides", {})
    layers = [{**config.to_dict(), **own.get(number, {})} for number in range(config.num_hidden_layers)]
    keys = {"attention": "num_key_value_heads", "mlp": "intermediate_size"}
    return [Widths(*(0 if half in x.get("skip", ()) else x[key] for half, key in keys.items())) for x in layers]
