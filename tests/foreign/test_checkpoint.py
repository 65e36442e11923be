"""Foreign checkpoints: plan and compress read what stock transformers reads, tensor by tensor, or refuse it alike."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.base_check import compare_tensors, stock_model
from hf_prune.assembly.mergekit import export_mergekit
from hf_prune.assembly.nemotron_nas import export_nemotron_nas
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source
from hf_prune.errors import HfPruneError
from hf_prune.hub import peek, pull
from hf_prune.models.parent import Parent
from hf_prune.models.variants import peeks, verdicts
from hf_prune.plan import plan
from hf_prune.recipe import Recipe
from tests.families import DEPTH
from tests.foreign.builders import (
    build,
    bytes_of,
    files,
    logits,
    put,
    reconfigure,
    restate,
    settings,
    state,
    stock,
    stored,
    without,
)

Edit = Callable[[Path], object]
HALF, SHORT, FULL = torch.float16, torch.bfloat16, torch.float32
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DROPPED = (1, 4)


def random_head(folder: Path, like: str = EMBED, name: str = HEAD) -> None:
    restate(folder, lambda s: s.update({name: torch.randn_like(s[like])}))


def same_head(folder: Path, dtype: torch.dtype = FULL) -> None:
    restate(folder, lambda s: s.update({HEAD: s[EMBED].to(dtype, copy=True)}))


def swapped(folder: Path) -> None:
    """The head is stored, the embedding is not."""
    restate(folder, lambda s: s.update({HEAD: s.pop(EMBED)}))


def pickled(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save({n: torch.zeros_like(t) for n, t in state(folder).items()}, folder / name)


def spoiled_copy(folder: Path, name: str) -> None:
    """Another model of the same shape, under a name that nobody reads."""
    save_file({n: torch.zeros_like(t) for n, t in state(folder).items()}, folder / name, metadata={"format": "pt"})


def stale_index(folder: Path) -> None:
    """An index of shards that hold nothing but zeros, beside the one file."""
    spoiled_copy(folder, "model-00001-of-00001.safetensors")
    where = dict.fromkeys(state(folder), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def stale_shard(folder: Path) -> None:
    spoiled_copy(folder, "model-00009-of-00009.safetensors")


def renamed_weights(folder: Path) -> None:
    """Another file is named by the config, and the usual one is somebody else's."""
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    found = load_file(folder / "weights.safetensors")
    save_file({n: t + 1 for n, t in found.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    reconfigure(folder, transformers_weights="weights.safetensors")


def with_code(folder: Path) -> None:
    auto = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "other/repo--modeling_x.XForCausalLM"}
    reconfigure(folder, auto_map=auto, custom_pipelines={"x": {"impl": "x.X", "pt": ["AutoModel"]}})
    reconfigure(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    for name in ("configuration_x", "modeling_x", "tokenization_x", "x"):
        (folder / f"{name}.py").write_text("raise SystemExit('it ran')")


def extra(*names: str) -> Edit:
    return lambda folder: restate(folder, lambda s: s.update({n: torch.ones(3) for n in names}))


def typed(*dtypes: tuple[str, torch.dtype]) -> Edit:
    return lambda folder: restate(folder, stored(*dtypes))


def nothing(folder: Path) -> None:
    pass


WORKS: dict[str, tuple[dict, Edit]] = {
    "as transformers writes it": ({}, nothing),
    "in shards": ({"shards": 4}, nothing),
    # Tying.
    "tied, with a head of its own": ({"tie_word_embeddings": True}, random_head),
    "tied, with a head of its own, qwen3": ({"family": "qwen3", "tie_word_embeddings": True}, random_head),
    "tied by its class, with a head of its own": (
        {"family": "gpt2"},
        lambda f: random_head(f, "transformer.wte.weight"),
    ),
    "tied by its class, which the config leaves out": (
        {"family": "gemma2"},
        lambda f: reconfigure(f, tie_word_embeddings=None),
    ),
    "tied, in bfloat16, with a head that differs there": (
        {"tie_word_embeddings": True, "dtype": SHORT},
        lambda f: restate(f, lambda s: s.update({HEAD: (s[EMBED] * 1.5).to(SHORT)})),
    ),
    "tied, with a head that differs in float32 alone": ({"tie_word_embeddings": True}, lambda f: same_head(f, SHORT)),
    "tied, with the same head again": ({"tie_word_embeddings": True}, same_head),
    "tied, with the same numbers in another dtype": (
        {"tie_word_embeddings": True, "dtype": SHORT},
        lambda f: same_head(f, FULL),
    ),
    "tied, with the head alone": ({"tie_word_embeddings": True}, swapped),
    "untied, with equal matrices": (
        {"tie_word_embeddings": False},
        lambda f: restate(f, lambda s: s.update({HEAD: s[EMBED].clone()})),
    ),
    # Which file is the model.
    "one file and pickles": ({}, pickled),
    "one file and an index": ({}, stale_index),
    "one file, an index and pickles": ({}, lambda f: (stale_index(f), pickled(f))),
    "shards and pickles": ({"shards": 3}, pickled),
    "shards and one that no index names": ({"shards": 3}, stale_shard),
    "one file and a variant": ({}, lambda f: spoiled_copy(f, "model.fp16.safetensors")),
    "one file and a consolidated one": ({}, lambda f: spoiled_copy(f, "consolidated.safetensors")),
    "a file that the config names": ({}, renamed_weights),
    # A dtype per tensor.
    "bfloat16 with float32 embeddings": ({"dtype": SHORT}, typed(("embed_tokens", FULL))),
    "bfloat16 with float32 norms": ({"dtype": SHORT, "family": "qwen3"}, typed(("norm", FULL))),
    "float16 with a bfloat16 head": ({"dtype": HALF}, typed(("lm_head", SHORT))),
    "layers in turn": ({"dtype": SHORT}, typed((".1.", HALF), (".2.", FULL), (".4.", torch.float64))),
    "experts in float32": ({"dtype": SHORT, "family": "qwen3_moe"}, typed(("experts.1.", FULL))),
    "float32 files of a bfloat16 config": ({}, lambda f: reconfigure(f, dtype="bfloat16")),
    "bfloat16 files of a float32 config": ({"dtype": SHORT}, lambda f: reconfigure(f, dtype="float32")),
    "no dtype in the config": ({"dtype": SHORT}, lambda f: reconfigure(typed(("norm", FULL))(f), dtype=None)),
    "the dtype by its old name": ({"dtype": SHORT}, lambda f: reconfigure(f, dtype=None, torch_dtype="bfloat16")),
    # Config against weights.
    "fewer layers than stored": ({}, lambda f: reconfigure(f, num_hidden_layers=4)),
    "a layer for several tokens, by name": (
        {"family": "qwen3"},
        extra("mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight"),
    ),
    "a layer for several tokens, by number": ({}, extra(f"model.layers.{DEPTH}.eh_proj.weight")),
    "biases that the config denies": ({}, lambda f: reconfigure(f, attention_bias=False, mlp_bias=False)),
    "tables of old": ({}, extra("model.layers.0.self_attn.rotary_emb.inv_freq")),
    "generation in the config": ({}, lambda f: reconfigure(f, temperature=0.6, max_length=99, do_sample=True)),
    # Code beside the weights.
    "code that nobody needs": ({}, with_code),
}
"""What is built, and how it is edited."""
REFUSED: dict[str, tuple[dict, Edit, str]] = {
    "untied, without a head": ({}, lambda f: restate(f, put(lm_head__weight=None)), "says tie_word_embeddings False"),
    "tied, without either": (
        {"tie_word_embeddings": True},
        lambda f: restate(f, put(model__embed_tokens__weight=None)),
        f"{EMBED} is missing",
    ),
    "more layers than stored": (
        {},
        lambda f: reconfigure(f, num_hidden_layers=8),
        f"says num_hidden_layers 8, but its tensors fit {DEPTH}",
    ),
    "too many layer types": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, layer_types=[*settings(f)["layer_types"], "full_attention"]),
        "`num_hidden_layers` .6. must be equal to the number of `layer_types` .7.",
    ),
    "too few layer types": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, layer_types=settings(f)["layer_types"][1:]),
        "the number of `layer_types` .5.",
    ),
    "another vocabulary": (
        {},
        lambda f: reconfigure(f, vocab_size=300),
        "says vocab_size 300, but its tensors fit 320",
    ),
    "another vocabulary, tied": (
        {"family": "gemma2"},
        lambda f: reconfigure(f, vocab_size=321),
        "says vocab_size 321, but its tensors fit 320",
    ),
    "another head size": ({}, lambda f: reconfigure(f, head_dim=16), "says head_dim 16, but its tensors fit 8"),
    "another width": ({}, lambda f: reconfigure(f, hidden_size=64), "says hidden_size 64, but its tensors fit 32"),
    "other neurons": ({}, lambda f: reconfigure(f, intermediate_size=99), "says intermediate_size 99, but .* fit 48"),
    "other groups": ({}, lambda f: reconfigure(f, num_key_value_heads=4), "says num_key_value_heads 4, but .* fit 2"),
    "other experts": (
        {"family": "qwen3_moe"},
        lambda f: reconfigure(f, num_local_experts=8),
        "says num_local_experts 8, but its tensors fit 4",
    ),
    "biases that are not there": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, attention_bias=True),
        "says attention_bias True, but its tensors fit False: .*bias is missing",
    ),
    "heads that do not add up": ({}, lambda f: reconfigure(f, num_attention_heads=3), "multiple of the number of att"),
    "an activation of nobody": ({}, lambda f: reconfigure(f, hidden_act="swoosh"), "hidden_act: 'swoosh'"),
    "a rope of nobody": (
        {},
        lambda f: reconfigure(f, rope_parameters={"rope_type": "zork", "rope_theta": 1e4}),
        "rope_parameters.rope_type: 'zork'",
    ),
    "a dtype of nobody": ({}, lambda f: reconfigure(f, dtype="bf16"), "dtype: module 'torch' has no attribute 'bf16'"),
    "weights that are no name": ({}, lambda f: reconfigure(f, transformers_weights=[1]), r"transformers_weights \[1\]"),
    "words for a number": ({}, lambda f: reconfigure(f, hidden_size="wide"), "'hidden_size' expected int, got str"),
    "a tensor that is gone": (
        {"shards": 2},
        lambda f: _rewritten(f, "model.layers.3.mlp.up_proj.weight"),
        "model.layers.3.mlp.up_proj.weight is missing",
    ),
    "a shard that is gone": ({"shards": 3}, lambda f: files(f)[1].unlink(), "lacks model-00002-of"),
    "a variant alone": (
        {},
        lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"),
        "model.fp16.safetensors is there, but has neither name",
    ),
    "shards without an index": (
        {"shards": 2},
        lambda f: (f / "model.safetensors.index.json").unlink(),
        "of-0000..safetensors is there, but has neither name",
    ),
    "a named file that is gone": (
        {},
        lambda f: reconfigure(f, transformers_weights="x.safetensors"),
        "transformers_weights 'x.safetensors', and no safetensors file of that name",
    ),
    "a named pickle": (
        {},
        lambda f: (pickled(f), reconfigure(f, transformers_weights="pytorch_model.bin")),
        "_weights",
    ),
    "an adapter in the same folder": (
        {},
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "holds a model and an adapter",
    ),
    "a family of nobody": ({}, lambda f: reconfigure(f, model_type="zork"), "upgrade transformers.$"),
}


