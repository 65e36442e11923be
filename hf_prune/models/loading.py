"""Which tensors of a source become which of its model's: what transformers loads, ignores, ties, or would make up.

transformers fills what it does not find with random numbers and says so in a log; here that is an error, which names
the entry of config.json that the files contradict.
"""

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune.errors import BrokenCheckpoint
from hf_prune.models.configs import skeleton
from hf_prune.models.conversions import as_modules, parts_of
from hf_prune.models.families import Family
from hf_prune.models.inference import family_of
from hf_prune.models.numbering import depth_of

BUFFERS = r"rotary_emb\.inv_freq$|(^|\.)position_ids$|\.masked_bias$|\.(attn|attention)\.bias$"
"""Masks and tables that older files store; transformers makes them afresh, and nobody needs to be told."""
SWITCHES = "bias|norm|tie"
"""In the name of a yes or no that decides whether tensors are there."""
ROWS = 4096
"""Of two tensors, that are compared at once."""
TRIES = 40
"""Changes of a config that are tried, at most, to name the entry that is wrong."""


@dataclass(frozen=True, eq=False)
class Fit:
    """How a source becomes a model.

    config: as read; `tie_word_embeddings` is False where the files hold a head of their own.
    family: where the parts are.
    model: on the meta device.
    shapes: of every tensor of the model, tied duplicates left out.
    readers: of those tensors in the files, by the model's names.
    ignored: tensors of the files that nothing is made of.
    untied: the head of the files, where the config says that there is none.
    """

    config: PretrainedConfig
    family: Family
    model: PreTrainedModel
    shapes: Mapping[str, torch.Size]
    readers: Mapping[str, Any]
    ignored: tuple[str, ...]
    untied: str | None = None


def match_tensors(
    what: str,
    config: PretrainedConfig,
    stored: Mapping[str, Any],
    same: Callable[[Any, Any], bool],
    trust_remote_code: bool = False,
) -> Fit:
    """Find every tensor of the model among those of the files.

    Args:
        what: the source, for errors.
        config: of the model.
        stored: the files' tensors by their names there, each with a shape.
        same: whether two of them hold the same numbers.
        trust_remote_code: run the code beside the weights.

    Raises:
        UnsupportedArchitecture: see `family_of`.
        BrokenCheckpoint: a tensor is missing or has another shape than the config says.
    """
    family = family_of(config)
    if depth_of(config, family) < 1:
        raise BrokenCheckpoint(
            f"config.json of {what} says {family.depth_key} {depth_of(config, family)}, so there is no layer to "
            "remove; correct the entry, or fetch the source afresh."
        )
    model = skeleton(config, trust_remote_code)
    untied, readers = None, as_modules(stored, model)
    for head, embedding in tied(model).items():
        pair = [readers.get(n) for n in (head, embedding)]
        if None not in pair and not same(*pair):
            # Both are there and differ: transformers keeps both.
            config, untied = _untied(config), head
            model = skeleton(config, trust_remote_code)
    found = _matched(model, stored)
    if found.wrong:
        raise _contradiction(what, config, found, stored, trust_remote_code)
    return Fit(config, family, model, found.shapes, found.readers, found.ignored, untied)


def tied(model: PreTrainedModel) -> dict[str, str]:
    """Tensors that are another one under a second name (the head -> the embedding)."""
    # Patterns and nested models are spelled out there; code beside weights may know the plain list alone.
    found = getattr(model, "all_tied_weights_keys", None)
    if found is None and getattr(model.config, "tie_word_embeddings", False):
        found = getattr(model, "_tied_weights_keys", None)
    return dict(found or {})


@dataclass(frozen=True, eq=False)
class _Match:
    shapes: dict[str, torch.Size]
    readers: dict[str, Any]
    ignored: tuple[str, ...]
    wrong: tuple[str, ...]


def _matched(model: PreTrainedModel, stored: Mapping[str, Any]) -> _Match:
    """`wrong` are the tensors that are missing or of another shape."""
    second, found = tied(model), as_modules(stored, model)
    shapes = {n: t.shape for n, t in model.state_dict().items() if n not in second}
    # Files may hold the one or the other.
    for duplicate, name in second.items():
        if name not in found and duplicate in found:
            found[name] = found[duplicate]
    wrong = tuple(n for n, shape in shapes.items() if n not in found or tuple(found[n].shape) != tuple(shape))
    used = {id(part) for reader in found.values() for part in parts_of(reader)}
    ignored = tuple(n for n, reader in stored.items() if id(reader) not in used and not re.search(BUFFERS, n))
    return _Match(shapes, {n: found[n] for n in shapes if n in found}, ignored, wrong)


