"""Whatever PEFT merges comes out as PEFT merges it, tensor by tensor; the rest is refused before any download."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_config, get_peft_model
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import errors
from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.certificate import certify
from hf_prune.blueprint import Blueprint
from hf_prune.hub import adapters, peek, pull
from hf_prune.models import prepared
from hf_prune.models.parent import Parent
from hf_prune.models.variants import beside, check_variants, pull_variant
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.families import VOCABULARY, save_tiny
from tests.hub.samples import tokenizer
from tests.oracle import stock, tokens

PROJECTIONS = {"target_modules": ["q_proj", "down_proj"]}
QUERY = {"target_modules": ["q_proj"]}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"

KINDS = {
    "ADALORA": {**PROJECTIONS, "total_step": 10}, "ADAMSS": PROJECTIONS, "BOFT": {**PROJECTIONS, "boft_block_size": 4},
    "BEFT": PROJECTIONS,
    "C3A": {**QUERY, "block_size": 8}, "DEFT": PROJECTIONS, "DELORA": PROJECTIONS,
    "FOURIERFT": {**QUERY, "n_frequency": 20}, "FROD": PROJECTIONS, "GLORA": PROJECTIONS, "GRALORA": PROJECTIONS,
    "HIRA": PROJECTIONS, "HRA": PROJECTIONS, "IA3": {**PROJECTIONS, "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]}, "LOHA": PROJECTIONS, "LOKR": PROJECTIONS,
    "LORA": PROJECTIONS, "MISS": {**PROJECTIONS, "r": 8}, "OFT": {**QUERY, "oft_block_size": 4, "r": 0},
    "OSF": PROJECTIONS, "PEANUT": PROJECTIONS, "PSOFT": PROJECTIONS, "PVERA": QUERY, "RANDLORA": PROJECTIONS,
    "ROAD": {**PROJECTIONS, "group_size": 16}, "SHIRA": {**PROJECTIONS, "r": 2}, "SUPERTUNING": PROJECTIONS,
    "TINYLORA": PROJECTIONS, "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "UNILORA": PROJECTIONS, "VBLORA": {**QUERY, "vector_length": 16}, "VERA": QUERY,
    "WAVEFT": {**QUERY, "n_frequency": 20},
}  # fmt: skip
"""A small adapter of every type that PEFT merges."""

LORAS = {
    "dora": {**PROJECTIONS, "use_dora": True},
    "rslora": {**PROJECTIONS, "use_rslora": True},
    "patterns": {**PROJECTIONS, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "some layers": {**PROJECTIONS, "layers_to_transform": [1, 3]},
    "all linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*layers\.[12]\..*(q|v)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "parameters": {**QUERY, "target_parameters": ["down_proj.weight"]},
    "biases": {**QUERY, "bias": "all"},
    "its biases": {**QUERY, "bias": "lora_only"},
    "bias of its own": {**QUERY, "lora_bias": True},
    "tokens": {**QUERY, "trainable_token_indices": [1, 5]},
    "pissa": {**QUERY, "init_lora_weights": "pissa"},
    "olora": {**QUERY, "init_lora_weights": "olora"},
    "norms": {**QUERY, "modules_to_save": ["norm", "input_layernorm"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "saved ends": {**QUERY, "modules_to_save": ["embed_tokens", "lm_head"]},
}
TIED = {
    "head saved": {**QUERY, "modules_to_save": ["lm_head"]},
    "embedding saved": {**QUERY, "modules_to_save": ["embed_tokens"]},
    "both saved": {**QUERY, "modules_to_save": ["embed_tokens", "lm_head"]},
    "both saved as one": {**QUERY, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "tokens": {**QUERY, "trainable_token_indices": [1, 5]},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(prepared, "CACHE", str(tmp_path_factory.mktemp("cache")))


def base(folder: Path, name: str = "llama", **changes) -> Path:
    save_tiny(name, folder, **changes)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


def adapter(folder: Path, on: Path, kind: str = "LORA", rows: int | None = None, embeddings="auto", **settings) -> Path:
    """A random adapter, made and saved by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = stock(on)
        if rows:
            model.resize_token_embeddings(rows)
        ranks = {"r": 4, "lora_alpha": 6} if kind == "LORA" else {}
        model = get_peft_model(
            model, get_peft_config({"peft_type": kind, "task_type": "CAUSAL_LM", **ranks, **settings})
        )
        draw = torch.Generator().manual_seed(3)
        for p in model.parameters():
            if p.requires_grad and p.is_floating_point():
                p.data = p.data + 0.1 * torch.randn(p.shape, generator=draw)
        model.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