def _rewritten(folder: Path, gone: str) -> None:
    for path in files(folder):
        found = load_file(path)
        save_file({n: t for n, t in found.items() if n != gone}, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture
def folder(request, home) -> Path:
    """Of a row of the tables; made once, and nobody may write to it."""
    how, edit, *_ = (WORKS | REFUSED)[request.param]
    path = home / f"{list(WORKS | REFUSED).index(request.param)}"
    if not path.exists():
        edit(build(path, **how))
    return path


def opened(folder: Path, **how) -> Parent:
    found = pull(str(folder), **how)
    return Parent.open(found.source, found.folder, **how)


def cut(parent: Parent, removed: tuple[int, ...]) -> Blueprint:
    whole = Blueprint.identity(parent.source, parent.depth)
    return Blueprint(whole.sources, tuple(s for i, s in enumerate(whole.layers) if i not in removed))


@pytest.mark.parametrize("folder", WORKS, indirect=True)
@pytest.mark.parametrize("dtype", ["auto", FULL, pytest.param(SHORT, marks=pytest.mark.slow)], ids=str)
def test_a_whole_model_is_what_stock_transformers_loads(folder, dtype):
    theirs, parent = stock(folder, dtype=dtype), opened(folder)
    whole = Blueprint.identity(parent.source, parent.depth)
    ours = assemble(whole, [parent], dtype=None if dtype == "auto" else dtype)
    assert ours.dtype == theirs.dtype
    wanted = theirs.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    assert [n for n, t in ours.state_dict().items() if not torch.equal(t, wanted[n])] == []
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("folder", WORKS, indirect=True)
def test_a_cut_model_is_stock_transformers_less_those_layers(folder, tmp_path):
    parent = opened(folder)
    removed = tuple(i for i in DROPPED if i < parent.depth)
    parameters, size = write(cut(parent, removed), [parent], tmp_path)
    theirs = without(stock(folder, dtype=FULL), parent.family.layers, removed)
    model, said = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=FULL, output_loading_info=True)
    assert not any(said.values()) and torch.equal(logits(model.eval()), logits(theirs))
    assert stock(tmp_path, dtype="auto").dtype == stock(folder, dtype="auto").dtype
    assert size == bytes_of(tmp_path) and parameters == model.num_parameters()
    before, after = state(folder), state(tmp_path)
    if before.keys() >= {n for n in after if ".layers." not in n}:
        assert all(after[n].dtype == before[n].dtype for n in after if ".layers." not in n)
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert len(out[0]) == 6


