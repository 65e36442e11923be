"""Every reader of a file that a stranger may have written: real examples of it, and the call that reads one."""

import contextlib
import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from hf_prune import hub
from hf_prune.app import results as pages
from hf_prune.assembly.patches import digest_patch, load_patches
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.cli.screen import report_table
from hf_prune.data.chat_templates import rendered
from hf_prune.data.corpora import load_corpora
from hf_prune.data.documents import document
from hf_prune.data.tasks import load_file
from hf_prune.errors import HfPruneError
from hf_prune.hub.adapters import parse_config
from hf_prune.hub.folders import Folder, read_card
from hf_prune.hub.names import Name, parse
from hf_prune.models.headers import weigh
from hf_prune.models.parent import Parent
from hf_prune.pipeline import find_finished
from hf_prune.recipe import Recipe
from hf_prune.report import card
from hf_prune.report.schema.model import Front, SourceCard
from hf_prune.report.schema.report import Report
from hf_prune.report.text import plain, report_lines
from hf_prune.results import assemble_blueprint
from hf_prune.session.front import pick_member
from hf_prune.session.journal import Journal
from tests.fuzz import spoiling
from tests.hub import samples
from tests.report.test_card import make_report

LONGEST_PAGE = 2_000_000
"""Characters of anything that is made of one report."""


@dataclass(frozen=True)
class Reader:
    """`file` is written into a folder with what else belongs there, then `read`."""

    name: str
    file: str
    content: Callable[[], st.SearchStrategy[bytes]]
    read: Callable[[Path], Any]
    beside: Callable[[], dict[str, bytes]] = dict
    weight: float = 1.0
    said: str = ""
    """What an error must name, other than the file."""


@functools.cache
def model() -> dict[str, bytes]:
    return samples.model(vocab_size=258, hidden_size=16, intermediate_size=24)


def without(name: str) -> dict[str, bytes]:
    return {n: c for n, c in model().items() if n != name}


