"""What would a 70B take on one card? Memory, passes over its files and hours, from a config and headers alone.

The folder has the config of a Llama of 70 billion parameters and the header of its weights; the file behind that is
sparse and takes no room on the disk. Rates are those of data sheets (`hf_prune.planning.DEVICES`).

    python examples/benchmarks/large_plan.py --text examples/demo/text
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

from hf_prune import hub
from hf_prune.data.bundled import demo_folder
from hf_prune.planning import DEVICES, Room, plan, rates_of
from hf_prune.recipe import Recipe
from hf_prune.report.verdicts import amount, duration

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
CARDS = {"l4": 24e9, "a100": 80e9, "h100": 80e9}
SPARE = 0.85
"""Share of a card that a run may have."""


def main() -> None:
    """Print a markdown table: one row per card and precision."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, help="any text: how long it is does not matter")
    p.add_argument("--sequences", type=int, default=16)
    p.add_argument("--host", type=float, default=256e9, help="bytes of memory around the card")
    a = p.parse_args()
    print("| card | `--memory` | device | host | layers that stay | a pass reads | passes | bound by | hours |")
    print("|---|---:|---:|---:|---:|---:|---:|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        headers(Path(folder))
        peek = hub.peek(folder)
        for card, size in CARDS.items():
            memory = round(SPARE * size / 2**30, 1)
            recipe = Recipe.of(base=folder, ratio=0.25, memory=memory, device="cuda", data=(a.text,), time="none",
                               sequences=a.sequences, selection_sequences=a.sequences, repair=True,
                               baselines=("shortgpt",))  # fmt: skip
            found = plan(recipe, peek, measure=lambda *_, card=card: rates_of(DEVICES[card]),
                         room=Room(int(size), int(a.host), True))  # fmt: skip
            read = found.streaming
            cells = (
                card,
                f"{memory:g}",
                amount(found.memory_bytes, "B"),
                amount(found.host_bytes, "B"),
                f"{read.staying} of {read.depth}",
                amount(read.bytes, "B"),
                f"{read.passes}",
                f"{read.bound} ({duration(read.reading)} read, {duration(read.computing)} computed)",
                f"{sum(found.seconds.values()) / 3600:.1f}",
            )
            print(f"| {' | '.join(cells)} |")


def headers(folder: Path) -> None:
    """A model of zeros that takes no room."""
    c = LLAMA_70B
    hidden, inner, kept = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * 128
    layer = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kept, hidden), "self_attn.v_proj": (kept, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    shapes |= {f"model.layers.{i}.{n}.weight": s for i in range(c["num_hidden_layers"]) for n, s in layer.items()}
    shapes["lm_head.weight"] = (c["vocab_size"], hidden)
    for path in (demo_folder() / "storymath-16l").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    table, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(table).encode()
    (folder / "config.json").write_text(json.dumps(c))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


if __name__ == "__main__":
    main()