@pytest.mark.parametrize("folder", [*WORKS, *REFUSED], indirect=True)
def test_plan_and_compress_agree(folder, tmp_path, request):
    recipe = Recipe.of(base=str(folder), drop=tuple(map(str, DROPPED[:1])), output=str(tmp_path / "out"))
    answers = []
    for way in (lambda: plan(recipe, peek(str(folder))), lambda: opened(folder)):
        try:
            answers.append(way())
        except HfPruneError as error:
            answers.append(str(error))
    planned, parent = answers
    case = REFUSED.get(request.node.callspec.params["folder"])
    if case:
        assert planned == parent and isinstance(planned, str)
        assert len(planned.splitlines()) == 1 and "trust" not in planned and str(folder.parent) not in planned
        with pytest.raises(HfPruneError, match=case[2]):
            opened(folder)
        return
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    parameters, size = write(cut(parent, DROPPED[:1]), [parent], tmp_path)
    assert (planned.depth, planned.parameters, planned.bytes) == (parent.depth, parent.parameters, parent.bytes)
    assert planned.result_parameters == parameters
    # A layer of another dtype than the others is more or less than its share.
    uneven = "in turn" in request.node.callspec.params["folder"]
    assert planned.result_bytes == size or uneven


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("tied, with a head of its own", "hold a lm_head.weight of their own, which the config calls tied"),
        ("fewer layers than stored", "left out, as transformers does: model.layers.4, model.layers.5."),
        ("a layer for several tokens, by name", "left out, as transformers does: mtp.layers.0, mtp.norm.weight."),
        (
            "a layer for several tokens, by number",
            f"1 tensors are left out, as transformers does: model.layers.{DEPTH}",
        ),
        ("biases that the config denies", "model.layers.N.mlp.down_proj.bias"),
    ],
)
def test_a_plan_says_what_is_not_as_the_config_has_it(home, case, words):
    found = _planned(home, case)
    assert any(re.search(words, note) for note in found.notes), found.notes


