"""How much memory does writing a result take? One shard above the reader, whatever the model's size.

Random-weight llamas of growing size lose a quarter of their layers (two of the kept ones are merged) and are written in
shards of one size. Every run is a process of its own; what counts is anonymous memory (RssAnon: pages that no file
backs) at its peak, above what is in use after the source was opened. Mapped pages of the source are the kernel's to
drop. The plain way, for comparison: from_pretrained, drop the layers, save_pretrained.

    python examples/benchmarks/write_memory.py --shard-mb 64 --layers 8 16 32
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MB = 1 << 20
WIDTH = {"hidden_size": 768, "intermediate_size": 2304, "num_attention_heads": 12, "vocab_size": 8192}


def main() -> None:
    """Measure every size both ways and print a markdown table."""
    a = arguments()
    if a.way:
        return print(json.dumps(measured(a.way, Path(a.source), a.shard_mb * MB)))
    print(f"shards of {a.shard_mb} MiB, bfloat16, a quarter of the layers gone\n")
    print("| layers | source | written | this package, above the reader | in shards | plain, above the start |")
    print("|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as home:
        for layers in a.layers:
            source = Path(home, str(layers))
            command = [sys.executable, __file__, "--way", "make", "--source", source]
            command += ["--layers", str(layers)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            ours, plain = (child(way, source, a.shard_mb) for way in ("write", "plain"))
            size = sum(f.stat().st_size for f in source.glob("*.safetensors"))
            cells = (
                f"{layers}",
                f"{size / MB:.0f} MiB",
                f"{ours['written'] / MB:.0f} MiB",
                f"{ours['peak'] / MB:.0f} MiB",
                f"{ours['peak'] / MB / a.shard_mb:.2f}",
                f"{plain['peak'] / MB:.0f} MiB",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def arguments() -> argparse.Namespace:
    """Command line; --way and --source are for the processes this starts."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shard-mb", type=int, default=64)
    p.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    p.add_argument("--way", choices=["make", "write", "plain"], help=argparse.SUPPRESS)
    p.add_argument("--source", help=argparse.SUPPRESS)
    return p.parse_args()


def child(way: str, source: Path, shard_mb: int) -> dict[str, int]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--source", source, "--shard-mb", str(shard_mb)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(way: str, source: Path, shard_bytes: int) -> dict[str, int]:
    """Bytes written, and the peak of anonymous memory above what was in use before."""
    if way == "make":
        make(source)
        return {}
    with tempfile.TemporaryDirectory(dir=source.parent) as target:
        prepared = (opened if way == "write" else loaded)(source)
        with Peak() as peak:
            prepared(Path(target), shard_bytes)
        written = sum(f.stat().st_size for f in Path(target).glob("*.safetensors"))
    return {"peak": peak.bytes, "written": written}


def make(source: Path) -> None:
    """A random model on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(**WIDTH, num_hidden_layers=arguments().layers[0])
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source, max_shard_size="64MB")


def opened(source: Path):
    """What hf_prune does; the source is opened outside the measurement."""
    from hf_prune.assembly.assemble import Parent, write
    from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source

    parent = Parent.open(Source("random", "none"), source)
    kept = [LayerSpec((Part(0, i),)) for i in range(parent.depth - parent.depth // 4 - 1)]
    merged = LayerSpec((Part(0, parent.depth - 2, 0.5), Part(0, parent.depth - 1, 0.5)))
    blueprint = Blueprint((parent.source,), (*kept, merged))
    return lambda target, shard_bytes: write(blueprint, [parent], target, shard_bytes=shard_bytes)


def loaded(source: Path):
    """What a short script does; nothing is loaded yet."""
    import torch
    from transformers import AutoModelForCausalLM

    def go(target: Path, shard_bytes: int) -> None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        depth = len(model.model.layers)
        model.model.layers = torch.nn.ModuleList(list(model.model.layers)[: depth - depth // 4])
        model.config.num_hidden_layers = len(model.model.layers)
        model.save_pretrained(target, max_shard_size=shard_bytes)

    return go


class Peak:
    """Most anonymous memory above the start, sampled every millisecond."""

    def __enter__(self) -> "Peak":
        self.start, self.bytes, self.open = anonymous(), 0, True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Sample until closed."""
        while self.open:
            self.bytes = max(self.bytes, anonymous() - self.start)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.thread.join()


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
