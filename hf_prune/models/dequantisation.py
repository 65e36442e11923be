"""Quantised models made plain: transformers loads them dequantised, and writes what it has loaded."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hf_prune.errors import BrokenCheckpoint, SourceError
from hf_prune.hub.folders import Folder
from hf_prune.hub.gguf import read_gguf
from hf_prune.hub.names import Name
from hf_prune.hub.quantisation import COMPANIONS, Quantised, dtype_of
from hf_prune.models.noise import silent
from hf_prune.models.plain_checkpoint import copy_beside, copy_tokenizer, in_a_sentence, save_plain


def dequantise(path: Path, found: Quantised, trust_remote_code: bool, out: Path) -> None:
    """Write the plain model of a quantised folder or GGUF file, with its tokenizer, in the dtype of its config.

    Raises:
        BrokenCheckpoint: transformers cannot, or tensors are missing.
        SourceError: a GGUF file's tokenizer is none that transformers reads.
        NotEnoughDisk: it does not fit.
    """
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with (
        silent(),
        in_a_sentence(f"transformers cannot undo the quantisation {found} of {path.name}", BrokenCheckpoint),
    ):
        if found.method == "gguf":
            plain = GgufConfig(dequantize=True)
            how |= {"gguf_file": path.name, "quantization_config": plain, "dtype": _gguf_dtype(path)}
        else:
            config = AutoConfig.from_pretrained(path, **how)
            # Said in the config and not beside it, so that everything else stays as its makers wrote it.
            _settings(config)["dequantize"] = True
            raw = json.loads((path / "config.json").read_bytes())
            how |= {"config": config, "dtype": getattr(torch, dtype_of(raw)), "use_safetensors": True}
        folder = path.parent if path.is_file() else path
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, device_map={"": "cpu"}, **how
        )
        if found.method == "bitsandbytes":
            model = model.dequantize()
    info["unexpected_keys"] = [n for n in info["unexpected_keys"] if not COMPANIONS.search(n)]
    wrong = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "error_msgs"}
    if wrong:
        raise BrokenCheckpoint(f"{path.name} does not hold the tensors of its config: {wrong}.")
    save_plain(model, out)
    if path.is_file() and not copy_tokenizer(folder, out):
        with silent(), in_a_sentence(f"transformers cannot read the tokenizer in {path.name}", SourceError):
            AutoTokenizer.from_pretrained(folder, gguf_file=path.name, local_files_only=True).save_pretrained(out)
    elif not path.is_file():
        copy_beside(path, out, trust_remote_code)


def _settings(config: Any) -> dict[str, Any]:
    """The quantisation settings in a config or its text part."""
    for part in (config, config.get_text_config(decoder=True)):
        if isinstance(found := getattr(part, "quantization_config", None), dict):
            return found
    raise ValueError("it has no quantization_config")


def _gguf_dtype(path: Path) -> torch.dtype:
    source = Folder.open(Name(path.name, folder=path), path)
    span = functools.partial(source.span, path.name)
    config, _ = read_gguf(span, path.stat().st_size, path.name, path.name)
    return getattr(torch, config["dtype"])