@pytest.mark.parametrize(
    ("case", "read", "not_read"),
    [
        (
            "one file, an index and pickles",
            "model.safetensors",
            ["model-00001-of-00001.safetensors", "pytorch_model.bin"],
        ),
        ("shards and one that no index names", " shards of model.safetensors.index.json", ["model-00009-of-00009"]),
        ("a file that the config names", "weights.safetensors", ["model.safetensors"]),
        ("one file and a variant", "model.safetensors", ["model.fp16.safetensors"]),
    ],
)
def test_a_plan_says_which_file_is_the_model(home, case, read, not_read):
    said, _, others = _planned(home, case).weight_files.partition("; not read, as by transformers: ")
    assert said.endswith(read) and all(name in others for name in not_read)
    assert not _planned(home, "as transformers writes it").notes


def _planned(home: Path, case: str):
    path = home / f"plan-{list(WORKS).index(case)}"
    if not path.exists():
        WORKS[case][1](build(path, **WORKS[case][0]))
    return plan(Recipe.of(base=str(path), drop=("1",)), peek(str(path)))


def test_the_pin_of_a_folder_is_over_the_files_that_are_read(tmp_path):
    folder = build(tmp_path / "one")
    before = peek(str(folder)).source
    pickled(folder)
    spoiled_copy(folder, "consolidated.safetensors")
    assert peek(str(folder)).source == before
    reconfigure(folder, transformers_weights="consolidated.safetensors")
    named = peek(str(folder)).source
    spoiled_copy(folder, "model.safetensors")
    assert named != before and peek(str(folder)).source == named