def _untied(config: PretrainedConfig) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return config


def _contradiction(
    what: str, config: PretrainedConfig, found: _Match, stored: Mapping[str, Any], trust_remote_code: bool
) -> BrokenCheckpoint:
    name = found.wrong[0]
    fact = f"{name} is missing, and transformers would fill it with random numbers"
    if name in found.readers:
        fact = f"{name} has shape {list(found.readers[name].shape)}, but must have {list(found.shapes[name])}"

    for key, value in itertools.islice(_changes(config, found, stored), TRIES):
        if _fits(config, key, value, stored, trust_remote_code):
            return BrokenCheckpoint(
                f"config.json of {what} says {key} {getattr(config, key)}, but its tensors fit {value}: {fact}; "
                "correct the entry, or fetch the source afresh."
            )
    return BrokenCheckpoint(f"{what} is incomplete, or its config.json is another's: {fact}; fetch the source afresh.")


def _fits(config: PretrainedConfig, key: str, value: Any, stored: Mapping[str, Any], trust_remote_code: bool) -> bool:
    changed = copy.deepcopy(config)
    try:
        setattr(changed, key, value)
        return not _matched(skeleton(changed, trust_remote_code), stored).wrong
    # What transformers raises on a value that it does not expect derives from Exception alone.
    except Exception:
        return False


def _changes(config: PretrainedConfig, found: _Match, stored: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries of a config, and what they would have to be for one of the wrong tensors to be right."""
    family = family_of(config)
    layers = {int(m[1]) for n in stored if (m := re.search(rf"{re.escape(family.layers)}\.(\d+)\.", n))}
    if layers and max(layers) + 1 < getattr(config, family.depth_key):
        yield family.depth_key, max(layers) + 1
    numbers = {k: v for k, v in config.to_dict().items() if isinstance(v, int) and hasattr(config, k)}
    for key, value in numbers.items():
        if isinstance(value, bool) and re.search(SWITCHES, key):
            yield key, not value
    pairs = dict.fromkeys(
        pair
        for name in found.wrong
        if name in found.readers
        for pair in zip(found.shapes[name], found.readers[name].shape, strict=False)
        if pair[0] != pair[1]
    )
    exact = [(k, has) for want, has in pairs for k, v in numbers.items() if v == want]
    scaled = [(k, v * has // want) for want, has in pairs for k, v in numbers.items() if _divides(v, want, has)]
    yield from dict.fromkeys([*exact, *scaled])


def _divides(value: int, want: int, has: int) -> bool:
    return not isinstance(value, bool) and 1 < value < want and want % value == 0 and value * has % want == 0


def same(one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> bool:
    """Whether two tensors hold the same numbers, whatever their dtypes."""
    a, b = one(), other()
    if a.shape != b.shape:
        return False
    wide = torch.promote_types(a.dtype, b.dtype)
    pairs = zip(a.split(ROWS), b.split(ROWS), strict=True)
    return all(torch.equal(x.to(wide), y.to(wide)) for x, y in pairs)


def notes(found: Fit) -> tuple[str, ...]:
    """What a reader of the config would not expect of the model that transformers makes of the files."""
    said = []
    if found.untied:
        said.append(f"The files hold a {found.untied} of their own, which the config calls tied: it is kept, untied.")
    if found.ignored:
        depth = depth_of(found.config, found.family)
        names = dict.fromkeys(_summary(n, found.family.prefix, depth) for n in found.ignored)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        left = f"{len(found.ignored)} tensors are left out, as transformers does"
        said.append(f"{left}: {', '.join(list(names)[:3])}{more}.")
    return tuple(said)


def _summary(name: str, prefix: str, depth: int) -> str:
    """Of a layer that is not loaded its name alone, of tensors in several layers one for all."""
    match = re.match(r"(.*?\.)(\d+)(?=\.)", name)
    if match and (match[1] != prefix or int(match[2]) >= depth):
        return match[0]
    return re.sub(r"\.\d+\.", ".N.", name)
