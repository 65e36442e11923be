"""Quantised bases: seen before a download, dequantised by transformers when that is asked for, else refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config, GgufConfig, Mxfp4Config
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from hf_prune import errors
from hf_prune.assembly.assemble import assemble
from hf_prune.blueprint import Blueprint
from hf_prune.hub import peek, pull, quantisation
from hf_prune.models import prepared
from hf_prune.models.parent import Parent
from hf_prune.pipeline import run
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.families import save_tiny
from tests.hub.samples import tokenizer
from tests.oracle import stock, tokens

BFLOAT = torch.bfloat16
CARD = b"---\nbase_model: ns/original\nbase_model_relation: quantized\n---\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(prepared, "CACHE", str(tmp_path_factory.mktemp("cache")))


def configured(folder: Path, settings: dict | None, **more) -> Path:
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | more | ({"quantization_config": settings} if settings is not None else {})
    path.write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_bytes(tokenizer())
    return folder


def fp8(folder: Path, block: list[int] | None = None, static: bool = False, **changes) -> dict:
    """A checkpoint with a scale per block of its projections; what the weights are without them."""
    save_tiny("llama", folder, dtype=BFLOAT, **changes)
    stored, plain = {}, {}
    for key, weight in load_file(folder / "model.safetensors").items():
        if "proj" not in key or weight.dim() < 2:
            stored[key] = plain[key] = weight
            continue
        rows, columns = block or weight.shape
        scale = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        quantised, whole = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros(weight.shape)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                scale[i, j] = weight[part].float().abs().max() / 448
                quantised[part] = (weight[part].float() / scale[i, j]).to(torch.float8_e4m3fn)
                whole[part] = quantised[part].float() * scale[i, j]
        stored |= {key: quantised, f"{key}_scale_inv": scale if block else scale[0, 0]}
        stored |= {key.replace("weight", "activation_scale"): torch.tensor(1.0)} if static else {}
        plain[key] = whole.to(BFLOAT)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    scheme = "static" if static else "dynamic"
    configured(folder, {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": scheme, "fmt": "e4m3"})
    return plain


def opened(folder: Path | str) -> Parent:
    found = pull(str(folder), dequantize=True)
    return Parent.open(found.source, found.folder, found.adapter, dequantize=True)


@pytest.mark.parametrize(("block", "static"), [([16, 16], False), ([128, 128], False), (None, False), (None, True)])
def test_fp8_becomes_what_its_scales_say(tmp_path, block, static):
    plain = fp8(tmp_path, block, static=static)
    parent = opened(tmp_path)
    ours = assemble(Blueprint.identity(parent.source, parent.depth), [parent]).state_dict()
    assert ours.keys() == plain.keys() and all(torch.equal(ours[n], plain[n]) for n in plain)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", quantization_config=FineGrainedFP8Config(dequantize=True)
    ).state_dict()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items())
    reloaded = stock(parent.checkpoint.folder, dtype="auto")
    assert all(torch.equal(ours[n], t) and t.dtype == BFLOAT for n, t in reloaded.state_dict().items())
    assert "quantization_config" not in json.loads((parent.checkpoint.folder / "config.json").read_text())


def test_plan_and_compress_agree_on_the_plain_sizes(tmp_path):
    fp8(tmp_path / "base", [16, 16])
    fields = {"base": str(tmp_path / "base"), "dequantize": True, "keep_layers": 4}
    found = plan(Recipe.of(**fields), peek(fields["base"], dequantize=True))
    parent = opened(fields["base"])
    assert (found.parameters, found.depth) == (parent.parameters, parent.depth)
    stored = sum(p.stat().st_size for p in parent.checkpoint.folder.glob("*.safetensors"))
    assert found.bytes == 2 * found.parameters and 0 <= stored - found.bytes < 10_000
    assert found.disk_bytes == found.bytes + found.result_bytes
    assert found.notes == ("quantised with FP8; transformers makes bfloat16 of it",)


def test_a_run_says_what_was_done_to_its_base(tmp_path):
    fp8(tmp_path / "base", [16, 16], vocab_size=512)
    (tmp_path / "data").mkdir()
    for split in ("search", "selection", "report"):
        lines = [json.dumps({"text": f"{split} {i} has many words of a text"}) for i in range(60)]
        (tmp_path / "data" / f"corpus.{split}.jsonl").write_text("\n".join(lines))
    small = {"sequences": 2, "selection_sequences": 2, "report_sequences": 2, "length": 16, "drop": ("1",)}
    result = run(Recipe.of(base=str(tmp_path / "base"), output=str(tmp_path / "out"), dequantize=True, baselines=(),
                           data=(str(tmp_path / "data"),), **small))  # fmt: skip
    assert result.report["sources"][0]["how"][0].startswith("dequantised from FP8 by transformers")
    assert "dequantised from FP8 by transformers" in (tmp_path / "out" / "README.md").read_text()
    assert stock(tmp_path / "out", dtype="auto").config.num_hidden_layers == 5
    from hf_prune.results import assemble_blueprint

    again = assemble_blueprint(tmp_path / "out" / "blueprint.json", tmp_path / "again", source=str(tmp_path / "base"))
    same = [load_file(p / "model.safetensors") for p in (again, tmp_path / "out")]
    assert all(torch.equal(same[0][n], t) for n, t in same[1].items())


def test_it_is_asked_for_and_changes_no_other_recipe(tmp_path):
    fp8(tmp_path)
    (tmp_path / "README.md").write_bytes(CARD)
    for look in (peek, pull):
        with pytest.raises(
            errors.SourceError, match="quantised with FP8; pass --dequantize .* its original ns/original"
        ):
            look(str(tmp_path))
    with pytest.raises(errors.SourceError, match="pass --dequantize"):
        found = pull(str(tmp_path), dequantize=True)
        Parent.open(found.source, found.folder)
    plain, asked = (Recipe.of(base="ns/m", dequantize=d) for d in (False, True))
    assert plain.digest == asked.digest and plain.search_digest == asked.search_digest
    assert "dequantize" not in plain.to_yaml()


def test_a_plain_base_stays_as_it_is(tmp_path):
    save_tiny("llama", tmp_path)
    configured(tmp_path, None)
    assert opened(tmp_path).checkpoint.folder == tmp_path and not opened(tmp_path).how


def test_an_adapter_on_a_quantised_base(tmp_path):
    from tests.foreign.test_adapters import QUERY, adapter, merged

    fp8(tmp_path / "base", [16, 16])
    plain = opened(tmp_path / "base").checkpoint.folder
    for extra in ({}, {"use_dora": True}):
        folder = adapter(tmp_path / f"extra{len(extra)}", plain, **QUERY, **extra)
        parent = opened(f"{tmp_path / 'base'}+{folder}")
        ours = assemble(Blueprint.identity(parent.source, parent.depth), [parent]).state_dict()
        theirs = merged(plain, folder).state_dict()
        assert all(torch.allclose(ours[n].float(), t.float(), atol=1e-6, rtol=2**-7) for n, t in theirs.items())
        assert len(parent.how) == 1 + len(extra)


def test_mxfp4_of_gpt_oss(tmp_path):
    width, experts, layers = 64, 2, 2
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=97, hidden_size=width, intermediate_size=width, num_hidden_layers=layers, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(BFLOAT).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    plain = {}
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        rows = stored.pop(name).shape[-1]
        blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(120, 128, (experts, rows, width // 32), dtype=torch.uint8, generator=draw)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        numbers = torch.stack([levels[(blocks & 15).long()], levels[(blocks >> 4).long()]], -1).flatten(-2)
        numbers = numbers * torch.exp2(scales[..., None].float() - 127)
        plain[name] = numbers.reshape(experts, rows, width).transpose(1, 2).to(BFLOAT)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    configured(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    found = pull(str(tmp_path), dequantize=True)
    made = prepared.prepared(found.source, found.folder, None, dequantize=True)
    ours = stock(made.folder, dtype="auto").state_dict()
    assert all(torch.equal(ours[n], t) for n, t in plain.items())
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", quantization_config=Mxfp4Config(dequantize=True)
    ).state_dict()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items())
    weights = sum(t.numel() for t in ours.values())
    assert plan(Recipe.of(base="x", keep_layers=1), peek(str(tmp_path), dequantize=True)).parameters == weights


@pytest.mark.parametrize("packed", [False, True])
def test_compressed_tensors(tmp_path, packed):
    pytest.importorskip("compressed_tensors")
    save_tiny("llama", tmp_path, dtype=BFLOAT)
    stored, plain, most = {}, {}, 7 if packed else 127
    for key, weight in load_file(tmp_path / "model.safetensors").items():
        if "proj" not in key or weight.dim() < 2:
            stored[key] = plain[key] = weight
            continue
        scale = (weight.float().abs().amax(1, keepdim=True) / most).to(BFLOAT)
        rounded = (weight.float() / scale.float()).round().clamp(-most, most).to(torch.int8)
        plain[key] = (rounded.float() * scale.float()).to(BFLOAT)
        stem = key.removesuffix(".weight")
        stored |= {f"{stem}.weight_scale": scale, f"{stem}.input_scale": torch.ones(1, dtype=BFLOAT)}
        if packed:
            words = (rounded.int() + 8).reshape(len(rounded), -1, 8) << (4 * torch.arange(8, dtype=torch.int32))
            stored |= {f"{stem}.weight_packed": words.sum(-1).to(torch.int32)}
            stored |= {f"{stem}.weight_shape": torch.tensor(weight.shape)}
        else:
            stored |= {key: rounded}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4 if packed else 8, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights}
    form = "pack-quantized" if packed else "int-quantized"
    settings = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    configured(tmp_path, {**settings, "ignore": ["lm_head"], "config_groups": {"g": group}})
    parent = opened(tmp_path)
    assert all(torch.equal(parent.checkpoint.tensor(n), t) for n, t in plain.items())
    seen = plan(Recipe.of(base="x", keep_layers=1), peek(str(tmp_path), dequantize=True))
    assert seen.parameters == parent.parameters


def test_bitsandbytes_in_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    save_tiny("llama", tmp_path / "plain", dtype=BFLOAT)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", dtype=BFLOAT, quantization_config=four, device_map="cpu"
    ).save_pretrained(tmp_path / "four")
    configured(tmp_path / "four", None)
    parent = opened(tmp_path / "four")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "four", device_map="cpu").dequantize().state_dict()
    assert all(torch.equal(parent.checkpoint.tensor(n), theirs[n]) for n in parent.shapes)
    seen = plan(Recipe.of(base="x", keep_layers=1), peek(str(tmp_path / "four"), dequantize=True))
    assert seen.parameters == parent.parameters and "bitsandbytes (4 bit)" in seen.notes[0]


# GGUF


def q8(weight: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Blocks of 32 eight-bit numbers behind a float16 scale, and what they stand for."""
    blocks = weight.float().numpy().reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    whole = np.round(blocks / scale.astype(np.float32)).astype(np.int8)
    content = b"".join(s.tobytes() + b.tobytes() for s, b in zip(scale, whole, strict=True))
    return content, torch.from_numpy(whole.astype(np.float32) * scale).reshape(weight.shape)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(path: Path, kind: str, keys: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A GGUF file with its matrices in Q8_0; what they stand for."""
    head, body, table, plain = b"", b"", b"", {}
    for key, value in {"general.architecture": kind, **keys}.items():
        head += text(key)
        if isinstance(value, list):
            strings = isinstance(value[0], str)
            head += struct.pack("<IIQ", 9, 8 if strings else 4, len(value))
            head += b"".join(text(v) if strings else struct.pack("<I", v) for v in value)
        elif isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        else:
            head += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    for name, tensor in tensors.items():
        blocks = tensor.dim() == 2 and tensor.shape[1] % 32 == 0
        content, plain[name] = q8(tensor) if blocks else (tensor.float().numpy().tobytes(), tensor.float())
        table += text(name) + struct.pack(
            f"<I{tensor.dim()}QIQ", tensor.dim(), *tensor.shape[::-1], 8 * blocks, len(body)
        )
        body += content + b"\0" * (-len(content) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1) + head + table
    path.write_bytes(start + b"\0" * (-len(start) % 32) + body)
    return plain


LFM2 = {
    "embed_tokens": "token_embd", "embedding_norm": "token_embd_norm", "layers": "blk", "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down",
    "conv.in_proj": "shortconv.in_proj", "conv.out_proj": "shortconv.out_proj", "conv.conv": "shortconv.conv",
}  # fmt: skip


def lfm2(folder: Path, file: str = "model-Q8_0.gguf") -> dict[str, torch.Tensor]:
    """A tiny model in a GGUF file that transformers reads by itself; its tensors by transformers' names."""
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model("lfm2", vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                  num_attention_heads=4, num_key_value_heads=2, block_auto_adjust_ff_dim=False,
                                  layer_types=["conv", "full_attention", "conv"], bos_token_id=94,
                                  eos_token_id=95)  # fmt: skip
    torch.manual_seed(0)
    tensors, names = {}, {}
    for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items():
        if name == "lm_head.weight":
            continue
        short = name.removeprefix("model.")
        for ours, theirs in LFM2.items():
            short = short.replace(f"{ours}.", f"{theirs}.")
        tensors[short] = tensor.squeeze(1) if "conv.conv" in name else tensor
        names[short] = name
    words = [chr(33 + i) for i in range(93)] + ["!!", "<s>", "</s>"]
    keys = {"lfm2.context_length": 64, "lfm2.embedding_length": 32, "lfm2.feed_forward_length": 64,
            "lfm2.block_count": 3, "lfm2.attention.head_count": 4, "lfm2.attention.head_count_kv": [0, 2, 0],
            "lfm2.attention.layer_norm_rms_epsilon": float(config.norm_eps), "lfm2.shortconv.l_cache": 3,
            "lfm2.rope.freq_base": 1e6, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "lfm2",
            "tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": ["! !"],
            "tokenizer.ggml.token_type": [1] * 94 + [3, 3], "tokenizer.ggml.bos_token_id": 94,
            "tokenizer.ggml.eos_token_id": 95}  # fmt: skip
    plain = gguf(folder / file, "lfm2", keys, tensors)
    return {names[n]: t.unsqueeze(1) if "conv.conv" in names[n] else t for n, t in plain.items()}


@pytest.mark.parametrize("asked", ["folder", "file", "repo"])
def test_gguf_becomes_what_its_blocks_say(tmp_path, hub_server, asked):
    plain = lfm2(tmp_path / "base")
    path = {"folder": tmp_path / "base", "file": tmp_path / "base" / "model-Q8_0.gguf", "repo": "ns/base"}[asked]
    hub_server.seed("ns/base", {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()})
    found = pull(str(path), dequantize=True)
    assert found.folder.suffix == ".gguf"
    made = prepared.prepared(found.source, found.folder, None, dequantize=True)
    ours = stock(made.folder, dtype="auto")
    assert ours.dtype == BFLOAT
    for name, tensor in plain.items():
        # Scale and product are rounded to bfloat16 each.
        assert torch.allclose(ours.state_dict()[name].float(), tensor, rtol=2**-7), name
    how = {"gguf_file": "model-Q8_0.gguf", "dtype": BFLOAT, "quantization_config": GgufConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **how).eval()
    with torch.inference_mode():
        said = [m(input_ids=tokens(1) % 96).logits for m in (ours, theirs)]
    assert torch.equal(*said)
    assert AutoTokenizer.from_pretrained(made.folder)("abc").input_ids == [64, 65, 66]
    seen = peek(str(path), dequantize=True)
    expected = plan(Recipe.of(base="x", keep_layers=1), seen)
    assert (expected.depth, expected.parameters) == (3, sum(t.numel() for t in plain.values()))
    assert expected.bytes == 2 * expected.parameters and "model-Q8_0.gguf" in expected.notes[0]
    assert seen.config["model_type"] == "lfm2"


def test_of_several_gguf_files_the_largest_is_read(tmp_path):
    lfm2(tmp_path, "model-Q8_0.gguf")
    (tmp_path / "model-Q2_K.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    (tmp_path / "mmproj-model.gguf").write_bytes(b"GGUF" + b"\0" * 10**6)
    assert pull(str(tmp_path), dequantize=True).folder.name == "model-Q8_0.gguf"


def test_gguf_is_refused_before_a_download(tmp_path, hub_server, monkeypatch):
    lfm2(tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    hub_server.seed("ns/base", files)
    for look in (peek, pull):
        with pytest.raises(errors.SourceError, match="ns/base is a GGUF file; pass --dequantize"):
            look("ns/base")
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    gguf(tmp_path / "model-Q8_0.gguf", "llama", {"llama.block_count": 1}, {"blk.0.attn_q.weight": torch.ones(2, 2)})
    with pytest.raises(
        errors.SourceError, match="type llama, and transformers needs the package gguf .*pip install gguf"
    ):
        pull(str(tmp_path), dequantize=True)
    (tmp_path / "model-Q8_0.gguf").write_bytes(files["model-Q8_0.gguf"][:200])
    with pytest.raises(errors.BrokenCheckpoint, match="cut short or no GGUF file"):
        peek(str(tmp_path), dequantize=True)
    for i in (1, 2):
        (tmp_path / f"model-0000{i}-of-00002.gguf").write_bytes(b"GGUF")
    (tmp_path / "model-Q8_0.gguf").unlink()
    with pytest.raises(errors.UnsupportedArchitecture, match="llama-gguf-split --merge"):
        peek(str(tmp_path), dequantize=True)


def test_gguf_types_that_need_no_package_are_those_of_transformers():
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

    from hf_prune.hub.gguf import MODEL_TYPES

    assert {MODEL_TYPES.get(a, a) for a in GGUF_ARCHS} == set(quantisation.READ_GGUF)


# what nobody can undo

METHODS = {
    "gptq": {"bits": 4, "group_size": 128}, "awq": {"bits": 4}, "hqq": {"weights": {"nbits": 4}}, "aqlm": {},
    "eetq": {"weights": "int8"}, "quanto": {"weights": "int8"}, "vptq": {}, "spqr": {"bits": 3}, "fbgemm_fp8": {},
    "bitnet": {}, "higgs": {"bits": 4}, "torchao": {"quant_type": "int4"}, "quark": {}, "auto-round": {"bits": 4},
    "fp_quant": {}, "fouroversix": {}, "nvfp4": {}, "sinq": {}, "gemma": {}, "modelopt": {}, "tomorrow": {"bits": 2},
}  # fmt: skip


def test_every_method_of_the_installed_transformers_is_undone_or_refused():
    known = {m.removesuffix("_4bit").removesuffix("_8bit") for m in AUTO_QUANTIZER_MAPPING}
    assert known <= set(METHODS) | set(quantisation.PACKAGES)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["top", "text"])
def test_what_nobody_can_undo_names_its_original(hub_server, tmp_path, method, where):
    save_tiny("llama", tmp_path)
    settings = {"quant_method": method, **METHODS[method]}
    configured(tmp_path, settings if where == "top" else None,
               **({} if where == "top" else {"text_config": {"quantization_config": settings}}))  # fmt: skip
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()} | {"README.md": CARD}
    hub_server.seed("ns/base", files)
    for look in (peek, pull):
        for more in ({}, {"dequantize": True}):
            with pytest.raises(errors.UnsupportedArchitecture) as caught:
                look("ns/base", **more)
            said = str(caught.value)
            assert quantisation.NAMES.get(method, method) in said and "original ns/original" in said and said[-1] == "."
    assert not hub_server.seen("/cdn/"), "weights were downloaded"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"load_in_8bit": True}, r"bitsandbytes \(8 bit\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"bitsandbytes \(4 bit\)"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}}}},
            "compressed-tensors",
        ),
        ({"config_groups": {}}, "compressed-tensors"),
    ],
)
def test_packages_are_asked_for_by_name(tmp_path, monkeypatch, settings, says):
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    save_tiny("llama", tmp_path)
    configured(tmp_path, settings)
    with pytest.raises(
        errors.SourceError, match=f"{says}.*install it with pip install (bitsandbytes|compressed-tensors)"
    ):
        pull(str(tmp_path), dequantize=True)


@pytest.mark.parametrize("name", list(quantisation.BESIDE))
def test_early_quantisers_left_a_file_of_their_own(tmp_path, name):
    save_tiny("llama", tmp_path)
    configured(tmp_path, None)
    (tmp_path / name).write_text('{"bits": 4}')
    with pytest.raises(errors.UnsupportedArchitecture, match="cannot undo"):
        peek(str(tmp_path))


def test_mlx_is_named(tmp_path):
    save_tiny("llama", tmp_path)
    configured(tmp_path, None, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(errors.UnsupportedArchitecture, match=r"MLX \(4 bit\)"):
        peek(str(tmp_path), dequantize=True)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_scales_without_a_config_are_noticed(tmp_path, dtype):
    fp8(tmp_path, [16, 16])
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    stored = {
        n: t.to(dtype) if t.dtype == torch.float8_e4m3fn else t
        for n, t in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(errors.UnsupportedArchitecture, match="does not say how it was quantised"):
        peek(str(tmp_path))
    with pytest.raises(errors.UnsupportedArchitecture, match="does not say how it was quantised"):
        found = pull(str(tmp_path))
        Parent.open(found.source, found.folder)