@pytest.mark.parametrize("trust", [True, False])
def test_a_result_of_a_known_family_needs_no_code(tmp_path, trust):
    folder = build(tmp_path / "base")
    with_code(folder)
    parent = opened(folder, trust_remote_code=trust)
    out = tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    assert not list(out.glob("*.py")) and "auto_map" not in (out / "config.json").read_text()
    for leave in (True, False):
        loaded = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=leave)
        words = AutoTokenizer.from_pretrained(out, trust_remote_code=leave)
        assert loaded.config.num_hidden_layers == DEPTH - len(DROPPED) and words("a cat").input_ids
    assert parent.tokenizer("a cat").input_ids == words("a cat").input_ids


def test_a_tokenizer_that_is_known_to_its_code_alone_asks_for_leave(tmp_path):
    folder = build(tmp_path / "base")
    (folder / "tokenizer.json").rename(folder / "words.tiktoken")
    auto = {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}
    reconfigure(folder, "tokenizer_config.json", auto_map=auto, tokenizer_class="XTokenizer")
    (folder / "tokenization_x.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n\n\n"
        "class XTokenizer(PreTrainedTokenizerFast):\n"
        "    @classmethod\n    def from_pretrained(cls, folder, *args, **kwargs):\n"
        "        return cls(tokenizer_file=str(Path(folder, 'words.tiktoken')))\n"
    )
    with pytest.raises(HfPruneError, match="tokenizer of base .*--trust-remote-code"):
        opened(folder).tokenizer  # noqa: B018
    parent = opened(folder, trust_remote_code=True)
    assert parent.tokenizer("a cat").input_ids and not parent.trust_remote_code
    out = tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    shutil.copy(folder / "words.tiktoken", out)
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=True)("a cat").input_ids


def test_a_parent_of_another_dtype_keeps_its_own_and_blends_take_the_wider(tmp_path):
    folders = [build(tmp_path / d, dtype=t) for d, t in (("a", SHORT), ("b", FULL), ("c", HALF))]
    parents = [Parent.open(Source(f.name, "tiny"), f) for f in folders]
    blends = (
        LayerSpec((Part(0, 0),)),
        LayerSpec((Part(1, 1),)),
        LayerSpec((Part(0, 2, 0.5), Part(2, 2, 0.5))),
        LayerSpec((Part(0, 3, 0.5), Part(0, 4, 0.5))),
    )
    out = tmp_path / "out"
    out.mkdir()
    _, size = write(Blueprint(tuple(p.source for p in parents), blends, 0, 1), parents, out)
    found = state(out)
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"].dtype for i in range(4)] == [SHORT, FULL, FULL, SHORT]
    assert (found[EMBED].dtype, found[HEAD].dtype, settings(out)["dtype"]) == (SHORT, FULL, "bfloat16")
    assert size == bytes_of(out)


def test_exports_of_a_model_of_several_dtypes(tmp_path):
    plain = {"attention_bias": False, "mlp_bias": False, "intermediate_size": 256}
    folder = restate(build(tmp_path / "base", dtype=SHORT, **plain), stored(("norm", FULL), ("embed", FULL)))
    parent, out = opened(folder), tmp_path / "out"
    out.mkdir()
    write(cut(parent, DROPPED), [parent], out)
    assert yaml.safe_load(export_mergekit(out, ["base"]))["dtype"] == "float32"
    export_nemotron_nas(out, tmp_path / "nas")
    before, after = state(out), state(tmp_path / "nas")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert (
        all(torch.equal(after[n], before[n]) for n in after) and settings(tmp_path / "nas")["torch_dtype"] == "bfloat16"
    )