RECIPES = (
    {"base": "ns/tiny", "ratio": 0.25, "data": ["a.jsonl"], "heal": {"tokens": "1M", "rank": 8}, "search": "staged",
     "seed": 3, "device": "cpu", "memory": 4.0},
    {"base": "ns/tiny", "size": {"drop": ["3-5", 7]}, "rules": ["keep", "difference:0.5"], "baselines": ["last"]},
    {"base": "ns/tiny", "method": "stitch", "variants": ["ns/a", "ns/b+ns/c"], "merges": ["slerp", "ties:0.5"],
     "keep_layers": 12, "repair": {"enabled": True}, "tasks": {"names": ["a.jsonl"], "items": 5}},
)  # fmt: skip
SOURCE = Source("ns/tiny", "a" * 40)
SPECS = (
    LayerSpec((Part(0, 0),)),
    LayerSpec((Part(0, 1, 0.5), Part(1, 2, 0.5)), "slerp", norms=Part(0, 1)),
    LayerSpec((Part(0, 3),), attn_level=-1, mlp_level=2, library="b" * 16, repair="c" * 16),
)
BLUEPRINT = json.loads(Blueprint((SOURCE, Source("ns/b", "b" * 40, "ns/c@" + "c" * 40)), SPECS).to_json())
WHOLE = json.loads(Blueprint.identity(SOURCE, 2).to_json())
FRONT = {
    "version": 1,
    "front": [
        {"removed_ratio": r, "layers": 2, "parameters": 100, "kl": 0.1, "digest": "d" * 16, "knee": r > 0,
         "blueprint": WHOLE} for r in (0.0, 0.25)
    ],
}  # fmt: skip
HEADER = {"recipe": "a" * 16, "base": "ns/tiny", "evidence": ["b", "c"]}
ROW = {"digest": "d" * 16, "genome": [0, 1, 2], "fidelity": [4, 0, 0, 0], "values": [0.5, "inf"]}
JOURNAL = [{"hf_prune_journal": 1, "header": HEADER}, {"trials": [ROW, {**ROW, "digest": "e"}]}, {"trials": [ROW]}]
ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
    "task_type": "CAUSAL_LM", "base_model_name_or_path": "ns/tiny",
    "modules_to_save": None, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {},
    "use_rslora": False, "init_lora_weights": True, "inference_mode": True, "fan_in_fan_out": False,
}  # fmt: skip
DATA = (
    [{"text": "one two three"}, {"text": "four"}, {"text": "five six"}],
    [{"messages": [{"role": "user", "content": "hi"}, {"role": "model", "content": [{"type": "text", "text": "a"}]}],
      "tools": [{"name": "f"}]}, {"prompt": "a", "completion": "b"}],
    [{"conversations": [{"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "f"}'}],
      "system": "be"}, {"instruction": "a", "input": "b", "output": "c", "history": [["x", "y"]]}],
    [{"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f",
      "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "1", "content": {"a": 1}}]}],
)  # fmt: skip
TEMPLATE = (
    b"{% if messages[0].role == 'system' %}{{ bos_token }}{{ messages[0].content }}{% endif %}"
    b"{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' }}{{ m.content | trim if m.content is string else m.content | "
    b"tojson }}{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
)
TASKS = (
    [{"context": "a b", "choices": ["c", "d"], "answer": 1}, {"context": "e", "choices": ["f", "g", "h"], "answer": 0}],
    [{"context": "a b", "answer": "c d"}],
)
CARD = {
    "license": "mit",
    "language": ["en", "no"],
    "tags": ["a"],
    "pipeline_tag": "text-generation",
    "base_model": "a/b",
}
PATCH = {"mlp.down_proj.weight": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(2, dtype=torch.bfloat16)}


def recipe(path: Path) -> None:
    found = Recipe.load(path)
    assert Recipe.load(path) == found and len(found.to_yaml()) < LONGEST_PAGE
    assert found.digest and found.search_digest and found.size.dropped() is not None


def device(path: Path) -> None:
    """What a command line says of the device and the seed, in any spelling."""
    said: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        said = dict(json.loads(path.read_bytes()))
    found = Recipe.of(base="ns/tiny", ratio=0.25, **{k: said[k] for k in ("device", "seed", "memory") if k in said})
    torch.device("cpu" if found.machine.device == "auto" else found.machine.device)
    import numpy as np

    np.random.default_rng(found.seed)
    torch.manual_seed(found.seed)


def report(path: Path) -> None:
    """Everything that is made of a stranger's report."""
    found = Report.load(path)
    made = [found.to_json(), *report_lines(found), pages.html(found), json.dumps(plain(found.to_dict()))]
    from rich.console import Console

    Console(file=io.StringIO(), width=160).print(report_table(found))
    card.write_card(found, path.parent, {}, found.sources)
    made.append(pages.card(path.parent))
    assert all(len(m) < LONGEST_PAGE for m in made)
    assert Report.load(path).to_json() == found.to_json()


def finished(path: Path) -> None:
    find_finished(Recipe.of(base="ns/tiny", ratio=0.25, output=str(path.parent)), path.parent)


def blueprint(path: Path) -> None:
    found = Blueprint.from_json(path.read_text(errors="surrogateescape"))
    assert Blueprint.from_json(found.to_json()) == found
    assert found.canonical().digest == found.digest


def rebuilt(path: Path) -> None:
    """A blueprint, or a front, over a real source."""
    assemble_blueprint(path, path.parent / "out", source=str(path.parent / "base"))


def front(path: Path) -> None:
    found = Front.load(path)
    for pick in ("knee", "0.25", "#0", "#9", "#x", "nan"):
        with contextlib.suppress(HfPruneError):
            pick_member([member.to_dict() for member in found.front], pick)
    report = Report.from_dict(make_report())
    for number in range(min(3, len(found.front))):
        with contextlib.suppress(HfPruneError):
            pages.member(report, found.front, number)


def journal(path: Path) -> None:
    with Journal.open(path, HEADER) as found:
        assert all(isinstance(row.fidelity, Fidelity) for row in found.rows())
        found.record([(("f" * 16, Fidelity(4)), (0, 1), (0.5,))])
        count = len(found)
    with Journal.open(path, HEADER) as again:
        assert len(again) == count


def peeked(path: Path) -> None:
    weigh(hub.peek(str(path.parent)))


def adapted(path: Path) -> None:
    hub.peek(f"{path.parent / 'base'}+{path.parent}")


def header(path: Path) -> None:
    Folder.open(Name("tiny", folder=path.parent), path.parent).header(path.name)


def opened(path: Path) -> None:
    """A source as a run opens it."""
    pulled = hub.pull(str(path.parent))
    Parent.open(pulled.source, pulled.folder, pulled.adapter)


def tokenizer(path: Path) -> None:
    pulled = hub.pull(str(path.parent))
    found = Parent.open(pulled.source, pulled.folder, pulled.adapter).tokenizer
    found("some text")


def template(path: Path) -> None:
    pulled = hub.pull(str(path.parent))
    found = Parent.open(pulled.source, pulled.folder, pulled.adapter).tokenizer
    rendered(document(DATA[1][0], "Line 1 of a.jsonl"), found)


def model_card(path: Path) -> None:
    known = Folder.open(Name("tiny", folder=path.parent), path.parent).card
    SourceCard(repo="ns/tiny", **{k: v for k, v in known.items() if k in SourceCard.model_fields})
    read_card(path.read_text(errors="replace"))


def data(path: Path) -> None:
    load_corpora([str(path)])


def names(path: Path) -> None:
    parse(path.read_bytes().decode(errors="surrogateescape"))


def _tensors() -> st.SearchStrategy[bytes]:
    raw = save({f"{digest_patch(PATCH)}.{n}": t for n, t in PATCH.items()})
    return _spoiled_tensors(raw)


def _spoiled_tensors(raw: bytes) -> st.SearchStrategy[bytes]:
    length = struct.unpack("<Q", raw[:8])[0]
    return spoiling.safetensors(json.loads(raw[8 : 8 + length]), raw[8 + length :])


def _gguf() -> bytes:
    def text(said: str) -> bytes:
        return struct.pack("<Q", len(said)) + said.encode()

    keys = {"general.architecture": (8, text("llama")), "llama.block_count": (4, struct.pack("<I", 2)),
            "llama.embedding_length": (4, struct.pack("<I", 16)),
            "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))}  # fmt: skip
    tensors = [("token_embd.weight", (16, 4)), ("blk.0.attn_q.weight", (16, 16)), ("blk.1.attn_q.weight", (16, 16))]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(k) + struct.pack("<I", kind) + value for k, (kind, value) in keys.items())
    for name, shape in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, 0, 0)
    return head + bytes(64)


def gguf(path: Path) -> None:
    from hf_prune.hub.gguf import read_gguf

    content = path.read_bytes()
    read_gguf(lambda first, last: content[first:last], len(content), path.name, "tiny")


def _index() -> dict[str, Any]:
    return json.loads(samples.model(shards=2)["model.safetensors.index.json"])


def _json(name: str) -> Any:
    return json.loads(model()[name])


def _head(raw: bytes) -> bytes:
    return b"---\n" + raw + b"\n---\n# Tiny\n"


def _base() -> dict[str, bytes]:
    return {f"base/{n}": c for n, c in model().items()}


READERS = (
    Reader("recipe", "recipe.yaml", lambda: spoiling.yamls(*RECIPES), recipe, weight=2, said="ecipe"),
    Reader("device", "said.json", lambda: spoiling.documents({"device": "cuda:1", "seed": 3, "memory": 2.0}), device,
           said="ecipe"),
    Reader("report", "report.json", lambda: spoiling.documents(make_report()), report, weight=3),
    Reader("finished", "report.json", lambda: spoiling.documents(make_report()), finished, said="exists"),
    Reader("blueprint", "blueprint.json", lambda: spoiling.documents(BLUEPRINT), blueprint, weight=2, said="lueprint"),
    Reader("rebuilt", "blueprint.json", lambda: spoiling.documents(WHOLE, FRONT), rebuilt, _base, 0.2, said=" "),
    Reader("front", "front.json", lambda: spoiling.documents(FRONT), front),
    Reader("journal", "journal.jsonl", lambda: spoiling.lines(JOURNAL), journal, weight=2),
    Reader("config", "config.json", lambda: spoiling.documents(_json("config.json")), peeked,
           lambda: without("config.json"), 1, said=" "),
    Reader("index", "model.safetensors.index.json", lambda: spoiling.documents(_index()), peeked,
           lambda: {n: c for n, c in samples.model(shards=2).items() if not n.endswith("index.json")}, 0.5, said=" "),
    Reader("header", "model.safetensors", lambda: _spoiled_tensors(model()["model.safetensors"]), header, weight=2),
    Reader("weights", "model.safetensors", lambda: _spoiled_tensors(model()["model.safetensors"]), opened,
           lambda: without("model.safetensors"), 0.3, said=" "),
    Reader("gguf", "tiny.gguf", lambda: spoiling.either(st.just(_gguf()).flatmap(spoiling.spoiled)), gguf),
    Reader("card", "README.md", lambda: spoiling.either(spoiling.yamls(CARD).map(_head)), model_card),
    Reader("adapter config", "adapter_config.json", lambda: spoiling.documents(ADAPTER),
           lambda path: parse_config("tiny", path.read_bytes()), said="tiny"),
    Reader("adapter", "adapter_config.json", lambda: spoiling.documents(ADAPTER), adapted,
           lambda: {**_base(), **{n: c for n, c in samples.adapter().items() if n != "adapter_config.json"}}, 0.3,
           said=" "),
    Reader("tokenizer", "tokenizer.json", lambda: spoiling.documents(_json("tokenizer.json")), tokenizer,
           lambda: without("tokenizer.json"), 0.3, said="tokenizer"),
    Reader("tokenizer settings", "tokenizer_config.json", lambda: spoiling.documents(_json("tokenizer_config.json")),
           tokenizer, lambda: without("tokenizer_config.json"), 0.3, said="tokenizer"),
    Reader("chat template", "chat_template.jinja", lambda: spoiling.spoiled(TEMPLATE), template, model, 0.2,
           said="a"),
    Reader("data", "data.jsonl", lambda: spoiling.lines(*DATA), data, weight=2),
    Reader("tasks", "tasks.jsonl", lambda: spoiling.lines(*TASKS), load_file, weight=2),
    Reader("patches", "patches.safetensors", _tensors, load_patches),
    Reader("names", "name.txt", lambda: spoiling.either(st.one_of(st.text(max_size=30), st.sampled_from(
           ["ns/a@main+ns/b", "~root/x", "a" * 5000, "\0", "ns/a@" + "b" * 40])).map(
           lambda t: t.encode(errors="surrogatepass"))), names, said=" "),
)  # fmt: skip


def reading(reader: Reader, content: bytes) -> None:
    """Lay the file down and read it."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as home:
        for name, other in reader.beside().items():
            path = Path(home, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(other)
        Path(home, reader.file).write_bytes(content)
        reader.read(Path(home, reader.file))
