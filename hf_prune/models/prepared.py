"""Sources that are no plain checkpoint, made one by the library that knows them: PEFT merges, transformers dequantises.

A plain LoRA is merged tensor by tensor as its base is read, and needs nothing of this. What is made here holds the
whole model in memory once, in the dtype it is stored in, and lies in the user's cache under a digest of what it was
made from and by; the pinned source stays what it is.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hf_prune.blueprint import Source
from hf_prune.errors import BrokenCheckpoint, HfPruneError, IncompatibleSources, NotEnoughDisk, SourceError
from hf_prune.hub import adapters, contents
from hf_prune.hub.folders import Folder
from hf_prune.hub.names import Name
from hf_prune.hub.quantisation import COMPANIONS, Quantised, allowed, check_numbers, check_quantised, dtype_of
from hf_prune.models.adapter import Adapter
from hf_prune.models.families import read_config, skeleton

CACHE = "~/.cache/hf_prune/prepared"
PROBES = 8
"""Random states by which embedding and head are compared before and after a merge."""
ROUNDED = 1e-5
"""Share of the largest number that sums in float32 may be off."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plain checkpoint, perhaps with a plain LoRA to merge as it is read; `how` says what was done for it."""

    folder: Path
    adapter: Path | None
    how: tuple[str, ...] = ()