def test_a_variant_without_the_layers_that_nobody_loads_fits(tmp_path):
    base, tuned = build(tmp_path / "base"), build(tmp_path / "tuned", seed=1)
    extra(f"model.layers.{DEPTH}.eh_proj.weight")(base)
    (found,) = verdicts(*peeks(str(base), [str(tuned)]))
    assert found.fits, found.sentence


LORA = {"llama": ["q_proj", "down_proj"], "qwen3": ["v_proj", "up_proj"], "gemma2": ["o_proj"]}


@st.composite
def sources(draw):
    """Family, how it is built, how its tensors are stored, whether there is a head of its own, what is adapted."""
    family = draw(st.sampled_from(["llama", "qwen3", "gemma2", "gpt2", "qwen3_moe"]))
    dtype = draw(st.sampled_from([FULL, SHORT, HALF]))
    ties = family in ("gpt2", "gemma2") or draw(st.booleans())
    mix = draw(st.lists(st.tuples(st.sampled_from(["norm", "ln_", "wte", "embed", ".2.", "down_proj"]),
                                  st.sampled_from([FULL, SHORT, HALF])), max_size=2))  # fmt: skip
    how = {"family": family, "dtype": dtype, **({} if family == "gpt2" else {"tie_word_embeddings": ties})}
    how |= {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
    shards = draw(st.sampled_from([1, 3]))
    adapted = family in LORA and draw(st.booleans())
    return how, shards, mix, ties and draw(st.booleans()), adapted


def lora(folder: Path, target: Path, family: str) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(stock(folder, dtype=FULL), LoraConfig(r=2, target_modules=LORA[family], lora_alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(target)
    return target


def holds(home: Path, how: dict, shards: int, mix: list, own_head: bool, adapted: bool) -> None:
    folder = build(home / "base", **how)
    restate(folder, stored(*mix))
    if own_head:
        name = "transformer.wte.weight" if how["family"] == "gpt2" else EMBED
        random_head(folder, name)
    if shards > 1:
        spread(folder, shards)
    adapter = lora(folder, home / "lora", how["family"]) if adapted else None
    name = f"{folder}+{adapter}" if adapter else str(folder)
    planned = plan(Recipe.of(base=name, drop=tuple(map(str, DROPPED))), peek(name))
    found = pull(name)
    parent = Parent.open(found.source, found.folder, found.adapter)
    loaded = stock_model(parent, FULL)
    assert compare_tensors(parent, loaded) == len(parent.shapes)
    if not adapter:
        whole = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=FULL)
        assert torch.equal(logits(whole), logits(stock(folder, dtype=FULL)))
    out = home / "out"
    out.mkdir()
    parameters, size = write(cut(parent, DROPPED), [parent], out)
    assert (planned.result_parameters, size) == (parameters, bytes_of(out))
    ours, theirs = logits(stock(out, dtype=FULL)), logits(without(loaded, parent.family.layers, DROPPED))
    # peft merges in one precision, and here every tensor keeps its own.
    allowed = 5e-2 if adapter and mix else 1e-4 if adapter else 0
    assert float((ours - theirs).abs().max()) <= allowed * float(theirs.abs().max())


def spread(folder: Path, shards: int) -> None:
    """One file of weights as several and their index."""
    found = state(folder)
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {n: names[i % shards] for i, n in enumerate(found)}
    for name in names:
        save_file({n: t for n, t in found.items() if where[n] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@hypothesis.settings(max_examples=10, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(sources())
def test_any_mix_of_oddities_is_read_as_transformers_reads_it(tmp_path_factory, source):
    holds(tmp_path_factory.mktemp("any"), *source)


@pytest.mark.slow
@hypothesis.settings(max_examples=80, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(sources())
def test_many_mixes_of_oddities_are_read_as_transformers_reads_them(tmp_path_factory, source):
    holds(tmp_path_factory.mktemp("many"), *source)