def merged(on: Path, folder: Path, rows: int | None = None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = stock(on)
        if rows:
            model.resize_token_embeddings(rows)
        return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def opened(on: Path, folder: Path, **how) -> Parent:
    found = pull(f"{on}+{folder}", **how)
    return Parent.open(found.source, found.folder, found.adapter, **how)


def agree(on: Path, folder: Path, rows: int | None = None) -> Parent:
    """The parent, once it is known that it is PEFT's merge and not the base."""
    parent = opened(on, folder)
    ours = assemble(Blueprint.identity(parent.source, parent.depth), [parent]).state_dict()
    theirs, before = merged(on, folder, rows).state_dict(), stock(on).state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name
    assert any(theirs[n].shape != before[n].shape or not torch.equal(theirs[n], before[n]) for n in before)
    return parent


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_that_peft_merges(tmp_path, kind):
    on = base(tmp_path / "base")
    settings = {"target_modules": ["q_proj", "v_proj"]} if kind == "BEFT" else KINDS[kind]
    parent = agree(on, adapter(tmp_path / "extra", on, kind, **settings))
    assert bool(parent.how) == (kind != "LORA")
    assert kind == "LORA" or f"{kind} adapter merged by PEFT" in parent.how[0]


def test_every_type_of_the_installed_peft_is_known():
    assert {t.value for t in PeftType} <= set(adapters.MERGED) | set(adapters.UNMERGED)
    assert set(KINDS) == set(adapters.MERGED)


@pytest.mark.parametrize("case", LORAS)
def test_every_setting_of_a_lora(tmp_path, case):
    on = base(tmp_path / "base")
    agree(on, adapter(tmp_path / "extra", on, **LORAS[case]))


@pytest.mark.parametrize("case", TIED)
def test_on_a_base_whose_head_is_its_embedding(tmp_path, case):
    on = base(tmp_path / "base", tie_word_embeddings=True)
    folder = adapter(tmp_path / "extra", on, **TIED[case])
    parent = agree(on, folder)
    assert parent.config.tie_word_embeddings == merged(on, folder).config.tie_word_embeddings
    seen = peek(f"{on}+{folder}")
    assert (HEAD in seen.tensors) == (HEAD in parent.shapes)


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_a_merge_that_peft_itself_gets_wrong_is_refused(tmp_path, modules):
    on = base(tmp_path / "base", tie_word_embeddings=True)
    folder = adapter(tmp_path / "extra", on, target_modules=["q_proj", *modules])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(stock(on), folder).eval()(input_ids=tokens(1)).logits
        wrong = merged(on, folder)(input_ids=tokens(1)).logits
    assert (adapted - wrong).abs().max() > 0.1, "or the refusal would be needless"
    with pytest.raises(errors.IncompatibleSources, match=r"in one matrix.*untied"):
        opened(on, folder)


def test_conv1d_and_experts(tmp_path):
    gpt = base(tmp_path / "gpt", "gpt2")
    agree(gpt, adapter(tmp_path / "a", gpt, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True))
    agree(gpt, adapter(tmp_path / "b", gpt, "IA3", target_modules=["c_attn", "mlp.c_proj"],
                       feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True))  # fmt: skip
    mixture = base(tmp_path / "moe", "qwen3_moe")
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    agree(mixture, adapter(tmp_path / "c", mixture, **QUERY, target_parameters=both))


@pytest.mark.parametrize("rows", [VOCABULARY + 5, VOCABULARY - 5])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_a_resized_vocabulary_resizes_the_base_first(tmp_path, rows, tied, settings):
    on = base(tmp_path / "base", tie_word_embeddings=tied)
    folder = adapter(tmp_path / "extra", on, rows=rows, **QUERY, **settings)
    own = tokenizer().replace(b'"<s>"', b'"<t>"')
    (folder / "tokenizer.json").write_bytes(own)
    parent = agree(on, folder, rows)
    assert parent.config.vocab_size == rows
    assert (parent.checkpoint.folder / "tokenizer.json").read_bytes() == own
    seen = peek(f"{on}+{folder}")
    found = plan(Recipe.of(base=f"{on}+{folder}"), seen)
    assert (found.parameters, found.depth) == (parent.parameters, parent.depth)
    assert "PEFT merges" in found.notes[0] and seen.read("tokenizer.json") == own


def test_variants_are_adapters_of_any_kind(tmp_path):
    on = base(tmp_path / "base")
    words = {f"<{i}>": i for i in range(VOCABULARY)}
    more = words | {f"<new {i}>": VOCABULARY + i for i in range(3)}
    adapter(tmp_path / "dora", on, **PROJECTIONS, use_dora=True)
    adapter(tmp_path / "resized", on, rows=VOCABULARY + 3, **QUERY)
    for folder, vocabulary in ((on, words), (tmp_path / "resized", more)):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    variants = [str(tmp_path / n) for n in ("dora", "resized")]
    check_variants(str(on), variants)
    first = Parent.open((found := pull(str(on))).source, found.folder)
    for name in variants:
        pulled = pull_variant(str(on), name)
        other = beside(first, Parent.open(pulled.source, pulled.folder, pulled.adapter))
        assert other.shapes == first.shapes and other.how
        theirs = merged(on, Path(name), VOCABULARY + 3 if "resized" in name else None).state_dict()
        assert torch.equal(other.outside_tensor(EMBED), theirs[EMBED][:VOCABULARY])
        assert torch.allclose(other.layer_tensor(1, "self_attn.q_proj.weight"),
                              theirs["model.layers.1.self_attn.q_proj.weight"], atol=1e-6)  # fmt: skip


def test_new_rows_that_nobody_saved_are_missed(tmp_path):
    on = base(tmp_path / "base")
    settings = {**QUERY, "modules_to_save": ["embed_tokens"]}
    folder = adapter(tmp_path / "extra", on, rows=VOCABULARY + 5, embeddings=False, **settings)
    with pytest.raises(errors.IncompatibleSources, match=r"does not hold all of lm_head.*save_embedding_layers"):
        opened(on, folder)


def test_the_base_keeps_its_precision(tmp_path):
    on = base(tmp_path / "base", dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = adapter(tmp_path / "extra", on, **PROJECTIONS, use_dora=True)
        model = AutoModelForCausalLM.from_pretrained(on, dtype="auto")
        theirs = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    parent = opened(on, folder)
    ours = assemble(Blueprint.identity(parent.source, parent.depth), [parent]).state_dict()
    assert all(torch.equal(ours[n], t) and t.dtype == torch.bfloat16 for n, t in theirs.items())


def test_a_merge_is_made_once_and_pinned_as_its_sources_are(tmp_path, monkeypatch):
    on = base(tmp_path / "base")
    folder = adapter(tmp_path / "extra", on, **PROJECTIONS, use_dora=True)
    first = opened(on, folder)
    assert first.source == pull(f"{on}+{folder}").source and first.source.adapter.startswith("extra@sha256-")
    monkeypatch.setattr(prepared, "merge_with_peft", lambda *_: pytest.fail("it was merged again"))
    assert opened(on, folder).checkpoint.folder == first.checkpoint.folder
    monkeypatch.undo()
    other = adapter(tmp_path / "other", on, **QUERY, use_dora=True)
    assert opened(on, other).checkpoint.folder != first.checkpoint.folder


def test_an_interrupted_merge_leaves_nothing(tmp_path, monkeypatch):
    on = base(tmp_path / "base")
    folder = adapter(tmp_path / "extra", on, **PROJECTIONS, use_dora=True)
    monkeypatch.setattr("hf_prune.models.peft_merge.copy_beside", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        opened(on, folder)
    assert not list(Path(prepared.CACHE).iterdir())


def test_what_is_written_from_it_is_what_stock_transformers_loads(tmp_path):
    on = base(tmp_path / "base")
    parent = opened(on, adapter(tmp_path / "extra", on, "LOHA", **PROJECTIONS))
    out = tmp_path / "out"
    out.mkdir()
    write(Blueprint.identity(parent.source, parent.depth), [parent], out)
    with torch.inference_mode():
        said = merged(on, tmp_path / "extra")(input_ids=tokens(2)).logits
    assert certify(out, tokens(2), said, dtype="float32", device="cpu")["ok"]


# what is refused


def edited(folder: Path, **settings) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


UNFIT = {
    **{kind: ({"peft_type": kind}, f"type {kind}") for kind in adapters.UNMERGED},
    "unknown type": ({"peft_type": "NEXTLORA"}, "type NEXTLORA, which this version"),
    "activated": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens, so it works behind certain tokens"),
    "repeated layers": ({"layer_replication": [[0, 4], [2, 6]]}, "layer_replication"),
    "code by name": ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config"),
    "classifier": ({"task_type": "SEQ_CLS"}, "an adapter for SEQ_CLS"),
    "rank 0": ({"r": 0}, "0 is no rank"),
    "rank in words": ({"rank_pattern": {"q_proj": "4"}}, "?4? is no rank"),
    "no expression": ({"alpha_pattern": {"(": 4}}, "alpha_pattern cannot be read"),
    "no type": ({"peft_type": None}, "missing or malformed"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_refused_by_its_config_alone(hub_server, tmp_path, case):
    settings, says = UNFIT[case]
    on = base(tmp_path / "base")
    folder = edited(adapter(tmp_path / "extra", on, **QUERY), **settings)
    for name in (on, folder):
        files = {p.name: p.read_bytes() for p in name.iterdir() if p.is_file()}
        hub_server.seed(f"ns/{name.name}", files)
    for look in (peek, pull):
        for asked in (f"{on}+{folder}", "ns/base+ns/extra"):
            with pytest.raises((errors.IncompatibleSources, errors.BrokenCheckpoint)) as caught:
                look(asked)
            assert says in str(caught.value) and str(caught.value).endswith(".")
    assert not hub_server.seen("/cdn/"), "weights were downloaded"


def test_an_adapter_of_a_newer_peft_is_not_misread(tmp_path):
    on = base(tmp_path / "base")
    folder = edited(adapter(tmp_path / "extra", on, **QUERY), use_next_lora=True)
    with pytest.raises(errors.IncompatibleSources, match="does not know its setting use_next_lora; upgrade peft"):
        opened(on, folder)


def test_an_adapter_of_another_base_names_it(tmp_path):
    on, wide = base(tmp_path / "base"), base(tmp_path / "wide", intermediate_size=64)
    folder = edited(adapter(tmp_path / "extra", wide, **PROJECTIONS), base_model_name_or_path="ns/wide")
    with pytest.raises(errors.IncompatibleSources, match=r"down_proj\.weight is .*it was made for ns/wide"):
        opened(on, folder)
    loha = adapter(tmp_path / "loha", wide, "LOHA", **PROJECTIONS)
    with pytest.raises(errors.IncompatibleSources, match="PEFT cannot merge the adapter loha into base"):
        opened(on, loha)


def test_a_plan_says_whom_an_adapter_was_made_for(tmp_path):
    on = base(tmp_path / "base")
    folder = edited(adapter(tmp_path / "extra", on, **QUERY), base_model_name_or_path="ns/other")
    assert peek(f"{on}+{folder}").notes == ("the adapter says that it was made for ns/other",)
    assert peek(f"{on}+{edited(folder, base_model_name_or_path='/home/me/base')}").notes == ()


def test_pickled_adapters_need_leave(tmp_path):
    on = base(tmp_path / "base")
    folder = adapter(tmp_path / "extra", on, **QUERY)
    safe = opened(on, folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    for look in (peek, pull):
        with pytest.raises(errors.UnsafeSource, match="--allow-pickle"):
            look(f"{on}+{folder}")
    assert peek(f"{on}+{folder}", allow_pickle=True).adapter == {}
    read = opened(on, folder, allow_pickle=True)
    assert all(torch.allclose(read.checkpoint.tensor(n), safe.checkpoint.tensor(n), atol=1e-6) for n in safe.shapes)


def test_tensors_without_a_place_or_missing_are_noticed(tmp_path):
    on = base(tmp_path / "base")
    folder = adapter(tmp_path / "extra", on, "LOHA", **PROJECTIONS)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({**whole, "base_model.model.model.norm.hada_w1_a": torch.ones(2)}, path)
    with pytest.raises(errors.IncompatibleSources, match=r"model\.norm\.hada_w1_a.* no place"):
        opened(on, folder)
    gone = next(iter(whole))
    save_file({n: t for n, t in whole.items() if n != gone}, path)
    with pytest.raises(errors.BrokenCheckpoint, match="lacks"):
        opened(on, folder)


def test_an_adapter_alone_names_its_base(tmp_path):
    on = base(tmp_path / "base")
    folder = edited(adapter(tmp_path / "extra", on, **QUERY), base_model_name_or_path="ns/base")
    for extra in ((), ("config.json", "tokenizer.json")):
        for name in extra:
            shutil.copyfile(on / name, folder / name)
        with pytest.raises(errors.AdapterAlone, match=r"write its base in front: ns/base\+extra"):
            peek(str(folder))