def prepared(
    source: Source,
    folder: Path,
    adapter: Path | None,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> Prepared:
    """A source as a plain checkpoint: itself where it is one, else made or found in the cache.

    Args:
        source: its pin, part of the digest.
        folder: of the base; a file for GGUF.
        adapter: folder of its adapter.
        allow_pickle: read adapters that are pickles.
        trust_remote_code: run code beside the weights.
        dequantize: turn a quantised base into a plain one.

    Raises:
        SourceError, UnsupportedArchitecture: it is quantised, and nobody asked or nobody can undo that.
        IncompatibleSources: PEFT does not merge this adapter into this base.
        NotEnoughDisk: the plain checkpoint does not fit into the cache.
    """
    how: list[str] = []
    found = _quantised(folder, allow_pickle, dequantize)
    if found:
        make = functools.partial(_dequantise, folder, found, trust_remote_code)
        how.append(f"dequantised from {found} by transformers {transformers.__version__}")
        folder = _cached([str(source), _content(folder), found.method, *_versions()], make)
    if adapter and not _is_read(folder, adapter, allow_pickle, trust_remote_code):
        import peft

        make = functools.partial(_merge, folder, adapter, allow_pickle, trust_remote_code)
        kind = Adapter(adapter).config["peft_type"]
        how.append(f"{kind} adapter merged by PEFT {peft.__version__}")
        key = [str(source), _content(folder), _content(adapter), peft.__version__, *_versions()]
        folder, adapter = _cached(key, make), None
    return Prepared(folder, adapter, tuple(how))


def _quantised(folder: Path, allow_pickle: bool, dequantize: bool) -> Quantised | None:
    """How a base is quantised, None for a plain one; raises where nobody may or can undo it."""
    if folder.is_file():
        return allowed(folder.name, Quantised("gguf"), {}, dequantize)
    try:
        raw = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        # The reader of configs has the sentence for that.
        return None
    if not isinstance(raw, dict):
        return None
    here = Folder.open(Name(folder.name, folder=folder), folder)
    found = check_quantised(folder.name, raw, here.files, here.card, dequantize)
    if found is None:
        weights = contents.weights(folder.name, here.files, here.read, allow_pickle)
        for name in (w for w in weights if w.endswith(".safetensors")):
            check_numbers(folder.name, here.header(name), here.card)
    return found


def _is_read(folder: Path, adapter: Path, allow_pickle: bool, trust_remote_code: bool) -> bool:
    """Whether an adapter is merged tensor by tensor; raises where it belongs to another base, or may not be read."""
    opened = Adapter(adapter)
    adapters.check_weights(adapter.name, {p.name for p in adapter.iterdir()}, allow_pickle)
    model = skeleton(read_config(folder, trust_remote_code), trust_remote_code)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    pairs = (getattr(model, "_tied_weights_keys", None) or {}) if model.config.tie_word_embeddings else {}
    return opened.is_read(shapes, {n for n, _ in model.named_modules()}, {*pairs, *dict(pairs).values()})


def _versions() -> list[str]:
    return [transformers.__version__, torch.__version__.partition("+")[0]]


def _content(path: Path) -> str:
    """Digest of the weights and configs in a folder, or of a file; large files are sampled as pins are."""
    found = Folder.open(Name(path.name, folder=path), path)
    names = contents.matching(found.files, (*contents.WEIGHTS, "*.gguf", "*.json", *contents.SPEECH))
    return found.revision(tuple(names))


def _cached(key: list[str], make: Callable[[Path], None]) -> Path:
    """The folder of this digest, made whole or not at all."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    cache = Path(CACHE).expanduser()
    if not (cache / digest).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f"{digest}.", ignore_cleanup_errors=True) as work:
            partial = Path(work, "model")
            partial.mkdir()
            make(partial)
            # Another process may have been faster.
            with contextlib.suppress(OSError):
                os.rename(partial, cache / digest)
    return cache / digest


def _dequantise(path: Path, found: Quantised, trust_remote_code: bool, out: Path) -> None:
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with _quiet(), _sentence(f"transformers cannot undo the quantisation {found} of {path.name}", BrokenCheckpoint):
        if found.method == "gguf":
            from transformers import GgufConfig

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
    _save(model, out)
    if path.is_file() and not _copy_tokenizer(folder, out):
        with _quiet(), _sentence(f"transformers cannot read the tokenizer in {path.name}", SourceError):
            AutoTokenizer.from_pretrained(folder, gguf_file=path.name, local_files_only=True).save_pretrained(out)
    elif not path.is_file():
        _copy_beside(path, out)


def _settings(config: Any) -> dict[str, Any]:
    """The quantisation settings in a config or its text part."""
    for part in (config, config.get_text_config(decoder=True)):
        if isinstance(found := getattr(part, "quantization_config", None), dict):
            return found
    raise ValueError("it has no quantization_config")


def _gguf_dtype(path: Path) -> torch.dtype:
    from hf_prune.hub.gguf import read_gguf

    source = Folder.open(Name(path.name, folder=path), path)
    span = functools.partial(source.span, path.name)
    config, _ = read_gguf(span, path.stat().st_size, path.name, path.name)
    return getattr(torch, config["dtype"])


def _merge(folder: Path, adapter: Path, allow_pickle: bool, trust_remote_code: bool, out: Path) -> None:
    opened = Adapter(adapter)
    what = f"PEFT cannot merge the adapter {adapter.name} into {folder.name}"
    with _quiet(), _sentence(what, IncompatibleSources), torch.random.fork_rng(), torch.no_grad():
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
    _save(merged, out)
    _copy_beside(folder, out)
    if grown:
        _copy_tokenizer(adapter, out)


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


def _save(model: PreTrainedModel, out: Path) -> None:
    """Write a plain model; undoing a quantisation must not be undone on the way to the file."""
    size = sum(t.nbytes for t in {t.data_ptr(): t for t in model.state_dict().values()}.values())
    if size > (free := shutil.disk_usage(out).free):
        raise NotEnoughDisk(
            f"The plain checkpoint needs {size / 1e9:.2f} GB in {CACHE} and {free / 1e9:.2f} GB are free; free some."
        )
    model._weight_conversions = None
    with _quiet():
        model.save_pretrained(out)


def _copy_beside(folder: Path, out: Path) -> None:
    _copy_tokenizer(folder, out)
    for path in (*folder.glob("generation_config.json"), *folder.glob("*.py")):
        shutil.copyfile(path, out / path.name)


def _copy_tokenizer(folder: Path, out: Path) -> bool:
    """Put a folder's tokenizer into another, in place of what is there; whether it has one."""
    names = [p.relative_to(folder).as_posix() for p in (*folder.iterdir(), *folder.glob("*/*.jinja")) if p.is_file()]
    if not contents.matching(names, contents.VOCABULARIES):
        return False
    spoken = [p for p in contents.SPEECH if p != "generation_config.json"]
    for name in contents.matching(names, spoken):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    return True


@contextlib.contextmanager
def _sentence(what: str, kind: type[HfPruneError]) -> Iterator[None]:
    """Errors of another library as one of ours."""
    try:
        yield
    except HfPruneError:
        raise
    except OSError as e:
        if e.errno == 28:
            raise NotEnoughDisk(f"{CACHE} has no room for the plain checkpoint; free some space.") from None
        raise kind(f"{what}: {_first(e)}.") from None
    # What other libraries trip over ends in any error there is.
    except Exception as e:
        raise kind(f"{what}: {_first(e)}.") from None


def _first(error: Exception) -> str:
    return (str(error).strip().split("\n")[0][:200] or type(error).__name__).rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice and progress bars of other libraries off the screen."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
