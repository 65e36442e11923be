"""Adapters that are more than a plain LoRA: PEFT merges them into their base, which is in memory for that."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.errors import BrokenCheckpoint, IncompatibleSources
from hf_prune.hub import adapters
from hf_prune.models.adapter import Adapter
from hf_prune.models.noise import silent
from hf_prune.models.plain_checkpoint import copy_beside, copy_tokenizer, in_a_sentence, save_plain

PROBES = 8
"""Random states by which embedding and head are compared before and after a merge."""
ROUNDED = 1e-5
"""Share of the largest number that sums in float32 may be off."""


def merge_with_peft(
    names: tuple[str, str], folder: Path, adapter: Path, allow_pickle: bool, trust_remote_code: bool, out: Path
) -> None:
    """Write a base with its adapter merged, in the base's dtype; a resized vocabulary brings its own tokenizer.

    Args:
        names: of base and adapter, for errors.
        folder: the base, a plain checkpoint.
        adapter: its adapter.
        allow_pickle: read bases that are pickles.
        trust_remote_code: run code beside the weights.
        out: an empty folder.

    Raises:
        IncompatibleSources: PEFT cannot, or what it makes is not what the adapter says.
        BrokenCheckpoint: the adapter lacks tensors.
        NotEnoughDisk: the result does not fit.
    """
    opened = Adapter(adapter)
    what = f"PEFT cannot merge the adapter {names[1]} into {names[0]}"
    with silent(), in_a_sentence(what, IncompatibleSources), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
        ).eval()
        grown = _resize(base, opened)
        dense = _ends(base)
        model = _with_adapter(base, opened)
        before = _ends(model.get_base_model())
        merged = model.merge_and_unload()
        _check_ends(adapter.name, merged.dtype, dense, before, _ends(merged))
    save_plain(merged, out)
    copy_beside(folder, out, trust_remote_code)
    if grown:
        copy_tokenizer(adapter, out)


def _resize(base: PreTrainedModel, adapter: Adapter) -> bool:
    """Give the base the rows that its adapter was made for."""
    rows = adapters.resized(adapter.shapes)
    if rows is None or rows == base.get_input_embeddings().weight.shape[0]:
        return False
    more = rows > base.get_input_embeddings().weight.shape[0]
    base.resize_token_embeddings(rows, mean_resizing=False)
    whole = {adapters.target(n).removesuffix(".weight") for n in adapter.shapes if n.endswith(".weight")}
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    names = [n for n, m in base.named_modules() if any(m is end for end in ends)]
    missing = [n for n in names if n not in whole]
    one_matrix = base.config.tie_word_embeddings and not adapters.unties(adapter.config)
    if more and missing and not (one_matrix and len(missing) < len(names)):
        raise IncompatibleSources(
            f"The adapter {adapter.folder.name} was made for {rows} rows of vocabulary and does not hold all of "
            f"{missing[0]}; save it again with save_embedding_layers=True."
        )
    return True


def _with_adapter(base: PreTrainedModel, adapter: Adapter) -> Any:
    """The base with its adapter in place, every tensor of it used."""
    from peft import PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config["peft_type"]].__dataclass_fields__
    if strange := next((k for k, v in adapter.config.items() if v and k not in known), None):
        raise IncompatibleSources(
            f"The adapter {adapter.folder.name} was made by another PEFT: this one does not know its setting "
            f"{strange}; upgrade peft, or merge it where it was made."
        )
    model = PeftModel.from_pretrained(base, adapter.folder, torch_device="cpu")
    # Once more, for what PEFT says of names that it has no place for, and those that it misses.
    result = model.load_adapter(adapter.folder, "default", torch_device="cpu")
    state = model.state_dict()
    # What layers share is stored once.
    filled = {t.data_ptr() for n, t in state.items() if n not in result.missing_keys}
    if missing := [n for n in result.missing_keys if state[n].data_ptr() not in filled]:
        raise BrokenCheckpoint(f"The adapter {adapter.folder.name} lacks {missing[0]}; download it again.")
    # Of a module kept whole PEFT may write three copies.
    strange = [n for n in result.unexpected_keys if not adapters.WRAPPERS.search(n)]
    if strange:
        raise IncompatibleSources(
            f"The adapter {adapter.folder.name} holds {strange[0]}, which has no place in its base; it was made for "
            "another model."
        )
    return model


def _ends(model: PreTrainedModel) -> list[Tensor]:
    """What embedding and head make of every token and of some random states: [rows, probes] each, float32."""
    draw = torch.Generator().manual_seed(0)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    states = torch.cat([embed(p[None])[0] for p in torch.arange(embed.weight.shape[0]).split(4096)])
    said = [states.float() @ torch.randn(states.shape[1], PROBES, generator=draw)]
    if head is not None:
        said.append(head(torch.randn(PROBES, head.weight.shape[1], generator=draw).to(head.weight.dtype)).float().T)
    return said


def _check_ends(name: str, dtype: torch.dtype, base: list[Tensor], before: list[Tensor], after: list[Tensor]) -> None:
    """Refuse a merge after which embedding or head is not what the adapter made of it."""
    effect = max(float((one - other).abs().max()) for one, other in zip(base, before, strict=True))
    for end, one, other in zip(("embedding", "head"), before, after, strict=False):
        noise = max(torch.finfo(dtype).eps, ROUNDED) * float(one.abs().max())
        if float((one - other).abs().max()) > max(noise, effect / 4):
            raise IncompatibleSources(
                f"The adapter {name} changes one of embedding and head, which its base has in one matrix, so PEFT's "
                f"merge alters the {end}, too; save the base untied (tie_word_embeddings=False, its embedding copied "
                "into the head) and name that."
            )
